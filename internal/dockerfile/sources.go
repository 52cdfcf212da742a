package dockerfile

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Sources says what COPY and ADD take of a tree.
type Sources struct {
	Paths   []string // as written; wildcards match within one name
	Parents bool     // the directories that lead to a source go along
	Exclude []string // patterns, below each source
	// Owned keeps owners, xattrs and hard links: they are those of an image,
	// where a build context's are those of whoever checked it out.
	Owned bool
}

// errNoSource says that a source is not there. It is fs.ErrNotExist.
type errNoSource struct{ path, hint string }

func (e *errNoSource) Error() string { return fmt.Sprintf("source %s: not found%s", e.path, e.hint) }
func (e *errNoSource) Is(target error) bool {
	return target == fs.ErrNotExist
}

// writeSources writes the files that s names in from as a tar. The entries of
// the n-th source begin with "n/": a directory is "n/" and then what is in it, a
// file is "n/" and its name. Nothing is followed out of from; a source that is a
// symbolic link itself stands for what it leads to. What ignore excludes is not
// there. Devices, FIFOs and sockets are left out, and no time is told: the same
// files are the same bytes.
func writeSources(ctx context.Context, w io.Writer, from layer.Stack, ignore *patternmatcher.PatternMatcher, s Sources) error {
	t := &taker{ctx: ctx, tw: tar.NewWriter(w), from: from, ignore: ignore, owned: s.Owned, links: map[[2]uint64]string{}}
	var err error
	if t.exclude, err = matcher(s.Exclude); err != nil {
		return fmt.Errorf("--exclude: %w", err)
	}
	for _, p := range s.Paths {
		if s.Parents {
			err = t.withParents(p)
		} else {
			err = t.source(p)
		}
		if err != nil {
			return err
		}
	}
	return t.tw.Close()
}

// matcher is nil without patterns.
func matcher(patterns []string) (*patternmatcher.PatternMatcher, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	return patternmatcher.New(patterns)
}

// taker writes sources.
type taker struct {
	ctx     context.Context
	tw      *tar.Writer
	from    layer.Stack
	ignore  *patternmatcher.PatternMatcher // by path from the root
	exclude *patternmatcher.PatternMatcher // by path below the source
	include *patternmatcher.PatternMatcher // nil takes all
	owned   bool

	n       int                  // of the source
	waiting []*tar.Header        // directories that are written with the first file in them
	links   map[[2]uint64]string // device and inode to the first name, where there are several
}

