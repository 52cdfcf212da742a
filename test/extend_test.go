package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
	storepkg "github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/conform"
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

// aptBase makes a base image, once, in which packages can be installed: kiln's
// run image has nothing for that.
func aptBase(t *testing.T, st *storepkg.Store) v1.Image {
	t.Helper()
	const name = "extension/base:1"
	if img, err := st.Image(t.Context(), name); err == nil {
		return img
	}
	p := platform.Platform{Store: st, Arch: runtime.GOARCH, Host: platform.FactsOf(os.Environ()), Events: event.Func(func(event.Event) {})}
	recipe := debian.RunImage("bookworm", p.Arch)
	recipe.Exclude = nil
	recipe.Groups = append(recipe.Groups, debian.Group{Name: "packages", Packages: []string{"apt", "mawk", "sed", "grep", "diffutils", "libc-bin", "debconf", "util-linux"}})
	img, _, err := p.CreateBase(t.Context(), platform.BaseRequest{Name: name, Recipe: recipe})
	if err != nil {
		t.Fatal(err)
	}
	return img
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
	st, err := storepkg.Open(t.Context(), sharedStore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	base := aptBase(t, st)
	w.push(t, worldRun, base)
	extension := packed("/cnb/extensions/demo_extension", "1.0.0", s.below("extension"))
	builder, err := image.Append(w.builder(t, st, base, []scenario{s}), []image.Addition{addition(t, st, "extension", extension)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.push(t, worldBuilder, builder)
	return w
}

func kilnExtends(t *testing.T, w *world, s scenario) {
	source := filepath.Join(w.dir, "source")
	writeFiles(t, source, s.below("app"))
	name := w.addr + "/kiln/extension"
	args := []string{"build", name, "--path", source, "--builder", w.addr + "/" + worldBuilder, "--env", "APT=build"}
	said := must(t, args...)
	for _, want := range []string{"a tool\n", "Hello, world!\n", "user 1000:1000\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("the build does not say %q:\n%s", want, said)
		}
	}
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
// has without sub-ids: there the builder follows that image as it was.
func containersExtend(t *testing.T, w *world, s scenario) {
	conform.Covers(t, 95)
	p := w.place(t, worldBuilder, "five/extension", s.below("app"))
	writeFiles(t, filepath.Join(p.dir, "platform", "env"), map[string]string{"APT": "run"})
	writeFiles(t, filepath.Join(p.dir, "kaniko"), nil)
	lifecycle := filepath.Join(p.dir, "lifecycle")
	for _, f := range worldLifecycle(t) {
		if to, ok := strings.CutPrefix(f.Path, "/cnb/lifecycle/"); ok && f.Link == "" {
			writeFiles(t, lifecycle, map[string]string{to: string(f.Body)})
			if err := os.Chmod(filepath.Join(lifecycle, to), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.give(t)
	kaniko := []string{"--volume", p.dir + "/kaniko:/kaniko"}
	builder := w.addr + "/" + worldBuilder
	w.phases(t, p, kaniko, [][]string{
		{"analyzer", p.image}, {"detector"}, {"restorer", "-cache-dir", "/cache", "-build-image", builder},
	})
	mounts := append(kaniko, aptMounts(t, p.dir)...)
	owner := "0:0"
	if os.Getuid() == 0 {
		owner = "1000:1000"
		conform.Covers(t, 96)
		said := w.extender(t, p, worldBuilder, mounts, "/cnb/lifecycle/extender", "-kind", "build", "-uid", "1000", "-gid", "1000")
		for _, want := range []string{"a tool\n", "no package\n", "user 1000:1000\n"} {
			if !strings.Contains(said, want) {
				t.Errorf("the build does not say %q:\n%s", want, said)
			}
		}
		if strings.Contains(said, "could be replaced") {
			t.Errorf("the build user may write to the image:\n%s", said)
		}
	} else {
		w.phases(t, p, nil, [][]string{{"builder"}})
	}
	w.inPodman(t, worldRun)
	mounts = append(mounts, "--volume", lifecycle+":/cnb/lifecycle:ro")
	w.extender(t, p, worldRun, mounts, "/cnb/lifecycle/lifecycle", "extender", "-kind", "run")
	w.phases(t, p, nil, [][]string{{"exporter", "-cache-dir", "/cache", p.image}})
	checkExtended(t, w.pull(t, "five/extension"), owner)
	if said := w.launch(t, "five/extension").ok(t).stdout; said != "Hello, extended world!\nHello, world!\n" {
		t.Errorf("the app says %q", said)
	}
}

// extender runs a phase as the root of a container of an image.
func (w *world) extender(t *testing.T, p *place, image string, more []string, argv ...string) string {
	t.Helper()
	args := slices.Concat(w.containerArgs(p, "host"), []string{"--user", "0:0"}, more, []string{w.addr + "/" + image}, argv)
	args = slices.DeleteFunc(args, func(a string) bool { return a == "--cap-drop" || a == "ALL" })
	r := runCommand(t, w.podman.command(args...))
	if r.code != 0 {
		t.Fatalf("%s: exit code %d\n%s", path.Base(argv[0]), r.code, r)
	}
	return r.stdout + r.stderr
}

// aptMounts tell apt in a container where this host gets packages from, and
// that there may be one id only.
func aptMounts(t *testing.T, dir string) []string {
	t.Helper()
	sources, err := debian.Sources("/")
	if err != nil {
		t.Fatal(err)
	}
	var list bytes.Buffer
	conf := "APT::Sandbox::User \"root\";\n"
	for _, s := range sources {
		fmt.Fprintf(&list, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n", s.URI, s.Suite, strings.Join(s.Components, " "))
		if scheme, _, ok := strings.Cut(s.URI, "://"); ok && s.Proxy != "" {
			conf += fmt.Sprintf("Acquire::%s::Proxy %q;\n", scheme, s.Proxy)
		}
	}
	writeFiles(t, filepath.Join(dir, "apt"), map[string]string{"list": list.String(), "conf": conf})
	return []string{"--volume", dir + "/apt/list:/etc/apt/sources.list.d/test.sources:ro", "--volume", dir + "/apt/conf:/etc/apt/apt.conf.d/99test:ro"}
}
