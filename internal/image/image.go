// Package image treats container images as immutable values. An image is a
// v1.Image of go-containerregistry; Source and Target are the places one can
// be read from and written to; Copy, Append and Rebase derive new values.
package image

import (
	"context"
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ErrNotFound says that a place has no image of that name.
var ErrNotFound = errors.New("image not found")

// ErrUnauthorized says that a place refused to show or take an image (401, 403).
var ErrUnauthorized = errors.New("access denied")

// ErrUnavailable says that a place could not be reached, or could not answer
// now (429, 5xx): the same may go well later.
var ErrUnavailable = errors.New("not available")

// Source opens images by name.
type Source interface {
	// Image opens ref. The image is lazy: its layers are read when asked for.
	// It fails with ErrNotFound or ErrUnauthorized (wrapped, naming ref).
	Image(ctx context.Context, ref string) (v1.Image, error)
}

// Target takes images.
type Target interface {
	// Write stores img under ref, writing only blobs that are missing, the
	// manifest last. When it returns nil, everything is durable there.
	Write(ctx context.Context, ref string, img v1.Image) error
}

// PlatformSource is what a Source may also offer: to choose from an index for
// another platform than the Source's own. A platform without a variant takes any.
type PlatformSource interface {
	ImageFor(ctx context.Context, ref string, platform v1.Platform) (v1.Image, error)
}

// Chosen is what a v1.Image may also offer: to say that the name it was opened
// by means several images, of which it is the one for a platform. To write
// another one under that name would take away the rest.
type Chosen interface {
	FromIndex() bool
}

// AccessChecker is what a Source or Target may also offer: to say early
// whether ref could be read or written.
type AccessChecker interface {
	CheckRead(ctx context.Context, ref string) error
	CheckWrite(ctx context.Context, ref string) error
}
