package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The new mount API (Linux 5.2; 5.12 for mount_setattr) works on descriptors: a file system is made
// or cloned detached, gets its flags while nobody can see it, and is attached from descriptor to
// descriptor. No path is resolved twice, so none can be swapped in between.

const (
	hidden = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	inert  = hidden | unix.MOUNT_ATTR_NOEXEC
)

// option is one parameter of a file system; an empty value is a flag.
type option struct{ key, value string }

// newFS makes a detached mount of a new file system.
func newFS(kind string, attrs int, options ...option) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open file system %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return -1, &optionError{kind, o, fsMessage(fs), err}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create file system %s%s: %w", kind, fsMessage(fs), err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount file system %s: %w", kind, err)
	}
	return fd, nil
}

type optionError struct {
	kind string
	option
	message string
	err     error
}

func (e *optionError) Error() string {
	return fmt.Sprintf("file system %s, option %s=%s%s: %v", e.kind, e.key, e.value, e.message, e.err)
}

func (e *optionError) Unwrap() error { return e.err }

// fsMessage reads what the kernel has to say of a failure, which is more than an errno.
func fsMessage(fs int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fs, buf)
	if err != nil || n < 3 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[2:n])) + ")" // "e overlay: ..."
}

// clone makes a detached copy of what is mounted at a file or directory, everything below included:
// a user namespace may not take a mount without what covers parts of it.
func clone(dir int, name string, attrs uint64, flags uint) (int, error) {
	fd, err := unix.OpenTree(dir, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|flags)
	if err != nil {
		return -1, err
	}
	if attrs == 0 {
		return fd, nil
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attrs})
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set mount flags: %w", err)
	}
	return fd, nil
}

// attach moves a detached mount onto what target is open on, and closes target.
func attach(mount, target int) error {
	defer unix.Close(target)
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// lookup opens name below root as a process in root would see it, for use as a mount point or
// directory. The kernel says EAGAIN while anything is renamed anywhere, so that is tried again.
func lookup(root int, name string, flags, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, how)
		if (err == unix.EAGAIN || err == unix.EINTR) && try < 1000 {
			continue
		}
		return fd, err
	}
}

// stub is a mount point that had to be made: it is no part of what the step makes.
type stub struct {
	path     string // below the root
	dir      bool
	dev, ino uint64
}

// points opens mount points below root, and remembers those that it made.
type points struct {
	root int
	made []stub
}

