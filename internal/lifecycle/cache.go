package lifecycle

import (
	"context"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
)

// openCache opens the cache of a build, nil if it has none; -cache-image goes
// before -cache-dir. done ends what was begun with it. A cache that cannot be
// opened is one that has nothing and keeps nothing, and says why.
func (h Host) openCache(ctx context.Context, in inputs, p *Places) (c Cache, done func(), err error) {
	done = func() {}
	switch {
	case p.Cache != nil:
		return p.Cache, done, nil
	case in.cacheImage != "":
		r, err := h.registry(in, p)
		if err != nil {
			return nil, done, err
		}
		if p.cacheImage == nil {
			set := cache.ImageSetting{Arch: runtime.GOARCH, Events: h.Events}
			if !spec.Has(in.api, spec.PlatformKeepCacheImage) {
				set.Delete = r.Delete
			}
			p.cacheImage = cache.NewImage(in.cacheImage, r, set)
		}
		return p.cacheImage, done, nil
	case in.cacheDir != "":
		v, err := cache.OpenVolume(ctx, string(in.cacheDir), h.Events)
		if err != nil {
			return noCache{err}, done, ctx.Err()
		}
		return v, v.Close, nil
	}
	return nil, done, nil
}

// noCache is a cache that could not be opened.
type noCache struct{ why error }

func (c noCache) Load(context.Context) (spec.CacheMetadata, bool, error) {
	return spec.CacheMetadata{}, false, c.why
}

func (c noCache) Layer(context.Context, string) (v1.Layer, error) { return nil, c.why }

func (c noCache) Save(context.Context, spec.CacheMetadata, cache.Open) error { return c.why }

// saveCache keeps what the next build can use. No failure of it is one of the
// export's.
func (h Host) saveCache(ctx context.Context, in inputs, p *Places, keep phase.Layers, input phase.Input) error {
	c, done, err := h.openCache(ctx, in, p)
	if err != nil || c == nil {
		return err
	}
	defer done()
	if i, ok := c.(*cache.Image); ok {
		i.Prepare(func(ctx context.Context, l v1.Layer) (v1.Layer, error) {
			l, err := compressed(ctx, keep, l)
			if err != nil {
				return nil, err
			}
			return p.registry.Likely(in.args[0], l), nil
		})
	}
	p.Cached, err = phase.SaveCache(ctx, c, keep, input, p.Exported, h.Events)
	return err
}
