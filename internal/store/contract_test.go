package store_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/cache/cachetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// hosted is a cache as kiln's own process has it: its layers are in the store
// before it is saved.
type hosted struct {
	*store.Cache
	store *store.Store
}

func (h hosted) Layer(ctx context.Context, diffID string) (v1.Layer, error) {
	return h.store.Layer(ctx, diffID)
}

func (h hosted) Save(ctx context.Context, md spec.CacheMetadata, open func(context.Context, string) (v1.Layer, error)) error {
	ids := []string{md.SBOM.SHA}
	for _, b := range md.Buildpacks {
		for _, l := range b.Layers {
			ids = append(ids, l.SHA)
		}
	}
	for _, id := range ids {
		if l, err := open(ctx, id); err == nil {
			if err := h.put(ctx, l); err != nil {
				return err
			}
		}
	}
	return h.Cache.Save(ctx, md)
}

func (h hosted) put(ctx context.Context, l v1.Layer) error {
	_, err := h.store.PutLayer(ctx, func(w io.Writer) error {
		rc, err := l.Uncompressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(w, rc)
		return errors.Join(err, rc.Close())
	})
	return err
}

// The store's cache keeps the promise of those that lifecycles share.
func TestCacheContract(t *testing.T) {
	cachetest.Test(t, func(t *testing.T) cachetest.Place {
		dir := filepath.Join(t.TempDir(), "store")
		return cachetest.Place{
			Open: func(t *testing.T) (cachetest.Cache, func()) {
				s, err := store.Open(t.Context(), dir)
				if err != nil {
					t.Fatal(err)
				}
				return hosted{s.Cache("app"), s}, func() { _ = s.Close() }
			},
			Blob: func(t *testing.T, diffID string) string {
				return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(diffID, "sha256:"))
			},
			Metadata: func(t *testing.T) string {
				list, err := filepath.Glob(filepath.Join(dir, "caches", "*.json"))
				if err != nil || len(list) != 1 {
					t.Fatal(list, err)
				}
				if err := os.Chmod(list[0], 0o600); err != nil {
					t.Fatal(err)
				}
				return list[0]
			},
		}
	})
}
