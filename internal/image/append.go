package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Addition is one layer to put on an image and its history entry.
type Addition struct {
	Layer   v1.Layer
	History v1.History
}

// Append derives an image: base with layers on top and its config passed
// through config (nil: unchanged). No layer is read: only digests, sizes and
// diffIDs are asked for. The result is of base's kind, Docker's or OCI's, and
// media types of layers are renamed to fit; bytes and digests do not change. It
// is an OCI image where base has no layers, or where Docker has no name for one.
//
// The config handed to the function is a copy that already carries the new
// diffIDs and history; the function may rewrite anything but rootfs. A base
// whose history does not match its layers, entry by layer, loses what it says:
// then all entries, the new ones too, are blank, one for each layer.
func Append(base v1.Image, layers []Addition, config func(*v1.ConfigFile)) (v1.Image, error) {
	manifest, cfg, baseLayers, err := parts(base)
	if err != nil {
		return nil, fmt.Errorf("append to image: %w", err)
	}
	kind, err := base.MediaType()
	if err != nil {
		return nil, fmt.Errorf("append to image: manifest: %w", err)
	}
	if len(baseLayers) == 0 || !isDocker(kind) {
		kind = types.OCIManifestSchema1
	}
	all := baseLayers
	history := slices.Clone(cfg.History)
	blank := !historyFits(cfg)
	for i, a := range layers {
		desc, diffID, err := describe(a.Layer)
		if err != nil {
			return nil, fmt.Errorf("append layer %d: %w", i, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, diffID)
		h := a.History
		h.EmptyLayer = false
		history = append(history, h)
		all = append(all, a.Layer)
	}
	if blank {
		history = make([]v1.History, len(all))
	}
	cfg.History = history
	diffIDs := slices.Clone(cfg.RootFS.DiffIDs)
	if config != nil {
		config(cfg)
	}
	cfg.RootFS = v1.RootFS{Type: "layers", DiffIDs: diffIDs}
	if !historyFits(cfg) {
		return nil, fmt.Errorf("append to image: config function left %d history entries with a layer for %d layers", filled(cfg.History), len(diffIDs))
	}
	return assemble(manifestType(kind, manifest.Layers), manifest, cfg, all)
}

// parts takes copies of what base is made of and checks that they agree.
func parts(base v1.Image) (*v1.Manifest, *v1.ConfigFile, []v1.Layer, error) {
	m, err := base.Manifest()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("manifest: %w", err)
	}
	cf, err := base.ConfigFile()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("config: %w", err)
	}
	layers, err := base.Layers()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("layers: %w", err)
	}
	if len(layers) != len(m.Layers) || len(layers) != len(cf.RootFS.DiffIDs) {
		return nil, nil, nil, fmt.Errorf("manifest has %d layers, config %d, and there are %d", len(m.Layers), len(cf.RootFS.DiffIDs), len(layers))
	}
	// The caller's values may be shared with others: change copies only.
	return m.DeepCopy(), cf.DeepCopy(), slices.Clone(layers), nil
}

func describe(l v1.Layer) (v1.Descriptor, v1.Hash, error) {
	digest, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, v1.Hash{}, fmt.Errorf("digest: %w", err)
	}
	diffID, err := l.DiffID()
	if err != nil {
		return v1.Descriptor{}, v1.Hash{}, fmt.Errorf("diffID: %w", err)
	}
	size, err := l.Size()
	if err != nil {
		return v1.Descriptor{}, v1.Hash{}, fmt.Errorf("size: %w", err)
	}
	mt, err := l.MediaType()
	if err != nil {
		return v1.Descriptor{}, v1.Hash{}, fmt.Errorf("media type: %w", err)
	}
	return v1.Descriptor{MediaType: mt, Size: size, Digest: digest}, diffID, nil
}

func historyFits(cf *v1.ConfigFile) bool {
	return filled(cf.History) == len(cf.RootFS.DiffIDs)
}

// filled counts the entries that stand for a layer.
func filled(history []v1.History) int {
	n := 0
	for _, h := range history {
		if !h.EmptyLayer {
			n++
		}
	}
	return n
}

func assemble(kind types.MediaType, m *v1.Manifest, cf *v1.ConfigFile, layers []v1.Layer) (v1.Image, error) {
	rawConfig, err := json.Marshal(cf)
	if err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	for i := range m.Layers {
		if t, ok := family(kind)[m.Layers[i].MediaType]; ok {
			m.Layers[i].MediaType = t
			layers[i] = &retyped{layers[i], t}
		}
	}
	// Annotations and subject of the base say things of the base, not of what
	// is made of it: they stay behind.
	m = &v1.Manifest{
		SchemaVersion: 2,
		MediaType:     kind,
		Config:        v1.Descriptor{MediaType: configType(kind), Size: int64(len(rawConfig)), Digest: sum(rawConfig)},
		Layers:        m.Layers,
	}
	rawManifest, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return &value{rawManifest: rawManifest, rawConfig: rawConfig, manifest: m, config: cf, layers: layers}, nil
}

func sum(b []byte) v1.Hash {
	h := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h[:])}
}

// value is an image whose manifest and config are in memory.
type value struct {
	rawManifest, rawConfig []byte
	manifest               *v1.Manifest
	config                 *v1.ConfigFile
	layers                 []v1.Layer
}

var _ v1.Image = (*value)(nil)

func (v *value) Layers() ([]v1.Layer, error) { return slices.Clone(v.layers), nil }
func (v *value) MediaType() (types.MediaType, error) {
	if v.manifest.MediaType == "" { // OCI's may do without
		return types.OCIManifestSchema1, nil
	}
	return v.manifest.MediaType, nil
}
func (v *value) Size() (int64, error)                { return int64(len(v.rawManifest)), nil }
func (v *value) ConfigName() (v1.Hash, error)        { return v.manifest.Config.Digest, nil }
func (v *value) ConfigFile() (*v1.ConfigFile, error) { return v.config.DeepCopy(), nil }
func (v *value) RawConfigFile() ([]byte, error)      { return bytes.Clone(v.rawConfig), nil }
func (v *value) Digest() (v1.Hash, error)            { return sum(v.rawManifest), nil }
func (v *value) Manifest() (*v1.Manifest, error)     { return v.manifest.DeepCopy(), nil }
func (v *value) RawManifest() ([]byte, error)        { return bytes.Clone(v.rawManifest), nil }
func (v *value) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if h == v.manifest.Config.Digest {
		return partial.ConfigLayer(v)
	}
	for i, d := range v.manifest.Layers {
		if d.Digest == h {
			return v.layers[i], nil
		}
	}
	return nil, fmt.Errorf("layer with digest %s: %w", h, ErrNotFound)
}

func (v *value) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	for i, d := range v.config.RootFS.DiffIDs {
		if d == h {
			return v.layers[i], nil
		}
	}
	return nil, fmt.Errorf("layer with diffID %s: %w", h, ErrNotFound)
}
