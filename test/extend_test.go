package test

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/spec"
	storepkg "github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// TestExtensions builds with a builder that has an image extension: by kiln
// build, and as platforms do, with the extender in containers of the images
// that it extends. Each installs a package on the way.
func TestExtensions(t *testing.T) {
	s := readScenario(t, "extended")
	w := newExtensionWorld(t, s)
	t.Run("kiln build", func(t *testing.T) { kilnExtends(t, w, s) })
	t.Run("containers", func(t *testing.T) { containersExtend(t, w, s) })
}

// aptBase makes a base image, once, in which packages can be installed: nothing
// is missing that the packages in it depend on.
func aptBase(t *testing.T) string {
	t.Helper()
	const name = "extended/base:1"
	if kiln(t, "inspect", name).code == 0 {
		return name
	}
	args := []string{"base", "create", name, "--quiet"}
	for _, p := range []string{
		"apt", "debconf", "diffutils", "dpkg", "grep", "libc-bin", "libpam-runtime", "mawk", "openssl", "perl-base", "readline-common", "sed", "util-linux",
	} {
		args = append(args, "--package", p)
	}
	patiently(t, args...)
	return name
}

// newExtensionWorld has a registry with a run image, and a builder that stands
// on the same base image and has the scenario.
func newExtensionWorld(t *testing.T, s scenario) *world {
	t.Helper()
	addr, stop, err := startRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	w := &world{site: site{addr: addr, store: sharedStore(t)}, dir: t.TempDir(), cas: caBundle(t)}
	if w.podman, err = newPodman(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.podman.close)
	name := aptBase(t)
	st, err := storepkg.Open(t.Context(), sharedStore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	base := stored(t, st, name)
	w.push(t, worldRun, base)
	w.push(t, worldBuilder, w.builder(t, st, base, []scenario{s}))
	return w
}

func kilnExtends(t *testing.T, w *world, s scenario) {
	source := filepath.Join(w.dir, "source")
	filetree.Write(t, source, 0o644, s.below("app"))
	name := w.addr + "/kiln/extension"
	args := []string{"build", name, "--path", source, "--builder", w.addr + "/" + worldBuilder, "--env", "APT=yes"}
	said := patiently(t, args...)
	has(t, said, "a tool\n", "Hello, world!\n", "user 1000:1000\n")
	id := imageIDOf(t, name)
	said = must(t, args...)
	if n := strings.Count(said, "(cached)"); n != 5 || !strings.Contains(said, "a tool\n") {
		t.Errorf("%d instructions are from the cache, want all 5:\n%s", n, said)
	}
	if again := imageIDOf(t, name); again != id {
		t.Errorf("the same build made %s, then %s", id, again)
	}
	st, err := storepkg.Open(t.Context(), sharedStore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	checkExtended(t, stored(t, st, name), "1000:1000")
	if said := must(t, "run", name); !strings.Contains(said, "Hello, extended world!\n") {
		t.Errorf("the app says %q", said)
	}
}

func imageIDOf(t *testing.T, name string) string {
	t.Helper()
	for line := range strings.Lines(must(t, "inspect", name)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "ID" {
			return f[1]
		}
	}
	t.Fatalf("%s has no ID", name)
	return ""
}

// checkExtended makes sure that the layers of the extension have what its
// Dockerfile made, and nothing else of where it was carried out. owner is that
// of the directory it gave away.
func checkExtended(t *testing.T, img v1.Image, owner string) {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := cf.Config.Labels[spec.RebasableLabel]; got != "false" {
		t.Errorf("rebasable is %q", got)
	}
	if cf.Config.User != "1000:1000" || !slices.Contains(cf.Config.Env, "DATA=/data") {
		t.Errorf("user %q, environment %q", cf.Config.User, cf.Config.Env)
	}
	files := map[string]string{}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for _, h := range cf.History {
		if h.EmptyLayer {
			continue
		}
		if strings.Contains(h.CreatedBy, "Created by extension: demo/extension") && !strings.Contains(h.CreatedBy, "apt-get") {
			maps.Copy(files, filesOf(t, layers[i]))
		}
		i++
	}
	want := map[string]string{"data/": owner, "data/greeting.txt": "0:0"}
	for name, owner := range files {
		if want[name] != owner {
			t.Errorf("the extension has left %s of %s in the image", name, owner)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("the extension has not left %v", want)
	}
}

// filesOf are the files of a layer and their owners.
func filesOf(t *testing.T, l v1.Layer) map[string]string {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	files := map[string]string{}
	for tr := tar.NewReader(rc); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(hdr.Name, "/")] = fmt.Sprintf("%d:%d", hdr.Uid, hdr.Gid)
	}
}

// containersExtend carries out the phases in containers. The one that extends
// the build image goes on as the build user, which takes more ids than podman
// has without sub-ids: there the builder finds that image as it was.
func containersExtend(t *testing.T, w *world, s scenario) {
	conform.Covers(t, 95)
	p := &proof{world: w, s: s, builder: worldBuilder, five: w.place(t, worldBuilder, "five/extended", s.below("app"))}
	filetree.Write(t, filepath.Join(p.five.dir, "kaniko"), 0o644, nil)
	p.five.give(t)
	kaniko := []string{"--volume", p.five.dir + "/kaniko:/kaniko"}
	w.phases(t, p.five, kaniko, [][]string{
		{"analyzer", p.five.image}, {"detector"}, {"restorer", "-cache-dir", "/cache", "-build-image", w.addr + "/" + worldBuilder},
	})
	owner := "0:0"
	if w.podman.rootless() {
		has(t, w.phases(t, p.five, nil, [][]string{{"builder"}}), "no tool\n")
	} else {
		conform.Covers(t, 96)
		owner = "1000:1000"
		said := p.extender(t, worldBuilder, "build", kaniko)
		has(t, said, "a tool\n", "no package\n", "user 1000:1000\n")
		if strings.Contains(said, "could be replaced") {
			t.Errorf("the build user may write to the image:\n%s", said)
		}
	}
	p.extender(t, worldRun, "run", append(kaniko, "--volume", p.lifecycleDir(t)+":/cnb/lifecycle:ro"))
	w.phases(t, p.five, nil, [][]string{{"exporter", "-cache-dir", "/cache", p.five.image}})
	checkExtended(t, w.pull(t, "five/extended"), owner)
	if said := w.launch(t, "five/extended").ok(t).stdout; said != "Hello, extended world!\nno package\n" {
		t.Errorf("the app says %q", said)
	}
}
