package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// ErrInvalid says that an image contradicts itself: its manifest, config and
// blobs do not describe the same thing.
var ErrInvalid = errors.New("invalid image")

// Known says which uncompressed digest (diffID) the blob of that digest is
// already known to have, because somebody in this build read it, or because
// the place the blob was taken from vouches for it. A nil Known knows nothing.
type Known func(digest v1.Hash) (diffID v1.Hash, ok bool)

// KnownFrom knows the layers of the given images by what their own manifests
// and configs say. It reads no layer. Give it images whose layers were
// verified before, such as the base that a new image was derived from.
func KnownFrom(images ...v1.Image) (Known, error) {
	pairs := map[v1.Hash]v1.Hash{}
	for _, img := range images {
		m, err := img.Manifest()
		if err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		c, err := img.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("read config: %w", err)
		}
		if len(m.Layers) != len(c.RootFS.DiffIDs) {
			return nil, fmt.Errorf("%w: manifest has %d layers, config has %d diffIDs", ErrInvalid, len(m.Layers), len(c.RootFS.DiffIDs))
		}
		for i, d := range m.Layers {
			if old, ok := pairs[d.Digest]; ok && old != c.RootFS.DiffIDs[i] {
				return nil, fmt.Errorf("%w: layer %s stands for two diffIDs, %s and %s", ErrInvalid, d.Digest, old, c.RootFS.DiffIDs[i])
			}
			pairs[d.Digest] = c.RootFS.DiffIDs[i]
		}
	}
	return func(digest v1.Hash) (v1.Hash, bool) {
		d, ok := pairs[digest]
		return d, ok
	}, nil
}

