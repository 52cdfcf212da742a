// Package filetree writes the files of tests.
package filetree

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// New makes a directory with files in it, of mode 0644; see Write.
func New(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	Write(t, dir, 0o644, files)
	return dir
}

// Write makes files of that mode below dir, a path to a content each, and the
// directories that they need, dir too. A path that ends in a slash is a directory; a
// content that begins with "-> " makes a link to the rest of it.
func Write(t testing.TB, dir string, mode fs.FileMode, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := write(filepath.Join(dir, name), strings.HasSuffix(name, "/"), content, mode); err != nil {
			t.Fatal(err)
		}
	}
}

func write(path string, isDir bool, content string, mode fs.FileMode) error {
	if isDir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if target, ok := strings.CutPrefix(content, "-> "); ok {
		return os.Symlink(target, path)
	}
	return os.WriteFile(path, []byte(content), mode)
}
