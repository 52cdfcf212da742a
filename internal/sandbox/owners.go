package sandbox

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OwnerXattr is the extended attribute in which tier 1f records an owner: "UID:GID", decimal, on the
// regular file or directory itself, so that a rename, a hard link and a copy-up keep it. None means
// 0:0, and a file that is given back to root has none. It is about the metadata of a layer and
// nothing else: that a step can write it harms nobody.
//
// The step itself sees 0:0 whatever it has said, and is root whatever id it has taken. What asks
// afterwards notices: apt is told APT::Sandbox::User "root" in /etc/apt/apt.conf.d, a database that
// refuses to be set up by root needs tier 1s. Files of a setgid directory do not take its recorded
// group.
//
// Owners of symbolic links, FIFOs and sockets are not recorded: they cannot carry the attribute,
// and nothing else of theirs outlives a rename. Nobody asks for a link's owner but the kernel, in
// world-writable sticky directories (fs.protected_symlinks); of the 6,342 links that packages had put
// on a Debian 12 with compilers, Node.js and podman none was anybody's but root's.
const OwnerXattr = "user.kiln.owner"

// keepID is -1 as an argument of chown.
const keepID = ^uint32(0)

// owner is a file's user and group.
type owner struct{ uid, gid uint32 }

func (o owner) String() string { return fmt.Sprintf("%d:%d", o.uid, o.gid) }

// parseOwner reads what a record says. What the step has made unreadable is root's.
func parseOwner(record string) owner {
	u, g, _ := strings.Cut(record, ":")
	uid, uerr := strconv.ParseUint(u, 10, 32)
	gid, gerr := strconv.ParseUint(g, 10, 32)
	if uerr != nil || gerr != nil {
		return owner{}
	}
	return owner{uint32(uid), uint32(gid)}
}

// over is o where it says something, and old elsewhere.
func (o owner) over(old owner) owner {
	if o.uid == keepID {
		o.uid = old.uid
	}
	if o.gid == keepID {
		o.gid = old.gid
	}
	return o
}

// real is what of o the one id that there is can be given.
func (o owner) real() (uid, gid int) {
	if o.uid == keepID {
		uid = -1
	}
	if o.gid == keepID {
		gid = -1
	}
	return uid, gid
}

// record writes o down on the file named path, whose owner it is to be.
func (o owner) record(path string) error {
	var buf [32]byte
	old := owner{}
	n, err := unix.Getxattr(path, OwnerXattr, buf[:])
	if err == nil {
		old = parseOwner(string(buf[:n]))
	} else if err != unix.ENODATA && err != unix.ERANGE {
		return onlyInLayers(err)
	}
	o = o.over(old)
	if o == (owner{}) {
		if err == unix.ENODATA {
			return nil
		}
		return onlyInLayers(unix.Removexattr(path, OwnerXattr))
	}
	return onlyInLayers(unix.Setxattr(path, OwnerXattr, []byte(o.String()), 0))
}

// onlyInLayers forgives file systems that take no such attribute: an upper directory is on one that
// does, and of /proc or an old tmpfs nothing comes into a layer.
func onlyInLayers(err error) error {
	if err == unix.ENOTSUP {
		return nil
	}
	return err
}
