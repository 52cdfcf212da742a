package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// node is one file of the model: a slow, obviously safe, in-memory answer to
// what unpacking a layer should make of a tree. Names that are hard links of each
// other are one node.
type node struct {
	kind     byte // tar type flag; 'w' for a whiteout
	mode     uint32
	body     string // content, link target, or numbers of a device
	owner    Owner
	xattrs   map[string]string
	children map[string]*node
	opaque   bool
	parent   *node
}

func newDir(parent *node) *node {
	return &node{kind: tar.TypeDir, mode: 0o700, children: map[string]*node{}, parent: parent}
}

// model unpacks one layer over root, in one of the forms that an unpacker has.
type model struct {
	root   *node
	plain  bool
	owners Owners
	// devices says that this process may make them.
	devices bool
	notes   []note         // directories in the order first noted
	present map[*node]bool // what this layer brought
	limits  Limits

	entries, bytes int64
}

type note struct {
	path string
	dir  *node
	mode uint32
}

var errModel = errors.New("model refuses")

// emptyTree is the tree in which a model begins, as scratch and a prison have it.
func emptyTree() *node {
	root := newDir(nil)
	root.mode = 0o755
	return root
}

// modelApply is what Apply should make of data in an empty directory.
func modelApply(data []byte, limits Limits) (*node, error) {
	return modelOver(emptyTree(), data, limits, unpacker{})
}

// modelOver unpacks data over root, which it changes, as form says.
func modelOver(root *node, data []byte, limits Limits, form unpacker) (*node, error) {
	m := &model{
		root: root, limits: limits.withDefaults(), plain: form.plain, owners: form.owners,
		devices: form.owners == Chown && mayMakeDevices(), present: map[*node]bool{},
	}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if m.entries++; m.entries > m.limits.Entries {
			return nil, errModel
		}
		if err := m.entry(hdr, tr); err != nil {
			return nil, err
		}
	}
	m.finish()
	return m.root, nil
}

// mayMakeDevices finds out by making one.
var mayMakeDevices = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "device")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	return unix.Mknod(filepath.Join(dir, "d"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) == nil
})

// lookup resolves a path from the root, ".." and absolute links staying inside.
// With last it follows a symlink at the end too.
func (m *model) lookup(path string, last bool) (*node, error) {
	return m.walk(m.root, strings.Split(path, "/"), last, new(int))
}

func (m *model) walk(at *node, parts []string, last bool, links *int) (*node, error) {
	for i, part := range parts {
		if at.kind != tar.TypeDir {
			return nil, unix.ENOTDIR
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if at.parent != nil {
				at = at.parent
			}
			continue
		}
		next := at.children[part]
		if next == nil {
			return nil, unix.ENOENT
		}
		if next.kind == tar.TypeSymlink && (last || i < len(parts)-1) {
			if *links++; *links > 40 {
				return nil, unix.ELOOP
			}
			from := at
			if strings.HasPrefix(next.body, "/") {
				from = m.root
			}
			var err error
			if next, err = m.walk(from, strings.Split(next.body, "/"), true, links); err != nil {
				return nil, err
			}
		}
		at = next
	}
	return at, nil
}

func (m *model) lookupDir(path string) (*node, error) {
	n, err := m.lookup(path, true)
	if err == nil && n.kind != tar.TypeDir {
		return nil, unix.ENOTDIR
	}
	return n, err
}

