package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stack is the merged view of an overlay, computed without mounting it. Upper
// may hold overlay whiteouts (character devices 0:0) and directories marked
// opaque; so may every lower. Lowers are topmost first. A plain directory is
// Stack{Upper: dir}.
//
// Paths (rel) are relative, slash-separated, "." for the root. No method
// follows a symlink in any component of rel, blocks on a FIFO, or needs read
// permission on what the caller owns. What it shows follows the kernel's rules
// for an overlay mounted with userxattr; as there, an opaque mark on the root
// of a layer has no effect.
type Stack struct {
	Upper  string
	Lowers []string
}

// Lstat describes the file that shows through at rel. Its Sys is a
// *unix.Stat_t. It fails with fs.ErrNotExist when nothing does.
func (s Stack) Lstat(rel string) (fs.FileInfo, error) {
	f, err := s.find(rel)
	if err != nil {
		return nil, pathError("lstat", rel, err)
	}
	defer f.close()
	return &info{name: filepath.Base(filepath.Clean(rel)), stat: f.stat}, nil
}

// ReadDir lists the merged directory at rel, sorted by name, whiteouts left out.
func (s Stack) ReadDir(rel string) ([]fs.DirEntry, error) {
	f, err := s.find(rel)
	if err != nil {
		return nil, pathError("readdir", rel, err)
	}
	defer f.close()
	if !isDir(&f.stat) {
		return nil, pathError("readdir", rel, unix.ENOTDIR)
	}
	entries, err := f.dir.list()
	if err != nil {
		return nil, pathError("readdir", rel, err)
	}
	list := make([]fs.DirEntry, 0, len(entries))
	for _, e := range entries {
		var st unix.Stat_t
		if err := fstatat(e.layer.fd, e.name, &st); err != nil {
			return nil, pathError("readdir", filepath.Join(rel, e.name), err)
		}
		list = append(list, fs.FileInfoToDirEntry(&info{name: e.name, stat: st}))
	}
	return list, nil
}

