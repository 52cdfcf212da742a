package phase

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
)

// aside is a new directory in <layers>, for what is to be checked before it gets
// there. Foreign code may have its hands on <layers>: so both are held open, and
// no link that it makes, before or meanwhile, leads out of them.
type aside struct {
	layers  *os.Root
	name    string
	dir, in *os.File // the directory, and <layers>
}

// withUnpacked unpacks a layer aside and shows it to use.
func withUnpacked(ctx context.Context, l v1.Layer, layers Tree, use func(*aside) error) (err error) {
	root, err := os.OpenRoot(layers.Upper)
	if err != nil {
		return err
	}
	defer root.Close()
	a := &aside{layers: root, name: ".restore-" + rand.Text()}
	if err := root.Mkdir(a.name, 0o700); err != nil {
		return err
	}
	a.in, err = root.Open(".")
	if err != nil {
		return err
	}
	defer a.in.Close()
	defer func() { _ = layer.Remove(held(a.in, a.name)) }()
	if a.dir, err = root.Open(a.name); err != nil {
		return err
	}
	defer a.dir.Close()
	if err := unpack(ctx, l, held(a.dir, "")); err != nil {
		return err
	}
	return use(a)
}

// held is a path below a directory that is open.
func held(dir *os.File, name string) string {
	return path.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), name)
}

// view is what was unpacked.
func (a *aside) view() layer.Stack { return layer.Stack{Upper: held(a.dir, "")} }

// moveOut puts what is at from in the place of what is at to of <layers>.
func (a *aside) moveOut(from, to string) error {
	// What is at the path may be a link, so may what leads to it.
	if _, err := a.view().Path(from); err != nil {
		return err
	}
	parent, err := a.layers.Open(path.Dir(to))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := layer.Remove(held(parent, path.Base(to))); err != nil {
		return err
	}
	return move(a.layers, path.Join(a.name, from), to)
}

// move renames a file or directory that this process owns. A directory that
// gets another parent must be writable for that.
func move(root *os.Root, from, to string) error {
	fi, err := root.Lstat(from)
	if err != nil {
		return err
	}
	if !fi.IsDir() || fi.Mode()&0o200 != 0 {
		return root.Rename(from, to)
	}
	if err := root.Chmod(from, fi.Mode()|0o200); err != nil {
		return err
	}
	if err := root.Rename(from, to); err != nil {
		return err
	}
	return root.Chmod(to, fi.Mode())
}
