package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Image opens ref, choosing the Registry's platform if ref is an index. The
// manifest and config are read now, so the image is pinned even if the tag
// moves; layers are read, and checked against their digests, when asked for,
// as long as ctx lives. A layer whose bytes turn out wrong ends with
// ErrCorrupt in place of io.EOF.
func (r *Registry) Image(ctx context.Context, ref string) (v1.Image, error) {
	_, img, err := r.Resolve(ctx, ref)
	return img, err
}

// ImageFor is Image for another platform than the Registry's.
func (r *Registry) ImageFor(ctx context.Context, ref string, platform v1.Platform) (v1.Image, error) {
	_, img, err := r.resolve(ctx, ref, platform)
	return img, err
}

// Resolve pins ref: it returns the name and digest of the image for the
// Registry's platform, as name@sha256:..., with that image.
func (r *Registry) Resolve(ctx context.Context, ref string) (pinned string, img v1.Image, err error) {
	return r.resolve(ctx, ref, r.platform)
}

func (r *Registry) resolve(ctx context.Context, ref string, platform v1.Platform) (pinned string, img v1.Image, err error) {
	parsed, err := r.parse(ref)
	if err != nil {
		return "", nil, err
	}
	c := r.client(ref, parsed.Context(), transport.PullScope)
	i, err := c.open(ctx, ref, parsed.Identifier(), platform)
	if err != nil {
		return "", nil, c.fail(reading, ref, err)
	}
	return parsed.Context().Name() + "@" + i.m.digest.String(), i, nil
}

// Digest returns the digest of what ref points at, an image or an index,
// without reading it where the registry tells.
func (r *Registry) Digest(ctx context.Context, ref string) (v1.Hash, error) {
	parsed, err := r.parse(ref)
	if err != nil {
		return v1.Hash{}, err
	}
	c := r.client(ref, parsed.Context(), transport.PullScope)
	h, err := c.head(ctx, parsed.Identifier())
	return h, c.fail(reading, ref, err)
}

// CheckRead says whether ref is there and may be read.
func (r *Registry) CheckRead(ctx context.Context, ref string) error {
	_, err := r.Digest(ctx, ref)
	return err
}

// head asks for the digest of a manifest, and reads it if that is not told.
func (c *client) head(ctx context.Context, id string) (v1.Hash, error) {
	resp, err := c.do(ctx, http.MethodHead, "manifests/"+id, func(r *http.Request) {
		r.Header.Set("Accept", accepted)
	}, http.StatusOK)
	if te, ok := errors.AsType[*transport.Error](err); ok && te.StatusCode != http.StatusMethodNotAllowed {
		return v1.Hash{}, err
	} else if err != nil && !ok {
		return v1.Hash{}, err
	}
	if err == nil {
		resp.Body.Close()
		if h, err := v1.NewHash(resp.Header.Get("Docker-Content-Digest")); err == nil {
			return h, nil
		}
	}
	m, err := c.manifest(ctx, id)
	return m.digest, err
}

// open reads the manifest of id, goes through an index, and reads the config.
func (c *client) open(ctx context.Context, ref, id string, platform v1.Platform) (*remoteImage, error) {
	m, err := c.manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	chosen := m.mediaType.IsIndex()
	if chosen {
		desc, err := choose(m, platform)
		if err != nil {
			return nil, err
		}
		if m, err = c.manifest(ctx, desc.Digest.String()); err != nil {
			return nil, err
		}
	}
	if m.mediaType.IsSchema1() {
		return nil, spec.WithHint(errors.New("its manifest is of the old schema 1"), "push it again with a tool of this decade")
	}
	if !m.mediaType.IsImage() {
		return nil, fmt.Errorf("not a container image: its media type is %q", printable(string(m.mediaType)))
	}
	parsed, err := v1.ParseManifest(bytes.NewReader(m.raw))
	if err != nil {
		return nil, fmt.Errorf("parse manifest %s: %w", m.digest, err)
	}
	if !parsed.Config.MediaType.IsConfig() {
		return nil, fmt.Errorf("not a container image: its config has media type %q", printable(string(parsed.Config.MediaType)))
	}
	i := &remoteImage{ctx: ctx, c: c, ref: ref, m: m, parsed: parsed, chosen: chosen}
	err = c.again(ctx, func() error { return i.readConfig(ctx) })
	return i, err
}

