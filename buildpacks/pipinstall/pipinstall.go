// Package pipinstall is the buildpack kiln/pip-install. It installs what the
// app's requirements files ask for into a layer.
//
//	BP_PIP_REQUIREMENT  requirements files, separated by spaces (requirements.txt)
//	BP_PIP_DEST_PATH    directory of vendored packages (vendor): if it holds any,
//	                    pip takes them from there and uses no network
//	PIP_*               pip's own options: PIP_INDEX_URL and the like
//
// pip does not run while the requirements files (with those they include, and
// the local paths they name), the options, the interpreter and pip are what
// they were. A requirement that is not pinned therefore stays at the version that
// was chosen first; a build without the cache chooses anew. When something has
// changed, all is installed anew with the help of pip's cache.
package pipinstall

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/buildpacks/python"
)

// New is the buildpack.
func New() kit.Buildpack { return kit.Buildpack{Detect: detect, Build: build} }

func detect(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
	for _, f := range python.RequirementsFiles(&d.Context) {
		path := f
		if !filepath.IsAbs(f) {
			path = filepath.Join(d.AppDir, f)
		}
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() {
			continue
		}
		if d.Getenv(python.RequirementsVariable) != "" {
			return nil, kit.Fail("no file %s in the app directory, which %s names", f, python.RequirementsVariable)
		}
		return nil, kit.Fail("no requirements.txt in the app directory (%s can name other files)", python.RequirementsVariable)
	}
	return kit.Plans(kit.Plan{
		Provides: []string{"site-packages"},
		Requires: []kit.Require{{Name: "cpython", Build: true}, {Name: "pip", Build: true}},
	}), nil
}

// input is all that the packages depend on; it is the layer's key.
type input struct {
	Files, Tree        string
	Interpreter, Where string
	Pip                string
	Vendor             string
	Options            []string
}

func build(ctx context.Context, b *kit.Build) error {
	want := b.Wanted("site-packages")
	packages, err := b.Layer("packages")
	if err != nil {
		return err
	}
	packages.Build, packages.Launch = want.Build, want.Launch
	packages.Cache = want.Build || want.Launch
	cache, err := b.Layer("cache")
	if err != nil {
		return err
	}
	cache.Cache = true
	files := python.RequirementsFiles(&b.Context)
	in, err := python.Find(ctx, b)
	if err != nil {
		return err
	}
	req, err := python.ReadRequirements(b.AppDir, files)
	if err != nil {
		return err
	}
	vendor, err := vendored(b)
	if err != nil {
		return err
	}
	key, err := inputOf(b, in, req, vendor)
	if err != nil {
		return err
	}
	key.Where = packages.Path
	if packages.Reuse(b.Key(key)) {
		b.Log.Info("Reusing the installed packages: %s, the interpreter and pip have not changed", strings.Join(req.Files, ", "))
		return nil
	}
	if err := packages.Reset(); err != nil {
		return err
	}
	if err := os.MkdirAll(cache.Path, 0o755); err != nil {
		return err
	}
	if err := install(ctx, b, in, files, vendor, packages.Path, cache.Path); err != nil {
		return err
	}
	return finish(ctx, b, in, packages)
}

// finish compiles what was installed and describes the layer.
func finish(ctx context.Context, b *kit.Build, in python.Interpreter, packages *kit.Layer) error {
	site := in.SitePackages(packages.Path)
	if err := os.MkdirAll(site, 0o755); err != nil {
		return err
	}
	if err := in.Compile(ctx, b, site, nil); err != nil {
		return err
	}
	packages.Env.Prepend("PYTHONPATH", site, ":")
	// As the user's base its .pth files count too, which on PYTHONPATH they do not.
	packages.Env.Default("PYTHONUSERBASE", packages.Path)
	installed, err := python.Distributions(packages.Path, site)
	if err != nil {
		return err
	}
	packages.BOM = &kit.BOM{Subject: "Python packages", Packages: installed}
	return nil
}

