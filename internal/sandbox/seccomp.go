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
)

const (
	allow  = unix.SECCOMP_RET_ALLOW
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// program assembles the filter.
func program() []bpf.Instruction {
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
	return append(p, bpf.RetConstant{Val: allow})
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

// filterSyscalls puts the filter on the calling thread, which must have no_new_privs.
func filterSyscalls() error {
	raw, err := bpf.Assemble(program())
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}
