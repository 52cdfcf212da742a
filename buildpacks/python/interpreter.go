// Package python is what the Python buildpacks share: the interpreter that an
// earlier buildpack brought, and what requirements files say.
package python

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// Interpreter is the CPython that a build finds on PATH.
type Interpreter struct {
	// Path is python3, absolute, as it stands on PATH: scripts name it.
	Path string
	// Prefix is where its library is: <Prefix>/lib/python3.11.
	Prefix string
	// Minor is its version as directories are named after it: "3.11".
	Minor string
	// Identity stands for this very interpreter in keys of layers.
	Identity string
}

var minor = regexp.MustCompile(`^python(3\.\d+)$`)

// Find finds the interpreter of a build. It starts no process where it can do
// without: a build with nothing new takes no time.
func Find(ctx context.Context, b *kit.Build) (Interpreter, error) {
	path, err := onPath(b.Getenv("PATH"), "python3", "python")
	if err != nil {
		return Interpreter{}, kit.Hint(err, "a buildpack that provides cpython must come before %s", b.ID)
	}
	exe, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Interpreter{}, fmt.Errorf("find the Python interpreter: %w", err)
	}
	in := Interpreter{Path: path, Prefix: filepath.Dir(filepath.Dir(exe))}
	if m := minor.FindStringSubmatch(filepath.Base(exe)); m != nil {
		in.Minor = m[1]
	} else if in.Minor, err = ask(ctx, b, path); err != nil {
		return Interpreter{}, err
	}
	in.Identity, err = Identity(b, exe)
	return in, err
}

// SitePackages is the directory of packages below a user base (or a virtual
// environment) of this interpreter.
func (in Interpreter) SitePackages(base string) string {
	return filepath.Join(base, "lib", "python"+in.Minor, "site-packages")
}

// onPath finds the first of the names in a list of directories.
func onPath(path string, names ...string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		for _, name := range names {
			file := filepath.Join(dir, name)
			info, err := os.Stat(file)
			if err == nil && filepath.IsAbs(file) && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("%s is not on PATH (%s)", names[0], path)
}

// ask lets an interpreter with an unusual name say its version.
func ask(ctx context.Context, b *kit.Build, path string) (string, error) {
	cmd := exec.CommandContext(ctx, path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
	cmd.Env = b.Environ(nil)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Identity stands for the file at path in keys of layers. A file in a layer is
// known by the layer's metadata, whichever buildpack made it; another by its
// size and time.
func Identity(b *kit.Build, path string) (string, error) {
	root := filepath.Dir(b.LayersDir)
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(root, real); err == nil {
		parts := strings.Split(rel, "/")
		if len(parts) > 2 && parts[0] != ".." {
			text, err := os.ReadFile(filepath.Join(root, parts[0], parts[1]+".toml"))
			if err == nil {
				return rel + "\n" + string(text), nil
			}
			if !errors.Is(err, os.ErrNotExist) {
				return "", err
			}
		}
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d %d", real, info.Size(), info.ModTime().UnixNano()), nil
}

// Environ is the environment for running Python in a build, so that the same
// input gives the same bytes: no .pyc files with times in them, one order of
// sets, no user's own site directory but base (if not "").
func Environ(b *kit.Build, set map[string]string) []string {
	all := map[string]string{
		"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1",
		"SOURCE_DATE_EPOCH": "315532801", // 1980-01-01T00:00:01Z, the time of files in layers
		"LC_ALL":            "C.UTF-8",
	}
	for k, v := range set {
		all[k] = v
	}
	return b.Environ(all)
}

// Compile writes .pyc files beside the sources below dir. They hold a hash
// instead of a time and are never checked, so they are the same in every build.
// A source that is no Python 3 is left without.
//
// -I keeps Python from seeing PYTHONDONTWRITEBYTECODE: without -B it would write
// .pyc files with times for the modules that it needs itself.
func (in Interpreter) Compile(ctx context.Context, b *kit.Build, dir string, env map[string]string) error {
	cmd := exec.CommandContext(ctx, in.Path, "-I", "-B", "-m", "compileall", "-qq", "-j", "1", "--invalidation-mode", "unchecked-hash", dir)
	cmd.Env = Environ(b, env)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		// Some file could not be compiled: test data, templates, Python 2.
		b.Log.Debug("Not all of %s is Python %s", dir, in.Minor)
		return nil
	}
	if err != nil {
		return fmt.Errorf("compile %s: %w\n%s", dir, err, out)
	}
	return nil
}