// choose finds the image for want in an index.
func choose(m manifest, want v1.Platform) (v1.Descriptor, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(m.raw))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("parse index %s: %w", m.digest, err)
	}
	var have []string
	for _, d := range index.Manifests {
		p := d.Platform
		if p == nil || !d.MediaType.IsImage() {
			continue
		}
		if p.OS == want.OS && p.Architecture == want.Architecture && (want.Variant == "" || p.Variant == want.Variant) {
			return d, nil
		}
		if s := p.String(); p.OS != "unknown" && !slices.Contains(have, s) {
			have = append(have, s)
		}
	}
	if len(have) == 0 {
		have = []string{"none"}
	}
	return v1.Descriptor{}, fmt.Errorf("%w: no image for %s in it, only for %s", image.ErrNotFound, want, printable(strings.Join(have, ", ")))
}

// remoteImage is an image in a registry: manifest and config in memory, layers there.
type remoteImage struct {
	ctx    context.Context
	c      *client
	ref    string
	m      manifest
	parsed *v1.Manifest
	config []byte
	chosen bool // from an index
}

var _ v1.Image = (*remoteImage)(nil)

// FromIndex implements image.Chosen.
func (i *remoteImage) FromIndex() bool { return i.chosen }

func (i *remoteImage) readConfig(ctx context.Context) error {
	desc := i.parsed.Config
	if desc.Size > maxConfig {
		return fmt.Errorf("config %s is larger than %d bytes", desc.Digest, maxConfig)
	}
	rc := i.c.blob(ctx, desc, nil)
	defer rc.Close()
	b, err := io.ReadAll(rc)
	i.config = b
	return err
}

func (i *remoteImage) MediaType() (types.MediaType, error) { return i.m.mediaType, nil }
func (i *remoteImage) RawManifest() ([]byte, error)        { return bytes.Clone(i.m.raw), nil }
func (i *remoteImage) RawConfigFile() ([]byte, error)      { return bytes.Clone(i.config), nil }
func (i *remoteImage) Digest() (v1.Hash, error)            { return i.m.digest, nil }
func (i *remoteImage) ConfigName() (v1.Hash, error)        { return i.parsed.Config.Digest, nil }
func (i *remoteImage) Manifest() (*v1.Manifest, error)     { return i.parsed.DeepCopy(), nil }
func (i *remoteImage) ConfigFile() (*v1.ConfigFile, error) { return partial.ConfigFile(i) }
func (i *remoteImage) Size() (int64, error)                { return int64(len(i.m.raw)), nil }

func (i *remoteImage) Layers() ([]v1.Layer, error) {
	cfg, err := i.ConfigFile()
	if err != nil {
		return nil, i.c.fail(reading, i.ref, fmt.Errorf("parse config: %w", err))
	}
	if len(cfg.RootFS.DiffIDs) != len(i.parsed.Layers) {
		return nil, fmt.Errorf("%s %s: %w: manifest has %d layers, config has %d diffIDs", reading, i.ref, image.ErrInvalid, len(i.parsed.Layers), len(cfg.RootFS.DiffIDs))
	}
	layers := make([]v1.Layer, len(i.parsed.Layers))
	for n, d := range i.parsed.Layers {
		layers[n] = &layer{i, d, cfg.RootFS.DiffIDs[n]}
	}
	return layers, nil
}

func (i *remoteImage) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	return i.find(func(l *layer) bool { return l.desc.Digest == h }, h)
}

func (i *remoteImage) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	return i.find(func(l *layer) bool { return l.diffID == h }, h)
}

func (i *remoteImage) find(is func(*layer) bool, h v1.Hash) (v1.Layer, error) {
	if h == i.parsed.Config.Digest { // as every v1.Image does
		return partial.ConfigLayer(i)
	}
	layers, err := i.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if is(l.(*layer)) {
			return l, nil
		}
	}
	return nil, fmt.Errorf("%s has no layer %s", i.ref, h)
}

