package layer

import (
	"context"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Scan is what stat says of every file of a tree at one time. It is for trees
// that are changed in place, where no overlay keeps the changes apart.
type Scan struct {
	dir  string
	skip func(rel string) bool
	root *scanned
}

// scanned is a file as it was.
type scanned struct {
	mode           uint32
	uid, gid       uint32
	size           int64
	mtime, ctime   unix.Timespec
	ino, dev, rdev uint64
	xattrs         map[string]string   // of directories: their times change with what is in them
	children       map[string]*scanned // of directories
}

// NewScan looks at the tree at dir. Names for which skip is true are left out,
// with all below them, here and in WriteChanges: what belongs to somebody else,
// such as mounts. NewScan waits until no change that comes after it can go
// unseen: at most some milliseconds, two seconds where time stamps are coarse.
func NewScan(ctx context.Context, dir string, skip func(rel string) bool) (*Scan, error) {
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		return nil, pathError("open", dir, err)
	}
	defer h.close()
	s := &Scan{dir: dir, skip: skip}
	w := scanner{ctx: ctx, skip: skip, now: time.Now()}
	if s.root, err = w.directory(h, ""); err != nil {
		return nil, err
	}
	return s, w.settle()
}

// WriteChanges writes the layer of what changed in the tree since the Scan was
// made, as WriteDiff does for an overlay, and returns a new Scan. What changed
// gets ModTime on disk too, as it would have from the layer: then what runs
// next sees the same, whether the change was made or unpacked. A file whose
// content and mode are what they were but that was touched is a change.
func (s *Scan) WriteChanges(ctx context.Context, w io.Writer) (next *Scan, entries int, err error) {
	h, err := openHandle(unix.AT_FDCWD, s.dir)
	if err != nil {
		return nil, 0, pathError("open", s.dir, err)
	}
	defer h.close()
	next = &Scan{dir: s.dir, skip: s.skip}
	look := scanner{ctx: ctx, skip: s.skip, now: time.Now(), linked: map[fileID][]*scanned{}}
	_, err = writeTar(ctx, w, Owner{}, func(t *tarWriter) error {
		c := newChanges(t)
		defer func() { entries = c.entries }()
		var err error
		next.root, err = look.changes(c, h, s.root, "")
		return err
	})
	if err != nil {
		return nil, entries, err
	}
	return next, entries, look.settle()
}

// RemoveNew removes what is at or below rel and was not when the Scan was made.
func (s *Scan) RemoveNew(ctx context.Context, rel string) error {
	parts, err := components(rel)
	if err != nil {
		return pathError("remove", rel, err)
	}
	h, err := openHandle(unix.AT_FDCWD, s.dir)
	if err != nil {
		return pathError("open", s.dir, err)
	}
	before := s.root
	for i, name := range parts {
		if before = before.child(name); before == nil || before.children == nil {
			h.close()
			return Remove(filepath.Join(s.dir, strings.Join(parts[:i+1], "/")))
		}
		next, err := openHandle(h.fd, name)
		h.close()
		if err != nil {
			return pathError("open", rel, err)
		}
		h = next
	}
	defer h.close()
	return s.removeNew(ctx, h, before, strings.Join(parts, "/"))
}

func (s *Scan) removeNew(ctx context.Context, h handle, before *scanned, rel string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := statDir(h, rel)
	if err != nil {
		return err
	}
	for _, e := range list {
		path := join(rel, e.name)
		if s.skip != nil && s.skip(path) {
			continue
		}
		was := before.child(e.name)
		if was == nil {
			if err := removeTree(h.fd, e.name, &e.stat, pruner{}); err != nil {
				return pathError("remove", path, err)
			}
			continue
		}
		if !isDir(&e.stat) || was.children == nil {
			continue
		}
		child, err := openHandle(h.fd, e.name)
		if err != nil {
			return pathError("open", path, err)
		}
		err = s.removeNew(ctx, child, was, path)
		child.close()
		if err != nil {
			return err
		}
	}
	return nil
}

type scanner struct {
	ctx   context.Context
	skip  func(rel string) bool
	now   time.Time
	fresh time.Time // the latest change of which a second one could have the time stamp
	// linked are the names, as recorded, of changed files that have several.
	linked map[fileID][]*scanned
}

// settle waits until the next change gets a time stamp of its own.
func (w *scanner) settle() error {
	if w.fresh.IsZero() {
		return nil
	}
	timer := time.NewTimer(time.Until(w.fresh))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// record remembers a file, open as dirfd/base.
func (w *scanner) record(dirfd int, base string, st *unix.Stat_t) (*scanned, error) {
	s := &scanned{
		mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, mtime: st.Mtim, ctime: st.Ctim,
		ino: st.Ino, dev: uint64(st.Dev), rdev: uint64(st.Rdev),
	}
	tick := fineTick
	if st.Ctim.Nsec == 0 {
		tick = coarseTick
	}
	if until := time.Unix(st.Ctim.Unix()).Add(tick); until.After(w.now) && until.After(w.fresh) && until.Before(w.now.Add(2*coarseTick)) {
		w.fresh = until
	}
	if !isDir(st) {
		return s, nil
	}
	var err error
	s.xattrs, err = xattrRecords(dirfd, base, st)
	s.children = map[string]*scanned{}
	return s, err
}

// visible lists a directory without what is skipped, and without what went
// while it was listed.
func (w *scanner) visible(h handle, rel string) ([]statted, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	all, err := statDir(h, rel)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e statted) bool {
		return typeOf(&e.stat) == unix.S_IFSOCK || w.skip != nil && w.skip(join(rel, e.name))
	}), nil
}

