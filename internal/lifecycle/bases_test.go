package lifecycle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// pushBase puts a base image of that author into a registry, and returns its
// digest.
func pushBase(t *testing.T, ref, author string) string {
	t.Helper()
	img := runImage(t)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Author = author
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return push(t, ref, img)
}

// newRestorable is a world before the restorer, with a place for /kaniko.
func newRestorable(t *testing.T, analyzed string) *world {
	w := newWorld(t)
	w.host.Dirs = map[string]layer.Stack{"/kaniko": {Upper: w.path("kaniko")}}
	w.mkdir("kaniko")
	w.write("layers/group.toml", "")
	w.write("layers/analyzed.toml", analyzed)
	return w
}

// saved opens the only base image that was saved, and makes sure that it is
// nothing but manifest and config.
func (w *world) saved(digest string) v1.Image {
	w.Helper()
	dir := w.path("kaniko/cache/base/" + digest)
	if files := w.tree("kaniko/cache/base/" + digest); len(files) != 4 {
		w.Errorf("more or less than oci-layout, index.json, manifest and config: %q", files)
	}
	img, err := archive.Layout{Dir: dir}.Image(w.Context(), digest)
	if err != nil {
		w.Fatal(err)
	}
	if got, err := img.Digest(); err != nil || got.String() != digest {
		w.Errorf("digest %s, want %s %v", got, digest, err)
	}
	return img
}

func (w *world) bases() []string {
	w.Helper()
	entries, err := os.ReadDir(w.path("kaniko/cache/base"))
	if err != nil && !os.IsNotExist(err) {
		w.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRestorerSavesBuildImage(t *testing.T) {
	conform.Covers(t, 88)
	host := newRegistry(t)
	digest := pushBase(t, host+"/build:1", "build")
	for api, extend := range map[string]bool{"0.10": false, "0.13": true, "0.15": true} {
		before := "[run-image]\nreference = \"" + host + "/run@sha256:" + strings.Repeat("1", 64) + "\"\n[run-image.target]\nos = 'linux'\narch = 'amd64'\n"
		if extend {
			before += "[build-image]\nextend = true\n"
		}
		w := newRestorable(t, before)
		for range 2 { // again: it is there already
			w.want(0, w.runAs(api, restorer, "-build-image", host+"/build:1"))
			if diff := cmp.Diff(&spec.BuildImage{Reference: host + "/build@" + digest, Extend: extend}, w.analyzed().BuildImage); diff != "" {
				t.Error(api, diff)
			}
		}
		cf, err := w.saved(digest).ConfigFile()
		if err != nil || cf.Author != "build" {
			t.Errorf("%s: %+v %v", api, cf, err)
		}
		if got := w.bases(); !slices.Equal(got, []string{digest}) {
			t.Errorf("%s: %q", api, got)
		}
		if a := w.analyzed(); a.RunImage.Extend || !strings.HasSuffix(a.RunImage.Reference, strings.Repeat("1", 64)) {
			t.Errorf("%s: the run image was touched: %+v", api, a.RunImage)
		}
	}
}

func TestRestorerSavesRunImage(t *testing.T) {
	conform.Covers(t, 89, 91)
	host := newRegistry(t)
	first := pushBase(t, host+"/extended:1", "first")
	second := pushBase(t, host+"/extended:1", "second")
	target := &spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "debian", Version: "12"}}
	for _, tt := range []struct {
		name, reference, image string
		digest                 string
	}{
		// The analyzer has seen the first: the second came under its name later.
		{"as the analyzer found it", host + "/extended@" + first, host + "/extended:1", first},
		{"as an extension chose it", host + "/extended:1", host + "/extended:1", second},
		{"a daemon's image ID says nothing to a registry", "sha256:" + strings.Repeat("2", 64), host + "/extended:1", second},
		{"without a name", host + "/extended@" + first, "", first},
	} {
		for _, api := range []string{"0.12", "0.15"} {
			w := newRestorable(t, "[run-image]\nreference = \""+tt.reference+"\"\nimage = \""+tt.image+"\"\nextend = true\n")
			w.want(0, w.runAs(api, restorer))
			want := &spec.RunImage{Image: tt.image, Reference: host + "/extended@" + tt.digest, Extend: true, Target: target}
			if diff := cmp.Diff(want, w.analyzed().RunImage); diff != "" {
				t.Errorf("%s at %s: %s", tt.name, api, diff)
			}
			w.saved(tt.digest)
			if got := w.bases(); !slices.Equal(got, []string{tt.digest}) {
				t.Errorf("%s at %s: %q", tt.name, api, got)
			}
		}
	}
}

