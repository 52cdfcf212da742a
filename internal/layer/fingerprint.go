package layer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"time"

	"golang.org/x/sys/unix"
)

// Fingerprint hashes what stat says of the tree at dir: path, kind, mode, and
// for all but directories size, mtime, ctime, inode and device. No content is
// read. Equal fingerprints mean equal trees, but for changes that fall into
// one tick of the file system's clock: racy is true when something changed so
// lately that such a change could follow unseen, and then the fingerprint must
// not be remembered. Names for which skip is true are left out, directories
// with all that is in them; skip may be nil. What the caller may not read is an
// error, also where the caller could change that.
func Fingerprint(ctx context.Context, dir string, skip func(rel string, dir bool) bool) (sum string, racy bool, err error) {
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		return "", false, pathError("open", dir, err)
	}
	root := half{handle: h}
	defer root.handle.close()
	if skip == nil {
		skip = func(string, bool) bool { return false }
	}
	f := &fingerprinter{ctx: ctx, hash: sha256.New(), skip: skip, now: time.Now()}
	var st unix.Stat_t
	if err := fstat(h.fd, &st); err != nil {
		return "", false, pathError("stat", dir, err)
	}
	if closed(&st) {
		return "", false, pathError("open", dir, unix.EACCES)
	}
	f.add(".", &st)
	if err := f.walk(root, ""); err != nil {
		return "", false, err
	}
	return hex.EncodeToString(f.hash.Sum(nil)), f.racy, nil
}

type fingerprinter struct {
	ctx  context.Context
	hash hash.Hash
	skip func(string, bool) bool
	now  time.Time
	racy bool
	buf  []byte
}

func (f *fingerprinter) walk(h half, rel string) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	names, err := readDirents(h.fd)
	if err != nil {
		return pathError("read", rel, err)
	}
	entries := make([]entry, len(names))
	for i, n := range names {
		entries[i] = entry{name: n.name}
	}
	sortEntries(entries)
	for _, e := range entries {
		path := e.name
		if rel != "" {
			path = rel + "/" + e.name
		}
		if err := f.visit(h, e.name, path); err != nil {
			return err
		}
	}
	return nil
}

func (f *fingerprinter) visit(h half, name, path string) error {
	var st unix.Stat_t
	if err := fstatat(h.fd, name, &st); err != nil {
		return pathError("stat", path, changed(err))
	}
	if f.skip(path, isDir(&st)) {
		return nil
	}
	if closed(&st) {
		return pathError("open", path, unix.EACCES)
	}
	f.add(path, &st)
	if !isDir(&st) {
		return nil
	}
	child, err := openHandle(h.fd, name)
	if err != nil {
		return pathError("open", path, changed(err))
	}
	defer child.close()
	return f.walk(half{handle: child}, path)
}

// closed says whether the caller's own file forbids the caller to read it.
// Other functions here then loosen its mode for a moment. That would be seen in
// a tree that is somebody's work, and its owner has not allowed it.
func closed(st *unix.Stat_t) bool {
	uid := unix.Geteuid()
	if uid == 0 || int(st.Uid) != uid {
		return false // root may; of others' files the kernel says so
	}
	return isDir(st) && st.Mode&0o500 != 0o500 || isRegular(st) && st.Mode&0o400 == 0
}

// add hashes one file. A directory's own times and size say only that names
// came and went, which the walk sees, or that skipped ones did.
func (f *fingerprinter) add(path string, st *unix.Stat_t) {
	b := f.buf[:0]
	b = binary.AppendUvarint(b, uint64(len(path)))
	b = append(b, path...)
	b = binary.AppendUvarint(b, uint64(st.Mode))
	if !isDir(st) {
		for _, v := range []int64{
			st.Size, int64(st.Mtim.Sec), int64(st.Mtim.Nsec), int64(st.Ctim.Sec), int64(st.Ctim.Nsec),
			int64(st.Ino), int64(st.Dev),
		} {
			b = binary.AppendVarint(b, v)
		}
		f.racy = f.racy || f.fresh(st.Ctim)
	}
	f.hash.Write(b)
	f.buf = b
}

// A write changes ctime, which nobody can set. Kernels stamp it from a clock
// that ticks every 1 to 10 ms; file systems without fractions of a second (and
// FAT, every two) show as a stamp of a whole second.
const (
	fineTick   = 20 * time.Millisecond
	coarseTick = 2 * time.Second
)

// fresh tells whether another change at this very moment could get the same
// ctime, or whether the clock went back since.
func (f *fingerprinter) fresh(ctime unix.Timespec) bool {
	tick := fineTick
	if ctime.Nsec == 0 {
		tick = coarseTick
	}
	return !time.Unix(ctime.Unix()).Add(tick).Before(f.now)
}
