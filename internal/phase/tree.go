package phase

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Tree is a directory of the build: where its bytes are on this host, and
// where it is in the build container and in the app image.
type Tree struct {
	layer.Stack
	// Path is absolute and clean, such as /layers.
	Path string
	// Above are the directories above Path, from the top, the root left out, as
	// the app image is to have them. /layers and /workspace have none.
	Above []layer.Parent
	// OwnerOf is the owner that a directory which leads to a layer has in the
	// build container. Nil means the build user, as is right where host files
	// belong to whoever started the build.
	OwnerOf func(fs.FileInfo) layer.Owner
}

// parents are the directories from the top down to and with rel, as they are now.
func (t Tree) parents(rel string, build layer.Owner) ([]layer.Parent, error) {
	list := append([]layer.Parent(nil), t.Above...)
	at := "."
	for i := 0; ; i++ {
		fi, err := t.Lstat(at)
		if err != nil {
			return nil, err
		}
		owner := build
		if t.OwnerOf != nil {
			owner = t.OwnerOf(fi)
		}
		list = append(list, layer.Parent{Path: path.Join(t.Path, at), Mode: fi.Mode(), Owner: owner})
		if at == path.Clean(rel) {
			return list, nil
		}
		at = firstComponents(rel, i+1)
	}
}

func firstComponents(rel string, n int) string {
	parts := strings.Split(path.Clean(rel), "/")
	return strings.Join(parts[:min(n, len(parts))], "/")
}

// inImage is where rel of the tree is in a layer tar unpacked at a root.
func (t Tree) inImage(rel string) string {
	return strings.TrimPrefix(path.Join(t.Path, rel), "/")
}

// diffIDOf is a layer's diffID as labels spell it.
func diffIDOf(l v1.Layer) (string, error) {
	h, err := l.DiffID()
	if err != nil {
		return "", err
	}
	return h.String(), nil
}

// unpack applies a layer to the empty directory dir and makes sure that its
// bytes are those of its diffID. What is in dir counts only if it returns nil.
func unpack(ctx context.Context, l v1.Layer, dir string) error {
	want, err := l.DiffID()
	if err != nil {
		return err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	sum := sha256.New()
	err = layer.ApplyPlain(ctx, dir, io.TeeReader(rc, sum), layer.Limits{})
	if err = errors.Join(err, rc.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("layer %s is damaged: its bytes have digest sha256:%s", want, got)
	}
	return nil
}