// layer is one of a remoteImage. A push to the same registry recognises it and
// has the registry link the blob instead of sending it.
type layer struct {
	img    *remoteImage
	desc   v1.Descriptor
	diffID v1.Hash
}

func (l *layer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// Descriptor keeps annotations and the like when the layer moves to another manifest.
func (l *layer) Descriptor() (*v1.Descriptor, error) { return l.desc.DeepCopy(), nil }

func (l *layer) Compressed() (io.ReadCloser, error) {
	short := l.desc.Digest.Hex[:12]
	p := newTransfer(l.img.c.registry.events, "pull "+l.desc.Digest.String(), "pulling layer "+short+" of "+l.img.ref, l.desc.Size)
	rc := l.img.c.blob(l.img.ctx, l.desc, p)
	rc.ref = l.img.ref
	return rc, nil
}

func (l *layer) Uncompressed() (io.ReadCloser, error) {
	plain, err := partial.CompressedToLayer(l)
	if err != nil {
		return nil, err
	}
	return plain.Uncompressed()
}

// blob opens a blob that is read from the start, goes on where it was when the
// connection breaks, and ends in an error unless size and digest are right.
func (c *client) blob(ctx context.Context, desc v1.Descriptor, p *transfer) *blobReader {
	return &blobReader{ctx: ctx, c: c, desc: desc, sum: sha256.New(), tries: c.registry.retry.start(), progress: p}
}

// stallTimeout is how long a download may stand still before it is begun anew.
const stallTimeout = time.Minute

// endTimeout is how long the end of a body that is complete is waited for.
const endTimeout = 5 * time.Second

// enoughProgress is how many bytes make up for a failure: a line that breaks
// now and then is used to the end, one that brings nothing is not.
const enoughProgress = 1 << 20

type blobReader struct {
	ctx      context.Context
	c        *client
	desc     v1.Descriptor
	ref      string // names the image in errors; "" if the caller does
	sum      hash.Hash
	off      int64
	body     io.ReadCloser
	attempt  context.Context // of the current connection
	cancel   context.CancelCauseFunc
	tries    *tries
	since    int64 // offset at the last failure
	whole    bool  // the registry does not know ranges
	progress *transfer
	err      error
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	if err != nil {
		b.err = err
		if b.ref != "" && err != io.EOF {
			b.err = b.c.fail(reading, b.ref, fmt.Errorf("layer %s: %w", b.desc.Digest, err))
		}
	}
	return n, b.err
}

func (b *blobReader) read(p []byte) (int, error) {
	for {
		if b.off == b.desc.Size {
			return 0, b.finish()
		}
		n, err := b.fill(p)
		if n > 0 {
			return n, nil // a failure shows up again with the next read
		}
		if err == nil {
			continue
		}
		b.drop()
		if b.ctx.Err() != nil {
			return 0, context.Cause(b.ctx)
		}
		if !errors.Is(err, errCutShort) && !errors.Is(err, errStalled) {
			return 0, err
		}
		if b.off-b.since >= enoughProgress {
			b.tries = b.c.registry.retry.start()
		}
		b.since = b.off
		if !b.tries.wait(b.ctx, 0, b.c.notify(err)) {
			return 0, err
		}
	}
}

// fill reads from the connection, opening one at the current offset if need be.
func (b *blobReader) fill(p []byte) (int, error) {
	if b.body == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	if left := b.desc.Size - b.off; int64(len(p)) > left {
		p = p[:left]
	}
	stalled := time.AfterFunc(stallTimeout, func() { b.cancel(errStalled) })
	n, err := b.body.Read(p)
	stalled.Stop()
	b.sum.Write(p[:n])
	b.off += int64(n)
	b.progress.add(int64(n))
	if err == io.EOF && b.off < b.desc.Size {
		err = io.ErrUnexpectedEOF
	}
	if n > 0 || err == nil || err == io.EOF {
		return n, nil
	}
	if context.Cause(b.attempt) == errStalled {
		return 0, errStalled
	}
	return 0, cutShort(err)
}

// open asks for the blob from the current offset on.
func (b *blobReader) open() error {
	ctx, cancel := context.WithCancelCause(b.ctx)
	want := []int{http.StatusOK}
	resp, err := b.c.do(ctx, http.MethodGet, "blobs/"+b.desc.Digest.String(), func(r *http.Request) {
		if b.off > 0 && !b.whole {
			// The end is named since some servers do not know the open form.
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.desc.Size-1))
			want = append(want, http.StatusPartialContent)
		}
	}, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		cancel(nil)
		if te, ok := errors.AsType[*transport.Error](err); ok && te.StatusCode == http.StatusRequestedRangeNotSatisfiable && !b.whole {
			b.whole = true
			return b.open()
		}
		return err
	}
	if !slices.Contains(want, resp.StatusCode) {
		cancel(nil)
		resp.Body.Close()
		return fmt.Errorf("blob %s: a part came, the whole was asked for", b.desc.Digest)
	}
	b.body, b.attempt, b.cancel = resp.Body, ctx, cancel
	if b.off > 0 && resp.StatusCode == http.StatusPartialContent {
		var from int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err == nil && from == b.off {
			return nil
		}
		return fmt.Errorf("blob %s: asked to go on at byte %d, got %q", b.desc.Digest, b.off, printable(resp.Header.Get("Content-Range")))
	}
	// It does not know ranges: pass over what is here already.
	if _, err := io.CopyN(io.Discard, b.body, b.off); err != nil {
		return cutShort(fmt.Errorf("pass over %d bytes: %w", b.off, io.ErrUnexpectedEOF))
	}
	return nil
}

