package platform

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/phase"
)

// baseKey is a run image for a platform, in the daemon or elsewhere.
type baseKey struct {
	name, platform string
	daemon         bool
}

// newBase is a run image of a rebase and its layers in every form and place
// that they are needed in, each made once.
type newBase struct {
	phase.NewBase
	// host is the registry that the layers are in; "" is the store, or the daemon.
	host     string
	inDaemon bool
	// stored is the same image in the store, packed the same with every layer
	// compressed.
	stored, packed func() (v1.Image, error)

	mu    sync.Mutex
	seeds map[string]*seed // by registry
}

// seed is where in a registry the layers of a run image from elsewhere are, once
// they are: whoever comes later has them linked. img is nil before.
type seed struct {
	mu  sync.Mutex
	img v1.Image
}

// baseOf opens the run image for app: the one that was asked for, or the one
// that app names, from the registry that app is in if it can be.
func (r *rebaser) baseOf(ctx context.Context, app v1.Image, at imageAt) (*newBase, error) {
	ref := bareName(r.req.RunImage)
	if ref == "" {
		target := at.ref
		if at.kind != ToStore && at.kind != ToRegistry {
			target = ""
		}
		var err error
		if ref, err = phase.RunImageFor(ctx, r.runImages(at), app, target); err != nil {
			return nil, err
		}
	}
	cf, err := app.ConfigFile()
	if err != nil {
		return nil, err
	}
	key := baseKey{ref, v1.Platform{OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant}.String(), at.kind == ToDaemon}
	r.mu.Lock()
	open, known := r.bases[key]
	if !known {
		open = sync.OnceValues(func() (*newBase, error) { return r.openBase(ctx, app, at, ref) })
		r.bases[key] = open
	}
	r.mu.Unlock()
	return open()
}

// runImages is where run images for an image are looked for.
func (r *rebaser) runImages(at imageAt) image.Source {
	if d, ok := at.place.(daemonPlace); ok {
		return &daemonRunImages{runImages: &runImages{rebaser: r}, daemon: d}
	}
	if _, ok := inDaemon(r.req.RunImage); ok {
		return daemonImages{r.Platform}
	}
	return &runImages{rebaser: r}
}

func (r *rebaser) openBase(ctx context.Context, app v1.Image, at imageAt, ref string) (*newBase, error) {
	from := r.runImages(at)
	opened, err := phase.OpenNewBase(ctx, from, app, ref)
	if err != nil {
		return nil, err
	}
	b := &newBase{NewBase: opened, seeds: map[string]*seed{}}
	switch from := from.(type) {
	case *runImages:
		b.host = from.host
	case *daemonRunImages:
		b.host, b.inDaemon = from.host, from.there
	}
	b.stored = sync.OnceValues(func() (v1.Image, error) { return r.pull(ctx, b) })
	b.packed = sync.OnceValues(func() (v1.Image, error) {
		img, err := b.stored()
		if err != nil {
			return nil, err
		}
		if plain, err := hasPlainLayers(img); err != nil || !plain {
			return img, err
		}
		return compressed(ctx, r.Store, img)
	})
	return b, nil
}

func hasPlainLayers(img v1.Image) (bool, error) {
	m, err := img.Manifest()
	if err != nil {
		return false, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return false, err
	}
	for i, l := range m.Layers {
		if i < len(cf.RootFS.DiffIDs) && l.Digest == cf.RootFS.DiffIDs[i] {
			return true, nil
		}
	}
	return false, nil
}

// pull brings a run image into the store, under its name if it is one for this
// machine: builds would take another one for theirs.
func (r *rebaser) pull(ctx context.Context, b *newBase) (v1.Image, error) {
	if b.host == "" {
		return b.Image, nil
	}
	cf, err := b.Image.ConfigFile()
	if err != nil {
		return nil, err
	}
	ref := b.Name
	if r.fits("", cf) != nil {
		ref = b.Reference
	}
	r.info("pulling %s", b.Name)
	if err := r.Store.Write(ctx, ref, b.Image); err != nil {
		return nil, fmt.Errorf("pull %s: %w", b.Name, err)
	}
	return r.Store.Image(ctx, ref)
}

