package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Masks of /proc. In a user namespace most of these fail by ownership already, but not when the
// caller is the host's root, whose files they are.
var (
	procMasked   = []string{"keys", "kcore", "timer_list", "latency_stats", "sched_debug", "acpi", "scsi", "asound", "kpagecount", "kpageflags"}
	procReadOnly = []string{"sys", "bus", "fs", "irq", "sysrq-trigger"}
)

// What of the host's /sys run times look at to size themselves; the rest of it is left out.
var sysShown = []string{"devices/system/cpu", "devices/system/node", "fs/cgroup", "kernel/mm/transparent_hugepage"}

// shmSize and devSize bound /dev/shm (docker's default) and the nodes of /dev.
const (
	shmSize = "64m"
	devSize = "64k"
)

// world is a step's root under construction.
type world struct {
	points
	req  *runRequest
	null int // a detached clone of the host's /dev/null, to mask files with
	done []mounted
}

// mounted is a mount, and how many stubs there were before it.
type mounted struct {
	target string
	stubs  int
}

// at names a set-up step in its error.
func at(step string, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{step, fmt.Errorf("set up the sandbox: %s: %w", step, err)}
}

// build mounts all there is, and makes it this process's root.
func (w *world) build() error {
	// First of all, so that nothing of what follows gets out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return at("private mounts", err)
	}
	var err error
	if w.null, err = hostNull(); err != nil {
		return at("/dev/null", err)
	}
	defer unix.Close(w.null)
	if w.root, err = w.attachRoot(); err != nil {
		return at("root", err)
	}
	defer unix.Close(w.root)
	for _, m := range w.req.Spec.Mounts {
		if err := w.mount(m); err != nil {
			return at("mount", fmt.Errorf("mount %s: %w", m.Target, err))
		}
	}
	// After the mounts: whatever a target resolved to in this image, the real ones cover it.
	if err := w.proc(); err != nil {
		return at("/proc", err)
	}
	if err := w.dev(); err != nil {
		return at("/dev", err)
	}
	if err := w.sys(); err != nil {
		return at("/sys", err)
	}
	return at("pivot_root", w.pivot())
}

// hostNull clones the host's /dev/null and makes sure that it is one.
func hostNull() (int, error) {
	fd, err := clone(unix.AT_FDCWD, "/dev/null", 0, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return -1, errors.New("the host's /dev/null is no null device")
	}
	return fd, nil
}

// attachRoot mounts the root onto a directory of the host that is sure to be there: in this private
// namespace that hides it from nobody, and no temporary directory is needed.
func (w *world) attachRoot() (int, error) {
	o := w.req.Spec.Root
	dir := o.Upper
	if dir == "" {
		dir = o.Lowers[0]
	}
	anchor, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root, err := overlay(o, false, w.req.Quirks)
	if err != nil {
		unix.Close(anchor)
		return -1, err
	}
	return root, attach(root, anchor)
}

func (w *world) mount(m Mount) error {
	fd, err := w.source(m)
	if m.Optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	w.done = append(w.done, mounted{m.Target, len(w.made)})
	target, err := w.open(m.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	return attach(fd, target)
}

// source makes the detached mount that m asks for.
func (w *world) source(m Mount) (int, error) {
	attrs := hidden
	if m.ReadOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	switch {
	case m.Overlay != nil:
		return overlay(*m.Overlay, m.ReadOnly, w.req.Quirks)
	case m.Tmpfs:
		options := []option{{"mode", "1777"}}
		if m.Size > 0 {
			options = append(options, option{"size", strconv.FormatInt(m.Size, 10)})
		}
		return newFS("tmpfs", attrs, options...)
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}
	if m.NoFollow {
		how.Resolve = unix.RESOLVE_NO_SYMLINKS
	}
	src, err := unix.Openat2(unix.AT_FDCWD, m.Source, how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: m.Source, Err: err}
	}
	defer unix.Close(src)
	fd, err := clone(src, "", uint64(attrs), unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, &os.PathError{Op: "bind", Path: m.Source, Err: err}
	}
	return fd, nil
}

