package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTrashOfAnother: what a killed build left of other ids than its user's does
// not keep anybody from collecting garbage, and is named.
func TestTrashOfAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	stuck, plain := filepath.Join(dir, "trash", "stuck"), filepath.Join(dir, "trash", "plain")
	if err := errors.Join(os.MkdirAll(filepath.Join(stuck, "d", "f"), 0o755), os.Mkdir(plain, 0o700)); err != nil {
		t.Fatal(err)
	}
	wantPlain := false
	if os.Geteuid() == 0 {
		// Only this thread's view of files becomes an ordinary user's.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		own := func(name string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(name, 1000, 1000))
		}
		above := filepath.Dir(dir)
		if err := errors.Join(os.Chmod(above, 0o755), os.Chmod(filepath.Dir(above), 0o755), filepath.WalkDir(dir, own), os.Chown(filepath.Join(stuck, "d"), 100_000, 100_000), unix.Setfsuid(1000)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Setfsuid(0) }()
	} else {
		// A user has no other ids here: a directory that he may not write to is as good.
		wantPlain = true
		if err := os.Chmod(filepath.Join(dir, "trash"), 0o500); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(filepath.Join(dir, "trash"), 0o700)
	}
	freed, err := s.GC(t.Context())
	if err != nil || !slices.Contains(freed.Left, stuck) || slices.Contains(freed.Left, plain) != wantPlain {
		t.Errorf("%v %v", freed, err)
	}
}