// source takes a source of which only what is in it goes to the destination.
func (t *taker) source(p string) error {
	clean := strings.TrimPrefix(path.Join("/", p), "/")
	if !strings.ContainsAny(clean, `*?[\`) {
		return t.one(clean, p, true)
	}
	found, err := t.glob(clean)
	if err != nil {
		return fmt.Errorf("source %s: %w", p, err)
	}
	for _, f := range found {
		if err := t.one(f, p, false); err != nil {
			return err
		}
	}
	return nil
}

// one takes the file or directory at rel. One that must be there is an error
// if it is not.
func (t *taker) one(rel, said string, must bool) error {
	real, info, err := resolve(t.from, rel)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("source %s: %w", said, err)
	}
	ignored, ierr := t.ignored(real)
	if err == nil && ierr != nil {
		return ierr
	}
	if err != nil || ignored && !t.mayHold(info) {
		if !must {
			return nil
		}
		hint := ""
		if ignored {
			hint = " (.dockerignore excludes it)"
		}
		return &errNoSource{said, hint}
	}
	prefix := strconv.Itoa(t.n) + "/"
	if info.IsDir() {
		return t.whole(real, prefix, info)
	}
	t.waiting = nil
	base := path.Base(rel)
	if out, err := matches(t.exclude, base); out || err != nil {
		return err
	}
	t.n++
	return t.file(real, prefix+base, info)
}

// whole takes a directory as a source.
func (t *taker) whole(real, prefix string, info fs.FileInfo) error {
	t.n++
	t.waiting = nil
	if err := t.directory(real, prefix, info, true); err != nil {
		return err
	}
	return t.walk(real, "", prefix)
}

// mayHold tells whether a directory that is ignored may hold what is not.
func (t *taker) mayHold(info fs.FileInfo) bool {
	return info != nil && info.IsDir() && t.ignore != nil && t.ignore.Exclusions()
}

func (t *taker) ignored(rel string) (bool, error) {
	if rel == "" || rel == "." {
		return false, nil
	}
	return matches(t.ignore, rel)
}

func matches(m *patternmatcher.PatternMatcher, rel string) (bool, error) {
	if m == nil {
		return false, nil
	}
	return m.MatchesOrParentMatches(rel)
}

// withParents takes what matches p, with the directories that lead to it, from
// the pivot "/./" on if p has one.
func (t *taker) withParents(p string) error {
	top, pattern, pivot := strings.Cut(p, "/./")
	if !pivot {
		top, pattern = "/", p
	}
	top = strings.TrimPrefix(path.Join("/", top), "/")
	pattern = strings.TrimPrefix(path.Join("/", pattern), "/")
	if pattern == "" {
		pattern = "**"
	}
	if !strings.ContainsAny(top+pattern, `*?[\`) {
		if _, _, err := resolve(t.from, path.Join(top, pattern)); err != nil {
			return &errNoSource{path: p}
		}
	}
	tops := []string{top}
	if strings.ContainsAny(top, `*?[\`) {
		var err error
		if tops, err = t.glob(top); err != nil {
			return fmt.Errorf("source %s: %w", p, err)
		}
	}
	include, err := patternmatcher.New([]string{pattern})
	if err != nil {
		return fmt.Errorf("source %s: %w", p, err)
	}
	for _, top := range tops {
		real, info, err := resolve(t.from, top)
		if err != nil || !info.IsDir() {
			return &errNoSource{path: p}
		}
		t.include = include
		err = t.whole(real, strconv.Itoa(t.n)+"/", info)
		t.include = nil
		if err != nil {
			return err
		}
	}
	return nil
}

// walk takes what is in the directory dir, which is rel below its source.
func (t *taker) walk(dir, rel, prefix string) error {
	entries, err := t.from.ReadDir(orDot(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := t.entry(path.Join(dir, e.Name()), path.Join(rel, e.Name()), prefix, info); err != nil {
			return err
		}
	}
	return nil
}

func (t *taker) entry(full, sub, prefix string, info fs.FileInfo) error {
	ignored, err := t.ignored(full)
	if err != nil {
		return err
	}
	excluded, err := matches(t.exclude, sub)
	if err != nil {
		return err
	}
	taken := !ignored && !excluded
	if taken && t.include != nil {
		if taken, err = matches(t.include, sub); err != nil {
			return err
		}
	}
	if !info.IsDir() {
		if !taken {
			return nil
		}
		return t.file(full, prefix+sub, info)
	}
	if !taken && t.include == nil && !(ignored && t.ignore.Exclusions()) && !(excluded && t.exclude.Exclusions()) {
		return nil
	}
	if err := t.directory(full, prefix+sub+"/", info, taken); err != nil {
		return err
	}
	if err := t.walk(full, sub, prefix); err != nil {
		return err
	}
	t.waiting = t.waiting[:len(t.waiting)-1]
	return nil
}

// directory writes a directory, now or with the first file in it.
func (t *taker) directory(rel, name string, info fs.FileInfo, now bool) error {
	hdr, err := t.header(rel, name, info)
	if err != nil {
		return err
	}
	hdr.Typeflag = tar.TypeDir
	t.waiting = append(t.waiting, hdr)
	if !now {
		return nil
	}
	return t.flush()
}

func (t *taker) flush() error {
	for _, hdr := range t.waiting {
		if hdr.Name == "" {
			continue
		}
		if err := t.tw.WriteHeader(hdr); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
		hdr.Name = "" // written
	}
	return nil
}

func (t *taker) header(rel, name string, info fs.FileInfo) (*tar.Header, error) {
	st := info.Sys().(*unix.Stat_t)
	hdr := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), ModTime: layer.ModTime}
	if !t.owned {
		return hdr, nil
	}
	owner, records, err := t.from.Describe(orDot(rel))
	hdr.Uid, hdr.Gid, hdr.PAXRecords = owner.UID, owner.GID, records
	return hdr, err
}

// file writes anything but a directory.
func (t *taker) file(rel, name string, info fs.FileInfo) error {
	kind := info.Mode().Type()
	if kind != 0 && kind != fs.ModeSymlink {
		return nil
	}
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return fmt.Errorf("%s: in an image layer a name that starts with .wh. means that the rest of it is deleted: %w", rel, fs.ErrInvalid)
	}
	hdr, err := t.header(rel, name, info)
	if err != nil {
		return err
	}
	if err := t.flush(); err != nil {
		return err
	}
	if kind == fs.ModeSymlink {
		hdr.Typeflag = tar.TypeSymlink
		if hdr.Linkname, err = t.from.Readlink(rel); err != nil {
			return err
		}
		return t.tw.WriteHeader(hdr)
	}
	if st := info.Sys().(*unix.Stat_t); t.owned && st.Nlink > 1 {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := t.links[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.PAXRecords = tar.TypeLink, first, nil
			return t.tw.WriteHeader(hdr)
		}
		t.links[id] = name
	}
	return t.regular(rel, hdr)
}

func (t *taker) regular(rel string, hdr *tar.Header) error {
	f, err := t.from.Open(rel)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	hdr.Typeflag, hdr.Size = tar.TypeReg, fi.Size()
	if err := t.tw.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%s: %w", rel, err)
	}
	n, err := io.Copy(t.tw, &io.LimitedReader{R: &interruptible{t.ctx, f}, N: fi.Size()})
	if err == nil && n < fi.Size() {
		err = layer.ErrChanged
	}
	if err != nil {
		return fmt.Errorf("%s: %w", rel, err)
	}
	return nil
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

func orDot(rel string) string {
	if rel == "" {
		return "."
	}
	return rel
}

// maxHops bounds how many symbolic links a path may lead through, as the kernel
// does.
const maxHops = 40

// resolve finds the file that rel means in from, where symbolic links and ".."
// lead nowhere outside of it.
func resolve(from layer.Stack, rel string) (real string, info fs.FileInfo, err error) {
	todo := strings.Split(rel, "/")
	hops := 0
	if info, err = from.Lstat("."); err != nil {
		return "", nil, err
	}
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if real = path.Dir(real); real == "." {
				real = ""
			}
			if info, err = from.Lstat(orDot(real)); err != nil {
				return real, nil, err
			}
			continue
		}
		next := path.Join(real, part)
		if info, err = from.Lstat(next); err != nil {
			return next, nil, err
		}
		if info.Mode().Type() != fs.ModeSymlink {
			real = next
			continue
		}
		if hops++; hops > maxHops {
			return next, nil, &fs.PathError{Op: "resolve", Path: rel, Err: syscall.ELOOP}
		}
		target, err := from.Readlink(next)
		if err != nil {
			return next, nil, err
		}
		if strings.HasPrefix(target, "/") {
			real = ""
		}
		todo = slices.Concat(strings.Split(target, "/"), todo)
		if info, err = from.Lstat(orDot(real)); err != nil {
			return real, nil, err
		}
	}
	return real, info, nil
}

// maxMatches bounds what one pattern may stand for.
const maxMatches = 100_000

// glob lists what a pattern matches, sorted. Each part of it matches one name.
func (t *taker) glob(pattern string) ([]string, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, err
	}
	found := []string{""}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range found {
			names, err := t.matching(dir, part)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				next = append(next, path.Join(dir, name))
			}
			if len(next) > maxMatches {
				return nil, fmt.Errorf("matches more than %d files", maxMatches)
			}
		}
		found = next
	}
	slices.Sort(found)
	return found, nil
}

func (t *taker) matching(dir, part string) ([]string, error) {
	if !strings.ContainsAny(part, `*?[\`) {
		if _, err := t.from.Lstat(path.Join(dir, part)); err != nil && dir == "" {
			return nil, nil
		}
		return []string{part}, nil
	}
	real, info, err := resolve(t.from, dir)
	if err != nil || !info.IsDir() {
		return nil, nil
	}
	entries, err := t.from.ReadDir(orDot(real))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if ok, _ := path.Match(part, e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
