package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/buildpacks"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// payload is the launcher, the lifecycle and the shipped buildpacks, put there
// by make.
//
//go:embed payload
var payload embed.FS

// execute runs one command line.
func (k *kiln) execute(ctx context.Context, args []string) error {
	root := k.command()
	// What fails before a command's own code runs is about the command line.
	understood := false
	eachCommand(root, func(c *cobra.Command) {
		if run := c.RunE; run != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				understood = true
				return run(c, args)
			}
		}
	})
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	if c.Flags().Lookup("timestamps") != nil && (c.Flags().Changed("json") || slices.Contains(args, "--json")) {
		k.failures = event.NewJSON(k.stdout)
	}
	if err == nil || understood {
		return err
	}
	if spec.HintOf(err) == "" {
		err = spec.WithHint(err, "%s --help says more", c.CommandPath())
	}
	return usageError{err}
}

// command is the tree of commands.
func (k *kiln) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "kiln",
		Short: "Build OCI images from source with Cloud Native Buildpacks: no Docker, no daemon, no root",
		Example: `  kiln build my-app --path ./src
  kiln run -p 5000 my-app
  kiln inspect my-app`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       spec.Version,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		// Shell completion is there, but no news in each help text.
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(k.stdout)
	root.SetErr(k.stderr)
	root.SetVersionTemplate("kiln {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return spec.WithHint(err, "%s --help lists the flags", c.CommandPath())
	})
	root.PersistentFlags().String("docker-host", "", "`address` of the Docker or podman daemon (default: $DOCKER_HOST, else a socket that is there)")
	root.PersistentFlags().String("store", "", "`directory` of the image store (default: $KILN_STORE, else kiln in $XDG_DATA_HOME)")
	root.AddCommand(k.buildCommand(), k.planCommand(), k.runCommand(), k.rebaseCommand(), k.sbomCommand(), k.imagesCommand(), k.inspectCommand(), k.rmCommand(),
		k.baseCommand(), k.storeCommand(), k.doctorCommand(), k.versionCommand(), exitCodesHelp())
	return root
}

// group is a command that only has others below it.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
}

// eachCommand visits c and the commands below it.
func eachCommand(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, visit)
	}
}

// exitCodesHelp is a help topic: a command that only has a text.
func exitCodesHelp() *cobra.Command {
	var b strings.Builder
	b.WriteString("kiln exits with\n\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.what)
	}
	b.WriteString("\n`kiln run` exits with the code of the command that it ran.")
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: b.String()}
}

// storeDir is where this user's images are.
func (k *kiln) storeDir(c *cobra.Command) (string, error) {
	dir, _ := c.Flags().GetString("store")
	if dir == "" {
		dir, _ = k.lookup("KILN_STORE")
	}
	if dir == "" {
		if data, _ := k.lookup("XDG_DATA_HOME"); data != "" {
			dir = filepath.Join(data, "kiln")
		} else if home, _ := k.lookup("HOME"); home != "" {
			dir = filepath.Join(home, ".local", "share", "kiln")
		} else {
			return "", spec.Exit(exitInvalid, spec.WithHint(errors.New("there is no HOME to keep images in"), "name a directory of yours with --store, or set KILN_STORE"))
		}
	}
	return filepath.Abs(dir)
}

// platform opens the store and says what this host has.
func (k *kiln) platform(ctx context.Context, c *cobra.Command, sink event.Sink) (*platform.Platform, error) {
	dir, err := k.storeDir(c)
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, dir)
	if err != nil {
		return nil, storeError(err)
	}
	carried, err := readPayload()
	if err != nil {
		return nil, err
	}
	auth, _ := k.lookup("CNB_REGISTRY_AUTH")
	host, _ := c.Flags().GetString("docker-host")
	return &platform.Platform{
		Store: st, Payload: carried, Host: platform.FactsOf(k.environ), Arch: runtime.GOARCH,
		Executable: "/proc/self/exe", Events: sink,
		Registry: func(insecure []string) (*registry.Registry, error) {
			return registry.New(registry.Options{Auth: auth, Insecure: insecure, Events: sink})
		},
		Daemon: k.daemon(host),
	}, nil
}

// storeError marks a store that cannot be used as the user's to mend.
func storeError(err error) error {
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ENOTDIR, syscall.ENOENT} {
		if spec.HintOf(err) == "" && errors.Is(err, errno) {
			err = spec.WithHint(err, "name a directory of yours with --store, or set KILN_STORE")
		}
	}
	if spec.HintOf(err) == "" {
		return err
	}
	return spec.Exit(exitInvalid, err)
}

func readPayload() (platform.Payload, error) {
	p := platform.Payload{Version: spec.Version}
	for name, to := range map[string]*[]byte{"launcher": &p.Launcher, "lifecycle": &p.Lifecycle, "buildpacks": &p.Buildpacks} {
		content, err := payload.ReadFile("payload/" + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
		*to = content
	}
	sboms, err := fs.Glob(payload, "payload/*.sbom.*.json")
	if err != nil {
		return p, err
	}
	p.SBOMs = map[string][]byte{}
	for _, name := range sboms {
		if p.SBOMs[path.Base(name)], err = payload.ReadFile(name); err != nil {
			return p, err
		}
	}
	all, err := buildpacks.All()
	if err != nil {
		return p, err
	}
	for _, b := range all {
		p.Shipped = append(p.Shipped, platform.Shipped{ID: b.Buildpack.Buildpack.ID, Version: b.Buildpack.Buildpack.Version, Descriptor: b.TOML})
	}
	p.Order, err = buildpacks.OrderTOML()
	return p, err
}

// sinkFlags are the flags of every command that takes a while.
type sinkFlags struct {
	json, verbose, quiet, noColor, timestamps bool
}

func (f *sinkFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.json, "json", false, "print events as JSON lines")
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "show more: debug messages, failed groups, diffIDs, times")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show errors only, and the image's ID at the end")
	c.Flags().BoolVar(&f.noColor, "no-color", false, "no colours, also on a terminal")
	c.Flags().BoolVar(&f.timestamps, "timestamps", false, "put the time of day before each line")
	c.MarkFlagsMutuallyExclusive("verbose", "quiet")
}

// sink renders events on stdout: text for people, JSON lines for programs.
// Errors are said by report, at the end.
func (k *kiln) sink(f sinkFlags) event.Sink {
	if f.json {
		return event.NewJSON(k.stdout)
	}
	style := k.style(k.stdout, event.Style{Verbose: f.verbose, Quiet: f.quiet, Timestamps: f.timestamps})
	style.Color = style.Color && !f.noColor
	out := event.NewText(k.stdout, style)
	if !f.quiet {
		return out
	}
	// Who asks for the image's ID alone gets nothing else on stdout.
	problems := event.NewText(k.stderr, event.Style{Quiet: true, Timestamps: f.timestamps})
	return event.Func(func(e event.Event) {
		if _, ok := e.(event.Message); ok {
			problems.Emit(e)
			return
		}
		out.Emit(e)
	})
}

func (k *kiln) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(k.stdout, "kiln %s %s/%s\n", spec.Version, runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// isUnreachable tells errors of the network from errors of what is behind it.
func isUnreachable(err error) bool {
	var dns *net.DNSError
	var op *net.OpError
	return errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial" ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)
}
