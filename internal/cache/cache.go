// Package cache keeps what an app's builds leave for the next one, in the two
// forms that lifecycles share (requirements 5.8), so that a cache which one
// lifecycle wrote is another's: Volume, a directory, and Image, an image in a
// registry.
//
// Promised: what comes out of a cache is what was put in, byte for byte, or it
// does not come out: each layer is hashed while it is read, whoever wrote it.
// A cache changes as a whole or stays as it was, also when the process is
// killed or the power fails. Nothing in a cache is followed, waited for or read
// without bound, for buildpacks may have had their hands on it.
//
// Not promised: that a cache is there. Whatever is wrong with one makes it, or
// the layer that is concerned, a miss that says why.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

const (
	// maxMetadata bounds the metadata of a cache, in bytes: what buildpacks may
	// write into all their documents together fits many times.
	maxMetadata = 16 << 20
	// maxLayer bounds one layer, in bytes. It is what layer.Apply takes.
	maxLayer = 64 << 30
)

// Open opens a layer by its diffID, or fails with image.ErrNotFound. Save takes
// from there what a cache does not have yet.
type Open = func(ctx context.Context, diffID string) (v1.Layer, error)

// diffIDs lists the layers that md speaks of, each once, in its order.
func diffIDs(md spec.CacheMetadata) []string {
	var ids []string
	add := func(id string) {
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, b := range md.Buildpacks {
		names := make([]string, 0, len(b.Layers))
		for name := range b.Layers {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			add(b.Layers[name].SHA)
		}
	}
	add(md.SBOM.SHA)
	return ids
}

// decode reads metadata that anybody may have written.
func decode(text []byte) (spec.CacheMetadata, error) {
	md, err := spec.DecodeCacheMetadata(string(text))
	if err != nil {
		return spec.CacheMetadata{}, err
	}
	for _, b := range md.Buildpacks {
		for name, l := range b.Layers {
			if _, err := hashOf(l.SHA); err != nil {
				return spec.CacheMetadata{}, fmt.Errorf("layer %s:%s: %w", b.Key, name, err)
			}
		}
	}
	if md.SBOM.SHA != "" {
		_, err = hashOf(md.SBOM.SHA)
	}
	return md, err
}

// encode writes metadata, if it can be read again.
func encode(md spec.CacheMetadata) (string, error) {
	text, err := spec.EncodeLabel(md)
	if err == nil && len(text) > maxMetadata {
		err = fmt.Errorf("its metadata has %d bytes, more than %d", len(text), maxMetadata)
	}
	return text, err
}

// hashOf reads a diffID in the only spelling that names of files and labels have.
func hashOf(diffID string) (v1.Hash, error) {
	h, err := v1.NewHash(diffID)
	if err != nil || h.Algorithm != "sha256" || h.String() != diffID {
		return v1.Hash{}, fmt.Errorf("%.100q is not a diffID", diffID)
	}
	return h, nil
}

// verified ends in an error where EOF would be, unless what was read has the
// digest want. It ends for more than maxLayer bytes, too.
type verified struct {
	io.ReadCloser
	want v1.Hash
	sum  hash.Hash
	n    int64
	done func(good bool) // told once, unless it is nil
}

func verify(rc io.ReadCloser, want v1.Hash, done func(good bool)) *verified {
	return &verified{ReadCloser: rc, want: want, sum: sha256.New(), done: done}
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.sum.Write(p[:n])
	if v.n += int64(n); v.n > maxLayer {
		return n, v.end(false, fmt.Errorf("cached layer %s has more than %d bytes", v.want, int64(maxLayer)))
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, v.end(false, err)
	}
	if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want.Hex {
		return n, v.end(false, fmt.Errorf("cached layer %s is damaged: its bytes have digest sha256:%s: %w", v.want, got, image.ErrInvalid))
	}
	return n, v.end(true, io.EOF)
}

func (v *verified) end(good bool, err error) error {
	if v.done != nil {
		v.done(good)
		v.done = nil
	}
	return err
}

func warn(sink event.Sink, format string, args ...any) {
	sink.Emit(event.Message{Level: event.Warn, Text: fmt.Sprintf(format, args...)})
}
