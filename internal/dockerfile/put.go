package dockerfile

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Put says where sources go and what becomes of them, as COPY and ADD do.
type Put struct {
	// Mkdir makes the directory Dest, as WORKDIR does, and reads no sources.
	Mkdir bool
	// Dest is absolute; a slash at its end says that it is a directory.
	Dest string
	// Chown is NAME|UID[:GROUP|GID]; "" leaves the owners that the sources have.
	Chown string
	// Chmod is octal or symbolic; "" leaves the modes.
	Chmod string
	// Unpack unpacks a source that is a tar archive, compressed or not.
	Unpack bool
}

// put carries out a Put with the root of this process as the root.
func put(ctx context.Context, p Put, owners layer.Owners, in io.Reader) (err error) {
	w := &putter{ctx: ctx, owners: owners, unpack: p.Unpack, made: map[string]byte{}, names: map[string]string{}}
	if w.dest, err = resolveDest(path.Clean(p.Dest)); err != nil {
		return err
	}
	w.dir = strings.HasSuffix(p.Dest, "/")
	if p.Chown != "" {
		owner, err := findOwner(layer.Stack{Upper: "/"}, p.Chown)
		if err != nil {
			return err
		}
		w.owner = &owner
	}
	if w.chmod, err = parseMode(p.Chmod); err != nil {
		return err
	}
	w.begin()
	if p.Mkdir {
		return w.end(w.directories(w.dest))
	}
	if err := w.end(w.all(tar.NewReader(bufio.NewReaderSize(in, 128<<10)))); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in) // who writes it hashes all of it
	return err
}

// findOwner resolves the argument of --chown: a user's group is the one of its
// account, that of a bare number the same number.
func findOwner(root layer.Stack, s string) (layer.Owner, error) {
	name, group, hasGroup := strings.Cut(s, ":")
	owner := layer.Owner{}
	if id, ok := number(name); ok {
		owner = layer.Owner{UID: id, GID: id}
	} else {
		u, _, err := findAccount(root, name)
		if err != nil {
			return owner, err
		}
		owner = u.owner()
	}
	var err error
	if hasGroup {
		owner.GID, err = findGroup(root, group)
	}
	return owner, err
}

// resolveDest follows the symbolic links of a path of which the end may be
// missing, also those that lead to something missing.
func resolveDest(p string) (string, error) {
	done := "/"
	todo := strings.Split(p, "/")
	for hops := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		if part == "" || part == "." {
			continue
		}
		next := path.Join(done, part) // ".." of "/" is "/"
		link, err := os.Readlink(next)
		if err != nil || part == ".." {
			done = next
			continue
		}
		if hops++; hops > maxHops {
			return "", fmt.Errorf("%s: too many symbolic links", p)
		}
		if path.IsAbs(link) {
			done = "/"
		}
		todo = append(strings.Split(link, "/"), todo...)
	}
	return done, nil
}

// putter turns the sources' tar into one of the root, which is unpacked over it
// while it is written.
type putter struct {
	ctx    context.Context
	owners layer.Owners
	dest   string
	dir    bool // dest is a directory, whether it is there or not
	owner  *layer.Owner
	chmod  modeChange
	unpack bool

	tw   *tar.Writer
	pipe *io.PipeWriter
	done chan error

	source string            // number of the source that is being written
	target string            // where it goes
	made   map[string]byte   // what has been written, by path: its type
	names  map[string]string // of regular files: name in the sources' tar to path
}

// begin starts to unpack what is written from now on.
func (w *putter) begin() {
	r, pipe := io.Pipe()
	w.pipe, w.tw, w.done = pipe, tar.NewWriter(pipe), make(chan error, 1)
	go func() {
		_, err := layer.ApplyOwnedPlain(w.ctx, "/", r, layer.Limits{}, w.owners)
		r.CloseWithError(err)
		w.done <- err
	}()
}

// end waits until all is unpacked. What failed there is the cause of a failure
// to write.
func (w *putter) end(err error) error {
	if err == nil {
		err = w.tw.Close()
	}
	w.pipe.CloseWithError(err)
	if uerr := <-w.done; uerr != nil && (err == nil || errors.Is(err, uerr)) {
		return uerr
	}
	return err
}

func (w *putter) all(tr *tar.Reader) error {
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.entry(hdr, tr); err != nil {
			return err
		}
	}
}

// entry writes an entry of the sources where it belongs.
func (w *putter) entry(hdr *tar.Header, body io.Reader) error {
	source, rest, _ := strings.Cut(hdr.Name, "/")
	rest = strings.TrimSuffix(rest, "/")
	if source != w.source {
		w.source = source
		if rest != "" {
			return w.single(hdr, rest, body)
		}
		w.target = w.dest
		return w.directories(w.dest)
	}
	return w.write(hdr, path.Join(w.target, rest), body)
}

