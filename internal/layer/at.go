package layer

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// retryEINTR runs a system call again while a signal interrupts it.
func retryEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func openat(dirfd int, name string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// inRootRetries bounds the attempts of openInRoot: the kernel answers EAGAIN
// for ".." while any rename or mount happens on the machine. It also begins
// again by itself then, and counts the links twice: more than 20 on one way may
// be too many for it, of which loopRetries are enough to be sure.
const (
	inRootRetries = 256
	loopRetries   = 8
)

// openInRoot opens path as a process whose root is rootfd would, so neither
// ".." nor an absolute symlink leads out of it.
func openInRoot(rootfd int, path string, flags int) (int, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(rootfd, path, &how)
		switch {
		case err == unix.EINTR:
		case err == unix.ELOOP && try < loopRetries:
		case err == unix.EAGAIN && try < inRootRetries:
			if try > 16 {
				time.Sleep(time.Duration(try) * 50 * time.Microsecond)
			} else {
				runtime.Gosched()
			}
		default:
			return fd, err
		}
	}
}

func fstatat(dirfd int, name string, st *unix.Stat_t) error {
	return trueStat(st, func() error { return unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

func fstat(fd int, st *unix.Stat_t) error {
	return trueStat(st, func() error { return unix.Fstat(fd, st) })
}

func readlinkat(dirfd int, name string) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// readFull fills buf from fd unless the file ends before.
func readFull(fd int, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

func writeFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Write(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

func typeOf(st *unix.Stat_t) uint32     { return st.Mode & unix.S_IFMT }
func isDir(st *unix.Stat_t) bool        { return typeOf(st) == unix.S_IFDIR }
func isRegular(st *unix.Stat_t) bool    { return typeOf(st) == unix.S_IFREG }
func isWhiteout(st *unix.Stat_t) bool   { return typeOf(st) == unix.S_IFCHR && st.Rdev == 0 }
func sameFile(a, b *unix.Stat_t) bool   { return a.Ino == b.Ino && a.Dev == b.Dev }
func procPath(fd int) string            { return "/proc/self/fd/" + strconv.Itoa(fd) }
func permBits(st *unix.Stat_t) uint32   { return st.Mode & 0o7777 }
func mtimeOf(st *unix.Stat_t) time.Time { return time.Unix(st.Mtim.Unix()) }

// A dirent is one name of a directory with its DT_ type (DT_UNKNOWN on file
// systems that do not say).
type dirent struct {
	name string
	kind uint8
}

// direntHeader is the size of struct linux_dirent64 before its name: inode and
// offset (8 bytes each), record length (2), type (1).
const direntHeader = 19

// readDirents lists the directory open at fd, without "." and "..", in the
// order of the file system.
func readDirents(fd int) ([]dirent, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	var (
		list []dirent
		buf  = direntBuffers.Get().(*[]byte)
	)
	defer direntBuffers.Put(buf)
	for {
		n, err := unix.Getdents(fd, *buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return list, nil
		}
		list = appendDirents(list, (*buf)[:n])
	}
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func appendDirents(list []dirent, b []byte) []dirent {
	for len(b) >= direntHeader {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size < direntHeader || size > len(b) {
			return list
		}
		name := b[direntHeader:size]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		if s := string(name); s != "." && s != ".." {
			list = append(list, dirent{s, b[18]})
		}
		b = b[size:]
	}
	return list
}

// raised remembers the true modes of files that were made accessible for a
// moment, so that a concurrent reader in this process does not take the
// loosened mode for the real one. The low half of changes is the number of
// raises not yet undone, the high half grows with every raise and every undoing.
var raised struct {
	sync.Mutex
	changes atomic.Uint64
	modes   map[fileID]*raisedMode
}

type fileID struct{ dev, ino uint64 }

type raisedMode struct {
	mode  uint32
	users int
}

func idOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// trueStat runs a stat call and undoes what raise did to the mode it returns.
// The lock is taken only when some file is raised or was while stat ran.
func trueStat(st *unix.Stat_t, stat func() error) error {
	before := raised.changes.Load()
	err := retryEINTR(stat)
	if err != nil || (raisedNone(before) && raised.changes.Load() == before) {
		return err
	}
	raised.Lock()
	defer raised.Unlock()
	if err := retryEINTR(stat); err != nil {
		return err
	}
	if r := raised.modes[idOf(st)]; r != nil {
		st.Mode = st.Mode&^0o7777 | r.mode
	}
	return nil
}

// raisedNone tells from raised.changes that no file is raised.
func raisedNone(changes uint64) bool { return changes&(1<<32-1) == 0 }

// raise adds permission bits to the file open at fd (O_PATH will do) and
// returns what takes them away again. Only the owner can do that.
func raise(fd int, bits uint32) (restore func(), err error) {
	raised.Lock()
	defer raised.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	id := idOf(&st)
	r := raised.modes[id]
	if r == nil {
		r = &raisedMode{mode: permBits(&st)}
	}
	if permBits(&st)&bits != bits {
		if err := unix.Chmod(procPath(fd), permBits(&st)|bits); err != nil {
			return nil, err
		}
	}
	if raised.modes == nil {
		raised.modes = map[fileID]*raisedMode{}
	}
	raised.modes[id] = r
	r.users++
	raised.changes.Add(1<<32 + 1)
	return func() { lower(fd, id) }, nil
}

func lower(fd int, id fileID) {
	raised.Lock()
	defer raised.Unlock()
	r := raised.modes[id]
	if r == nil {
		return
	}
	if r.users--; r.users > 0 {
		raised.changes.Add(1<<32 - 1)
		return
	}
	defer raised.changes.Add(1<<32 - 1)
	// The file may be gone or replaced by now; its mode is then nobody's concern.
	_ = unix.Chmod(procPath(fd), r.mode)
	delete(raised.modes, id)
}

// openReadable opens name in dirfd without following a symlink and without
// ever blocking, also when the caller owns it but has no right to read it.
// The mode is loosened for as short a time as the kernel needs to check it.
func openReadable(dirfd int, name string, flags int) (int, error) {
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := openat(dirfd, name, flags, 0)
	if err != unix.EACCES {
		return fd, err
	}
	pathfd, perr := openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if perr != nil {
		return -1, err
	}
	defer unix.Close(pathfd)
	restore, rerr := raise(pathfd, 0o400)
	if rerr != nil {
		return -1, err
	}
	defer restore()
	return openat(unix.AT_FDCWD, procPath(pathfd), flags&^unix.O_NOFOLLOW, 0)
}

// handle is an open directory of one layer of a Stack.
type handle struct {
	fd      int
	restore func() // takes away the permissions that opening it needed
	pathfd  int
}

// openHandle opens a directory for listing and for looking up names in it.
// Its owner can, whatever its mode says.
func openHandle(dirfd int, name string) (handle, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY
	if dirfd != unix.AT_FDCWD {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := openat(dirfd, name, flags, 0)
	if err == nil {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Mode&0o100 == 0 {
			return reopenRaised(fd)
		}
		return handle{fd: fd, pathfd: -1}, nil
	}
	if err != unix.EACCES {
		return handle{}, err
	}
	pathfd, perr := openat(dirfd, name, flags&^unix.O_RDONLY|unix.O_PATH, 0)
	if perr != nil {
		return handle{}, err
	}
	restore, rerr := raise(pathfd, 0o500)
	if rerr != nil {
		unix.Close(pathfd)
		return handle{}, err
	}
	fd, err = openat(unix.AT_FDCWD, procPath(pathfd), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		restore()
		unix.Close(pathfd)
		return handle{}, err
	}
	return handle{fd: fd, pathfd: pathfd, restore: restore}, nil
}

// reopenRaised adds the search permission that fd's directory lacks. Root can
// search it anyway, and somebody else's directory stays as it is.
func reopenRaised(fd int) (handle, error) {
	if unix.Geteuid() == 0 {
		return handle{fd: fd, pathfd: -1}, nil
	}
	restore, err := raise(fd, 0o500)
	if err != nil {
		return handle{fd: fd, pathfd: -1}, nil
	}
	return handle{fd: fd, pathfd: -1, restore: restore}, nil
}

func (h handle) close() {
	if h.restore != nil {
		h.restore()
	}
	if h.pathfd >= 0 {
		unix.Close(h.pathfd)
	}
	unix.Close(h.fd)
}

// opaque tells whether the directory hides those below it.
func (h handle) opaque() (bool, error) {
	var value [4]byte
	n, err := unix.Fgetxattr(h.fd, opaqueXattr, value[:])
	switch {
	case err == nil:
		return n == 1 && value[0] == 'y', nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ERANGE):
		return false, nil
	}
	return false, err
}

func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, b := range modeBits {
		if mode&b.unix != 0 {
			m |= b.fs
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	}
	return m
}

// unixPerm is the inverse of fileMode for the permission and sticky bits.
func unixPerm(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, b := range modeBits {
		if m&b.fs != 0 {
			mode |= b.unix
		}
	}
	return mode
}

var modeBits = []struct {
	unix uint32
	fs   fs.FileMode
}{
	{unix.S_ISUID, fs.ModeSetuid},
	{unix.S_ISGID, fs.ModeSetgid},
	{unix.S_ISVTX, fs.ModeSticky},
}
