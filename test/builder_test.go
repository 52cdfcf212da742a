package test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

// TestBuilders builds with real builders: buildpacks that are shell scripts, as
// they are in testdata/builders, by five phases and by creator in containers
// without capabilities, and by kiln build.
func TestBuilders(t *testing.T) {
	proofs := map[string]func(*testing.T, *proof){
		"hello": hello, "everything": everything, "plans": plans, "execenv": execEnvs, "system": systemBuildpacks,
		"java": java, "node": node, "extension": extension,
	}
	var scenarios []scenario
	for _, name := range slices.Sorted(maps.Keys(proofs)) {
		scenarios = append(scenarios, readScenario(t, name))
	}
	w := newWorld(t, scenarios)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { proofs[s.name](t, w.proof(t, s, w.builderOf(t, s))) })
	}
	t.Run("habits", func(t *testing.T) { habits(t, w) })
	t.Run("elsewhere", func(t *testing.T) { elsewhere(t, w) })
	t.Run("credentials", func(t *testing.T) { credentials(t, w) })
}

// builderOf is the builder that a scenario needs: one more with its system.toml
// if it has one.
func (w *world) builderOf(t *testing.T, s scenario) string {
	t.Helper()
	system := s.files["system.toml"]
	if system == "" {
		return worldBuilder
	}
	repo := "world/" + s.name + ":1"
	w.push(t, repo, w.with(t, worldBuilder, layer.File{Path: "/cnb/system.toml", Mode: 0o644, Body: []byte(system)}))
	return repo
}

// proof is one app built in every way.
type proof struct {
	*world
	s             scenario
	builder       string
	five, creator *place
	source        string // for kiln build
	stored        bool   // kiln build has put the image into the store
}

func (w *world) proof(t *testing.T, s scenario, builder string) *proof {
	t.Helper()
	p := &proof{world: w, s: s, builder: builder, source: filepath.Join(w.dir, "source-"+s.name)}
	p.five = w.place(t, builder, "five/"+s.name, s.below("app"))
	p.creator = w.place(t, builder, "creator/"+s.name, s.below("app"))
	filetree.Write(t, p.source, 0o644, s.below("app"))
	return p
}

// change changes one file of the app, everywhere.
func (p *proof) change(t *testing.T, name, content string) {
	t.Helper()
	p.s.files["app/"+name] = content
	for _, at := range []*place{p.five, p.creator} {
		at.setApp(t, p.s.below("app"))
	}
	filetree.Write(t, p.source, 0o644, p.s.below("app"))
}

// everyWay builds by five phases, by creator, by kiln build to the store and
// to the registry. The image is the same: its ID by the lifecycle's own
// programs, and all but the reference of the run image by kiln build, which
// names it by the store. It returns the image and what was said, by way.
func (p *proof) everyWay(t *testing.T) (v1.Image, map[string]string) {
	t.Helper()
	for _, at := range []*place{p.five, p.creator} {
		at.fresh(t)
		at.setApp(t, p.s.below("app"))
	}
	said := map[string]string{"five": p.world.five(t, p.five), "creator": p.world.creator(t, p.creator), "kiln": p.kiln(t)}
	img := p.pull(t, "five/"+p.s.name)
	if five, creator := imageID(t, img), p.id(t, "creator/"+p.s.name); five != creator {
		t.Errorf("five phases made %s, creator made %s", five, creator)
		sameImage(t, img, p.pull(t, "creator/"+p.s.name))
	}
	sameImage(t, img, p.pull(t, "kiln/"+p.s.name))
	return img, said
}

// offline says that from now on buildpacks have no network, where a phase has
// a container of its own.
func (p *proof) offline() { p.five.offline, p.creator.offline = true, true }