// single writes a source that is no directory.
func (w *putter) single(hdr *tar.Header, base string, body io.Reader) error {
	if w.unpack && hdr.Typeflag == tar.TypeReg {
		peeked := bufio.NewReaderSize(body, archiveHead)
		head, err := peeked.Peek(archiveHead)
		if err != nil && err != io.EOF {
			return err
		}
		if isArchive(w.ctx, head) {
			return w.archive(peeked)
		}
		body = peeked
	}
	w.target = w.dest
	if fi, err := os.Stat(w.dest); w.dir || err == nil && fi.IsDir() || w.made[w.dest] == tar.TypeDir {
		w.target = path.Join(w.dest, base)
	}
	if err := w.directories(path.Dir(w.target)); err != nil {
		return err
	}
	return w.write(hdr, w.target, body)
}

// directories makes dir, and what leads to it.
func (w *putter) directories(dir string) error {
	if dir == "/" || w.made[dir] == tar.TypeDir {
		return nil
	}
	fi, err := os.Stat(dir)
	switch {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s: is there and is no directory: %w", dir, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := w.directories(path.Dir(dir)); err != nil {
		return err
	}
	hdr := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: layer.ModTime}
	if w.chmod.octal {
		hdr.Mode = w.chmod.apply(hdr.Mode, true)
	}
	return w.put(hdr, dir, nil)
}

// write writes an entry to target, where nothing of another nature may be.
func (w *putter) write(hdr *tar.Header, target string, body io.Reader) error {
	isDir := hdr.Typeflag == tar.TypeDir
	kind, made := w.made[target]
	if !made {
		if fi, err := os.Lstat(target); err == nil {
			kind, made = tar.TypeReg, true
			if fi.IsDir() {
				kind = tar.TypeDir
			}
		}
	}
	if made && isDir != (kind == tar.TypeDir) {
		what := map[bool]string{true: "a directory", false: "a file"}
		return fmt.Errorf("%s: %s cannot take the place of %s: %w", target, what[isDir], what[!isDir], fs.ErrExist)
	}
	if hdr.Typeflag != tar.TypeSymlink && hdr.Typeflag != tar.TypeLink {
		hdr.Mode = w.chmod.apply(hdr.Mode, isDir)
	}
	switch hdr.Typeflag {
	case tar.TypeLink:
		first, ok := w.names[hdr.Linkname]
		if !ok {
			return fmt.Errorf("%s: hard link to %q, which is not among the sources", target, hdr.Linkname)
		}
		hdr.Linkname = first
	case tar.TypeReg:
		w.names[hdr.Name] = target
	}
	return w.put(hdr, target, body)
}

func (w *putter) put(hdr *tar.Header, target string, body io.Reader) error {
	w.made[target] = tar.TypeReg
	hdr.Name = target
	if hdr.Typeflag == tar.TypeDir {
		w.made[target] = tar.TypeDir
		hdr.Name += "/"
	}
	if w.owner != nil {
		hdr.Uid, hdr.Gid = w.owner.UID, w.owner.GID
	}
	if err := w.tw.WriteHeader(hdr); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := io.Copy(w.tw, body)
	return err
}

// archive unpacks a source in the directory dest.
func (w *putter) archive(body io.Reader) error {
	if err := w.directories(w.dest); err != nil {
		return err
	}
	if err := w.end(nil); err != nil {
		return err
	}
	defer w.begin()
	plain, err := decompress(body)
	if err != nil {
		return err
	}
	if w.owner != nil {
		r, pipe := io.Pipe()
		go func(from io.Reader) { pipe.CloseWithError(w.owned(pipe, from)) }(plain)
		plain = r
		defer r.Close()
	}
	_, err = layer.ApplyOwnedPlain(w.ctx, w.dest, plain, layer.Limits{}, w.owners)
	return err
}

// owned copies a tar with the owner that was asked for.
func (w *putter) owned(to io.Writer, from io.Reader) error {
	tr, tw := layer.NewReader(w.ctx, from, layer.Limits{}), tar.NewWriter(to)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		out := &tar.Header{
			Typeflag: hdr.Typeflag, Name: hdr.Name, Linkname: hdr.Linkname, Size: hdr.Size, Mode: hdr.Mode, ModTime: hdr.ModTime,
			Devmajor: hdr.Devmajor, Devminor: hdr.Devminor, Uid: w.owner.UID, Gid: w.owner.GID,
		}
		if hdr.Typeflag == tar.TypeGNUSparse {
			out.Typeflag = tar.TypeReg
		}
		if err := tw.WriteHeader(out); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}

// archiveHead is how much of a file shows whether it is an archive: a block of
// bzip2, which is unpacked as a whole, has up to 900 kB.
const archiveHead = 1 << 20

// isArchive tells whether a file that begins like that is a tar archive.
func isArchive(ctx context.Context, head []byte) bool {
	plain, err := decompress(bytes.NewReader(head))
	if err != nil {
		return false
	}
	_, err = layer.NewReader(ctx, plain, layer.Limits{}).Next()
	return err == nil || errors.Is(err, layer.ErrLimit)
}

// maxWindow bounds the memory that a zstd stream may ask for, in bytes: what
// the format's own tools accept without being told otherwise.
const maxWindow = 128 << 20

// decompress gives the plain bytes of gzip, bzip2, xz, zstd or plain bytes, known
// by how they begin.
func decompress(r io.Reader) (io.Reader, error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(in)
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(in), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(in)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	}
	return in, nil
}
