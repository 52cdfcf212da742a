package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probes run inside the sandbox.
var probes = map[string]func(args []string) int{
	"exit": func(a []string) int { n, _ := strconv.Atoi(a[0]); return n },
	"signal": func(a []string) int {
		n, _ := strconv.Atoi(a[0])
		syscall.Kill(os.Getpid(), syscall.Signal(n))
		time.Sleep(time.Minute)
		return 0
	},
	"env":           probeEnv,
	"cat":           probeCat,
	"ls":            probeLs,
	"write":         probeWrite,
	"open":          probeOpen,
	"opendir":       probeOpenDir,
	"readlink":      probeReadlink,
	"status":        probeStatus,
	"fds":           probeFDs,
	"who":           probeWho,
	"tty":           probeTTY,
	"syscalls":      probeSyscalls,
	"dial":          probeDial,
	"serve":         probeServe,
	"daemon":        probeDaemon,
	"hold":          probeHold,
	"onterm":        probeOnTerm,
	"processes":     probeProcesses,
	"rmdir":         probeRmdir,
	"append":        probeAppend,
	"files":         probeFiles,
	"copy":          probeCopy,
	"extra":         probeExtra,
	"flood":         probeFlood,
	"deep":          probeDeep,
	"lock":          probeLock,
	"chown":         probeChown,
	"caller":        probeCaller,
	"script":        probeScript,
	"victim":        probeVictim,
	"hunt":          probeHunt,
	"brood":         probeBrood,
	"broodhold":     probeBroodHold,
	"brood-deaf":    probeDeaf,
	"brood-orphan":  probeOrphan,
	"brood-stopped": probeStopped,
	"brood-runaway": probeRunaway,
	"without":       probeWithout,
	"limit":         probeLimit,
	"inplace":       probeInPlace,
	"parents":       probeParents,
	"guarded":       probeGuarded,
	"shell":         probeShell,
	"crowd":         probeCrowd,
	"chowner":       probeChowner,
	"restless":      probeRestless,
}

func probeEnv([]string) int {
	for _, kv := range os.Environ() {
		fmt.Println(kv)
	}
	return 0
}

func probeCat(paths []string) int {
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			outcome(p, err)
			continue
		}
		fmt.Printf("%s %q\n", p, b)
	}
	return 0
}

func probeLs(paths []string) int {
	for _, p := range paths {
		entries, err := os.ReadDir(p)
		if err != nil {
			outcome(p, err)
			continue
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	}
	return 0
}

func probeWrite(paths []string) int {
	for _, p := range paths {
		outcome(p, os.WriteFile(p, []byte("written"), 0o666))
	}
	return 0
}

// probeOpen opens for writing and writes nothing: what it is tried on must not be harmed.
func probeOpen(paths []string) int {
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		outcome(p, err)
	}
	return 0
}

func probeOpenDir(paths []string) int {
	for _, p := range paths {
		f, err := os.Open(p)
		if err == nil {
			_, err = f.Read(make([]byte, 1))
			if err == io.EOF {
				err = nil
			}
			f.Close()
		}
		outcome(p, err)
	}
	return 0
}

func probeReadlink(paths []string) int {
	for _, p := range paths {
		to, err := os.Readlink(p)
		if err != nil {
			outcome(p, err)
			continue
		}
		fmt.Println(p, to)
	}
	return 0
}

// probeStatus prints lines of /proc/self/status.
func probeStatus(keys []string) int {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		outcome("status", err)
		return 1
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		k, v, _ := strings.Cut(lines.Text(), ":")
		for _, key := range keys {
			if k == key {
				fmt.Println(k, strings.Join(strings.Fields(v), ","))
			}
		}
	}
	return 0
}

func probeFDs([]string) int {
	// fcntl rather than /proc: that would count the listing itself.
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			to, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			if !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/fs/cgroup/") { // the Go runtime's own
				fmt.Println(fd)
			}
		}
	}
	return 0
}

