package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// TestModel does random things to a store and to a map, and compares them.
func TestModel(t *testing.T) {
	// Images that share layers in every way, made once.
	pool := []v1.Layer{}
	for i := range 5 {
		body := imagetest.Tar(t, 100*i)
		pool = append(pool, imagetest.Layer(t, body), imagetest.Gzip(t, body))
	}
	var images []v1.Image
	for i := range 6 {
		images = append(images, imagetest.With(t, imagetest.Random(t, 0), pool[i], pool[i+1], pool[i+4]))
	}
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		defer os.RemoveAll(dir)
		m := &model{t: t, dir: dir, pool: pool, images: images, refs: map[string]int{}, caches: map[string]int{}, held: map[string]bool{}}
		m.reopen(rt)
		defer func() { _ = m.s.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"":       m.check,
			"write":  m.write,
			"delete": m.delete,
			"read":   m.read,
			"put":    m.put,
			"cache":  m.cache,
			"clear":  m.clear,
			"tree":   m.tree,
			"gc":     m.gc,
			"reopen": m.reopen,
		})
		if r, err := m.s.Check(t.Context(), true); err != nil {
			rt.Fatal(err, r.Problems)
		}
	})
}

type model struct {
	t      *testing.T
	s      *store.Store
	dir    string
	pool   []v1.Layer
	images []v1.Image
	refs   map[string]int  // name -> index of images
	caches map[string]int  // key -> index of pool
	held   map[string]bool // diffIDs that this session holds, so must stay
}

var modelNames = rapid.SampledFrom([]string{"a:latest", "b:1", "example.com/c:x"})

func (m *model) reopen(rt *rapid.T) {
	if m.s != nil {
		if err := m.s.Close(); err != nil {
			rt.Fatal(err)
		}
	}
	m.held = map[string]bool{}
	var err error
	if m.s, err = store.Open(m.t.Context(), m.dir); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) hold(i int) {
	ls, err := m.images[i].Layers()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, l := range ls {
		m.held[diffID(m.t, l)] = true
	}
}

func (m *model) write(rt *rapid.T) {
	name, i := modelNames.Draw(rt, "name"), rapid.IntRange(0, len(m.images)-1).Draw(rt, "image")
	if err := m.s.Write(m.t.Context(), name, m.images[i]); err != nil {
		rt.Fatal(err)
	}
	m.refs[name] = i
	m.hold(i)
}

func (m *model) delete(rt *rapid.T) {
	name := modelNames.Draw(rt, "name")
	err := m.s.Delete(m.t.Context(), name)
	if _, ok := m.refs[name]; ok != (err == nil) || (!ok && !errors.Is(err, image.ErrNotFound)) {
		rt.Fatalf("delete %s = %v; it is there: %v", name, err, ok)
	}
	delete(m.refs, name)
}

func (m *model) read(rt *rapid.T) {
	name := modelNames.Draw(rt, "name")
	img, err := m.s.Image(m.t.Context(), name)
	i, ok := m.refs[name]
	if !ok {
		if !errors.Is(err, image.ErrNotFound) {
			rt.Fatalf("read %s = %v, want ErrNotFound", name, err)
		}
		return
	}
	if err != nil {
		rt.Fatal(err)
	}
	if got, want := imagetest.ID(m.t, img), imagetest.ID(m.t, m.images[i]); got != want {
		rt.Fatalf("%s is %s, want %s", name, got, want)
	}
	m.hold(i)
}

func (m *model) put(rt *rapid.T) {
	body := rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "body")
	m.held[diffID(m.t, putTar(m.t, m.s, "/f", body))] = true
}

func (m *model) cache(rt *rapid.T) {
	key, i := modelNames.Draw(rt, "key"), rapid.IntRange(0, len(m.pool)-1).Draw(rt, "layer")
	id := diffID(m.t, m.pool[i])
	_, have := m.s.Layer(m.t.Context(), id)
	err := m.s.Cache(key).Save(m.t.Context(), spec.CacheMetadata{SBOM: spec.LayerSHA{SHA: id}})
	if (have == nil) != (err == nil) {
		rt.Fatalf("save with layer (%v) = %v", have, err)
	}
	if err == nil {
		m.caches[key] = i
		m.held[id] = true
	}
}

func (m *model) clear(rt *rapid.T) {
	key := modelNames.Draw(rt, "key")
	if err := m.s.Cache(key).Clear(m.t.Context()); err != nil {
		rt.Fatal(err)
	}
	delete(m.caches, key)
}

func (m *model) tree(rt *rapid.T) {
	l := rapid.SampledFrom(m.pool).Draw(rt, "layer")
	if _, err := m.s.Tree(m.t.Context(), l); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) gc(rt *rapid.T) {
	if _, err := m.s.GC(m.t.Context()); err != nil {
		rt.Fatal(err)
	}
}

// check holds after every step.
func (m *model) check(rt *rapid.T) {
	refs, err := m.s.Refs(m.t.Context())
	if err != nil {
		rt.Fatal(err)
	}
	if len(refs) != len(m.refs) {
		rt.Fatalf("there are %d refs, want %d", len(refs), len(m.refs))
	}
	for _, r := range refs {
		i, ok := m.refs[r.Name]
		if !ok || r.ImageID != imagetest.ID(m.t, m.images[i]) {
			rt.Fatalf("%s is %s", r.Name, r.ImageID)
		}
	}
	for key, i := range m.caches {
		md, ok, err := m.s.Cache(key).Load(m.t.Context())
		if err != nil || !ok || md.SBOM.SHA != diffID(m.t, m.pool[i]) {
			rt.Fatalf("cache %s is %v, %v, %v", key, md, ok, err)
		}
		m.held[md.SBOM.SHA] = true
	}
	for id := range m.held {
		if _, err := m.s.Layer(m.t.Context(), id); err != nil {
			rt.Fatalf("a layer in use is gone: %v", err)
		}
	}
}
