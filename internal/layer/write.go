package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteTree writes the reproducible tar of requirements 5.3: parents in their
// order, then the file or the directory tree that shows through at rel in src,
// under the absolute image path at. It returns how many bytes of file content
// it read.
//
// Every entry has ModTime, owner and no name of a user or group; directories
// have no trailing slash; a directory's entries come in lexical order, each
// followed by what is in it. Sockets are left out; hard links become files;
// xattrs and sparseness are not kept. A name that starts with ".wh." is
// refused. A file that changes meanwhile is an error that wraps ErrChanged.
func WriteTree(ctx context.Context, w io.Writer, src Stack, rel, at string, parents []Parent, owner Owner) (n int64, err error) {
	return writeTar(ctx, w, owner, func(t *tarWriter) error {
		if err := t.parents(parents); err != nil {
			return err
		}
		f, err := src.find(rel)
		if err != nil {
			return pathError("read", rel, err)
		}
		defer f.close()
		if isDir(&f.stat) {
			return t.tree(f, at)
		}
		return t.file(f.parent.fd, f.name, uint8(typeOf(&f.stat)>>12), at)
	})
}

// WriteSlice writes a slice layer: parents, then the named files of src with
// the directories that lead to them from the root of src, which is at in the
// image, all in the order of their full paths as strings. A directory stands
// for itself only. No paths give an empty tar, without parents.
func WriteSlice(ctx context.Context, w io.Writer, src Stack, at string, paths []string, parents []Parent, owner Owner) (n int64, err error) {
	return writeTar(ctx, w, owner, func(t *tarWriter) error {
		list, err := withAncestors(paths)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := t.parents(parents); err != nil {
			return err
		}
		return t.slice(src, at, list)
	})
}

// withAncestors returns the paths and all directories above them, sorted.
func withAncestors(paths []string) ([]string, error) {
	set := map[string]bool{}
	for _, path := range paths {
		parts, err := components(path)
		if err != nil {
			return nil, pathError("slice", path, err)
		}
		for path := strings.Join(parts, "/"); !set[path]; path, _ = split(path) {
			set[path] = true
		}
	}
	list := make([]string, 0, len(set))
	for path := range set {
		list = append(list, path)
	}
	slices.Sort(list)
	return list, nil
}

// WriteFiles writes a tar of files made in memory, in their order.
func WriteFiles(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		hdr := &tar.Header{
			Name: f.Path, Mode: int64(unixPerm(f.Mode)), ModTime: ModTime,
			Uid: f.Owner.UID, Gid: f.Owner.GID,
		}
		switch {
		case f.Mode.IsDir():
			hdr.Typeflag = tar.TypeDir
		case f.Link != "":
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, f.Link
		default:
			hdr.Typeflag, hdr.Size = tar.TypeReg, int64(len(f.Body))
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return fmt.Errorf("write %s to layer: %w", f.Path, err)
		}
		if hdr.Typeflag == tar.TypeReg {
			if _, err := tw.Write(f.Body); err != nil {
				return fmt.Errorf("write %s to layer: %w", f.Path, err)
			}
		}
	}
	return tw.Close()
}

// A tarWriter writes headers made by archive/tar and reads file contents
// straight into the buffers that go out.
type tarWriter struct {
	ctx   context.Context
	out   *outPipe
	owner Owner
	read  int64
	// adorn completes the header of the file base in dirfd; nil leaves it at owner.
	adorn func(hdr *tar.Header, dirfd int, base string, st *unix.Stat_t) error
}

// writeTar runs write with a tarWriter and ends the archive.
func writeTar(ctx context.Context, w io.Writer, owner Owner, write func(*tarWriter) error) (int64, error) {
	out := newOutPipe(w)
	t := &tarWriter{ctx: ctx, out: out, owner: owner}
	err := write(t)
	if err == nil {
		_, err = out.Write(make([]byte, 2*tarBlock))
	}
	// What w says is the cause of what write said.
	if werr := out.close(); werr != nil {
		err = fmt.Errorf("write layer: %w", werr)
	}
	return t.read, err
}

const tarBlock = 512

func (t *tarWriter) parents(parents []Parent) error {
	for _, p := range parents {
		hdr := &tar.Header{
			Typeflag: tar.TypeDir, Name: p.Path, Mode: int64(unixPerm(p.Mode)), ModTime: ModTime,
			Uid: p.Owner.UID, Gid: p.Owner.GID,
		}
		if err := t.header(hdr); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarWriter) header(hdr *tar.Header) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(hdr); err != nil {
		return fmt.Errorf("write %s to layer: %w", hdr.Name, err)
	}
	_, err := t.out.Write(b.Bytes())
	return err
}

// entryHeader is the header of a file of src.
func (t *tarWriter) entryHeader(st *unix.Stat_t, typeflag byte, name string) *tar.Header {
	return &tar.Header{
		Typeflag: typeflag, Name: name, Mode: int64(permBits(st)), ModTime: ModTime,
		Uid: t.owner.UID, Gid: t.owner.GID,
	}
}

