package phase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// CacheWriter keeps metadata of cached layers and the layers that it speaks of,
// all at once or not at all. Those that it does not have it takes from open,
// which finds a layer by its diffID.
type CacheWriter interface {
	Save(ctx context.Context, md spec.CacheMetadata, open func(ctx context.Context, diffID string) (v1.Layer, error)) error
}

// SaveCache keeps the cache layers of a build, and the SBOMs of cache layers,
// for the next one: they are put into keep, where cache finds them. in and out
// are those of Assemble; layers that went into the image are not read again,
// those that nobody touched not at all. What the cache had before is gone from
// it.
//
// An app image is no worse for its cache, so a failure is only a warning; the
// error is ctx's. The result says which diffIDs the cached layers have.
func SaveCache(ctx context.Context, cache CacheWriter, keep Layers, in Input, out Output, sink event.Sink) (Known, error) {
	c := &cacher{assembler: assembler{Input: in, keep: keep, sink: sink, done: Known{}}, out: out}
	if err := c.save(ctx, cache); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		warn(sink, "the cache is not saved: %v", err)
	}
	return c.done, nil
}

type cacher struct {
	assembler
	out Output
}

func (c *cacher) save(ctx context.Context, cache CacheWriter) error {
	var md spec.CacheMetadata
	for _, e := range c.Group.Group {
		b, err := c.buildpack(ctx, e)
		if err != nil {
			return err
		}
		if len(b.Layers) > 0 {
			md.Buildpacks = append(md.Buildpacks, b)
		}
	}
	sbom, err := c.sbom(ctx)
	if err != nil {
		return fmt.Errorf("SBOMs: %w", err)
	}
	md.SBOM.SHA = sbom
	return cache.Save(ctx, md, c.keep.Layer)
}

func (c *cacher) buildpack(ctx context.Context, e spec.GroupElement) (spec.BuildpackLayers, error) {
	b := spec.BuildpackLayers{Key: e.ID, Version: e.Version, Layers: map[string]spec.LayerMetadata{}}
	dir := spec.EscapeID(e.ID)
	names, err := layerTOMLs(c.Layers, dir)
	if err != nil {
		return b, fmt.Errorf("layers of %s: %w", e, err)
	}
	for _, name := range names {
		rel := path.Join(dir, name)
		doc, _, err := readTOML(c.Layers, rel+".toml", spec.ReadLayerTOML)
		if err != nil {
			return b, fmt.Errorf("layer %s: %w", layerName(e.ID, name), err)
		}
		if !doc.Types.Cache {
			continue
		}
		diffID, err := c.layer(ctx, layerName(e.ID, name), rel)
		if errors.Is(err, fs.ErrNotExist) {
			warn(c.sink, "layer %s is not cached: it has no contents", layerName(e.ID, name))
			continue
		}
		if err != nil {
			return b, fmt.Errorf("layer %s: %w", layerName(e.ID, name), err)
		}
		b.Layers[name] = spec.LayerMetadata{SHA: diffID, Data: doc.Metadata, Build: doc.Types.Build, Launch: doc.Types.Launch, Cache: true}
	}
	return b, nil
}

// layer sees to it that the layer is in keep, and returns its diffID.
func (c *cacher) layer(ctx context.Context, name, rel string) (string, error) {
	start := time.Now()
	if _, err := c.Layers.Lstat(rel); err != nil {
		return "", err
	}
	var (
		l    v1.Layer
		read int64
		err  error
	)
	if diffID, ok := c.out.DiffIDs[rel]; ok {
		l, err = c.ensure(ctx, diffID)
	} else {
		l, read, err = c.layerAt(ctx, rel)
	}
	if err != nil {
		return "", err
	}
	diffID, err := diffIDOf(l)
	if err != nil {
		return "", err
	}
	action := "new"
	switch old := c.Known[rel]; old {
	case "":
	case diffID:
		action = "reused"
	default:
		action = "rebuilt"
	}
	c.remember(rel, diffID)
	c.sink.Emit(event.Layer{Name: name, Action: action, Target: "cache", DiffID: diffID, Read: read, Elapsed: time.Since(start)})
	return diffID, nil
}

// ensure copies a layer of the app image to keep if it is not there.
func (c *cacher) ensure(ctx context.Context, diffID string) (v1.Layer, error) {
	l, err := c.keep.Layer(ctx, diffID)
	if err == nil || !errors.Is(err, image.ErrNotFound) {
		return l, err
	}
	from, err := layerOf(c.out.Image, diffID)
	if err != nil {
		return nil, err
	}
	return c.keep.PutLayer(ctx, func(w io.Writer) error {
		rc, err := from.Uncompressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(w, rc)
		return errors.Join(err, rc.Close())
	})
}

// sbom keeps <layers>/sbom/cache, and returns its diffID, "" if there is none.
func (c *cacher) sbom(ctx context.Context) (string, error) {
	diffID, err := c.layer(ctx, "sbom", cacheSBOMs)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return diffID, err
}