func (m *model) clean(name string) ([]string, error) {
	if len(name) > m.limits.Path || strings.Contains(name, "\x00") {
		return nil, errModel
	}
	var parts []string
	for _, p := range strings.Split(name, "/") {
		if p == ".." || len(p) > 255 {
			return nil, errModel
		}
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	if len(parts) > m.limits.Depth {
		return nil, errModel
	}
	for i := 0; i+1 < len(parts); i++ {
		if strings.HasPrefix(parts[i], ".wh.") {
			return nil, errModel
		}
	}
	return parts, nil
}

// note remembers the mode that a directory gets in the end.
func (m *model) note(path string, d *node, mode uint32) {
	m.present[d] = true
	for i := range m.notes {
		if m.notes[i].dir == d {
			m.notes[i].mode = mode
			return
		}
	}
	m.notes = append(m.notes, note{path, d, mode})
}

// finish gives directories their modes. One that is not at its place any more
// keeps the mode that it had while the layer was unpacked.
func (m *model) finish() {
	slices.SortStableFunc(m.notes, func(a, b note) int { return strings.Compare(b.path, a.path) })
	for _, n := range m.notes {
		if d, err := m.lookupDir(n.path); err == nil && d == n.dir {
			d.mode = n.mode
		}
	}
}

// writable gives the owner of an older directory access for as long as the
// layer is unpacked.
func (m *model) writable(path string, d *node) {
	known := slices.ContainsFunc(m.notes, func(n note) bool { return n.dir == d })
	if m.plain && path != "" && d.mode&0o700 != 0o700 && !known {
		m.notes = append(m.notes, note{path, d, d.mode})
		d.mode |= 0o700
	}
}

func (m *model) parents(parts []string) (*node, error) {
	path := strings.Join(parts, "/")
	d, err := m.lookupDir(path)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		d, err = m.makeParents(parts)
	}
	if err == nil {
		m.writable(path, d)
	}
	return d, err
}

func (m *model) makeParents(parts []string) (*node, error) {
	at := m.root
	for i := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		next, err := m.lookupDir(prefix)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			old := at.children[parts[i]]
			if old != nil && old.kind != 'w' {
				return nil, errModel
			}
			if m.entries++; m.entries > m.limits.Entries {
				return nil, errModel
			}
			next, err = newDir(at), nil
			next.opaque = old != nil
			at.children[parts[i]] = next
			m.note(prefix, next, 0o755)
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// mode is the mode of an entry: without its owner it has no set-ID bits.
func (m *model) mode(hdr *tar.Header) uint32 {
	if m.owners == 0 {
		return uint32(hdr.Mode) & 0o1777
	}
	return uint32(hdr.Mode) & 0o7777
}

// owner is that of an entry, as far as the form keeps it for this type.
func (m *model) owner(hdr *tar.Header) (Owner, error) {
	owner := Owner{hdr.Uid, hdr.Gid}
	if m.owners == 0 {
		return Owner{}, nil
	}
	if owner.UID < 0 || owner.GID < 0 || owner.UID > 1<<32-2 || owner.GID > 1<<32-2 {
		return owner, errModel
	}
	if m.owners == Record && (hdr.Typeflag == tar.TypeSymlink || hdr.Typeflag == tar.TypeFifo) {
		return Owner{}, nil
	}
	return owner, nil
}

// xattrs are those that a layer may bring to a file or directory.
func (m *model) xattrs(hdr *tar.Header) map[string]string {
	kept := map[string]string{}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		rest, user := strings.CutPrefix(name, "user.")
		switch {
		case !ok, strings.Contains(name, "\x00"):
		case user && rest != "" && rest != "kiln.owner" && !strings.HasPrefix(rest, "overlay.") && !strings.Contains(rest, "="):
			kept[name] = value
		case name == "security.capability" && m.owners != 0 && hdr.Typeflag != tar.TypeDir && len(value) == 20 && value[3] == 2:
			kept[name] = value
		}
	}
	return kept
}

