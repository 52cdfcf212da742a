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
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// extension: a package is installed in the build image and in the run image, by
// the extender in containers of both.
func extension(t *testing.T, p *proof) {
	if os.Getuid() != 0 {
		return // the extender is root and becomes the build user: one id is not enough
	}
	conform.Covers(t, 96, 160)
	said := p.extended(t)
	has(t, said, "built with tree v", "by 1000")
	if got := p.launch(t, "five").ok(t).stdout; got != "/workspace\n`-- extension.txt\n" && got != "/workspace\n└── extension.txt\n" {
		t.Errorf("the app says %q", got)
	}
	cf := configOf(t, p.pull(t, "five/extension"))
	if got := cf.Config.Labels["io.buildpacks.rebasable"]; got != "false" {
		t.Errorf("the extension has not said that its layers can be rebased, and the label is %q", got)
	}
	if !slices.Contains(cf.Config.Env, "INSTALLED=tree") {
		t.Errorf("the environment of the extended run image is lost: %q", cf.Config.Env)
	}
	i := slices.IndexFunc(cf.History, func(h v1.History) bool { return strings.HasSuffix(h.CreatedBy, "Created by extension: demo/apt") })
	if i != runLayers(t, p.pull(t, "five/extension")) {
		t.Errorf("the extension's layers do not follow those of the run image: layer %d is the first\n%+v", i, cf.History)
	}
}

// extended builds with the extender in the place of the builder, and once more
// for the run image.
func (p *proof) extended(t *testing.T) string {
	t.Helper()
	at := p.five
	filetree.Write(t, filepath.Join(at.dir, "kaniko"), 0o644, nil)
	at.give(t)
	kaniko := []string{"--volume", at.dir + "/kaniko:/kaniko"}
	said := p.world.phases(t, at, kaniko, [][]string{{"analyzer", at.image}, {"detector"}, {"restorer", "-cache-dir", "/cache", "-build-image", p.addr + "/" + p.builder}})
	said += p.extender(t, p.builder, "build", kaniko)
	said += p.extender(t, worldRun, "run", append(kaniko, "--volume", p.lifecycleDir(t)+":/cnb/lifecycle:ro"))
	return said + p.world.phases(t, at, kaniko, [][]string{{"exporter", "-cache-dir", "/cache", at.image}})
}

// extender runs the extender as root in a container of the image, which is the
// image that it extends, with the capabilities that package managers need.
func (p *proof) extender(t *testing.T, image, kind string, more []string) string {
	t.Helper()
	args := slices.Concat(p.containerArgs(p.five, "host"), asRoot(), []string{"--cap-add", "FOWNER", "--cap-add", "FSETID", "--volume", aptSources(t) + ":/etc/apt/sources.list.d/host.sources:ro"},
		more, []string{p.inPodman(t, image), "/cnb/lifecycle/extender", "-kind", kind, "-app", "/workspace", "-uid", "1000", "-gid", "1000"})
	return runCommand(t, p.podman.command(args...)).ok(t).String()
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
