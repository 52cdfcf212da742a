package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// doctored is an image as a place with a fault would hand it out.
type doctored struct {
	v1.Image
	manifest, config []byte
	byDigest         func(v1.Hash) (v1.Layer, error)
}

func (d doctored) RawManifest() ([]byte, error)   { return d.manifest, nil }
func (d doctored) RawConfigFile() ([]byte, error) { return d.config, nil }
func (d doctored) Manifest() (*v1.Manifest, error) {
	return v1.ParseManifest(bytes.NewReader(d.manifest))
}
func (d doctored) ConfigFile() (*v1.ConfigFile, error) {
	return v1.ParseConfigFile(bytes.NewReader(d.config))
}
func (d doctored) Digest() (v1.Hash, error) { return imagetest.Sum(d.manifest), nil }
func (d doctored) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if d.byDigest != nil {
		return d.byDigest(h)
	}
	return d.Image.LayerByDigest(h)
}

// doctor changes manifest and config, and keeps the manifest's word on the
// config right unless it was changed too.
func doctor(t *testing.T, img v1.Image, change func(*v1.Manifest, *v1.ConfigFile)) doctored {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	before := m.Config
	change(m, c)
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if m.Config.Digest == before.Digest && m.Config.Size == before.Size {
		m.Config.Digest, m.Config.Size = imagetest.Sum(config), int64(len(config))
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return doctored{Image: img, manifest: manifest, config: config}
}

func three(t *testing.T) v1.Image {
	return imagetest.With(t, imagetest.Random(t, 1), imagetest.Gzip(t, imagetest.Tar(t, 1000)), imagetest.Gzip(t, imagetest.Tar(t, 1000)))
}

func TestValidateTakesWhatIsWhole(t *testing.T) {
	shapes := append(imagetest.Shapes(), append(imagetest.DockerShapes(), imagetest.Shape{Name: "zstd", Image: imagetest.Zstd})...)
	for _, s := range shapes {
		if err := image.Validate(t.Context(), s.Image(t), nil); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	if err := image.Validate(t.Context(), doctor(t, three(t), func(_ *v1.Manifest, c *v1.ConfigFile) { c.History = nil }), nil); err != nil {
		t.Errorf("no history: %v", err)
	}
}

func TestValidateRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*v1.Manifest, *v1.ConfigFile)
		want   string
	}{
		// reliability.md 0.1: the first descriptors were those of another layer.
		"repeated descriptor":  {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0] = m.Layers[2] }, "layers 1 and 3: same digest"},
		"layer size":           {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1].Size++ }, "layer 2"},
		"layer size small":     {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1].Size-- }, "layer 2"},
		"layers swapped":       {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1], m.Layers[2] = m.Layers[2], m.Layers[1] }, "unpacks to diffID"},
		"wrong diffID":         {func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs[2] = c.RootFS.DiffIDs[0] }, "layer 3"},
		"diffIDs too few":      {func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:2] }, "3 layers, config has 2"},
		"history too long":     {func(_ *v1.Manifest, c *v1.ConfigFile) { c.History = append(c.History, v1.History{}) }, "history"},
		"history too short":    {func(_ *v1.Manifest, c *v1.ConfigFile) { c.History = c.History[:1] }, "history"},
		"config size":          {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Config.Size++ }, "config"},
		"config digest":        {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Config.Digest = m.Layers[0].Digest }, "config"},
		"gzip called plain":    {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1].MediaType = types.OCIUncompressedLayer }, "unpacks to diffID"},
		"plain called gzip":    {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].MediaType = types.OCILayer }, "decompress"},
		"docker layer in OCI":  {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1].MediaType = types.DockerLayer }, "media type"},
		"docker config in OCI": {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Config.MediaType = types.DockerConfigJSON }, "media type"},
		"calls itself docker":  {func(m *v1.Manifest, _ *v1.ConfigFile) { m.MediaType = types.DockerManifestSchema2 }, "calls itself"},
		"not a layer":          {func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1].MediaType = "application/json" }, "media type"},
		"rootfs type":          {func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.Type = "" }, "rootfs.type"},
		"schema 1":             {func(m *v1.Manifest, _ *v1.ConfigFile) { m.SchemaVersion = 1 }, "schema version"},
	} {
		err := image.Validate(t.Context(), doctor(t, three(t), tc.change), nil)
		if !errors.Is(err, image.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want ErrInvalid with %q", name, err, tc.want)
		}
	}
}

// TestValidateReadsBytes: what descriptors say is true, what is there is not.
func TestValidateReadsBytes(t *testing.T) {
	body := imagetest.Tar(t, 5000)
	for name, l := range map[string]imagetest.Broken{
		"flipped": {Tar: body, Flip: true},
		"short":   {Tar: body, After: 100},
		"long":    {Tar: body, Extra: []byte("more")},
	} {
		if err := image.Validate(t.Context(), imagetest.With(t, imagetest.Random(t, 1), l), nil); !errors.Is(err, image.ErrInvalid) || !strings.Contains(err.Error(), "layer 2") {
			t.Errorf("%s: got %v, want ErrInvalid that names layer 2", name, err)
		}
	}
	broken := errors.New("disk on fire")
	err := image.Validate(t.Context(), imagetest.With(t, imagetest.Random(t, 1), imagetest.Broken{Tar: body, After: 100, Fail: broken}), nil)
	if !errors.Is(err, broken) || errors.Is(err, image.ErrInvalid) {
		t.Errorf("a layer that cannot be read gives %v, want the place's own error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := image.Validate(ctx, three(t), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// TestValidateKnown: a known layer is not read, and a descriptor in the wrong
// place is found all the same.
func TestValidateKnown(t *testing.T) {
	base := three(t)
	known, err := image.KnownFrom(base)
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	app := doctor(t, base, func(*v1.Manifest, *v1.ConfigFile) {})
	app.byDigest = func(v1.Hash) (v1.Layer, error) { read++; return nil, errors.New("must not be read") }
	if err := image.Validate(t.Context(), app, known); err != nil || read != 0 {
		t.Errorf("a known image: %v, %d layers read", err, read)
	}
	swapped := doctor(t, base, func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[1], m.Layers[2] = m.Layers[2], m.Layers[1] })
	swapped.byDigest = app.byDigest
	if err := image.Validate(t.Context(), swapped, known); !errors.Is(err, image.ErrInvalid) || read != 0 {
		t.Errorf("swapped known layers: %v, %d layers read", err, read)
	}
	if _, err := image.KnownFrom(doctor(t, base, func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0] = m.Layers[2] })); !errors.Is(err, image.ErrInvalid) {
		t.Errorf("a base with a repeated descriptor is believed: %v", err)
	}
}

// FuzzValidate: no layer makes it panic, and what it accepts has the digest that was said.
func FuzzValidate(f *testing.F) {
	f.Add([]byte("plain"), uint8(0))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3}, uint8(1))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 4, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		mt := []types.MediaType{types.OCIUncompressedLayer, types.OCILayer, types.OCILayerZStd}[kind%3]
		l := image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, imagetest.Sum(b), int64(len(b)))
		img := doctor(t, imagetest.With(t, imagetest.Random(t, 0), l), func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].MediaType = mt })
		err := image.Validate(t.Context(), img, nil)
		if mt == types.OCIUncompressedLayer && err != nil {
			t.Errorf("plain bytes are refused: %v", err)
		}
		// Of the three only zstd takes no bytes at all for a stream of none.
		if mt != types.OCIUncompressedLayer && err == nil && len(b) > 0 {
			t.Error("compressed bytes that unpack to themselves")
		}
	})
}
