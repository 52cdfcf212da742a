package platform

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// app is the source as the build sees it: a snapshot that does not change any
// more, so that what was tested is what is exported.
type app struct {
	// Dir is the snapshot, owned by the caller, every time normalised.
	Dir string
	// tree is the directory that has Dir at its place in the image, "" when the
	// snapshot already is a tree of the store.
	tree string
	// DiffID of the app layer that this source made last time, if it is known.
	DiffID string
	// memo is the key under which the diffID of this source is remembered; ""
	// when it must not be, because a change could follow unseen.
	memo string
}

// memoApp is the kind of memo that maps a source's fingerprint to a diffID.
const memoApp = "app"

// snapshot copies the selected files of the source directory to scratch, or
// finds the copy that an earlier build made of the same files: then no file is
// read at all.
func (p *Platform) snapshot(ctx context.Context, source string, sel selection, scratch string) (app, error) {
	own, err := ownPlace(source, p.Store.Dir())
	if err != nil {
		return app{}, err
	}
	c := chooser{platform: p, sel: sel, own: own}
	sum, racy, err := layer.Fingerprint(ctx, source, c.skip)
	if err = errors.Join(c.bad, err); err != nil {
		return app{}, sourceError(source, err)
	}
	// Who may log in, build or read matters to no byte: the key is the files,
	// where they lie in the image, and which empty folders go.
	key := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%v", dirApp, sum, sel.include))
	memo := hex.EncodeToString(key[:])
	if a, ok := p.recallApp(ctx, memo); ok {
		return a, nil
	}
	a := app{tree: filepath.Join(scratch, "app", "tree")}
	a.Dir = filepath.Join(a.tree, dirApp)
	if !racy {
		a.memo = memo
	}
	if err := c.copy(ctx, a.Dir, source); err != nil {
		return app{}, sourceError(source, err)
	}
	if again, _, err := layer.Fingerprint(ctx, source, c.skip); err != nil || again != sum {
		changed := spec.WithHint(errors.New("it changed while it was being copied"), "build again when nothing writes to it")
		return app{}, sourceError(source, errors.Join(err, changed))
	}
	if err := layer.SetTimes(ctx, a.tree); err != nil {
		return app{}, sourceError(source, err)
	}
	return a, nil
}

// recallApp finds the snapshot that an earlier build made of the same files.
func (p *Platform) recallApp(ctx context.Context, memo string) (app, bool) {
	known, ok := p.Store.Recall(memoApp, memo)
	if !ok || !p.Store.HasTree(string(known)) {
		return app{}, false
	}
	l, err := p.Store.Layer(ctx, string(known))
	if err != nil {
		return app{}, false
	}
	tree, err := p.Store.Tree(ctx, l)
	if err != nil {
		return app{}, false
	}
	return app{Dir: filepath.Join(tree, dirApp), DiffID: string(known), memo: memo}, true
}

// chooser says which files of the source belong to the app, and what is wrong
// with them.
type chooser struct {
	platform *Platform
	sel      selection
	own      string // kiln's store in the source, "" if it is elsewhere
	told     bool
	bad      error
}

// skip says whether rel stays out.
func (c *chooser) skip(rel string, dir bool) bool {
	if c.sel.skips(rel, dir) {
		return true
	}
	if c.own != "" && rel == c.own {
		if !c.told {
			c.told = true
			c.platform.info("%s is kiln's own store: it is left out of the app", rel)
		}
		return true
	}
	if base := path.Base(rel); strings.HasPrefix(base, ".wh.") && c.bad == nil {
		c.bad = badInput(fmt.Errorf("%q: a name that begins with .wh. means a deleted file in an image layer", rel), "rename it, or exclude it in project.toml")
	}
	return false
}

// copy makes to a copy of the chosen files. The build user owns it whatever
// the source directory's mode was.
func (c *chooser) copy(ctx context.Context, to, source string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := layer.CopyTree(ctx, to, layer.Stack{Upper: source}, c.skip); err != nil {
		return err
	}
	if err := errors.Join(c.sel.prune(to), os.Chmod(to, 0o755)); err != nil {
		return err
	}
	entries, err := os.ReadDir(to)
	if err == nil && len(entries) == 0 {
		err = badInput(errors.New("there is nothing in it to build"), "name the folder of your app with --path; project.toml's include and exclude decide what is taken")
	}
	return err
}

func sourceError(source string, err error) error {
	err = fmt.Errorf("source %s: %w", source, err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return badInput(err, "make it readable, or exclude it in project.toml")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return spec.WithHint(err, "the copy of the source needs room beside the images: free some there, or keep the store elsewhere with --store")
	}
	return err
}