func (w *scanner) directory(h handle, rel string) (*scanned, error) {
	var st unix.Stat_t
	if err := fstat(h.fd, &st); err != nil {
		return nil, pathError("read", rel, err)
	}
	s, err := w.record(h.fd, ".", &st)
	if err != nil {
		return nil, pathError("read", rel, err)
	}
	list, err := w.visible(h, rel)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if isDir(&e.stat) {
			s.children[e.name], err = w.subdirectory(h, e.name, join(rel, e.name))
		} else {
			s.children[e.name], err = w.record(h.fd, e.name, &e.stat)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (w *scanner) subdirectory(h handle, name, rel string) (*scanned, error) {
	child, err := openHandle(h.fd, name)
	if err != nil {
		return nil, pathError("read", rel, changed(err))
	}
	defer child.close()
	return w.directory(child, rel)
}

// changes writes what the directory at h has become since it was before, which
// is nil for a new one, and returns what it is.
func (w *scanner) changes(c *changes, h handle, before *scanned, rel string) (now *scanned, err error) {
	var st unix.Stat_t
	if err := fstat(h.fd, &st); err != nil {
		return nil, pathError("read", rel, err)
	}
	if now, err = w.record(h.fd, ".", &st); err != nil {
		return nil, pathError("read", rel, err)
	}
	same := before != nil && now.mode == before.mode && now.uid == before.uid && now.gid == before.gid && maps.Equal(now.xattrs, before.xattrs)
	if rel != "" || !same {
		if err := c.enter(h.fd, rel, !same); err != nil {
			return nil, err
		}
		defer func() {
			if c.leave() && err == nil {
				err = pathError("set time of", rel, setTime(unix.AT_FDCWD, procPath(h.fd)))
			}
		}()
	}
	list, err := w.visible(h, rel)
	if err != nil {
		return nil, err
	}
	if err := c.gone(rel, before.goneFrom(list)); err != nil {
		return nil, err
	}
	for _, e := range list {
		if now.children[e.name], err = w.child(c, h, before.child(e.name), e, join(rel, e.name)); err != nil {
			return nil, err
		}
	}
	return now, nil
}

func (w *scanner) child(c *changes, h handle, before *scanned, e statted, rel string) (*scanned, error) {
	if isDir(&e.stat) {
		if err := checkName(e.name, rel); err != nil {
			return nil, err
		}
		if before != nil && before.children == nil {
			before = nil // something else took the directory's place
		}
		child, err := openHandle(h.fd, e.name)
		if err != nil {
			return nil, pathError("read", rel, changed(err))
		}
		defer child.close()
		return w.changes(c, child, before, rel)
	}
	now, err := w.record(h.fd, e.name, &e.stat)
	if err != nil || before.same(now) {
		return now, err
	}
	if err := c.put(h.fd, e.name, rel, &e.stat); err != nil {
		return nil, err
	}
	if err := setTime(h.fd, e.name); err != nil {
		return nil, pathError("set time of", rel, err)
	}
	if err := fstatat(h.fd, e.name, &e.stat); err != nil {
		return nil, pathError("read", rel, changed(err))
	}
	if now, err = w.record(h.fd, e.name, &e.stat); err != nil {
		return nil, err
	}
	if e.stat.Nlink > 1 {
		w.relink(now, &e.stat)
	}
	return now, nil
}

// relink records another name of a changed file. Its time is set by each of its
// names, and shows under all.
func (w *scanner) relink(now *scanned, st *unix.Stat_t) {
	id := idOf(st)
	for _, other := range w.linked[id] {
		other.mtime, other.ctime = now.mtime, now.ctime
	}
	w.linked[id] = append(w.linked[id], now)
}

// same tells whether a file that is no directory is what it was.
func (s *scanned) same(now *scanned) bool {
	return s != nil && s.children == nil && s.mode == now.mode && s.uid == now.uid && s.gid == now.gid && s.size == now.size &&
		s.mtime == now.mtime && s.ctime == now.ctime && s.ino == now.ino && s.dev == now.dev && s.rdev == now.rdev
}

func (s *scanned) child(name string) *scanned {
	if s == nil {
		return nil
	}
	return s.children[name]
}

// goneFrom lists the names that are not in list any more.
func (s *scanned) goneFrom(list []statted) []string {
	if s == nil {
		return nil
	}
	var gone []string
	for name := range s.children {
		_, found := slices.BinarySearchFunc(list, name, func(e statted, name string) int {
			switch {
			case e.name < name:
				return -1
			case e.name > name:
				return 1
			}
			return 0
		})
		if !found {
			gone = append(gone, name)
		}
	}
	return gone
}
