package archive

import (
	"context"
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image opens the image of that reference.
func (l Layout) Image(ctx context.Context, ref string) (v1.Image, error) {
	return nil, errors.New("todo")
}

// Write adds img.
func (l Layout) Write(ctx context.Context, ref string, img v1.Image) error { return errors.New("todo") }

// Image opens the image of that reference.
func (a OCIArchive) Image(ctx context.Context, ref string) (v1.Image, error) {
	return nil, errors.New("todo")
}

// Write writes img.
func (a OCIArchive) Write(ctx context.Context, ref string, img v1.Image) error {
	return errors.New("todo")
}

// Image opens the image of that reference.
func (a DockerArchive) Image(ctx context.Context, ref string) (v1.Image, error) {
	return nil, errors.New("todo")
}

// Write writes img.
func (a DockerArchive) Write(ctx context.Context, ref string, img v1.Image) error {
	return errors.New("todo")
}
