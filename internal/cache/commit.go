package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Save makes md, and the layers that it speaks of, the cache; what else was in
// it is gone. Layers that the cache has are kept, the others come from open.
// The new cache is whole and on the disk before it takes the old one's place;
// if anything fails the old one stays.
func (v *Volume) Save(ctx context.Context, md spec.CacheMetadata, open Open) error {
	text, err := encode(md)
	if err == nil {
		err = v.replace(ctx, diffIDs(md), text, open)
	}
	if err != nil {
		return fmt.Errorf("save cache %s: %w", v.dir, err)
	}
	return nil
}

// SaveLayers is Save for a cache of layers alone, with no metadata: the launch
// cache of a daemon.
func (v *Volume) SaveLayers(ctx context.Context, ids []string, open Open) error {
	if err := v.replace(ctx, ids, "", open); err != nil {
		return fmt.Errorf("save cache %s: %w", v.dir, err)
	}
	return nil
}

func (v *Volume) replace(ctx context.Context, ids []string, metadata string, open Open) (err error) {
	root, err := os.OpenRoot(v.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	defer func() {
		if err != nil {
			_ = layer.Remove(v.path(staging)) // the first error is the one to tell
		}
	}()
	if err := layer.Remove(v.path(staging)); err != nil {
		return err
	}
	if err := root.Mkdir(staging, 0o755); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0)) // hashing is bound by the processor
	for _, id := range ids {
		group.Go(func() error {
			if err := v.stage(gctx, root, id, open); err != nil {
				return fmt.Errorf("layer %s: %w", id, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if metadata != "" {
		if err := writeSynced(root, path.Join(staging, spec.CacheMetadataLabel), metadata); err != nil {
			return err
		}
	}
	if err := syncDir(root, staging); err != nil {
		return err
	}
	return v.commit(root)
}

// stage brings one layer into staging: the one that is there, by a link and if
// its bytes are still right, else a copy of what open has.
func (v *Volume) stage(ctx context.Context, root *os.Root, diffID string, open Open) error {
	h, err := hashOf(diffID)
	if err != nil {
		return err
	}
	name := path.Join(staging, tarName(h))
	if err := root.Link(path.Join(v.from, tarName(h)), name); err == nil {
		if v.check(ctx, h) == nil {
			return nil
		}
		if err := errors.Join(ctx.Err(), root.Remove(name)); err != nil {
			return err
		}
	}
	l, err := open(ctx, diffID)
	if errors.Is(err, image.ErrNotFound) {
		if old, oldErr := v.Layer(ctx, diffID); oldErr == nil {
			l, err = old, nil // a file system without links
		}
	}
	if err != nil {
		return err
	}
	return copyLayer(ctx, root, name, l, h)
}

// check reads a staged layer, and brings to the disk what may not be there: who
// wrote it may not have cared.
func (v *Volume) check(ctx context.Context, h v1.Hash) error {
	f, _, err := v.open(staging, h)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, contextReader{ctx, verify(f, h, nil)}); err != nil {
		return err
	}
	if fi, err := f.Stat(); err != nil || fi.Mode().Perm()&0o400 == 0 {
		if err = errors.Join(err, f.Chmod(0o644)); err != nil {
			return err // its owner can read it so far, but others that share the cache cannot
		}
	}
	return f.Sync()
}

func copyLayer(ctx context.Context, root *os.Root, name string, l v1.Layer, want v1.Hash) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, contextReader{ctx, verify(rc, want, nil)})
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func writeSynced(root *os.Root, name, text string) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// exchange swaps two names of a directory in one step. Tests take it away.
var exchange = func(dir int, a, b string) error {
	return unix.Renameat2(dir, a, dir, b, unix.RENAME_EXCHANGE)
}

// commit puts staging in the place of committed, in one step where the file
// system can, and makes that last.
func (v *Volume) commit(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = root.Lstat(committed)
	if errors.Is(err, fs.ErrNotExist) {
		err = root.Rename(staging, committed)
	} else if err = exchange(int(d.Fd()), staging, committed); err == unix.EINVAL || err == unix.ENOSYS || err == unix.ENOTSUP {
		err = rename(root)
	}
	if err = errors.Join(err, syncDir(root, ".")); err != nil {
		return err
	}
	v.from = committed
	// The new cache stands: what is left of the old one goes next time, if not now.
	_ = errors.Join(layer.Remove(v.path(staging)), layer.Remove(v.path(backup)))
	return nil
}

// rename is the two steps that other lifecycles take. Who is killed between
// them leaves the old cache at backup, where OpenVolume finds it.
func rename(root *os.Root) error {
	if err := root.RemoveAll(backup); err != nil {
		return err
	}
	if err := root.Rename(committed, backup); err != nil {
		return err
	}
	if err := root.Rename(staging, committed); err != nil {
		return errors.Join(err, root.Rename(backup, committed))
	}
	return nil
}

// syncDir makes the names in a directory last. Some file systems cannot, and
// say so; they have no more to give.
func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// contextReader ends reading when ctx does.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