// kiln builds to the store the first time, and to the registry every time.
func (p *proof) kiln(t *testing.T) string {
	t.Helper()
	name := p.addr + "/kiln/" + p.s.name
	args := []string{"build", name, "--path", p.source, "--builder", p.addr + "/" + p.builder, "--verbose"}
	for name, value := range p.user {
		args = append(args, "--env", name+"="+value)
	}
	if p.five.offline {
		args = append(args, "--network", "none")
	}
	if p.stored {
		return patiently(t, append(args, "--publish")...)
	}
	p.stored = true
	said := patiently(t, args...)
	patiently(t, append(args, "--publish")...)
	if store := must(t, "inspect", name, "--json"); !strings.Contains(store, p.id(t, "kiln/"+p.s.name)) {
		t.Errorf("the store and the registry have different images: %s has the ID %s in the registry\n%s", name, p.id(t, "kiln/"+p.s.name), store)
	}
	return said
}

// sameImage compares two images, but for where the run image was found.
func sameImage(t *testing.T, a, b v1.Image) {
	t.Helper()
	x, y := configOf(t, a), configOf(t, b)
	var mx, my spec.LifecycleMetadata
	for _, c := range []struct {
		cf *v1.ConfigFile
		md *spec.LifecycleMetadata
	}{{x, &mx}, {y, &my}} {
		if err := json.Unmarshal([]byte(c.cf.Config.Labels[spec.LifecycleMetadataLabel]), c.md); err != nil {
			t.Fatal(err)
		}
		c.md.RunImage.Reference = ""
		delete(c.cf.Config.Labels, spec.LifecycleMetadataLabel)
	}
	for what, pair := range map[string][2]any{
		"layers": {x.RootFS.DiffIDs, y.RootFS.DiffIDs}, "history": {x.History, y.History}, "config": {x.Config, y.Config}, "created": {x.Created, y.Created}, "label": {mx, my},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s differ:\n%v\n%v", what, pair[0], pair[1])
		}
	}
	if !slices.Equal(x.RootFS.DiffIDs, y.RootFS.DiffIDs) {
		sayLayers(t, a, b)
	}
}

// sayLayers says in which entries the layers of two images differ.
func sayLayers(t *testing.T, a, b v1.Image) {
	t.Helper()
	x, y := layersOf(t, a), layersOf(t, b)
	for i := range min(len(x), len(y)) {
		if one, other := entries(t, x[i]), entries(t, y[i]); !slices.Equal(one, other) {
			t.Logf("layer %d is\n%s\nand\n%s", i, strings.Join(one, "\n"), strings.Join(other, "\n"))
		}
	}
}

func layersOf(t *testing.T, img v1.Image) []v1.Layer {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

// entries is a layer's tar, an entry a line.
func entries(t *testing.T, l v1.Layer) []string {
	t.Helper()
	var list []string
	walkLayer(t, l, func(h *tar.Header, body []byte) {
		list = append(list, fmt.Sprintf("%c %s %o %d:%d %q %x", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, sha256.Sum256(body)))
	})
	return list
}

func walkLayer(t *testing.T, l v1.Layer, visit func(h *tar.Header, body []byte)) {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		visit(h, body)
	}
}

func configOf(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return cf.DeepCopy()
}

// again builds a second time with nothing changed: the same image, and no
// layer of it is new.
func (p *proof) again(t *testing.T) map[string]string {
	t.Helper()
	before := p.ids(t)
	_, said := p.everyWay(t)
	if after := p.ids(t); !maps.Equal(before, after) {
		t.Errorf("the second build made other images: %v, then %v", before, after)
	}
	for way, text := range said {
		for line := range strings.Lines(text) {
			if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); slices.Contains([]string{"new", "rebuilt"}, word) {
				t.Errorf("second build, %s: a layer was made anew: %s", way, line)
			}
		}
	}
	return said
}

func (p *proof) ids(t *testing.T) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for _, way := range []string{"five", "creator", "kiln"} {
		ids[way] = p.id(t, way+"/"+p.s.name)
	}
	return ids
}

// launch runs the image of a way in podman.
func (p *proof) launch(t *testing.T, way string, args ...string) ran {
	t.Helper()
	return p.world.launch(t, way+"/"+p.s.name, args...)
}
