package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// CacheReader is what the last build of an app kept, for Restore. Load is false
// if there is nothing that can be trusted; err then says why, if there is a
// reason. Layer opens a layer that the metadata speaks of; it fails with
// image.ErrNotFound if it is gone.
type CacheReader interface {
	Load(ctx context.Context) (spec.CacheMetadata, bool, error)
	Layer(ctx context.Context, diffID string) (v1.Layer, error)
}

// Place makes the contents of a cached layer show through at rel ("<escaped
// id>/<layer>") of the layers directory, or fails and leaves nothing there. It
// is called for several layers at once. See Extract; a host with overlays
// keeps the layer's tree for a lower directory instead, and moves no byte.
type Place func(ctx context.Context, rel string, l v1.Layer) error

// RestoreSetting is what else a restoration depends on.
type RestoreSetting struct {
	PlatformAPI string
	// SkipLayers restores nothing but store.toml.
	SkipLayers bool
	// ExecEnv is CNB_EXEC_ENV; empty is the default. Nothing of a build for
	// another environment is restored.
	ExecEnv string
	// PlaceSBOM, unless it is nil, puts the SBOM layers of the last build in
	// place for Build: that of Previous, which may be nil, and that of the cache.
	// Analyze has no need to restore SBOMs then.
	PlaceSBOM PlaceSBOM
	Previous  v1.Image
}

// PlaceSBOM makes an SBOM layer show through at rel (sbom/launch or sbom/cache)
// of the layers directory, without a byte of it below layers.Upper. It returns
// where to read it: a view of the layers directory with that layer in it. It
// fails for layers that it does not place, which is no reason for a warning.
type PlaceSBOM func(ctx context.Context, rel string, l v1.Layer) (layer.Stack, error)

// Known says which layers are in the layers directory as a tar that exists
// already has them: "<escaped id>/<layer>", or "sbom/launch" and "sbom/cache",
// to the tar's diffID.
type Known map[string]string

// Restore gives the buildpacks of group back what they left last time (Platform
// API, "restorer"): store.toml, and for each layer as its types say the
// metadata, the SBOM and the contents. cache may be nil.
//
// Metadata comes from the previous image, of which a tells, and from the cache;
// contents only from the cache, and only with the metadata that belongs to
// them. A damaged or missing layer is not restored at all: that is a warning,
// never an error. What is written goes below layers.Upper. The result names the
// layers whose contents were placed.
func Restore(ctx context.Context, cache CacheReader, place Place, group spec.Group, a spec.Analyzed, layers Tree, set RestoreSetting, sink event.Sink) (Known, error) {
	known, err := restore(ctx, cache, place, group, a, layers, set, sink)
	if _, coded := errors.AsType[*spec.ExitError](err); err != nil && !coded {
		err = spec.Exit(spec.ExitRestore, err)
	}
	return known, err
}

