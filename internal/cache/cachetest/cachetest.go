// Package cachetest holds the contract of an app's cache as tests: what comes
// out of one is what was put in, or nothing, whatever happened to its files.
// The volume, the image and the store run the same suite.
package cachetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Cache is what the suite is run on: phase.CacheReader and phase.CacheWriter.
type Cache interface {
	Load(ctx context.Context) (spec.CacheMetadata, bool, error)
	Layer(ctx context.Context, diffID string) (v1.Layer, error)
	Save(ctx context.Context, md spec.CacheMetadata, open func(ctx context.Context, diffID string) (v1.Layer, error)) error
}

// Place is where a cache is.
type Place struct {
	// Open opens the cache as the next process would, and says how it ends.
	Open func(t *testing.T) (c Cache, done func())
	// Blob is the file that has the bytes of a layer, Metadata the one that has
	// the metadata.
	Blob     func(t *testing.T, diffID string) string
	Metadata func(t *testing.T) string
	// Retell replaces the metadata by a text of another's; nil where the place
	// knows its own.
	Retell func(t *testing.T, text string)
	// Keeps is set where the bytes of a blob that is there are not sent again,
	// as in a registry: a damaged one can then not be put right.
	Keeps bool
}

// Test runs the suite; each case has a place of its own.
func Test(t *testing.T, place func(t *testing.T) Place) {
	for name, f := range map[string]func(*testing.T, Place){
		"nothing":     nothing,
		"round trip":  roundTrip,
		"empty":       empty,
		"replaced":    replaced,
		"not there":   notThere,
		"lying layer": lying,
		"cancelled":   cancelled,
		"two at once": twoAtOnce,
		"retold":      retold,
	} {
		t.Run(name, func(t *testing.T) { f(t, place(t)) })
	}
	for name := range damages {
		t.Run("layer "+name, func(t *testing.T) { damagedLayer(t, place(t), name) })
		t.Run("metadata "+name, func(t *testing.T) { damagedMetadata(t, place(t), name) })
	}
}

// content is a cache: its metadata and the tars of its layers.
type content struct {
	md   spec.CacheMetadata
	tars map[string][]byte // by diffID
}

// sample is a cache of two buildpacks and SBOMs.
func sample(t *testing.T) content {
	t.Helper()
	c := content{tars: map[string][]byte{}}
	layer := func(size int) string {
		tar := imagetest.Tar(t, size)
		id := imagetest.Sum(tar).String()
		c.tars[id] = tar
		return id
	}
	c.md = spec.CacheMetadata{
		SBOM: spec.LayerSHA{SHA: layer(500)},
		Buildpacks: []spec.BuildpackLayers{
			{Key: "some/maven", Version: "1.2.3", Layers: map[string]spec.LayerMetadata{
				"repository": {SHA: layer(300_000), Cache: true, Data: map[string]any{"key": "value", "n": int64(3)}},
				"jdk":        {SHA: layer(70_000), Cache: true, Build: true, Launch: true},
			}},
			{Key: "node", Version: "0.1.0", Layers: map[string]spec.LayerMetadata{
				"modules": {SHA: layer(1000), Cache: true, Launch: true},
			}},
		},
	}
	return c
}

// open is where Save finds new layers.
func (c content) open(_ context.Context, diffID string) (v1.Layer, error) {
	tar, ok := c.tars[diffID]
	if !ok {
		return nil, fmt.Errorf("layer %s: %w", diffID, image.ErrNotFound)
	}
	return imagetest.Broken{Tar: tar}, nil // as it is not told to be broken, it is not
}

// patience is how long a damaged cache may take: what blocks does it for ever.
const patience = 20 * time.Second

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	late := time.AfterFunc(patience, func() { panic(t.Name() + ": the cache blocks") })
	t.Cleanup(func() { late.Stop() })
	return ctx
}

func (p Place) save(t *testing.T, c content) {
	t.Helper()
	cache, done := p.Open(t)
	defer done()
	if err := cache.Save(timeout(t), c.md, c.open); err != nil {
		t.Fatalf("save: %v", err)
	}
}

