package store

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
)

// trees looks at the marks of all trees, and with full compares those that are
// in use with their layers.
func (c *checker) trees(ctx context.Context) error {
	s := c.store
	entries, err := os.ReadDir(s.path("trees"))
	if err != nil {
		return err
	}
	const fix = "nothing: it is unpacked again when it is needed"
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		what := "tree " + e.Name()
		if len(e.Name()) != 64 || !isHex(e.Name()) {
			c.problem(what, fmt.Errorf("%w: not the name of a tree", ErrDamaged), "remove it")
			continue
		}
		m, err := s.readMark(e.Name())
		if err != nil || !s.trusted(m) {
			// As if it were not there: from before the last start of the
			// machine, when its mark need not have reached the disk.
			continue
		}
		c.report.Trees++
		if !c.full {
			continue
		}
		if err := c.tree(ctx, e.Name()); err != nil {
			c.problem(what, err, fix)
			// Whoever has it mounted keeps it; nobody will mount it again.
			if err := os.Remove(filepath.Join(s.treePath(e.Name()), markFile)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tree compares a tree with the tar it came from: every file that the tar has
// last said something of is there with those bytes.
func (c *checker) tree(ctx context.Context, hex string) error {
	s := c.store
	desc, err := s.findLayer("sha256:" + hex)
	if errors.Is(err, image.ErrNotFound) {
		return nil // nothing to compare with; GC will take it
	}
	if err != nil {
		return err
	}
	diffID := desc.Digest
	diffID.Hex = hex
	rc, err := s.layer(ctx, desc, diffID).Uncompressed()
	if err != nil {
		return nil // the blob's problem, told as such
	}
	defer rc.Close()
	root, err := os.Open(filepath.Join(s.treePath(hex), "fs"))
	if err != nil {
		return err
	}
	defer root.Close()
	wrong := map[string]error{} // by path; a later entry of the same path decides
	for tr := layer.NewReader(ctx, rc, layer.Limits{}); ; {
		hdr, err := tr.Next()
		if err != nil {
			break // EOF, or the blob's problem
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		if err := compareEntry(root, name, hdr, tr); err != nil {
			wrong[name] = err
		} else {
			delete(wrong, name)
		}
		c.report.Read += hdr.Size
	}
	names := make([]string, 0, len(wrong))
	for name := range wrong {
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("%d files are %w, the first: %s: %w", len(names), ErrDamaged, names[0], wrong[names[0]])
}

// compareEntry compares one entry of a layer with what was unpacked.
func compareEntry(root *os.File, name string, hdr *tar.Header, body io.Reader) error {
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return nil
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	switch hdr.Typeflag {
	case tar.TypeReg:
		how.Flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	case tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	default:
		return nil // devices are not unpacked
	}
	fd, err := openIn(root, name, &how)
	if err != nil {
		if errors.Is(err, unix.EACCES) {
			return nil // a file that even its owner may not read
		}
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	switch hdr.Typeflag {
	case tar.TypeReg:
		return compareBytes(f, body, hdr.Size)
	case tar.TypeSymlink:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err == nil && string(buf[:n]) != hdr.Linkname {
			err = fmt.Errorf("links to %q, not %q", buf[:n], hdr.Linkname)
		}
		return err
	case tar.TypeDir:
		fi, err := f.Stat()
		if err == nil && !fi.IsDir() {
			err = errors.New("is not a directory")
		}
		return err
	}
	return nil
}

// openIn is openat2, which gives EAGAIN when something was renamed meanwhile.
func openIn(root *os.File, name string, how *unix.OpenHow) (int, error) {
	if name == "" {
		name = "."
	}
	for range 100 {
		fd, err := unix.Openat2(int(root.Fd()), name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

func compareBytes(f *os.File, body io.Reader, size int64) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("is %s of %d bytes, not a file of %d", fi.Mode(), fi.Size(), size)
	}
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(body, a)
		m, err2 := io.ReadFull(f, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			return errors.New("has other bytes")
		}
		if err != nil || err2 != nil {
			return nil // both at their end, since their sizes are equal
		}
	}
}
