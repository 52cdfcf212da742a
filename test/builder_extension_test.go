package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// extension: a package is installed in the build image and in the run image, by
// the extender in containers of both, and by kiln build in its sandbox. Where
// the container lacks what that takes, it says so; so does creator, which
// extends nothing.
func extension(t *testing.T, p *proof) {
	t.Run("creator", func(t *testing.T) {
		conform.Covers(t, 168)
		r := p.container(t, p.creator, nil, "/cnb/lifecycle/creator", "-app", "/workspace", "-platform", "/platform", p.creator.image)
		if r.code != spec.ExitDetect || !strings.Contains(r.stderr, "image extension demo/apt@1.0.0 takes part, and the creator extends no images") {
			t.Errorf("exit code %d, want %d\n%s", r.code, spec.ExitDetect, r)
		}
	})
	t.Run("five phases", func(t *testing.T) { fiveInstall(t, p) })
	t.Run("kiln build", func(t *testing.T) { kilnInstalls(t, p) })
}

// whatPackagesTake are the capabilities that extending an image in a container
// takes, and becoming the build user.
func whatPackagesTake() []string {
	return append(asRoot(), "--cap-add", "FOWNER", "--cap-add", "FSETID")
}

// fiveInstall extends in containers. Without sub-ids podman's have one user: in
// them the run image can be extended, and for the build image, in which the
// build goes on as another user, they are told what is missing.
func fiveInstall(t *testing.T, p *proof) {
	at := p.five
	filetree.Write(t, filepath.Join(at.dir, "kaniko"), 0o644, nil)
	at.give(t)
	kaniko := []string{"--volume", at.dir + "/kaniko:/kaniko"}
	forRun := append(slices.Clone(kaniko), "--volume", p.lifecycleDir(t)+":/cnb/lifecycle:ro")
	p.world.phases(t, at, kaniko, [][]string{{"analyzer", at.image}, {"detector"}, {"restorer", "-cache-dir", "/cache", "-build-image", p.addr + "/" + p.builder}})
	refuses := func(image, kind string, rights, more []string, why ...string) {
		t.Helper()
		r := p.extend(t, image, kind, rights, more)
		if r.code != spec.ExitExtend {
			t.Errorf("%s with %q: exit code %d, want %d\n%s", kind, rights, r.code, spec.ExitExtend, r)
		}
		has(t, r.String(), why...)
	}
	none, lacks := []string{"--user", "0:0"}, []string{"has not the capabilities ", "SETGID, SETUID", "--cap-add SETGID --cap-add SETUID", "or extend the image with kiln build"}
	refuses(p.builder, "build", none, kaniko, lacks...)
	if p.podman.rootless() {
		refuses(p.builder, "build", whatPackagesTake(), kaniko, "this container has no user 1000:1000", "sub-ids in /etc/subuid")
		// Where all is one user's, packages need no capability.
		has(t, p.extend(t, worldRun, "run", none, forRun).ok(t).String(), "Setting up tree")
		return
	}
	conform.Covers(t, 96, 160)
	refuses(worldRun, "run", none, forRun, lacks...) // <kaniko> is the build user's
	has(t, p.extender(t, p.builder, "build", kaniko), "Setting up tree", "built with tree v", "by 1000")
	has(t, p.extender(t, worldRun, "run", forRun), "Setting up tree")
	has(t, p.extender(t, worldRun, "run", forRun), "(cached)") // not installed again
	p.world.phases(t, at, kaniko, [][]string{{"exporter", "-cache-dir", "/cache", at.image}})
	p.installed(t, "five")
}

// kilnInstalls extends with no other right than this user's, and the second
// time without a network.
func kilnInstalls(t *testing.T, p *proof) {
	conform.Covers(t, 96, 160)
	name := p.addr + "/kiln/extension"
	args := []string{"build", name, "--path", p.source, "--builder", p.addr + "/" + p.builder}
	said := patiently(t, args...)
	has(t, said, "Setting up tree", "built with tree v", "by 1000")
	p.offline()
	said = must(t, append(args, "--publish", "--network", "none")...)
	has(t, said, "built with tree v", "by 1000")
	if n := strings.Count(said, "(cached)"); n != 4 || strings.Contains(said, "Setting up tree") {
		t.Errorf("%d of 4 commands are from the cache:\n%s", n, said)
	}
	p.installed(t, "kiln")
	p.planned(t, true)
}

// installed makes sure of the image that was built in a way.
func (p *proof) installed(t *testing.T, way string) {
	t.Helper()
	if got := p.launch(t, way).ok(t).stdout; got != "/workspace\n`-- extension.txt\n" && got != "/workspace\n└── extension.txt\n" {
		t.Errorf("the app says %q", got)
	}
	img := p.pull(t, way+"/extension")
	cf := configOf(t, img)
	if got := cf.Config.Labels[spec.RebasableLabel]; got != "false" {
		t.Errorf("the extension has not said that its layers can be rebased, and the label is %q", got)
	}
	if !slices.Contains(cf.Config.Env, "INSTALLED=tree") || cf.Config.User != "1000:1000" {
		t.Errorf("the configuration of the extended run image is lost: user %s, environment %q", cf.Config.User, cf.Config.Env)
	}
	i := slices.IndexFunc(cf.History, func(h v1.History) bool { return strings.HasSuffix(h.CreatedBy, "Created by extension: demo/apt") })
	if i != runLayers(t, img) {
		t.Errorf("the extension's layers do not follow those of the run image: layer %d is the first\n%+v", i, cf.History)
	}
}

// extender runs the extender as root in a container of the image, which is the
// image that it extends, with the capabilities that package managers need.
func (p *proof) extender(t *testing.T, image, kind string, more []string) string {
	t.Helper()
	return p.extend(t, image, kind, whatPackagesTake(), more).ok(t).String()
}

func (p *proof) extend(t *testing.T, image, kind string, rights, more []string) ran {
	t.Helper()
	args := slices.Concat(p.containerArgs(p.five, "host"), rights, []string{"--volume", aptSources(t) + ":/etc/apt/sources.list.d/host.sources:ro"},
		more, []string{p.inPodman(t, image), "/cnb/lifecycle/extender", "-kind", kind, "-app", "/workspace", "-uid", "1000", "-gid", "1000"})
	return runCommand(t, p.podman.command(args...))
}

// lifecycleDir is a folder with the lifecycle, for images that have none.
func (p *proof) lifecycleDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range worldLifecycle(t) {
		if name, ok := strings.CutPrefix(f.Path, "/cnb/lifecycle/"); ok && f.Link == "" {
			if err := os.WriteFile(filepath.Join(dir, name), f.Body, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if ok {
			if err := os.Symlink(f.Link, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// aptSources are this host's Debian sources, as apt reads them.
func aptSources(t *testing.T) (file string) {
	t.Helper()
	sources, err := debian.Sources("/")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, s := range sources {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\n\n", s.URI, s.Suite, strings.Join(s.Components, " "))
	}
	file = filepath.Join(t.TempDir(), "host.sources")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
