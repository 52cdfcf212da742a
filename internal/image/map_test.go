package image_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
)

// plain is a layer in its uncompressed form.
func plain(l v1.Layer) (v1.Layer, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return nil, err
	}
	r, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }, diffID, int64(len(body))), nil
}

func TestMapLayersKeepsTheID(t *testing.T) {
	img, err := random.Image(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := image.MapLayers(img, plain)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := image.ID(img)
	if got, err := image.ID(mapped); err != nil || got != want {
		t.Errorf("ID %s, want %s (%v)", got, want, err)
	}
	m, err := mapped.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		// random.Image makes images of Docker's types, and the family is kept.
		if l.MediaType != types.DockerUncompressedLayer {
			t.Errorf("layer is %s", l.MediaType)
		}
	}
	if err := image.Validate(t.Context(), mapped, nil); err != nil {
		t.Error(err)
	}
	if before, _ := img.Digest(); m == nil || before.String() == "" {
		t.Error("the original lost its digest")
	}
}

func TestMapLayersRefusesAnotherLayer(t *testing.T) {
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	other, err := random.Layer(1000, types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.MapLayers(img, func(v1.Layer) (v1.Layer, error) { return other, nil }); !errors.Is(err, image.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