// near is the run image with its layers where the place of an image gets them
// soonest. Layers that a registry does not have are sent to it once: done is
// called with how to open the image that has them there now, or nil.
func (b *newBase) near(ctx context.Context, to imageAt) (near phase.NewBase, done func(func() (v1.Image, error)), err error) {
	near, done = b.NewBase, func(func() (v1.Image, error)) {}
	switch to.kind {
	case ToStore, ToDockerArchive, ToDaemon:
		if b.inDaemon {
			return near, done, nil
		}
		near.Image, err = b.stored()
		return near, done, err
	case ToLayout, ToOCIArchive:
		near.Image, err = b.packed()
		return near, done, err
	}
	host, _ := registryOf(to.ref)
	if host == b.host {
		return near, done, nil
	}
	if near.Image, err = b.packed(); err != nil {
		return near, done, err
	}
	b.mu.Lock()
	s := b.seeds[host]
	if s == nil {
		s = &seed{}
		b.seeds[host] = s
	}
	b.mu.Unlock()
	s.mu.Lock()
	if s.img != nil {
		defer s.mu.Unlock()
		near.Image = seeded{near.Image, s.img}
		return near, done, nil
	}
	// The first one sends, while the others wait.
	var once sync.Once
	return near, func(open func() (v1.Image, error)) {
		once.Do(func() {
			defer s.mu.Unlock()
			if open == nil {
				return
			}
			// Without it the next one sends them again: slower, not wrong.
			s.img, _ = open()
		})
	}, nil
}

// seeded is an image whose layers are taken from another one, where that has them.
type seeded struct {
	v1.Image
	from v1.Image
}

// Layers implements v1.Image.
func (s seeded) Layers() ([]v1.Layer, error) {
	layers, err := s.Image.Layers()
	if err != nil {
		return nil, err
	}
	layers = slices.Clone(layers)
	for i, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return nil, err
		}
		if there, err := s.from.LayerByDigest(digest); err == nil {
			layers[i] = there
		}
	}
	return layers, nil
}

// runImages is where run images are looked for.
type runImages struct {
	*rebaser
	// host is the registry that the last one was in; "" is no registry.
	host string
}

// Image implements image.Source.
func (s *runImages) Image(ctx context.Context, ref string) (v1.Image, error) {
	return s.ImageFor(ctx, ref, v1.Platform{OS: "linux", Architecture: s.Arch})
}

// ImageFor implements image.PlatformSource.
func (s *runImages) ImageFor(ctx context.Context, ref string, want v1.Platform) (img v1.Image, err error) {
	s.host = ""
	if place, inner, ok := archive.Parse(ref); ok {
		return place.Image(ctx, inner)
	}
	if s.storeFirst(ref) {
		if img, err = s.inStore(ctx, ref, want); !errors.Is(err, image.ErrNotFound) || s.req.Pull == PullNever {
			return img, err
		}
	}
	reg, err := s.registry()
	if err != nil {
		return nil, err
	}
	img, err = reg.ImageFor(ctx, ref, want)
	if err == nil {
		s.host, _ = registryOf(ref)
		return img, nil
	}
	if errors.Is(err, image.ErrNotFound) && !s.storeFirst(ref) {
		if img, err := s.inStore(ctx, ref, want); err == nil {
			return img, nil
		}
	}
	return nil, err
}

// storeFirst says whether a run image is looked for in the store before its
// registry is asked.
func (s *runImages) storeFirst(ref string) bool {
	return s.req.Pull != PullAlways || !namesRegistry(ref)
}

// namesRegistry says whether a name begins with a registry's: one without is the
// store's own, as kiln/run is.
func namesRegistry(ref string) bool {
	first, _, found := strings.Cut(ref, "/")
	return found && (strings.ContainsAny(first, ".:") || first == "localhost")
}

// inStore opens a run image of the store. One for another platform is none.
func (s *runImages) inStore(ctx context.Context, ref string, want v1.Platform) (v1.Image, error) {
	img, err := s.Store.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if cf.OS != want.OS || cf.Architecture != want.Architecture {
		return nil, fmt.Errorf("run image %s in the store is for %s/%s: %w", ref, cf.OS, cf.Architecture, image.ErrNotFound)
	}
	return img, nil
}

// CheckRead implements image.AccessChecker: each name is asked for once.
func (s *runImages) CheckRead(ctx context.Context, ref string) error {
	s.mu.Lock()
	check, known := s.readable[ref]
	if !known {
		check = sync.OnceValue(func() error { return s.check(ctx, ref) })
		s.readable[ref] = check
	}
	s.mu.Unlock()
	return check()
}

func (s *runImages) check(ctx context.Context, ref string) error {
	if s.storeFirst(ref) {
		if _, err := s.Store.Image(ctx, ref); err == nil || s.req.Pull == PullNever {
			return err
		}
	}
	reg, err := s.registry()
	if err != nil {
		return err
	}
	return reg.CheckRead(ctx, ref)
}

// CheckWrite implements image.AccessChecker. Nobody writes run images.
func (s *runImages) CheckWrite(context.Context, string) error {
	return errors.New("run images are read only")
}

var (
	_ image.PlatformSource = (*runImages)(nil)
	_ image.AccessChecker  = (*runImages)(nil)
)