// proc mounts /proc and masks what of it is not the step's business.
func (w *world) proc() error {
	var fd int
	var err error
	if w.req.BindProc {
		fd, err = clone(unix.AT_FDCWD, "/proc", inert, 0)
	} else {
		fd, err = newFS("proc", inert)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w.done = append(w.done, mounted{"/proc", len(w.made)})
	target, err := w.openReal("proc")
	if err != nil {
		return err
	}
	if err := attach(fd, target); err != nil {
		return err
	}
	// No user namespace below this one. Where /proc/sys is read-only (tier 3) seccomp says so alone.
	if limit, err := unix.Openat(fd, "sys/user/max_user_namespaces", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Write(limit, []byte("0"))
		unix.Close(limit)
	}
	for _, name := range procMasked {
		if err := w.mask(fd, name); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	for _, name := range procReadOnly {
		if err := readOnly(fd, name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	return nil
}

// mask covers a file with /dev/null and a directory with an empty one.
func (w *world) mask(dir int, name string) error {
	target, err := lookup(dir, name, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	var cover int
	if demandKind(target, true) == nil {
		cover, err = newFS("tmpfs", inert|unix.MOUNT_ATTR_RDONLY, option{"mode", "0555"}, option{"size", devSize})
	} else {
		cover, err = clone(w.null, "", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID, unix.AT_EMPTY_PATH)
	}
	if err != nil {
		unix.Close(target)
		return err
	}
	defer unix.Close(cover)
	return attach(cover, target)
}

// readOnly covers a file or directory with itself, recursively read-only.
func readOnly(dir int, name string) error {
	target, err := lookup(dir, name, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := clone(target, "", inert|unix.MOUNT_ATTR_RDONLY, unix.AT_EMPTY_PATH)
	if err != nil {
		unix.Close(target)
		return err
	}
	defer unix.Close(fd)
	return attach(fd, target)
}

// dev makes a /dev of the few devices that everything expects, with terminals of its own.
func (w *world) dev() error {
	fd, err := newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, option{"mode", "0755"}, option{"size", devSize})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w.done = append(w.done, mounted{"/dev", len(w.made)})
	target, err := w.openReal("dev")
	if err != nil {
		return err
	}
	if err := attach(fd, target); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := device(fd, name); err != nil {
			return fmt.Errorf("bind %s: %w", name, err)
		}
	}
	for link, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := unix.Symlinkat(to, fd, link); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	if err := below(fd, "shm", "tmpfs", inert, option{"mode", "1777"}, option{"size", shmSize}); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	// Before about 6.0 devpts wants an id 0 in the namespace. A build step does without terminals.
	err = below(fd, "pts", "devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC,
		option{"newinstance", ""}, option{"ptmxmode", "0666"}, option{"mode", "0620"})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("mount pts: %w", err)
	}
	return nil
}

// device binds a device of the host: a user namespace may make none. Read-only, which a device does
// not mind, keeps the step from changing the mode or owner that the host's node has, when it is root's.
func device(dev int, name string) error {
	fd, err := clone(unix.AT_FDCWD, "/dev/"+name, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mknodat(dev, name, unix.S_IFREG|0o644, 0); err != nil {
		return err
	}
	target, err := lookup(dev, name, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	return attach(fd, target)
}

// below makes a directory in dir and mounts a new file system there.
func below(dir int, name, kind string, attrs int, options ...option) error {
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return err
	}
	fd, err := newFS(kind, attrs, options...)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	target, err := lookup(dir, name, unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	return attach(fd, target)
}

// sys makes a /sys that holds what a run time reads to size itself, read-only. The whole of it would
// bring debugfs and the like, which the host's root, as whose the step counts, could read.
func (w *world) sys() error {
	fd, err := newFS("tmpfs", inert, option{"mode", "0755"}, option{"size", devSize})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w.done = append(w.done, mounted{"/sys", len(w.made)})
	target, err := w.openReal("sys")
	if err != nil {
		return err
	}
	if err := attach(fd, target); err != nil {
		return err
	}
	for _, name := range sysShown {
		if err := showSys(fd, name); err != nil {
			return fmt.Errorf("show %s: %w", name, err)
		}
	}
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func showSys(sys int, name string) error {
	fd, err := clone(unix.AT_FDCWD, path.Join("/sys", name), inert|unix.MOUNT_ATTR_RDONLY, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	target, err := (&points{root: sys}).open(name, true)
	if err != nil {
		return err
	}
	return attach(fd, target)
}

// pivot makes the root the root, and unmounts the host's: hiding it would not do.
func (w *world) pivot() error {
	if err := unix.Fchdir(w.root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	return unix.Chdir("/")
}

// tidy takes the mount points away again that had to be made: what is in the upper afterwards is the
// step's. It must be the last process of the namespace that calls it.
func (w *world) tidy() {
	if len(w.made) == 0 {
		return
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	w.root = root
	for i := len(w.done) - 1; i >= 0; i-- { // backwards: stubs may lie in earlier mounts
		unix.Unmount(w.done[i].target, unix.MNT_DETACH)
		w.remove(w.done[i].stubs)
	}
}

// check finds what is wrong with a Spec before anything is started.
func (s Spec) check() error {
	if s.Network != "" && s.Network != HostNetwork && s.Network != NoNetwork {
		return fmt.Errorf("network %q: must be %q or %q", s.Network, HostNetwork, NoNetwork)
	}
	if err := s.Root.check(); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for _, m := range s.Mounts {
		if err := m.check(); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	return nil
}

func (m Mount) check() error {
	clean := path.Clean(m.Target)
	if !path.IsAbs(m.Target) || clean == "/" {
		return errors.New("the target must be an absolute path, and not /")
	}
	for _, reserved := range []string{"/proc", "/dev", "/sys"} {
		if clean == reserved || strings.HasPrefix(clean, reserved+"/") {
			return fmt.Errorf("%s is the sandbox's own", reserved)
		}
	}
	kinds := 0
	for _, is := range []bool{m.Source != "", m.Overlay != nil, m.Tmpfs} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return errors.New("exactly one of source, overlay and tmpfs is needed")
	}
	if m.Source != "" && !path.IsAbs(m.Source) {
		return fmt.Errorf("source %s is no absolute path", m.Source)
	}
	if m.Overlay != nil {
		return m.Overlay.check()
	}
	return nil
}

func (o Overlay) check() error {
	if len(o.Lowers) == 0 && o.Upper == "" {
		return errors.New("an overlay needs a lower or an upper directory")
	}
	if len(o.Lowers) > 0 && o.Upper != "" && o.Work == "" {
		return errors.New("an overlay with lower and upper directories needs a work directory")
	}
	for _, dir := range append([]string{o.Upper, o.Work}, o.Lowers...) {
		if dir != "" && !path.IsAbs(dir) {
			return fmt.Errorf("overlay directory %s is no absolute path", dir)
		}
	}
	return nil
}
