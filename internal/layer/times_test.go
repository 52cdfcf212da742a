package layer

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestSetTimes(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a/b/f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "shut"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(filepath.Join(dir, "shut"), 0o700)
	if err := SetTimes(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil && d.Name() != "shut" {
			return err
		}
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if n++; !fi.ModTime().Equal(ModTime) {
			t.Errorf("%s: %v", path, fi.ModTime())
		}
		if d.Name() == "shut" {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil || n != 6 {
		t.Errorf("visited %d files, %v", n, err)
	}
	if fi, _ := os.Stat(outside); fi.ModTime().Equal(ModTime) {
		t.Error("the time of a link's target was set")
	}
}