func probeWho([]string) int {
	mask := syscall.Umask(0)
	host, _ := os.Hostname()
	dir, _ := os.Getwd()
	sid, _ := unix.Getsid(0)
	fmt.Println("uid", os.Getuid(), os.Geteuid(), "gid", os.Getgid(), os.Getegid())
	fmt.Printf("umask %03o\n", mask)
	fmt.Println("host", host)
	fmt.Println("dir", dir)
	fmt.Println("leader", sid == os.Getpid())
	return 0
}

func probeTTY([]string) int {
	_, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	outcome("/dev/tty", err)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	outcome("/dev/ptmx", err)
	if err != nil {
		return 1
	}
	outcome("unlock", unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	outcome("number", err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR, 0)
	outcome("slave", err)
	if err != nil {
		return 1
	}
	c := byte('x')
	for _, req := range []uintptr{unix.TIOCSTI, unix.TIOCSTI | 1<<32, unix.TIOCLINUX, unix.TIOCLINUX | 0xff<<40} {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, slave.Fd(), req, uintptr(unsafe.Pointer(&c)))
		outcome(fmt.Sprintf("ioctl %#x", req), errnoErr(errno))
	}
	_, err = unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	outcome("TCGETS", err)
	return 0
}

func errnoErr(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// probeSyscalls makes system calls with arguments that would fail otherwise, or do no harm.
func probeSyscalls([]string) int {
	runtime.LockOSThread()
	bad := ^uintptr(0)
	for _, c := range []struct {
		name   string
		number uintptr
		args   [3]uintptr
	}{
		{"unshare", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWUSER}},
		{"setns", unix.SYS_SETNS, [3]uintptr{bad}},
		{"mount", unix.SYS_MOUNT, [3]uintptr{}},
		{"umount2", unix.SYS_UMOUNT2, [3]uintptr{}},
		{"fsopen", unix.SYS_FSOPEN, [3]uintptr{}},
		{"open_tree", unix.SYS_OPEN_TREE, [3]uintptr{bad}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [3]uintptr{bad}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [3]uintptr{}},
		{"keyctl", unix.SYS_KEYCTL, [3]uintptr{unix.KEYCTL_GET_KEYRING_ID}},
		{"add_key", unix.SYS_ADD_KEY, [3]uintptr{}},
		{"request_key", unix.SYS_REQUEST_KEY, [3]uintptr{}},
		{"bpf", unix.SYS_BPF, [3]uintptr{bad}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [3]uintptr{}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [3]uintptr{bad}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [3]uintptr{bad}},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, [3]uintptr{bad}},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, [3]uintptr{}},
		{"clone", unix.SYS_CLONE, [3]uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}},
		{"clone+high", unix.SYS_CLONE, [3]uintptr{unix.CLONE_NEWNET | 1<<32}},
		{"clone3", unix.SYS_CLONE3, [3]uintptr{}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [3]uintptr{1}},
		{"socket vsock", unix.SYS_SOCKET, [3]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}},
		{"socket alg", unix.SYS_SOCKET, [3]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}},
		{"socket alg+high", unix.SYS_SOCKET, [3]uintptr{unix.AF_ALG | 1<<32, unix.SOCK_SEQPACKET}},
		{"getppid", unix.SYS_GETPPID, [3]uintptr{}},
	} {
		_, _, errno := unix.Syscall(c.number, c.args[0], c.args[1], c.args[2])
		outcome(c.name, errnoErr(errno))
	}
	if foreignABI != 0 {
		_, _, errno := unix.Syscall(unix.SYS_GETPPID|foreignABI, 0, 0, 0)
		outcome("x32", errnoErr(errno))
	}
	return 0
}

func probeDial(args []string) int {
	c, err := net.DialTimeout(args[0], args[1], 5*time.Second)
	if err == nil {
		c.Close()
	}
	outcome(args[0], err)
	return 0
}

// probeServe dials what it serves itself.
func probeServe(args []string) int {
	l, err := net.Listen(args[0], args[1])
	if err != nil {
		outcome("listen", err)
		return 1
	}
	return probeDial([]string{args[0], l.Addr().String()})
}

