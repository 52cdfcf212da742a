// Package pip is the buildpack kiln/pip. It puts pip into a layer: the one that
// comes with the interpreter, or the version that is asked for.
//
//	BP_PIP_VERSION  version of pip, from the package index
package pip

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/buildpacks/python"
)

const versionVariable = "BP_PIP_VERSION"

// New is the buildpack.
func New() kit.Buildpack { return kit.Buildpack{Detect: detect, Build: build} }

func detect(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
	p := kit.Plan{Provides: []string{"pip"}, Requires: []kit.Require{{Name: "cpython", Build: true}}}
	if v := strings.TrimSpace(d.Getenv(versionVariable)); v != "" {
		p.Requires = append(p.Requires, kit.Require{Name: "pip", Version: v, Source: versionVariable})
	}
	return kit.Plans(p), nil
}

func build(ctx context.Context, b *kit.Build) error {
	want := b.Wanted("pip")
	layer, err := b.Layer("pip")
	if err != nil {
		return err
	}
	layer.Build, layer.Launch, layer.Cache = want.Build, want.Launch, want.Build
	in, err := python.Find(ctx, b)
	if err != nil {
		return err
	}
	version, source := want.Version(versionVariable)
	if layer.Reuse(b.Key(in.Path, in.Identity, version, layer.Path)) {
		b.Log.Info("Reusing pip %s", layer.Restored("version"))
		return nil
	}
	if err := layer.Reset(); err != nil {
		return err
	}
	wheel, err := bundled(in)
	if err != nil {
		return err
	}
	if version != "" && versionOf(wheel) != version {
		b.Log.Info("Fetching pip %s (%s)", version, source)
		temp, err := os.MkdirTemp("", "pip-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temp)
		if wheel, err = fetch(ctx, b, in, wheel, version, temp); err != nil {
			return err
		}
	}
	b.Log.Info("Installing pip %s", versionOf(wheel))
	site := in.SitePackages(layer.Path)
	if err := unzip(wheel, site); err != nil {
		return fmt.Errorf("install pip: %w", err)
	}
	if err := script(in, filepath.Join(layer.Path, "bin")); err != nil {
		return fmt.Errorf("install pip: %w", err)
	}
	layer.Metadata["version"] = versionOf(wheel)
	layer.Env.Prepend("PYTHONPATH", site, ":")
	// What sdists are built with is at hand even without a network.
	if dir := filepath.Join(in.Prefix, "share", "python-wheels"); isDir(dir) {
		layer.BuildEnv.Append("PIP_FIND_LINKS", dir, " ")
	}
	packages, err := python.Distributions(layer.Path, site)
	if err != nil {
		return err
	}
	layer.BOM = &kit.BOM{Subject: "pip " + versionOf(wheel), Packages: packages}
	return nil
}

// bundled is the wheel of pip that comes with an interpreter: Debian's share a
// directory, others hide it in ensurepip.
func bundled(in python.Interpreter) (string, error) {
	for _, pattern := range []string{"share/python-wheels/pip-*.whl", "lib/python" + in.Minor + "/ensurepip/_bundled/pip-*.whl"} {
		found, err := filepath.Glob(filepath.Join(in.Prefix, pattern))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return found[len(found)-1], nil
		}
	}
	return "", fmt.Errorf("the interpreter in %s brings no pip: neither share/python-wheels nor ensurepip has a wheel", in.Prefix)
}

// versionOf reads the version out of the name of a wheel: pip-23.0.1-py3-none-any.whl.
func versionOf(wheel string) string {
	parts := strings.Split(filepath.Base(wheel), "-")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

// fetch downloads another version with the pip that is there.
func fetch(ctx context.Context, b *kit.Build, in python.Interpreter, with, version, dir string) (string, error) {
	out := b.Log.Output()
	defer out.Close()
	cmd := exec.CommandContext(ctx, in.Path, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", dir, "pip=="+version)
	cmd.Env = python.Environ(b, python.PipEnv(b, map[string]string{"PYTHONPATH": with}))
	said := &python.Tail{To: out}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", python.Explain(said.String(), fmt.Errorf("fetch pip %s: %w", version, err))
	}
	found, err := filepath.Glob(filepath.Join(dir, "pip-*.whl"))
	if err != nil || len(found) != 1 {
		return "", errors.Join(fmt.Errorf("fetch pip %s: got %d wheels, not one", version, len(found)), err)
	}
	return found[0], nil
}

// script writes bin/pip and its other names.
func script(in python.Interpreter, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := "#!" + in.Path + "\nimport sys\nfrom pip._internal.cli.main import main\nif __name__ == \"__main__\":\n    sys.exit(main())\n"
	for _, name := range []string{"pip", "pip3", "pip" + in.Minor} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
