package layer

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Remove deletes the tree at path, directories that deny access to their owner
// included, which os.RemoveAll cannot. It follows no symlink. A missing path is
// no error.
func Remove(path string) error {
	parent, err := openat(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return pathError("remove", path, err)
	}
	defer unix.Close(parent)
	base := filepath.Base(path)
	var st unix.Stat_t
	if err := fstatat(parent, base, &st); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return pathError("remove", path, err)
	}
	return pathError("remove", path, removeTree(parent, base, &st, pruner{}))
}

// A pruner says what of a tree is to stay and hears of what went. Either
// function may be nil.
type pruner struct {
	keep func(*unix.Stat_t) bool
	gone func(*unix.Stat_t)
}

func (p pruner) keeps(st *unix.Stat_t) bool { return p.keep != nil && p.keep(st) }

// unlink removes one file. A directory that still holds something stays.
func (p pruner) unlink(fd int, base string, st *unix.Stat_t, flags int) error {
	err := unix.Unlinkat(fd, base, flags)
	if flags != 0 && (err == unix.ENOTEMPTY || err == unix.EEXIST) {
		return nil
	}
	if err == nil && p.gone != nil {
		p.gone(st)
	}
	return err
}

// removeTree removes base in fd and all below it without following symlinks.
// A file that p keeps stays, and so do the directories that lead to it. What
// is below a kept directory is looked at too.
func removeTree(fd int, base string, st *unix.Stat_t, p pruner) error {
	if !isDir(st) {
		if p.keeps(st) {
			return nil
		}
		return p.unlink(fd, base, st, 0)
	}
	if err := removeChildren(fd, base, st, p); err != nil {
		return err
	}
	if p.keeps(st) {
		return nil
	}
	return p.unlink(fd, base, st, unix.AT_REMOVEDIR)
}

func removeChildren(fd int, base string, st *unix.Stat_t, p pruner) error {
	child, err := openat(fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(child)
	if st.Mode&0o700 != 0o700 && unix.Geteuid() != 0 {
		if err := unix.Chmod(procPath(child), permBits(st)|0o700); err != nil {
			return err
		}
	}
	list, err := openat(child, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(list)
	names, err := readDirents(list)
	if err != nil {
		return err
	}
	for _, e := range names {
		var cst unix.Stat_t
		if err := fstatat(list, e.name, &cst); err != nil {
			return err
		}
		if err := removeTree(list, e.name, &cst, p); err != nil {
			return err
		}
	}
	return nil
}
