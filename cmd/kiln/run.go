package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// runOptions are the flags of kiln run as they were typed.
type runOptions struct {
	req                           platform.RunRequest
	env, envFiles, volumes, ports []string
}

func (k *kiln) runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:                   "run [flags] IMAGE [ARG...] [-- COMMAND...]",
		DisableFlagsInUseLine: true,
		Short:                 "Run an image in a sandbox, or a command in it",
		Long: `Run an image in a sandbox, without Docker or root, and clean up after it.

ARGs go to the image's entrypoint. A COMMAND after -- runs instead of it, with
the environment that the buildpacks made. The network is the host's: an app that
listens on port 5000 can be reached there; -p 8080:5000 gives it port 8080 too,
and sets PORT=5000. The exit code is that of the command.`,
		Example: `  kiln run -p 5000 my-app
  kiln run my-app -- cat /workspace/requirements.txt
  kiln run --entrypoint worker my-app`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := o.request(k, args)
			if err != nil {
				return err
			}
			return k.run(c, req)
		},
		ValidArgsFunction: k.completeImage,
	}
	o.flags(c)
	complete(c, "network", networks...)
	complete(c, "isolation", tiers...)
	return c
}

func (o *runOptions) flags(c *cobra.Command) {
	f, req := c.Flags(), &o.req
	// Flags end at the image: what follows is the app's.
	f.SetInterspersed(false)
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "port of the app on this host: `[address:]port[:app-port]`")
	f.StringVar(&req.Entrypoint, "entrypoint", "", "process `type` or absolute path to start")
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable, `NAME=VALUE`, or NAME to take it from here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`file` of variables, one NAME=VALUE a line")
	f.StringVarP(&req.User, "user", "u", "", "`user[:group]` to run as, by name or id (default: the image's)")
	f.StringVarP(&req.WorkDir, "workdir", "w", "", "working `directory` (default: the image's)")
	f.StringArrayVar(&o.volumes, "volume", nil, "mount `source:target[:ro|rw]`")
	f.StringVar(&req.Network, "network", "host", "network `mode`: host or none")
	f.StringVar(&req.Isolation, "isolation", "", "sandbox `tier` to use or fail: 1, 1s, 2, 3 (default: the best there is)")
	f.StringArrayVar(&req.Insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
}

// request is what was asked for, as values: IMAGE [ARG...] [-- COMMAND...].
func (o *runOptions) request(k *kiln, args []string) (platform.RunRequest, error) {
	req := o.req
	req.Image, req.Args = args[0], args[1:]
	if dash := slices.Index(req.Args, "--"); dash >= 0 {
		req.Args, req.Command = req.Args[:dash], req.Args[dash+1:]
	}
	var err error
	if req.Env, err = k.environment(o.env, o.envFiles); err != nil {
		return req, err
	}
	if req.Volumes, err = parseAll(o.volumes, platform.ParseVolume); err != nil {
		return req, err
	}
	if req.Ports, err = parseAll(o.ports, platform.ParsePort); err != nil {
		return req, err
	}
	req.Stdin, req.Stdout, req.Stderr = k.stdin, k.stdout, k.stderr
	return req, nil
}

// run keeps stdout for the app: what kiln has to say goes to stderr.
func (k *kiln) run(c *cobra.Command, req platform.RunRequest) error {
	p, err := k.platform(c.Context(), c, quietly(event.NewText(k.stderr, k.style(k.stderr, event.Style{}))))
	if err != nil {
		return err
	}
	err = errors.Join(p.Run(c.Context(), req), p.Store.Close())
	if exit := new(sandbox.ExitError); errors.As(err, &exit) && c.Context().Err() == nil {
		return childExit{err}
	}
	return err
}

// quietly lets through what a user of the app should know: warnings, a weaker
// sandbox, long work.
func quietly(sink event.Sink) event.Sink {
	return event.Func(func(e event.Event) {
		switch e := e.(type) {
		case event.Isolation:
			if e.Detail == "" {
				return
			}
		case event.Message:
			if e.Level == event.Debug {
				return
			}
		}
		sink.Emit(e)
	})
}

func (k *kiln) doctorCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say how well this host can isolate builds, and what would help",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return k.doctor(c, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// diagnosis is what doctor finds out. Root is for steps that run as root, nil
// where there is no way; InPlace is for kiln's lifecycle inside a container.
type diagnosis struct {
	sandbox.Report
	Root    *sandbox.Report
	InPlace sandbox.Report
}

// doctor tries where builds would have their directories: an overlay that works
// in one place need not in another.
func (k *kiln) doctor(c *cobra.Command, asJSON bool) error {
	scratch := os.TempDir()
	if dir, err := k.storeDir(c); err == nil {
		if tmp := filepath.Join(dir, "tmp"); unix.Access(tmp, unix.W_OK) == nil {
			scratch = tmp
		}
	}
	options := sandbox.Options{UID: 1000, GID: 1000, Executable: "/proc/self/exe", Scratch: []string{scratch},
		Copy: func(context.Context, string, sandbox.Overlay) error { return nil }}
	var d diagnosis
	var err error
	if d.Report, err = sandbox.Probe(c.Context(), options); err != nil {
		return err
	}
	if d.InPlace, err = (sandbox.InPlace{}).Probe(c.Context()); err != nil {
		return err
	}
	options.Tier, options.UID, options.GID = sandbox.BestRoot, 0, 0
	root, rootErr := sandbox.Probe(c.Context(), options)
	if rootErr == nil {
		d.Root = &root
	}
	if asJSON {
		return k.printJSON(d)
	}
	k.printReport("", d.Report)
	if rootErr != nil {
		k.printf("steps that run as root: %s\n", event.Clean(rootErr.Error()))
	} else {
		root.Findings = slices.DeleteFunc(root.Findings, func(f sandbox.Finding) bool { return slices.Contains(d.Findings, f) }) // said already
		k.printReport("steps that run as root: ", root)
	}
	k.printReport("without a sandbox, in a container: ", d.InPlace)
	return nil
}

func (k *kiln) printReport(what string, r sandbox.Report) {
	k.printf("%s%s\n", what, r.Detail)
	for _, f := range r.Findings {
		lacks := "not tier " + string(f.Tier)
		if f.Tier == r.Tier {
			lacks = "lacking"
		}
		k.printf("%s: %s\n", lacks, event.Clean(f.String()))
		if f.Fix != "" {
			k.printf("  fix: %s\n", event.Clean(f.Fix))
		}
	}
	for _, w := range r.Warnings {
		k.printf("warning: %s\n", event.Clean(w))
	}
}
