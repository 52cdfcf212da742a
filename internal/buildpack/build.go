package buildpack

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Build runs bin/build with layersDir (<layers>/<escaped id>, which must exist)
// as its output and plan as its share of the build plan. It returns the exit
// code; err is for a process that could not be started or was killed. What it
// left in layersDir is for ReadOutputs.
func (b Buildpack) Build(ctx context.Context, r sandbox.Runner, in Inputs, layersDir string, plan spec.BuildpackPlan, stdout, stderr io.Writer) (code int, err error) {
	return b.withPlan(plan, func(path string) (int, error) {
		environ, err := b.environment(in, map[string]string{"CNB_LAYERS_DIR": layersDir, "CNB_BP_PLAN_PATH": path})
		if err != nil {
			return -1, err
		}
		return run(ctx, r, b.command("build", in, environ, layersDir, in.Platform, path), stdout, stderr)
	})
}

// withPlan calls f with a file that holds plan and is gone afterwards.
func (b Buildpack) withPlan(plan spec.BuildpackPlan, f func(path string) (int, error)) (int, error) {
	dir, err := os.MkdirTemp("", "build-")
	if err != nil {
		return -1, err
	}
	defer os.RemoveAll(dir)
	body, err := encode.TOML(plan)
	if err != nil {
		return -1, fmt.Errorf("buildpack plan of %s: %w", b, err)
	}
	path := filepath.Join(dir, planFile)
	if err := os.WriteFile(path, body, 0o600); err != nil {
		return -1, err
	}
	return f(path)
}

// run runs a command to its end.
func run(ctx context.Context, r sandbox.Runner, cmd sandbox.Command, stdout, stderr io.Writer) (code int, err error) {
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = r.Run(ctx, cmd)
	if ctx.Err() != nil {
		return -1, ctx.Err()
	}
	return exitStatus(err)
}
