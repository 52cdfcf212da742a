package archive

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tempMark is part of the name of everything unfinished: ".<name>.kiln-tmp-<random>".
const tempMark = ".kiln-tmp-"

// abandoned is how old an unfinished file or directory without a living owner
// has to be before it is removed. Its owner locks it right after making it.
const abandoned = time.Minute

// temp is a file or directory that becomes another one when it is finished. It
// is locked, and the kernel drops the lock with its process, so what a killed
// process left is found and removed by the next one that writes the same name.
type temp struct {
	path string
	file *os.File // open, locked; for a directory the directory itself
}

// newTemp makes one in dir for name, with the permissions that the umask gives.
func newTemp(dir, name string, isDir bool) (*temp, error) {
	prefix := "." + name + tempMark
	if len(prefix) > 200 { // leave room for the random part in 255 bytes
		prefix = "." + tempMark
	}
	reclaim(dir, prefix)
	t := &temp{path: filepath.Join(dir, prefix+rand.Text())}
	var err error
	if isDir {
		if err := os.Mkdir(t.path, 0o777); err != nil {
			return nil, err
		}
		t.file, err = os.Open(t.path)
	} else {
		t.file, err = os.OpenFile(t.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	}
	if err == nil {
		err = unix.Flock(int(t.file.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.remove()
		return nil, err
	}
	return t, nil
}

// remove takes it away, unless it was renamed. It may be called twice.
func (t *temp) remove() {
	if t.path != "" {
		os.RemoveAll(t.path)
		t.path = ""
	}
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
}

// become flushes a file, gives it its name and flushes the directory.
func (t *temp) become(path string) error {
	if err := t.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(t.path, path); err != nil {
		return err
	}
	t.path = ""
	t.remove()
	return syncDir(filepath.Dir(path))
}

// reclaim removes what dead processes left. What cannot be removed stays.
func reclaim(dir, prefix string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || e.Type()&^fs.ModeDir != 0 {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < abandoned {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(path)
		}
		f.Close()
	}
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems cannot, and say so; they have no more to give.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("flush %s: %w", dir, err)
	}
	return nil
}

// lockDir waits for the one lock of a directory. It leaves no file behind and
// goes with the process.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// destination resolves the file to be written: a symlink is followed, and only
// a regular file is replaced.
func destination(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is there already and is not a regular file", path)
	}
	return filepath.EvalSymlinks(path)
}

// writeFile has write fill a new file that takes the place of path when it is
// complete, or nothing.
func writeFile(path string, write func(*os.File) error) error {
	path, err := destination(path)
	if err != nil {
		return err
	}
	t, err := newTemp(filepath.Dir(path), filepath.Base(path), false)
	if err != nil {
		return err
	}
	defer t.remove()
	if err := write(t.file); err != nil {
		return err
	}
	return t.become(path)
}
