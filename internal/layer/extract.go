package layer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// Extract writes the regular files of a layer that are below the directory
// within ("/layers/sbom") into root, under their names without the leading
// slash, and nothing else of the layer: no links, no devices, no whiteouts. It
// returns the names, in order. It reads r to its end; when it fails, what was
// written stays. A layer that exceeds limits fails with ErrLimit.
func Extract(ctx context.Context, root *os.Root, r io.Reader, within string, limits Limits) ([]string, error) {
	in := NewReader(ctx, r, limits)
	files := map[string]bool{}
	for {
		hdr, err := in.Next()
		if err == io.EOF {
			return slices.Sorted(maps.Keys(files)), nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean("/" + hdr.Name)
		if hdr.Typeflag != tar.TypeReg || !strings.HasPrefix(name, within+"/") || strings.HasPrefix(path.Base(name), whiteoutPrefix) {
			continue
		}
		if err := extractFile(root, name[1:], in); err != nil {
			return nil, entryError(hdr.Name, err)
		}
		files[name[1:]] = true
	}
}

func extractFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := root.OpenFile(name, flags, 0o644)
	if errors.Is(err, fs.ErrExist) { // an earlier entry's, or somebody's who must not make us wait
		if err = root.Remove(name); err == nil {
			f, err = root.OpenFile(name, flags, 0o644)
		}
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
