package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The locks, in the order in which they may be taken together:
//
//	caches/KEY.lock  a build, from restore to the cache's commit
//	locks/tree-XX    unpacking a tree, or compressing a layer
//	locks/refs       changing a ref and index.json
//	locks/store      shared: to look for something and hold it, or to commit
//	                 something held; exclusive: GC, so that it sees both or neither
//	locks/sessions   making a session, and looking for dead ones
//	locks/bad        shared: to commit a blob; exclusive: to quarantine one, so
//	                 that the good blob that replaced a bad one is not taken away
//
// All are flock(2) on open file descriptions: two holders in one process
// exclude each other as two processes do, and a dead process holds none.
type lock struct{ f *os.File }

func (l *lock) unlock() {
	_ = l.f.Close() // closing the only descriptor releases the lock
}

var errLocked = errors.New("held by another process")

// tryFlock takes a lock without waiting; errLocked if somebody has it.
func tryFlock(path string, flags, how int) (*lock, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("flock %s: %w", path, err)
	}
	return &lock{f}, nil
}

// flockPath takes a lock, waiting for it as long as ctx lives.
func flockPath(ctx context.Context, path string, flags, how int) (*lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := tryFlock(path, flags, how)
	if !errors.Is(err, errLocked) {
		return l, err
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	// A blocked flock cannot be called off. Whoever waits in vain leaves a
	// goroutine behind that gives the lock back the moment it gets it.
	got := make(chan error, 1)
	go func() { got <- flock(f, how) }()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		return &lock{f}, nil
	case <-ctx.Done():
		go func() { <-got; _ = f.Close() }()
		return nil, fmt.Errorf("wait for lock %s: %w", path, ctx.Err())
	}
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *Store) lock(ctx context.Context, name string, how int) (*lock, error) {
	return flockPath(ctx, s.path("locks", name), os.O_RDWR|os.O_CREATE, how)
}

// shared keeps GC out. Hold it only for moments: GC waits for it.
func (s *Store) shared(ctx context.Context) (*lock, error) {
	return s.lock(ctx, "store", unix.LOCK_SH)
}

// workLock makes that two who want the same thing made, make it once. One of
// 256 locks stands for the digest; strangers that share it only wait.
func (s *Store) workLock(ctx context.Context, kind, hex string) (*lock, error) {
	return s.lock(ctx, kind+"-"+hex[:2], unix.LOCK_EX)
}
