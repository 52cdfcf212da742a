package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/flock"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// What is in the directory of a Volume. Other lifecycles know the first three
// names and touch nothing else there: that is why the lock is beside them, and
// why it stays when it is free.
const (
	committed = "committed"        // the cache
	staging   = "staging"          // the next one in the making
	backup    = "committed-backup" // the last one, while the next takes its place
	lockFile  = "kiln.lock"
)

// patience is how long somebody else's lock is waited for: longer than saving
// gigabytes takes, shorter than a job's time.
var patience = 10 * time.Minute

// Volume is a cache in a directory: committed/ holds the metadata, as JSON in a
// file named for its label, and every layer as sha256:<hex>.tar.
type Volume struct {
	dir  string
	sink event.Sink
	lock *flock.Lock // nil where there can be none
	tree layer.Stack // of dir
	from string      // where the cache is: committed, or backup if it cannot be put back
}

// OpenVolume opens the cache in dir and keeps other builders out until Close. It
// waits for them, and says so; what it cannot lock it warns of. What builders
// that died have left is put right. A directory that cannot be written to is
// good for reading.
func OpenVolume(ctx context.Context, dir string, sink event.Sink) (*Volume, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	v := &Volume{dir: dir, sink: sink, tree: layer.Stack{Upper: dir}, from: committed}
	if err := v.takeLock(ctx); err != nil {
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	v.repair()
	return v, nil
}

// Close lets the next builder in.
func (v *Volume) Close() {
	if v.lock != nil {
		v.lock.Unlock()
		v.lock = nil
	}
}

func (v *Volume) takeLock(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	holder := ""
	hold := func() (*flock.Lock, error) {
		return flock.Hold(bounded, filepath.Join(v.dir, lockFile), func(by string) {
			holder = by
			warn(v.sink, "waiting for the cache %s: it is held by %s", v.dir, by)
		})
	}
	l, err := hold()
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) {
		// That is no lock: a buildpack put it there.
		if err = layer.Remove(filepath.Join(v.dir, lockFile)); err == nil {
			l, err = hold()
		}
	}
	switch {
	case err == nil:
		v.lock = l
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		return fmt.Errorf("it is held by %s for more than %s", holder, patience)
	case unix.Access(v.dir, unix.W_OK) != nil:
		// It is only read, and reading needs no lock: what changes meanwhile
		// does not have the right digest.
	default:
		warn(v.sink, "the cache %s cannot be locked (%v): of two builds at the same time one loses what it cached", v.dir, err)
	}
	return nil
}

// repair ends what a builder began that died: a commit between its two renames
// is taken back, what was left of a half-made cache or of the last one goes.
// What it cannot do is left to Save to fail on.
func (v *Volume) repair() {
	if _, err := v.tree.Lstat(committed); errors.Is(err, fs.ErrNotExist) {
		if fi, err := v.tree.Lstat(backup); err == nil && fi.IsDir() {
			if err := os.Rename(v.path(backup), v.path(committed)); err != nil {
				v.from = backup
				return
			}
		}
	}
	_ = layer.Remove(v.path(staging))
	_ = layer.Remove(v.path(backup))
}

func (v *Volume) path(name string) string { return filepath.Join(v.dir, name) }

// Load returns the metadata of the cache. It is false if there is none, or none
// that can be trusted; err then says why, unless there never was any. A layer
// that it speaks of may still be missing or damaged: see Layer.
func (v *Volume) Load(ctx context.Context) (spec.CacheMetadata, bool, error) {
	if err := ctx.Err(); err != nil {
		return spec.CacheMetadata{}, false, err
	}
	text, err := v.tree.ReadFile(path.Join(v.from, spec.CacheMetadataLabel), maxMetadata)
	if errors.Is(err, fs.ErrNotExist) && v.empty() {
		return spec.CacheMetadata{}, false, nil
	}
	var md spec.CacheMetadata
	if err == nil {
		md, err = decode(text)
	}
	if err != nil {
		return spec.CacheMetadata{}, false, fmt.Errorf("cache %s: %w", v.dir, err)
	}
	return md, true, nil
}

func (v *Volume) empty() bool {
	entries, err := v.tree.ReadDir(v.from)
	return errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0
}

// Layer opens a layer of the cache. It fails with image.ErrNotFound if it is
// not there. Reading it ends in an error if it is not what diffID says.
func (v *Volume) Layer(ctx context.Context, diffID string) (v1.Layer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := hashOf(diffID)
	if err != nil {
		return nil, err
	}
	f, size, err := v.open(v.from, h)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cached layer %s: %w", diffID, image.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("cached layer %s: %w", diffID, err)
	}
	_ = f.Close() // it was only looked at
	return image.NewLayer(func() (io.ReadCloser, error) {
		f, _, err := v.open(v.from, h)
		if err != nil {
			return nil, fmt.Errorf("cached layer %s: %w", diffID, err)
		}
		return verify(f, h, nil), nil
	}, h, size), nil
}

// open opens a layer's tar in committed or staging, if it is a file that can be
// one.
func (v *Volume) open(in string, h v1.Hash) (*os.File, int64, error) {
	f, err := v.tree.Open(path.Join(in, tarName(h)))
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = errors.New("not a regular file")
	case fi.Size() > maxLayer:
		err = fmt.Errorf("%d bytes are more than a layer has", fi.Size())
	default:
		return f, fi.Size(), nil
	}
	return nil, 0, errors.Join(err, f.Close())
}

func tarName(h v1.Hash) string { return h.String() + ".tar" }
