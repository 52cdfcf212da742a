package store

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// parallelLayers is how many layers are fetched at once. Registries limit a
// client at about this many, and two cores are busy hashing them.
const parallelLayers = 4

// Write stores img under ref (name[:tag] or name@digest), in this order:
// layers, config, manifest, and the ref last. Blobs that are here already are
// not read. Every layer's digest, size and diffID is verified on the way in.
func (s *Store) Write(ctx context.Context, ref string, img v1.Image) error {
	if err := s.write(ctx, ref, img); err != nil {
		return fmt.Errorf("write image %s to store: %w", ref, err)
	}
	return nil
}

func (s *Store) write(ctx context.Context, ref string, img v1.Image) error {
	refName, err := Name(ref)
	if err != nil {
		return err
	}
	if _, err := hexOf(ref); err == nil {
		return errors.New("an image ID is not a name to write to")
	}
	in, err := readIncoming(img)
	if err != nil {
		return err
	}
	if _, digest, ok := strings.Cut(refName, "@"); ok && digest != in.digest {
		return fmt.Errorf("the image has digest %s", in.digest)
	}
	if err := s.writeLayers(ctx, in); err != nil {
		return err
	}
	if err := s.putBytes(ctx, in.rawConfig); err != nil {
		return err
	}
	if err := s.putBytes(ctx, in.rawManifest); err != nil {
		return err
	}
	if err := s.syncBlobs(); err != nil {
		return err
	}
	mediaType, err := in.MediaType()
	if err != nil {
		return err
	}
	return s.setRef(ctx, Ref{
		Name:           refName,
		ManifestDigest: in.digest,
		ManifestSize:   int64(len(in.rawManifest)),
		MediaType:      mediaType,
		ImageID:        in.manifest.Config.Digest.String(),
		Size:           in.size(),
		Created:        in.config.Created.UTC(),
		Updated:        time.Now().UTC().Truncate(time.Second),
	})
}

// incoming is an image to be written: its documents, and layers not yet read.
type incoming struct {
	*stored
	digest string
}

// readIncoming takes img's documents and checks that they agree.
func readIncoming(img v1.Image) (*incoming, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("manifest: %d bytes are more than the %d allowed", len(raw), maxManifest)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	rawConfig, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(rawConfig) > maxConfig {
		return nil, fmt.Errorf("config: %d bytes are more than the %d allowed", len(rawConfig), maxConfig)
	}
	if got := digestOf(rawConfig); got != m.Config.Digest.String() || int64(len(rawConfig)) != m.Config.Size {
		return nil, fmt.Errorf("config is %s (%d bytes), manifest says %s (%d bytes)", got, len(rawConfig), m.Config.Digest, m.Config.Size)
	}
	cf, err := v1.ParseConfigFile(bytes.NewReader(rawConfig))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	if len(layers) != len(m.Layers) || len(layers) != len(cf.RootFS.DiffIDs) {
		return nil, fmt.Errorf("manifest has %d layers, config %d, and there are %d", len(m.Layers), len(cf.RootFS.DiffIDs), len(layers))
	}
	for i, d := range m.Layers {
		_, err := hexOf(d.Digest.String())
		if _, err2 := hexOf(cf.RootFS.DiffIDs[i].String()); err != nil || err2 != nil || d.Size < 0 {
			return nil, fmt.Errorf("layer %d of %d bytes: %w", i+1, d.Size, errors.Join(err, err2))
		}
	}
	return &incoming{stored: &stored{raw, rawConfig, m, cf, layers}, digest: digestOf(raw)}, nil
}

func (in *incoming) size() int64 {
	n := int64(len(in.rawManifest) + len(in.rawConfig))
	for _, d := range in.manifest.Layers {
		n += d.Size
	}
	return n
}

