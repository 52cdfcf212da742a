package debian

import (
	"archive/tar"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree lists a directory: path, and mode or link target.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if e.Type() == fs.ModeSymlink {
			out[rel], err = os.Readlink(p)
			return err
		}
		info, err := e.Info()
		out[rel] = info.Mode().String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpack(t *testing.T) {
	a := newArchive(t)
	d := simple("py", "1", "", "usr/lib/py/os.py", "etc/py/site.py", "lib/x86_64-linux-gnu/libz.so.1.2", "usr/share/doc/py/copyright",
		"usr/share/doc/py/README", "usr/lib/systemd/system/py.service")
	d.text("usr/bin/py", 0o4755, "#!\n")
	d.link(tar.TypeLink, "usr/bin/py3", "./usr/bin/py")
	d.link(tar.TypeSymlink, "usr/lib/py/site.py", "/etc/py/site.py")
	d.link(tar.TypeSymlink, "usr/lib/x86_64-linux-gnu/libz.so", "/lib/x86_64-linux-gnu/libz.so.1.2")
	d.link(tar.TypeSymlink, "lib/x86_64-linux-gnu/libz.so.1", "libz.so.1.2")
	d.link(tar.TypeSymlink, "usr/lib/py/gone", "/usr/lib/elsewhere/gone")
	d.link(tar.TypeSymlink, "usr/lib/py/gone2", "gone")
	d.link(tar.TypeSymlink, "usr/lib/py/service", "../systemd/system/py.service")
	d.link(tar.TypeSymlink, "usr/lib/py/up", "../../../../../../usr/lib/py/os.py")
	d.dir("usr/lib/py/empty", 0o700)
	a.add("bookworm", d)
	a.publish()
	c := a.client()
	lock, err := c.Resolve(context.Background(), request("py"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := c.Unpack(context.Background(), lock, dir, nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"bin": "drwxr-xr-x", "bin/py": "-rwxr-xr-x", "bin/py3": "-rwxr-xr-x",
		"etc": "drwxr-xr-x", "etc/py": "drwxr-xr-x", "etc/py/site.py": "-rw-r--r--",
		"lib": "drwxr-xr-x", "lib/py": "drwxr-xr-x", "lib/py/os.py": "-rw-r--r--",
		"lib/py/site.py": "../../etc/py/site.py", "lib/py/up": "os.py",
		"lib/x86_64-linux-gnu": "drwxr-xr-x", "lib/x86_64-linux-gnu/libz.so.1.2": "-rw-r--r--",
		"lib/x86_64-linux-gnu/libz.so": "libz.so.1.2", "lib/x86_64-linux-gnu/libz.so.1": "libz.so.1.2",
		"share": "drwxr-xr-x", "share/doc": "drwxr-xr-x", "share/doc/py": "drwxr-xr-x", "share/doc/py/copyright": "-rw-r--r--",
	}
	if d := cmp.Diff(want, listing(t, dir)); d != "" {
		t.Error(d)
	}
	info, err := os.Stat(filepath.Join(dir, "bin/py"))
	if err != nil || !info.ModTime().Equal(testDate.AddDate(0, 0, -1)) {
		t.Errorf("modification time %v, %v", info.ModTime(), err)
	}
	if err := c.Unpack(context.Background(), lock, dir, nil); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("over itself: %v", err)
	}
	only := func(p string) string {
		if p == "usr/bin/py" {
			return "py.bin"
		}
		return ""
	}
	dir = t.TempDir()
	err = c.Unpack(context.Background(), lock, dir, only)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"py.bin": "-rwxr-xr-x"}, listing(t, dir)); d != "" {
		t.Error(d)
	}
	err = c.Unpack(context.Background(), lock, t.TempDir(), func(p string) string { return "../" + p })
	if err == nil || !strings.Contains(err.Error(), "no path inside the prefix") {
		t.Errorf("a rewrite that leads out: %v", err)
	}
}

// TestUnpackNeverWritesThroughLinks: not through those of a package, nor through
// one that was in the directory before.
func TestUnpackNeverWritesThroughLinks(t *testing.T) {
	a := newArchive(t)
	d := simple("evil", "1", "")
	d.link(tar.TypeSymlink, "usr/out", "../../../../../tmp")
	d.text("usr/out/file", 0o644, "x")
	a.add("bookworm", d)
	a.publish()
	c := a.client()
	lock, err := c.Resolve(context.Background(), request("evil"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Unpack(context.Background(), lock, t.TempDir(), nil); err == nil {
		t.Error("a directory that is a link too: no error")
	}
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := c.Unpack(context.Background(), lock, dir, nil); err == nil {
		t.Error("through a link that was there: no error")
	}
	if left := listing(t, outside); len(left) != 0 {
		t.Errorf("written outside: %v", left)
	}
}
