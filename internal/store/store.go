// Package store keeps images, layers and unpacked trees on this disk, content
// addressed. Underneath it is an OCI layout: `skopeo copy oci:STORE:name ...`
// reads it.
//
//	blobs/sha256/HEX   truth: bytes whose digest is their name; written once
//	refs/NAME.json     the only mutable thing: which manifest a name means
//	index.json         made from refs, for other tools
//	trees/HEX/fs       a layer unpacked, by diffID; can be made again from the blob
//	caches/KEY.json    which layers an app's cache keeps alive
//	memo/KIND/HEX      small facts that save work; losing one loses only time
//	tmp/ID             what a living process works on; its flock says it lives
//	trash, bad         what is being deleted; what was found damaged
//	locks              files to flock, never deleted
//
// The promise: any number of processes may use a store at once; when Write or
// Save has returned nil, its image or cache is on the disk, and neither
// killing a process at any point nor cutting the power takes it away or
// changes it; what is read was hashed while it was read. Not promised: that
// two processes never do the same work twice (a tree is unpacked once, a blob
// may be written twice), or anything at all to a process that writes into
// the store's directory by itself.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/flock"

	"github.com/kilnbuild/kiln/internal/spec"
)

// ErrDamaged says that something in the store is not what it was when it was
// written.
var ErrDamaged = errors.New("damaged")

// version is the content of the file VERSION: the format of everything here.
const version = "kiln store 1\n"

const ociLayout = `{"imageLayoutVersion":"1.0.0"}`

// subdirs are the directories of a store.
var subdirs = []string{"blobs/sha256", "refs", "caches", "memo", "trees", "tmp", "trash", "bad", "locks"}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	dir string

	mu      sync.Mutex
	session *session // made when first needed
	closed  bool
	sweep   sync.WaitGroup // the background removal of trash
	boot    func() string  // the id of this boot of the machine
}

// Open opens the store in dir, and makes one there if dir is missing or empty.
// It refuses a directory that belongs to another user, that others may write
// to, that holds something else, or whose file system cannot keep the
// promises above. What dead processes left behind is cleared away.
func Open(ctx context.Context, dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	s := &Store{dir: abs, boot: sync.OnceValue(bootID)}
	if err := s.open(ctx); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := checkOwner(s.dir); err != nil {
		return err
	}
	ok, err := s.hasVersion()
	if err != nil {
		return err
	}
	if !ok {
		if err := s.create(ctx); err != nil {
			return err
		}
	}
	if err := s.reclaim(ctx); err != nil {
		return fmt.Errorf("clear what dead processes left: %w", err)
	}
	return s.freshIndex(ctx)
}

// Dir is the store's directory, absolute.
func (s *Store) Dir() string { return s.dir }

// Close ends this process's claim on what it was using: from now on GC may
// remove what nothing else needs. A process that dies closes its stores.
func (s *Store) Close() error {
	s.mu.Lock()
	ses := s.session
	s.session, s.closed = nil, true
	s.mu.Unlock()
	var err error
	if ses != nil {
		err = ses.close(s)
	}
	s.sweep.Wait()
	if err != nil {
		return fmt.Errorf("close store %s: %w", s.dir, err)
	}
	return nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// checkOwner refuses a store that somebody else could plant things in. Others
// are not let in even to look: trees may hold setuid files of an image.
func checkOwner(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return errors.New("not a directory")
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("cannot tell its owner")
	}
	if int(st.Uid) != os.Geteuid() {
		return spec.WithHint(fmt.Errorf("belongs to uid %d, this is uid %d", st.Uid, os.Geteuid()),
			"every user has a store of his own; choose another directory")
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return spec.WithHint(fmt.Errorf("its mode is %#o, so others may write to it", fi.Mode().Perm()),
			"if nobody has: chmod 700 %s", dir)
	}
	if fi.Mode().Perm() != 0o700 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

func (s *Store) hasVersion() (bool, error) {
	b, err := os.ReadFile(s.path("VERSION"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case string(b) != version:
		return false, spec.WithHint(fmt.Errorf("its VERSION is %.40q, this program knows %q", b, version),
			"use the program that made it, or another directory")
	}
	return true, nil
}

// create makes a store; VERSION, which says that it is one, comes last.
func (s *Store) create(ctx context.Context) error {
	l, err := flock.Take(ctx, s.dir, os.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	if ok, err := s.hasVersion(); ok || err != nil {
		return err // another process was faster
	}
	if err := s.onlyOurs(); err != nil {
		return err
	}
	for _, d := range subdirs {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := s.selfTest(ctx); err != nil {
		return spec.WithHint(fmt.Errorf("this file system cannot hold a store: %w", err),
			"choose a directory on a local disk")
	}
	for _, f := range [][2]string{{"index.json", emptyIndex}, {"oci-layout", ociLayout}, {"VERSION", version}} {
		if err := s.createFile(f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

// createFile puts a small file in place, whole or not at all.
func (s *Store) createFile(name, body string) error {
	tmp := s.path("tmp", "new-"+name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return s.full(err, int64(len(body)))
	}
	if err := os.Rename(tmp, s.path(name)); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// onlyOurs looks for anything that a half-made store would not have.
func (s *Store) onlyOurs() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	known := map[string]bool{"index.json": true, "oci-layout": true, "blobs": true}
	for _, d := range subdirs[1:] {
		known[d] = true
	}
	for _, e := range entries {
		if !known[e.Name()] {
			return spec.WithHint(fmt.Errorf("holds %s, which is not of a store", e.Name()), "choose an empty directory")
		}
	}
	return nil
}

// selfTest tries the four things that the promise stands on.
func (s *Store) selfTest(ctx context.Context) error {
	a, err := flock.Take(ctx, s.path("locks", "store"), os.O_RDWR|os.O_CREATE, unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("flock: %w", err)
	}
	defer a.Unlock()
	if b, err := flock.Try(s.path("locks", "store"), os.O_RDWR, unix.LOCK_EX); err == nil {
		b.Unlock()
		return errors.New("flock gives one lock to two holders")
	}
	from, to := s.path("tmp", "selftest-a"), s.path("tmp", "selftest-b")
	defer func() { _, _ = os.Remove(from), os.Remove(to) }()
	if err := errors.Join(os.WriteFile(from, []byte("new"), 0o600), os.WriteFile(to, []byte("old"), 0o600)); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != "new" {
		return fmt.Errorf("rename does not replace a file (%q, %w)", b, err)
	}
	if _, err := os.Lstat(s.path("tmp", "SELFTEST-B")); err == nil {
		return errors.New("names that differ only in case are one file")
	}
	if err := syncDir(s.path("tmp")); err != nil {
		return fmt.Errorf("fsync of a directory: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// bootID changes with every boot of the machine; empty if the kernel does not say.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(b)
}
