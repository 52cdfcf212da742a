package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// node is one file of the model: a slow, obviously safe, in-memory answer to
// what Apply should make of a tar.
type node struct {
	kind     byte // tar type flag; 'w' for a whiteout
	mode     uint32
	body     string // content or link target
	children map[string]*node
	opaque   bool
	parent   *node
}

func newDir(parent *node) *node {
	return &node{kind: tar.TypeDir, mode: 0o700, children: map[string]*node{}, parent: parent}
}

type model struct {
	root   *node
	notes  []note // directories in the order first noted
	limits Limits
	bytes  int64
}

type note struct {
	path string
	dir  *node
	mode uint32
}

var errModel = errors.New("model refuses")

func modelApply(data []byte, limits Limits) (*node, error) {
	m := &model{root: newDir(nil), limits: limits.withDefaults()}
	m.root.mode = 0o755
	tr := tar.NewReader(bytes.NewReader(data))
	entries := int64(0)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if entries++; entries > m.limits.Entries {
			return nil, errModel
		}
		if err := m.entry(hdr, tr); err != nil {
			return nil, err
		}
	}
	m.finish()
	return m.root, nil
}

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

func (m *model) note(path string, d *node, mode uint32) {
	for i := range m.notes {
		if m.notes[i].dir == d {
			m.notes[i].mode = mode
			return
		}
	}
	m.notes = append(m.notes, note{path, d, mode})
}

func (m *model) finish() {
	slices.SortStableFunc(m.notes, func(a, b note) int { return strings.Compare(b.path, a.path) })
	for _, n := range m.notes {
		if d, err := m.lookupDir(n.path); err == nil && d == n.dir {
			d.mode = n.mode
		}
	}
}

func (m *model) parents(parts []string) (*node, error) {
	d, err := m.lookupDir(strings.Join(parts, "/"))
	if err == nil {
		return d, nil
	}
	if err != unix.ENOENT && err != unix.ENOTDIR {
		return nil, err
	}
	at := m.root
	for i := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		next, err := m.lookupDir(prefix)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			old := at.children[parts[i]]
			if old != nil && old.kind != 'w' {
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
	mode := uint32(hdr.Mode) & 0o1777
	if len(parts) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return errModel
		}
		m.note("", m.root, mode)
		return nil
	}
	path, base := strings.Join(parts, "/"), parts[len(parts)-1]
	if strings.HasPrefix(base, ".wh.") {
		return m.whiteout(parts[:len(parts)-1], base)
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		return nil
	}
	d, err := m.parents(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		old := d.children[base]
		if old == nil || old.kind != tar.TypeDir {
			made := newDir(d)
			made.opaque = old != nil
			d.children[base] = made
		}
		m.note(path, d.children[base], mode)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		b, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		d.children[base] = &node{kind: tar.TypeReg, mode: mode, body: string(b)}
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > 4095 || strings.Contains(hdr.Linkname, "\x00") {
			return errModel
		}
		d.children[base] = &node{kind: tar.TypeSymlink, mode: 0o777, body: hdr.Linkname}
	case tar.TypeFifo:
		d.children[base] = &node{kind: tar.TypeFifo, mode: mode}
	case tar.TypeLink:
		return m.link(d, base, hdr.Linkname)
	default:
		return errModel
	}
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
	if n == nil || n.kind == tar.TypeDir || n.kind == 'w' {
		return errModel
	}
	if old := d.children[base]; old != nil && old.kind == tar.TypeDir && within(old, from) {
		return errModel // the target goes with the directory that it replaces
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
	if opaque {
		d.opaque = true
		return nil
	}
	switch old := d.children[target]; {
	case old == nil:
		d.children[target] = &node{kind: 'w'}
	case old.kind == tar.TypeDir:
		old.opaque = true
	}
	return nil
}

// render prints a model tree one file a line.
func (n *node) render(path string, b *strings.Builder) {
	switch n.kind {
	case tar.TypeDir:
		fmt.Fprintf(b, "%q dir %o opaque=%v\n", path, n.mode, n.opaque)
		for _, name := range slices.Sorted(keys(n.children)) {
			n.children[name].render(path+"/"+name, b)
		}
	case 'w':
		fmt.Fprintf(b, "%q whiteout\n", path)
	default:
		fmt.Fprintf(b, "%q %c %o %q\n", path, n.kind, n.mode, n.body)
	}
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// renderDisk prints a tree on disk as render does, reading through Stack's
// primitives so that it works without the right to read.
func renderDisk(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if err := renderHandle(h, "", &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func renderHandle(h handle, path string, b *strings.Builder) error {
	var st unix.Stat_t
	if err := fstat(h.fd, &st); err != nil {
		return err
	}
	opaque, err := h.opaque()
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "%q dir %o opaque=%v\n", path, permBits(&st), opaque)
	names, err := readDirents(h.fd)
	if err != nil {
		return err
	}
	slices.SortFunc(names, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	for _, e := range names {
		if err := renderEntry(h, e.name, path+"/"+e.name, b); err != nil {
			return err
		}
	}
	return nil
}

func renderEntry(h handle, name, path string, b *strings.Builder) error {
	var st unix.Stat_t
	if err := fstatat(h.fd, name, &st); err != nil {
		return err
	}
	switch typeOf(&st) {
	case unix.S_IFDIR:
		child, err := openHandle(h.fd, name)
		if err != nil {
			return err
		}
		defer child.close()
		return renderHandle(child, path, b)
	case unix.S_IFREG:
		fd, err := openReadable(h.fd, name, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		body, err := io.ReadAll(f)
		fmt.Fprintf(b, "%q %c %o %q\n", path, tar.TypeReg, permBits(&st), body)
		return err
	case unix.S_IFLNK:
		link, err := readlinkat(h.fd, name)
		fmt.Fprintf(b, "%q %c %o %q\n", path, tar.TypeSymlink, permBits(&st), link)
		return err
	case unix.S_IFIFO:
		fmt.Fprintf(b, "%q %c %o %q\n", path, tar.TypeFifo, permBits(&st), "")
		return nil
	}
	if !isWhiteout(&st) {
		return fmt.Errorf("%s: unexpected mode %o", path, st.Mode)
	}
	fmt.Fprintf(b, "%q whiteout\n", path)
	return nil
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