func restore(ctx context.Context, cache CacheReader, place Place, group spec.Group, a spec.Analyzed, layers Tree, set RestoreSetting, sink event.Sink) (Known, error) {
	root, err := os.OpenRoot(layers.Upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	r := &restorer{cache: cache, place: place, root: root, layers: layers, set: set, sink: sink, known: Known{}}
	for _, e := range group.Group {
		r.members = append(r.members, &restoring{id: e.ID, dir: spec.EscapeID(e.ID)})
	}
	if otherExecEnv(a, set.PlatformAPI, set.ExecEnv) {
		info(sink, "nothing is restored: the last build was for the execution environment %s", previousExecEnv(a))
		return r.known, r.dropSBOMs()
	}
	if err := r.restoreStores(a.Metadata); err != nil {
		return nil, err
	}
	if set.SkipLayers {
		return r.known, r.dropSBOMs()
	}
	cached := r.load(ctx)
	r.choose(a.Metadata, cached)
	if err := r.placeAll(ctx); err != nil {
		return nil, err
	}
	if err := r.writeMetadata(); err != nil {
		return nil, err
	}
	if err := r.restoreSBOMs(ctx, a.Metadata, cached); err != nil {
		return nil, err
	}
	return r.known, r.dropSBOMs()
}

type restorer struct {
	cache  CacheReader
	place  Place
	root   *os.Root // layers.Upper; nothing is written outside of it
	layers Tree
	set    RestoreSetting
	sink   event.Sink

	members []*restoring

	mu    sync.Mutex
	known Known
}

// restoring is one buildpack and what it gets back.
type restoring struct {
	id, dir string
	made    bool
	layers  map[string]wanted
}

// wanted is a layer to restore. contents is its diffID in the cache, "" if only
// the metadata comes back.
type wanted struct {
	data     map[string]any
	contents string
}

func (r *restorer) restoreStores(md spec.LifecycleMetadata) error {
	if r.set.SkipLayers && !spec.Has(r.set.PlatformAPI, spec.PlatformStoreAlways) {
		return nil
	}
	for _, m := range r.members {
		b := buildpackLayers(md.Buildpacks, m.id)
		if b.Store == nil || len(b.Store.Metadata) == 0 {
			continue
		}
		body, err := encode.TOML(*b.Store)
		if err == nil {
			err = r.write(m, "store.toml", body)
		}
		if err != nil {
			return fmt.Errorf("restore store.toml of %s: %w", m.id, err)
		}
	}
	return nil
}

// buildpackLayers is what metadata says of a buildpack.
func buildpackLayers(list []spec.BuildpackLayers, id string) spec.BuildpackLayers {
	if i := slices.IndexFunc(list, func(b spec.BuildpackLayers) bool { return b.Key == id }); i >= 0 {
		return list[i]
	}
	return spec.BuildpackLayers{}
}

func (r *restorer) load(ctx context.Context) spec.CacheMetadata {
	if r.cache == nil {
		warn(r.sink, "no cache: cached layers are not restored")
		return spec.CacheMetadata{}
	}
	md, ok, err := r.cache.Load(ctx)
	if err != nil {
		warn(r.sink, "the cache is not used: %v", err)
	}
	if !ok || err != nil {
		return spec.CacheMetadata{}
	}
	return md
}

// choose decides which layers come back (requirements 2.3).
func (r *restorer) choose(md spec.LifecycleMetadata, cached spec.CacheMetadata) {
	for _, m := range r.members {
		m.layers = map[string]wanted{}
		inImage, inCache := buildpackLayers(md.Buildpacks, m.id).Layers, buildpackLayers(cached.Buildpacks, m.id).Layers
		for name, l := range inImage {
			c, hit := inCache[name]
			switch {
			case !l.Launch || l.Build && !l.Cache || spec.ValidateLayerName(name) != nil || !r.inExecEnv(l):
			case !l.Cache:
				m.layers[name] = wanted{data: l.Data}
			case hit && c.Cache && c.SHA == l.SHA:
				m.layers[name] = wanted{data: l.Data, contents: c.SHA}
			case hit && c.Cache:
				info(r.sink, "layer %s:%s is not restored: the cache has it from another build", m.id, name)
			}
		}
		for name, c := range inCache {
			l, hit := inImage[name]
			hit = hit && l.Launch
			skip := c.Launch && (hit || !spec.Has(r.set.PlatformAPI, spec.PlatformRestoreWithoutImage))
			if c.Cache && !skip && spec.ValidateLayerName(name) == nil && r.inExecEnv(c) {
				m.layers[name] = wanted{data: c.Data, contents: c.SHA}
			}
		}
	}
}

// inExecEnv tells whether a layer is meant for this execution environment, of
// which its buildpack may have said something in its metadata (Buildpack API,
// "Layer Content Metadata").
func (r *restorer) inExecEnv(l spec.LayerMetadata) bool {
	if !spec.Has(r.set.PlatformAPI, spec.PlatformExecEnv) {
		return true
	}
	values, _ := l.Data["exec-env"].([]any)
	var list []string
	for _, v := range values {
		if s, ok := v.(string); ok {
			list = append(list, s)
		}
	}
	return spec.InExecEnv(list, execEnvOf(r.set.ExecEnv))
}

// placeAll puts the contents in place. A layer whose contents do not come has
// no metadata either.
func (r *restorer) placeAll(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, m := range r.members {
		for _, name := range slices.Sorted(maps.Keys(m.layers)) {
			if m.layers[name].contents == "" {
				continue
			}
			// Extract moves it to this directory; r.mkdir is not for goroutines.
			if err := r.mkdir(m); err != nil {
				return errors.Join(err, group.Wait())
			}
			diffID := m.layers[name].contents
			group.Go(func() error { return r.placeOne(gctx, m, name, diffID) })
		}
	}
	return group.Wait()
}

func (r *restorer) placeOne(ctx context.Context, m *restoring, name, diffID string) error {
	rel := path.Join(m.dir, name)
	l, err := r.cache.Layer(ctx, diffID)
	if err == nil {
		err = r.place(ctx, rel, l)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.known[rel] = diffID
		return nil
	case errors.Is(err, image.ErrNotFound):
		err = errors.New("it is not in the cache any more")
	}
	warn(r.sink, "layer %s:%s is not restored: %v", m.id, name, err)
	delete(m.layers, name)
	return nil
}

func (r *restorer) writeMetadata() error {
	for _, m := range r.members {
		for _, name := range slices.Sorted(maps.Keys(m.layers)) {
			// Without types: the buildpack has to opt in again.
			body, err := encode.TOML(struct {
				Metadata map[string]any `toml:"metadata,omitempty"`
			}{m.layers[name].data})
			if err == nil {
				err = r.write(m, name+".toml", body)
			}
			if err != nil {
				return fmt.Errorf("restore metadata of layer %s:%s: %w", m.id, name, err)
			}
		}
	}
	return nil
}

// mkdir makes the buildpack's directory with the mode that it has in a first
// build, whatever the umask here is: the mode is in every layer's tar.
func (r *restorer) mkdir(m *restoring) error {
	if m.made {
		return nil
	}
	err := r.root.Mkdir(m.dir, layersDirMode)
	if errors.Is(err, fs.ErrExist) {
		fi, serr := r.root.Lstat(m.dir)
		if serr == nil && fi.IsDir() {
			m.made = true
			return nil
		}
		// Foreign code has been here: a link goes, and what it leads to stays.
		if err = errors.Join(serr, r.root.Remove(m.dir)); err == nil {
			err = r.root.Mkdir(m.dir, layersDirMode)
		}
	}
	if err == nil {
		err = r.root.Chmod(m.dir, layersDirMode)
	}
	m.made = err == nil
	return err
}

// layersDirMode is the mode of <layers>/<id>.
const layersDirMode = 0o755

// write writes a file of a buildpack's directory. What is in the way goes.
func (r *restorer) write(m *restoring, file string, body []byte) error {
	if err := r.mkdir(m); err != nil {
		return err
	}
	name := filepath.Join(m.dir, file)
	if err := r.root.RemoveAll(name); err != nil {
		return err
	}
	if err := r.root.WriteFile(name, body, 0o644); err != nil {
		return err
	}
	return r.root.Chmod(name, 0o644)
}

// Extract is a Place that unpacks layers into the directory layers.Upper. They
// are unpacked aside and checked first, and moved when they are whole.
func Extract(layers Tree) Place {
	return func(ctx context.Context, rel string, l v1.Layer) error {
		return withUnpacked(ctx, l, layers, func(a *aside) error { return a.moveOut(layers.inImage(rel), rel) })
	}
}
