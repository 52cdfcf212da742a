package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
)

// rebaseOptions are the flags of kiln rebase as they were typed.
type rebaseOptions struct {
	req       platform.RebaseRequest
	pull      string
	reportDir string
	show      sinkFlags
}

func (k *kiln) rebaseCommand() *cobra.Command {
	var o rebaseOptions
	c := &cobra.Command{
		Use:   "rebase IMAGE...",
		Short: "Put app images on a new run image, without building them again",
		Long: `Put app images on a new run image, without building them again.

Layers of the run image are replaced, all else stays. An image is in the store,
in a file (oci:DIR:NAME, oci-archive:FILE, docker-archive:FILE) or in a daemon
(docker-daemon:NAME); with --publish it is in its registry and stays there: only
its manifest and config travel, and layers of a run image in the same registry
are linked.

Each image goes onto the run image that it names, as it is now, or onto
--run-image. A run image whose name has a registry is looked up there, whatever
the store has. It must be for the same target and known to the image, or the
rebase must be forced.

Of several images each is tried; one that fails keeps no other from it, and
kiln then exits with 72 and says which. A name of - reads names from standard
input, one a line. The digest before and the digest after are in --json.`,
		Example: `  kiln rebase my-app
  kiln rebase --publish registry.example.com/team/my-app
  kiln rebase --publish --dry-run --packages registry.example.com/team/my-app
  kiln rebase --publish --run-image registry.example.com/run:13 --force registry.example.com/team/my-app
  kiln rebase --publish --jobs 20 - < images.txt`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: k.completeImages,
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if o.req.Images, err = k.imageNames(args); err != nil {
				return err
			}
			o.req.Pull = platform.PullPolicy(o.pull)
			return k.with(c, o.show, func(ctx context.Context, p *platform.Platform) error {
				return k.rebase(ctx, p, o)
			})
		},
	}
	f, req := c.Flags(), &o.req
	f.BoolVar(&req.Publish, "publish", false, "the images are in their registries")
	f.StringVar(&req.RunImage, "run-image", "", "`image` to put them on (default: the one that each names)")
	f.StringVar(&req.Previous, "previous-image", "", "`image` to read instead; it stays as it is")
	f.BoolVar(&req.Force, "force", false, "also onto a run image that is unknown to the image, or for another target")
	f.StringVar(&o.pull, "pull-policy", string(platform.PullAlways), "`when` to look for run images in registries: always, if-not-present or never")
	f.StringVar(&o.reportDir, "report-output-dir", "", "`directory` for report.toml; of several images each has a directory in it")
	f.BoolVar(&req.DryRun, "dry-run", false, "write nothing, show what would change")
	f.BoolVar(&req.Packages, "packages", false, "with --dry-run: read layers from registries to see which packages change")
	f.IntVar(&req.Jobs, "jobs", platform.DefaultRebaseJobs, "`number` of images to work on at once")
	f.StringArrayVar(&req.Insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
	o.show.add(c)
	complete(c, "pull-policy", string(platform.PullAlways), string(platform.PullIfNotPresent), string(platform.PullNever))
	return c
}

// maxNames bounds a list of images from standard input, in bytes.
const maxNames = 64 << 20

// imageNames is args with - replaced by what standard input lists.
func (k *kiln) imageNames(args []string) ([]string, error) {
	var names []string
	for _, arg := range args {
		if arg != "-" {
			names = append(names, arg)
			continue
		}
		lines := bufio.NewScanner(io.LimitReader(k.stdin, maxNames))
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") {
				names = append(names, line)
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("read names of images from standard input: %w", err)
		}
	}
	if len(names) == 0 {
		return nil, spec.Exit(exitInvalid, spec.WithHint(errors.New("standard input lists no image"), "write one name a line"))
	}
	return names, nil
}

func (k *kiln) rebase(ctx context.Context, p *platform.Platform, o rebaseOptions) error {
	results, err := p.Rebase(ctx, o.req)
	if o.show.quiet && !o.show.json {
		for _, r := range results {
			if r.Err == nil {
				k.printf("%s\n", r.ID)
			}
		}
	}
	if o.reportDir != "" && !o.req.DryRun {
		err = errors.Join(err, writeReports(o.reportDir, results, len(o.req.Images) > 1))
	}
	return err
}

// writeReports writes a report.toml for each image that is as it should be.
func writeReports(dir string, results []platform.Rebased, several bool) error {
	used := map[string]bool{}
	for _, r := range results {
		if r.Err != nil {
			continue
		}
		to := dir
		if several {
			to = filepath.Join(dir, fileName(r.Name, used))
		}
		b, err := encode.TOML(r.Report)
		if err == nil {
			err = os.MkdirAll(to, 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, "report.toml"), b, 0o644)
		}
		if err != nil {
			return spec.Exit(exitInvalid, spec.WithHint(fmt.Errorf("report of %s: %w", r.Name, err), "name a directory of yours with --report-output-dir"))
		}
	}
	return nil
}

// fileName makes a name for one file of an image's name, another one each time.
func fileName(image string, used map[string]bool) string {
	name := strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, image)
	name = strings.TrimLeft(name, ".")
	for unique, n := name, 2; ; n++ {
		if !used[unique] {
			used[unique] = true
			return unique
		}
		unique = fmt.Sprintf("%s-%d", name, n)
	}
}