// inputOf reads what the packages depend on.
func inputOf(b *kit.Build, in python.Interpreter, req python.Requirements, vendor string) (input, error) {
	key := input{Interpreter: in.Path + "\n" + in.Identity}
	var err error
	if key.Files, err = kit.HashFiles(b.AppDir, req.Files...); err != nil {
		return key, err
	}
	if key.Tree, err = kit.HashFiles(b.AppDir, req.Local...); err != nil {
		return key, err
	}
	if vendor != "" {
		if key.Vendor, err = kit.HashFiles(b.AppDir, vendor); err != nil {
			return key, err
		}
	}
	if key.Pip, err = pipIdentity(b); err != nil {
		return key, err
	}
	key.Options = options(b, req.Variables)
	return key, nil
}

// pipIdentity stands for the pip that Python would find.
func pipIdentity(b *kit.Build) (string, error) {
	for _, dir := range filepath.SplitList(b.Getenv("PYTHONPATH")) {
		file := filepath.Join(dir, "pip", "__init__.py")
		if _, err := os.Stat(file); err == nil {
			return python.Identity(b, file)
		}
	}
	// A pip in the interpreter's own directories comes and goes with it.
	return "", nil
}

// options lists the variables that change what pip does, those in requirements
// files among them. Addresses of caches and proxies do not.
func options(b *kit.Build, named []string) []string {
	var list []string
	for _, kv := range b.Environ(nil) {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "PIP_CERT" || name == "PIP_PROXY" || name == "PIP_CACHE_DIR" || name == "PIP_DEFAULT_TIMEOUT" || name == "PIP_TIMEOUT" || name == "PIP_RETRIES":
		case strings.HasPrefix(name, "PIP_"), slices.Contains(named, name),
			name == "CC", name == "CXX", name == "CFLAGS", name == "CXXFLAGS", name == "LDFLAGS":
			list = append(list, kv)
		}
	}
	return list
}

// vendored is the directory of vendored packages, or "".
func vendored(b *kit.Build) (string, error) {
	dir, asked := b.Getenv("BP_PIP_DEST_PATH"), true
	if dir == "" {
		dir, asked = "vendor", false
	}
	for _, pattern := range []string{"*.whl", "*.tar.gz", "*.zip"} {
		found, err := filepath.Glob(filepath.Join(b.AppDir, dir, pattern))
		if err != nil {
			return "", fmt.Errorf("BP_PIP_DEST_PATH=%q: %w", dir, err)
		}
		if len(found) > 0 {
			return dir, nil
		}
	}
	if asked {
		return "", fmt.Errorf("BP_PIP_DEST_PATH=%q: no packages (*.whl, *.tar.gz, *.zip) in that directory of the app", dir)
	}
	return "", nil
}

// install runs pip.
func install(ctx context.Context, b *kit.Build, in python.Interpreter, files []string, vendor, base, cache string) error {
	args := []string{"-m", "pip", "install", "--user", "--ignore-installed", "--no-compile", "--no-warn-script-location",
		"--exists-action=w", "--cache-dir", cache, "--src", filepath.Join(base, "src")}
	if vendor != "" {
		args = append(args, "--no-index", "--find-links", vendor)
		b.Log.Info("Installing from the vendored packages in %s", vendor)
	} else {
		b.Log.Info("Installing from %s", strings.Join(files, ", "))
	}
	for _, f := range files {
		args = append(args, "--requirement", f)
	}
	if b.Log.IsDebug() {
		args = append(args, "--verbose")
	}
	b.Log.Debug("Running %s %s", in.Path, strings.Join(args, " "))
	out := b.Log.Output()
	defer out.Close()
	said := &python.Tail{To: out}
	cmd := exec.CommandContext(ctx, in.Path, args...)
	cmd.Dir = b.AppDir
	cmd.Env = python.Environ(b, python.PipEnv(b, map[string]string{"PYTHONUSERBASE": base}))
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("pip install: %w", ctx.Err())
		}
		return python.Explain(said.String(), fmt.Errorf("pip install: %w", err))
	}
	return nil
}
