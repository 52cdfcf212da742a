package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
)

func (k *kiln) storeCommand() *cobra.Command {
	c := group("store", "Look after the image store")
	c.AddCommand(k.storeCheckCommand(), k.storeGCCommand(), k.storePathCommand())
	return c
}

func (k *kiln) storeCheckCommand() *cobra.Command {
	var quick, asJSON bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Read everything in the store and prove that it is whole",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return k.with(c, sinkFlags{quiet: true}, func(ctx context.Context, p *platform.Platform) error {
				report, err := p.Store.Check(ctx, !quick)
				if err != nil {
					return err
				}
				if asJSON {
					if err := k.printJSON(report); err != nil {
						return err
					}
				} else {
					k.printf("%d images, %d blobs (%s), %d trees\n", report.Images, report.Blobs, event.Bytes(report.Bytes), report.Trees)
					for _, problem := range report.Problems {
						k.printf("  %s\n", problem)
					}
				}
				if n := len(report.Problems); n > 0 {
					return fmt.Errorf("the store has %d problems", n)
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&quick, "quick", false, "check sizes and references, read no content")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (k *kiln) storeGCCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove what no image, cache or running build needs",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return k.with(c, sinkFlags{}, func(ctx context.Context, p *platform.Platform) error {
				freed, err := p.Store.GC(ctx)
				if err != nil {
					return err
				}
				k.printf("freed %s\n", event.Bytes(freed.Bytes))
				for _, path := range freed.Left {
					fmt.Fprintf(k.stderr, "warning: %s stays: it holds files of other ids than yours, which root can remove\n", path)
				}
				return nil
			})
		},
	}
}

func (k *kiln) storePathCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "path",
		Short: "Print where the store is: an OCI layout that skopeo can read",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := k.storeDir(c)
			if err != nil {
				return err
			}
			k.printf("%s\n", dir)
			return nil
		},
	}
}

func (k *kiln) baseCommand() *cobra.Command {
	c := group("base", "Make base images from Debian packages")
	c.AddCommand(k.baseCreateCommand(), k.baseUpdateCommand())
	return c
}

func (k *kiln) baseUpdateCommand() *cobra.Command {
	var show sinkFlags
	var mirror string
	c := &cobra.Command{
		Use:   "update",
		Short: "Make the built-in base images anew, with Debian's latest updates",
		Long: `Make the built-in base images anew, with Debian's latest updates.

Builds use the base images that are in the store until they are updated, so that
a build with nothing changed gives the same image.`,
		Example: "  kiln base update",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return k.with(c, show, func(ctx context.Context, p *platform.Platform) error {
				return p.UpdateBases(ctx, mirror)
			})
		},
	}
	c.Flags().StringVar(&mirror, "mirror", "", "Debian mirror `URL` (default: apt's)")
	show.add(c)
	return c
}

func (k *kiln) baseCreateCommand() *cobra.Command {
	var show sinkFlags
	var suite, mirror, lockFile, writeLock string
	var packages, exclude, keyrings, allowMissing []string
	var allowExpired, build bool
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a base image from Debian packages, without dpkg, chroot or root",
		Long: `Make a base image from Debian packages, without dpkg, chroot or root.

Packages and what they depend on are verified against the archive's signature;
no maintainer script runs. --write-lock keeps the exact versions, --lock makes
the same bytes again.`,
		Example: `  kiln base create my-base --package curl --package postgresql-client --write-lock base.lock
  kiln base create my-base --lock base.lock`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return k.with(c, show, func(ctx context.Context, p *platform.Platform) error {
				if strings.HasPrefix(args[0], "kiln/") {
					return spec.Exit(exitInvalid, spec.WithHint(fmt.Errorf("image name %q: names that begin with kiln/ are kiln's own", args[0]), "choose another name, or make the built-in images anew with kiln base update"))
				}
				req := p.BaseFor(args[0], suite, build, packages, exclude)
				req.Mirror, req.Keyrings, req.AllowExpired = mirror, keyrings, allowExpired
				req.Recipe.AllowMissing = append(req.Recipe.AllowMissing, allowMissing...)
				if lockFile != "" {
					lock, err := platform.ReadLock(lockFile)
					if err != nil {
						return err
					}
					req = req.WithLock(lock)
				}
				return k.baseCreate(ctx, p, req, show, writeLock)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&suite, "suite", "bookworm", "Debian `suite`")
	f.StringArrayVar(&packages, "package", nil, "`package` to add to the built-in image")
	f.StringArrayVar(&exclude, "exclude", nil, "`package` to leave out, whoever depends on it")
	f.StringVar(&mirror, "mirror", "", "Debian mirror `URL` (default: apt's)")
	f.StringVar(&lockFile, "lock", "", "make exactly what this lock `file` says: suite, packages and excludes are its")
	f.StringVar(&writeLock, "write-lock", "", "write the lock `file`")
	f.StringArrayVar(&keyrings, "keyring", nil, "OpenPGP key `file` to trust instead of Debian's")
	f.BoolVar(&allowExpired, "allow-expired", false, "accept an archive whose signature is past its date")
	f.BoolVar(&build, "build", false, "make a build image: with a compiler and CNB_USER_ID")
	f.StringArrayVar(&allowMissing, "allow-missing", nil, "shared `library` that may be missing")
	for _, name := range []string{"suite", "package", "exclude"} {
		c.MarkFlagsMutuallyExclusive("lock", name)
	}
	show.add(c)
	return c
}

func (k *kiln) baseCreate(ctx context.Context, p *platform.Platform, req platform.BaseRequest, show sinkFlags, writeLock string) error {
	img, lock, err := p.CreateBase(ctx, req)
	if err != nil {
		return err
	}
	if writeLock != "" {
		if err := platform.WriteLock(writeLock, lock); err != nil {
			return err
		}
	}
	id, err := img.ConfigName()
	if err != nil {
		return err
	}
	p.Events.Emit(event.ImageWritten{Name: req.Name, ID: id.String()})
	switch {
	case show.json:
	case show.quiet:
		k.printf("%s\n", id)
	default:
		k.printf("%s %s, %d packages\n", req.Name, id, len(lock.Packages))
	}
	return nil
}
