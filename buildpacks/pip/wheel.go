package pip

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Limits of a wheel of pip: those of today have 2 MB packed, 11 MB unpacked.
const (
	maxWheelFiles = 10_000
	maxWheelBytes = 200 << 20
)

// unzip unpacks a wheel without data directories, as pip's is, into dir.
func unzip(wheel, dir string) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("open %s: %w", wheel, err)
	}
	defer z.Close()
	if len(z.File) > maxWheelFiles {
		return fmt.Errorf("%s: %d files are too many", wheel, len(z.File))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	left := int64(maxWheelBytes)
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, "/") {
			continue
		}
		if !filepath.IsLocal(f.Name) || !f.Mode().IsRegular() {
			return fmt.Errorf("%s: %q is no plain file below it", wheel, f.Name)
		}
		n, err := extract(root, f, left)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", wheel, f.Name, err)
		}
		left -= n
	}
	return nil
}

func extract(root *os.Root, f *zip.File, limit int64) (int64, error) {
	if err := root.MkdirAll(path.Dir(f.Name), 0o755); err != nil {
		return 0, err
	}
	in, err := f.Open()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := root.OpenFile(f.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, io.LimitReader(in, limit+1))
	if err == nil && n > limit {
		err = errors.New("unpacks to too much")
	}
	return n, errors.Join(err, out.Close())
}