// holds checks that the cache is c, whole.
func (p Place) holds(t *testing.T, c content) {
	t.Helper()
	cache, done := p.Open(t)
	defer done()
	md, ok, err := cache.Load(timeout(t))
	if err != nil || !ok {
		t.Fatalf("load: %t %v", ok, err)
	}
	if diff := cmp.Diff(normal(c.md), normal(md)); diff != "" {
		t.Fatalf("metadata has changed:\n%s", diff)
	}
	for id, tar := range c.tars {
		l, err := cache.Layer(t.Context(), id)
		if err != nil {
			t.Errorf("layer %s: %v", id, err)
			continue
		}
		got, err := read(l)
		if err != nil || !bytes.Equal(got, tar) {
			t.Errorf("layer %s: %d bytes came back of %d: %v", id, len(got), len(tar), err)
		}
		if h, err := l.DiffID(); err != nil || h.String() != id {
			t.Errorf("layer %s calls itself %s %v", id, h, err)
		}
	}
}

// normal is metadata where nothing and empty are the same.
func normal(md spec.CacheMetadata) spec.CacheMetadata {
	out := spec.CacheMetadata{SBOM: md.SBOM, Buildpacks: []spec.BuildpackLayers{}}
	for _, b := range md.Buildpacks {
		layers := map[string]spec.LayerMetadata{}
		for name, l := range b.Layers {
			if l.Data == nil {
				l.Data = map[string]any{}
			}
			layers[name] = l
		}
		b.Layers = layers
		out.Buildpacks = append(out.Buildpacks, b)
	}
	return out
}

func read(l v1.Layer) ([]byte, error) {
	rc, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(rc)
	return b, errors.Join(err, rc.Close())
}

// honest checks the one promise: every layer comes back as it was, or not at
// all. It returns those that do not.
func (p Place) honest(t *testing.T, c content) (lost []string) {
	t.Helper()
	cache, done := p.Open(t)
	defer done()
	ctx := timeout(t)
	md, ok, err := cache.Load(ctx)
	if ok && err != nil {
		t.Errorf("load gives both metadata and %v", err)
	}
	ids := slices.Sorted(maps.Keys(c.tars))
	if !ok {
		return ids
	}
	for _, b := range md.Buildpacks {
		for _, l := range b.Layers {
			if !slices.Contains(ids, l.SHA) {
				ids = append(ids, l.SHA)
			}
		}
	}
	for _, id := range ids {
		l, err := cache.Layer(ctx, id)
		if err != nil {
			lost = append(lost, id)
			continue
		}
		got, err := read(l)
		switch {
		case err != nil:
			lost = append(lost, id)
		case imagetest.Sum(got).String() != id:
			t.Errorf("layer %s comes with the bytes of %s, and no error", id, imagetest.Sum(got))
		}
	}
	return lost
}

func nothing(t *testing.T, p Place) {
	cache, done := p.Open(t)
	defer done()
	if _, ok, err := cache.Load(t.Context()); ok || err != nil {
		t.Errorf("a cache that never was: %t %v", ok, err)
	}
	if _, err := cache.Layer(t.Context(), imagetest.Sum(nil).String()); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("a layer of it: %v", err)
	}
}

func roundTrip(t *testing.T, p Place) {
	c := sample(t)
	p.save(t, c)
	p.holds(t, c)
	p.save(t, c)
	p.holds(t, c)
	// What the cache has need not be given again.
	cache, done := p.Open(t)
	defer done()
	if err := cache.Save(t.Context(), c.md, content{}.open); err != nil {
		t.Errorf("saved again without the layers at hand: %v", err)
	}
}

func empty(t *testing.T, p Place) {
	p.save(t, content{})
	p.holds(t, content{})
	c := sample(t)
	p.save(t, c)
	p.holds(t, c)
	p.save(t, content{})
	p.holds(t, content{})
}

// replaced: what a build does not cache any more is gone.
func replaced(t *testing.T, p Place) {
	c := sample(t)
	p.save(t, c)
	less := content{md: spec.CacheMetadata{Buildpacks: c.md.Buildpacks[1:]}, tars: map[string][]byte{}}
	kept := c.md.Buildpacks[1].Layers["modules"].SHA
	less.tars[kept] = c.tars[kept]
	p.save(t, less)
	p.holds(t, less)
	other := sample(t)
	p.save(t, other)
	p.holds(t, other)
}

// notThere: a cache that cannot be made whole is not made.
func notThere(t *testing.T, p Place) {
	c := sample(t)
	p.save(t, c)
	other := sample(t)
	delete(other.tars, other.md.SBOM.SHA)
	cache, done := p.Open(t)
	if err := cache.Save(t.Context(), other.md, other.open); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("save without one layer: %v", err)
	}
	done()
	p.holds(t, c)
}