// tree writes the directory f and all below it.
func (t *tarWriter) tree(f *found, name string) error {
	if err := t.header(t.entryHeader(&f.stat, tar.TypeDir, name)); err != nil {
		return err
	}
	entries, err := f.dir.list()
	if err != nil {
		return pathError("read", name, err)
	}
	for _, e := range entries {
		if err := t.child(f.dir, e, name+"/"+e.name); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarWriter) child(d dir, e entry, name string) error {
	if e.kind != unix.DT_DIR {
		return t.file(e.layer.fd, e.name, e.kind, name)
	}
	if err := checkName(e.name, name); err != nil {
		return err
	}
	f, err := d.lookup(e.name)
	if err != nil {
		return pathError("read", name, changed(err))
	}
	defer f.close()
	if !isDir(&f.stat) {
		return pathError("read", name, ErrChanged)
	}
	return t.tree(f, name)
}

// checkName refuses what a layer cannot hold.
func checkName(base, path string) error {
	if strings.HasPrefix(base, whiteoutPrefix) {
		return fmt.Errorf("%s: in an image layer a name that starts with %q means that the rest of it is deleted; "+
			"rename the file or exclude it: %w", path, whiteoutPrefix, fs.ErrInvalid)
	}
	return nil
}

// changed turns "no such file", said of something that was listed before, into ErrChanged.
func changed(err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP || err == fs.ErrNotExist {
		return fmt.Errorf("%w (%w)", ErrChanged, err)
	}
	return err
}

// file writes anything but a directory: base in the directory dirfd.
func (t *tarWriter) file(dirfd int, base string, kind uint8, name string) error {
	if err := checkName(base, name); err != nil {
		return err
	}
	switch kind {
	case unix.DT_REG:
		return t.regular(dirfd, base, name)
	case unix.DT_SOCK:
		return nil
	}
	var st unix.Stat_t
	if err := fstatat(dirfd, base, &st); err != nil {
		return pathError("read", name, changed(err))
	}
	hdr := t.entryHeader(&st, 0, name)
	if t.adorn != nil {
		if err := t.adorn(hdr, dirfd, base, &st); err != nil {
			return pathError("read", name, changed(err))
		}
	}
	switch typeOf(&st) {
	case unix.S_IFLNK:
		hdr.Typeflag = tar.TypeSymlink
		link, err := readlinkat(dirfd, base)
		if err != nil {
			return pathError("read", name, changed(err))
		}
		hdr.Linkname = link
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if typeOf(&st) == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return pathError("read", name, ErrChanged)
	}
	return t.header(hdr)
}

// regular writes a regular file: as many bytes as it had when it was opened,
// and an error if it has not as many, or was written to, when they are read.
func (t *tarWriter) regular(dirfd int, base, name string) error {
	fd, err := openReadable(dirfd, base, 0)
	if err != nil {
		return pathError("read", name, changed(err))
	}
	defer unix.Close(fd)
	var before, after unix.Stat_t
	if err := fstat(fd, &before); err != nil {
		return pathError("read", name, err)
	}
	if !isRegular(&before) {
		return pathError("read", name, ErrChanged)
	}
	hdr := t.entryHeader(&before, tar.TypeReg, name)
	hdr.Size = before.Size
	if t.adorn != nil {
		if err := t.adorn(hdr, dirfd, base, &before); err != nil {
			return pathError("read", name, changed(err))
		}
	}
	if err := t.header(hdr); err != nil {
		return err
	}
	if err := t.content(fd, before.Size); err != nil {
		return pathError("read", name, err)
	}
	if err := fstat(fd, &after); err != nil {
		return pathError("read", name, err)
	}
	if after.Size != before.Size || after.Mtim != before.Mtim {
		return pathError("read", name, ErrChanged)
	}
	t.read += before.Size
	_, err = t.out.Write(zeros[:-before.Size&(tarBlock-1)])
	return err
}

var zeros [tarBlock]byte

func (t *tarWriter) content(fd int, size int64) error {
	for size > 0 {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		space, err := t.out.space()
		if err != nil {
			return err
		}
		if int64(len(space)) > size {
			space = space[:size]
		}
		n, err := readFull(fd, space)
		t.out.advance(n)
		size -= int64(n)
		if err != nil {
			return err
		}
		if n < len(space) {
			return ErrChanged
		}
	}
	return nil
}

// slice writes the listed paths, each for itself. The directory of the last
// one stays open, since sorted paths share it mostly.
func (t *tarWriter) slice(src Stack, at string, list []string) error {
	var (
		parent *found
		opened string
	)
	defer func() {
		if parent != nil {
			parent.close()
		}
	}()
	for _, path := range list {
		up, base := split(path)
		if parent == nil || opened != up {
			f, err := src.find(up)
			if err != nil {
				return pathError("read", at+"/"+up, changed(err))
			}
			if parent != nil {
				parent.close()
			}
			parent, opened = f, up
		}
		var err error
		if base == "" {
			err = t.header(t.entryHeader(&parent.stat, tar.TypeDir, at))
		} else {
			err = t.sliceEntry(parent, base, at+"/"+path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tarWriter) sliceEntry(parent *found, base, name string) error {
	if !isDir(&parent.stat) {
		return pathError("read", name, ErrChanged)
	}
	f, err := parent.dir.lookup(base)
	if err != nil {
		return pathError("read", name, changed(err))
	}
	defer f.close()
	if !isDir(&f.stat) {
		return t.file(f.parent.fd, base, uint8(typeOf(&f.stat)>>12), name)
	}
	if err := checkName(base, name); err != nil {
		return err
	}
	return t.header(t.entryHeader(&f.stat, tar.TypeDir, name))
}
