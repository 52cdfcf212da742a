package archive

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

var (
	_ image.Source = LayoutDir{}
	_ image.Target = LayoutDir{}
	_ image.Pinner = LayoutDir{}
)

// LayoutDir is images below one directory, each in an OCI layout of its own at
// the path that its reference is mapped to (Platform API, "Map an image
// reference to a path in the layout directory"). Images may be sparse: a
// manifest and a config whose layers' blobs are elsewhere.
type LayoutDir struct{ Dir string }

// Path is where the layout of an image reference is: the registry, the
// repository and the tag, or the digest's algorithm and its hex digits, below
// Dir. The names that a reference leaves out are in the path.
func (d LayoutDir) Path(ref string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("invalid image reference: %w", err)
	}
	elems := append([]string{parsed.Context().RegistryStr()}, strings.Split(parsed.Context().RepositoryStr(), "/")...)
	elems = append(elems, strings.Split(parsed.Identifier(), ":")...)
	if slices.ContainsFunc(elems, func(e string) bool { return e == "" || e == "." || e == ".." }) {
		return "", fmt.Errorf("image reference %q cannot be mapped to a path", ref)
	}
	return filepath.Join(append([]string{d.Dir}, elems...)...), nil
}

// Image opens the image of a reference, or of what Pin returned for one.
func (d LayoutDir) Image(_ context.Context, ref string) (v1.Image, error) {
	path, digest, err := d.locate(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q in layout directory %s: %w", ref, d.Dir, err)
	}
	img, err := openPinned(Layout{path}, digest)
	if err != nil {
		return nil, fmt.Errorf("image %q in OCI layout %s: %w", ref, path, notThere(path, err))
	}
	return img, nil
}

// locate finds the layout of a reference, and the digest that the image in it
// must have, "" for any. A pinned reference was in a file that foreign code can
// write to, so it must not lead out of Dir.
func (d LayoutDir) locate(ref string) (path, digest string, err error) {
	if filepath.IsAbs(ref) {
		path, digest, _ = strings.Cut(ref, "@")
		rel, err := filepath.Rel(d.Dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			return "", "", errors.New("the path is not below the directory")
		}
		_, err = v1.NewHash(digest)
		return path, digest, err
	}
	if path, err = d.Path(ref); err != nil {
		return "", "", err
	}
	_, digest, _ = strings.Cut(ref, "@")
	return path, digest, nil
}

// openPinned opens the only image of a layout, or the one of that digest: its
// own, or that of an index it is in.
func openPinned(l Layout, digest string) (v1.Image, error) {
	if digest != "" {
		img, err := openLayout(l.open, digest)
		if err == nil || !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	img, err := openLayout(l.open, "")
	if err != nil || digest == "" {
		return img, err
	}
	if got, err := img.Digest(); err != nil || got.String() != digest {
		return nil, errors.Join(fmt.Errorf("%w: it has %s now", image.ErrNotFound, got), err)
	}
	return img, nil
}

// Write makes the layout of ref hold img and nothing else: blobs that img's
// source lacks are missing here, too.
func (d LayoutDir) Write(ctx context.Context, ref string, img v1.Image) error {
	path, err := d.Path(ref)
	if err == nil {
		err = Layout{path}.write(ctx, img, content{name: filepath.Base(path), alone: true, top: every})
	}
	if err != nil {
		return fmt.Errorf("write image %q to layout directory %s: %w", ref, d.Dir, err)
	}
	return nil
}

// Pin implements image.Pinner: the layout's path and the digest of the manifest.
func (d LayoutDir) Pin(ref string, img v1.Image) (string, error) {
	path, _, err := d.locate(ref)
	if err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	return path + "@" + digest.String(), nil
}