// A run image that an extension chose and nobody extends gets its digest and
// target, and nothing is saved.
func TestRestorerFindsChosenRunImage(t *testing.T) {
	conform.Covers(t, 90, 91)
	host := newRegistry(t)
	digest := pushBase(t, host+"/chosen:1", "chosen")
	target := &spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "debian", Version: "12"}}
	for _, api := range []string{"0.12", "0.13", "0.14", "0.15"} {
		w := newRestorable(t, "[run-image]\nreference = \""+host+"/chosen:1\"\nimage = \""+host+"/chosen:1\"\n")
		w.want(0, w.runAs(api, restorer))
		if diff := cmp.Diff(&spec.RunImage{Image: host + "/chosen:1", Reference: host + "/chosen@" + digest, Target: target}, w.analyzed().RunImage); diff != "" {
			t.Errorf("%s: %s", api, diff)
		}
		if got := w.bases(); len(got) > 0 {
			t.Errorf("%s: %q", api, got)
		}
	}

	// What run.toml lists must be readable, even where nothing else is asked of it.
	analyzed := "[run-image]\nreference = \"" + host + "/gone@" + digest + "\"\nimage = \"" + host + "/gone:1\"\n[run-image.target]\nos = 'linux'\narch = 'amd64'\n"
	for api, code := range map[string]int{"0.13": 0, "0.14": spec.ExitRestore, "0.15": spec.ExitRestore} {
		w := newRestorable(t, analyzed)
		w.write("run.toml", "[[images]]\nimage = '"+host+"/other'\nmirrors = ['"+host+"/gone:1']\n")
		w.environ = []string{"CNB_RUN_PATH=" + w.path("run.toml")}
		w.want(code, w.runAs(api, restorer))
		w.write("run.toml", "[[images]]\nimage = '"+host+"/other'\n")
		w.want(0, w.runAs(api, restorer))
	}
}

func TestRestorerCannotSaveBases(t *testing.T) {
	host := newRegistry(t)
	for _, tt := range []struct {
		name, analyzed, want string
		args                 []string
		change               func(w *world)
	}{
		{"no such build image", "", "build image " + host + "/gone", []string{"-build-image", host + "/gone"}, nil},
		{"no such run image", "[run-image]\nreference = '" + host + "/gone'\nextend = true\n", "run image " + host + "/gone", nil, nil},
		{"no reference", "[run-image]\nreference = ''\nextend = true\n", "run image ", nil, nil},
		{"no place", "", "this host has no place for /kaniko", []string{"-build-image", host + "/run:1"}, func(w *world) {
			w.host.Dirs = map[string]layer.Stack{"/else": {}}
		}},
		{"the place is a file", "", "kaniko", []string{"-build-image", host + "/run:1"}, func(w *world) {
			w.write("kaniko/cache", "")
		}},
		{"what is there is something else", "", "", []string{"-build-image", host + "/run:1"}, func(w *world) {
			_, cf := pull(w.T, host+"/run:1")
			digest := pushBase(w.T, host+"/run:1", cf.Author)
			w.write("kaniko/cache/base/"+digest, "a file")
		}},
	} {
		w := newRestorable(t, tt.analyzed)
		if tt.change != nil {
			tt.change(w)
		}
		before := w.read("layers/analyzed.toml")
		w.want(spec.ExitRestore, w.run(restorer, tt.args...))
		if !strings.Contains(w.stderr.String(), tt.want) {
			t.Errorf("%s: %s", tt.name, w.stderr.String())
		}
		if w.read("layers/analyzed.toml") != before {
			t.Errorf("%s: analyzed.toml was written", tt.name)
		}
	}
}

// Garbage that an interrupted or hostile run left is replaced.
func TestRestorerReplacesWhatIsBroken(t *testing.T) {
	host := newRegistry(t)
	digest := pushBase(t, host+"/build:1", "build")
	w := newRestorable(t, "")
	dir := "kaniko/cache/base/" + digest
	w.write(dir+"/index.json", "{")
	w.write(dir+"/blobs/sha256/"+strings.TrimPrefix(digest, "sha256:"), "garbage")
	w.write(dir+"/blobs/sha256/"+strings.Repeat("0", 64), "of nobody")
	w.want(0, w.run(restorer, "-build-image", host+"/build:1"))
	w.saved(digest)
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal([]byte(w.read(filepath.Join(dir, "index.json"))), &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].Digest != digest {
		t.Errorf("%+v %v", index, err)
	}
}