func (m *model) entry(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if hdr.Size > m.limits.Bytes-m.bytes {
		return errModel
	}
	m.bytes += hdr.Size
	parts, err := m.clean(hdr.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return errModel
		}
		return m.directory(m.root, "", hdr)
	}
	path, base := strings.Join(parts, "/"), parts[len(parts)-1]
	if strings.HasPrefix(base, ".wh.") {
		return m.whiteout(parts[:len(parts)-1], base)
	}
	device := hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock
	if device && (m.owners == 0 || hdr.Devmajor == 0 && hdr.Devminor == 0) {
		return nil
	}
	d, err := m.parents(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	n := &node{kind: hdr.Typeflag, mode: m.mode(hdr)}
	switch hdr.Typeflag {
	case tar.TypeDir:
		old := d.children[base]
		if old == nil || old.kind != tar.TypeDir {
			made := newDir(d)
			made.opaque = old != nil && !m.plain
			d.children[base] = made
		}
		return m.directory(d.children[base], path, hdr)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		b, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		n.kind, n.body, n.xattrs = tar.TypeReg, string(b), m.xattrs(hdr)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > 4095 || strings.Contains(hdr.Linkname, "\x00") {
			return errModel
		}
		n.mode, n.body = 0o777, hdr.Linkname
	case tar.TypeFifo:
	case tar.TypeLink:
		return m.link(d, base, hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor >= 1<<20 {
			return errModel
		}
		if !m.devices {
			if m.owners == Chown {
				delete(d.children, base) // what a device replaces is gone, also if the device cannot be
			}
			return nil
		}
		n.body = fmt.Sprintf("%d:%d", hdr.Devmajor, hdr.Devminor)
	default:
		return errModel
	}
	if n.owner, err = m.owner(hdr); err != nil {
		return err
	}
	m.present[n] = true
	d.children[base] = n
	return nil
}

// directory gives d what its entry says.
func (m *model) directory(d *node, path string, hdr *tar.Header) (err error) {
	if d.owner, err = m.owner(hdr); err != nil {
		return err
	}
	if d.xattrs == nil || m.plain && m.owners != 0 {
		d.xattrs = map[string]string{}
	}
	maps.Copy(d.xattrs, m.xattrs(hdr))
	m.note(path, d, m.mode(hdr))
	return nil
}

func (m *model) link(d *node, base, target string) error {
	parts, err := m.clean(target)
	if err != nil || len(parts) == 0 {
		return errModel
	}
	from, err := m.lookupDir(strings.Join(parts[:len(parts)-1], "/"))
	if err != nil {
		return err
	}
	n := from.children[parts[len(parts)-1]]
	if n == nil || n.kind != tar.TypeReg && n.kind != tar.TypeSymlink && n.kind != tar.TypeFifo {
		return errModel
	}
	if old := d.children[base]; old != nil && old.kind == tar.TypeDir && within(old, from) {
		return errModel // the target goes with the directory that it replaces
	}
	if d.children[base] != n {
		m.present[n] = true
	}
	d.children[base] = n
	return nil
}

func within(top, n *node) bool {
	for ; n != nil; n = n.parent {
		if n == top {
			return true
		}
	}
	return false
}

func (m *model) whiteout(parents []string, base string) error {
	target := strings.TrimPrefix(base, ".wh.")
	opaque := base == ".wh..wh..opq"
	if !opaque && strings.HasPrefix(target, ".wh.") {
		return nil
	}
	if target == "" || target == "." || target == ".." {
		return errModel
	}
	d, err := m.parents(parents)
	if err != nil {
		return err
	}
	switch old := d.children[target]; {
	case m.plain && opaque:
		for name := range d.children {
			m.remove(d, name)
		}
	case m.plain:
		m.remove(d, target)
	case opaque:
		d.opaque = true
	case old == nil:
		d.children[target] = &node{kind: 'w'}
	case old.kind == tar.TypeDir:
		old.opaque = true
	}
	return nil
}

// remove removes what older layers left at a name of d, and below it.
func (m *model) remove(d *node, name string) {
	n := d.children[name]
	if n == nil {
		return
	}
	for child := range n.children {
		m.remove(n, child)
	}
	if len(n.children) == 0 && !m.present[n] {
		delete(d.children, name)
	}
}

// render prints a model tree one file a line.
func (n *node) render(path string, b *strings.Builder) { n.show(path, b, map[*node]string{}) }

func (n *node) show(path string, b *strings.Builder, first map[*node]string) {
	switch n.kind {
	case tar.TypeDir:
		fmt.Fprintf(b, "%q dir %o opaque=%v%s\n", path, n.mode, n.opaque, adorned(n.owner, n.xattrs, ""))
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			n.children[name].show(path+"/"+name, b, first)
		}
	case 'w':
		fmt.Fprintf(b, "%q whiteout\n", path)
	default:
		fmt.Fprintf(b, "%q %c %o %q%s\n", path, n.kind, n.mode, n.body, adorned(n.owner, n.xattrs, first[n]))
		if first[n] == "" {
			first[n] = path
		}
	}
}

// adorned is what most files do not have: an owner that is another one than who
// unpacked them, xattrs, another name.
func adorned(owner Owner, xattrs map[string]string, first string) (s string) {
	if owner != (Owner{}) {
		s += fmt.Sprintf(" of %d:%d", owner.UID, owner.GID)
	}
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		s += fmt.Sprintf(" %q=%q", name, xattrs[name])
	}
	if first != "" {
		s += fmt.Sprintf(" is %q", first)
	}
	return s
}

