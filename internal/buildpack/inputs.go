package buildpack

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Inputs are what every executable of every buildpack of one phase gets.
type Inputs struct {
	// App, Platform and BuildConfig are absolute directories: the working
	// directory, the user's side and the operator's side.
	App, Platform, BuildConfig string
	// Target is what the app image will run on, as far as it is known.
	Target spec.Target
	// ExecEnv is the execution environment; empty for platforms without.
	ExecEnv string
	// Env is the container's environment and what the layers of the buildpacks
	// before this one made of it.
	Env env.Env
	// OperatorEnv says that <build-config>/env counts (Platform API 0.11).
	OperatorEnv bool
}

// Check reads what user and operator gave, so that a fault in it is told before
// a buildpack runs, and as nobody's else.
func (in Inputs) Check() error { return in.addGiven(env.Env{}, true) }

// addGiven adds the user's environment and then the operator's.
func (in Inputs) addGiven(e env.Env, user bool) error {
	if user {
		if err := e.AddPlatform(in.Platform); err != nil {
			return fmt.Errorf("user environment: %w", err)
		}
	}
	if in.OperatorEnv {
		if err := e.AddOperator(in.BuildConfig); err != nil {
			return fmt.Errorf("operator environment: %w", err)
		}
	}
	return nil
}

// environment is what b's executable sees: the environment so far, the user's
// variables unless b wants a clear environment, the operator's, and last those
// of the specification, which nobody can replace.
func (b Buildpack) environment(in Inputs, own map[string]string) ([]string, error) {
	e := in.Env.Clone()
	if err := in.addGiven(e, !b.Info().ClearEnv); err != nil {
		return nil, err
	}
	if spec.Has(b.API(), spec.BuildpackTargets) {
		addTarget(e, in.Target)
	}
	if in.ExecEnv != "" && spec.Has(b.API(), spec.BuildpackExecEnv) {
		e["CNB_EXEC_ENV"] = in.ExecEnv
	}
	if b.Extension {
		e["CNB_EXTENSION_DIR"] = b.Dir
	} else {
		e["CNB_BUILDPACK_DIR"] = b.Dir
	}
	if spec.Has(b.API(), spec.BuildpackEnvInputs) {
		e["CNB_PLATFORM_DIR"] = in.Platform
		for name, value := range own {
			e[name] = value
		}
	}
	return e.List(), nil
}

// addTarget sets CNB_TARGET_*: what is not known is not set, so that a
// buildpack can tell.
func addTarget(e env.Env, t spec.Target) {
	set := func(name, value string) {
		if value != "" {
			e[name] = value
		}
	}
	set("CNB_TARGET_OS", t.OS)
	set("CNB_TARGET_ARCH", t.Arch)
	set("CNB_TARGET_ARCH_VARIANT", t.Variant)
	if t.Distro != nil {
		set("CNB_TARGET_DISTRO_NAME", t.Distro.Name)
		set("CNB_TARGET_DISTRO_VERSION", t.Distro.Version)
	}
}

// command is the executable bin/<name> of b with the positional arguments that
// old buildpacks still read.
func (b Buildpack) command(name string, in Inputs, environ []string, args ...string) sandbox.Command {
	path := filepath.Join(b.Dir, "bin", name)
	return sandbox.Command{Path: path, Args: append([]string{path}, args...), Env: environ, Dir: in.App}
}

// exitStatus splits what a Runner returned: the exit code of a process that
// ran to its end, or an error for one that did not start or was killed.
func exitStatus(err error) (code int, _ error) {
	if err == nil {
		return 0, nil
	}
	exit, ok := errors.AsType[*sandbox.ExitError](err)
	if !ok || exit.Signal != 0 {
		return -1, err
	}
	return exit.Code, nil
}
