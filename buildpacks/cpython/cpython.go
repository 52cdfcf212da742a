// Package cpython is the buildpack kiln/cpython. It puts CPython into a layer,
// out of the packages of the Debian release that the base images are made of:
// signed, fixed by hash, in place of a download from nobody knows where.
//
//	BP_CPYTHON_VERSION           version or constraint: 3.11.*, >=3.10, 3.11.2
//	BP_DEBIAN_MIRROR             take packages from this mirror, not from apt's
//	BP_CPYTHON_SYSTEM_LIBRARIES  the run image has the C libraries (OpenSSL,
//	                             zlib...): leave them out of the layer, so that
//	                             a rebase renews them
//
// The layer stays as it is until a build without the cache, so that builds
// without change give the same image. It holds bin, include and lib as a
// prefix does, so the lifecycle puts them on the paths.
package cpython

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/buildpacks/python"
	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/event"
)

// versionVariable is the user's wish.
const versionVariable = "BP_CPYTHON_VERSION"

// New is the buildpack.
func New() kit.Buildpack { return kit.Buildpack{Detect: detect, Build: build} }

func detect(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
	p := kit.Plan{Provides: []string{"cpython"}}
	if v := strings.TrimSpace(d.Getenv(versionVariable)); v != "" {
		if _, err := parseConstraint(v); err != nil {
			return nil, fmt.Errorf("%s=%q: %w", versionVariable, v, err)
		}
		p.Requires = []kit.Require{{Name: "cpython", Version: v, Source: versionVariable}}
	}
	return kit.Plans(p), nil
}

// settings is all that the layer depends on; it is the layer's key.
type settings struct {
	Suite, Arch, Mirror string
	Minor               string // 3.11
	Constraint          string
	SystemLibraries     bool
	Path                string // where the layer lies: paths in it say so
	Recipe              int
}

// recipe changes whenever the layer is made otherwise, so that no old one is
// taken for a new one.
const recipe = 2

func build(ctx context.Context, b *kit.Build) error {
	want := b.Wanted("cpython")
	layer, err := b.Layer("cpython")
	if err != nil {
		return err
	}
	layer.Launch, layer.Build = want.Launch, want.Build
	layer.Cache = want.Build
	s, source, err := choose(b, want, layer.Path)
	if err != nil {
		return err
	}
	if layer.Reuse(b.Key(s)) {
		b.Log.Info("Reusing CPython %s", layer.Restored("version"))
		return nil
	}
	if err := layer.Reset(); err != nil {
		return err
	}
	lock, err := install(ctx, b, s, source, layer.Path)
	if err != nil {
		return err
	}
	version := packageVersion(lock, "python"+s.Minor)
	if err := relocate(layer.Path, s.Minor); err != nil {
		return err
	}
	b.Log.Info("Compiling the standard library")
	in := python.Interpreter{Path: filepath.Join(layer.Path, "bin", "python3"), Minor: s.Minor}
	err = in.Compile(ctx, b, filepath.Join(layer.Path, "lib", "python"+s.Minor), map[string]string{
		"LD_LIBRARY_PATH": filepath.Join(layer.Path, "lib"), "PYTHONPATH": "",
	})
	if err != nil {
		return err
	}
	layer.Metadata["version"] = upstream(version)
	layer.Metadata["package-version"] = version
	layer.Env.Override("PYTHONPATH", layer.Path)
	layer.BuildEnv.Default("PYTHONDONTWRITEBYTECODE", "1")
	layer.LaunchEnv.Default("PYTHONUNBUFFERED", "1")
	layer.BOM = bom(lock, upstream(version), s)
	return nil
}

// choose settles what is to be installed, and says so, before anything is
// fetched.
func choose(b *kit.Build, want kit.Wanted, path string) (settings, string, error) {
	s := settings{Path: path, Recipe: recipe, Mirror: strings.TrimRight(b.Getenv("BP_DEBIAN_MIRROR"), "/")}
	var err error
	if s.SystemLibraries, err = b.Bool("BP_CPYTHON_SYSTEM_LIBRARIES"); err != nil {
		return s, "", err
	}
	if s.Suite, err = suite(b.Target); err != nil {
		return s, "", err
	}
	if s.Arch = b.Target.Arch; s.Arch == "" {
		s.Arch = debian.HostArch()
	}
	s.Minor = minors[s.Suite]
	version, source := want.Version(versionVariable, "Pipfile.lock", "Pipfile", "pyproject.toml")
	s.Constraint = version
	if err := s.allows(s.Minor, source); err != nil {
		return s, "", err
	}
	if version != "" {
		b.Log.Debug("CPython %s is wanted by %s", version, source)
	}
	return s, source, nil
}

// suites are the Debian releases by version, minors the CPython they have.
var (
	suites = map[string]string{"12": "bookworm", "13": "trixie"}
	minors = map[string]string{"bookworm": "3.11", "trixie": "3.13"}
)

// suite is the Debian release of the target, else of the build image: libraries
// must go with the run image's libc.
func suite(t kit.Target) (string, error) {
	if t.DistroName == "debian" && t.DistroVersion != "" {
		major, _, _ := strings.Cut(t.DistroVersion, ".")
		if s := suites[major]; s != "" {
			return s, nil
		}
		return "", fmt.Errorf("no CPython for Debian %s: this buildpack knows Debian 12 and 13", t.DistroVersion)
	}
	if t.DistroName != "" && t.DistroName != "debian" {
		return "", kit.Hint(fmt.Errorf("no CPython for %s %s: this buildpack takes it from Debian's packages", t.DistroName, t.DistroVersion),
			"use a builder whose run image is Debian 12 or 13")
	}
	s, err := debian.HostSuite("/")
	if err != nil {
		return "", fmt.Errorf("find out the build image's Debian release: %w", err)
	}
	if minors[s] == "" {
		return "", fmt.Errorf("no CPython for Debian %s: this buildpack knows bookworm and trixie", s)
	}
	return s, nil
}

