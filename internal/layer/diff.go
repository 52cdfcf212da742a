package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteDiff writes the layer that makes of the merged tree of lowers (topmost
// first) what an overlay shows of them under upper: an OCI layer tar, as
// containers are built of. It tells how many entries it has; with none the tar
// is that of an empty layer.
//
// Entries come in lexical order, a directory before what is in it and the
// whiteouts of a directory before its files; names are relative, those of
// directories end in a slash. A directory has an entry if it is new, if its
// mode, owner or xattrs are others, or if something below it has one: what a
// step only looked at or took back is not in the layer. Every entry has
// ModTime; owners are the real or the noted ones (see Owners); hard links
// within upper, file capabilities and user.* xattrs are kept; sockets are left
// out. What a replaced directory hides is named by whiteouts, never by an
// opaque mark: then a layer says the same whether it was made from an overlay
// or, by Scan, without one.
func WriteDiff(ctx context.Context, w io.Writer, upper string, lowers []string) (entries int, err error) {
	top, err := openHandle(unix.AT_FDCWD, upper)
	if err != nil {
		return 0, pathError("open", upper, err)
	}
	defer top.close()
	var low dir
	if len(lowers) > 0 {
		if low, err = (Stack{Lowers: lowers}).root(); err != nil {
			return 0, err
		}
		defer low.close()
	}
	var c *changes
	_, err = writeTar(ctx, w, Owner{}, func(t *tarWriter) error {
		c = newChanges(t)
		if low != nil {
			if err := c.enterMerged(top, low, ""); err != nil {
				return err
			}
		}
		return c.overlay(top, low, "", false)
	})
	if c != nil {
		entries = c.entries
	}
	return entries, err
}

// changes writes the entries of a layer. Directories wait until it is known
// that they are needed.
type changes struct {
	*tarWriter
	waiting []*tar.Header
	links   map[fileID]string // the first name of a file with several
	entries int
}

func newChanges(t *tarWriter) *changes {
	t.adorn = describeOwned
	return &changes{tarWriter: t, links: map[fileID]string{}}
}

// describeOwned gives a header the owner and the xattrs of the file.
func describeOwned(hdr *tar.Header, dirfd int, base string, st *unix.Stat_t) error {
	owner, err := ownerOf(dirfd, base, st)
	if err != nil {
		return err
	}
	hdr.Uid, hdr.Gid = owner.UID, owner.GID
	hdr.PAXRecords, err = xattrRecords(dirfd, base, st)
	return err
}

// enter begins a directory, open at fd. It is written now if it must be, else
// with the first entry below it.
func (c *changes) enter(fd int, rel string, must bool) error {
	hdr, err := c.directoryHeader(fd, rel)
	if err != nil {
		return err
	}
	c.waiting = append(c.waiting, hdr)
	if must {
		return c.flush()
	}
	return nil
}

// leave ends the directory that was entered last and tells whether it has an
// entry.
func (c *changes) leave() (written bool) {
	last := len(c.waiting) - 1
	written = c.waiting[last] == nil
	c.waiting = c.waiting[:last]
	return written
}

func (c *changes) directoryHeader(fd int, rel string) (*tar.Header, error) {
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return nil, pathError("read", rel, err)
	}
	name := rel + "/"
	if rel == "" {
		name = "./"
	}
	hdr := c.entryHeader(&st, tar.TypeDir, name)
	return hdr, pathError("read", rel, describeOwned(hdr, fd, ".", &st))
}

// flush writes the directories that wait.
func (c *changes) flush() error {
	for i, hdr := range c.waiting {
		if hdr == nil {
			continue
		}
		if err := c.header(hdr); err != nil {
			return err
		}
		c.waiting[i] = nil // written; its place stays for leave
		c.entries++
	}
	return nil
}

// gone writes the whiteouts of a directory's names that are no more.
func (c *changes) gone(rel string, names []string) error {
	slices.Sort(names)
	for _, name := range names {
		if err := c.flush(); err != nil {
			return err
		}
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: join(rel, whiteoutPrefix+name), ModTime: ModTime}
		if err := c.header(hdr); err != nil {
			return err
		}
		c.entries++
	}
	return nil
}

func join(rel, name string) string {
	if rel == "" {
		return name
	}
	return rel + "/" + name
}

