package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
)

func (k *kiln) buildCommand() *cobra.Command {
	var req platform.Request
	var show sinkFlags
	var env, envFiles, volumes, outputs []string
	var publish bool
	c := &cobra.Command{
		Use:   "build IMAGE",
		Short: "Build an image from the source code in a folder",
		Long: `Build an image from the source code in a folder.

The image goes to kiln's store; with --publish to its registry, with --output
to a file or folder. Buildpacks run in a sandbox, without credentials and
without privileges. Exit codes: kiln help exit-codes.`,
		Example: `  kiln build my-app --path ./src
  kiln build my-app --path ./src --builder registry.example.com/team/builder
  kiln build registry.example.com/team/my-app --path ./src --publish
  kiln build my-app --env BP_CPYTHON_VERSION=3.11 --output oci:./out`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req.Image = args[0]
			var err error
			if req.Env, err = buildEnv(k, env, envFiles); err != nil {
				return err
			}
			for _, v := range volumes {
				volume, err := platform.ParseVolume(v)
				if err != nil {
					return err
				}
				req.Volumes = append(req.Volumes, volume)
			}
			if publish {
				req.Outputs = append(req.Outputs, platform.Destination{Kind: platform.ToRegistry})
			}
			for _, o := range outputs {
				d, err := platform.ParseDestination(o)
				if err != nil {
					return err
				}
				req.Outputs = append(req.Outputs, d)
			}
			req.SourceDateEpoch, _ = k.lookup("SOURCE_DATE_EPOCH")
			req.LogLevel = "info"
			if show.verbose {
				req.LogLevel = "debug"
			}
			return k.build(c, show, req)
		},
	}
	f := c.Flags()
	f.StringVarP(&req.Path, "path", "p", ".", "`folder` of the app's source")
	f.StringVarP(&req.Builder, "builder", "B", "", "builder `image`: registry, oci:DIR or the store (default: the built-in one)")
	f.StringArrayVarP(&env, "env", "e", nil, "build-time variable, `NAME=VALUE`, or NAME to take it from here")
	f.StringArrayVar(&envFiles, "env-file", nil, "`file` of build-time variables, one NAME=VALUE a line")
	f.StringArrayVarP(&req.Tags, "tag", "t", nil, "one more `name` for the image")
	f.BoolVar(&publish, "publish", false, "send the image to the registry of its name")
	f.StringArrayVarP(&outputs, "output", "o", nil, "write the image to `oci:DIR`, oci-archive:FILE or docker-archive:FILE")
	f.StringVar(&req.RunImage, "run-image", "", "`image` to put the app on (default: the builder's)")
	f.StringArrayVarP(&req.Buildpacks, "buildpack", "b", nil, "`buildpack` to use instead of the builder's order: folder, id[@version] or image")
	f.StringVarP(&req.DefaultProcess, "default-process", "D", "", "process `type` that the image starts")
	f.BoolVar(&req.ClearCache, "clear-cache", false, "build as if for the first time")
	f.StringVar(&req.Network, "network", "host", "network of the buildpacks: `host` or none")
	f.StringArrayVar(&volumes, "volume", nil, "mount `source:target[:ro|rw]` for the buildpacks")
	f.StringVarP(&req.Descriptor, "descriptor", "d", "", "project descriptor `file` (default: project.toml in the app)")
	f.StringArrayVar(&req.Insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
	f.StringVar(&req.Isolation, "isolation", "", "sandbox `tier` to use or fail: 1, 1s, 2, 3 (default: the best there is)")
	f.StringVar(&req.Mirror, "mirror", "", "Debian mirror `URL` for the built-in builder (default: apt's)")
	show.add(c)
	return c
}

func (k *kiln) build(c *cobra.Command, show sinkFlags, req platform.Request) error {
	return k.with(c, show, func(ctx context.Context, p *platform.Platform) error {
		_, err := p.Build(ctx, req)
		return err
	})
}

// with opens the platform, hands it to do, and closes it.
func (k *kiln) with(c *cobra.Command, show sinkFlags, do func(context.Context, *platform.Platform) error) error {
	p, err := k.platform(c.Context(), c, k.sink(show))
	if err != nil {
		return err
	}
	return errors.Join(do(c.Context(), p), p.Store.Close())
}

// buildEnv merges --env-file and --env; --env wins, the last of a name wins.
func buildEnv(k *kiln, env, files []string) (map[string]string, error) {
	out := map[string]string{}
	add := func(kv, where string) error {
		name, value, given := strings.Cut(kv, "=")
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return spec.Exit(exitInvalid, spec.WithHint(fmt.Errorf("%s %q: not a variable", where, kv), "write it as NAME=VALUE"))
		}
		if !given {
			v, ok := k.lookup(name)
			if !ok {
				return nil
			}
			value = v
		}
		out[name] = value
		return nil
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil, spec.Exit(exitInvalid, fmt.Errorf("env file: %w", err))
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimSpace(lines.Text())
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if err := add(line, fmt.Sprintf("%s:%d:", file, n)); err != nil {
				return nil, err
			}
		}
		if err := lines.Err(); err != nil {
			return nil, spec.Exit(exitInvalid, fmt.Errorf("env file %s: %w", file, err))
		}
	}
	for _, kv := range env {
		if err := add(kv, "--env"); err != nil {
			return nil, err
		}
	}
	return out, nil
}