// allows checks a version against the constraint; version may be just 3.11.
func (s settings) allows(version, source string) error {
	if s.Constraint == "" {
		return nil
	}
	c, err := parseConstraint(s.Constraint)
	if err != nil {
		return fmt.Errorf("version %q (%s): %w", s.Constraint, source, err)
	}
	if c.allows(version) {
		return nil
	}
	return kit.Hint(fmt.Errorf("CPython %s, asked for by %s, is not to be had: Debian %s has %s", s.Constraint, source, s.Suite, version),
		"ask for %s.*, or use a builder on a Debian release that has another", s.Minor)
}

// libraries are the packages of C libraries that kiln's own run image has.
var libraries = []string{"libbz2-1.0", "libcrypt1", "libdb5.3", "libexpat1", "libffi8", "liblzma5", "libncursesw6",
	"libreadline8", "libsqlite3-0", "libssl3", "libtinfo6", "libuuid1", "zlib1g"}

// excluded are packages that every base image has (libc), that only scripts of
// packages need, or (the last two lines) that would bring a C tool chain, and
// the network information service.
func (s settings) excluded() []string {
	list := []string{
		"libc6", "libgcc-s1", "media-types", "mime-support", "tzdata", "ca-certificates", "netbase",
		"debconf", "dpkg", "readline-common", "python3", "python3-minimal", "openssl-provider-legacy",
		"libc6-dev", "libexpat1-dev", "zlib1g-dev", "libpython" + s.Minor,
		"libnsl2", "libtirpc3",
	}
	if s.SystemLibraries {
		list = append(list, libraries...)
	}
	slices.Sort(list)
	return list
}

func (s settings) packages() []string {
	list := []string{"python" + s.Minor, "python" + s.Minor + "-venv", "libpython" + s.Minor + "-dev"}
	if s.Suite == "bookworm" {
		// Debian 12 keeps distutils apart, and sdists build wheels.
		list = append(list, "python3-distutils", "python3-wheel-whl")
	}
	return list
}

// install resolves, fetches and unpacks the packages into dir.
func install(ctx context.Context, b *kit.Build, s settings, source, dir string) (debian.Lock, error) {
	sources, err := sources(s)
	if err != nil {
		return debian.Lock{}, err
	}
	client, err := debian.NewClient(debian.Options{Sources: sources, Events: event.Func(func(e event.Event) {
		if m, ok := e.(event.Message); ok && m.Level != event.Debug {
			b.Log.Detail("%s", m.Text)
		}
	})})
	if err != nil {
		return debian.Lock{}, err
	}
	defer client.Close()
	b.Log.Info("Looking for CPython %s in Debian %s", s.Minor, s.Suite)
	lock, err := client.Resolve(ctx, debian.Request{
		Suite: s.Suite, Arch: s.Arch, Exclude: s.excluded(),
		Groups: []debian.Group{{Name: "cpython", Packages: s.packages()}},
	})
	if err != nil {
		return lock, fmt.Errorf("find CPython %s in Debian %s: %w", s.Minor, s.Suite, err)
	}
	version := packageVersion(lock, "python"+s.Minor)
	if err := s.allows(upstream(version), source); err != nil {
		return lock, err
	}
	b.Log.Info("Installing CPython %s: %d packages, %.1f MB", version, len(lock.Packages), float64(lock.Size())/1e6)
	if err := client.Unpack(ctx, lock, dir, layout(s.Minor, triplet(s.Arch))); err != nil {
		return lock, err
	}
	return lock, nil
}

func sources(s settings) ([]debian.Source, error) {
	if s.Mirror != "" {
		return debian.ForMirror(s.Mirror, s.Suite), nil
	}
	list, err := debian.Sources("/")
	if err == nil && len(list) > 0 {
		return list, nil
	}
	if err == nil {
		err = fmt.Errorf("apt's configuration in the build image names none")
	}
	return nil, kit.Hint(fmt.Errorf("no Debian mirror to take CPython from: %w", err), "give one with --env BP_DEBIAN_MIRROR=<address>")
}

func packageVersion(lock debian.Lock, name string) string {
	for _, p := range lock.Packages {
		if p.Name == name {
			return p.Version
		}
	}
	return ""
}

// upstream is the version without Debian's part: 3.11.2-6+deb12u6 is 3.11.2.
func upstream(version string) string {
	if _, rest, ok := strings.Cut(version, ":"); ok {
		version = rest
	}
	version, _, _ = strings.Cut(version, "-")
	return version
}

func bom(lock debian.Lock, version string, s settings) *kit.BOM {
	b := &kit.BOM{Subject: "CPython " + version, Packages: []kit.Package{{
		Type: "generic", Name: "python", Version: version, License: "PSF-2.0", Location: "bin/python" + s.Minor,
	}}}
	distro := ""
	for v, suite := range suites {
		if suite == s.Suite {
			distro = "debian-" + v
		}
	}
	for _, p := range lock.Packages {
		b.Packages = append(b.Packages, kit.Package{
			Type: "deb", Namespace: "debian", Name: p.Name, Version: p.Version, SHA256: p.SHA256,
			Qualifiers: map[string]string{"arch": p.Arch, "distro": distro},
		})
	}
	return b
}

// links that a prefix of CPython has and that are in other packages of Debian.
func link(dir, minor string) error {
	for _, name := range []string{"python", "python3"} {
		path := filepath.Join(dir, "bin", name)
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.Symlink("python"+minor, path); err != nil {
			return err
		}
	}
	return nil
}
