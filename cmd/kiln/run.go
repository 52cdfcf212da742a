package main

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

func (k *kiln) runCommand() *cobra.Command {
	var req platform.RunRequest
	var env, envFiles, volumes, ports []string
	c := &cobra.Command{
		Use:   "run IMAGE [ARG...] [-- COMMAND...]",
		Short: "Run an image in a sandbox, or a command in it",
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
			req.Image = args[0]
			req.Args = args[1:]
			// Flags end at the image, so the first "--" after it is ours.
			if dash := slices.Index(req.Args, "--"); dash >= 0 {
				req.Args, req.Command = req.Args[:dash], req.Args[dash+1:]
			}
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
			for _, p := range ports {
				port, err := platform.ParsePort(p)
				if err != nil {
					return err
				}
				req.Ports = append(req.Ports, port)
			}
			req.Stdin, req.Stdout, req.Stderr = k.stdin, k.stdout, k.stderr
			return k.run(c, req)
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringArrayVarP(&ports, "publish", "p", nil, "port of the app on this host: `[address:]port[:app-port]`")
	f.StringVar(&req.Entrypoint, "entrypoint", "", "process `type` or absolute path to start")
	f.StringArrayVarP(&env, "env", "e", nil, "variable, `NAME=VALUE`, or NAME to take it from here")
	f.StringArrayVar(&envFiles, "env-file", nil, "`file` of variables, one NAME=VALUE a line")
	f.StringVarP(&req.User, "user", "u", "", "`user[:group]` to run as, by name or id (default: the image's)")
	f.StringVarP(&req.WorkDir, "workdir", "w", "", "working `directory` (default: the image's)")
	f.StringArrayVar(&volumes, "volume", nil, "mount `source:target[:ro|rw]`")
	f.StringVar(&req.Network, "network", "host", "`host` or none")
	f.StringVar(&req.Isolation, "isolation", "", "sandbox `tier` to use or fail: 1, 1s, 2, 3 (default: the best there is)")
	f.StringArrayVar(&req.Insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
	return c
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
			return k.doctor(c.Context(), asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (k *kiln) doctor(ctx context.Context, asJSON bool) error {
	report, err := sandbox.Probe(ctx, sandbox.Options{UID: 1000, GID: 1000, Executable: "/proc/self/exe", Scratch: []string{os.TempDir()}})
	if err != nil {
		return err
	}
	if asJSON {
		return k.printJSON(report)
	}
	k.printf("%s\n", report.Detail)
	return nil
}
