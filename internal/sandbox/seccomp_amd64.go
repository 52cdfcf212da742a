package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// foreignABI is the bit of an x32 system call's number: a second table with other numbers.
const foreignABI = 0x40000000

var refusedHere = []uint32{
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_USELIB, unix.SYS_USTAT, unix.SYS_SYSFS,
	unix.SYS__SYSCTL, unix.SYS_CREATE_MODULE, unix.SYS_GET_KERNEL_SYMS, unix.SYS_QUERY_MODULE,
}

// chownsHere are fchownat(AT_FDCWD, ..., flags) under older names.
var chownsHere = []oldChown{{unix.SYS_CHOWN, 0}, {unix.SYS_LCHOWN, unix.AT_SYMLINK_NOFOLLOW}}

var mknods = []mknodCall{{unix.SYS_MKNOD, offArg1, offArg2}, {unix.SYS_MKNODAT, offArg2, offArg3}}
