package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/store"
)

func (k *kiln) printf(format string, args ...any) { fmt.Fprintf(k.stdout, format, args...) }

func (k *kiln) printJSON(v any) error {
	enc := json.NewEncoder(k.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (k *kiln) imagesCommand() *cobra.Command {
	var asJSON, all, quiet bool
	c := &cobra.Command{
		Use:     "images",
		Aliases: []string{"ls"},
		Short:   "List the images in the store",
		Example: "  kiln images\n  kiln images --all --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return k.with(c, sinkFlags{quiet: true}, func(ctx context.Context, p *platform.Platform) error {
				refs, err := p.Store.Refs(ctx)
				if err != nil {
					return err
				}
				return k.listImages(refs, asJSON, all, quiet)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVarP(&all, "all", "a", false, "also kiln's own: base images, builder, lifecycle")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return c
}

func (k *kiln) listImages(refs []store.Ref, asJSON, all, quiet bool) error {
	shown := []store.Ref{}
	for _, r := range refs {
		if all || !ownImage(r.Name) {
			shown = append(shown, r)
		}
	}
	if asJSON {
		return k.printJSON(shown)
	}
	if quiet {
		for _, r := range shown {
			k.printf("%s\n", r.ImageID)
		}
		return nil
	}
	w := tabwriter.NewWriter(k.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tIMAGE ID\tSIZE\tBUILT")
	for _, r := range shown {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, shortID(r.ImageID), event.Bytes(r.Size), ago(time.Since(r.Updated)))
	}
	return w.Flush()
}

// ownImage says whether an image is one of kiln's own: a base image, the
// built-in builder, the lifecycle.
func ownImage(name string) bool { return strings.HasPrefix(name, "kiln/") }

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// ago writes an age for people.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func (k *kiln) rmCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:               "rm IMAGE...",
		Aliases:           []string{"rmi"},
		Short:             "Remove images from the store, and what only they needed",
		Example:           "  kiln rm my-app my-app:v1",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: k.completeImages,
		RunE: func(c *cobra.Command, args []string) error {
			return k.with(c, sinkFlags{quiet: true}, func(ctx context.Context, p *platform.Platform) error {
				var errs []error
				for _, ref := range args {
					if err := p.Remove(ctx, ref); err != nil {
						errs = append(errs, err)
						continue
					}
					k.printf("removed %s\n", ref)
				}
				if !keep {
					_, err := p.Store.GC(ctx)
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
	c.Flags().BoolVar(&keep, "no-prune", false, "leave layers that nothing needs any more")
	return c
}

func (k *kiln) inspectCommand() *cobra.Command {
	var asJSON, config, manifest bool
	var insecure []string
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show what an image is made of",
		Example: `  kiln inspect my-app
  kiln inspect --config my-app
  kiln inspect oci:./out --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: k.completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			return k.with(c, sinkFlags{quiet: true}, func(ctx context.Context, p *platform.Platform) error {
				if manifest {
					raw, err := p.Manifest(ctx, args[0], insecure)
					if err != nil {
						return err
					}
					k.printf("%s\n", raw)
					return nil
				}
				info, err := p.Inspect(ctx, args[0], insecure)
				switch {
				case err != nil:
					return err
				case config:
					return k.printJSON(info.Config)
				case asJSON:
					return k.printJSON(info)
				}
				k.showImage(info)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&config, "config", false, "print the image's config, as it is in the image")
	c.Flags().BoolVar(&manifest, "manifest", false, "print the image's manifest")
	c.Flags().StringArrayVar(&insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
	c.MarkFlagsMutuallyExclusive("json", "config", "manifest")
	return c
}

func (k *kiln) showImage(info platform.ImageInfo) {
	row := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			k.printf("%-12s %s\n", name, text)
		}
	}
	cf := info.Config
	row("Image", "%s", info.Name)
	row("ID", "%s", info.ID)
	row("Digest", "%s", info.Digest)
	row("Size", "%s", event.Bytes(info.Size))
	row("Created", "%s", info.Created.UTC().Format(time.RFC3339))
	row("Platform", "%s/%s", cf.OS, cf.Architecture)
	row("User", "%s", cf.Config.User)
	row("WorkingDir", "%s", cf.Config.WorkingDir)
	row("Entrypoint", "%s", strings.Join(cf.Config.Entrypoint, " "))
	row("Cmd", "%s", strings.Join(cf.Config.Cmd, " "))
	row("Base", "%s", cmp.Or(info.Base.Image, info.Base.Reference))
	if info.Build != nil {
		k.printf("\nBuildpacks\n")
		for _, b := range info.Build.Buildpacks {
			k.printf("  %s %s\n", b.ID, b.Version)
		}
		k.printf("\nProcesses\n")
		for _, p := range info.Build.Processes {
			mark := ""
			if p.Type == info.Build.DefaultProcessType {
				mark = " (default)"
			}
			k.printf("  %s%s: %s\n", p.Type, mark, strings.Join(append(p.Command, p.Args...), " "))
		}
	}
	k.printf("\nLayers\n")
	for _, l := range info.Layers {
		k.printf("  %8s  %s  %s\n", event.Bytes(l.Size), shortID(l.DiffID), l.CreatedBy)
	}
}
