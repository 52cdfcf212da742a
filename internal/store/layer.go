package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"github.com/kilnbuild/kiln/internal/image"
)

// storedLayer is a layer whose blob is here.
type storedLayer struct {
	ctx       context.Context // of whoever asked for the layer: v1.Layer has no room for one
	store     *Store
	digest    v1.Hash
	diffID    v1.Hash
	size      int64
	mediaType types.MediaType
}

var _ v1.Layer = (*storedLayer)(nil)

func (l *storedLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *storedLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *storedLayer) Size() (int64, error)                { return l.size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.mediaType, nil }

// Compressed reads the blob; the last Read fails if the blob was damaged.
func (l *storedLayer) Compressed() (io.ReadCloser, error) {
	rc, _, err := l.store.openBlob(l.ctx, l.digest.Hex, l.size)
	return rc, err
}

// Uncompressed reads the tar; the last Read fails if it is not diffID's.
func (l *storedLayer) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.Compressed()
	if err != nil || l.digest == l.diffID {
		return rc, err
	}
	plain, err := decompress(rc)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("layer %s: %w", l.digest, err), rc.Close())
	}
	return &checked{ReadCloser: plain, hash: sha256.New(), want: l.diffID.Hex}, nil
}

// checked does not say EOF before the digest is right.
type checked struct {
	io.ReadCloser
	hash hash.Hash
	want string
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(c.hash.Sum(nil)); got != c.want {
			return n, fmt.Errorf("uncompressed bytes have digest sha256:%s, the image says sha256:%s", got, c.want)
		}
	}
	return n, err
}

// maxWindow bounds the memory that a zstd stream may ask for. 128 MiB is what
// the format's own tools accept without being told otherwise.
const maxWindow = 128 << 20

// decompress gives the plain bytes of gzip, zstd, or plain bytes, known by how
// they begin. The result reads rc to its very end, so that whatever checks rc
// gets to see all of it, and closes it.
func decompress(rc io.ReadCloser) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(rc, 64<<10)
	head, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch compressionOf(head) {
	case types.OCILayer:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		return &plain{r: z, rest: in, close: func() error { return errors.Join(z.Close(), rc.Close()) }}, nil
	case types.OCILayerZStd:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return &plain{r: z, rest: in, close: func() error { z.Close(); return rc.Close() }}, nil
	default:
		return &plain{r: in, rest: in, close: rc.Close}, nil
	}
}

// compressionOf tells a blob's kind by its first four bytes.
func compressionOf(head []byte) types.MediaType {
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return types.OCILayer
	case len(head) >= 4 && string(head[:4]) == "\x28\xb5\x2f\xfd":
		return types.OCILayerZStd
	}
	return types.OCIUncompressedLayer
}

type plain struct {
	r     io.Reader
	rest  io.Reader
	close func() error
}

func (p *plain) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if errors.Is(err, io.EOF) {
		if _, rerr := io.Copy(io.Discard, p.rest); rerr != nil {
			return n, rerr
		}
	}
	return n, err
}

func (p *plain) Close() error { return p.close() }

// DiffID is the digest that the blob of that digest has when it is
// uncompressed, if the store has found that out by reading it. It has for
// every layer of every image that was written here.
func (s *Store) DiffID(digest v1.Hash) (v1.Hash, bool) {
	if digest.Algorithm != "sha256" || len(digest.Hex) != 64 || !isHex(digest.Hex) {
		return v1.Hash{}, false
	}
	if v, ok := s.Recall(diffIDMemo, digest.String()); ok {
		h, err := v1.NewHash(string(v))
		return h, err == nil
	}
	f, err := os.Open(s.blobPath(digest.Hex))
	if err != nil {
		return v1.Hash{}, false
	}
	defer f.Close()
	var head [4]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return v1.Hash{}, false
	}
	return digest, compressionOf(head[:n]) == types.OCIUncompressedLayer
}

// Layer returns a layer that is here, by its diffID ("sha256:..."), in whatever
// form its blob has. It fails with image.ErrNotFound.
func (s *Store) Layer(ctx context.Context, diffID string) (v1.Layer, error) {
	l, err := s.shared(ctx)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	defer l.Unlock()
	desc, err := s.findLayer(diffID)
	if err != nil {
		return nil, err
	}
	if err := s.hold(ctx, item{blobKind, desc.Digest.Hex}); err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	h, _ := v1.NewHash(diffID) // findLayer has looked at it
	return s.layer(ctx, desc, h), nil
}

func (s *Store) layer(ctx context.Context, desc v1.Descriptor, diffID v1.Hash) *storedLayer {
	return &storedLayer{ctx: context.WithoutCancel(ctx), store: s, digest: desc.Digest, diffID: diffID, size: desc.Size, mediaType: desc.MediaType}
}

