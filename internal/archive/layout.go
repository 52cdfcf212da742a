package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Image opens the image of that reference.
func (l Layout) Image(ctx context.Context, ref string) (v1.Image, error) {
	img, err := openLayout(l.open, ref)
	if err != nil {
		return nil, fmt.Errorf("read image %q from OCI layout %s: %w", ref, l.Dir, notThere(l.Dir, err))
	}
	return img, nil
}

// notThere makes an error of a place that does not exist one of an image that
// does not.
func notThere(path string, err error) error {
	if _, statErr := os.Stat(path); errors.Is(statErr, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", image.ErrNotFound, statErr)
	}
	return err
}

// open implements opener.
func (l Layout) open(name string) (io.ReadCloser, int64, error) {
	f, err := os.OpenFile(filepath.Join(l.Dir, filepath.FromSlash(name)), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// OpenStack opens the only image of an OCI layout that foreign code may have
// written: no link in it is followed, and nothing in it blocks.
func OpenStack(layout layer.Stack) (v1.Image, error) {
	return openLayout(func(name string) (io.ReadCloser, int64, error) {
		f, err := layout.Open(name)
		if err != nil {
			return nil, 0, err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", name)
		}
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		return f, info.Size(), nil
	}, "")
}

// Write adds img to the layout, under ref unless that is "". A new directory
// appears complete; in one that is there all blobs appear after the last was
// written, then the index that names them.
func (l Layout) Write(ctx context.Context, ref string, img v1.Image) error {
	if err := l.write(ctx, img, content{name: ref, top: every}); err != nil {
		return fmt.Errorf("write image %q to OCI layout %s: %w", ref, l.Dir, err)
	}
	return nil
}

// WriteSparse makes the layout hold nothing but img's manifest, config and
// topmost layers, as many as top says: who reads it takes those that are missing
// for layers of a base that is there already. No other layer is read.
func (l Layout) WriteSparse(ctx context.Context, img v1.Image, top int) error {
	if err := l.write(ctx, img, content{alone: true, top: top}); err != nil {
		return fmt.Errorf("write sparse image to OCI layout %s: %w", l.Dir, err)
	}
	return nil
}

// content is what becomes of a layout that an image is written to.
type content struct {
	name string // of the image
	// alone makes it the only image: others go, and so do their blobs. Its own
	// may be missing where it was read from, and are missing here then.
	alone bool
	// top is how many of its topmost layers are written, or every.
	top int
}

func (l Layout) write(ctx context.Context, img v1.Image, c content) error {
	dir, err := filepath.Abs(l.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return Layout{dir}.extend(ctx, img, c, lockDir)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return err
	}
	t, err := newTemp(parent, filepath.Base(dir), true)
	if err != nil {
		return err
	}
	defer t.remove()
	if err := (Layout{t.path}).extend(ctx, img, c, alreadyLocked); err != nil {
		return err
	}
	err = os.Rename(t.path, dir)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		// Somebody else was first: add to theirs. The blobs are read again,
		// which is rare enough.
		return Layout{dir}.extend(ctx, img, c, lockDir)
	}
	if err != nil {
		return err
	}
	t.path = ""
	return syncDir(parent)
}

// alreadyLocked stands in for lockDir: a new directory is its maker's, who
// holds its lock.
func alreadyLocked(context.Context, string) (func(), error) { return func() {}, nil }

// extend adds img to a directory that is there. What takes blobs away holds
// the lock from the start, so that nobody counts on one that goes.
func (l Layout) extend(ctx context.Context, img v1.Image, c content, lock func(context.Context, string) (func(), error)) error {
	if c.alone {
		unlock, err := lock(ctx, l.Dir)
		if err != nil {
			return err
		}
		defer unlock()
		lock = alreadyLocked
	} else if err := l.check(); err != nil {
		return err
	}
	manifest, blobs, err := items(img, c.top)
	if err != nil {
		return err
	}
	stage, err := newTemp(l.Dir, "", true)
	if err != nil {
		return err
	}
	defer stage.remove()
	missing, err := l.stage(ctx, stage.path, blobs, c)
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, l.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.commit(stage.path, missing, manifest, c); err != nil || !c.alone {
		return err
	}
	return l.prune(blobs)
}

// check refuses a directory that holds something else.
func (l Layout) check() error {
	raw, err := opener(l.open).readFile(oci.ImageLayoutFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(l.Dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			// Other writers' unfinished work, and what they are about to finish.
			if ok, _ := filepath.Match("."+tempMark+"*", e.Name()); !ok && e.Name() != "blobs" {
				return fmt.Errorf("the directory has other things in it (%s) and is no OCI layout", e.Name())
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	var doc oci.ImageLayout
	if err := json.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("parse %s: %w", oci.ImageLayoutFile, err)
	}
	if doc.Version != oci.ImageLayoutVersion {
		return fmt.Errorf("%s says version %q, only %s is known", oci.ImageLayoutFile, doc.Version, oci.ImageLayoutVersion)
	}
	return nil
}

// stage writes the blobs that are missing, or not what they should be, into
// dir under their digests.
func (l Layout) stage(ctx context.Context, dir string, blobs []item, c content) ([]v1.Hash, error) {
	staged := make([]bool, len(blobs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4) // hashing takes a core, reading waits
	for i, it := range blobs {
		group.Go(func() error {
			if l.has(ctx, it.desc) {
				return nil
			}
			f, err := os.OpenFile(filepath.Join(dir, it.desc.Digest.Hex), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := it.copyTo(ctx, f); err != nil {
				if c.alone && errors.Is(err, errNoBlob) {
					return nil
				}
				return err
			}
			staged[i] = true
			return f.Sync()
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []v1.Hash
	for i, it := range blobs {
		if staged[i] {
			out = append(out, it.desc.Digest)
		}
	}
	return out, nil
}

// has says whether a blob is there and whole. It is read: a file of the right
// size is no proof, and a broken one must be replaced, not built upon.
func (l Layout) has(ctx context.Context, desc v1.Descriptor) bool {
	rc, size, err := l.open(blobName(desc.Digest))
	if err != nil {
		return false
	}
	defer rc.Close()
	if size != desc.Size {
		return false
	}
	_, err = io.Copy(io.Discard, &ctxReader{ctx, checked(rc, desc)})
	return err == nil
}

// commit renames blobs, then the index. The lock is held.
func (l Layout) commit(stage string, blobs []v1.Hash, manifest v1.Descriptor, c content) error {
	dir := filepath.Join(l.Dir, "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, h := range blobs {
		if err := os.Rename(filepath.Join(stage, h.Hex), filepath.Join(dir, h.Hex)); err != nil {
			return err
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	raw, err := opener(l.open).readFile(oci.ImageIndexFile, maxManifest)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.alone {
		raw = nil
	}
	index, err := indexWith(raw, manifest, c.name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(l.Dir, oci.ImageLayoutFile)); errors.Is(err, fs.ErrNotExist) {
		if err := l.replace(stage, oci.ImageLayoutFile, []byte(layoutFile)); err != nil {
			return err
		}
	}
	return l.replace(stage, oci.ImageIndexFile, index)
}

// prune removes blobs that are not among keep. The lock is held.
func (l Layout) prune(keep []item) error {
	needed := map[string]bool{}
	for _, it := range keep {
		needed[it.desc.Digest.Hex] = true
	}
	dir := filepath.Join(l.Dir, "blobs", "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := v1.NewHash("sha256:" + e.Name()); err != nil || needed[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// replace puts a small file in place by way of the stage.
func (l Layout) replace(stage, name string, b []byte) error {
	from := filepath.Join(stage, name)
	f, err := os.OpenFile(from, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(from, filepath.Join(l.Dir, name)); err != nil {
		return err
	}
	return syncDir(l.Dir)
}