// open opens the mount point at target and makes what is missing of it: directories, and a file at
// the end unless dir is set.
func (p *points) open(target string, dir bool) (int, error) {
	parts := strings.Split(strings.Trim(path.Clean("/"+target), "/"), "/")
	at, err := unix.Dup(p.root)
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(at)
	for i := range parts {
		next, err := p.descend(at, path.Join(parts[:i+1]...), dir || i < len(parts)-1, 0)
		unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	if err := demandKind(at, dir); err != nil {
		unix.Close(at)
		return -1, err
	}
	return at, nil
}

// openReal opens a directory of the root that must be a real one: an image whose /proc is a symbolic
// link wants the masks to land elsewhere.
func (p *points) openReal(name string) (int, error) {
	fd, err := p.descend(p.root, name, true, unix.RESOLVE_NO_SYMLINKS)
	if err == nil {
		if err = demandKind(fd, true); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("/%s of the image must be a directory: %w", name, err)
	}
	return fd, nil
}

// descend opens prefix below the root, whose last part is in the directory at, or makes it there.
func (p *points) descend(at int, prefix string, dir bool, resolve uint64) (int, error) {
	fd, err := lookup(p.root, prefix, 0, resolve|unix.RESOLVE_IN_ROOT)
	if err != unix.ENOENT {
		return fd, err
	}
	name := path.Base(prefix)
	if dir {
		err = unix.Mkdirat(at, name, 0o755)
	} else {
		err = unix.Mknodat(at, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("make mount point: %w", err) // EEXIST: a dangling symbolic link
	}
	if fd, err = lookup(p.root, prefix, 0, resolve|unix.RESOLVE_IN_ROOT); err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	p.made = append(p.made, stub{prefix, dir, st.Dev, st.Ino})
	return fd, nil
}

// remove takes away the stubs from the given one on that are still what they were. Nothing may be
// mounted on them and nobody else may run in the root any more.
func (p *points) remove(from int) {
	for i := len(p.made) - 1; i >= from; i-- {
		s := p.made[i]
		parent, err := lookup(p.root, path.Dir(s.path), unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstatat(parent, path.Base(s.path), &st, unix.AT_SYMLINK_NOFOLLOW)
		same := err == nil && st.Dev == s.dev && st.Ino == s.ino
		if same && s.dir {
			unix.Unlinkat(parent, path.Base(s.path), unix.AT_REMOVEDIR) // stays if the step put something there
		} else if same && st.Size == 0 {
			unix.Unlinkat(parent, path.Base(s.path), 0)
		}
		unix.Close(parent)
	}
	p.made = p.made[:from]
}

func demandKind(fd int, dir bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if dir && !isDir {
		return unix.ENOTDIR
	}
	if !dir && isDir {
		return unix.EISDIR
	}
	return nil
}

// overlay makes a detached mount of o.
func overlay(o Overlay, readOnly bool, q quirks) (int, error) {
	attrs := hidden
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if len(o.Lowers) == 0 {
		fd, err := clone(unix.AT_FDCWD, o.Upper, uint64(attrs), 0)
		if err != nil {
			return -1, fmt.Errorf("bind %s: %w", o.Upper, err)
		}
		return fd, nil
	}
	return merge(o, attrs, q)
}

// merge mounts overlayfs. Its directories are opened first and named by descriptor: fsconfig takes
// at most 255 bytes and the options of mount(2) one page, paths are longer, and may hold ':' and ','.
func merge(o Overlay, attrs int, q quirks) (int, error) {
	var fds []int
	defer func() { closeAll(fds) }()
	name := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open overlay directory", Path: dir, Err: err}
		}
		fds = append(fds, fd)
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	var lowers []string
	for _, dir := range o.Lowers {
		lower, err := name(dir)
		if err != nil {
			return -1, err
		}
		lowers = append(lowers, lower)
	}
	if o.Upper == "" && (attrs&unix.MOUNT_ATTR_RDONLY == 0 || len(lowers) == 1) {
		// The lower is open, so what covers it in this private namespace does no harm.
		mem, err := memoryUpper(fds[0])
		if err != nil {
			return -1, fmt.Errorf("make overlay in memory: %w", err)
		}
		fds = append(fds, mem)
		o.Upper, o.Work = fmt.Sprintf("/proc/self/fd/%d/upper", mem), fmt.Sprintf("/proc/self/fd/%d/work", mem)
	}
	// userxattr: without it the mount works in a user namespace, and rmdir of a lower directory fails.
	rest := []option{{"userxattr", ""}}
	if o.Upper != "" {
		upper, err := name(o.Upper)
		if err != nil {
			return -1, err
		}
		work, err := name(o.Work)
		if err != nil {
			return -1, err
		}
		// volatile: the upper is scratch, so unmounting need not wait for the disk.
		rest = append(rest, option{"upperdir", upper}, option{"workdir", work}, option{"volatile", ""})
	}
	if !q.LegacyOverlay {
		fd, err := mergeNew(lowers, rest, attrs)
		if bad := (*optionError)(nil); !errors.As(err, &bad) || bad.key != "lowerdir+" || bad.err != unix.EINVAL {
			return fd, err
		}
	}
	return mergeOld(lowers, rest, attrs, o.Lowers[0])
}

// mergeNew needs Linux 6.7 for lowerdir+.
func mergeNew(lowers []string, rest []option, attrs int) (int, error) {
	var options []option
	for _, l := range lowers {
		options = append(options, option{"lowerdir+", l})
	}
	return newFS("overlay", attrs, append(options, rest...)...)
}

// mergeOld mounts by mount(2), whose options may fill a page where fsconfig stops at 255 bytes. It
// attaches at once, so it does so on a lower, which is open already, and takes a detached copy.
func mergeOld(lowers []string, rest []option, attrs int, at string) (int, error) {
	data := "lowerdir=" + strings.Join(lowers, ":")
	for _, o := range rest {
		data += "," + o.key
		if o.value != "" {
			data += "=" + o.value
		}
	}
	if len(data) >= os.Getpagesize() {
		return -1, fmt.Errorf("%d layers are too many for this kernel's overlay: Linux 6.7 or newer takes 500", len(lowers))
	}
	if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	fd, err := clone(unix.AT_FDCWD, at, uint64(attrs), 0)
	if uerr := unix.Unmount(at, unix.MNT_DETACH); err == nil && uerr != nil {
		unix.Close(fd)
		err = uerr
	}
	if err != nil {
		return -1, fmt.Errorf("detach overlay: %w", err)
	}
	return fd, nil
}

// memoryUpper attaches a tmpfs with the directories upper and work to the directory at: kernels
// before 6.15 take no upper on a detached mount.
func memoryUpper(at int) (int, error) {
	mem, err := newFS("tmpfs", hidden, option{"mode", "0755"})
	if err != nil {
		return -1, err
	}
	target, err := unix.Dup(at)
	if err == nil {
		err = attach(mem, target)
	}
	for _, name := range []string{"upper", "work"} {
		if err == nil {
			err = unix.Mkdirat(mem, name, 0o755)
		}
	}
	if err != nil {
		unix.Close(mem)
		return -1, err
	}
	return mem, nil
}
