package kit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Buildpack is the two halves of a buildpack (Buildpack API, bin/detect and
// bin/build).
type Buildpack struct {
	// Detect says what the buildpack could do for the app, as alternatives in
	// order of preference. It returns Fail when the app is not its business; any
	// other error stops the build. No plans and no error passes with an empty
	// plan.
	Detect func(ctx context.Context, d *Detection) ([]Plan, error)
	// Build does it.
	Build func(ctx context.Context, b *Build) error
}

// Invocation is how the lifecycle calls a buildpack.
type Invocation struct {
	Args   []string // argv; the base name of Args[0] is detect or build
	Env    []string // NAME=value
	Dir    string   // working directory: the app
	Stdout io.Writer
}

// Exit codes of bin/detect and bin/build (Buildpack API).
const (
	exitPass  = 0
	exitError = 1
	exitFail  = 100
)

// Main runs the buildpack as the lifecycle called this process, and exits. An
// interrupt or SIGTERM cancels the context.
func Main(bp Buildpack) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintf(os.Stdout, "ERROR: find the working directory: %v\n", err)
		os.Exit(exitError)
	}
	code := Run(ctx, bp, Invocation{Args: os.Args, Env: os.Environ(), Dir: dir, Stdout: os.Stdout})
	stop()
	os.Exit(code)
}

// Run runs the buildpack and returns the exit code for the lifecycle: 0, 100
// for a detection that does not apply, 1 for an error. The sentence that says
// why is the last line on Stdout.
func Run(ctx context.Context, bp Buildpack, in Invocation) int {
	log := newLogger(in.Stdout, in.Env)
	err := run(ctx, bp, in, log)
	var fail *failure
	switch {
	case err == nil:
		return exitPass
	case errors.As(err, &fail) && filepath.Base(in.Args[0]) == "detect":
		fmt.Fprintln(in.Stdout, fail.why)
		return exitFail
	default:
		log.failed(err)
		return exitError
	}
}

func run(ctx context.Context, bp Buildpack, in Invocation, log *Logger) error {
	if len(in.Args) == 0 {
		return errors.New("empty argument list: cannot tell whether to detect or to build")
	}
	common, err := readContext(in, log)
	if err != nil {
		return err
	}
	switch name := filepath.Base(in.Args[0]); name {
	case "detect":
		return runDetect(ctx, bp, common)
	case "build":
		return runBuild(ctx, bp, common)
	default:
		return fmt.Errorf("called as %q: a buildpack is called as detect or as build", name)
	}
}

// Context is what detect and build both know.
type Context struct {
	AppDir       string
	BuildpackDir string
	PlatformDir  string
	// ID and Version are those of buildpack.toml; Metadata is its [metadata].
	ID, Version string
	Metadata    map[string]any
	// ExecEnv is the execution environment, "production" unless told.
	ExecEnv string
	Target  Target
	Log     *Logger

	env map[string]string
}

// Target is what the app image is built for. Empty means unknown.
type Target struct {
	OS, Arch, Variant         string
	DistroName, DistroVersion string
}

// String is os/arch, with the distribution when it is known.
func (t Target) String() string {
	s := t.OS + "/" + t.Arch
	if t.Variant != "" {
		s += "/" + t.Variant
	}
	if t.DistroName != "" {
		s += " " + strings.TrimSpace(t.DistroName+" "+t.DistroVersion)
	}
	return s
}

func readContext(in Invocation, log *Logger) (Context, error) {
	env := map[string]string{}
	for _, kv := range in.Env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	c := Context{
		AppDir: in.Dir, BuildpackDir: env["CNB_BUILDPACK_DIR"], PlatformDir: env["CNB_PLATFORM_DIR"],
		ExecEnv: env["CNB_EXEC_ENV"], Log: log, env: env,
		Target: Target{
			OS: env["CNB_TARGET_OS"], Arch: env["CNB_TARGET_ARCH"], Variant: env["CNB_TARGET_ARCH_VARIANT"],
			DistroName: env["CNB_TARGET_DISTRO_NAME"], DistroVersion: env["CNB_TARGET_DISTRO_VERSION"],
		},
	}
	if c.ExecEnv == "" {
		c.ExecEnv = spec.DefaultExecEnv
	}
	if c.BuildpackDir == "" {
		return c, errors.New("CNB_BUILDPACK_DIR is not set: this program is run by a lifecycle (Buildpack API 0.8 or later)")
	}
	path := filepath.Join(c.BuildpackDir, "buildpack.toml")
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the buildpack's own description: %w", err)
	}
	bp, err := spec.ReadBuildpack(b, path)
	if err != nil {
		return c, err
	}
	c.ID, c.Version, c.Metadata = bp.Buildpack.ID, bp.Buildpack.Version, bp.Metadata
	return c, nil
}

// Lookup finds a variable of the build: what the user gave the platform, what
// earlier buildpacks exported, what the build image brings.
func (c *Context) Lookup(name string) (string, bool) {
	if v, ok := c.env[name]; ok {
		return v, true
	}
	// A buildpack with clear-env finds the user's variables only as files.
	if c.PlatformDir == "" || strings.ContainsAny(name, "/\x00") {
		return "", false
	}
	b, err := os.ReadFile(filepath.Join(c.PlatformDir, "env", name))
	return string(b), err == nil
}

// Getenv is Lookup with "" for what is not set.
func (c *Context) Getenv(name string) string {
	v, _ := c.Lookup(name)
	return v
}

// Bool reads a switch: true, yes, on, 1 and false, no, off, 0 in any case;
// empty or unset is false. Anything else is an error that names the variable.
func (c *Context) Bool(name string) (bool, error) {
	switch v := c.Getenv(name); strings.ToLower(strings.TrimSpace(v)) {
	case "", "0", "f", "false", "no", "off":
		return false, nil
	case "1", "t", "true", "yes", "on":
		return true, nil
	default:
		return false, fmt.Errorf("%s=%q is neither true nor false", name, v)
	}
}

// Environ is the environment of this process, for programs that the buildpack
// starts: NAME=value, with those of set replaced or added.
func (c *Context) Environ(set map[string]string) []string {
	all := map[string]string{}
	for k, v := range c.env {
		all[k] = v
	}
	for k, v := range set {
		all[k] = v
	}
	list := make([]string, 0, len(all))
	for _, k := range sortedKeys(all) {
		list = append(list, k+"="+all[k])
	}
	return list
}

// failure is a detection that does not apply.
type failure struct{ why string }

func (f *failure) Error() string { return f.why }

// Fail is the error of a Detect (in Build it is like any other) whose buildpack has nothing to do for this app.
// The sentence is shown to the user as the reason when no group passes: it says
// what was looked for, and what would make the buildpack take part.
func Fail(format string, args ...any) error { return &failure{fmt.Sprintf(format, args...)} }