func lying(t *testing.T, p Place) {
	c := sample(t)
	p.save(t, c)
	other := sample(t)
	cache, done := p.Open(t)
	err := cache.Save(t.Context(), other.md, func(_ context.Context, diffID string) (v1.Layer, error) {
		return imagetest.Broken{Tar: other.tars[diffID], Flip: diffID == other.md.SBOM.SHA}, nil
	})
	if err == nil {
		t.Error("a layer that is not what its diffID says was saved")
	}
	done()
	p.holds(t, c)
}

func cancelled(t *testing.T, p Place) {
	c := sample(t)
	p.save(t, c)
	cache, done := p.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := sample(t)
	if err := cache.Save(ctx, other.md, other.open); err == nil {
		t.Error("a cancelled save succeeded")
	}
	if _, ok, err := cache.Load(ctx); ok || err == nil {
		t.Errorf("a cancelled load: %t %v", ok, err)
	}
	done()
	p.holds(t, c)
}

// twoAtOnce: of builders at the same time each leaves a whole cache, and the
// last one's stands.
func twoAtOnce(t *testing.T, p Place) {
	contents := []content{sample(t), sample(t), sample(t)}
	errs := make(chan error, len(contents))
	for _, c := range contents {
		go func() {
			cache, done := p.Open(t)
			defer done()
			if _, _, err := cache.Load(t.Context()); err != nil {
				errs <- fmt.Errorf("load: %w", err)
				return
			}
			errs <- cache.Save(t.Context(), c.md, c.open)
		}()
	}
	for range contents {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	cache, done := p.Open(t)
	md, ok, err := cache.Load(timeout(t))
	done()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	for _, c := range contents {
		if c.md.SBOM == md.SBOM {
			p.holds(t, c)
			return
		}
	}
	t.Errorf("the cache is nobody's: %+v", md)
}

// retold: metadata that somebody else wrote is as good as its layers.
func retold(t *testing.T, p Place) {
	if p.Retell == nil {
		return
	}
	for name, text := range retellings(t) {
		t.Run(name, func(t *testing.T) {
			c := sample(t)
			p.save(t, c)
			p.Retell(t, text(c))
			p.honest(t, c)
			p.save(t, c)
			p.holds(t, c)
		})
	}
}

func retellings(t *testing.T) map[string]func(content) string {
	changed := func(f func(*spec.CacheMetadata)) func(content) string {
		return func(c content) string {
			md := normal(c.md)
			f(&md)
			text, err := spec.EncodeLabel(md)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
	}
	set := func(md *spec.CacheMetadata, name, sha string) {
		l := md.Buildpacks[0].Layers[name]
		l.SHA = sha
		md.Buildpacks[0].Layers[name] = l
	}
	text := func(s string) func(content) string { return func(content) string { return s } }
	return map[string]func(content) string{
		"empty": text(""), "garbage": text("\x00\xff{"), "not an object": text("[1,2]"), "null": text("null"),
		"unknown keys":  text(`{"sbom":{"sha":""},"buildpacks":[],"more":{"a":[1]}}`),
		"wrong types":   text(`{"sbom":3,"buildpacks":{"a":"b"}}`),
		"deep":          text(string(bytes.Repeat([]byte(`{"buildpacks":[`), 20_000))),
		"unknown layer": changed(func(md *spec.CacheMetadata) { set(md, "jdk", imagetest.Sum([]byte("unknown")).String()) }),
		"no digest":     changed(func(md *spec.CacheMetadata) { set(md, "jdk", "../../../etc/passwd") }),
		"other digest":  changed(func(md *spec.CacheMetadata) { set(md, "jdk", "sha512:"+imagetest.Sum(nil).Hex) }),
		"upper case": changed(func(md *spec.CacheMetadata) {
			set(md, "jdk", string(bytes.ToUpper([]byte(md.SBOM.SHA))))
		}),
		"swapped": changed(func(md *spec.CacheMetadata) {
			a, b := md.Buildpacks[0].Layers["jdk"].SHA, md.Buildpacks[0].Layers["repository"].SHA
			set(md, "jdk", b)
			set(md, "repository", a)
		}),
	}
}
