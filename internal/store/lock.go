package store

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/flock"
)

// lock takes one of the store's locks. They are, in the order in which they may
// be taken together:
//
//	caches/KEY.lock  a build, from restore to the cache's commit
//	locks/tree-XX    unpacking a tree, or compressing a layer
//	locks/refs       changing a ref and index.json
//	locks/store      shared: to look for something and hold it, or to commit
//	                 something held; exclusive: GC, so that it sees both or neither
//	locks/sessions   making a session, and looking for dead ones
//	locks/bad        shared: to commit a blob; exclusive: to quarantine one, so
//	                 that the good blob that replaced a bad one is not taken away
func (s *Store) lock(ctx context.Context, name string, how int) (*flock.Lock, error) {
	return flock.Take(ctx, s.path("locks", name), os.O_RDWR|os.O_CREATE, how)
}

// shared keeps GC out. Hold it only for moments: GC waits for it.
func (s *Store) shared(ctx context.Context) (*flock.Lock, error) {
	return s.lock(ctx, "store", unix.LOCK_SH)
}

// workLock makes that two who want the same thing made, make it once. One of
// 256 locks stands for the digest; strangers that share it only wait.
func (s *Store) workLock(ctx context.Context, kind, hex string) (*flock.Lock, error) {
	return s.lock(ctx, kind+"-"+hex[:2], unix.LOCK_EX)
}
