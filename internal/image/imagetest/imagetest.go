// Package imagetest holds the contract of image.Source and image.Target as
// tests. Every place that images are kept in runs the same suite in a few
// lines: the store, the registry, the layouts and the archives.
package imagetest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

// Place is what the suite is run on.
type Place struct {
	Target image.Target
	Source image.Source // nil: a place that only takes images
	// Ref makes a valid reference of a lower-case word; nil leaves it as it is.
	Ref func(word string) string
	// Single is set where writing one name replaces the other: a file with one
	// image, for example.
	Single bool
	// Rewrites is set where the manifest does not come back as it was written
	// (docker-archive); the image ID and the layers do everywhere.
	Rewrites bool
}

// TestTarget runs the suite on a place that keeps many images by name and
// gives every manifest back as it came.
func TestTarget(t *testing.T, target image.Target, source image.Source) {
	Place{Target: target, Source: source}.Test(t)
}

// Test runs the suite.
func (p Place) Test(t *testing.T) {
	if p.Ref == nil {
		p.Ref = func(word string) string { return word }
	}
	for _, shape := range Shapes() {
		t.Run("round trip/"+shape.Name, func(t *testing.T) { p.roundTrip(t, shape.Image(t)) })
	}
	t.Run("write again", p.writeAgain)
	t.Run("replace", p.replace)
	t.Run("failing layer", p.failingLayer)
	t.Run("lying layer", p.lyingLayer)
	t.Run("cancelled", p.cancelled)
	if p.Source == nil {
		return
	}
	t.Run("not found", p.notFound)
	t.Run("from itself", p.fromItself)
	if !p.Single {
		t.Run("many names", p.manyNames)
		t.Run("concurrent", p.concurrent)
	}
}

func (p Place) write(t *testing.T, word string, img v1.Image) {
	t.Helper()
	if err := p.Target.Write(t.Context(), p.Ref(word), img); err != nil {
		t.Fatalf("write %s: %v", p.Ref(word), err)
	}
}

// same reads word back and compares it with want, down to the last byte.
func (p Place) same(t *testing.T, word string, want v1.Image) {
	t.Helper()
	if p.Source == nil {
		return
	}
	got, err := p.Source.Image(t.Context(), p.Ref(word))
	if err != nil {
		t.Fatalf("read %s back: %v", p.Ref(word), err)
	}
	if err := image.Validate(t.Context(), got, nil); err != nil {
		t.Errorf("%s does not validate: %v", p.Ref(word), err)
	}
	equal(t, "config", raw(t, got.RawConfigFile), raw(t, want.RawConfigFile))
	if id, wantID := ID(t, got), ID(t, want); id != wantID {
		t.Errorf("image ID is %s, want %s", id, wantID)
	}
	if !p.Rewrites {
		equal(t, "manifest", raw(t, got.RawManifest), raw(t, want.RawManifest))
	}
	gotLayers, wantLayers := layersOf(t, got), layersOf(t, want)
	if len(gotLayers) != len(wantLayers) {
		t.Fatalf("%d layers came back, want %d", len(gotLayers), len(wantLayers))
	}
	for i := range wantLayers {
		equal(t, "layer", content(t, gotLayers[i]), content(t, wantLayers[i]))
	}
}

func (p Place) roundTrip(t *testing.T, img v1.Image) {
	p.write(t, "round-trip", img)
	p.same(t, "round-trip", img)
}

func (p Place) writeAgain(t *testing.T) {
	img := Random(t, 3)
	p.write(t, "again", img)
	p.write(t, "again", img)
	p.same(t, "again", img)
}

// replace: the last write of a name is what it means, whether it shares layers
// with the one before or not.
func (p Place) replace(t *testing.T) {
	first := Random(t, 2)
	second := Extended(t, first)
	third := Random(t, 1)
	for _, img := range []v1.Image{first, second, third, first} {
		p.write(t, "replace", img)
		p.same(t, "replace", img)
	}
}

// failingLayer: what cannot be read is not written, and what was there stays.
func (p Place) failingLayer(t *testing.T) {
	before := Random(t, 2)
	p.write(t, "failing", before)
	bad := With(t, before, Broken{Tar: Tar(t, 64<<10), Fail: errBroken, After: 1000})
	err := p.Target.Write(t.Context(), p.Ref("failing"), bad)
	if !errors.Is(err, errBroken) {
		t.Errorf("writing an image whose layer cannot be read gives %v, want the layer's own error in it", err)
	}
	p.same(t, "failing", before)
}

// lyingLayer: bytes that do not have the digest that was said are refused.
func (p Place) lyingLayer(t *testing.T) {
	before := Random(t, 2)
	p.write(t, "lying", before)
	body := Tar(t, 32<<10)
	for name, l := range map[string]v1.Layer{
		"flipped": Broken{Tar: body, Flip: true},
		"short":   Broken{Tar: body, After: len(body) / 2},
		"long":    Broken{Tar: body, Extra: []byte("more")},
	} {
		if err := p.Target.Write(t.Context(), p.Ref("lying"), With(t, before, l)); err == nil {
			t.Errorf("an image with a %s layer was written", name)
		}
	}
	p.same(t, "lying", before)
}

func (p Place) cancelled(t *testing.T) {
	ctx, cancel := withCancel(t)
	cancel()
	if err := p.Target.Write(ctx, p.Ref("cancelled"), Random(t, 1)); err == nil {
		t.Error("a cancelled write succeeded")
	}
	if p.Source == nil || p.Single {
		return
	}
	if _, err := p.Source.Image(t.Context(), p.Ref("cancelled")); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("after a cancelled write reading gives %v, want ErrNotFound", err)
	}
}

func (p Place) notFound(t *testing.T) {
	_, err := p.Source.Image(t.Context(), p.Ref("nobody-wrote-this"))
	if !errors.Is(err, image.ErrNotFound) {
		t.Errorf("reading what is not there gives %v, want ErrNotFound", err)
	}
}

// fromItself: an image read from a place, and one derived from it, can be
// written to that very place.
func (p Place) fromItself(t *testing.T) {
	img := Random(t, 2)
	p.write(t, "itself", img)
	got, err := p.Source.Image(t.Context(), p.Ref("itself"))
	if err != nil {
		t.Fatal(err)
	}
	derived := Extended(t, got)
	p.write(t, "itself", derived)
	p.same(t, "itself", Extended(t, img))
}

func (p Place) manyNames(t *testing.T) {
	a, b := Random(t, 2), Random(t, 2)
	p.write(t, "name-a", a)
	p.write(t, "name-b", b)
	p.write(t, "name-c", a)
	p.same(t, "name-a", a)
	p.same(t, "name-b", b)
	p.same(t, "name-c", a)
}

func raw(t *testing.T, f func() ([]byte, error)) []byte {
	t.Helper()
	b, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func layersOf(t *testing.T, img v1.Image) []v1.Layer {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

func content(t *testing.T, l v1.Layer) []byte {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	const show = 600 // bytes: enough of a config to see what differs
	t.Errorf("%s differs:\n got %.*q\nwant %.*q", what, show, got, show, want)
}

// ID is img's image ID.
func ID(t *testing.T, img v1.Image) string {
	t.Helper()
	id, err := image.ID(img)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
