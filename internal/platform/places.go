package platform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// place is somewhere an image can be written to and read back from.
type place interface {
	image.Source
	image.Target
}

// destinations is every place that a build writes to. It is the Target of the
// export, and the Source of the previous image; run images come from the store,
// where they are pulled to.
type destinations struct {
	platform *Platform
	insecure []string
	outputs  []*output
	// names are the image's own, all forms normalised: whatever else is asked
	// for is a run image.
	names []string
	// run is what the app is put on.
	run v1.Image
	// hosts are the registries that the step under way may speak to.
	hosts []string
	// here is the run image if the user named one that is a file of this host, or
	// in its daemon. No other such is read: what asks for a run image is a document
	// that foreign code can write.
	here string
	// writing says that the export has begun: what is read from now on is what
	// was written, not what was there before.
	writing atomic.Bool
}

// openDestinations opens where the image shall go; no output means the store.
func (b *build) openDestinations(ctx context.Context) (*destinations, error) {
	d := &destinations{platform: b.Platform, insecure: b.req.Insecure, here: b.req.RunImage}
	for _, n := range append([]string{b.req.Image}, b.req.Tags...) {
		name, err := ParseImageName(n)
		if err != nil {
			return nil, err
		}
		d.names = append(d.names, name.Full)
	}
	outputs := b.req.Outputs
	if len(outputs) == 0 {
		outputs = []Destination{{Kind: ToStore}}
	}
	for _, o := range outputs {
		p, err := b.openDestination(ctx, o)
		if err != nil {
			return nil, err
		}
		d.outputs = append(d.outputs, newOutput(p, o))
	}
	return d, nil
}

func (b *build) openDestination(ctx context.Context, o Destination) (place, error) {
	switch o.Kind {
	case ToStore:
		return b.Store, nil
	case ToRegistry:
		reg, err := b.Registry(b.req.Insecure)
		if err != nil {
			return nil, err
		}
		return remote{Registry: reg, store: b.Store}, nil
	case ToLayout:
		return compressing{archive.Layout{Dir: o.Path}, b.Store}, nil
	case ToOCIArchive:
		return single{compressing{archive.OCIArchive{Path: o.Path}, b.Store}, b.req.Image}, nil
	case ToDockerArchive:
		return single{archive.DockerArchive{Path: o.Path}, b.req.Image}, nil
	case ToDaemon:
		return b.described(ctx)
	}
	return nil, fmt.Errorf("output of kind %q is not known", o.Kind)
}

// Image implements image.Source.
func (d *destinations) Image(ctx context.Context, ref string) (v1.Image, error) {
	if !d.own(ref) {
		return d.runImage(ctx, ref)
	}
	if err := d.outputs[0].allowed(d, ref); err != nil {
		return nil, err
	}
	img, err := d.outputs[0].Image(ctx, ref)
	if err == nil || d.writing.Load() || ctx.Err() != nil {
		return img, err
	}
	for _, stop := range []error{image.ErrNotFound, image.ErrUnauthorized, image.ErrUnavailable} {
		if errors.Is(err, stop) {
			return nil, err
		}
	}
	d.platform.warn("the previous image is not used: %v", err)
	return nil, fmt.Errorf("%w: %w", image.ErrNotFound, err)
}

// runImage opens a run image: from a registry only where the step may speak to
// that.
func (d *destinations) runImage(ctx context.Context, ref string) (v1.Image, error) {
	if _, daemon := inDaemon(d.here); daemon && ref == bareName(d.here) {
		return d.platform.open(ctx, d.here, d.insecure)
	}
	if onThisHost(ref) && ref != d.here {
		return nil, fmt.Errorf("image %s: only --run-image names files and images of this host", ref)
	}
	refused := d.within(ref)
	if refused == nil {
		return d.platform.open(ctx, ref, d.insecure)
	}
	img, err := d.platform.Store.Image(ctx, ref)
	if errors.Is(err, image.ErrNotFound) {
		err = fmt.Errorf("%w, and %w", err, refused)
		err = spec.WithHint(err, "--run-image names another run image, and lets kiln speak to its registry")
	}
	return img, err
}

// own says whether ref is the image itself, by tag or digest.
func (d *destinations) own(ref string) bool {
	repo, _, byDigest := strings.Cut(ref, "@")
	n, err := ParseImageName(repo)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(d.names, func(name string) bool {
		return name == n.Full || byDigest && repository(name) == repository(n.Full)
	})
}

// within refuses a reference into a registry that the step under way does not
// name: credentials go where the plan says, and nowhere else.
func (d *destinations) within(ref string) error {
	if host, ok := registryOf(ref); ok && !slices.Contains(d.hosts, host) {
		return fmt.Errorf("this step must not speak to %s for the image %s", host, ref)
	}
	return nil
}

func repository(full string) string {
	if i := strings.LastIndexByte(full, ':'); i > strings.LastIndexByte(full, '/') {
		return full[:i]
	}
	return full
}

