package platform

import (
	"context"
	"errors"
	"fmt"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
)

// noPackages is why packages are not known, which is no failure.
type noPackages string

func (n noPackages) Error() string { return string(n) }

// packageChanges compares the packages in the lowest n layers of app with those
// of base.
func (r *rebaser) packageChanges(ctx context.Context, app v1.Image, n int, base *newBase) ([]event.Change, error) {
	old, err := app.Layers()
	if err != nil {
		return nil, err
	}
	before, err := r.packages(ctx, old[:n], !r.req.Publish)
	if err != nil {
		return nil, err
	}
	next, err := base.Image.Layers()
	if err != nil {
		return nil, err
	}
	after, err := r.packages(ctx, next, base.host == "")
	if err != nil {
		return nil, err
	}
	return changesOf(before, after), nil
}

// packages are those of layers that lie on each other: version by name. Layers
// that are not on this disk are read only if that was asked for.
func (r *rebaser) packages(ctx context.Context, layers []v1.Layer, here bool) (map[string]string, error) {
	var all debian.LayerPackages
	for _, l := range layers {
		found, err := r.layers.of(ctx, l, func() (v1.Layer, error) { return r.readableLayer(ctx, l, here || r.req.Packages) })
		if err != nil {
			return nil, err
		}
		all.Cover(found)
	}
	list := all.Versions()
	if len(list) == 0 {
		return nil, noPackages("there is no list of dpkg's in it")
	}
	return list, nil
}

// readableLayer is l, from the store if it is there.
func (r *rebaser) readableLayer(ctx context.Context, l v1.Layer, anyway bool) (v1.Layer, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return nil, err
	}
	stored, err := r.Store.Layer(ctx, diffID.String())
	switch {
	case err == nil:
		return stored, nil
	case !errors.Is(err, image.ErrNotFound):
		return nil, err
	case anyway:
		return l, nil
	}
	return nil, noPackages("layers are not in the store; --packages reads them where they are")
}

// layerPackages keeps what layers say, so that each is read once.
type layerPackages struct {
	mu    sync.Mutex
	known map[v1.Hash]func() (debian.LayerPackages, error)
}

func (p *layerPackages) of(ctx context.Context, l v1.Layer, readable func() (v1.Layer, error)) (debian.LayerPackages, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return debian.LayerPackages{}, err
	}
	p.mu.Lock()
	if p.known == nil {
		p.known = map[v1.Hash]func() (debian.LayerPackages, error){}
	}
	read, ok := p.known[diffID]
	if !ok {
		read = sync.OnceValues(func() (debian.LayerPackages, error) {
			l, err := readable()
			if err != nil {
				return debian.LayerPackages{}, err
			}
			rc, err := l.Uncompressed()
			if err != nil {
				return debian.LayerPackages{}, fmt.Errorf("packages of layer %s: %w", diffID, err)
			}
			defer rc.Close()
			files, err := debian.ReadLayer(ctx, rc)
			if err != nil {
				return files, fmt.Errorf("packages of layer %s: %w", diffID, err)
			}
			return files, nil
		})
		p.known[diffID] = read
	}
	p.mu.Unlock()
	return read()
}
