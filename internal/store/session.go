package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/flock"

	"github.com/kilnbuild/kiln/internal/layer"
)

// session is what one open Store works on: tmp/ID, whose flock says that it
// lives. Its file `held` lists what GC must leave alone for its sake.
type session struct {
	dir  string
	lock *flock.Lock
	n    atomic.Int64

	mu   sync.Mutex
	held *os.File
	seen map[item]bool
}

// item is a thing that GC could remove: a blob by digest or a tree by diffID.
type item struct{ kind, hex string }

const (
	blobKind = "blob"
	treeKind = "tree"
)

// use returns this Store's session.
func (s *Store) use(ctx context.Context) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("store %s: %w", s.dir, fs.ErrClosed)
	}
	if s.session != nil {
		return s.session, nil
	}
	// Nobody may look for dead sessions between the mkdir and the flock.
	l, err := s.lock(ctx, "sessions", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer l.Unlock()
	dir := s.path("tmp", strings.ToLower(rand.Text()[:12]))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, s.full(err, 0)
	}
	alive, err := flock.Try(dir, os.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	held, err := os.OpenFile(filepath.Join(dir, "held"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		alive.Unlock()
		return nil, s.full(err, 0)
	}
	s.session = &session{dir: dir, lock: alive, held: held, seen: map[item]bool{}}
	return s.session, nil
}

// temp names a new file or directory in the session.
func (ses *session) temp(kind string) string {
	return filepath.Join(ses.dir, kind+strconv.FormatInt(ses.n.Add(1), 10))
}

func (ses *session) close(s *Store) error {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	err := errors.Join(ses.held.Close(), s.discard(ses.dir))
	ses.lock.Unlock()
	return err
}

// hold keeps items from GC until the Store is closed. The caller has the store
// lock and has seen that they are there, or is about to put them there.
func (s *Store) hold(ctx context.Context, items ...item) error {
	ses, err := s.use(ctx)
	if err != nil {
		return err
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	var lines bytes.Buffer
	for _, it := range items {
		if !ses.seen[it] {
			fmt.Fprintf(&lines, "%s %s\n", it.kind, it.hex)
		}
	}
	if lines.Len() == 0 {
		return nil
	}
	// No fsync: the list dies with the process, and so with the machine.
	if _, err := ses.held.Write(lines.Bytes()); err != nil {
		return s.full(err, int64(lines.Len()))
	}
	for _, it := range items {
		ses.seen[it] = true
	}
	return nil
}

// liveItems is what the living sessions hold. The caller has the store lock
// exclusively, so none is adding to its list.
func (s *Store) liveItems(ctx context.Context) (map[item]bool, error) {
	l, err := s.lock(ctx, "sessions", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer l.Unlock()
	live := map[item]bool{}
	sessions, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return nil, err
	}
	for _, e := range sessions {
		if !e.IsDir() {
			continue // left by a process that died making the store
		}
		if dead, err := s.dead(e); err != nil {
			return nil, err
		} else if dead {
			continue
		}
		b, err := os.ReadFile(s.path("tmp", e.Name(), "held"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its owner died making it, or closed it just now
		}
		if err != nil {
			return nil, err
		}
		for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
			kind, hex, _ := strings.Cut(sc.Text(), " ")
			live[item{kind, hex}] = true
		}
	}
	return live, nil
}

// dead says whether nobody holds the lock of an entry of tmp. The caller has
// the sessions lock. Files are left by processes that died making the store.
func (s *Store) dead(e fs.DirEntry) (bool, error) {
	if !e.IsDir() {
		return true, nil
	}
	l, err := flock.Try(s.path("tmp", e.Name()), os.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_EX)
	switch {
	case errors.Is(err, flock.ErrHeld):
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	l.Unlock()
	return true, nil
}

// reclaim moves the sessions of dead processes to the trash, which is emptied
// in the background: big trees take seconds.
func (s *Store) reclaim(ctx context.Context) error {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		if err := s.reclaimSessions(ctx); err != nil {
			return err
		}
	}
	trash, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return err
	}
	if len(trash) > 0 {
		s.sweep.Go(func() { _, _ = s.emptyTrash() }) // whoever opens the store next goes on
	}
	return nil
}

func (s *Store) reclaimSessions(ctx context.Context) error {
	l, err := s.lock(ctx, "sessions", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if dead, err := s.dead(e); err != nil {
			return err
		} else if !dead {
			continue
		}
		if _, err := s.toTrash(s.path("tmp", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// discard removes a file or tree: out of the way at once, then bit by bit.
func (s *Store) discard(path string) error {
	trash, err := s.toTrash(path)
	if err != nil || trash == "" {
		return err
	}
	return removeTree(trash)
}

// toTrash moves path to a new name in the trash; "" if there is no path.
func (s *Store) toTrash(path string) (string, error) {
	to := s.path("trash", strings.ToLower(rand.Text()[:16]))
	err := os.Rename(path, to)
	if errors.Is(err, fs.ErrPermission) {
		// Moving a directory rewrites its "..": it must be writable.
		_ = os.Chmod(path, 0o700)
		err = os.Rename(path, to)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return to, err
}

// emptyTrash removes what is in the trash. What this user cannot remove (files of
// a sub-uid) stays there and is listed.
func (s *Store) emptyTrash() (left []string, err error) {
	l, err := flock.Try(s.path("locks", "trash"), os.O_RDWR|os.O_CREATE, unix.LOCK_EX)
	if errors.Is(err, flock.ErrHeld) {
		return nil, nil // somebody is at it
	}
	if err != nil {
		return nil, err
	}
	defer l.Unlock()
	entries, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		path := s.path("trash", e.Name())
		if err := removeTree(path); errors.Is(err, fs.ErrPermission) {
			left = append(left, path)
		} else {
			errs = append(errs, err)
		}
	}
	return left, errors.Join(errs...)
}

// removeTree removes a tree in the trash, where others may be removing it too.
func removeTree(path string) error {
	for {
		err := layer.Remove(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Somebody took a file from under us: that is progress too.
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
}

// Run is scratch space of one build, on the store's file system, so that what
// is finished there can be renamed into the store.
type Run struct {
	// Dir is an empty directory of mode 0700, for this Run alone. It does not
	// outlive the process: the next Open clears it away.
	Dir string

	store *Store
}

// Run makes scratch space.
func (s *Store) Run(ctx context.Context) (*Run, error) {
	ses, err := s.use(ctx)
	if err != nil {
		return nil, fmt.Errorf("start run in store: %w", err)
	}
	r := &Run{Dir: ses.temp("run"), store: s}
	if err := os.Mkdir(r.Dir, 0o700); err != nil {
		return nil, s.full(fmt.Errorf("start run in store: %w", err), 0)
	}
	return r, nil
}

// Close removes the scratch space and everything in it. Mounts in there are
// for the caller to take down first.
func (r *Run) Close() error {
	if err := r.store.discard(r.Dir); err != nil {
		return fmt.Errorf("remove %s: %w", r.Dir, err)
	}
	return nil
}
