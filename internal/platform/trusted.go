package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/phase"
)

// openPlaces opens the run image, the destinations and the app's cache, and
// takes the cache for this build: two builds of one image go one after the other.
func (b *build) openPlaces(ctx context.Context) error {
	if err := b.checkInputs(); err != nil {
		return err
	}
	if err := b.openImages(ctx); err != nil {
		return err
	}
	key, err := b.cacheKey()
	if err != nil {
		return err
	}
	cache := b.Store.Cache(key)
	unlock, err := cache.Lock(ctx, b.waiting("the image "+b.req.Image))
	if err != nil {
		return err
	}
	b.undo = append(b.undo, func(context.Context) error { unlock(); return nil })
	b.places.Cache = appCache{cache, b.Store}
	return nil
}

// openImages opens the run image and the destinations.
func (b *build) openImages(ctx context.Context) error {
	to, err := b.openDestinations(ctx)
	if err != nil {
		return err
	}
	name := cmp.Or(b.req.RunImage, b.root.RunImage)
	run, err := b.open(ctx, name, b.req.Insecure)
	if err != nil {
		return fmt.Errorf("run image: %w", err)
	}
	cf, err := run.ConfigFile()
	if err != nil {
		return fmt.Errorf("read run image %s: %w", name, err)
	}
	if err := b.fits("run image "+name, cf); err != nil {
		return err
	}
	to.run, b.to = run, to
	b.places = &lifecycle.Places{
		Source: to, Target: to, Bases: bases{to, b.root}, Trusted: to.outputs[0].vouches, Layers: b.Store,
		Place: b.placeLayer, PlaceSBOM: b.placeSBOM,
	}
	return nil
}

// trusted runs a phase that holds credentials and reads what foreign code left:
// in this process, on the upper directories of the sandbox's overlays.
func (b *build) trusted(ctx context.Context, step Step) error {
	b.to.hosts = step.Registries
	err := lifecycle.Do(ctx, step.Phase, step.Args, step.Env, lifecycle.Host{
		Events: b.tally, Dirs: b.dirs(step), Places: b.places,
	})
	if err == nil && step.Phase == "restorer" {
		b.layers.Lowers = b.restored.list()
	}
	return err
}

// keep turns what this build made into trees that the next one starts from:
// directories that no lower one shines through are moved, nothing is copied.
func (b *build) keep(ctx context.Context) error {
	var errs []error
	made := map[string]string{}
	for _, known := range []phase.Known{b.places.Exported.DiffIDs, b.places.Cached} {
		for rel, diffID := range known {
			made[rel] = diffID
		}
	}
	for _, rel := range slices.Sorted(maps.Keys(made)) {
		if b.Store.HasTree(made[rel]) {
			continue
		}
		errs = append(errs, b.adopt(ctx, rel, made[rel]))
	}
	return errors.Join(append(errs, b.keepSBOMs(ctx, made), b.keepApp(ctx))...)
}

// adopt moves a layer's directory out of the upper and into the store.
func (b *build) adopt(ctx context.Context, rel, diffID string) error {
	from, err := layer.Stack{Upper: b.layers.Upper}.Path(rel)
	if err != nil {
		return nil // a layer that was reused without contents
	}
	if fi, err := os.Lstat(from); err != nil || !fi.IsDir() {
		return nil
	}
	if _, below := b.restored.dirs[rel]; below {
		if whole, err := layer.Opaque(from); err != nil || !whole {
			return err // the old layer shines through: the blob is unpacked next time
		}
	}
	tree := filepath.Join(b.scratch, "adopt", path.Base(diffID))
	to := filepath.Join(tree, dirLayers, filepath.FromSlash(rel))
	for dir := filepath.Dir(to); dir != tree; dir = filepath.Dir(dir) {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := layer.SetTimes(ctx, tree); err != nil {
		return err
	}
	return b.Store.AdoptTree(ctx, diffID, tree)
}

// keepApp remembers which app layer this source makes, if no buildpack changed
// anything in it.
func (b *build) keepApp(ctx context.Context) error {
	diffID := b.places.Exported.AppDiffID
	if diffID == "" || b.app.memo == "" || b.app.tree == "" {
		return nil
	}
	touched, err := os.ReadDir(b.work.Upper)
	if err != nil || len(touched) > 0 {
		return err
	}
	if !b.Store.HasTree(diffID) {
		if err := b.Store.AdoptTree(ctx, diffID, b.app.tree); err != nil {
			return err
		}
	}
	return b.Store.Remember(ctx, memoApp, b.app.memo, []byte(diffID))
}

// tally counts what the summary tells, and passes everything on.
type tally struct {
	sink event.Sink

	mu          sync.Mutex
	reused, new int
	written     []event.ImageWritten
}

// Emit implements event.Sink.
func (t *tally) Emit(e event.Event) {
	t.mu.Lock()
	switch e := e.(type) {
	case event.Layer:
		switch {
		case e.Target != "image":
		case e.Action == "reused":
			t.reused++
		default:
			t.new++
		}
	case event.ImageWritten:
		t.written = append(t.written, e)
	}
	t.mu.Unlock()
	t.sink.Emit(e)
}

// summarise is the last word's content.
func (b *build) summarise() {
	b.built.Reused, b.built.New = b.tally.reused, b.tally.new
	for _, w := range b.tally.written {
		name := w.Name
		if n, err := ParseImageName(w.Name); err == nil {
			name = n.Short
		}
		if len(b.req.Outputs) == 0 {
			b.built.Names = append(b.built.Names, name)
		}
		b.built.ID, b.built.Size = w.ID, w.Size
	}
	for _, o := range b.req.Outputs {
		switch o.Kind {
		case ToRegistry:
			for _, w := range b.tally.written {
				b.built.Names = append(b.built.Names, w.Name)
			}
		case ToDaemon:
			for _, w := range b.tally.written {
				b.built.Names = append(b.built.Names, string(ToDaemon)+":"+w.Name)
			}
		default:
			b.built.Names = append(b.built.Names, fmt.Sprintf("%s:%s", o.Kind, o.Path))
		}
	}
}