// Validate re-reads img from wherever it is and checks that it is whole: the
// manifest parses and its media types agree, the config has the digest and
// size that the manifest says, every layer has the size and digest of its
// descriptor and unpacks to the diffID that stands at its place in the config,
// no two layers with different diffIDs share a blob, and the history names as
// many layers as there are.
//
// The blob of a layer that known vouches for is not read; that its descriptor
// stands for the right diffID is checked all the same, so the mistake of a
// descriptor in the wrong place is found without reading a byte of it. That
// such a blob is there at all is for the Target that wrote it to make sure.
//
// It returns nil or one error that wraps ErrInvalid and lists everything that
// is wrong; what could not be read is returned as the place reported it.
func Validate(ctx context.Context, img v1.Image, known Known) error {
	m, c, err := validateDocuments(img)
	if err != nil {
		return err
	}
	if err := validateLayerList(m, c); err != nil {
		return err
	}
	problems := make([]error, len(m.Layers))
	group, ctx := errgroup.WithContext(ctx)
	// Hashing and decompressing are bound by the processor.
	group.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	seen := map[v1.Hash]bool{}
	for i, desc := range m.Layers {
		want := c.RootFS.DiffIDs[i]
		if known != nil {
			if diffID, ok := known(desc.Digest); ok {
				if diffID != want {
					problems[i] = invalid("layer %d (%s): holds diffID %s, config says %s", i+1, desc.Digest, diffID, want)
				}
				continue
			}
		}
		if seen[desc.Digest] || !desc.MediaType.IsDistributable() {
			continue // read once; foreign layers are not in the image's place
		}
		seen[desc.Digest] = true
		group.Go(func() error {
			problems[i] = validateLayer(ctx, img, i, desc, want)
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("validate image: %w", err)
	}
	return errors.Join(problems...)
}

// invalid makes an error that wraps ErrInvalid.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// validateDocuments checks manifest and config by their bytes.
func validateDocuments(img v1.Image) (*v1.Manifest, *v1.ConfigFile, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest: %w", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, invalid("parse manifest: %v", err)
	}
	if digest, err := img.Digest(); err != nil {
		return nil, nil, fmt.Errorf("read manifest: %w", err)
	} else if got := hashOf(raw); digest != got {
		return nil, nil, invalid("manifest: is said to have digest %s, its bytes have %s", digest, got)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, nil, fmt.Errorf("read config %s: %w", m.Config.Digest, err)
	}
	if got := hashOf(config); got != m.Config.Digest {
		return nil, nil, invalid("config: manifest says digest %s, its bytes have %s", m.Config.Digest, got)
	}
	if n := int64(len(config)); n != m.Config.Size {
		return nil, nil, invalid("config %s: manifest says %d bytes, it has %d", m.Config.Digest, m.Config.Size, n)
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, nil, invalid("parse config %s: %v", m.Config.Digest, err)
	}
	return m, c, validateMediaTypes(img, m)
}

// validateMediaTypes checks that the manifest is of one family, Docker's or OCI's.
func validateMediaTypes(img v1.Image, m *v1.Manifest) error {
	mt, err := img.MediaType()
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if m.SchemaVersion != 2 {
		return invalid("manifest: schema version is %d, not 2", m.SchemaVersion)
	}
	if !mt.IsImage() {
		return invalid("manifest: media type %q is not an image", mt)
	}
	if m.MediaType != "" && m.MediaType != mt {
		return invalid("manifest: served as %q, calls itself %q", mt, m.MediaType)
	}
	if !m.Config.MediaType.IsConfig() || isDocker(m.Config.MediaType) != isDocker(mt) {
		return invalid("config: media type %q in a manifest of type %q", m.Config.MediaType, mt)
	}
	for i, l := range m.Layers {
		if !l.MediaType.IsLayer() || isDocker(l.MediaType) != isDocker(mt) {
			return invalid("layer %d (%s): media type %q in a manifest of type %q", i+1, l.Digest, l.MediaType, mt)
		}
	}
	return nil
}

// validateLayerList checks what can be known of the layers without reading them.
func validateLayerList(m *v1.Manifest, c *v1.ConfigFile) error {
	diffIDs := c.RootFS.DiffIDs
	if len(m.Layers) != len(diffIDs) {
		return invalid("manifest has %d layers, config has %d diffIDs", len(m.Layers), len(diffIDs))
	}
	if c.RootFS.Type != "layers" {
		return invalid("config: rootfs.type is %q, not \"layers\"", c.RootFS.Type)
	}
	if len(c.History) > 0 {
		n := 0
		for _, h := range c.History {
			if !h.EmptyLayer {
				n++
			}
		}
		if n != len(diffIDs) {
			return invalid("config: history has %d layers, rootfs has %d", n, len(diffIDs))
		}
	}
	first := map[v1.Hash]int{}
	for i, l := range m.Layers {
		j, ok := first[l.Digest]
		if !ok {
			first[l.Digest] = i
			continue
		}
		if diffIDs[i] != diffIDs[j] {
			return invalid("layers %d and %d: same digest %s, different diffIDs %s and %s", j+1, i+1, l.Digest, diffIDs[j], diffIDs[i])
		}
		if l.Size != m.Layers[j].Size {
			return invalid("layers %d and %d: same digest %s, different sizes %d and %d", j+1, i+1, l.Digest, m.Layers[j].Size, l.Size)
		}
	}
	return nil
}

// validateLayer reads one layer once: its bytes give size and digest, what
// they unpack to gives the diffID.
func validateLayer(ctx context.Context, img v1.Image, i int, desc v1.Descriptor, diffID v1.Hash) error {
	l, err := img.LayerByDigest(desc.Digest)
	if err != nil {
		return fmt.Errorf("open layer %d (%s): %w", i+1, desc.Digest, err)
	}
	rc, err := l.Compressed()
	if err != nil {
		return fmt.Errorf("open layer %d (%s): %w", i+1, desc.Digest, err)
	}
	defer rc.Close()
	sum := sha256.New()
	// One byte more than promised is enough to know that it is too long.
	blob := &countingReader{r: io.TeeReader(io.LimitReader(&ctxReader{ctx, rc}, desc.Size+1), sum)}
	got, unpackErr := unpackedDigest(blob, desc.MediaType)
	if blob.err == nil {
		_, _ = io.Copy(io.Discard, blob) // what the decompressor left; blob keeps the error
	}
	if blob.err != nil {
		return fmt.Errorf("read layer %d (%s): %w", i+1, desc.Digest, blob.err)
	}
	if blob.n != desc.Size {
		return invalid("layer %d (%s): manifest says %d bytes, it has %s", i+1, desc.Digest, desc.Size, atLeast(blob.n, desc.Size))
	}
	if h := (v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}); h != desc.Digest {
		return invalid("layer %d (%s): its bytes have digest %s", i+1, desc.Digest, h)
	}
	if unpackErr != nil {
		return invalid("layer %d (%s): decompress: %v", i+1, desc.Digest, unpackErr)
	}
	if got != diffID {
		return invalid("layer %d (%s): unpacks to diffID %s, config says %s", i+1, desc.Digest, got, diffID)
	}
	return nil
}

func atLeast(n, limit int64) string {
	if n > limit {
		return "more"
	}
	return fmt.Sprint(n)
}

// unpackedDigest hashes what a blob of that media type decompresses to.
func unpackedDigest(r io.Reader, mt types.MediaType) (v1.Hash, error) {
	plain := r
	switch {
	case strings.HasSuffix(string(mt), "gzip"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return v1.Hash{}, err
		}
		defer z.Close()
		plain = z
	case strings.HasSuffix(string(mt), "zstd"):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxZstdMemory))
		if err != nil {
			return v1.Hash{}, err
		}
		defer z.Close()
		plain = z
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, plain); err != nil {
		return v1.Hash{}, err
	}
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, nil
}

// maxZstdMemory bounds the window that a layer from outside may ask for, in
// bytes: zstd --ultra -22 needs 128 MiB.
const maxZstdMemory = 256 << 20

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// countingReader counts what was read and keeps the first error of the source,
// which a decompressor may hide behind its own.
type countingReader struct {
	r   io.Reader
	n   int64
	err error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF && c.err == nil {
		c.err = err
	}
	return n, err
}

// ctxReader ends reading when ctx does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
