package pip

import (
	"archive/zip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// wheelOf writes a zip with these files.
func wheelOf(t *testing.T, names ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pip-1.2-py3-none-any.whl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	for _, name := range names {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("body of " + name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnzip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	wheel := wheelOf(t, "pip/__init__.py", "pip/a/b.py", "pip-1.2.dist-info/METADATA")
	if err := unzip(wheel, dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "pip/a/b.py")); err != nil || string(b) != "body of pip/a/b.py" {
		t.Errorf("%q, %v", b, err)
	}
	if versionOf(wheel) != "1.2" {
		t.Errorf("version %q", versionOf(wheel))
	}
}

func TestUnzipRefusesEscapes(t *testing.T) {
	for _, name := range []string{"../out", "/out", "a/../../out"} {
		dir := filepath.Join(t.TempDir(), "site")
		if err := unzip(wheelOf(t, "a/x", name), dir); err == nil || !strings.Contains(err.Error(), "out") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(filepath.Dir(dir), "out")); err == nil {
			t.Errorf("%s was written beside the directory", name)
		}
	}
	if err := unzip(wheelOf(t, "a", "a"), filepath.Join(t.TempDir(), "site")); err == nil {
		t.Error("a file that comes twice is accepted")
	}
	if err := unzip(filepath.Join(t.TempDir(), "none.whl"), t.TempDir()); err == nil {
		t.Error("a wheel that is not there is accepted")
	}
}
