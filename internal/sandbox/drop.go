package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rootCaps are what a package manager that runs as uid 0 with sub-ids needs, and no more: nothing
// that reaches beyond files, ids and processes of the step.
var rootCaps = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_SETFCAP,
}

// containerCaps are what containers give to root. In place there may be more, and some of it looks into
// any process, Landlock or not.
var containerCaps = append([]uintptr{unix.CAP_MKNOD, unix.CAP_NET_RAW, unix.CAP_AUDIT_WRITE}, rootCaps...)

// workerCaps are what the worker and PID 1 need in their own namespace. With a uid other than 0 they
// must be ambient to survive our own exec.
var workerCaps = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP, unix.CAP_SYS_CHROOT, unix.CAP_SYS_ADMIN,
	unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_RESOURCE, unix.CAP_MKNOD,
}

// caps are the worker's. To record an owner it looks into the caller of a system call, which may be
// closed to it otherwise: a process that holds keys makes itself undumpable.
func (m idMap) caps() []uintptr {
	if m.ids == RecordedIDs {
		return append([]uintptr{unix.CAP_SYS_PTRACE}, workerCaps...)
	}
	return workerCaps
}

// maxCap is above every capability there is; the kernel says EINVAL at the first that it lacks.
const maxCap = 63

// dropPrivileges gives up, on the calling thread alone, all that the step must not have. The thread
// must be locked for good. The order matters: the ambient set survives a drop of the bounding set,
// and setuid and capset need the capabilities that go last. It returns what filterSyscalls does.
func dropPrivileges(r *runRequest) (listener int, err error) {
	var keep []uintptr
	if r.RootCaps {
		keep = rootCaps
	}
	if _, err := joinNewKeyring(); err != nil {
		return -1, fmt.Errorf("join a new session keyring: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return -1, fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := dropBounding(keep); err != nil {
		return -1, fmt.Errorf("drop bounding capabilities: %w", err)
	}
	// Else the uid change below would clear what is to be kept, or the capset fail.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return -1, fmt.Errorf("keep capabilities: %w", err)
	}
	if err := setIDs(r); err != nil {
		return -1, err
	}
	if err := setCaps(keep); err != nil {
		return -1, fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := restrictScope(); err != nil {
		return -1, fmt.Errorf("landlock: %w", err)
	}
	if listener, err = filterSyscalls(r.Pretend); err != nil {
		return -1, fmt.Errorf("seccomp: %w", err)
	}
	return listener, nil
}

// limitCaps takes from the calling thread, which is to have no_new_privs, all capabilities but those of
// keep that it has, and the way back to them.
func limitCaps(keep []uintptr) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	if data[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		if err := dropBounding(keep); err != nil {
			return err
		}
	}
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range data {
		data[i].Permitted &= mask[i]
		data[i].Effective &= mask[i]
		data[i].Inheritable = 0 // which empties the ambient set, too
	}
	return unix.Capset(&head, &data[0])
}

// joinNewKeyring gives the calling thread a session keyring of its own, in place of the one that its
// caller possesses. Where there are no keys, or a filter refuses all that is done with them, there is
// nothing to hide.
func joinNewKeyring() (what string, err error) {
	_, _, errno := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	switch errno {
	case 0:
		return "a session keyring of its own", nil
	case unix.ENOSYS, unix.EPERM:
		return "no keyrings", nil
	}
	return "", errno
}

func dropBounding(keep []uintptr) error {
	for c := uintptr(0); c <= maxCap; c++ {
		if contains(keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func contains(set []uintptr, c uintptr) bool {
	for _, s := range set {
		if s == c {
			return true
		}
	}
	return false
}

// setIDs uses the raw system calls: those of package syscall change all threads, and the rest of
// PID 1 must stay able to signal the step.
func setIDs(r *runRequest) error {
	uid, gid := uintptr(r.Spec.UID), uintptr(r.Spec.GID)
	if r.SetGroups {
		groups := []uint32{uint32(gid)}
		if !r.Pretend {
			for _, g := range r.Spec.Groups {
				groups = append(groups, uint32(g))
			}
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
			return fmt.Errorf("set groups %d: %w", groups, errno)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("set gid %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("set uid %d: %w", uid, errno)
	}
	return nil
}

// setCaps makes keep the effective and permitted sets, and empties the inheritable one: a set left
// there comes back with the first file that has capabilities.
func setCaps(keep []uintptr) error {
	var data [2]unix.CapUserData
	for _, c := range keep {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capset(&head, &data[0])
}
