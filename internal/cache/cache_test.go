package cache_test

import (
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/cache/cachetest"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

func volume(t *testing.T, dir string) *cache.Volume {
	t.Helper()
	v, err := cache.OpenVolume(t.Context(), dir, event.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVolume(t *testing.T) {
	conform.Covers(t, 155, 156, 161, 162, 165)
	cachetest.Test(t, func(t *testing.T) cachetest.Place {
		dir := filepath.Join(t.TempDir(), "cache")
		metadata := filepath.Join(dir, "committed", "io.buildpacks.lifecycle.cache.metadata")
		return cachetest.Place{
			Open: func(t *testing.T) (cachetest.Cache, func()) {
				v := volume(t, dir)
				return v, v.Close
			},
			Blob:     func(_ *testing.T, diffID string) string { return filepath.Join(dir, "committed", diffID+".tar") },
			Metadata: func(*testing.T) string { return metadata },
			Retell: func(t *testing.T, text string) {
				if err := os.WriteFile(metadata, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// The image's files are at hand in a layout.
func TestImage(t *testing.T) {
	conform.Covers(t, 155, 163, 165)
	cachetest.Test(t, func(t *testing.T) cachetest.Place {
		layout := archive.Layout{Dir: filepath.Join(t.TempDir(), "layout")}
		blob := func(h v1.Hash) string { return filepath.Join(layout.Dir, "blobs", h.Algorithm, h.Hex) }
		manifest := func(t *testing.T) *v1.Manifest {
			t.Helper()
			img, err := layout.Image(t.Context(), "cache")
			if err != nil {
				t.Fatal(err)
			}
			m, err := img.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		return cachetest.Place{
			Open: func(*testing.T) (cachetest.Cache, func()) {
				return cache.NewImage("cache", layout, cache.ImageSetting{Arch: "amd64", Events: event.Discard}), func() {}
			},
			Blob: func(t *testing.T, diffID string) string {
				h, err := v1.NewHash(diffID)
				if err != nil {
					t.Fatal(err)
				}
				return blob(h) // it is not compressed
			},
			Metadata: func(t *testing.T) string { return blob(manifest(t).Config.Digest) },
			Retell: func(t *testing.T, text string) {
				img, err := layout.Image(t.Context(), "cache")
				if err != nil {
					t.Fatal(err)
				}
				img, err = image.Append(img, nil, func(cf *v1.ConfigFile) {
					cf.Config.Labels = map[string]string{spec.CacheMetadataLabel: text}
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := layout.Write(t.Context(), "cache", img); err != nil {
					t.Fatal(err)
				}
			},
			Keeps: true,
		}
	})
}
