// Package buildpack finds buildpacks and image extensions on disk, runs their
// executables and reads what they leave behind (Buildpack API).
//
// What a buildpack writes is hostile input. Reading it never blocks (a FIFO is
// refused), never follows a symlink out of the buildpack's own directory and
// is bounded in size. What is not promised: that a buildpack's processes are
// gone, or that it did not write elsewhere. That is the sandbox.Runner's part.
package buildpack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Roots are the directories that hold <escaped id>/<version>/ for buildpacks
// and for extensions.
type Roots struct {
	Buildpacks string
	Extensions string
}

// Buildpack is a component buildpack, a composite buildpack or an image
// extension on disk.
type Buildpack struct {
	// Dir is its directory: CNB_BUILDPACK_DIR or CNB_EXTENSION_DIR.
	Dir string
	// Descriptor is its buildpack.toml or extension.toml.
	Descriptor spec.Buildpack
	// Extension tells which of the two it is.
	Extension bool
}

// maxDescriptor bounds buildpack.toml, in bytes. Descriptors that list every
// dependency version of a language reach some hundred KB.
const maxDescriptor = 16 << 20

// Find reads the descriptor of the buildpack (or extension, if e.Extension)
// that e names. It does not check that its API is supported.
func (r Roots) Find(e spec.GroupElement) (Buildpack, error) {
	root, file, kind := r.Buildpacks, "buildpack.toml", "buildpack"
	if e.Extension {
		root, file, kind = r.Extensions, "extension.toml", "extension"
	}
	if err := spec.ValidateID(e.ID); err != nil {
		return Buildpack{}, fmt.Errorf("%s %s: %w", kind, e, err)
	}
	if err := spec.ValidatePathVersion(e.Version); err != nil {
		return Buildpack{}, fmt.Errorf("%s %s: %w", kind, e, err)
	}
	dir := filepath.Join(root, spec.EscapeID(e.ID), e.Version)
	path := filepath.Join(dir, file)
	body, err := readDescriptor(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s %s is not in %s", kind, e, root)
		return Buildpack{}, spec.WithHint(err, "the order names it, but there is no %s", path)
	}
	if err != nil {
		return Buildpack{}, fmt.Errorf("%s %s: %w", kind, e, err)
	}
	read := spec.ReadBuildpack
	if e.Extension {
		read = spec.ReadExtension
	}
	d, err := read(body, path)
	if err != nil {
		return Buildpack{}, err
	}
	b := Buildpack{Dir: dir, Descriptor: d, Extension: e.Extension}
	if got := b.Info(); got.ID != e.ID || got.Version != e.Version {
		return Buildpack{}, fmt.Errorf("%s: it calls itself %s@%s, its directory says %s", path, got.ID, got.Version, e)
	}
	return b, nil
}

// readDescriptor reads a file of the builder image. Builders may well have
// symlinks here, so they are followed; what is not a regular file is refused
// without waiting for it.
func readDescriptor(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", path)
	}
	body, err := io.ReadAll(io.LimitReader(f, maxDescriptor+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxDescriptor {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, maxDescriptor)
	}
	return body, nil
}

// Info is the [buildpack] table, or [extension] for an extension.
func (b Buildpack) Info() spec.BuildpackInfo {
	if b.Extension {
		return b.Descriptor.Extension
	}
	return b.Descriptor.Buildpack
}

// API is the version of the Buildpack API that b was written for.
func (b Buildpack) API() string { return b.Descriptor.API }

// String is id@version.
func (b Buildpack) String() string {
	info := b.Info()
	return info.ID + "@" + info.Version
}

// Element is b as group.toml names it: id, version, api and homepage.
func (b Buildpack) Element() spec.GroupElement {
	info := b.Info()
	return spec.GroupElement{ID: info.ID, Version: info.Version, API: b.API(), Homepage: info.Homepage, Extension: b.Extension}
}

// Composite tells whether b stands for other buildpacks and has no executables
// of its own.
func (b Buildpack) Composite() bool { return !b.Extension && len(b.Descriptor.Order) > 0 }

// RunsIn tells whether b is meant for the execution environment execEnv.
// Buildpacks of an API that does not know execution environments are for all.
func (b Buildpack) RunsIn(execEnv string) bool {
	return !spec.Has(b.API(), spec.BuildpackExecEnv) || spec.InExecEnv(b.Info().ExecEnv, execEnv)
}

// Supports tells whether b can build for target.
func (b Buildpack) Supports(target spec.Target) bool {
	linux := []string{"bin/build"}
	windows := []string{"bin/build.bat", "bin/build.exe"}
	if b.Extension {
		linux = []string{"bin/detect", "bin/generate"}
		windows = nil
	}
	targets := b.Descriptor.EffectiveTargets(b.hasAny(linux), b.hasAny(windows))
	if b.Extension && len(targets) == 0 {
		return true
	}
	return spec.AnyTarget(targets, target)
}

// has tells whether there is a file, followed through symlinks, at rel.
func (b Buildpack) has(rel string) bool {
	info, err := os.Stat(filepath.Join(b.Dir, rel))
	return err == nil && !info.IsDir()
}

func (b Buildpack) hasAny(rels []string) bool {
	for _, rel := range rels {
		if b.has(rel) {
			return true
		}
	}
	return false
}