// Write implements image.Target. In each place the image is read back and
// validated. A place that fails keeps no other from being written to; the error
// says which were.
func (d *destinations) Write(ctx context.Context, ref string, img v1.Image) error {
	d.writing.Store(true)
	var errs []error
	var done []string
	for _, o := range d.outputs {
		err := o.allowed(d, ref)
		if err == nil {
			err = o.deliver(ctx, d, ref, img)
		}
		if err == nil {
			done = append(done, o.String())
			continue
		}
		if len(d.outputs) > 1 {
			err = fmt.Errorf("to %s: %w", o, err)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	err := errors.Join(errs...)
	if err != nil && len(done) > 0 {
		return fmt.Errorf("%w; it was written to %s", err, strings.Join(done, " and "))
	}
	return err
}

// CheckRead implements image.AccessChecker: a registry is asked before
// anything is built for it.
func (d *destinations) CheckRead(ctx context.Context, ref string) error {
	if !d.own(ref) {
		return nil
	}
	return d.check(ref, func(c image.AccessChecker) error { return c.CheckRead(ctx, ref) })
}

// CheckWrite implements image.AccessChecker.
func (d *destinations) CheckWrite(ctx context.Context, ref string) error {
	return d.check(ref, func(c image.AccessChecker) error { return c.CheckWrite(ctx, ref) })
}

func (d *destinations) check(ref string, ask func(image.AccessChecker) error) error {
	for _, o := range d.outputs {
		if err := o.allowed(d, ref); err != nil {
			return err
		}
		if c, ok := o.place.(image.AccessChecker); ok {
			if err := ask(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// compressing writes layers gzipped, as everybody expects them in transport.
// The compressed form is kept in the store, so it is made once.
type compressing struct {
	place
	store *store.Store
}

// Write implements image.Target.
func (c compressing) Write(ctx context.Context, ref string, img v1.Image) error {
	small, err := compressed(ctx, c.store, img)
	if err != nil {
		return err
	}
	return c.place.Write(ctx, ref, small)
}

// remote is a registry that layers are sent to compressed.
type remote struct {
	*registry.Registry
	store *store.Store
}

// Write implements image.Target.
func (r remote) Write(ctx context.Context, ref string, img v1.Image) error {
	return compressing{r.Registry, r.store}.Write(ctx, ref, img)
}

// single is an archive: it holds one image under one name, so further tags say
// nothing that it could keep.
type single struct {
	place
	name string
}

// Write implements image.Target.
func (s single) Write(ctx context.Context, ref string, img v1.Image) error {
	if ref != s.name {
		return nil
	}
	return s.place.Write(ctx, ref, img)
}

// Image implements image.Source.
func (s single) Image(ctx context.Context, _ string) (v1.Image, error) {
	return s.place.Image(ctx, "")
}

// compressed is img with every layer compressed; its ID stays.
func compressed(ctx context.Context, st *store.Store, img v1.Image) (v1.Image, error) {
	return image.MapLayers(img, func(l v1.Layer) (v1.Layer, error) { return st.Compressed(ctx, l) })
}

// appCache is one app's cache in the store.
type appCache struct {
	*store.Cache
	store *store.Store
}

// Layer implements phase.CacheReader.
func (c appCache) Layer(ctx context.Context, diffID string) (v1.Layer, error) {
	return c.store.Layer(ctx, diffID)
}

// Save implements phase.CacheWriter: the layers are in the store.
func (c appCache) Save(ctx context.Context, md spec.CacheMetadata, _ func(context.Context, string) (v1.Layer, error)) error {
	return c.Cache.Save(ctx, md)
}

// cacheKey says whose cache it is: the image's, by name, whoever the builder
// builds as, since the owner is in every byte of a layer.
func (b *build) cacheKey() (string, error) {
	n, err := ParseImageName(b.req.Image)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d:%d", n.Full, b.root.UID, b.root.GID), nil
}

// lowers collects the trees of restored layers, for the overlay of /layers.
type lowers struct {
	mu   sync.Mutex
	dirs map[string]string // by path below /layers
}

// place is a phase.Place: the layer's tree, which is in the store already or is
// unpacked once, becomes a lower directory. No byte moves.
func (b *build) placeLayer(ctx context.Context, rel string, l v1.Layer) error {
	tree, err := b.Store.Tree(ctx, l)
	if err != nil {
		return err
	}
	b.restored.mu.Lock()
	defer b.restored.mu.Unlock()
	if b.restored.dirs == nil {
		b.restored.dirs = map[string]string{}
	}
	b.restored.dirs[rel] = filepath.Join(tree, dirLayers)
	return nil
}

// list is the trees in a fixed order.
func (l *lowers) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var dirs []string
	for _, rel := range slices.Sorted(maps.Keys(l.dirs)) {
		dirs = append(dirs, l.dirs[rel])
	}
	return dedupe(dirs)
}

// Remove takes an image out of the store, and its cache with it.
func (p *Platform) Remove(ctx context.Context, ref string) error {
	if err := p.Store.Delete(ctx, ref); err != nil {
		return err
	}
	n, err := ParseImageName(ref)
	if err != nil {
		return nil // removed by digest or ID: the cache goes with the name
	}
	return p.Store.Cache(fmt.Sprintf("%s %d:%d", n.Full, baseUser, baseUser)).Clear(ctx)
}

// Manifest is the raw manifest of an image.
func (p *Platform) Manifest(ctx context.Context, ref string, insecure []string) ([]byte, error) {
	img, err := p.open(ctx, ref, insecure)
	if err != nil {
		return nil, err
	}
	return img.RawManifest()
}
