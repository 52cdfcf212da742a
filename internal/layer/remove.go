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
// is below a kept directory is looked at too. However deep the tree is, one
// directory is open at a time.
func removeTree(fd int, base string, st *unix.Stat_t, p pruner) error {
	if !isDir(st) {
		if p.keeps(st) {
			return nil
		}
		return p.unlink(fd, base, st, 0)
	}
	if err := removeBelow(fd, base, st, p); err != nil {
		return err
	}
	if p.keeps(st) {
		return nil
	}
	return p.unlink(fd, base, st, unix.AT_REMOVEDIR)
}

// removing is a directory whose names are being removed.
type removing struct {
	base  string
	stat  unix.Stat_t
	names []dirent
}

func removeBelow(fd int, base string, st *unix.Stat_t, p pruner) error {
	at, open, err := openRemoving(fd, base, st)
	if err != nil {
		return err
	}
	defer func() { unix.Close(open) }()
	var above []removing
	for {
		if len(at.names) > 0 {
			name := at.names[0].name
			at.names = at.names[1:]
			var st unix.Stat_t
			if err := fstatat(open, name, &st); err != nil {
				return err
			}
			if !isDir(&st) {
				if err := removeTree(open, name, &st, p); err != nil {
					return err
				}
				continue
			}
			child, fd, err := openRemoving(open, name, &st)
			if err != nil {
				return err
			}
			above = append(above, at)
			unix.Close(open)
			at, open = child, fd
			continue
		}
		if len(above) == 0 {
			return nil
		}
		done := at
		at, above = above[len(above)-1], above[:len(above)-1]
		up, err := openAbove(open, &at.stat)
		if err != nil {
			return err
		}
		unix.Close(open)
		open = up
		if p.keeps(&done.stat) {
			continue
		}
		if err := p.unlink(open, done.base, &done.stat, unix.AT_REMOVEDIR); err != nil {
			return err
		}
	}
}

// openRemoving opens and lists a directory, also one that denies access to its
// owner.
func openRemoving(fd int, base string, st *unix.Stat_t) (removing, int, error) {
	r := removing{base: base, stat: *st}
	child, err := openat(fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return r, -1, err
	}
	if st.Mode&0o700 != 0o700 && unix.Geteuid() != 0 {
		err = unix.Chmod(procPath(child), permBits(st)|0o700)
	}
	if err == nil {
		r.names, err = namesIn(child)
	}
	if err != nil {
		unix.Close(child)
		return r, -1, err
	}
	return r, child, nil
}

func namesIn(dir int) ([]dirent, error) {
	list, err := openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(list)
	return readDirents(list)
}

// openAbove opens the directory above, which must be the one that it was.
func openAbove(fd int, was *unix.Stat_t) (int, error) {
	up, err := openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = fstat(up, &st); err == nil && !sameFile(&st, was) {
		err = ErrChanged
	}
	if err != nil {
		unix.Close(up)
		return -1, err
	}
	return up, nil
}
