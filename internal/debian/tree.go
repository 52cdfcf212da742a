package debian

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// maxEntries bounds the files of one root file system.
const maxEntries = 2_000_000

// inode is a file of the image. What it holds is in the layer and not kept.
type inode struct {
	kind  byte // tar.TypeReg, TypeDir, TypeSymlink; a hard link is what it links to
	mode  int64
	uid   int
	gid   int
	link  string
	owner string // package, "" for ours
	mtime time.Time
	layer int
}

// tree is the root file system so far: what the layers below and this one hold.
// It decides where a package's file goes and whether it may.
type tree struct {
	nodes map[string]*inode
	// replaces is what each package seen says that it replaces; versions is
	// each package's version.
	replaces map[string][]relation
	versions map[string]string
	// merged are the top directories that packages used and that became links
	// into usr.
	merged     map[string]bool
	keepSetuid bool
	latest     time.Time // cap on modification times
	newest     time.Time // newest so far
}

func newTree(latest time.Time, keepSetuid bool) *tree {
	return &tree{nodes: map[string]*inode{}, replaces: map[string][]relation{}, versions: map[string]string{},
		merged: map[string]bool{"bin": true, "sbin": true, "lib": true}, keepSetuid: keepSetuid, latest: latest}
}

// mergedDirs are the directories that are links into usr on a merged system.
var mergedDirs = []string{"bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32"}

// merge moves a path of a merged directory into usr.
func merge(p string) (top, moved string) {
	top, _, _ = strings.Cut(p, "/")
	if slices.Contains(mergedDirs, top) {
		return top, "usr/" + p
	}
	return "", p
}

// moved are directories that base-files' script turns into links into /run.
var moved = []struct{ from, to string }{{"var/run", "run"}, {"var/lock", "run/lock"}}

// canonical is where a path of a package lies on a merged system.
func canonical(p string) string {
	_, p = merge(p)
	for _, m := range moved {
		if p == m.from || strings.HasPrefix(p, m.from+"/") {
			return m.to + p[len(m.from):]
		}
	}
	return p
}

// memberPath is the cleaned relative path of a tar member's name, "." for the root.
func memberPath(name string) (string, error) {
	if name == "" || name[0] == '/' || strings.ContainsRune(name, 0) || len(name) > 4096 {
		return "", fmt.Errorf("file name %q: not a relative path", name)
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("file name %q: leads out of the root", name)
	}
	return path.Clean(name), nil
}

// mergeLink is the target for a symbolic link that the package put at from and
// that goes to to. A relative target means something else from the new place.
func mergeLink(from, to, target string) string {
	if from == to || path.IsAbs(target) {
		return target
	}
	abs := path.Join("/", path.Dir(from), target) // clean: ".." stops at the root, as in the kernel
	return relativeTo(path.Dir(to), canonical(abs[1:]))
}

// relativeTo is the path that leads from directory dir to p, both relative to
// the same root and clean.
func relativeTo(dir, p string) string {
	var d, t []string
	if dir != "." {
		d = strings.Split(dir, "/")
	}
	if p != "." && p != "" {
		t = strings.Split(p, "/")
	}
	for len(d) > 0 && len(t) > 0 && d[0] == t[0] {
		d, t = d[1:], t[1:]
	}
	parts := append(slices.Repeat([]string{".."}, len(d)), t...)
	if len(parts) == 0 {
		return "."
	}
	return strings.Join(parts, "/")
}

// documentation is true for what images leave out: documents but for copyright
// files, manuals, translations. Directories of documents go too; a copyright
// file brings its own.
func documentation(p string, kind byte) bool {
	rest, ok := strings.CutPrefix(p, "usr/share/")
	if !ok {
		return false
	}
	dir, below, _ := strings.Cut(rest, "/")
	switch dir {
	case "man", "info", "locale", "lintian", "doc-base", "bug", "linda":
		return true
	case "doc":
		pkg, file, deeper := strings.Cut(below, "/")
		if !deeper {
			return pkg == "" || kind != tar.TypeSymlink // a link shares another package's copyright
		}
		return file != "copyright"
	}
	return false
}

