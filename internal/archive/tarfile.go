package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	oci "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/spec"
)

// tarBlock is the unit of a tar file, in bytes.
const tarBlock = 512

// tarWriter writes entries whose size is known only after they were written.
// Everything but name, type and size is fixed.
type tarWriter struct {
	f   *os.File
	off int64
}

// header makes the one block that begins an entry. GNU's form has room for any
// size in it.
func header(name string, typeflag byte, mode, size int64) ([]byte, error) {
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{
		Typeflag: typeflag, Name: name, Mode: mode, Size: size,
		ModTime: time.Unix(0, 0), Format: tar.FormatGNU,
	})
	if err == nil && b.Len() != tarBlock {
		err = fmt.Errorf("%s: the name is too long", name)
	}
	return b.Bytes(), err
}

func (w *tarWriter) dir(name string) error {
	b, err := header(name, tar.TypeDir, 0o755, 0)
	if err != nil {
		return err
	}
	return w.write(b)
}

func (w *tarWriter) write(b []byte) error {
	n, err := w.f.WriteAt(b, w.off)
	w.off += int64(n)
	return err
}

// file has fill write the content, then puts the header before it.
func (w *tarWriter) file(name string, fill func(io.Writer) error) error {
	at := w.off
	w.off += tarBlock
	if _, err := w.f.Seek(w.off, io.SeekStart); err != nil {
		return err
	}
	if err := fill(w.f); err != nil {
		return err
	}
	end, err := w.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	b, err := header(name, tar.TypeReg, 0o644, end-w.off)
	if err != nil {
		return err
	}
	if _, err := w.f.WriteAt(b, at); err != nil {
		return err
	}
	w.off = end
	return w.write(make([]byte, -end&(tarBlock-1)))
}

func (w *tarWriter) bytes(name string, b []byte) error {
	return w.file(name, func(out io.Writer) error {
		_, err := out.Write(b)
		return err
	})
}

func (w *tarWriter) close() error { return w.write(make([]byte, 2*tarBlock)) }

// tarIndex says where the files of a tar file are. Reading opens the tar file
// anew, so nothing has to be closed.
type tarIndex struct {
	path  string
	files map[string]tarEntry
}

type tarEntry struct {
	off, size int64
	link      string // of a symbolic link
}

// maxEntries bounds the memory that a tar file from outside can ask for. One
// of an image has three entries for each layer at most, and a few more.
const maxEntries = 10000

// maxTarName bounds a name or a link in it, in bytes; those in use have 100.
const maxTarName = 4096

// openTar waits for nobody to write to a pipe.
func openTar(file string) (*os.File, error) {
	return os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

func indexTar(ctx context.Context, file string) (*tarIndex, error) {
	f, err := openTar(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err == nil && isCompressed(magic[:]) {
		return nil, spec.WithHint(errors.New("the tar file is compressed"), "decompress it first: gunzip or unzstd")
	}
	x := &tarIndex{path: file, files: map[string]tarEntry{}}
	for r := tar.NewReader(f); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if err == io.EOF {
			return x, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read tar: %w", err)
		}
		if len(h.Name) > maxTarName || len(h.Linkname) > maxTarName {
			return nil, fmt.Errorf("read tar: a name of more than %d bytes: %.100q", maxTarName, h.Name)
		}
		if isSparse(h) {
			return nil, fmt.Errorf("read tar: %q is a sparse file", h.Name)
		}
		off, err := f.Seek(0, io.SeekCurrent) // the reader does not read ahead
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeReg:
			x.files[name] = tarEntry{off: off, size: h.Size}
		case tar.TypeSymlink:
			x.files[name] = tarEntry{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			x.files[name] = tarEntry{link: path.Clean(strings.TrimPrefix(h.Linkname, "/"))}
		}
		if len(x.files) > maxEntries {
			return nil, fmt.Errorf("read tar: more than %d files in it", maxEntries)
		}
	}
}

// isSparse tells whether the bytes of an entry are other ones than its file's.
func isSparse(h *tar.Header) bool {
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func isCompressed(magic []byte) bool {
	return bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) || bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// lookup follows the links that docker save makes for layers that repeat.
func (x *tarIndex) lookup(name string) (tarEntry, error) {
	name = path.Clean(name)
	for range 10 {
		e, ok := x.files[name]
		if !ok {
			return tarEntry{}, fmt.Errorf("%s: %w in %s", name, fs.ErrNotExist, x.path)
		}
		if e.link == "" {
			return e, nil
		}
		name = e.link
	}
	return tarEntry{}, fmt.Errorf("%s: too many links", name)
}

// open implements opener.
func (x *tarIndex) open(name string) (io.ReadCloser, int64, error) {
	e, err := x.lookup(name)
	if err != nil {
		return nil, 0, err
	}
	f, err := openTar(x.path)
	if err != nil {
		return nil, 0, err
	}
	return section{io.NewSectionReader(f, e.off, e.size), f}, e.size, nil
}

type section struct {
	io.Reader
	io.Closer
}

// Image opens the image of that reference.
func (a OCIArchive) Image(ctx context.Context, ref string) (v1.Image, error) {
	x, err := indexTar(ctx, a.Path)
	var img v1.Image
	if err == nil {
		img, err = openLayout(x.open, ref)
	}
	if err != nil {
		return nil, fmt.Errorf("read image %q from OCI archive %s: %w", ref, a.Path, notThere(a.Path, err))
	}
	return img, nil
}

// Write replaces the file with one that holds img, under ref unless that is "".
func (a OCIArchive) Write(ctx context.Context, ref string, img v1.Image) error {
	err := writeFile(a.Path, func(f *os.File) error { return writeOCI(ctx, f, ref, img) })
	if err != nil {
		return fmt.Errorf("write image %q to OCI archive %s: %w", ref, a.Path, err)
	}
	return nil
}

func writeOCI(ctx context.Context, f *os.File, ref string, img v1.Image) error {
	manifest, blobs, err := items(img, every)
	if err != nil {
		return err
	}
	index, err := indexWith(nil, manifest, ref)
	if err != nil {
		return err
	}
	w := &tarWriter{f: f}
	if err := errors.Join(
		w.bytes(oci.ImageLayoutFile, []byte(layoutFile)),
		w.bytes(oci.ImageIndexFile, index),
		w.dir("blobs/"), w.dir("blobs/sha256/"),
	); err != nil {
		return err
	}
	for _, it := range blobs {
		if err := w.file(blobName(it.desc.Digest), func(out io.Writer) error { return it.copyTo(ctx, out) }); err != nil {
			return err
		}
	}
	return w.close()
}
