package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Apply unpacks one layer, an uncompressed tar, into the directory dir in the
// form that overlayfs takes as a lower directory: a whiteout `.wh.x` becomes a
// character device 0:0 named x, an opaque whiteout the user.overlay.opaque
// mark of its directory. Dir should be empty, and on a file system that has
// user xattrs.
//
// All files belong to the caller. Set-user-ID and set-group-ID bits, device
// nodes, owners and xattrs other than user.* are dropped, user.overlay.* too.
// An entry that could touch anything outside dir is refused with ErrUnsafe,
// one that exceeds limits with ErrLimit; what was unpacked before stays, so
// unpack to a scratch directory and rename it when Apply returned nil. Apply
// reads r to its end, does not sync, and needs Linux 5.11.
func Apply(ctx context.Context, dir string, r io.Reader, limits Limits) error {
	_, err := apply(ctx, dir, r, limits, unpacker{})
	return err
}

// ApplyPlain unpacks one layer over the tree in dir, as Apply does, but
// whiteouts delete what earlier layers left there (never what this layer
// itself brings, in whatever order).
func ApplyPlain(ctx context.Context, dir string, r io.Reader, limits Limits) error {
	_, err := apply(ctx, dir, r, limits, unpacker{plain: true})
	return err
}

// apply unpacks in the way that u says and returns what it left out.
func apply(ctx context.Context, dir string, r io.Reader, limits Limits, u unpacker) (skipped []string, err error) {
	root, err := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, pathError("open", dir, err)
	}
	u.root = root
	u.limits = limits.withDefaults()
	u.dirs = map[fileID]*dirMeta{}
	u.buf = make([]byte, copyBuffer)
	defer u.close()
	if u.plain {
		u.present = map[fileID]struct{}{}
	}
	if err := u.run(ctx, r); err != nil {
		return u.skipped, fmt.Errorf("unpack layer to %s: %w", dir, err)
	}
	return u.skipped, nil
}

// copyBuffer is the size of one read; larger ones measured no faster.
const copyBuffer = 128 << 10

type unpacker struct {
	root   int
	plain  bool
	owners Owners // 0: everything is the caller's
	limits Limits
	buf    []byte
	in     *Reader

	skipped []string

	// The parent directory used last, by its path in the tar. Tars list a
	// directory's files together, so one is enough.
	parentPath string
	parentFD   int
	parentOpen bool

	// dirs are the directories whose mode and time are set at the end, in the
	// order they were first seen.
	dirs     map[fileID]*dirMeta
	dirOrder []fileID
	names    int64 // bytes of their paths

	// present holds, for ApplyPlain, what this layer brought.
	present map[fileID]struct{}
}

type dirMeta struct {
	path string
	mode uint32
	time []unix.Timespec // nil: as it is
}

func (u *unpacker) close() {
	u.forgetParent()
	unix.Close(u.root)
}

func (u *unpacker) forgetParent() {
	if u.parentOpen {
		unix.Close(u.parentFD)
		u.parentOpen = false
	}
}

func (u *unpacker) run(ctx context.Context, r io.Reader) error {
	u.in = NewReader(ctx, r, u.limits)
	for {
		hdr, err := u.in.Next()
		if err == io.EOF {
			return u.finishDirs()
		}
		if err == nil {
			err = u.entry(ctx, hdr)
		}
		if err != nil {
			return err
		}
	}
}

// entry unpacks one tar entry.
func (u *unpacker) entry(ctx context.Context, hdr *tar.Header) error {
	path, err := u.clean(hdr.Name)
	if err != nil {
		return err
	}
	if path == "" {
		return u.rootEntry(hdr)
	}
	parent, base := split(path)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(hdr.Name, parent, base)
	}
	device := hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock
	if device && (u.owners == 0 || hdr.Devmajor == 0 && hdr.Devminor == 0) {
		return nil // cannot be made without privilege, and no build needs one; 0:0 is a whiteout on disk
	}
	fd, err := u.openParent(parent)
	if err != nil {
		return entryError(hdr.Name, err)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		err = u.directory(fd, path, base, hdr)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		err = u.regular(ctx, fd, base, hdr)
	case tar.TypeSymlink:
		err = u.symlink(fd, base, hdr)
	case tar.TypeLink:
		err = u.hardlink(fd, base, hdr)
	case tar.TypeFifo:
		err = u.node(fd, base, hdr, unix.S_IFIFO, 0)
	case tar.TypeChar, tar.TypeBlock:
		err = u.device(fd, base, hdr)
	default:
		err = fmt.Errorf("unknown type %q: %w", hdr.Typeflag, ErrUnsafe)
	}
	return entryError(hdr.Name, err)
}

