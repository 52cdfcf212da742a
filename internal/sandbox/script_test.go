package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probeScript carries out one operation per argument, prints those that fail, and goes on.
func probeScript(lines []string) int {
	runtime.LockOSThread() // chroot, chdir and capabilities are then this thread's
	for _, line := range lines {
		word := strings.Fields(line)
		op, ok := scriptOps[word[0]]
		if !ok {
			fmt.Println("unknown operation", word[0])
			return 99
		}
		for len(word) < 6 {
			word = append(word, "0")
		}
		if err := op(word[1:]); err != nil {
			outcome(line, err)
		}
	}
	return 0
}

func number(s string) int {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return int(n)
}

// with opens a file for what is done to its descriptor.
func with(path string, flags int, do func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

var scriptOps = map[string]func(a []string) error{
	"nothing": func([]string) error { return nil },
	"write":   func(a []string) error { return os.WriteFile(a[0], []byte(a[1]), 0o644) },
	"read":    func(a []string) error { _, err := os.ReadFile(a[0]); return err },
	"reread": func(a []string) error { // as /dev/stdin does
		return with(a[0], unix.O_PATH, func(fd int) error { _, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", fd)); return err })
	},
	"deleted": func(a []string) error { // of a file that has no name any more
		return with(a[0], unix.O_RDONLY, func(fd int) error {
			if err := unix.Unlink(a[0]); err != nil {
				return err
			}
			_, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", fd))
			return err
		})
	},
	"mkdir":    func(a []string) error { return os.MkdirAll(a[0], 0o755) },
	"symlink":  func(a []string) error { return os.Symlink(a[0], a[1]) },
	"link":     func(a []string) error { return os.Link(a[0], a[1]) },
	"rename":   func(a []string) error { return unix.Rename(a[0], a[1]) },
	"rm":       func(a []string) error { return os.RemoveAll(a[0]) },
	"truncate": func(a []string) error { return unix.Truncate(a[0], 0) },
	"fifo":     func(a []string) error { return unix.Mkfifo(a[0], 0o644) },
	"chmod":    func(a []string) error { return unix.Chmod(a[0], uint32(number(a[1]))) },
	"chdir":    func(a []string) error { return unix.Chdir(a[0]) },
	"chroot":   func(a []string) error { return unix.Chroot(a[0]) },
	"mknod": func(a []string) error {
		return unix.Mknod(a[0], uint32(number(a[1])), int(unix.Mkdev(uint32(number(a[2])), uint32(number(a[3])))))
	},
	"chown":  func(a []string) error { return unix.Chown(a[0], number(a[1]), number(a[2])) },
	"lchown": func(a []string) error { return unix.Lchown(a[0], number(a[1]), number(a[2])) },
	"fchown": func(a []string) error {
		return with(a[0], unix.O_RDONLY, func(fd int) error { return unix.Fchown(fd, number(a[1]), number(a[2])) })
	},
	"emptypath": func(a []string) error { // on a descriptor that is nothing but a place
		return with(a[0], unix.O_PATH|unix.O_NOFOLLOW, func(fd int) error {
			return unix.Fchownat(fd, "", number(a[1]), number(a[2]), unix.AT_EMPTY_PATH)
		})
	},
	"at": func(a []string) error { // DIR NAME UID GID FLAGS
		return with(a[0], unix.O_RDONLY, func(fd int) error {
			return unix.Fchownat(fd, a[1], number(a[2]), number(a[3]), number(a[4]))
		})
	},
	"throughfd": func(a []string) error { // as /dev/stdout does
		return with(a[0], unix.O_RDONLY, func(fd int) error {
			return unix.Chown(fmt.Sprintf("/proc/self/fd/%d", fd), number(a[1]), number(a[2]))
		})
	},
	"bad": func(a []string) error {
		var errno unix.Errno
		switch a[0] {
		case "pointer":
			_, _, errno = unix.RawSyscall6(unix.SYS_FCHOWNAT, ^uintptr(99), 8, 1, 1, 0, 0)
		case "flags":
			return unix.Fchownat(unix.AT_FDCWD, "/", 1, 1, 0x8000)
		case "descriptor":
			return unix.Fchown(777, 1, 1)
		case "long":
			return unix.Chown("/"+strings.Repeat("x/", 3000), 1, 1)
		case "edge": // a path that ends with the last page there is
			page := os.Getpagesize()
			mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err == nil {
				err = unix.Mprotect(mem[page:], unix.PROT_NONE)
			}
			if err != nil {
				return err
			}
			at := copy(mem[page-len(a[1])-1:], a[1]+"\x00")
			_, _, errno = unix.RawSyscall6(unix.SYS_FCHOWNAT, ^uintptr(99), uintptr(unsafe.Pointer(&mem[page-at])), 33, 33, 0, 0)
		}
		return errnoErr(errno)
	},
	"seteuid": func(a []string) error { return unix.Setresuid(-1, number(a[0]), -1) },
	"become":  func(a []string) error { return unix.Setresuid(number(a[0]), number(a[0]), number(a[0])) },
	"groups":  func(a []string) error { return unix.Setgroups([]int{number(a[0])}) },
	"nocaps":  func([]string) error { return setCaps(nil) },
	"setcap": func(a []string) error {
		// cap_net_raw=p, version 2
		return unix.Setxattr(a[0], "security.capability", []byte("\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
	},
	"getxattr": func(a []string) error {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(a[0], a[1], buf)
		if err == nil {
			fmt.Printf("%s %s %q\n", a[0], a[1], buf[:n])
		}
		return err
	},
	"setxattr": func(a []string) error { return unix.Setxattr(a[0], a[1], []byte(a[2]), 0) },
	"stat": func(a []string) error {
		var st unix.Stat_t
		err := unix.Lstat(a[0], &st)
		if err == nil {
			fmt.Printf("%s %#o %d:%d %d\n", a[0], st.Mode, st.Uid, st.Gid, st.Rdev)
		}
		return err
	},
	"ls": func(a []string) error {
		entries, err := os.ReadDir(a[0])
		for _, e := range entries {
			fmt.Println(filepath.Join(a[0], e.Name()))
		}
		return err
	},
}

// probeCrowd has many processes of many threads change owners at once, and some of them killed.
func probeCrowd(args []string) int {
	processes, files := number(args[0]), number(args[1])
	if err := os.Mkdir("/crowd", 0o755); err != nil {
		outcome("mkdir", err)
		return 1
	}
	var children, victims []int
	fork := func(args ...string) int {
		pid, err := syscall.ForkExec("/probe", append([]string{probeName}, args...), &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			outcome("fork", err)
		}
		return pid
	}
	for i := range processes {
		children = append(children, fork("chowner", strconv.Itoa(i), strconv.Itoa(files)))
		victims = append(victims, fork("restless", fmt.Sprintf("/crowd/victim-%d", i)))
	}
	code := 0
	for i, pid := range children {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status != 0 {
			fmt.Println("child", i, status, err)
			code = 1
		}
		syscall.Kill(victims[i], syscall.SIGKILL)
		syscall.Wait4(victims[i], nil, 0, nil)
	}
	return code
}

// probeChowner gives each of its files to somebody else, each on a goroutine of its own.
func probeChowner(args []string) int {
	var all sync.WaitGroup
	for j := range number(args[1]) {
		all.Add(1)
		go func() {
			defer all.Done()
			path := fmt.Sprintf("/crowd/%s-%d", args[0], j)
			err := os.WriteFile(path, nil, 0o644)
			if err == nil {
				err = os.Chown(path, 100+number(args[0]), 100+j)
			}
			if err != nil {
				outcome(path, err)
			}
		}()
	}
	all.Wait()
	return 0
}

// probeRestless changes an owner without end.
func probeRestless(args []string) int {
	if err := os.WriteFile(args[0], nil, 0o644); err != nil {
		outcome(args[0], err)
	}
	for i := 0; ; i++ {
		if err := os.Chown(args[0], i%1000, -1); err != nil {
			outcome(args[0], err)
			return 1
		}
	}
}
