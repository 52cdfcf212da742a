package lifecycle

import (
	"context"
	"errors"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/phase"
)

// launchCache is the layers of the app image as they are in the daemon, in a
// directory: a daemon gives whole images only, so a layer that is at hand saves
// the transfer of all (requirements 5.8). nil is none.
type launchCache struct {
	volume *cache.Volume
	warn   func(format string, args ...any)
}

// openLaunchCache opens the cache of -launch-cache, which is of use with a daemon
// only. One that cannot be opened is none, with a warning.
func (h Host) openLaunchCache(ctx context.Context, in inputs, p *Places) (*launchCache, error) {
	if in.launchCache == "" {
		return nil, nil
	}
	if _, ok := p.Target.(daemon.Described); !ok {
		if in.phase == analyzer {
			h.warn("-launch-cache is ignored: it is for images in a docker daemon")
		}
		return nil, nil
	}
	v, err := cache.OpenVolume(ctx, string(in.launchCache), h.Events)
	if err != nil {
		h.warn("the launch cache is not used: %v", err)
		return nil, ctx.Err()
	}
	return &launchCache{volume: v, warn: h.warn}, nil
}

func (c *launchCache) close() {
	if c != nil {
		c.volume.Close()
	}
}

// source is a daemon whose images have the cache's layers.
func (c *launchCache) source(s image.Source) image.Source {
	d, ok := s.(daemon.Described)
	if c == nil || !ok {
		return s
	}
	return launchSource{d, c}
}

type launchSource struct {
	daemon.Described
	cache *launchCache
}

// Image implements image.Source.
func (s launchSource) Image(ctx context.Context, ref string) (v1.Image, error) {
	img, err := s.Described.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.cache.image(ctx, img), nil
}

// Pin implements image.Pinner.
func (s launchSource) Pin(ref string, img v1.Image) (string, error) {
	return s.Described.Pin(ref, plainImage(img))
}

// image is img with the cache's layers.
func (c *launchCache) image(ctx context.Context, img v1.Image) v1.Image {
	if c == nil || img == nil {
		return img
	}
	return &launchImage{Image: plainImage(img), ctx: ctx, cache: c}
}

type launchImage struct {
	v1.Image
	ctx   context.Context // v1.Image has no room for one
	cache *launchCache
}

// plainImage is an image without its launch cache.
func plainImage(img v1.Image) v1.Image {
	if l, ok := img.(*launchImage); ok {
		return l.Image
	}
	return img
}

// LayerByDiffID returns the cache's layer if it has it, else the daemon's.
func (l *launchImage) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	there, err := l.Image.LayerByDiffID(h)
	if err != nil {
		return nil, err
	}
	here, err := l.cache.volume.Layer(l.ctx, h.String())
	if err != nil {
		if !errors.Is(err, image.ErrNotFound) {
			l.cache.warn("launch cache: %v", err)
		}
		return there, nil
	}
	return &launchLayer{Layer: there, here: here, warn: l.cache.warn}, nil
}

// launchLayer is a layer of the daemon's that the cache has, too. The cache's
// file is read through before it is used: a damaged one is a miss.
type launchLayer struct {
	v1.Layer // the daemon's
	here     v1.Layer
	warn     func(format string, args ...any)

	once   sync.Once
	chosen v1.Layer
}

// Unwrap returns the layer that is read.
func (l *launchLayer) Unwrap() v1.Layer {
	l.once.Do(func() {
		l.chosen = l.here
		if err := readThrough(l.here); err != nil {
			l.warn("launch cache: %v", err)
			l.chosen = l.Layer
		}
	})
	return l.chosen
}

func readThrough(l v1.Layer) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, rc)
	return errors.Join(err, rc.Close())
}

func (l *launchLayer) Compressed() (io.ReadCloser, error)   { return l.Unwrap().Compressed() }
func (l *launchLayer) Uncompressed() (io.ReadCloser, error) { return l.Unwrap().Uncompressed() }
func (l *launchLayer) Size() (int64, error)                 { return l.here.Size() }
func (l *launchLayer) MediaType() (types.MediaType, error)  { return l.here.MediaType() }
func (l *launchLayer) Exists() (bool, error)                { return true, nil }

// save keeps the layers that the app image has above its run image, as far as
// they are at hand: what is in the daemon alone stays there. No failure of it is
// one of the export's.
func (c *launchCache) save(ctx context.Context, keep phase.Layers, input phase.Input, out phase.Output) error {
	if c == nil {
		return nil
	}
	err := c.saveLayers(ctx, keep, input, out)
	if err != nil && ctx.Err() == nil {
		c.warn("the launch cache is not saved: %v", err)
	}
	return ctx.Err()
}

func (c *launchCache) saveLayers(ctx context.Context, keep phase.Layers, input phase.Input, out phase.Output) error {
	run, err := input.Run.ConfigFile()
	if err != nil {
		return err
	}
	app, err := out.Image.ConfigFile()
	if err != nil {
		return err
	}
	var ids []string
	for _, h := range app.RootFS.DiffIDs[min(len(run.RootFS.DiffIDs), len(app.RootFS.DiffIDs)):] {
		_, here := c.volume.Layer(ctx, h.String())
		_, made := keep.Layer(ctx, h.String())
		if here == nil || made == nil {
			ids = append(ids, h.String())
		}
	}
	return c.volume.SaveLayers(ctx, ids, keep.Layer)
}
