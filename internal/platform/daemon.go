package platform

import (
	"context"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// inDaemon is the name of an image that is in the Docker or podman daemon, as
// skopeo writes it: docker-daemon:NAME.
func inDaemon(ref string) (name string, ok bool) {
	return strings.CutPrefix(ref, string(ToDaemon)+":")
}

// bareName is a name without what says that the image is in the daemon.
func bareName(ref string) string {
	name, _ := inDaemon(ref)
	return name
}

// onThisHost says whether a name is that of a file of this host or of an image
// in its daemon. Only the user may speak of those: no builder, and no document
// that foreign code can write to.
func onThisHost(ref string) bool {
	_, _, file := archive.Parse(ref)
	_, daemon := inDaemon(ref)
	return file || daemon
}

// described is the daemon's images by what it tells of them.
func (p *Platform) described(ctx context.Context) (daemonPlace, error) {
	d, err := p.Daemon(ctx)
	return daemonPlace{daemon.Described{Daemon: d}, p.Store}, err
}

// fromDaemon takes an image out of the daemon. The whole of it is kept in the
// store, under a name of kiln's own, so it is transferred once.
func (p *Platform) fromDaemon(ctx context.Context, name string) (v1.Image, error) {
	d, err := p.Daemon(ctx)
	if err != nil {
		return nil, err
	}
	img, err := d.Image(ctx, name)
	if errors.Is(err, image.ErrNotFound) {
		err = spec.WithHint(err, "docker images lists what is there; --docker-host names another daemon")
	}
	if err != nil {
		return nil, err
	}
	id, err := d.Pin(name, img)
	if err != nil {
		return nil, err
	}
	ref := "kiln/docker-daemon:" + strings.TrimPrefix(id, "sha256:")
	for _, known := range []string{id, ref} {
		kept, err := p.Store.Image(ctx, known)
		if !errors.Is(err, image.ErrNotFound) {
			return kept, err
		}
	}
	p.info("taking %s out of the docker daemon", name)
	if err := p.Store.Write(ctx, ref, img); err != nil {
		return nil, fmt.Errorf("take %s out of the docker daemon: %w", name, err)
	}
	return p.Store.Image(ctx, ref)
}

// daemonImages is the daemon's images, kept in the store.
type daemonImages struct{ *Platform }

// Image implements image.Source.
func (d daemonImages) Image(ctx context.Context, ref string) (v1.Image, error) {
	return d.fromDaemon(ctx, ref)
}

// daemonRunImages is where run images for images in the daemon are looked for:
// there, then where others are.
type daemonRunImages struct {
	*runImages
	daemon daemonPlace
	there  bool // the last one was
}

// ImageFor implements image.PlatformSource.
func (s *daemonRunImages) ImageFor(ctx context.Context, ref string, want v1.Platform) (v1.Image, error) {
	img, err := s.daemon.Image(ctx, ref)
	if s.there = err == nil; s.there || !errors.Is(err, image.ErrNotFound) {
		return img, err
	}
	return s.runImages.ImageFor(ctx, ref, want)
}

// CheckRead implements image.AccessChecker.
func (s *daemonRunImages) CheckRead(ctx context.Context, ref string) error {
	_, err := s.daemon.Image(ctx, ref)
	if errors.Is(err, image.ErrNotFound) {
		return s.runImages.CheckRead(ctx, ref)
	}
	return err
}

// Pin implements image.Pinner.
func (s *daemonRunImages) Pin(ref string, img v1.Image) (string, error) {
	if s.there {
		return s.daemon.Pin(ref, img)
	}
	return image.DigestReference(ref, img)
}

// daemonPlace is the daemon, with images whose layers are taken from the store
// where that has them: to read one from the daemon is to take out the image.
type daemonPlace struct {
	daemon.Described
	store *store.Store
}

// Image implements image.Source.
func (d daemonPlace) Image(ctx context.Context, ref string) (v1.Image, error) {
	img, err := d.Described.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &atHand{Image: img, ctx: ctx, store: d.store}, nil
}

// Pin implements image.Pinner.
func (d daemonPlace) Pin(ref string, img v1.Image) (string, error) {
	if a, ok := img.(*atHand); ok {
		img = a.Image
	}
	return d.Described.Pin(ref, img)
}

type atHand struct {
	v1.Image
	ctx   context.Context // v1.Image has no room for one
	store *store.Store
}

// Layers implements v1.Image.
func (a *atHand) Layers() ([]v1.Layer, error) {
	layers, err := a.Image.Layers()
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		layers[i] = a.nearest(l)
	}
	return layers, nil
}

// LayerByDiffID implements v1.Image.
func (a *atHand) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	l, err := a.Image.LayerByDiffID(h)
	if err != nil {
		return nil, err
	}
	return a.nearest(l), nil
}

func (a *atHand) nearest(l v1.Layer) v1.Layer {
	diffID, err := l.DiffID()
	if err != nil {
		return l
	}
	if here, err := a.store.Layer(a.ctx, diffID.String()); err == nil {
		return here
	}
	return l
}
