package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/platform"
)

// appOptions are the flags of kiln build and kiln plan as they were typed: what
// is built, and with what.
type appOptions struct {
	req                    platform.Request
	env, envFiles, volumes []string
}

// buildOptions are those of kiln build: where the image goes, too.
type buildOptions struct {
	appOptions
	outputs []string
	publish bool
	show    sinkFlags
}

func (k *kiln) buildCommand() *cobra.Command {
	var o buildOptions
	c := &cobra.Command{
		Use:   "build IMAGE",
		Short: "Build an image from the source code in a folder",
		Long: `Build an image from the source code in a folder.

The image goes to kiln's store; with --publish to its registry, with --output
to a file, a folder, or a Docker or podman daemon. Buildpacks run in a sandbox, without credentials and
without privileges. Exit codes: kiln help exit-codes.

With --json, standard output has one JSON object a line and nothing else; the
last one is of kind "built", or "error" when the build failed.`,
		Example: `  kiln build my-app --path ./src
  kiln build my-app --path ./src --builder registry.example.com/team/builder
  kiln build registry.example.com/team/my-app --path ./src --publish
  kiln build my-app --env BP_CPYTHON_VERSION=3.11 --output oci:./out
  kiln build my-app --output docker-daemon
  kiln build my-app --plan plan.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := o.request(k, args[0])
			if err != nil {
				return err
			}
			return k.with(c, o.show, func(ctx context.Context, p *platform.Platform) error {
				_, err := p.Build(ctx, req)
				return err
			})
		},
	}
	o.flags(c)
	o.show.add(c)
	return c
}

func (o *appOptions) flags(c *cobra.Command) {
	f, req := c.Flags(), &o.req
	f.StringVarP(&req.Path, "path", "p", ".", "`folder` of the app's source")
	f.StringVarP(&req.Builder, "builder", "B", "", "builder `image`: registry, oci:DIR, docker-daemon:NAME or the store (default: the built-in one)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "build-time variable, `NAME=VALUE`, or NAME to take it from here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`file` of build-time variables, one NAME=VALUE a line")
	f.StringVar(&req.RunImage, "run-image", "", "`image` to put the app on (default: the builder's)")
	f.StringArrayVarP(&req.Buildpacks, "buildpack", "b", nil, "`buildpack` to use instead of the builder's order: folder, id[@version] or image")
	f.StringVar(&req.ExecEnv, "exec-env", "", "execution `environment` to build for, such as test (default: production)")
	f.BoolVar(&req.NoSystem, "disable-system-buildpacks", false, "leave out the buildpacks that the builder puts around every group")
	f.StringVar(&req.Network, "network", "host", "network `mode` of the buildpacks: host or none")
	f.StringArrayVar(&o.volumes, "volume", nil, "mount `source:target[:ro|rw]` for the buildpacks")
	f.StringVarP(&req.Descriptor, "descriptor", "d", "", "project descriptor `file` (default: project.toml in the app)")
	f.StringArrayVar(&req.Insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
	f.StringVar(&req.Isolation, "isolation", "", "sandbox `tier` to use or fail: 1, 1s, 2, 3 (default: the best there is)")
	f.StringVar(&req.Mirror, "mirror", "", "Debian mirror `URL` for the built-in builder (default: apt's)")
	complete(c, "network", networks...)
	complete(c, "isolation", tiers...)
}

func (o *buildOptions) flags(c *cobra.Command) {
	o.appOptions.flags(c)
	f, req := c.Flags(), &o.req
	f.StringArrayVarP(&req.Tags, "tag", "t", nil, "one more `name` for the image")
	f.BoolVar(&o.publish, "publish", false, "send the image to the registry of its name")
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "write the image to a `place`: oci:DIR, oci-archive:FILE, docker-archive:FILE, or docker-daemon")
	f.StringVarP(&req.DefaultProcess, "default-process", "D", "", "process `type` that the image starts")
	f.BoolVar(&req.ClearCache, "clear-cache", false, "build as if for the first time")
	f.StringVar(&req.Plan, "plan", "", "`file` with the buildpacks to build with, instead of detecting: kiln plan --json, or a group.toml")
}

// request is what was asked for, as values; verbose buildpacks say more.
func (o *appOptions) request(k *kiln, verbose bool) (platform.Request, error) {
	req := o.req
	var err error
	if req.Env, err = k.environment(o.env, o.envFiles); err != nil {
		return req, err
	}
	if req.Volumes, err = parseAll(o.volumes, platform.ParseVolume); err != nil {
		return req, err
	}
	req.LogLevel = "info"
	if verbose {
		req.LogLevel = "debug"
	}
	return req, nil
}

// request is what was asked for, as values.
func (o *buildOptions) request(k *kiln, name string) (platform.Request, error) {
	req, err := o.appOptions.request(k, o.show.verbose)
	if err != nil {
		return req, err
	}
	req.Image = name
	if req.Outputs, err = parseAll(o.outputs, platform.ParseDestination); err != nil {
		return req, err
	}
	if o.publish {
		req.Outputs = append(req.Outputs, platform.Destination{Kind: platform.ToRegistry})
	}
	req.SourceDateEpoch, _ = k.lookup("SOURCE_DATE_EPOCH")
	return req, nil
}

// with opens the platform, hands it to do, and closes it.
func (k *kiln) with(c *cobra.Command, show sinkFlags, do func(context.Context, *platform.Platform) error) error {
	p, err := k.platform(c.Context(), c, k.sink(show))
	if err != nil {
		return err
	}
	return errors.Join(do(c.Context(), p), p.Store.Close())
}
