package layer

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Owners says how a tree on disk keeps the owners that a layer gives its files.
type Owners int

// The ways to keep owners. ReadOwner understands trees of both, whichever of
// them made one.
const (
	// Chown gives files their owners: for who may, over the ids that are mapped.
	// A file of an id that is not mapped is kept as Record does.
	Chown Owners = iota + 1
	// Record leaves files to the caller and writes each other owner than 0:0 to
	// the file's xattr user.kiln.owner, as "UID:GID": for who has one id only.
	// Regular files and directories can have such a note; other files do not.
	Record
)

func (o Owners) valid() bool { return o == Chown || o == Record }

// ownerXattr is the note of Record. The sandbox of a single id writes it too,
// when a step wants to give a file away (tier 1f).
const ownerXattr = "user.kiln.owner"

// capXattr holds what a program may do beyond its user's rights.
const capXattr = "security.capability"

// maxID is the highest id that a file can have; 1<<32-1 means "none".
const maxID = 1<<32 - 2

// ApplyOwned unpacks one layer as Apply does, and keeps of it what a step that
// runs as root would find in a container: owners, set-user-ID and
// set-group-ID bits, file capabilities. It is for a caller that is root, if
// only in a user namespace. Device nodes that cannot be made are left out;
// skipped names them, up to a hundred.
func ApplyOwned(ctx context.Context, dir string, r io.Reader, limits Limits, owners Owners) (skipped []string, err error) {
	return applyOwned(ctx, dir, r, limits, owners, false)
}

// ApplyOwnedPlain is to ApplyOwned what ApplyPlain is to Apply: it unpacks over
// the tree in dir, and whiteouts delete.
func ApplyOwnedPlain(ctx context.Context, dir string, r io.Reader, limits Limits, owners Owners) (skipped []string, err error) {
	return applyOwned(ctx, dir, r, limits, owners, true)
}

func applyOwned(ctx context.Context, dir string, r io.Reader, limits Limits, owners Owners, plain bool) ([]string, error) {
	if !owners.valid() {
		return nil, fmt.Errorf("unpack layer to %s: owners %d: neither Chown nor Record", dir, owners)
	}
	return apply(ctx, dir, r, limits, unpacker{plain: plain, owners: owners})
}

// maxSkipped bounds what ApplyOwned tells of what it left out.
const maxSkipped = 100

func (u *unpacker) skip(hdr *tar.Header) {
	if len(u.skipped) < maxSkipped {
		u.skipped = append(u.skipped, hdr.Name)
	}
}

// own gives the file base in fd, or fd itself where base is "", its owner.
func (u *unpacker) own(fd int, base string, hdr *tar.Header) error {
	if u.owners == 0 {
		return nil
	}
	return SetOwner(fd, base, Owner{hdr.Uid, hdr.Gid}, u.owners)
}

// SetOwner gives the file base in the directory open at fd (which may be
// AT_FDCWD), or what is open at fd where base is "", its owner in the way that owners says. Links are not
// followed.
func SetOwner(fd int, base string, owner Owner, owners Owners) error {
	if owner.UID < 0 || owner.UID > maxID || owner.GID < 0 || owner.GID > maxID {
		return fmt.Errorf("owner %d:%d: no file can have it: %w", owner.UID, owner.GID, ErrUnsafe)
	}
	if owners == Record {
		return record(fd, base, owner)
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags = unix.AT_EMPTY_PATH
	}
	err := retryEINTR(func() error { return unix.Fchownat(fd, base, owner.UID, owner.GID, flags) })
	if err == unix.EINVAL { // not mapped in this user namespace
		return record(fd, base, owner)
	}
	if err != nil {
		return fmt.Errorf("owner %d:%d: %w", owner.UID, owner.GID, err)
	}
	return nil
}

// record writes the note of an owner. What cannot have one stays the caller's.
func record(fd int, base string, owner Owner) error {
	path := pathOf(fd, base)
	var st unix.Stat_t
	err := fstat(fd, &st)
	if base != "" {
		err = fstatat(fd, base, &st)
	}
	if err != nil {
		return err
	}
	if !isRegular(&st) && !isDir(&st) {
		return nil
	}
	if owner == (Owner{}) {
		err = retryEINTR(func() error { return removexattr(path, base != "") })
		if err == unix.ENODATA || err == unix.ENOTSUP {
			return nil
		}
	} else {
		note := strconv.Itoa(owner.UID) + ":" + strconv.Itoa(owner.GID)
		err = retryEINTR(func() error { return setxattr(path, base != "", ownerXattr, []byte(note)) })
	}
	if err != nil {
		return fmt.Errorf("note the owner %d:%d: %w", owner.UID, owner.GID, err)
	}
	return nil
}