// writeLayers brings in the layers that are not here.
func (s *Store) writeLayers(ctx context.Context, in *incoming) error {
	var missing []int
	var need int64
	planned := map[v1.Hash]v1.Hash{} // digest -> diffID
	for i, d := range in.manifest.Layers {
		diffID := in.config.RootFS.DiffIDs[i]
		if other, ok := planned[d.Digest]; ok {
			if other != diffID {
				return fmt.Errorf("layer %d, %s, cannot be both diffID %s and %s", i+1, d.Digest, other, diffID)
			}
			continue
		}
		planned[d.Digest] = diffID
		here, err := s.claim(ctx, d, diffID)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		if !here {
			missing = append(missing, i)
			need += d.Size
		}
	}
	if err := s.room(need); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers)
	for _, i := range missing {
		group.Go(func() error {
			if err := s.copyLayer(ctx, in.layers[i], in.manifest.Layers[i], in.config.RootFS.DiffIDs[i]); err != nil {
				return fmt.Errorf("layer %d: %w", i+1, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// claim holds a blob that is here and known to have diffID.
func (s *Store) claim(ctx context.Context, d v1.Descriptor, diffID v1.Hash) (bool, error) {
	here, err := s.holdBlob(ctx, d)
	if err != nil || !here {
		return false, err
	}
	known, ok := s.DiffID(d.Digest)
	if ok && known == diffID && known != d.Digest {
		_, ok = s.recallBlob(blobMemo, diffID.String())
	}
	if !ok {
		if known, err = s.findDiffID(ctx, d); errors.Is(err, ErrDamaged) {
			return false, nil // it is out of the way now: take a good one
		}
		if err != nil {
			return false, err
		}
	}
	if known != diffID {
		return false, fmt.Errorf("%s unpacks to diffID %s, the config says %s", d.Digest, known, diffID)
	}
	if !ok {
		s.rememberLayer(ctx, blobMemo, d, diffID)
	}
	return true, nil
}

func (s *Store) holdBlob(ctx context.Context, d v1.Descriptor) (bool, error) {
	l, err := s.shared(ctx)
	if err != nil {
		return false, err
	}
	defer l.Unlock()
	if !s.hasBlob(d.Digest.Hex, d.Size) {
		return false, nil
	}
	return true, s.hold(ctx, item{blobKind, d.Digest.Hex})
}

// findDiffID unpacks a blob that is here to see what is in it.
func (s *Store) findDiffID(ctx context.Context, d v1.Descriptor) (v1.Hash, error) {
	rc, _, err := s.openBlob(ctx, d.Digest.Hex, d.Size)
	if err != nil {
		return v1.Hash{}, err
	}
	defer rc.Close()
	plain, err := decompress(rc)
	if err != nil {
		return v1.Hash{}, err
	}
	defer plain.Close()
	h, _, err := v1.SHA256(plain)
	return h, err
}

// copyLayer brings in one blob, hashing it as it is and uncompressed in one
// reading.
func (s *Store) copyLayer(ctx context.Context, l v1.Layer, d v1.Descriptor, diffID v1.Hash) error {
	rc, err := l.Compressed()
	if err != nil {
		return fmt.Errorf("open %s: %w", d.Digest, err)
	}
	defer rc.Close()
	in := bufio.NewReaderSize(rc, 64<<10)
	head, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", d.Digest, err)
	}
	var inside *hasher // of what is in a compressed blob
	if compressionOf(head) != types.OCIUncompressedLayer {
		inside = newHasher()
	}
	w, err := s.Blob(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	w.need = d.Size
	got, err := copyAndHash(w, inside, io.LimitReader(in, d.Size+1)) // one byte too many is enough to know
	switch {
	case err != nil && w.err != nil:
		return err
	case err != nil:
		return fmt.Errorf("read %s: %w", d.Digest, err)
	case w.size != d.Size:
		return fmt.Errorf("%s has %s bytes, the manifest says %d", d.Digest, atLeast(w.size, d.Size), d.Size)
	}
	// The digest first: it tells damage on the way from a wrong image.
	if sum := hex.EncodeToString(w.hash.Sum(nil)); sum != d.Digest.Hex {
		return fmt.Errorf("its bytes have digest sha256:%s, the manifest says %s", sum, d.Digest)
	}
	if inside == nil {
		got = d.Digest
	} else if inside.err != nil {
		return fmt.Errorf("unpack %s: %w", d.Digest, inside.err)
	}
	if got != diffID {
		return fmt.Errorf("%s unpacks to diffID %s, the config says %s", d.Digest, got, diffID)
	}
	if _, _, err := w.commit(d.Digest.String(), false); err != nil {
		return err
	}
	s.rememberLayer(ctx, blobMemo, d, diffID)
	return nil
}

// copyAndHash copies r to w, and past inside if there is one, in one reading.
func copyAndHash(w *BlobWriter, inside *hasher, r io.Reader) (v1.Hash, error) {
	if inside == nil {
		_, err := io.Copy(w, r)
		w.flush()
		return v1.Hash{}, cmp.Or(err, w.err)
	}
	_, err := io.Copy(io.MultiWriter(w, inside), r)
	sum := inside.finish(err)
	w.flush()
	return sum, cmp.Or(err, w.err)
}

func atLeast(n, limit int64) string {
	if n > limit {
		return fmt.Sprintf("more than %d", limit)
	}
	return fmt.Sprint(n)
}

// hasher takes a blob and hashes what is in it when it is uncompressed.
type hasher struct {
	pipe *io.PipeWriter
	done chan struct{}
	sum  v1.Hash
	err  error // why the blob cannot be uncompressed; read it after finish
}

func newHasher() *hasher {
	r, w := io.Pipe()
	h := &hasher{pipe: w, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.sum, h.err = hashInside(r)
		_, _ = io.Copy(io.Discard, r) // the blob goes on even if it makes no sense
	}()
	return h
}

func hashInside(r io.ReadCloser) (v1.Hash, error) {
	plain, err := decompress(r)
	if err != nil {
		return v1.Hash{}, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, plain); err != nil {
		return v1.Hash{}, err
	}
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, nil
}

func (h *hasher) Write(p []byte) (int, error) { return h.pipe.Write(p) }

// finish ends the bytes, with the error that ended them or nil.
func (h *hasher) finish(err error) v1.Hash {
	_ = h.pipe.CloseWithError(err) // nil means EOF
	<-h.done
	return h.sum
}
