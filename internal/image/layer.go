package image

import (
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// NewLayer makes a layer of an uncompressed tar whose diffID and size (bytes)
// are known already, so its digest is its diffID. Nothing is read until the
// layer is; open is called once for each reading. The bytes are taken on trust
// here: every Target hashes what it writes.
func NewLayer(open func() (io.ReadCloser, error), diffID v1.Hash, size int64) v1.Layer {
	return &tarLayer{open: open, diffID: diffID, size: size}
}

type tarLayer struct {
	open   func() (io.ReadCloser, error)
	diffID v1.Hash
	size   int64
}

var _ v1.Layer = (*tarLayer)(nil)

func (l *tarLayer) Digest() (v1.Hash, error)             { return l.diffID, nil }
func (l *tarLayer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *tarLayer) Compressed() (io.ReadCloser, error)   { return l.open() }
func (l *tarLayer) Uncompressed() (io.ReadCloser, error) { return l.open() }
func (l *tarLayer) Size() (int64, error)                 { return l.size, nil }
func (l *tarLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// ID is img's image ID: the digest of its config, "sha256:" and 64 hex digits.
// It is the same in every place that img is written to.
func ID(img v1.Image) (string, error) {
	h, err := img.ConfigName()
	if err != nil {
		return "", fmt.Errorf("image ID: %w", err)
	}
	return h.String(), nil
}
