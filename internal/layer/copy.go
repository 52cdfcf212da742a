package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Copy materialises the merged tree of src as the plain directory dst, which
// it makes if need be; dst must be empty. Contents are cloned where the file
// system can. Modes, modification times and symlinks are kept; hard links
// become files of their own; sockets, device nodes and xattrs are left out;
// everything belongs to the caller. Copy does not sync.
func Copy(ctx context.Context, dst string, src Stack) error {
	return CopyTree(ctx, dst, src, nil)
}

// CopyTree is Copy without the files, and the directories with all in them,
// for which skip is true. Rel has no leading slash; the root is not asked for.
func CopyTree(ctx context.Context, dst string, src Stack, skip func(rel string, dir bool) bool) error {
	root, err := src.root()
	if err != nil {
		return err
	}
	defer root.close()
	if err := unix.Mkdir(dst, 0o700); err != nil && err != unix.EEXIST {
		return pathError("mkdir", dst, err)
	}
	fd, err := openat(unix.AT_FDCWD, dst, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return pathError("open", dst, err)
	}
	defer unix.Close(fd)
	if skip == nil {
		skip = func(string, bool) bool { return false }
	}
	c := &copier{ctx: ctx, skip: skip, buf: make([]byte, copyBuffer)}
	var st unix.Stat_t
	if err := fstat(root[0].fd, &st); err != nil {
		return err
	}
	if err := c.directory(fd, root, "", &st); err != nil {
		return fmt.Errorf("copy to %s: %w", dst, err)
	}
	return nil
}

// copyChunk is how much the kernel copies before somebody who waits for the end
// is heard, in bytes.
const copyChunk = 64 << 20

type copier struct {
	ctx     context.Context
	skip    func(rel string, dir bool) bool
	buf     []byte
	noClone bool // the file systems cannot share blocks
	noRange bool // nor copy in the kernel
}

// directory copies what is in d to the directory fd and then gives fd d's mode
// and time.
func (c *copier) directory(fd int, d dir, rel string, st *unix.Stat_t) error {
	entries, err := d.list()
	if err != nil {
		return pathError("read", rel, err)
	}
	for _, e := range entries {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		path := e.name
		if rel != "" {
			path = rel + "/" + e.name
		}
		if c.skip(path, e.kind == unix.DT_DIR) {
			continue
		}
		if err := c.entry(fd, d, e, path); err != nil {
			var named *fs.PathError
			if errors.As(err, &named) {
				return err
			}
			return pathError("copy", path, err)
		}
	}
	if err := unix.Fchmod(fd, permBits(st)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), copyTimes(st), 0)
}

func copyTimes(st *unix.Stat_t) []unix.Timespec { return []unix.Timespec{st.Mtim, st.Mtim} }

func (c *copier) entry(fd int, d dir, e entry, path string) error {
	switch e.kind {
	case unix.DT_DIR:
		return c.subdirectory(fd, d, e.name, path)
	case unix.DT_REG:
		return c.regular(fd, e.layer.fd, e.name)
	case unix.DT_LNK, unix.DT_FIFO:
		return c.special(fd, e.layer.fd, e.name)
	}
	return nil
}

func (c *copier) subdirectory(fd int, d dir, name, path string) error {
	f, err := d.lookup(name)
	if err != nil {
		return changed(err)
	}
	defer f.close()
	if !isDir(&f.stat) {
		return ErrChanged
	}
	if err := unix.Mkdirat(fd, name, 0o700); err != nil {
		return err
	}
	child, err := openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(child)
	return c.directory(child, f.dir, path, &f.stat)
}

// special copies a symlink or a FIFO.
func (c *copier) special(fd, from int, name string) error {
	var st unix.Stat_t
	if err := fstatat(from, name, &st); err != nil {
		return changed(err)
	}
	switch typeOf(&st) {
	case unix.S_IFLNK:
		link, err := readlinkat(from, name)
		if err != nil {
			return changed(err)
		}
		if err := unix.Symlinkat(link, fd, name); err != nil {
			return err
		}
	case unix.S_IFIFO:
		if err := unix.Mknodat(fd, name, unix.S_IFIFO|st.Mode&0o777, 0); err != nil {
			return err
		}
	default:
		return ErrChanged
	}
	return unix.UtimesNanoAt(fd, name, copyTimes(&st), unix.AT_SYMLINK_NOFOLLOW)
}

func (c *copier) regular(fd, from int, name string) error {
	src, err := openReadable(from, name, 0)
	if err != nil {
		return changed(err)
	}
	defer unix.Close(src)
	var before, after unix.Stat_t
	if err := fstat(src, &before); err != nil {
		return err
	}
	if !isRegular(&before) {
		return ErrChanged
	}
	dst, err := openat(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := c.content(dst, src, before.Size); err != nil {
		return err
	}
	if err := fstat(src, &after); err != nil {
		return err
	}
	if after.Size != before.Size || after.Mtim != before.Mtim {
		return ErrChanged
	}
	if err := unix.Fchmod(dst, permBits(&before)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, name, copyTimes(&before), unix.AT_SYMLINK_NOFOLLOW)
}

// content copies size bytes in the cheapest way that works here.
func (c *copier) content(dst, src int, size int64) error {
	if size == 0 {
		return nil
	}
	if !c.noClone {
		if unix.IoctlFileClone(dst, src) == nil {
			return nil
		}
		c.noClone = true
	}
	for size > 0 && !c.noRange {
		n, err := unix.CopyFileRange(src, nil, dst, nil, int(min(size, copyChunk)), 0)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			c.noRange = true
		default:
			size -= int64(n)
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
	}
	for size > 0 {
		n, err := readFull(src, c.buf[:min(size, int64(len(c.buf)))])
		if err == nil && n == 0 {
			err = ErrChanged
		}
		if err != nil {
			return err
		}
		if err := writeFull(dst, c.buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
		if err := c.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
