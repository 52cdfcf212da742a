package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
)

// cache is the cache of a build, nil if it has none.
func (p *Places) cache(in inputs) (Cache, error) {
	switch {
	case p.Cache != nil:
		return p.Cache, nil
	case in.cacheImage != "":
		return nil, errors.New("-cache-image: kiln does not keep caches in images yet; use -cache-dir")
	case in.cacheDir != "":
		return volume{dir: string(in.cacheDir)}, nil
	}
	return nil, nil
}

// volume is a cache in a directory, in the form that lifecycles share
// (requirements 5.8): committed/ holds the metadata and one uncompressed tar
// for each layer; a new one is made in staging/ and renamed.
type volume struct {
	dir  string
	from phase.Layers // where Save finds layers that the cache does not have
}

// keptCache tells a volume where new layers are.
func keptCache(cache Cache, keep phase.Layers) Cache {
	if v, ok := cache.(volume); ok {
		v.from = keep
		return v
	}
	return cache
}

func (v volume) path(elem ...string) string {
	return filepath.Join(append([]string{v.dir}, elem...)...)
}

// Load implements phase.CacheReader.
func (v volume) Load(context.Context) (spec.CacheMetadata, bool, error) {
	if err := v.repair(); err != nil {
		return spec.CacheMetadata{}, false, err
	}
	b, err := os.ReadFile(v.path("committed", spec.CacheMetadataLabel))
	if errors.Is(err, fs.ErrNotExist) {
		return spec.CacheMetadata{}, false, nil
	}
	if err != nil {
		return spec.CacheMetadata{}, false, err
	}
	md, err := spec.DecodeCacheMetadata(string(b))
	return md, err == nil, err
}

// repair undoes a commit that was cut short between its two renames.
func (v volume) repair() error {
	_, err := os.Stat(v.path("committed"))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(v.path("committed-backup"), v.path("committed")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Layer implements phase.CacheReader. Whoever reads the layer checks its bytes.
func (v volume) Layer(_ context.Context, diffID string) (v1.Layer, error) {
	h, err := v1.NewHash(diffID)
	if err != nil {
		return nil, err
	}
	file := v.path("committed", h.String()+".tar")
	fi, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cached layer %s: %w", diffID, image.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return image.NewLayer(func() (io.ReadCloser, error) { return os.Open(file) }, h, fi.Size()), nil
}

// Save implements phase.CacheWriter: the new cache is complete before it takes
// the place of the old one.
func (v volume) Save(ctx context.Context, md spec.CacheMetadata) error {
	staging, backup := v.path("staging"), v.path("committed-backup")
	if err := errors.Join(v.repair(), os.RemoveAll(staging), os.RemoveAll(backup), os.MkdirAll(staging, 0o755)); err != nil {
		return err
	}
	ids := map[string]bool{md.SBOM.SHA: true}
	for _, b := range md.Buildpacks {
		for _, l := range b.Layers {
			ids[l.SHA] = true
		}
	}
	delete(ids, "")
	for diffID := range ids {
		if err := v.stage(ctx, diffID); err != nil {
			return fmt.Errorf("cached layer %s: %w", diffID, err)
		}
	}
	label, err := spec.EncodeLabel(md)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(staging, spec.CacheMetadataLabel), []byte(label), 0o644); err != nil {
		return err
	}
	if err := os.Rename(v.path("committed"), backup); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(staging, v.path("committed")); err != nil {
		return errors.Join(err, v.repair())
	}
	return os.RemoveAll(backup)
}

// stage brings one layer into staging: the one of the last cache, if its bytes
// are still right, else a copy of what the build made.
func (v volume) stage(ctx context.Context, diffID string) error {
	old, staged := v.path("committed", diffID+".tar"), v.path("staging", diffID+".tar")
	if digest, err := digestOf(old); err == nil && digest == diffID && os.Link(old, staged) == nil {
		return nil
	}
	l, err := v.from.Layer(ctx, diffID)
	if err != nil {
		return err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	f, err := os.OpenFile(staged, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, rc)
	return errors.Join(err, f.Sync(), f.Close())
}

func digestOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h, _, err := v1.SHA256(f)
	return h.String(), err
}
