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
	fail := func(err error) (app, error) { return app{}, sourceError(source, err) }
	own, err := ownPlace(source, p.Store.Dir())
	if err != nil {
		return app{}, err
	}
	var bad error
	told := false
	skip := func(rel string, dir bool) bool {
		if sel.skips(rel, dir) {
			return true
		}
		if own != "" && rel == own {
			if !told {
				told = true
				p.info("%s is kiln's own store: it is left out of the app", rel)
			}
			return true
		}
		if base := path.Base(rel); strings.HasPrefix(base, ".wh.") && bad == nil {
			bad = badInput(fmt.Errorf("%q: a name that begins with .wh. means a deleted file in an image layer", rel), "rename it, or exclude it in project.toml")
		}
		return false
	}
	sum, racy, err := layer.Fingerprint(ctx, source, skip)
	if err = errors.Join(bad, err); err != nil {
		return fail(err)
	}
	// Who may log in, build or read matters to no byte: the key is the files
	// and where they lie in the image.
	key := sha256.Sum256([]byte(dirApp + "\x00" + sum))
	memo := hex.EncodeToString(key[:])
	if known, ok := p.Store.Recall(memoApp, memo); ok && p.Store.HasTree(string(known)) {
		if l, err := p.Store.Layer(ctx, string(known)); err == nil {
			if tree, err := p.Store.Tree(ctx, l); err == nil {
				return app{Dir: filepath.Join(tree, dirApp), DiffID: string(known), memo: memo}, nil
			}
		}
	}
	a := app{tree: filepath.Join(scratch, "app", "tree")}
	a.Dir = filepath.Join(a.tree, dirApp)
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		return fail(err)
	}
	if err := layer.CopyTree(ctx, a.Dir, layer.Stack{Upper: source}, skip); err != nil {
		return fail(err)
	}
	if err := sel.prune(a.Dir); err != nil {
		return fail(err)
	}
	if again, _, err := layer.Fingerprint(ctx, source, skip); err != nil || again != sum {
		return fail(errors.Join(err, spec.WithHint(errors.New("it changed while it was being copied"), "build again when nothing writes to it")))
	}
	// The build user owns /workspace whatever the source directory's mode was.
	if err := os.Chmod(a.Dir, 0o755); err != nil {
		return fail(err)
	}
	entries, err := os.ReadDir(a.Dir)
	if err != nil {
		return fail(err)
	}
	if len(entries) == 0 {
		return fail(badInput(errors.New("there is nothing in it to build"), "name the folder of your app with --path; project.toml's include and exclude decide what is taken"))
	}
	if err := layer.SetTimes(ctx, a.tree); err != nil {
		return fail(err)
	}
	if !racy {
		a.memo = memo
	}
	return a, nil
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