// probeDaemon leaves a process in a session of its own that holds a lock, and ends.
func probeDaemon(args []string) int {
	r, w, err := os.Pipe()
	if err != nil {
		return 1
	}
	_, err = syscall.ForkExec(selfExe, []string{probeName, "hold", args[0]}, &syscall.ProcAttr{
		Files: []uintptr{0, w.Fd(), 2}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		outcome("fork", err)
		return 1
	}
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		outcome("read", err)
		return 1
	}
	return 0
}

// probeHold ignores all that can be ignored, takes a lock, says so, and stays.
func probeHold(args []string) int {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	f, err := os.Open(args[0])
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	outcome("hold", err)
	time.Sleep(time.Minute)
	return 0
}

func probeOnTerm(args []string) int {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	fmt.Println("ready")
	<-c
	fmt.Println("term")
	n, _ := strconv.Atoi(args[0])
	return n
}

// probeProcesses says whom it sees, after it has been told to look.
func probeProcesses([]string) int {
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 1
	}
	var names []string
	for _, d := range dirs {
		b, _ := os.ReadFile(d + "/cmdline")
		names = append(names, strings.Split(string(b), "\x00")[0])
	}
	sort.Strings(names)
	fmt.Println(strings.Join(names, " "))
	return 0
}

func probeRmdir(dirs []string) int {
	for _, d := range dirs {
		outcome("remove "+d, os.RemoveAll(d))
		outcome("make "+d, os.Mkdir(d, 0o755))
	}
	return 0
}

func probeAppend(paths []string) int {
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("+")
			f.Close()
		}
		outcome(p, err)
	}
	return 0
}

// probeFiles does what package managers do to files.
func probeFiles(args []string) int {
	dir := args[0]
	outcome("mkdir", os.MkdirAll(dir+"/a/b", 0o755))
	outcome("write", os.WriteFile(dir+"/a/f", []byte("x"), 0o600))
	outcome("rename", os.Rename(dir+"/a/f", dir+"/a/b/g"))
	outcome("link", os.Link(dir+"/a/b/g", dir+"/h"))
	outcome("symlink", os.Symlink("h", dir+"/s"))
	outcome("chmod", os.Chmod(dir+"/h", 0o755))
	outcome("truncate", os.Truncate(dir+"/h", 0))
	outcome("rename dir", os.Rename(dir+"/a/b", dir+"/c"))
	outcome("fifo", unix.Mkfifo(dir+"/p", 0o644))
	outcome("xattr", unix.Setxattr(dir+"/h", "user.x", []byte("1"), 0))
	outcome("device", unix.Mknod(dir+"/dev", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))))
	return 0
}

func probeCopy([]string) int {
	if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
		return 1
	}
	fmt.Fprint(os.Stderr, "done")
	return 0
}

func probeExtra([]string) int {
	b, err := io.ReadAll(os.NewFile(3, "extra"))
	if err != nil {
		return 1
	}
	fmt.Printf("%s", b)
	return 0
}

func probeFlood(args []string) int {
	n, _ := strconv.Atoi(args[0])
	os.Stdout.Write(make([]byte, n))
	return 0
}

// probeDeep makes a tree that is deeper than any path may be long, closed to its owner.
func probeDeep(args []string) int {
	n, _ := strconv.Atoi(args[1])
	if err := os.Chdir(args[0]); err != nil {
		outcome("chdir", err)
		return 1
	}
	for range n {
		if err := os.Mkdir("d", 0o755); err != nil {
			outcome("mkdir", err)
			return 1
		}
		os.WriteFile("f", nil, 0o000)
		if err := os.Chdir("d"); err != nil {
			outcome("chdir", err)
			return 1
		}
	}
	return 0
}

// probeLock makes a directory that its owner cannot look into.
func probeLock(dirs []string) int {
	for _, d := range dirs {
		os.MkdirAll(d+"/in", 0o755)
		os.WriteFile(d+"/in/f", nil, 0)
		os.Chmod(d+"/in", 0)
		outcome(d, os.Chmod(d, 0))
	}
	return 0
}

func probeChown(args []string) int {
	uid, _ := strconv.Atoi(args[1])
	gid, _ := strconv.Atoi(args[2])
	outcome("write", os.WriteFile(args[0], nil, 0o644))
	outcome("chown", os.Chown(args[0], uid, gid))
	return 0
}