// renderDisk prints a tree on disk as render does, reading through Stack's
// primitives so that it works without the right to read.
func renderDisk(t testing.TB, dir string) string {
	t.Helper()
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	d := disk{first: map[fileID]string{}}
	if err := d.directory(h, ""); err != nil {
		t.Fatal(err)
	}
	return d.String()
}

type disk struct {
	strings.Builder
	first map[fileID]string
}

func (d *disk) directory(h handle, path string) error {
	var st unix.Stat_t
	if err := fstat(h.fd, &st); err != nil {
		return err
	}
	opaque, err := h.opaque()
	if err != nil {
		return err
	}
	more, err := d.adorned(h.fd, ".", path, &st)
	if err != nil {
		return err
	}
	fmt.Fprintf(d, "%q dir %o opaque=%v%s\n", path, permBits(&st), opaque, more)
	names, err := readDirents(h.fd)
	if err != nil {
		return err
	}
	slices.SortFunc(names, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	for _, e := range names {
		if err := d.entry(h, e.name, path+"/"+e.name); err != nil {
			return err
		}
	}
	return nil
}

// adorned reads what adorned prints.
func (d *disk) adorned(dirfd int, base, path string, st *unix.Stat_t) (string, error) {
	var owner Owner
	if int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		owner = Owner{int(st.Uid), int(st.Gid)}
	}
	if isRegular(st) && permBits(st)&0o400 == 0 && os.Geteuid() != 0 {
		fd, err := openat(dirfd, base, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		restore, err := raise(fd, 0o400)
		if err != nil {
			return "", err
		}
		defer restore()
	}
	note, err := lgetxattr(pathOf(dirfd, base), ownerXattr)
	if err != nil {
		return "", err
	}
	if noted, ok := parseOwner(string(note)); ok {
		owner = noted
	}
	records, err := xattrRecords(dirfd, base, st)
	if err != nil {
		return "", err
	}
	xattrs := map[string]string{}
	for key, value := range records {
		xattrs[strings.TrimPrefix(key, xattrRecord)] = value
	}
	first := ""
	if !isDir(st) && st.Nlink > 1 {
		if first = d.first[idOf(st)]; first == "" {
			d.first[idOf(st)] = path
		}
	}
	return adorned(owner, xattrs, first), nil
}

func (d *disk) entry(h handle, name, path string) error {
	var st unix.Stat_t
	if err := fstatat(h.fd, name, &st); err != nil {
		return err
	}
	if isDir(&st) {
		child, err := openHandle(h.fd, name)
		if err != nil {
			return err
		}
		defer child.close()
		return d.directory(child, path)
	}
	if isWhiteout(&st) {
		fmt.Fprintf(d, "%q whiteout\n", path)
		return nil
	}
	kind, body, err := d.content(h, name, &st)
	if err != nil {
		return err
	}
	more, err := d.adorned(h.fd, name, path, &st)
	fmt.Fprintf(d, "%q %c %o %q%s\n", path, kind, permBits(&st), body, more)
	return err
}

func (d *disk) content(h handle, name string, st *unix.Stat_t) (kind byte, body string, err error) {
	switch typeOf(st) {
	case unix.S_IFREG:
		fd, err := openReadable(h.fd, name, 0)
		if err != nil {
			return 0, "", err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		b, err := io.ReadAll(f)
		return tar.TypeReg, string(b), err
	case unix.S_IFLNK:
		body, err = readlinkat(h.fd, name)
		return tar.TypeSymlink, body, err
	case unix.S_IFIFO:
		return tar.TypeFifo, "", nil
	case unix.S_IFCHR, unix.S_IFBLK:
		kind = tar.TypeChar
		if typeOf(st) == unix.S_IFBLK {
			kind = tar.TypeBlock
		}
		return kind, fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))), nil
	}
	return 0, "", fmt.Errorf("%s: unexpected mode %o", name, st.Mode)
}

// scratch is a directory that is removed with whatever modes are in it.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Errorf("remove scratch: %v", err)
		}
	})
	return dir
}

func mkdirs(t testing.TB, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
