package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

var (
	_ image.Source = (*Store)(nil)
	_ image.Target = (*Store)(nil)
)

// Limits of the documents of an image. Registries refuse manifests above 4 MiB;
// configs carry labels, and ours carry a lot.
const (
	maxManifest = 4 << 20
	maxConfig   = 32 << 20
)

// Image opens an image by name[:tag], name@digest, image ID, or at least six
// digits of an image ID. Its manifest and config are verified now, its layers
// while they are read. GC leaves the image alone until the Store is closed.
func (s *Store) Image(ctx context.Context, ref string) (v1.Image, error) {
	l, err := s.shared(ctx)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", ref, err)
	}
	defer l.Unlock()
	refs, err := s.find(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	img, err := s.load(ctx, refs[0])
	if err == nil {
		err = s.hold(ctx, img.items()...)
	}
	if err != nil {
		return nil, spec.WithHint(fmt.Errorf("open image %s: %w", ref, err), "`kiln store check` says what else is wrong")
	}
	return img, nil
}

// load reads the documents of a ref and sees whether all its layers are there.
func (s *Store) load(ctx context.Context, r Ref) (*stored, error) {
	raw, err := s.readBlob(ctx, r.ManifestDigest, maxManifest)
	if err != nil {
		return nil, broken("manifest", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", r.ManifestDigest, err)
	}
	if m.Config.Digest.String() != r.ImageID {
		return nil, fmt.Errorf("manifest %s is of image %s, not %s: %w", r.ManifestDigest, m.Config.Digest, r.ImageID, ErrDamaged)
	}
	rawConfig, err := s.readBlob(ctx, r.ImageID, maxConfig)
	if err != nil {
		return nil, broken("config", err)
	}
	return s.newStored(ctx, raw, m, rawConfig)
}

// broken turns "not found" into damage: what a ref needs has to be there.
func broken(what string, err error) error {
	if errors.Is(err, image.ErrNotFound) {
		return fmt.Errorf("%s: %w: %v", what, ErrDamaged, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (s *Store) newStored(ctx context.Context, raw []byte, m *v1.Manifest, rawConfig []byte) (*stored, error) {
	cf, err := v1.ParseConfigFile(bytes.NewReader(rawConfig))
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	if len(cf.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest has %d layers, config has %d: %w", len(m.Layers), len(cf.RootFS.DiffIDs), ErrDamaged)
	}
	img := &stored{rawManifest: raw, rawConfig: rawConfig, manifest: m, config: cf}
	for i, d := range m.Layers {
		if _, err := hexOf(d.Digest.String()); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if !s.hasBlob(d.Digest.Hex, d.Size) {
			return nil, fmt.Errorf("layer %d, %s, is not in the store: %w", i+1, d.Digest, ErrDamaged)
		}
		img.layers = append(img.layers, s.layer(ctx, d, cf.RootFS.DiffIDs[i]))
	}
	return img, nil
}

// stored is an image that is here.
type stored struct {
	rawManifest, rawConfig []byte
	manifest               *v1.Manifest
	config                 *v1.ConfigFile
	layers                 []v1.Layer
}

var _ v1.Image = (*stored)(nil)

// items is what GC must leave for the image to stay whole.
func (i *stored) items() []item {
	digest := digestOf(i.rawManifest)
	items := []item{{blobKind, digest[len("sha256:"):]}, {blobKind, i.manifest.Config.Digest.Hex}}
	for _, d := range i.manifest.Layers {
		items = append(items, item{blobKind, d.Digest.Hex})
	}
	return items
}

func (i *stored) Layers() ([]v1.Layer, error) { return append([]v1.Layer(nil), i.layers...), nil }
func (i *stored) MediaType() (types.MediaType, error) {
	if i.manifest.MediaType == "" {
		return types.OCIManifestSchema1, nil
	}
	return i.manifest.MediaType, nil
}
func (i *stored) Size() (int64, error)                { return int64(len(i.rawManifest)), nil }
func (i *stored) ConfigName() (v1.Hash, error)        { return i.manifest.Config.Digest, nil }
func (i *stored) ConfigFile() (*v1.ConfigFile, error) { return i.config.DeepCopy(), nil }
func (i *stored) RawConfigFile() ([]byte, error)      { return bytes.Clone(i.rawConfig), nil }
func (i *stored) Digest() (v1.Hash, error)            { return v1.NewHash(digestOf(i.rawManifest)) }
func (i *stored) Manifest() (*v1.Manifest, error)     { return i.manifest.DeepCopy(), nil }
func (i *stored) RawManifest() ([]byte, error)        { return bytes.Clone(i.rawManifest), nil }

func (i *stored) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if h == i.manifest.Config.Digest {
		return partial.ConfigLayer(i)
	}
	for n, d := range i.manifest.Layers {
		if d.Digest == h {
			return i.layers[n], nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", h, image.ErrNotFound)
}

func (i *stored) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	for n, d := range i.config.RootFS.DiffIDs {
		if d == h {
			return i.layers[n], nil
		}
	}
	return nil, fmt.Errorf("layer with diffID %s: %w", h, image.ErrNotFound)
}