// pathOf names the file base in the directory open at fd for calls that take
// no descriptor, or what is open at fd where base is "".
func pathOf(fd int, base string) string {
	switch {
	case base == "":
		return procPath(fd)
	case fd == unix.AT_FDCWD:
		return base
	}
	return procPath(fd) + "/" + base
}

// setxattr follows the link in /proc of a path that names a descriptor, and no
// link of the tree.
func setxattr(path string, nofollow bool, name string, value []byte) error {
	if nofollow {
		return unix.Lsetxattr(path, name, value, 0)
	}
	return unix.Setxattr(path, name, value, 0)
}

func removexattr(path string, nofollow bool) error {
	if nofollow {
		return unix.Lremovexattr(path, ownerXattr)
	}
	return unix.Removexattr(path, ownerXattr)
}

// ownerOf is the owner of the file base in dirfd: a note counts where the file
// itself is nobody else's than root's.
func ownerOf(dirfd int, base string, st *unix.Stat_t) (Owner, error) {
	owner := Owner{int(st.Uid), int(st.Gid)}
	if owner != (Owner{}) || !isRegular(st) && !isDir(st) {
		return owner, nil
	}
	note, err := lgetxattr(pathOf(dirfd, base), ownerXattr)
	if err != nil || note == nil {
		return owner, err
	}
	if noted, ok := parseOwner(string(note)); ok {
		return noted, nil
	}
	return owner, nil
}

// parseOwner reads "UID:GID".
func parseOwner(note string) (Owner, bool) {
	u, g, _ := strings.Cut(note, ":")
	uid, uerr := strconv.ParseUint(u, 10, 32)
	gid, gerr := strconv.ParseUint(g, 10, 32)
	return Owner{int(uid), int(gid)}, uerr == nil && gerr == nil && uid <= maxID && gid <= maxID
}

// lgetxattr is nil where there is none of that name.
func lgetxattr(path, name string) ([]byte, error) {
	for size := 128; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Lgetxattr(path, name, buf)
		switch {
		case err == nil:
			return buf[:n], nil
		case err == unix.EINTR:
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != unix.ERANGE || size > maxXattr:
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
	}
}

// maxXattr is the kernel's limit for a value, and for a list of names, in bytes.
const maxXattr = 64 << 10

// llistxattr lists the names of a file's xattrs.
func llistxattr(path string) ([]string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Llistxattr(path, buf)
		switch {
		case err == nil:
			return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
		case err == unix.EINTR:
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != unix.ERANGE || size > maxXattr:
			return nil, fmt.Errorf("list xattrs: %w", err)
		}
	}
}

// xattrRecords are a file's xattrs that belong in a layer, as PAX records:
// user.*, but for notes and marks of ours and of overlayfs, and capabilities.
func xattrRecords(dirfd int, base string, st *unix.Stat_t) (map[string]string, error) {
	path := pathOf(dirfd, base)
	names, err := llistxattr(path)
	if err != nil {
		return nil, err
	}
	var records map[string]string
	for _, name := range names {
		if !keptXattr(name) || name == capXattr && !isRegular(st) {
			continue
		}
		value, err := lgetxattr(path, name)
		if err != nil {
			return nil, err
		}
		if value == nil {
			continue
		}
		if records == nil {
			records = map[string]string{}
		}
		if name == capXattr {
			value = capabilityV2(value)
		}
		records[xattrRecord+name] = string(value)
	}
	return records, nil
}

// dropXattrs takes away from a directory that was there what its new entry does
// not have.
func dropXattrs(fd int, hdr *tar.Header) error {
	names, err := llistxattr(procPath(fd) + "/.")
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, has := hdr.PAXRecords[xattrRecord+name]; has || !keptXattr(name) {
			continue
		}
		if err := unix.Removexattr(procPath(fd), name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove xattr %s: %w", name, err)
		}
	}
	return nil
}