// place makes the header that goes into the layer for a package's member, or nil
// when it goes nowhere: left out, there already, or replaced by another package.
func (t *tree) place(pkg string, h *tar.Header) (*tar.Header, error) {
	from, err := memberPath(h.Name)
	if err != nil {
		return nil, err
	}
	top, _ := merge(from)
	to := canonical(from)
	if top != "" {
		t.merged[top] = true
	}
	if from == "." || documentation(to, h.Typeflag) {
		return nil, nil
	}
	if (to == "run" || to == "run/lock") && to != from {
		return nil, nil // its mode is that of the directory, not of the old name
	}
	if top != "" && from == top && h.Typeflag == tar.TypeSymlink {
		return nil, nil // newer base-files bring the links themselves
	}
	if to, err = t.throughLinks(to); err != nil {
		return nil, err
	}
	out := &tar.Header{Typeflag: h.Typeflag, Name: to, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: t.clamp(h.ModTime)}
	if !t.keepSetuid {
		out.Mode &^= 0o6000
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if out.Size = h.Size; sparse(h) {
			return nil, fmt.Errorf("%s: sparse files have no place in a package", from)
		}
	case tar.TypeDir:
	case tar.TypeSymlink:
		out.Linkname, out.Mode = mergeLink(from, to, h.Linkname), 0o777
	case tar.TypeLink:
		target, err := memberPath(h.Linkname)
		if err != nil {
			return nil, err
		}
		out.Linkname = canonical(target)
	default:
		return nil, fmt.Errorf("%s: file type %q has no place in a package", from, h.Typeflag)
	}
	keep, err := t.admit(pkg, out)
	if err != nil || !keep {
		return nil, err
	}
	return out, nil
}

// sparse is true for a member with holes: some bytes of it can stand for any size.
// dpkg-deb makes none.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// throughLinks follows symbolic links to directories in p's parents, as dpkg does.
func (t *tree) throughLinks(p string) (string, error) {
	for range 40 {
		moved := ""
		for i := 0; i < len(p); i++ {
			if p[i] != '/' {
				continue
			}
			if n := t.nodes[p[:i]]; n != nil && n.kind == tar.TypeSymlink {
				moved = path.Join("/", path.Dir(p[:i]), n.link, p[i+1:])
				if path.IsAbs(n.link) {
					moved = path.Join(n.link, p[i+1:])
				}
				break
			} else if n != nil && n.kind != tar.TypeDir {
				return "", fmt.Errorf("%s: %s of package %s is no directory", p, p[:i], n.owner)
			}
		}
		if moved == "" {
			return p, nil
		}
		p = canonical(strings.TrimPrefix(moved, "/"))
	}
	return "", fmt.Errorf("%s: too many symbolic links", p)
}

// admit decides whether the file may go in, given what is there.
func (t *tree) admit(pkg string, h *tar.Header) (bool, error) {
	old := t.nodes[h.Name]
	if old == nil {
		return true, nil
	}
	isDir := h.Typeflag == tar.TypeDir
	switch {
	case isDir && old.kind == tar.TypeDir:
		// The first package's attributes stay; a layer above must say them again.
		h.Mode, h.Uid, h.Gid, h.ModTime = old.mode, old.uid, old.gid, old.mtime
		return true, nil
	case isDir && old.kind == tar.TypeSymlink:
		return false, nil // dpkg leaves a link to a directory in its place
	case !isDir && old.kind == tar.TypeDir:
		return false, fmt.Errorf("%s is a directory in package %s", h.Name, old.owner)
	case h.Typeflag == tar.TypeSymlink && old.kind == tar.TypeSymlink && old.link == h.Linkname:
		return false, nil
	case old.owner != pkg && t.replaced(old.owner, pkg):
		return false, nil // whoever replaces it came first
	case old.owner != pkg && t.replaced(pkg, old.owner):
		return true, nil // from a lower layer
	}
	return false, fmt.Errorf("%s is in package %s too, and neither replaces the other", h.Name, old.owner)
}

// replaced says whether package by replaces files of package of.
func (t *tree) replaced(by, of string) bool {
	return slices.ContainsFunc(t.replaces[by], func(r relation) bool {
		return r.name == of && r.accepts(t.versions[of])
	})
}

