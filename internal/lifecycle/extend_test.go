package lifecycle

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/dockerfile/dockerfiletest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

const baseReference = "example.com/base@sha256:2222222222222222222222222222222222222222222222222222222222222222"

// newExtender is a world before the extender, whose host carries out Dockerfiles
// in a sandbox.
func newExtender(t *testing.T) *world {
	w := newWorld(t)
	base := dockerfiletest.Base(t, v1.Config{User: "node", Env: []string{"PATH=/bin"}, Labels: map[string]string{spec.RebasableLabel: "true"}})
	cache, err := dockerfile.OpenDirectory(w.path("instructions"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.host.Extender = &Extender{Build: base, Machine: func(context.Context) (dockerfile.Machine, dockerfile.Cache, error) {
		return dockerfiletest.Machine(t), cache, nil
	}}
	w.host.Places = &Places{run: opened{baseReference, base}, Source: archive.LayoutDir{Dir: w.path("images")}}
	w.write("layers/group.toml", "[[group-extensions]]\nid = 'acme/ext'\nversion = '1'\napi = '0.12'\n")
	w.write("layers/plan.toml", "")
	w.write("layers/analyzed.toml", "[run-image]\nreference = '"+baseReference+"'\nextend = true\n[build-image]\nreference = '"+baseReference+"'\nextend = true\n")
	w.write("layers/generated/acme_ext/run.Dockerfile", "ARG base_image\nFROM ${base_image}\nUSER root\nRUN echo run > /run-made\nCOPY go /\nENV RUN=1\nUSER 1000:1001\nLABEL io.buildpacks.rebasable=true\n")
	w.write("layers/generated/acme_ext/build.Dockerfile", "ARG base_image\nFROM ${base_image}\nUSER root\nRUN echo build > /build-made\nENV BUILD=1\n")
	w.write("workspace/go", "")
	return w
}

func TestExtenderKinds(t *testing.T) {
	conform.Covers(t, 99, 100)
	w := newExtender(t)
	w.want(spec.ExitInvalidArgs, w.run(extender, "-kind", "both"))
	w.want(0, w.run(extender)) // build is the default
	if w.host.Extender.Extended == nil {
		t.Fatal("the host has no extended build image")
	}
	cf, err := w.host.Extender.Extended.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if env := strings.Join(cf.Config.Env, " "); env != "PATH=/bin BUILD=1" || len(cf.RootFS.DiffIDs) != 2 {
		t.Errorf("build image: environment %s, layers %v", env, cf.RootFS.DiffIDs)
	}
	if _, err := os.Lstat(w.path("layers/extended")); !os.IsNotExist(err) {
		t.Errorf("of a build image nothing is left for the exporter: %v", err)
	}
	for range 2 {
		w.want(0, w.run(extender, "-kind", "run"))
		dir := w.onlyChild("layers/extended/run")
		img, err := archive.OpenStack(layer.Stack{Upper: dir})
		if err != nil {
			t.Fatal(err)
		}
		digest, err := img.Digest()
		if err != nil || filepath.Base(dir) != digest.String() {
			t.Errorf("the directory of %s is %s, %v", digest, filepath.Base(dir), err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 3 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		for i, l := range layers {
			h, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "blobs/sha256", h.Hex)); (err == nil) != (i > 0) {
				t.Errorf("layer %d: %v; the base's own must not be there, the others must", i, err)
			}
		}
		// Another run, another image: only the last is left.
		w.write("layers/generated/acme_ext/run.Dockerfile", w.read("layers/generated/acme_ext/run.Dockerfile")+"ENV AGAIN=1\n")
	}
}

func (w *world) onlyChild(dir string) string {
	w.Helper()
	entries, err := os.ReadDir(w.path(dir))
	if err != nil || len(entries) != 1 {
		w.Fatalf("%s has %v, %v; want one child", dir, entries, err)
	}
	return filepath.Join(w.path(dir), entries[0].Name())
}

// TestExtenderKeepsToItsPlace: what foreign code left where the extended image
// goes does not lead elsewhere.
func TestExtenderKeepsToItsPlace(t *testing.T) {
	for _, link := range []string{"layers/extended", "layers/extended/run"} {
		w := newExtender(t)
		w.write("victim/canary", "sings")
		w.mkdir(filepath.Dir(link))
		if err := os.Symlink(w.path("victim"), w.path(link)); err != nil {
			t.Fatal(err)
		}
		w.want(0, w.run(extender, "-kind", "run"))
		if files := w.tree("victim"); len(files) != 1 {
			t.Errorf("%s: written to %q", link, files)
		}
		w.onlyChild("layers/extended/run")
	}
}

func TestExtenderRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		change func(w *world)
		args   []string
		code   int
		said   string
	}{
		"no build image":   {func(w *world) { w.write("layers/analyzed.toml", "") }, nil, spec.ExitExtend, "run the restorer with -build-image"},
		"no run image":     {func(w *world) { w.write("layers/analyzed.toml", "[run-image]\nextend = true\n") }, []string{"-kind", "run"}, spec.ExitExtend, "no reference of the run image"},
		"unknown image":    {func(w *world) { w.write("layers/analyzed.toml", "[run-image]\nreference = 'x'\nextend = true\n") }, []string{"-kind", "run"}, spec.ExitExtend, "image not found"},
		"root's run image": {func(w *world) { w.write("layers/generated/acme_ext/run.Dockerfile", "FROM ${base_image}\nUSER 0:1\n") }, []string{"-kind", "run"}, spec.ExitExtend, "no image is named"},
		"root": {func(w *world) {
			w.write("layers/generated/acme_ext/run.Dockerfile", "ARG base_image\nFROM ${base_image}\nUSER 0:1\n")
		}, []string{"-kind", "run"}, spec.ExitExtend, "root as its user"},
		"a command that fails": {func(w *world) {
			w.write("layers/generated/acme_ext/build.Dockerfile", "ARG base_image\nFROM ${base_image}\nRUN echo wrong >&2; exit 9\n")
		}, nil, spec.ExitExtend, "exit status 9"},
		"no group": {func(w *world) { os.Remove(w.path("layers/group.toml")) }, nil, spec.ExitExtend, "group.toml"},
	} {
		w := newExtender(t)
		x.change(w)
		w.want(x.code, w.run(extender, x.args...))
		if said := w.stdout.String() + w.stderr.String(); !strings.Contains(said, x.said) {
			t.Errorf("%s: %s; want %s", name, said, x.said)
		}
	}
}