// findLayer looks for a blob with the contents of diffID.
func (s *Store) findLayer(diffID string) (v1.Descriptor, error) {
	hex, err := hexOf(diffID)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("layer: %w", err)
	}
	if fi, err := os.Lstat(s.blobPath(hex)); err == nil && s.hasBlob(hex, -1) {
		return v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: fi.Size(), Digest: v1.Hash{Algorithm: "sha256", Hex: hex}}, nil
	}
	for _, kind := range []string{blobMemo, gzipMemo} {
		if d, ok := s.recallBlob(kind, diffID); ok {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("layer %s in store: %w", diffID, image.ErrNotFound)
}

// recallBlob is the blob that a memo says has diffID's contents, if it is here.
func (s *Store) recallBlob(kind, diffID string) (v1.Descriptor, bool) {
	var d v1.Descriptor
	v, ok := s.Recall(kind, diffID)
	if !ok || json.Unmarshal(v, &d) != nil || d.Digest.Algorithm != "sha256" {
		return d, false
	}
	return d, s.hasBlob(d.Digest.Hex, d.Size)
}

// rememberLayer records what reading a blob showed. Failing to costs time
// later, nothing else, so it is not an error.
func (s *Store) rememberLayer(ctx context.Context, kind string, desc v1.Descriptor, diffID v1.Hash) {
	_ = s.Remember(ctx, diffIDMemo, desc.Digest.String(), []byte(diffID.String()))
	if desc.Digest == diffID {
		return
	}
	b, err := json.Marshal(v1.Descriptor{MediaType: desc.MediaType, Size: desc.Size, Digest: desc.Digest})
	if err == nil {
		_ = s.Remember(ctx, kind, diffID.String(), b)
	}
}

// PutLayer stores a layer: write writes its tar. The blob is uncompressed, so
// its digest is its diffID.
func (s *Store) PutLayer(ctx context.Context, write func(io.Writer) error) (v1.Layer, error) {
	w, err := s.Blob(ctx)
	if err != nil {
		return nil, fmt.Errorf("put layer: %w", err)
	}
	defer w.Close()
	if err := write(w); err != nil {
		return nil, fmt.Errorf("put layer: %w", err)
	}
	digest, n, err := w.Commit("")
	if err != nil {
		return nil, fmt.Errorf("put layer: %w", err)
	}
	h, err := v1.NewHash(digest)
	if err != nil {
		return nil, fmt.Errorf("put layer: %w", err)
	}
	return s.layer(ctx, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: n, Digest: h}, h), nil
}

// Compressed returns a gzip twin of an uncompressed layer, for destinations
// that want one. It is made once and kept for as long as the layer is. A layer
// that is compressed already is returned as it is.
func (s *Store) Compressed(ctx context.Context, l v1.Layer) (v1.Layer, error) {
	digest, err := l.Digest()
	if err != nil {
		return nil, fmt.Errorf("compress layer: %w", err)
	}
	diffID, err := l.DiffID()
	if err != nil {
		return nil, fmt.Errorf("compress layer %s: %w", digest, err)
	}
	if digest != diffID {
		return l, nil
	}
	if _, err := hexOf(diffID.String()); err != nil {
		return nil, fmt.Errorf("compress layer: %w", err)
	}
	work, err := s.workLock(ctx, "gzip", diffID.Hex)
	if err != nil {
		return nil, fmt.Errorf("compress layer %s: %w", diffID, err)
	}
	defer work.Unlock()
	if twin, err := s.twin(ctx, diffID); twin != nil || err != nil {
		return twin, err
	}
	desc, err := s.gzip(ctx, l, diffID)
	if err != nil {
		return nil, fmt.Errorf("compress layer %s: %w", diffID, err)
	}
	s.rememberLayer(ctx, gzipMemo, desc, diffID)
	return s.layer(ctx, desc, diffID), nil
}

// twin is the gzip twin made before, or nil.
func (s *Store) twin(ctx context.Context, diffID v1.Hash) (v1.Layer, error) {
	l, err := s.shared(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Unlock()
	desc, ok := s.recallBlob(gzipMemo, diffID.String())
	if !ok {
		return nil, nil
	}
	if err := s.hold(ctx, item{blobKind, desc.Digest.Hex}); err != nil {
		return nil, err
	}
	return s.layer(ctx, desc, diffID), nil
}

// gzip compresses l. The bytes do not depend on how many cores do it.
func (s *Store) gzip(ctx context.Context, l v1.Layer, diffID v1.Hash) (v1.Descriptor, error) {
	rc, err := l.Uncompressed()
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer rc.Close()
	w, err := s.Blob(ctx)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer w.Close()
	z := pgzip.NewWriter(w)
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(z, h), rc)
	if err = errors.Join(err, z.Close()); err != nil {
		return v1.Descriptor{}, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return v1.Descriptor{}, fmt.Errorf("its bytes have digest sha256:%s", got)
	}
	digest, n, err := w.Commit("")
	if err != nil {
		return v1.Descriptor{}, err
	}
	hash, err := v1.NewHash(digest)
	return v1.Descriptor{MediaType: types.OCILayer, Size: n, Digest: hash}, err
}
