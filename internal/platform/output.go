package platform

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

// output is one place of a build, with what is known of the blobs in it.
type output struct {
	place
	to Destination
	// known maps the blobs that need not be read again to their diffIDs: what
	// the place has from images that were validated when they came, and what
	// this build has validated there.
	known map[v1.Hash]v1.Hash
	// asked says that the image that was there before is in known.
	asked bool
}

func newOutput(p place, to Destination) *output {
	return &output{place: p, to: to, known: map[v1.Hash]v1.Hash{}}
}

// String is what people call it.
func (o *output) String() string {
	switch o.to.Kind {
	case ToStore:
		return "the store"
	case ToRegistry:
		return "the registry"
	case ToDaemon:
		return "the docker daemon"
	}
	return string(o.to.Kind) + ":" + o.to.Path
}

// keeps says whether blobs stay from one image to the next. An archive is
// written anew every time, so every byte of it is read back.
func (o *output) keeps() bool {
	return o.to.Kind != ToOCIArchive && o.to.Kind != ToDockerArchive
}

// allowed says whether the step under way may use ref here.
func (o *output) allowed(d *destinations, ref string) error {
	if o.to.Kind != ToRegistry {
		return nil
	}
	return d.within(ref)
}

// deliver writes img and makes sure of it: it is read back from where it went
// and validated whole, but for blobs that were there before.
func (o *output) deliver(ctx context.Context, d *destinations, ref string, img v1.Image) error {
	if o.keeps() && !o.asked {
		o.asked = true
		switch o.to.Kind {
		case ToStore:
			o.trust(d.run)
		case ToRegistry:
			// It checks what it takes, and a base is much to fetch again.
			if small, err := compressed(ctx, d.platform.Store, d.run); err == nil {
				o.trust(small)
			}
		}
		if before, err := o.Image(ctx, ref); err == nil {
			o.trust(before)
		}
	}
	if err := o.Write(ctx, ref, img); err != nil {
		return err
	}
	written, err := o.Image(ctx, ref)
	if errors.Is(err, image.ErrNotFound) {
		err = fmt.Errorf("somebody has removed it already: %w", err)
	}
	if err == nil {
		err = sameID(img, written)
	}
	if err == nil {
		err = image.Validate(ctx, written, o.vouches)
	}
	if err != nil {
		return fmt.Errorf("read back what was written: %w", err)
	}
	o.trust(written)
	return nil
}

// trust takes the layers of an image for known. An image that contradicts
// itself, or what is known, vouches for nothing.
func (o *output) trust(img v1.Image) {
	if img == nil {
		return
	}
	m, err := img.Manifest()
	if err != nil {
		return
	}
	known, err := image.KnownFrom(img)
	if err != nil {
		return
	}
	for _, l := range m.Layers {
		if diffID, ok := known(l.Digest); ok {
			if _, old := o.known[l.Digest]; !old {
				o.known[l.Digest] = diffID
			}
		}
	}
}

// vouches is an image.Known.
func (o *output) vouches(digest v1.Hash) (v1.Hash, bool) {
	if o.to.Kind == ToDaemon {
		return digest, true // it has no blobs but the plain layers, and has looked at each
	}
	diffID, ok := o.known[digest]
	return diffID, ok
}

func sameID(a, b v1.Image) error {
	want, err := a.ConfigName()
	if err != nil {
		return err
	}
	got, err := b.ConfigName()
	if err == nil && got != want {
		err = fmt.Errorf("%w: it has the image ID %s, not %s", image.ErrInvalid, got, want)
	}
	return err
}
