package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/spec"
)

// places completes what the host gives with what a plain container has: images
// are in registries, or where -layout or -daemon says. What they are reached by
// is opened here, and nothing of it is read.
func (h Host) places(ctx context.Context, in inputs) (*Places, error) {
	p := h.Places
	if p == nil {
		p = &Places{}
	}
	if p.Source != nil && p.Target != nil {
		return p, nil
	}
	r, err := h.registry(in, p)
	if err != nil {
		return nil, err
	}
	place, err := h.place(ctx, in, r)
	if err != nil {
		return nil, err
	}
	if p.Source == nil {
		p.Source = place
	}
	if p.Target == nil {
		p.Target = place
	}
	return p, nil
}

// place is where the app image goes, and where run image and previous image are.
func (h Host) place(ctx context.Context, in inputs, r *registry.Registry) (interface {
	image.Source
	image.Target
}, error) {
	switch {
	case in.layout:
		return archive.LayoutDir{Dir: string(in.layoutDir)}, h.experimental(in, "OCI layouts")
	case in.daemon:
		o := daemon.Options{
			Host:          in.dockerHost,
			OneConnection: os.Geteuid() == 0, // the build user may not be let in
			Unpack: func(ctx context.Context, file string) (v1.Image, error) {
				return archive.DockerArchive{Path: file}.Image(ctx, "")
			},
		}
		if in.dockerCertPath != "" {
			var err error
			if o.TLS, err = daemon.ClientTLS(string(in.dockerCertPath), in.dockerTLSVerify != ""); err != nil {
				return nil, err
			}
		}
		d, err := daemon.Open(ctx, o)
		return daemon.Described{Daemon: d}, err
	}
	return r, nil
}

// registry is the registries of the build, whatever else images are in.
func (h Host) registry(in inputs, p *Places) (r *registry.Registry, err error) {
	if p.registry == nil {
		p.registry, err = registry.New(registry.Options{Auth: in.registryAuth, Insecure: in.insecure, Events: h.Events})
	}
	return p.registry, err
}

// inDaemon tells whether the images of the build are in a daemon.
func (p *Places) inDaemon() bool {
	_, ok := p.Source.(daemon.Described)
	return ok
}

// close ends the use of a daemon.
func (p *Places) close() {
	if d, ok := p.Source.(daemon.Described); ok {
		_ = d.Close() // all was read, or the error has been told
	}
}

// checkNames holds the names of a build to the rules of the place that they are
// in; a host's own target has its own.
func (p *Places) checkNames(names phase.Names) error {
	var err error
	switch to := p.Target.(type) {
	case *registry.Registry:
		err = names.Check()
	case daemon.Described:
		err = names.CheckReferences()
	case archive.LayoutDir:
		err = errors.Join(names.CheckReferences(), mapped(to, append(names.Tags, names.Image, names.Previous, names.Run)))
	}
	return spec.Exit(spec.ExitInvalidArgs, err)
}

// mapped makes sure that every reference has a path in a layout directory.
func mapped(to archive.LayoutDir, refs []string) error {
	for _, ref := range refs {
		if _, err := to.Path(ref); ref != "" && err != nil {
			return err
		}
	}
	return nil
}

// checkTags makes sure that images can be written under all of these names.
func (p *Places) checkTags(images []string) error {
	for _, ref := range images {
		if strings.Contains(ref, "@") {
			return invalid("image %q: a new image gets a name and a tag; its digest is only known when it is made", ref)
		}
		if _, err := name.NewTag(ref); err != nil {
			return invalid("image %q: %w", ref, err)
		}
	}
	return p.checkNames(phase.Names{Image: images[0], Tags: images[1:]})
}

// checkShared refuses to write an app image under the name of a run image: in a
// daemon it would take its place, for everybody who builds there. chosen is the
// run image that was named, if one was.
func (p *Places) checkShared(images []string, run spec.RunTOML, chosen string) error {
	if _, ok := p.Target.(daemon.Described); !ok {
		return nil
	}
	names := append([]string{chosen}, run.Names()...)
	for _, ref := range images {
		same := func(other string) bool { return fullName(other) == fullName(ref) }
		if i := slices.IndexFunc(names, same); i >= 0 {
			return invalid("image %s: that is the name of the run image %s", ref, names[i])
		}
	}
	return nil
}

func fullName(ref string) string {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return ref
	}
	return parsed.Name()
}

// checkCacheName refuses a cache image of another's name: it would take that
// image's place.
func (p *Places) checkCacheName(cacheImage string, others ...string) error {
	if _, ok := p.Target.(*registry.Registry); !ok || cacheImage == "" {
		return nil // the others are elsewhere
	}
	for _, other := range others {
		if other != "" && fullName(other) == fullName(cacheImage) {
			return invalid("cache image %s: that is the name of another image of this build, %s", cacheImage, other)
		}
	}
	return nil
}

// checkCacheImage makes sure of the cache image, which is in a registry wherever
// the other images are.
func (h Host) checkCacheImage(ctx context.Context, in inputs, p *Places) error {
	if _, ok := p.Source.(image.AccessChecker); ok || in.cacheImage == "" {
		return nil // or it is checked with the others
	}
	r, err := h.registry(in, p)
	if err != nil {
		return err
	}
	if err := r.CheckRead(ctx, in.cacheImage); err != nil && !errors.Is(err, image.ErrNotFound) {
		return fmt.Errorf("no read access to %s: %w", in.cacheImage, err)
	}
	if err := r.CheckWrite(ctx, in.cacheImage); err != nil {
		return fmt.Errorf("no write access to %s: %w", in.cacheImage, err)
	}
	return nil
}

// knows are the blobs that need not be read again where an image was written
// that has layers of these. A daemon has looked at every layer that it took.
func (p *Places) knows(images ...v1.Image) (image.Known, error) {
	if _, ok := p.Target.(daemon.Described); ok {
		return func(digest v1.Hash) (v1.Hash, bool) { return digest, true }, nil
	}
	return image.KnownFrom(images...)
}