// TestExtenderWithNothingToDo leaves both images as they are.
func TestExtenderWithNothingToDo(t *testing.T) {
	w := newExtender(t)
	w.write("layers/analyzed.toml", "[run-image]\nreference = '"+baseReference+"'\n[build-image]\nreference = '"+baseReference+"'\nextend = false\n")
	w.want(0, w.run(extender, "-kind", "run"))
	w.want(0, w.run(extender, "-kind", "build"))
	if _, err := os.Lstat(w.path("layers/extended")); !os.IsNotExist(err) || w.host.Extender.Extended != nil {
		t.Errorf("something was extended: %v", err)
	}
}

// TestExtenderInPlaceNeedsRoot: an ordinary user is told, and root is told what
// else is missing.
func TestExtenderInPlaceNeedsRoot(t *testing.T) {
	w := newExtender(t)
	w.host.Extender = nil
	w.host.Dirs = map[string]layer.Stack{"/kaniko": {Upper: w.path("kaniko")}}
	w.mkdir("kaniko")
	w.want(spec.ExitExtend, w.run(extender))
	if !strings.Contains(w.stderr.String(), "run the restorer first") {
		t.Errorf("said %s", w.stderr.String())
	}
	if os.Geteuid() == 0 {
		return // what root does here is done to this very host
	}
	base := dockerfiletest.Base(t, v1.Config{User: "1:1"})
	if err := (archive.Layout{Dir: w.path("kaniko/cache/base/" + manifestDigest(t, base))}).WriteSparse(t.Context(), base, 0); err != nil {
		t.Fatal(err)
	}
	w.write("layers/analyzed.toml", "[build-image]\nreference = 'example.com/base@"+manifestDigest(t, base)+"'\nextend = true\n")
	w.host.Places = &Places{} // another build: one reads each document once
	w.want(spec.ExitExtend, w.run(extender))
	if !strings.Contains(w.stderr.String(), "only root can extend the image of this container") {
		t.Errorf("said %s", w.stderr.String())
	}
}

func TestIDMapped(t *testing.T) {
	file := filepath.Join(t.TempDir(), "map")
	for text, want := range map[string]map[int]bool{
		"         0          0 4294967295\n": {0: true, 1000: true},
		"         0       1000          1\n": {0: true, 1: false, 1000: false},
		"0 1000 1\n1 100000 999\n5000 0 2\n": {999: true, 1000: false, 4999: false, 5001: true, 5002: false},
		"":                                   {0: false},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for id, want := range want {
			if got := idMapped(file, id); got != want {
				t.Errorf("%d in %q: %t", id, text, got)
			}
		}
	}
	if !idMapped(file+"-none", 7) {
		t.Error("a map that is not there forbids something")
	}
}

func TestWithVariable(t *testing.T) {
	got := withVariable([]string{"A=1", "AB=2", "A=3"}, "A=4=5")
	if want := "AB=2 A=4=5"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %s", got, want)
	}
	for _, uid := range []int{0, -1} {
		if _, err := (Host{Own: true}).leaveRoot(inputs{uid: uid, gid: 5}, nil); spec.HintOf(err) == "" {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}
