package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// find maps a path of the build container to a directory of this host and a
// path below it. ok is false for a path that is itself.
func (h Host) find(p path) (stack layer.Stack, rel string, ok bool) {
	best := ""
	for dir := range h.Dirs {
		below := string(p) == dir || strings.HasPrefix(string(p), strings.TrimSuffix(dir, "/")+"/")
		if below && len(dir) > len(best) {
			best = dir
		}
	}
	if best == "" {
		return layer.Stack{}, "", false
	}
	rel, err := filepath.Rel(best, string(p))
	return h.Dirs[best], rel, err == nil
}

// stack is a directory of the build container, as this host sees it.
func (h Host) stack(p path) (layer.Stack, error) {
	stack, rel, ok := h.find(p)
	if !ok {
		return layer.Stack{Upper: string(p)}, nil
	}
	if rel != "." {
		return layer.Stack{}, fmt.Errorf("%s: not a directory that this host knows", p)
	}
	return stack, nil
}

// read reads a document.
func (h Host) read(p path) ([]byte, error) { return h.readFile(p, spec.MaxDocument) }

// readFile reads a regular file of at most limit bytes. In <layers> and in a
// mapped directory foreign code may have written, so no link is followed there.
func (h Host) readFile(p path, limit int64) ([]byte, error) {
	if stack, rel, ok := h.find(p); ok {
		return stack.ReadFile(rel, limit)
	}
	if rel, below := strings.CutPrefix(string(p), string(h.layers)+"/"); below && h.layers != "" {
		b, err := layer.Stack{Upper: string(h.layers)}.ReadFile(rel, limit)
		if err != nil {
			err = fmt.Errorf("%s: %w", h.layers, err)
		}
		return b, err
	}
	f, err := os.OpenFile(string(p), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", p)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("read %s: more than %d bytes", p, limit)
	}
	return b, err
}

// exists reports whether a file is there.
func (h Host) exists(p path) bool {
	if stack, rel, ok := h.find(p); ok {
		_, err := stack.Lstat(rel)
		return err == nil
	}
	_, err := os.Stat(string(p))
	return err == nil
}

// decode reads a document with one of spec's Read functions.
func decode[T any](h Host, p path, read func([]byte, string) (T, error)) (T, error) {
	b, err := h.document(p)
	if err != nil {
		var zero T
		return zero, err
	}
	return read(b, string(p))
}

// decodeOptional is decode for a file that may be missing: then it is empty.
func decodeOptional[T any](h Host, p path, read func([]byte, string) (T, error)) (T, error) {
	v, err := decode(h, p, read)
	if errors.Is(err, fs.ErrNotExist) {
		return read(nil, string(p))
	}
	return v, err
}

// encode writes a document as TOML.
func (h Host) encode(p path, v any) error {
	b, err := encode.TOML(v)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return h.write(p, b)
}

// write replaces a file as a whole: readers see the old one or the new one.
func (h Host) write(p path, b []byte) error {
	dir, name := filepath.Split(string(p))
	if stack, rel, ok := h.find(p); ok {
		dir, name = stack.Upper, rel
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", p, err)
	}
	err = replace(root, name, b)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		// A file that is mounted by itself, as Kubernetes does, or in a
		// directory that is not ours: only its content can be replaced.
		err = overwrite(root, name, b)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", p, err)
	}
	h.keep(p, b, nil)
	return nil
}

// overwrite replaces the content of a file, and waits for nobody to read it.
func overwrite(root *os.Root, name string, b []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func replace(root *os.Root, name string, b []byte) error {
	aside := filepath.Join(filepath.Dir(name), ".kiln-"+filepath.Base(name))
	if err := root.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = root.Rename(aside, name)
	}
	if err != nil {
		_ = root.Remove(aside) // the first error is the one to tell
	}
	return err
}

func (h Host) stdout() io.Writer { return orDiscard(h.Stdout) }
func (h Host) stderr() io.Writer { return orDiscard(h.Stderr) }

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
