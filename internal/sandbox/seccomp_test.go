package sandbox

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// verdict runs the filter. The VM reads big-endian, as packets are; the kernel reads its own order,
// word by word. So each word is written big-endian, the low one of a pair first.
func verdict(t interface{ Fatal(...any) }, arch, nr uint32, args ...uint64) uint32 {
	return judge(t, false, arch, nr, args...)
}

func judge(t interface{ Fatal(...any) }, pretend bool, arch, nr uint32, args ...uint64) uint32 {
	vm, err := bpf.NewVM(program(pretend))
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNumber:], nr)
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func TestFilterVerdicts(t *testing.T) {
	const high = 0xdeadbeef << 32
	cases := []struct {
		name string
		want uint32
		nr   uint32
		args []uint64
	}{
		{"read", allow, unix.SYS_READ, nil},
		{"execve", allow, unix.SYS_EXECVE, nil},
		{"ptrace", allow, unix.SYS_PTRACE, nil},
		{"chroot", allow, unix.SYS_CHROOT, nil}, // needs a capability
		{"fork", allow, unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}},
		{"thread", allow, unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM | unix.CLONE_SETTLS}},
		{"clone newuser", eperm, unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | high}},
		{"clone newns", eperm, unix.SYS_CLONE, []uint64{unix.CLONE_NEWNS | uint64(unix.SIGCHLD)}},
		{"clone newcgroup", eperm, unix.SYS_CLONE, []uint64{unix.CLONE_NEWCGROUP}},
		{"TCGETS", allow, unix.SYS_IOCTL, []uint64{0, unix.TCGETS}},
		{"TIOCSTI", eperm, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}},
		{"TIOCSTI high", eperm, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | high}},
		{"TIOCLINUX", eperm, unix.SYS_IOCTL, []uint64{0, unix.TIOCLINUX | high}},
		{"inet", allow, unix.SYS_SOCKET, []uint64{unix.AF_INET}},
		{"netlink", allow, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK}}, // getaddrinfo asks it
		{"vsock", eperm, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK | high}},
		{"alg", eperm, unix.SYS_SOCKET, []uint64{unix.AF_ALG}},
		{"ioctl on the fd TIOCSTI", allow, unix.SYS_IOCTL, []uint64{unix.TIOCSTI, unix.TCGETS}},
	}
	for _, c := range cases {
		if got := verdict(t, auditArch, c.nr, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	for _, nr := range append(append([]uint32{}, refused...), refusedHere...) {
		if got := verdict(t, auditArch, nr); got != eperm {
			t.Errorf("system call %d: %#x, want EPERM", nr, got)
		}
	}
	for _, nr := range absent {
		if got := verdict(t, auditArch, nr); got != enosys {
			t.Errorf("system call %d: %#x, want ENOSYS", nr, got)
		}
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, 0} {
		if got := verdict(t, arch, 1); got != enosys {
			t.Errorf("architecture %#x: %#x, want ENOSYS", arch, got)
		}
	}
}

// TestFilterLetsTheRestThrough: what is not listed is allowed whatever its arguments.
func TestFilterLetsTheRestThrough(t *testing.T) {
	listed := map[uint32]bool{unix.SYS_CLONE: true, unix.SYS_IOCTL: true, unix.SYS_SOCKET: true}
	for _, list := range [][]uint32{refused, refusedHere, absent} {
		for _, nr := range list {
			listed[nr] = true
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		nr := rapid.Uint32Range(0, 600).Filter(func(n uint32) bool { return !listed[n] }).Draw(t, "nr")
		args := rapid.SliceOfN(rapid.Uint64(), 6, 6).Draw(t, "args")
		if got := verdict(t, auditArch, nr, args...); got != allow {
			t.Fatalf("system call %d: %#x", nr, got)
		}
	})
}

// TestPretendingFilter: tier 1f refuses what the others refuse, and besides pretends and asks.
func TestPretendingFilter(t *testing.T) {
	const high = 0xdeadbeef << 32
	devices := []struct {
		mode, dev uint64
		want      uint32
	}{
		{unix.S_IFBLK | 0o600 | high, 0, done}, {unix.S_IFCHR | 0o666, unix.Mkdev(1, 3) | high, done},
		{unix.S_IFCHR, 0 | high, allow}, {unix.S_IFIFO | 0o600, 7, allow}, {unix.S_IFSOCK, 7, allow}, {unix.S_IFREG, 7, allow}, {0o644, 7, allow},
	}
	for _, m := range mknods {
		for _, d := range devices {
			args := make([]uint64, 4)
			args[(m.mode-offArg0)/8], args[(m.dev-offArg0)/8] = d.mode, d.dev
			if got := judge(t, true, auditArch, m.nr, args...); got != d.want {
				t.Errorf("mknod %d, mode %#o, device %#x: %#x, want %#x", m.nr, d.mode, d.dev, got, d.want)
			}
		}
	}
	special := map[uint32]uint32{unix.SYS_FCHOWN: notify, unix.SYS_FCHOWNAT: notify}
	for _, c := range chownsHere {
		special[c.nr] = notify
	}
	for _, nr := range pretended {
		special[nr] = done
	}
	for _, m := range mknods {
		special[m.nr] = allow
	}
	rapid.Check(t, func(t *rapid.T) {
		nr := rapid.Uint32Range(0, 600).Draw(t, "nr")
		want, ok := special[nr]
		if !ok {
			want = verdict(t, auditArch, nr)
		}
		if got := judge(t, true, auditArch, nr); got != want {
			t.Fatalf("system call %d: %#x, want %#x", nr, got, want)
		}
	})
}