func (t *tree) clamp(m time.Time) time.Time {
	m = time.Unix(m.Unix(), 0).UTC()
	if m.After(t.latest) {
		m = t.latest
	}
	if m.After(t.newest) {
		t.newest = m
	}
	return m
}

// add notes a file that was written.
func (t *tree) add(owner string, layer int, h *tar.Header) error {
	if len(t.nodes) >= maxEntries {
		return fmt.Errorf("more than %d files", maxEntries)
	}
	n := &inode{kind: h.Typeflag, mode: h.Mode, uid: h.Uid, gid: h.Gid, link: h.Linkname, owner: owner, mtime: h.ModTime, layer: layer}
	if h.Typeflag == tar.TypeLink {
		n.kind, n.link = tar.TypeReg, ""
	}
	t.nodes[h.Name] = n
	return nil
}

// lookup follows links to what p is in the end, or nil.
func (t *tree) lookup(p string) *inode {
	p, err := t.throughLinks(canonical(strings.TrimPrefix(path.Clean(p), "/")))
	for range 40 {
		n := t.nodes[p]
		if err != nil || n == nil || n.kind != tar.TypeSymlink {
			return n
		}
		target := n.link
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(p), target)
		}
		p, err = t.throughLinks(canonical(path.Clean(target)[1:]))
	}
	return nil
}

// layerWriter writes one layer's tar: parents first, each directory once.
type layerWriter struct {
	tree  *tree
	index int
	tw    *tar.Writer
	dirs  map[string]bool
	files int
	bytes int64
}

func newLayerWriter(t *tree, index int, w io.Writer) *layerWriter {
	return &layerWriter{tree: t, index: index, tw: tar.NewWriter(w), dirs: map[string]bool{}}
}

// write adds one file, its parents first where they are missing.
func (l *layerWriter) write(owner string, h *tar.Header, body io.Reader) error {
	if err := l.parents(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if l.dirs[h.Name] {
			return nil
		}
		l.dirs[h.Name] = true
	}
	if h.Typeflag == tar.TypeLink {
		if n := l.tree.nodes[h.Linkname]; n == nil || n.layer != l.index || n.owner != owner {
			return fmt.Errorf("%s: hard link to %s, which is not in this package's layer", h.Name, h.Linkname)
		}
	}
	if old := l.tree.nodes[h.Name]; old != nil && old.layer == l.index && h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%s: written to the layer already, by package %q", h.Name, old.owner)
	}
	if err := l.header(owner, h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	n, err := io.Copy(l.tw, body)
	l.bytes += n
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

func (l *layerWriter) parents(h *tar.Header) error {
	for i := 0; i < len(h.Name); i++ {
		dir := h.Name[:i]
		if h.Name[i] != '/' || l.dirs[dir] {
			continue
		}
		d := &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: h.ModTime}
		owner := ""
		if n := l.tree.nodes[dir]; n != nil {
			if n.kind != tar.TypeDir {
				return errors.New(dir + ": is no directory")
			}
			d.Mode, d.Uid, d.Gid, d.ModTime, owner = n.mode, n.uid, n.gid, n.mtime, n.owner
		}
		l.dirs[dir] = true
		if err := l.header(owner, d); err != nil {
			return err
		}
	}
	return nil
}

func (l *layerWriter) header(owner string, h *tar.Header) error {
	written := *h
	if h.Typeflag == tar.TypeDir {
		written.Name += "/"
	}
	if err := l.tw.WriteHeader(&written); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	l.files++
	return l.tree.add(owner, l.index, h)
}

// dir and symlink and file add what we make ourselves, unless it is there.
func (l *layerWriter) dir(name string, mode int64, uid, gid int) error {
	return l.make(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: gid}, nil)
}

func (l *layerWriter) symlink(name, target string) error {
	return l.make(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (l *layerWriter) file(name string, mode int64, body []byte) error {
	return l.make(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body))}, body)
}

func (l *layerWriter) make(h *tar.Header, body []byte) error {
	if old := l.tree.nodes[h.Name]; old != nil && (old.layer == l.index || old.owner != "") {
		return nil
	}
	h.ModTime = l.tree.newest
	return l.write("", h, strings.NewReader(string(body)))
}
