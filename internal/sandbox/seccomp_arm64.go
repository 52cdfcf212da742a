package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// foreignABI is 0: 32-bit ARM is an architecture of its own to seccomp.
const foreignABI = 0

// The generic table has none of the old calls that amd64 refuses or watches besides.
var (
	refusedHere []uint32
	chownsHere  []oldChown
)

var mknods = []mknodCall{{unix.SYS_MKNODAT, offArg2, offArg3}}