// clean checks a name of the tar and returns it without leading, trailing and
// doubled slashes and without "."; the root is "".
func (u *unpacker) clean(name string) (string, error) {
	if len(name) > u.limits.Path {
		return "", limitError(name, "bytes in the name", int64(u.limits.Path))
	}
	if strings.ContainsRune(name, 0) {
		return "", unsafeEntry(name, "NUL in the name")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", unsafeEntry(name, "names a parent directory")
		case len(part) > maxName:
			return "", limitError(name, "bytes in a name between slashes", maxName)
		}
		parts = append(parts, part)
	}
	if len(parts) > u.limits.Depth {
		return "", limitError(name, "directories deep", int64(u.limits.Depth))
	}
	for i, part := range parts {
		if i < len(parts)-1 && strings.HasPrefix(part, whiteoutPrefix) {
			return "", unsafeEntry(name, "below a whiteout")
		}
	}
	return strings.Join(parts, "/"), nil
}

func split(path string) (parent, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return unsafeEntry(hdr.Name, "replaces the root directory")
	}
	return entryError(hdr.Name, u.noteDir(u.root, "", hdr))
}

// openParent returns an O_PATH descriptor of the directory path, resolving
// symlinks as if dir were the root and making directories that are missing.
// It belongs to u.
func (u *unpacker) openParent(path string) (int, error) {
	if path == "" {
		return u.root, nil
	}
	if u.parentOpen && u.parentPath == path {
		return u.parentFD, nil
	}
	u.forgetParent()
	fd, err := openInRoot(u.root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		fd, err = u.makeParents(path)
	}
	if err == nil && u.plain {
		err = u.makeWritable(fd, path)
	}
	if err != nil {
		return -1, err
	}
	u.parentPath, u.parentFD, u.parentOpen = path, fd, true
	return fd, nil
}

