package kit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// HashFiles is a digest over the names and contents of files and directory
// trees, for Build.Key. Names are taken relative to root; symbolic links count
// by their target and are not followed. What is not there counts as absent.
func HashFiles(root string, names ...string) (string, error) {
	h := sha256.New()
	for _, name := range names {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(root, name)
		}
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(root, p)
			if errors.Is(err, fs.ErrNotExist) && p == path {
				fmt.Fprintf(h, "absent %q\n", rel)
				return nil
			}
			if err != nil {
				return err
			}
			return hashEntry(h, rel, p, d)
		})
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func hashEntry(h io.Writer, rel, path string, d fs.DirEntry) error {
	switch {
	case d.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		fmt.Fprintf(h, "link %q %q\n", rel, target)
		return err
	case d.IsDir():
		fmt.Fprintf(h, "dir %q\n", rel)
		return nil
	case !d.Type().IsRegular():
		fmt.Fprintf(h, "special %q %v\n", rel, d.Type())
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "file %q %v %x\n", rel, info.Mode().Perm()&0o111 != 0, sum.Sum(nil))
	return nil
}