// Open opens the regular file or directory at rel for reading. For a
// directory that is one layer's half of it only: list it with ReadDir.
func (s Stack) Open(rel string) (*os.File, error) {
	f, err := s.find(rel)
	if err != nil {
		return nil, pathError("open", rel, err)
	}
	defer f.close()
	if !isDir(&f.stat) && !isRegular(&f.stat) {
		return nil, pathError("open", rel, fmt.Errorf("is a %s, not a regular file", kindName(&f.stat)))
	}
	fd, err := f.open()
	if err != nil {
		return nil, pathError("open", rel, err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, pathError("open", rel, err)
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// ReadFile returns the content of the regular file at rel. A file of more than
// limit bytes is an error that wraps ErrLimit.
func (s Stack) ReadFile(rel string, limit int64) ([]byte, error) {
	f, err := s.Open(rel)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rel, err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes: %w", rel, limit, ErrLimit)
	}
	return body, nil
}

// Readlink returns the target of the symlink at rel, verbatim.
func (s Stack) Readlink(rel string) (string, error) {
	f, err := s.find(rel)
	if err != nil {
		return "", pathError("readlink", rel, err)
	}
	defer f.close()
	if typeOf(&f.stat) != unix.S_IFLNK {
		return "", pathError("readlink", rel, unix.EINVAL)
	}
	link, err := readlinkat(f.parent.fd, f.name)
	return link, pathError("readlink", rel, err)
}

// Touched tells whether anything in Upper changes what shows through at or
// below rel: a file, directory or whiteout at rel, or an ancestor that Upper
// removed, replaced or made opaque. A directory that Upper only holds because
// something beside rel was written does not touch rel.
func (s Stack) Touched(rel string) (bool, error) {
	if s.Upper == "" {
		return false, nil
	}
	h, err := openHandle(unix.AT_FDCWD, s.Upper)
	if err != nil {
		return false, pathError("touched", s.Upper, err)
	}
	defer func() { h.close() }()
	parts, err := components(rel)
	if err != nil {
		return false, pathError("touched", rel, err)
	}
	if len(parts) == 0 {
		entries, err := readDirents(h.fd)
		return len(entries) > 0, pathError("touched", rel, err)
	}
	for i, name := range parts {
		var st unix.Stat_t
		switch err := fstatat(h.fd, name, &st); {
		case err == unix.ENOENT:
			return false, nil
		case err != nil:
			return false, pathError("touched", rel, err)
		}
		if i == len(parts)-1 || !isDir(&st) {
			return true, nil
		}
		next, err := openHandle(h.fd, name)
		if err != nil {
			return false, pathError("touched", rel, err)
		}
		h.close()
		h = next
		if opaque, err := h.opaque(); opaque || err != nil {
			return opaque, pathError("touched", rel, err)
		}
	}
	return false, nil
}

// Path returns the host path of the file that shows through at rel; for a
// merged directory, of its topmost half. The path is for display and for
// handing whole trees to the store: it may name something else by the time it
// is used.
func (s Stack) Path(rel string) (string, error) {
	f, err := s.find(rel)
	if err != nil {
		return "", pathError("path", rel, err)
	}
	defer f.close()
	return filepath.Join(s.layers()[f.depth], filepath.FromSlash(rel)), nil
}

// Sub is the directory at rel as a Stack of its own, of the halves that
// contribute to it: what a layer deleted, replaced or made opaque on the way
// stays hidden. Upper is empty where it has no half.
func (s Stack) Sub(rel string) (Stack, error) {
	f, err := s.find(rel)
	if err != nil {
		return Stack{}, pathError("sub", rel, err)
	}
	defer f.close()
	if !isDir(&f.stat) {
		return Stack{}, pathError("sub", rel, unix.ENOTDIR)
	}
	var sub Stack
	for _, h := range f.dir {
		half := filepath.Join(s.layers()[h.depth], filepath.FromSlash(rel))
		if s.Upper != "" && h.depth == 0 {
			sub.Upper = half
			continue
		}
		sub.Lowers = append(sub.Lowers, half)
	}
	return sub, nil
}

func (s Stack) layers() []string {
	if s.Upper == "" {
		return s.Lowers
	}
	return append([]string{s.Upper}, s.Lowers...)
}

// Opaque tells whether dir is marked as hiding the directories below it. The
// kernel ignores the mark on the root of an overlay layer; who mounts a stack
// of layers leaves out those below such a root.
func Opaque(dir string) (bool, error) {
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		return false, pathError("opaque", dir, err)
	}
	defer h.close()
	opaque, err := h.opaque()
	return opaque, pathError("opaque", dir, err)
}

// components splits rel, refusing what could lead outside.
func components(rel string) ([]string, error) {
	if strings.ContainsRune(rel, 0) || strings.HasPrefix(rel, "/") {
		return nil, fs.ErrInvalid
	}
	var parts []string
	for part := range strings.SplitSeq(rel, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, fs.ErrInvalid
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// A found is one resolved file of a Stack. For a directory dir holds its
// halves; for anything else parent and name say how to open it.
type found struct {
	stat   unix.Stat_t
	depth  int // index of the layer it comes from
	name   string
	parent handle
	owned  dir // handles to close when dir is not among them
	dir    dir
}

func (f *found) close() {
	f.dir.close()
	f.owned.close()
}

func (f *found) open() (int, error) {
	if isDir(&f.stat) {
		return openat(f.dir[0].fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	}
	fd, err := openReadable(f.parent.fd, f.name, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil || !isRegular(&st) {
		unix.Close(fd)
		return -1, errors.Join(ErrChanged, err)
	}
	return fd, nil
}

func (s Stack) find(rel string) (*found, error) {
	parts, err := components(rel)
	if err != nil {
		return nil, err
	}
	current, err := s.root()
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		f := &found{dir: current, depth: current[0].depth}
		if err := fstat(current[0].fd, &f.stat); err != nil {
			current.close()
			return nil, err
		}
		return f, nil
	}
	for i, name := range parts {
		child, err := current.lookup(name)
		if err != nil {
			current.close()
			return nil, err
		}
		last := i == len(parts)-1
		if !isDir(&child.stat) {
			if !last {
				current.close()
				if typeOf(&child.stat) == unix.S_IFLNK {
					return nil, fmt.Errorf("%s is a symlink, which is not followed: %w", name, unix.ELOOP)
				}
				return nil, unix.ENOTDIR
			}
			child.owned = current
			return child, nil
		}
		current.close()
		if last {
			return child, nil
		}
		current = child.dir
	}
	return nil, fs.ErrNotExist // not reached: parts is not empty
}

// dir is a merged directory: the halves that contribute to it, topmost first.
// It is never empty.
type dir []half

type half struct {
	handle
	depth int // index of the layer
}

func (d dir) close() {
	for _, h := range d {
		h.handle.close()
	}
}

// root opens the layers. A lower that is missing is an error, as for mount(2).
func (s Stack) root() (dir, error) {
	var d dir
	for i, path := range s.layers() {
		h, err := openHandle(unix.AT_FDCWD, path)
		if err != nil {
			d.close()
			return nil, pathError("open", path, err)
		}
		d = append(d, half{h, i})
	}
	if len(d) == 0 {
		return nil, fs.ErrNotExist
	}
	return d, nil
}

// lookup finds name in the merged directory. A directory is opened in every
// half that contributes to it.
func (d dir) lookup(name string) (*found, error) {
	f := &found{name: name}
	for i, h := range d {
		var st unix.Stat_t
		err := fstatat(h.fd, name, &st)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			f.dir.close()
			return nil, err
		}
		if !isDir(&st) {
			if len(f.dir) > 0 || isWhiteout(&st) {
				break
			}
			f.stat, f.depth, f.parent = st, h.depth, h.handle
			return f, nil
		}
		stop, err := f.merge(h, st, i == len(d)-1)
		if err != nil {
			f.dir.close()
			return nil, err
		}
		if stop {
			break
		}
	}
	if len(f.dir) == 0 {
		return nil, fs.ErrNotExist
	}
	return f, nil
}

// merge adds the half of directory f that is in h; it tells whether nothing
// below it shows through.
func (f *found) merge(h half, st unix.Stat_t, lowest bool) (stop bool, err error) {
	child, err := openHandle(h.fd, f.name)
	if err != nil {
		return false, err
	}
	if len(f.dir) == 0 {
		f.stat, f.depth = st, h.depth
	}
	f.dir = append(f.dir, half{child, h.depth})
	if lowest {
		return true, nil
	}
	return child.opaque()
}

// entry is a name of a merged directory and the half it shows through from.
type entry struct {
	name  string
	kind  uint8 // DT_*; never DT_UNKNOWN
	layer half
}

// list returns the names of the merged directory, sorted.
func (d dir) list() ([]entry, error) {
	if len(d) == 1 {
		return d[0].list()
	}
	seen := map[string]bool{}
	var all []entry
	for _, h := range d {
		names, err := readDirents(h.fd)
		if err != nil {
			return nil, err
		}
		for _, e := range names {
			if seen[e.name] {
				continue
			}
			seen[e.name] = true
			kept, err := h.classify(&e)
			if err != nil {
				return nil, err
			}
			if kept {
				all = append(all, entry{e.name, e.kind, h})
			}
		}
	}
	sortEntries(all)
	return all, nil
}

func (h half) list() ([]entry, error) {
	names, err := readDirents(h.fd)
	if err != nil {
		return nil, err
	}
	all := make([]entry, 0, len(names))
	for _, e := range names {
		kept, err := h.classify(&e)
		if err != nil {
			return nil, err
		}
		if kept {
			all = append(all, entry{e.name, e.kind, h})
		}
	}
	sortEntries(all)
	return all, nil
}

// classify fills in the kind where the file system does not say it and tells
// whether the entry is anything but a whiteout.
func (h half) classify(e *dirent) (bool, error) {
	if e.kind != unix.DT_UNKNOWN && e.kind != unix.DT_CHR {
		return true, nil
	}
	var st unix.Stat_t
	if err := fstatat(h.fd, e.name, &st); err != nil {
		return false, pathError("lstat", e.name, err)
	}
	e.kind = uint8(typeOf(&st) >> 12) // the kernel's own mapping of S_IF to DT_
	return !isWhiteout(&st), nil
}

func sortEntries(list []entry) {
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.name, b.name) })
}

func kindName(st *unix.Stat_t) string {
	switch typeOf(st) {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// info is the fs.FileInfo of one file.
type info struct {
	name string
	stat unix.Stat_t
}

func (i *info) Name() string       { return i.name }
func (i *info) Size() int64        { return i.stat.Size }
func (i *info) Mode() fs.FileMode  { return fileMode(i.stat.Mode) }
func (i *info) ModTime() time.Time { return mtimeOf(&i.stat) }
func (i *info) IsDir() bool        { return isDir(&i.stat) }
func (i *info) Sys() any           { return &i.stat }
