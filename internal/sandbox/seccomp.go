package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is a deny-list: what a build may run is not known beforehand, and the namespaces, the
// missing capabilities and no_new_privs are the wall. It closes what lies beside that wall: doors of
// the kernel that open without privilege and have a history, and that no build needs.

// refused get EPERM. seccomp_*.go add those of one architecture.
var refused = []uint32{
	// keys are not namespaced by what the caller's session already holds
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	// mounts, old and new
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT,
	unix.SYS_FSPICK, unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
	// namespaces
	unix.SYS_UNSHARE, unix.SYS_SETNS,
	// kernel programs, and pages that fault into user space
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	// the kernel itself
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_QUOTACTL,
	unix.SYS_QUOTACTL_FD, unix.SYS_VHANGUP, unix.SYS_NFSSERVCTL, unix.SYS_LOOKUP_DCOOKIE,
	// files past their path, events of other people's files
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT,
	// clocks
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX,
	// other processes' memory
	unix.SYS_PROCESS_VM_WRITEV,
}

// absent get ENOSYS, so that a libc takes the older way: clone3 hides its flags behind a pointer
// where no filter can look, and io_uring does system calls that no filter sees.
var absent = []uint32{
	unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
}

// newNamespaces are the CLONE_NEW* flags of clone. CLONE_NEWTIME is a signal number there.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Offsets into struct seccomp_data. The kernel looks at the low 32 bits of an ioctl's request and of
// a socket's family only, so must we: both architectures are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
	offArg1   = 24
	offArg2   = 32
	offArg3   = 40
)

const (
	allow  = unix.SECCOMP_RET_ALLOW
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	done   = uint32(unix.SECCOMP_RET_ERRNO) // success, and nothing has happened
	notify = unix.SECCOMP_RET_USER_NOTIF
)

// pretended succeed in tier 1f and do nothing: there is no id but 0. Who asks afterwards sees that
// it is root still, and apt does ask.
var pretended = []uint32{
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETGROUPS, unix.SYS_SETFSUID, unix.SYS_SETFSGID,
}

// oldChown is a system call by its number, and the flags that it stands for.
type oldChown struct {
	nr    uint32
	flags int
}

// mknodCall is a system call and where its mode and its device are.
type mknodCall struct{ nr, mode, dev uint32 }

// program assembles the filter. With pretend it is the one of tier 1f.
func program(pretend bool) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: enosys}, // i386, and whatever else this kernel runs beside
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	if foreignABI != 0 {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: foreignABI, SkipTrue: 1},
			bpf.RetConstant{Val: enosys})
	}
	for _, nr := range append(append([]uint32{}, refused...), refusedHere...) {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: 1}, bpf.RetConstant{Val: eperm})
	}
	for _, nr := range absent {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: 1}, bpf.RetConstant{Val: enosys})
	}
	p = append(p, onArg(unix.SYS_CLONE, offArg0,
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: newNamespaces, SkipFalse: 1})...)
	for _, request := range []uint32{unix.TIOCSTI, unix.TIOCLINUX} {
		p = append(p, onArg(unix.SYS_IOCTL, offArg1, bpf.JumpIf{Cond: bpf.JumpEqual, Val: request, SkipFalse: 1})...)
	}
	for _, family := range []uint32{unix.AF_VSOCK, unix.AF_ALG} {
		p = append(p, onArg(unix.SYS_SOCKET, offArg0, bpf.JumpIf{Cond: bpf.JumpEqual, Val: family, SkipFalse: 1})...)
	}
	if pretend {
		p = append(p, pretending()...)
	}
	return append(p, bpf.RetConstant{Val: allow})
}

// pretending is what tier 1f has besides: owners go to the supervisor.
func pretending() []bpf.Instruction {
	var p []bpf.Instruction
	verdict := func(nr, val uint32) {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: 1}, bpf.RetConstant{Val: val})
	}
	for _, nr := range pretended {
		verdict(nr, done)
	}
	for _, nr := range []uint32{unix.SYS_FCHOWN, unix.SYS_FCHOWNAT} {
		verdict(nr, notify)
	}
	for _, c := range chownsHere {
		verdict(c.nr, notify)
	}
	for _, m := range mknods {
		p = append(p, m.devices()...)
	}
	return p
}

// devices pretends to make device nodes, which nobody can in a user namespace. What is no device, and
// the character device 0:0 that is a whiteout, is made.
func (m mknodCall) devices() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: m.nr, SkipFalse: 8},
		bpf.LoadAbsolute{Off: m.mode, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: unix.S_IFMT},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.S_IFBLK, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.S_IFCHR, SkipFalse: 3},
		bpf.LoadAbsolute{Off: m.dev, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: done},
		bpf.RetConstant{Val: allow},
	}
}

// onArg refuses system call nr where cond holds for the low half of an argument. Afterwards the
// accumulator holds the number again.
func onArg(nr, off uint32, cond bpf.JumpIf) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: 4},
		bpf.LoadAbsolute{Off: off, Size: 4},
		cond,
		bpf.RetConstant{Val: eperm},
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
}

// filterSyscalls puts the filter on the calling thread, which must have no_new_privs. With pretend it
// returns the descriptor on which the filter asks.
func filterSyscalls(pretend bool) (listener int, err error) {
	return installFilter(program(pretend), pretend)
}

func installFilter(program []bpf.Instruction, listen bool) (listener int, err error) {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return -1, fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	install := func(flags uintptr) (int, unix.Errno) {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		return int(fd), errno
	}
	var errno unix.Errno
	if !listen {
		_, errno = install(0)
		listener = -1
	} else if listener, errno = install(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV); errno == unix.EINVAL {
		listener, errno = install(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER) // before Linux 5.19 a signal makes the call begin again
	}
	if errno != 0 {
		return -1, errno
	}
	return listener, nil
}
