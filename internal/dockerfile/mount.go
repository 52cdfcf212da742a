package dockerfile

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/flock"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// file makes what a Mount shows of one file made in memory.
func file(content []byte, mode int64, owner layer.Owner) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		tw := tar.NewWriter(w)
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: mountedFile, Size: int64(len(content)), Mode: mode, Uid: owner.UID, Gid: owner.GID, ModTime: layer.ModTime}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := tw.Write(content); err != nil {
			return err
		}
		return tw.Close()
	}
}

// emptyDirectory makes what a Mount shows of an empty directory.
func emptyDirectory(mode int64, owner layer.Owner) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		tw := tar.NewWriter(w)
		hdr := &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: mode, Uid: owner.UID, Gid: owner.GID, ModTime: layer.ModTime}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		return tw.Close()
	}
}

// mountedFile is the name of a Mount's file in the tar of its Files.
const mountedFile = ".kiln-mounted"

// shown is a copy of the sources of writeSources as what a Mount shows: the one
// source there may be becomes the directory, or the file.
func shown(from func(context.Context, io.Writer) error) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		r, pipe := io.Pipe()
		go func() { pipe.CloseWithError(from(ctx, pipe)) }()
		defer r.Close()
		return renamed(w, r)
	}
}

func renamed(w io.Writer, r io.Reader) error {
	tr, tw := tar.NewReader(r), tar.NewWriter(w)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		rest, ok := cutSource(hdr.Name)
		switch {
		case !ok:
			return errors.New("more than one source: one file or directory can be mounted")
		case rest == "":
			hdr.Name = "./"
		case n == 0:
			hdr.Name = mountedFile
		default:
			hdr.Name = rest
		}
		if hdr.Typeflag == tar.TypeLink {
			if hdr.Linkname, ok = cutSource(hdr.Linkname); !ok {
				return errors.New("a hard link out of the source")
			}
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}

// cutSource takes the number of the first source from a name.
func cutSource(name string) (string, bool) {
	if len(name) < 2 || name[:2] != "0/" {
		return "", false
	}
	return name[2:], true
}

// mount makes of m what the sandbox mounts, and returns what undoes it.
func (m *Overlay) mount(ctx context.Context, what Mount) (mount sandbox.Mount, undo func() error, err error) {
	undo = func() error { return nil }
	mount = sandbox.Mount{Target: what.Target, ReadOnly: what.ReadOnly, NoFollow: true}
	switch {
	case what.Cache != "":
		mount.Source, undo, err = m.cache(ctx, what)
	case what.Files != nil:
		mount.Source, undo, err = m.copied(ctx, what.Files)
	default:
		mount.Tmpfs, mount.Size, mount.NoFollow = true, what.Size, false
	}
	return mount, undo, err
}

// copied lays out files for one step.
func (m *Overlay) copied(ctx context.Context, files func(context.Context, io.Writer) error) (source string, undo func() error, err error) {
	dir, err := m.directory()
	if err != nil {
		return "", nil, err
	}
	undo = func() error { return m.worker.Remove(context.Background(), dir) }
	r, pipe := io.Pipe()
	go func() { pipe.CloseWithError(files(ctx, pipe)) }()
	in := &verified{r: r, hash: sha256.New()}
	err = m.unpack(ctx, dir, in)
	r.Close()
	in.mu.Lock()
	if in.err != nil && !errors.Is(in.err, io.EOF) {
		err = in.err
	}
	in.mu.Unlock()
	if err != nil {
		return "", nil, errors.Join(err, undo())
	}
	source = filepath.Join(dir, mountedFile)
	if fi, err := os.Lstat(source); err == nil && fi.Mode().IsRegular() {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) == 1 {
			return source, undo, nil
		}
	}
	return dir, undo, nil
}

// cache finds a cache directory, or makes it, and takes it for one step.
func (m *Overlay) cache(ctx context.Context, what Mount) (source string, undo func() error, err error) {
	if err := os.MkdirAll(m.Caches, 0o700); err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256([]byte(m.Kind() + "\x00" + what.Cache))
	dir, lock, err := takeCache(ctx, filepath.Join(m.Caches, hex.EncodeToString(sum[:])), what.Sharing)
	if err != nil {
		return "", nil, err
	}
	undo = func() error { lock.Unlock(); return nil }
	made, err := flock.Take(ctx, dir+".make", os.O_RDWR|os.O_CREATE, unix.LOCK_EX)
	if err == nil {
		defer made.Unlock()
		err = m.makeCache(ctx, dir, what.Files)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("make cache %s: %w", what.Cache, err), undo())
	}
	return dir, undo, nil
}

// takeCache takes a cache as its sharing says: one that somebody else has alone
// is waited for, or the next one is taken that nobody has.
func takeCache(ctx context.Context, dir, sharing string) (string, *flock.Lock, error) {
	const flags = os.O_RDWR | os.O_CREATE
	switch instructions.ShareMode(sharing) {
	case instructions.MountSharingLocked:
		lock, err := flock.Take(ctx, dir+".lock", flags, unix.LOCK_EX)
		return dir, lock, err
	case instructions.MountSharingPrivate:
		for i, own := 1, dir; ; i, own = i+1, fmt.Sprintf("%s-%d", dir, i) {
			lock, err := flock.Try(own+".lock", flags, unix.LOCK_EX)
			if !errors.Is(err, flock.ErrHeld) {
				return own, lock, err
			}
		}
	}
	lock, err := flock.Take(ctx, dir+".lock", flags, unix.LOCK_SH)
	return dir, lock, err
}

// makeCache makes a cache as a whole, unless it is there.
func (m *Overlay) makeCache(ctx context.Context, dir string, files func(context.Context, io.Writer) error) error {
	fi, err := os.Lstat(dir)
	if err == nil && fi.IsDir() {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if files == nil {
		files = emptyDirectory(0o755, layer.Owner{})
	}
	// The copy is in the scratch: a rename makes it the cache.
	made, _, err := m.copied(ctx, files)
	if err != nil {
		return err
	}
	return os.Rename(made, dir)
}
