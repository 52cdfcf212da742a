package store_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/layer/layertest"
	"github.com/kilnbuild/kiln/internal/store"
)

// blob is a layer with bytes as they come from somewhere.
type blob struct {
	raw  []byte
	tar  []byte
	kind types.MediaType
}

func (b blob) Digest() (v1.Hash, error) { return imagetest.Sum(b.raw), nil }
func (b blob) DiffID() (v1.Hash, error) { return imagetest.Sum(b.tar), nil }
func (b blob) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.raw)), nil
}
func (b blob) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.tar)), nil
}
func (b blob) Size() (int64, error)                { return int64(len(b.raw)), nil }
func (b blob) MediaType() (types.MediaType, error) { return b.kind, nil }

// wrappings are what a tar can come in, and what may be wrong with that. What it
// is unpacked to, if it is, has tar's bytes.
func wrappings(tar []byte) map[string]blob {
	half := len(tar) / 2
	gz, zst := layertest.Gzip(tar), layertest.Zstd(tar)
	return map[string]blob{
		"plain":                          {tar, tar, types.OCIUncompressedLayer},
		"gzip":                           {gz, tar, types.OCILayer},
		"gzip of several members":        {append(layertest.Gzip(tar[:half]), layertest.Gzip(tar[half:])...), tar, types.OCILayer},
		"zstd":                           {zst, tar, types.OCILayerZStd},
		"zstd of several frames":         {append(layertest.Zstd(tar[:half]), layertest.Zstd(tar[half:])...), tar, types.OCILayerZStd},
		"zstd with a frame to skip":      {append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), zst...), tar, types.OCILayerZStd},
		"gzip that is called zstd":       {gz, tar, types.OCILayerZStd},
		"gzip with garbage after it":     {append(append([]byte(nil), gz...), "garbage"...), tar, types.OCILayer},
		"gzip cut off":                   {gz[:len(gz)-5], tar, types.OCILayer},
		"zstd cut off":                   {zst[:len(zst)-5], tar, types.OCILayerZStd},
		"zstd with a window of a GB":     {layertest.ZstdWindow(tar, 30), tar, types.OCILayerZStd},
		"gzip of gzip":                   {layertest.Gzip(gz), tar, types.OCILayer},
		"gzip of another tar":            {layertest.Gzip(append([]byte("x"), tar...)), tar, types.OCILayer},
		"plain with a tar in its diffID": {append([]byte("x"), tar...), tar, types.OCIUncompressedLayer},
	}
}

// broken are the wrappings that no layer comes out of.
var broken = map[string]bool{
	"gzip with garbage after it": true, "gzip cut off": true, "zstd cut off": true, "zstd with a window of a GB": true,
	"gzip of gzip": true, "gzip of another tar": true, "plain with a tar in its diffID": true, "zstd with a frame to skip": true,
}

// TestHostileLayers: an image may have any bytes for layers, in any wrapping. A
// tree is made of one, whole and inside of the store, or there is none.
func TestHostileLayers(t *testing.T) {
	s := fresh(t)
	t.Cleanup(func() { // some trees have directories that deny access
		if err := layer.Remove(filepath.Join(s.Dir(), "trees")); err != nil {
			t.Error(err)
		}
	})
	c := layertest.NewCanary(t)
	ways := []string{"plain", "gzip", "zstd", "gzip of several members", "zstd of several frames"}
	for i, way := range ways { // each archive is in one of them
		var archives []layertest.Archive
		var blobs []v1.Layer
		for n, a := range layertest.Archives() {
			if n%len(ways) == i && (a.Want != layertest.Contained || n%4 == 0) { // to sync a tree takes its time
				archives, blobs = append(archives, a), append(blobs, wrappings(a.Tar(c.Outside))[way])
			}
		}
		for n, l := range written(t, s, blobs...) {
			a := archives[n]
			tree, err := s.Tree(t.Context(), l)
			if want := a.Want == layertest.Contained || a.Want == layertest.Skipped; (err == nil) != want {
				t.Errorf("%s, %s: %v, and it is %s", a.Name, way, err, a.Want)
			}
			made := s.HasTree(diffID(t, l))
			if made != (err == nil) || made && filepath.Dir(filepath.Dir(filepath.Dir(tree))) != s.Dir() {
				t.Errorf("%s, %s: there is a tree: %t, at %s", a.Name, way, made, tree)
			}
		}
	}
	c.Check(t)
	assertEmpty(t, filepath.Join(s.Dir(), "trash"))
}

// TestWrappings: whatever a layer comes in, the tree is made of the bytes that
// its diffID stands for, or there is none.
func TestWrappings(t *testing.T) {
	tar := imagetest.Tar(t, 3000)
	for name, b := range wrappings(tar) {
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			layers, err := stored(t, s, b)
			if err == nil {
				_, err = s.Tree(t.Context(), layers[0])
			}
			if (err != nil) != broken[name] {
				t.Errorf("%v", err)
			}
			if err != nil && s.HasTree(imagetest.Sum(tar).String()) {
				t.Error("there is a tree")
			}
			if entries, err := os.ReadDir(filepath.Join(s.Dir(), "tmp")); err == nil && len(entries) > 1 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

// written writes an image with the layers to the store and returns them as they
// are there.
func written(t *testing.T, s *store.Store, layers ...v1.Layer) []v1.Layer {
	t.Helper()
	layers, err := stored(t, s, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

func stored(t *testing.T, s *store.Store, layers ...v1.Layer) ([]v1.Layer, error) {
	t.Helper()
	if err := s.Write(t.Context(), "app:1", imagetest.With(t, empty.Image, layers...)); err != nil {
		return nil, err
	}
	img, err := s.Image(t.Context(), "app:1")
	if err != nil {
		return nil, err
	}
	return img.Layers()
}
