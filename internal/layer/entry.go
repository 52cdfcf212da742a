package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// directory makes base, or keeps the directory that is there.
func (u *unpacker) directory(fd int, path, base string, hdr *tar.Header) error {
	var st unix.Stat_t
	err := fstatat(fd, base, &st)
	switch {
	case err == nil && isDir(&st):
	case err == nil:
		// It took the place of something: nothing below may show through.
		if err := u.remove(fd, base, &st); err != nil {
			return err
		}
		if err := unix.Mkdirat(fd, base, 0o700); err != nil {
			return err
		}
		if !u.plain {
			if err := setOpaque(fd, base); err != nil {
				return err
			}
		}
	case err == unix.ENOENT:
		if err := unix.Mkdirat(fd, base, 0o700); err != nil {
			return err
		}
	default:
		return err
	}
	child, err := openat(fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(child)
	return u.noteDir(child, path, hdr)
}

func (u *unpacker) regular(ctx context.Context, fd int, base string, hdr *tar.Header) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW
	file, err := openat(fd, base, flags, 0o600)
	if err == unix.EEXIST {
		if err := u.clear(fd, base); err != nil {
			return err
		}
		file, err = openat(fd, base, flags, 0o600)
	}
	if err != nil {
		return err
	}
	err = errors.Join(u.fill(ctx, file, hdr), unix.Close(file))
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, base, times(hdr), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) fill(ctx context.Context, file int, hdr *tar.Header) error {
	for {
		n, err := u.in.Read(u.buf)
		if werr := writeFull(file, u.buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := u.own(file, "", hdr); err != nil {
		return err
	}
	if err := u.setXattrs(file, hdr); err != nil {
		return err
	}
	if u.plain {
		var st unix.Stat_t
		if err := fstat(file, &st); err != nil {
			return err
		}
		u.bring(idOf(&st))
	}
	return unix.Fchmod(file, u.mode(hdr))
}

func (u *unpacker) symlink(fd int, base string, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) > maxPath || strings.ContainsRune(hdr.Linkname, 0) {
		return fmt.Errorf("bad link target %.80q: %w", hdr.Linkname, ErrUnsafe)
	}
	return u.create(fd, base, hdr, func() error { return unix.Symlinkat(hdr.Linkname, fd, base) })
}

// node makes a FIFO or a device. The owner comes before the mode, of which a
// new owner would take away a part.
func (u *unpacker) node(fd int, base string, hdr *tar.Header, kind uint32, dev int) error {
	err := u.create(fd, base, hdr, func() error { return unix.Mknodat(fd, base, kind|0o600, dev) })
	if err != nil {
		return err
	}
	pathfd, err := openat(fd, base, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pathfd)
	return unix.Chmod(procPath(pathfd), u.mode(hdr))
}

// device makes a device node, for which even root may lack the right: in a
// user namespace, and in most containers for most devices.
func (u *unpacker) device(fd int, base string, hdr *tar.Header) error {
	kind := uint32(unix.S_IFCHR)
	if hdr.Typeflag == tar.TypeBlock {
		kind = unix.S_IFBLK
	}
	if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor > 1<<12-1 || hdr.Devminor > 1<<20-1 {
		return fmt.Errorf("device %d:%d: there is none: %w", hdr.Devmajor, hdr.Devminor, ErrUnsafe)
	}
	err := error(unix.EPERM)
	if u.owners == Chown {
		err = u.node(fd, base, hdr, kind, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
	}
	if err == unix.EPERM {
		u.skip(hdr)
		return nil
	}
	return err
}

// hardlink links to a file of this layer. A link to a file of another layer,
// to a directory or to a whiteout has no meaning.
func (u *unpacker) hardlink(fd int, base string, hdr *tar.Header) error {
	target, err := u.clean(hdr.Linkname)
	if err != nil {
		return err
	}
	parent, name := split(target)
	from, err := openInRoot(u.root, orDot(parent), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("hard link to %q, which is not in the layer: %w", hdr.Linkname, err)
	}
	defer unix.Close(from)
	var st, old unix.Stat_t
	if err := fstatat(from, orDot(name), &st); err != nil {
		return fmt.Errorf("hard link to %q, which is not in the layer: %w", hdr.Linkname, err)
	}
	if !isRegular(&st) && typeOf(&st) != unix.S_IFLNK && typeOf(&st) != unix.S_IFIFO {
		return fmt.Errorf("hard link to %q, a %s: %w", hdr.Linkname, kindName(&st), ErrUnsafe)
	}
	if err := fstatat(fd, base, &old); err == nil && sameFile(&st, &old) {
		return nil // to itself
	}
	link := func() error { return unix.Linkat(from, name, fd, base, 0) }
	err = link()
	if err == unix.EEXIST {
		if err := u.clear(fd, base); err != nil {
			return err
		}
		err = link()
	}
	u.bring(idOf(&st))
	return err
}

func orDot(path string) string {
	if path == "" {
		return "."
	}
	return path
}

// create runs a call that makes base, clearing the way for it if needed, and
// sets the new file's time.
func (u *unpacker) create(fd int, base string, hdr *tar.Header, make func() error) error {
	err := make()
	if err == unix.EEXIST {
		if err := u.clear(fd, base); err != nil {
			return err
		}
		err = make()
	}
	if err != nil {
		return err
	}
	if u.plain {
		var st unix.Stat_t
		if err := fstatat(fd, base, &st); err != nil {
			return err
		}
		u.bring(idOf(&st))
	}
	if err := u.own(fd, base, hdr); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, base, times(hdr), unix.AT_SYMLINK_NOFOLLOW)
}

// clear removes whatever is at base.
func (u *unpacker) clear(fd int, base string) error {
	var st unix.Stat_t
	if err := fstatat(fd, base, &st); err != nil {
		return err
	}
	return u.remove(fd, base, &st)
}

func (u *unpacker) remove(fd int, base string, st *unix.Stat_t) error {
	if !isDir(st) && typeOf(st) != unix.S_IFLNK {
		u.forget(st)
		return unix.Unlinkat(fd, base, 0)
	}
	return u.removeTree(fd, base, st, nil)
}

// forget drops what is remembered of a file that is about to go: its inode
// number may come back as another file's.
func (u *unpacker) forget(st *unix.Stat_t) {
	if st.Nlink <= 1 || isDir(st) {
		delete(u.present, idOf(st))
	}
	if isDir(st) {
		delete(u.dirs, idOf(st))
	}
}

// removeTree removes base and all below it, but for what keep says.
func (u *unpacker) removeTree(fd int, base string, st *unix.Stat_t, keep func(*unix.Stat_t) bool) error {
	err := removeTree(fd, base, st, pruner{keep: keep, gone: u.forget})
	// What went may be on the way to the parent directory used last. It stays
	// open for the rest of this entry, but under no path.
	u.parentPath = "\x00"
	return err
}

// whiteout carries out `.wh.x` and `.wh..wh..opq`.
func (u *unpacker) whiteout(name, parent, base string) error {
	if base == whiteoutOpaque {
		return entryError(name, u.opaqueWhiteout(parent))
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	target := strings.TrimPrefix(base, whiteoutPrefix)
	if target == "" || target == "." || target == ".." {
		return unsafeEntry(name, "whiteout of no file")
	}
	fd, err := u.openParent(parent)
	if err != nil {
		return entryError(name, err)
	}
	var st unix.Stat_t
	switch err := fstatat(fd, target, &st); {
	case err == unix.ENOENT && u.plain:
		return nil
	case err == unix.ENOENT:
		return entryError(name, unix.Mknodat(fd, target, unix.S_IFCHR, 0))
	case err != nil:
		return entryError(name, err)
	case u.plain:
		return entryError(name, u.removeTree(fd, target, &st, u.isPresent))
	case isDir(&st):
		return entryError(name, setOpaque(fd, target))
	}
	return nil // the file is this layer's own and hides what is below already
}

func (u *unpacker) isPresent(st *unix.Stat_t) bool {
	_, ok := u.present[idOf(st)]
	return ok
}

func (u *unpacker) opaqueWhiteout(parent string) error {
	fd, err := u.openParent(parent)
	if err != nil {
		return err
	}
	if !u.plain {
		return setOpaque(fd, "")
	}
	dirfd, err := openat(unix.AT_FDCWD, procPath(fd), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dirfd)
	names, err := readDirents(dirfd)
	if err != nil {
		return err
	}
	for _, e := range names {
		var st unix.Stat_t
		if err := fstatat(fd, e.name, &st); err != nil {
			return err
		}
		if err := u.removeTree(fd, e.name, &st, u.isPresent); err != nil {
			return err
		}
	}
	return nil
}

// setOpaque marks the directory base in fd, or fd itself, as hiding what is below it.
func setOpaque(fd int, base string) error {
	path := procPath(fd)
	if base != "" {
		child, err := openat(fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(child)
		path = procPath(child)
	}
	if err := unix.Setxattr(path, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("set %s (the file system must have user xattrs): %w", opaqueXattr, err)
	}
	return nil
}

// xattrRecord is the PAX record that carries an xattr.
const xattrRecord = "SCHILY.xattr."

// setXattrs sets the xattrs that a layer may bring: user.*, but for those that
// would reshape the overlay or pass for a note of ours, and, where owners are
// kept, file capabilities. File systems without xattrs are no error.
func (u *unpacker) setXattrs(fd int, hdr *tar.Header) error {
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !keptXattr(name) || strings.ContainsRune(name, 0) {
			continue
		}
		if name == capXattr {
			if u.owners == 0 || hdr.Typeflag == tar.TypeDir {
				continue
			}
			if err := setCapability(fd, value); err != nil {
				return err
			}
			continue
		}
		err := unix.Setxattr(procPath(fd), name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set xattr %s: %w", name, err)
		}
	}
	return nil
}

// mode is the mode of an entry; without its owner it has no set-user-ID and no
// set-group-ID bit.
func (u *unpacker) mode(hdr *tar.Header) uint32 {
	if u.owners == 0 {
		return uint32(hdr.Mode) & 0o1777
	}
	return uint32(hdr.Mode) & 0o7777
}

// times are hdr's time stamps for utimensat. Tars can name times that no file
// system can hold: the kernel clamps those that fit a Timespec, the rest is 0.
func times(hdr *tar.Header) []unix.Timespec {
	ts, err := unix.TimeToTimespec(hdr.ModTime)
	if err != nil || hdr.ModTime.IsZero() {
		ts = unix.Timespec{}
	}
	return []unix.Timespec{ts, ts}
}