// keptXattr tells whether an xattr is the content's own.
func keptXattr(name string) bool {
	rest, user := strings.CutPrefix(name, "user.")
	return name == capXattr || user && rest != "" && name != ownerXattr && !strings.HasPrefix(rest, "overlay.") &&
		!strings.Contains(rest, "=") // which a tar cannot say
}

// File capabilities: version 3 is version 2 with the root that they count for,
// which is a matter of this host.
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capSize2        = 20
	capSize3        = 24
)

func capabilityV2(value []byte) []byte {
	if len(value) != capSize3 {
		return value
	}
	magic := binary.LittleEndian.Uint32(value)
	if magic&capRevisionMask != capRevision3 {
		return value
	}
	v2 := append([]byte(nil), value[:capSize2]...)
	binary.LittleEndian.PutUint32(v2, magic&^uint32(capRevisionMask)|capRevision2)
	return v2
}

// setCapability sets file capabilities that are some, and of a version that
// says the same on every host.
func setCapability(fd int, value string) error {
	if len(value) != capSize2 || binary.LittleEndian.Uint32([]byte(value))&capRevisionMask != capRevision2 {
		return nil
	}
	if err := unix.Setxattr(procPath(fd), capXattr, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("set file capabilities: %w", err)
	}
	return nil
}

// Describe tells what Lstat does not of the file that shows through at rel:
// its owner, real or noted, and its xattrs as the PAX records of a layer.
func (s Stack) Describe(rel string) (Owner, map[string]string, error) {
	f, err := s.find(rel)
	if err != nil {
		return Owner{}, nil, pathError("describe", rel, err)
	}
	defer f.close()
	fd, base := f.parent.fd, f.name
	if isDir(&f.stat) {
		fd, base = f.dir[0].fd, "."
	}
	owner, err := ownerOf(fd, base, &f.stat)
	if err != nil {
		return Owner{}, nil, pathError("describe", rel, err)
	}
	records, err := xattrRecords(fd, base, &f.stat)
	return owner, records, pathError("describe", rel, err)
}

// Claim notes owner, in the way of Record, on the files that are new in upper:
// for a step that was to run as that owner where there is one id for all. What
// lowers (topmost first) have too, and what the step itself gave away, stays as
// it is.
func Claim(ctx context.Context, upper string, lowers []string, owner Owner) error {
	top, err := openHandle(unix.AT_FDCWD, upper)
	if err != nil {
		return pathError("open", upper, err)
	}
	defer top.close()
	var low dir
	if len(lowers) > 0 {
		if low, err = (Stack{Lowers: lowers}).root(); err != nil {
			return err
		}
		defer low.close()
	}
	return claim(ctx, top, low, "", owner)
}

func claim(ctx context.Context, h handle, low dir, rel string, owner Owner) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := statDir(h, rel)
	if err != nil {
		return err
	}
	for _, e := range list {
		path := join(rel, e.name)
		if !isRegular(&e.stat) && !isDir(&e.stat) {
			continue
		}
		below, err := low.has(e.name, isDir(&e.stat))
		if err != nil {
			return pathError("read", path, err)
		}
		had, err := ownerOf(h.fd, e.name, &e.stat)
		if err == nil && !below && had == (Owner{}) {
			err = record(h.fd, e.name, owner)
		}
		if err != nil {
			return pathError("claim", path, err)
		}
		if isDir(&e.stat) {
			if err := claimDir(ctx, h, low, e.name, path, owner); err != nil {
				return err
			}
		}
	}
	return nil
}

func claimDir(ctx context.Context, h handle, low dir, name, rel string, owner Owner) error {
	child, err := openHandle(h.fd, name)
	if err != nil {
		return pathError("read", rel, err)
	}
	defer child.close()
	below, err := low.lookupDir(name)
	if err != nil {
		return pathError("read", rel, err)
	}
	if below != nil {
		defer below.close()
	}
	return claim(ctx, child, below, rel, owner)
}

// has tells whether d has a file of that name, and of that kind.
func (d dir) has(name string, isDirectory bool) (bool, error) {
	if d == nil {
		return false, nil
	}
	f, err := d.lookup(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.dir.close()
	return isDir(&f.stat) == isDirectory, nil
}
