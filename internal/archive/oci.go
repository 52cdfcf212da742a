package archive

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
	"io/fs"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	oci "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

// Bounds of what is read into memory, in bytes. Manifests are small by the
// distribution spec; nobody has seen a config of a tenth of that.
const (
	maxManifest = 4 << 20
	maxConfig   = 16 << 20
)

// layoutFile is the content of oci-layout.
const layoutFile = `{"imageLayoutVersion":"` + oci.ImageLayoutVersion + `"}`

// opener opens a file of a layout by its slash-separated name, and tells its size.
type opener func(name string) (io.ReadCloser, int64, error)

// readFile reads a small file whole.
func (open opener) readFile(name string, most int64) ([]byte, error) {
	rc, _, err := open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, most)
	}
	return b, nil
}

// errNoBlob says that an image's blob is not where its manifest is.
var errNoBlob = errors.New("the blob is missing")

// blob opens one that is checked while it is read.
func (open opener) blob(desc v1.Descriptor) (io.ReadCloser, error) {
	rc, _, err := open(blobName(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w: %w", desc.Digest, errNoBlob, err)
	}
	if err != nil {
		return nil, err
	}
	return checked(rc, desc), nil
}

func (open opener) document(desc v1.Descriptor, most int64) ([]byte, error) {
	if desc.Size > most {
		return nil, fmt.Errorf("blob %s is larger than %d bytes", desc.Digest, most)
	}
	rc, err := open.blob(desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// openLayout finds ref in a layout and opens it.
func openLayout(open opener, ref string) (v1.Image, error) {
	raw, err := open.readFile(oci.ImageIndexFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", image.ErrNotFound, oci.ImageIndexFile)
	} else if err != nil {
		return nil, err
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", oci.ImageIndexFile, err)
	}
	desc, err := find(index, ref)
	if err != nil {
		return nil, err
	}
	// An index in an index, as multi-platform builders write it.
	chosen := desc.MediaType.IsIndex()
	for range 3 {
		if !desc.MediaType.IsIndex() {
			break
		}
		raw, err := open.document(desc, maxManifest)
		if err != nil {
			return nil, err
		}
		inner, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("parse index %s: %w", desc.Digest, err)
		}
		if desc, err = choose(inner); err != nil {
			return nil, err
		}
	}
	img, err := openImage(open, desc)
	if err != nil {
		return nil, err
	}
	img.chosen = chosen
	return img, nil
}

// find looks for ref among the names of an index: a name, a digest, or "" for
// the only image there is.
func find(index *v1.IndexManifest, ref string) (v1.Descriptor, error) {
	var names []string
	for _, d := range index.Manifests {
		name := d.Annotations[oci.AnnotationRefName]
		if ref != "" && (name == ref || d.Digest.String() == strings.TrimPrefix(ref, "@")) {
			return d, nil
		}
		names = append(names, fmt.Sprintf("%q", name))
	}
	switch {
	case len(names) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w: there is no image in it", image.ErrNotFound)
	case ref == "" && len(names) == 1:
		return index.Manifests[0], nil
	case ref == "":
		return v1.Descriptor{}, fmt.Errorf("%w: name one of the images in it: %s", image.ErrNotFound, strings.Join(names, ", "))
	}
	return v1.Descriptor{}, fmt.Errorf("%w: it has %s", image.ErrNotFound, strings.Join(names, ", "))
}

// choose takes the image for this machine.
func choose(index *v1.IndexManifest) (v1.Descriptor, error) {
	for _, d := range index.Manifests {
		if d.Platform == nil && len(index.Manifests) == 1 || d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("%w: no image for linux/%s in it", image.ErrNotFound, runtime.GOARCH)
}

// openImage reads manifest and config; layers stay where they are.
func openImage(open opener, desc v1.Descriptor) (*fileImage, error) {
	raw, err := open.document(desc, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse manifest %s: %w", desc.Digest, err)
	}
	mt := desc.MediaType
	if m.MediaType != "" {
		mt = m.MediaType
	}
	if !mt.IsImage() || !m.Config.MediaType.IsConfig() {
		return nil, fmt.Errorf("manifest %s is not that of a container image: its type is %q, its config's %q", desc.Digest, mt, m.Config.MediaType)
	}
	config, err := open.document(m.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	cf, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, fmt.Errorf("parse config %s: %w", m.Config.Digest, err)
	}
	if len(cf.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: manifest %s has %d layers, its config %d diffIDs", image.ErrInvalid, desc.Digest, len(m.Layers), len(cf.RootFS.DiffIDs))
	}
	v := &fileImage{mediaType: mt, manifest: raw, config: config, parsed: m}
	for i, d := range m.Layers {
		v.layers = append(v.layers, &fileLayer{desc: d, diffID: cf.RootFS.DiffIDs[i], open: func() (io.ReadCloser, error) { return open.blob(d) }})
	}
	return v, nil
}

// fileImage is an image whose manifest and config are in memory and whose
// layers are in files.
type fileImage struct {
	mediaType types.MediaType
	manifest  []byte
	config    []byte
	parsed    *v1.Manifest
	layers    []v1.Layer
	chosen    bool // from an index
}

var _ v1.Image = (*fileImage)(nil)

// FromIndex implements image.Chosen.
func (v *fileImage) FromIndex() bool { return v.chosen }

func (v *fileImage) Layers() ([]v1.Layer, error)         { return slices.Clone(v.layers), nil }
func (v *fileImage) MediaType() (types.MediaType, error) { return v.mediaType, nil }
func (v *fileImage) Size() (int64, error)                { return int64(len(v.manifest)), nil }
func (v *fileImage) ConfigName() (v1.Hash, error)        { return v.parsed.Config.Digest, nil }
func (v *fileImage) ConfigFile() (*v1.ConfigFile, error) { return partial.ConfigFile(v) }
func (v *fileImage) RawConfigFile() ([]byte, error)      { return bytes.Clone(v.config), nil }
func (v *fileImage) Digest() (v1.Hash, error)            { return hashOf(v.manifest), nil }
func (v *fileImage) Manifest() (*v1.Manifest, error)     { return v.parsed.DeepCopy(), nil }
func (v *fileImage) RawManifest() ([]byte, error)        { return bytes.Clone(v.manifest), nil }

func (v *fileImage) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if h == v.parsed.Config.Digest { // as every v1.Image does
		return partial.ConfigLayer(v)
	}
	return v.find(h, v1.Layer.Digest)
}

func (v *fileImage) LayerByDiffID(h v1.Hash) (v1.Layer, error) { return v.find(h, v1.Layer.DiffID) }

func (v *fileImage) find(h v1.Hash, by func(v1.Layer) (v1.Hash, error)) (v1.Layer, error) {
	for _, l := range v.layers {
		if got, err := by(l); err == nil && got == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", h, image.ErrNotFound)
}

// fileLayer is a layer in a file; reading it checks it.
type fileLayer struct {
	desc   v1.Descriptor
	diffID v1.Hash
	open   func() (io.ReadCloser, error)
}

func (l *fileLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *fileLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)  { return l.open() }

func (l *fileLayer) Uncompressed() (io.ReadCloser, error) {
	plain, err := partial.CompressedToLayer(l)
	if err != nil {
		return nil, err
	}
	return plain.Uncompressed()
}

// checkedReader ends in an error where size or digest are not those of desc.
type checkedReader struct {
	io.ReadCloser
	desc v1.Descriptor
	sum  hash.Hash
	n    int64
}

func checked(rc io.ReadCloser, desc v1.Descriptor) *checkedReader {
	return &checkedReader{ReadCloser: rc, desc: desc, sum: sha256.New()}
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	switch {
	case c.n > c.desc.Size:
		return 0, fmt.Errorf("blob %s: %w: more than its %d bytes", c.desc.Digest, image.ErrInvalid, c.desc.Size)
	case err != io.EOF:
		return n, err
	case c.n < c.desc.Size:
		return n, fmt.Errorf("blob %s: %w: %d bytes of %d", c.desc.Digest, image.ErrInvalid, c.n, c.desc.Size)
	}
	if got := hex.EncodeToString(c.sum.Sum(nil)); got != c.desc.Digest.Hex || c.desc.Digest.Algorithm != "sha256" {
		return n, fmt.Errorf("blob %s: %w: its bytes have sha256:%s", c.desc.Digest, image.ErrInvalid, got)
	}
	return n, io.EOF
}

// item is one blob of an image to write.
type item struct {
	desc v1.Descriptor
	open func() (io.ReadCloser, error)
}

func bytesItem(desc v1.Descriptor, b []byte) item {
	return item{desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// copyTo streams the blob, checking it.
func (it item) copyTo(ctx context.Context, w io.Writer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rc, err := it.open()
	if err != nil {
		return fmt.Errorf("open %s: %w", it.desc.Digest, err)
	}
	defer rc.Close()
	if _, err := io.Copy(w, &ctxReader{ctx, checked(rc, it.desc)}); err != nil {
		return fmt.Errorf("copy %s: %w", it.desc.Digest, err)
	}
	return nil
}

// every says that all layers of an image are meant.
const every = -1

// items takes img apart: its manifest, its config, and each of its topmost
// layers once.
func items(img v1.Image, top int) (manifest v1.Descriptor, blobs []item, err error) {
	raw, err := img.RawManifest()
	if err != nil {
		return manifest, nil, fmt.Errorf("read manifest: %w", err)
	}
	mt, err := img.MediaType()
	if err != nil {
		return manifest, nil, fmt.Errorf("read manifest: %w", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return manifest, nil, fmt.Errorf("parse manifest: %w", err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return manifest, nil, fmt.Errorf("read config: %w", err)
	}
	manifest = v1.Descriptor{MediaType: mt, Size: int64(len(raw)), Digest: hashOf(raw)}
	blobs = []item{bytesItem(manifest, raw), bytesItem(m.Config, config)}
	seen := map[v1.Hash]bool{m.Config.Digest: true}
	for i, d := range m.Layers {
		if top != every && i < len(m.Layers)-top {
			continue
		}
		if seen[d.Digest] || !d.MediaType.IsDistributable() {
			continue
		}
		seen[d.Digest] = true
		l, err := img.LayerByDigest(d.Digest)
		if err != nil {
			return manifest, nil, fmt.Errorf("open layer %s: %w", d.Digest, err)
		}
		blobs = append(blobs, item{d, l.Compressed})
	}
	return manifest, blobs, nil
}

// indexWith is the index raw (nil: none) with manifest under ref, in place of
// what had that name.
func indexWith(raw []byte, manifest v1.Descriptor, ref string) ([]byte, error) {
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	if raw != nil {
		var err error
		if index, err = v1.ParseIndexManifest(bytes.NewReader(raw)); err != nil {
			return nil, fmt.Errorf("parse %s: %w", oci.ImageIndexFile, err)
		}
	}
	if ref != "" {
		manifest.Annotations = map[string]string{oci.AnnotationRefName: ref}
	}
	at := slices.IndexFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Annotations[oci.AnnotationRefName] == ref })
	if at >= 0 {
		index.Manifests[at] = manifest
	} else {
		index.Manifests = append(index.Manifests, manifest)
	}
	return json.Marshal(index)
}

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
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