// makeParents makes the missing components of path, one attempt each: what
// cannot be opened after that (a broken link, a file) is refused. Each that is
// made counts as an entry.
func (u *unpacker) makeParents(path string) (int, error) {
	fd := u.root
	for end := 0; end < len(path); {
		start := end
		if i := strings.IndexByte(path[start:], '/'); i >= 0 {
			end = start + i
		} else {
			end = len(path)
		}
		prefix, base := path[:end], path[start:end]
		next, err := u.step(fd, prefix, base)
		if fd != u.root {
			unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
		fd = next
		end++ // the slash
	}
	return fd, nil
}

// step opens the directory base in fd, which is at prefix, or makes it. Only a
// link is resolved from the root.
func (u *unpacker) step(fd int, prefix, base string) (int, error) {
	next, err := openat(fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == unix.ENOTDIR { // O_PATH opens links, which are none
		next, err = openInRoot(u.root, prefix, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return u.makeParent(fd, prefix, base, err)
	}
	return next, err
}

func (u *unpacker) makeParent(fd int, prefix, base string, why error) (int, error) {
	hidden := false
	var st unix.Stat_t
	switch err := fstatat(fd, base, &st); {
	case err == nil && isWhiteout(&st) && !u.plain:
		if err := unix.Unlinkat(fd, base, 0); err != nil {
			return -1, err
		}
		hidden = true
	case err == nil:
		return -1, fmt.Errorf("%s is a %s that leads to no directory: %w", prefix, kindName(&st), errors.Join(ErrUnsafe, why))
	case err != unix.ENOENT:
		return -1, err
	}
	if err := u.in.count(prefix); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(fd, base, 0o700); err != nil {
		return -1, err
	}
	next, err := openat(fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	// In a directory that hands its group on it would not be root's.
	err = u.own(next, "", &tar.Header{})
	if err == nil {
		err = u.setDir(next, prefix, 0o755, nil)
	}
	if err == nil && hidden {
		err = setOpaque(fd, base)
	}
	if err != nil {
		unix.Close(next)
		return -1, err
	}
	return next, nil
}

// makeWritable gives the owner access to a directory that an earlier layer
// left without it; finishDirs restores the mode.
func (u *unpacker) makeWritable(fd int, path string) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&0o700 == 0o700 {
		return nil
	}
	if _, known := u.dirs[idOf(&st)]; known {
		return nil
	}
	meta, err := u.remember(idOf(&st), path)
	if err != nil {
		return err
	}
	meta.mode = permBits(&st)
	return unix.Chmod(procPath(fd), permBits(&st)|0o700)
}

// noteDir remembers the mode and time that hdr gives to the directory at fd.
func (u *unpacker) noteDir(fd int, path string, hdr *tar.Header) error {
	if err := u.own(fd, "", hdr); err != nil {
		return err
	}
	if u.owners != 0 && u.plain {
		if err := dropXattrs(fd, hdr); err != nil {
			return err
		}
	}
	if err := u.setXattrs(fd, hdr); err != nil {
		return err
	}
	return u.setDir(fd, path, u.mode(hdr), times(hdr))
}

func (u *unpacker) setDir(fd int, path string, mode uint32, time []unix.Timespec) error {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return err
	}
	id := idOf(&st)
	meta := u.dirs[id]
	if meta == nil {
		var err error
		if meta, err = u.remember(id, path); err != nil {
			return err
		}
	}
	meta.mode, meta.time = mode, time
	u.bring(id)
	return nil
}

// remember begins what is remembered of a directory.
func (u *unpacker) remember(id fileID, path string) (*dirMeta, error) {
	if u.names += int64(len(path)); u.names > u.limits.Names {
		return nil, limitError(path, "bytes in names of directories", u.limits.Names)
	}
	meta := &dirMeta{path: path}
	u.dirs[id] = meta
	u.dirOrder = append(u.dirOrder, id)
	return meta, nil
}

// bring records, for whiteouts, that this layer holds the file.
func (u *unpacker) bring(id fileID) {
	if u.plain {
		u.present[id] = struct{}{}
	}
}

// finishDirs sets modes and times of directories, the latest first. Those that
// their owner cannot search come last, opened before any of them is closed:
// a path to one may lead through another.
func (u *unpacker) finishDirs() error {
	u.forgetParent()
	list := make([]fileID, 0, len(u.dirs))
	for _, id := range u.dirOrder {
		if u.dirs[id] != nil {
			list = append(list, id)
		}
	}
	slices.SortStableFunc(list, func(a, b fileID) int {
		return strings.Compare(u.dirs[b].path, u.dirs[a].path)
	})
	closed := map[int]uint32{} // descriptors of unsearchable directories
	defer func() {
		for fd := range closed {
			unix.Close(fd)
		}
	}()
	for _, id := range list {
		meta := u.dirs[id]
		fd, err := u.finishDir(id, meta)
		if err != nil {
			return fmt.Errorf("directory %s: %w", quote(meta.path), err)
		}
		if fd >= 0 && meta.mode&0o100 == 0 {
			closed[fd] = meta.mode
		} else if fd >= 0 {
			unix.Close(fd)
		}
	}
	for fd, mode := range closed {
		if err := unix.Chmod(procPath(fd), mode); err != nil {
			return err
		}
	}
	return nil
}

// finishDir gives a directory its mode, still searchable, and time, and
// returns it open; -1 when a later entry replaced it.
func (u *unpacker) finishDir(id fileID, meta *dirMeta) (int, error) {
	fd, err := openInRoot(u.root, meta.path, unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = fstat(fd, &st)
	if err == nil && idOf(&st) == id {
		if err = unix.Chmod(procPath(fd), meta.mode|0o100); err == nil && meta.time != nil {
			err = unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), meta.time, 0)
		}
		if err == nil {
			return fd, nil
		}
	}
	unix.Close(fd)
	return -1, err
}