// put writes anything but a directory: base in dirfd, which is at rel.
func (c *changes) put(dirfd int, base, rel string, st *unix.Stat_t) error {
	if typeOf(st) == unix.S_IFSOCK {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.entries++
	if isRegular(st) && st.Nlink > 1 {
		if first, ok := c.links[idOf(st)]; ok {
			return c.link(dirfd, base, rel, first, st)
		}
		c.links[idOf(st)] = rel
	}
	return c.file(dirfd, base, uint8(typeOf(st)>>12), rel)
}

func (c *changes) link(dirfd int, base, rel, first string, st *unix.Stat_t) error {
	if err := checkName(base, rel); err != nil {
		return err
	}
	hdr := c.entryHeader(st, tar.TypeLink, rel)
	hdr.Linkname = first
	owner, err := ownerOf(dirfd, base, st)
	if err != nil {
		return pathError("read", rel, err)
	}
	hdr.Uid, hdr.Gid = owner.UID, owner.GID
	return c.header(hdr)
}

// overlay writes what the directory h of an upper layer makes of low, the
// merged directory below it or nil. Hidden says that the kernel shows nothing
// of low any more; the layer has to say so name by name.
func (c *changes) overlay(h handle, low dir, rel string, hidden bool) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	children, err := statDir(h, rel)
	if err != nil {
		return err
	}
	gone, err := goneFrom(children, low, hidden)
	if err != nil {
		return pathError("read", rel, err)
	}
	if err := c.gone(rel, gone); err != nil {
		return err
	}
	for _, e := range children {
		if isWhiteout(&e.stat) {
			continue
		}
		if isDir(&e.stat) {
			err = c.overlayChild(h, low, e.name, join(rel, e.name), hidden)
		} else {
			err = c.put(h.fd, e.name, join(rel, e.name), &e.stat)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// goneFrom lists the names of low that do not show any more.
func goneFrom(children []statted, low dir, hidden bool) ([]string, error) {
	if low == nil {
		return nil, nil
	}
	entries, err := low.list()
	if err != nil {
		return nil, err
	}
	was := make(map[string]bool, len(entries))
	for _, e := range entries {
		was[e.name] = hidden
	}
	for _, e := range children {
		if _, ok := was[e.name]; ok {
			was[e.name] = isWhiteout(&e.stat)
		}
	}
	maps.DeleteFunc(was, func(_ string, gone bool) bool { return !gone })
	return slices.Collect(maps.Keys(was)), nil
}

func (c *changes) overlayChild(h handle, low dir, name, rel string, hidden bool) error {
	if err := checkName(name, rel); err != nil {
		return err
	}
	child, err := openHandle(h.fd, name)
	if err != nil {
		return pathError("read", rel, changed(err))
	}
	defer child.close()
	opaque, err := child.opaque()
	if err != nil {
		return pathError("read", rel, err)
	}
	below, err := low.lookupDir(name)
	if err != nil {
		return pathError("read", rel, err)
	}
	if below == nil {
		err = c.enter(child.fd, rel, true)
	} else {
		defer below.close()
		err = c.enterMerged(child, below, rel)
	}
	if err != nil {
		return err
	}
	defer c.leave()
	return c.overlay(child, below, rel, hidden || opaque)
}

// lookupDir is the merged directory name in d, nil where there is none.
func (d dir) lookupDir(name string) (dir, error) {
	if d == nil {
		return nil, nil
	}
	f, err := d.lookup(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return f.dir, nil // nil for a file, which holds nothing open
}

// enterMerged begins a directory that is below too.
func (c *changes) enterMerged(h handle, low dir, rel string) error {
	now, err := c.directoryHeader(h.fd, rel)
	if err != nil {
		return err
	}
	was, err := c.directoryHeader(low[0].fd, rel)
	if err != nil {
		return err
	}
	same := now.Mode == was.Mode && now.Uid == was.Uid && now.Gid == was.Gid && maps.Equal(now.PAXRecords, was.PAXRecords)
	if rel == "" && same {
		return nil // the root: it is in a layer only if it is another
	}
	c.waiting = append(c.waiting, now)
	if same {
		return nil
	}
	return c.flush()
}

// statted is a name of a directory with what stat says of it.
type statted struct {
	name string
	stat unix.Stat_t
}

// statDir lists a directory, sorted by name.
func statDir(h handle, rel string) ([]statted, error) {
	names, err := readDirents(h.fd)
	if err != nil {
		return nil, pathError("read", rel, err)
	}
	slices.SortFunc(names, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	list := make([]statted, 0, len(names))
	for _, n := range names {
		e := statted{name: n.name}
		if err := fstatat(h.fd, n.name, &e.stat); err != nil {
			return nil, pathError("read", join(rel, n.name), changed(err))
		}
		list = append(list, e)
	}
	return list, nil
}