// finish checks that nothing follows and that the digest is right.
func (b *blobReader) finish() error {
	if b.body != nil {
		late := time.AfterFunc(endTimeout, func() { b.cancel(errStalled) })
		defer late.Stop()
		var one [1]byte
		if n, _ := b.body.Read(one[:]); n > 0 {
			return fmt.Errorf("blob %s: %w: more than %d bytes", b.desc.Digest, ErrCorrupt, b.desc.Size)
		}
	}
	b.progress.end()
	b.drop()
	if got := hex.EncodeToString(b.sum.Sum(nil)); got != b.desc.Digest.Hex || b.desc.Digest.Algorithm != "sha256" {
		return fmt.Errorf("blob %s: %w: got sha256:%s", b.desc.Digest, ErrCorrupt, got)
	}
	return io.EOF
}

func (b *blobReader) drop() {
	if b.body != nil {
		b.body.Close()
		b.cancel(nil)
		b.body = nil
	}
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	b.drop()
	b.progress.end()
	if b.err == nil {
		b.err = errors.New("read after close")
	}
	return nil
}

// notify tells of a wait.
func (c *client) notify(err error) func(time.Duration, int, int) {
	return func(d time.Duration, n, of int) {
		c.registry.events.Emit(event.Message{Level: event.Warn, Text: waiting(c.repo.RegistryStr(), c.hide(cause(err)), d, n, of)})
	}
}

// mediaTypeOf trusts the header, unless it is missing or says nothing.
func mediaTypeOf(header string, raw []byte) types.MediaType {
	mt, _, err := mime.ParseMediaType(header)
	if err == nil && mt != "" && mt != "application/json" && mt != "application/octet-stream" && !strings.HasPrefix(mt, "text/") {
		return types.MediaType(mt)
	}
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(raw, &doc) != nil {
		return types.MediaType(mt)
	}
	switch {
	case doc.MediaType != "":
		return doc.MediaType
	case doc.SchemaVersion == 1:
		return types.DockerManifestSchema1
	case doc.Manifests != nil:
		return types.OCIImageIndex
	}
	return types.OCIManifestSchema1
}

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// sameRegistry says whether a blob of from can be mounted into to.
func sameRegistry(from, to name.Repository) bool {
	return from.RegistryStr() == to.RegistryStr() && from.RepositoryStr() != to.RepositoryStr()
}
