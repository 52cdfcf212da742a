package buildpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// The files that bin/generate may leave in its output directory.
const (
	BuildDockerfile = "build.Dockerfile"
	RunDockerfile   = "run.Dockerfile"
	ExtendConfig    = "extend-config.toml"
)

// The directories that it may leave there: for both Dockerfiles, or for each
// its own.
const (
	SharedContext = "context"
	BuildContext  = "context.build"
	RunContext    = "context.run"
)

// Limits of what bin/generate may leave behind, in bytes. Files in use have
// some KB.
const (
	maxDockerfile   = 1 << 20
	maxExtendConfig = 1 << 20
)

// HasGenerate tells whether an extension generates its Dockerfiles; one that
// does not may bring them ready, in Prepared.
func (b Buildpack) HasGenerate() bool { return b.has("bin/generate") }

// Prepared is the directory that stands in for the output of bin/generate.
func (b Buildpack) Prepared() string { return filepath.Join(b.Dir, "generate") }

// Generate runs bin/generate of an extension with outputDir, which must exist,
// as its output and plan as its share of the build plan (Image Extension
// Interface, "Generation"). It returns the exit code; err is for a process that
// could not be started or was killed. What it left is for ReadGenerated.
func (b Buildpack) Generate(ctx context.Context, r sandbox.Runner, in Inputs, outputDir string, plan spec.BuildpackPlan, stdout, stderr io.Writer) (code int, err error) {
	in.ExecEnv = "" // the contract of extensions does not have it
	return b.withPlan(plan, func(path string) (int, error) {
		environ, err := b.environment(in, map[string]string{"CNB_OUTPUT_DIR": outputDir, "CNB_BP_PLAN_PATH": path})
		if err != nil {
			return -1, err
		}
		return run(ctx, r, b.command("generate", in, environ), stdout, stderr)
	})
}

// Generated is what an extension left in its output directory.
type Generated struct {
	// Build and Run are its Dockerfiles and Config its extend-config.toml; nil
	// where there is none.
	Build, Run, Config []byte
	// Args are what Config says, Unused what it says in vain: sentences.
	Args   spec.ExtendConfig
	Unused []string
	// Contexts are the names of its context directories.
	Contexts []string
}

// ReadGenerated reads what the extension b left in dir. An error means that it
// broke the contract. Whether the Dockerfiles keep their rules is not looked at.
func (b Buildpack) ReadGenerated(dir string) (Generated, error) {
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return Generated{}, fmt.Errorf("output of %s: %s is no directory any more", b, dir)
	}
	var g Generated
	out := layer.Stack{Upper: dir}
	for _, f := range []struct {
		name  string
		limit int64
		to    *[]byte
	}{{BuildDockerfile, maxDockerfile, &g.Build}, {RunDockerfile, maxDockerfile, &g.Run}, {ExtendConfig, maxExtendConfig, &g.Config}} {
		body, err := out.ReadFile(f.name, f.limit)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Generated{}, fmt.Errorf("%s of %s: %w", f.name, b, err)
		}
		*f.to = body
	}
	var err error
	if g.Args, g.Unused, err = spec.ReadExtendConfig(g.Config, ExtendConfig+" of "+b.String()); err != nil {
		return Generated{}, err
	}
	if g.Contexts, err = b.contexts(out); err != nil {
		return Generated{}, err
	}
	return g, nil
}

// contexts lists the context directories.
func (b Buildpack) contexts(out layer.Stack) (names []string, err error) {
	for _, name := range []string{SharedContext, BuildContext, RunContext} {
		info, err := out.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !info.IsDir() {
			err = errors.New("not a directory")
		}
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, b, err)
		}
		names = append(names, name)
	}
	if len(names) > 1 && names[0] == SharedContext {
		err := fmt.Errorf("%s has %s and also %s", b, SharedContext, strings.Join(names[1:], " and "))
		return nil, spec.WithHint(err, "an extension has either one context for both Dockerfiles, %s, or one for each, %s and %s", SharedContext, BuildContext, RunContext)
	}
	return names, nil
}
