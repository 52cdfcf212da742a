package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/pelletier/go-toml/v2"

	"github.com/kilnbuild/kiln/internal/flock"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Cache is what one app's builds keep from one to the next: metadata, and the
// layers that it speaks of, which it keeps alive.
type Cache struct {
	store *Store
	key   string
}

// cacheRecord is the one file that a cache is.
type cacheRecord struct {
	Key     string          `json:"key"`
	Updated time.Time       `json:"updated"`
	Layers  []v1.Descriptor `json:"layers"`
	DiffIDs []v1.Hash       `json:"diffIDs"` // of Layers, in their order
	// Metadata is TOML, since that is where buildpacks' metadata comes from
	// and goes to: JSON would make floats of its integers and strings of its dates.
	Metadata string `json:"metadata"`
}

// tomlMetadata is spec.CacheMetadata with names for TOML.
type tomlMetadata struct {
	SBOM       spec.LayerSHA          `toml:"sbom"`
	Buildpacks []spec.BuildpackLayers `toml:"buildpacks"`
}

// Cache names a cache. The key says whose it is; it may be any string.
func (s *Store) Cache(key string) *Cache { return &Cache{store: s, key: key} }

func (c *Cache) path() string { return c.store.path("caches", fileName(c.key)+".json") }

// Lock takes the cache for one build, from restore to Save. If another process
// has it, wait is called once with who that is, and Lock waits for as long as
// ctx lives. The lock ends with unlock or with the process.
func (c *Cache) Lock(ctx context.Context, wait func(holder string)) (unlock func(), err error) {
	l, err := flock.Hold(ctx, c.store.path("caches", fileName(c.key)+".lock"), wait)
	if err != nil {
		return nil, fmt.Errorf("lock cache %s: %w", c.key, err)
	}
	return l.Unlock, nil
}

// Load returns what was saved last. It is false if there is nothing, or nothing
// that can be trusted; err then says why, for a warning, and is nil if there
// never was anything. A layer that it speaks of may still be missing: ask
// Layer. GC leaves the layers that are here alone until the Store is closed.
func (c *Cache) Load(ctx context.Context) (spec.CacheMetadata, bool, error) {
	l, err := c.store.shared(ctx)
	if err != nil {
		return spec.CacheMetadata{}, false, fmt.Errorf("load cache %s: %w", c.key, err)
	}
	defer l.Unlock()
	r, md, err := c.store.readCache(filepath.Base(c.path()))
	if errors.Is(err, fs.ErrNotExist) {
		return spec.CacheMetadata{}, false, nil
	}
	if err != nil {
		return spec.CacheMetadata{}, false, fmt.Errorf("load cache %s: %w", c.key, err)
	}
	var items []item
	for i, d := range r.Layers {
		items = append(items, item{blobKind, d.Digest.Hex}, item{treeKind, r.DiffIDs[i].Hex})
	}
	if err := c.store.hold(ctx, items...); err != nil {
		return spec.CacheMetadata{}, false, fmt.Errorf("load cache %s: %w", c.key, err)
	}
	return md, true, nil
}

func (s *Store) readCache(file string) (cacheRecord, spec.CacheMetadata, error) {
	var r cacheRecord
	if err := readSealed(s.path("caches", file), &r); err != nil {
		return r, spec.CacheMetadata{}, err
	}
	if fileName(r.Key)+".json" != file || len(r.DiffIDs) != len(r.Layers) {
		return r, spec.CacheMetadata{}, fmt.Errorf("caches/%s: %w: it is of %s", file, ErrDamaged, r.Key)
	}
	md, err := decodeMetadata(r.Metadata)
	if err != nil {
		return r, md, fmt.Errorf("caches/%s: %w: %w", file, ErrDamaged, err)
	}
	return r, md, nil
}

func decodeMetadata(text string) (spec.CacheMetadata, error) {
	var t tomlMetadata
	err := toml.Unmarshal([]byte(text), &t)
	return spec.CacheMetadata(t), err
}

// Save replaces the cache by one rename. Every layer that md speaks of must be
// in the store; it fails with image.ErrNotFound, naming it, if one is not.
func (c *Cache) Save(ctx context.Context, md spec.CacheMetadata) error {
	if err := c.save(ctx, md); err != nil {
		return fmt.Errorf("save cache %s: %w", c.key, err)
	}
	return nil
}

func (c *Cache) save(ctx context.Context, md spec.CacheMetadata) error {
	text, err := toml.Marshal(tomlMetadata(md))
	if err != nil {
		return err
	}
	if _, err := decodeMetadata(string(text)); err != nil {
		return fmt.Errorf("its metadata cannot be read back: %w", err)
	}
	r := cacheRecord{Key: c.key, Updated: time.Now().UTC().Truncate(time.Second), Metadata: string(text)}
	for _, diffID := range diffIDsOf(md) {
		l, err := c.store.Layer(ctx, diffID) // and holds it
		if err != nil {
			return err
		}
		d, err := describe(l)
		if err != nil {
			return err
		}
		h, err := l.DiffID()
		if err != nil {
			return err
		}
		r.Layers = append(r.Layers, d)
		r.DiffIDs = append(r.DiffIDs, h)
	}
	b, err := seal(r)
	if err != nil {
		return err
	}
	if err := c.store.syncBlobs(); err != nil {
		return err
	}
	return c.store.replace(ctx, c.path(), b, true)
}

func describe(l v1.Layer) (v1.Descriptor, error) {
	digest, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := l.Size()
	if err != nil {
		return v1.Descriptor{}, err
	}
	mt, err := l.MediaType()
	return v1.Descriptor{MediaType: mt, Size: size, Digest: digest}, err
}

// diffIDsOf lists the layers that md speaks of, each once, sorted.
func diffIDsOf(md spec.CacheMetadata) []string {
	var ids []string
	if md.SBOM.SHA != "" {
		ids = append(ids, md.SBOM.SHA)
	}
	for _, bp := range md.Buildpacks {
		for _, l := range bp.Layers {
			if l.SHA != "" {
				ids = append(ids, l.SHA)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Clear forgets the cache. Its layers go with the next GC.
func (c *Cache) Clear(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = os.Remove(c.path())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = c.store.syncDir(c.store.path("caches"))
	}
	if err != nil {
		return fmt.Errorf("clear cache %s: %w", c.key, err)
	}
	return nil
}
