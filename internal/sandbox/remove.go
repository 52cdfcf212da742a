package sandbox

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeDepth bounds the descriptors and the stack that a removal takes. A step can make a tree of
// any depth; what lies deeper is moved up and removed from there.
const removeDepth = 100

// removeTree deletes path and all below it, by descriptors and without following a symbolic link.
// A missing path is no error. It must run with capabilities over the tree's owners, as the worker
// does: then modes do not matter.
func removeTree(path string) error {
	dir, name := filepath.Split(filepath.Clean(path))
	if dir == "" || name == "" || name == "." || name == ".." {
		return fmt.Errorf("remove %s: not a path to remove", path)
	}
	parent, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	defer unix.Close(parent)
	r := remover{top: -1}
	if err := r.remove(parent, name, 0); err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

type remover struct {
	top   int // the tree's own directory, where too deep directories go
	moved int
}

func (r *remover) remove(parent int, name string, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	if err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	if depth > removeDepth {
		return r.moveUp(parent, name)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if depth == 0 {
		r.top = fd
	}
	// Read to the end, remove, and again: what is moved up to the top comes in a later round.
	for {
		if err := r.empty(f, depth); err != nil {
			return err
		}
		err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if err != unix.ENOTEMPTY {
			return err
		}
	}
}

func (r *remover) moveUp(parent int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(parent, name, r.top, fmt.Sprintf(".kiln-removed-%d", r.moved), unix.RENAME_NOREPLACE)
		if err != unix.EEXIST {
			return err
		}
	}
}

func (r *remover) empty(f *os.File, depth int) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if err := r.remove(int(f.Fd()), name, depth+1); err != nil {
				return &os.PathError{Op: "remove", Path: name, Err: err}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
