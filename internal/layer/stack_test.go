package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestStackNeverLeaves(t *testing.T) {
	p := newPrison(t)
	links := map[string]string{"dir": "../outside", "file": "../outside/canary", "abs": p.outside}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(p.dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := Stack{Upper: p.dir}
	for _, rel := range []string{"dir/canary", "file", "abs/canary", "../outside/canary", "/etc/passwd", "fifo", "dir", "a\x00b"} {
		if body, err := s.ReadFile(rel, 1000); err == nil {
			t.Errorf("ReadFile(%q) = %q", rel, body)
		}
	}
	for _, rel := range []string{"dir", "abs", ".."} {
		if list, err := s.ReadDir(rel); err == nil {
			t.Errorf("ReadDir(%q) = %v", rel, list)
		}
	}
	if _, err := s.Lstat("dir/canary"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Lstat through a symlink: %v, want ELOOP", err)
	}
	if link, err := s.Readlink("dir"); err != nil || link != "../outside" {
		t.Errorf("Readlink = %q, %v", link, err)
	}
}

func TestStackErrors(t *testing.T) {
	dir := scratch(t)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := Stack{Upper: dir}
	if _, err := s.ReadFile("none", 10); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := s.ReadFile("f/g", 10); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if _, err := s.ReadFile("f", 4); !errors.Is(err, ErrLimit) {
		t.Errorf("too large: %v", err)
	}
	if body, err := s.ReadFile("f", 5); err != nil || string(body) != "12345" {
		t.Errorf("at the limit: %q, %v", body, err)
	}
	if _, err := (Stack{Upper: dir, Lowers: []string{dir + "/none"}}).Lstat("f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing lower: %v", err)
	}
}

// TestRaisedModeIsNotSeen: while one reader opens a file that denies access to
// its owner, another one sees its true mode.
func TestRaisedModeIsNotSeen(t *testing.T) {
	dir := scratch(t)
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	fd, err := openat(unix.AT_FDCWD, path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mode := func() fs.FileMode {
		t.Helper()
		fi, err := Stack{Upper: dir}.Lstat("f")
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode()
	}
	first, err := raise(fd, 0o400)
	if err != nil {
		t.Fatal(err)
	}
	second, err := raise(fd, 0o400)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o400 || mode() != 0 {
		t.Errorf("raised: mode is %v, seen as %v (%v)", fi.Mode(), mode(), err)
	}
	first()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o400 || mode() != 0 {
		t.Errorf("raised by one of two: mode is %v, seen as %v (%v)", fi.Mode(), mode(), err)
	}
	second()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0 || mode() != 0 || len(raised.modes) != 0 || !raisedNone(raised.changes.Load()) {
		t.Errorf("lowered: mode is %v, seen as %v (%v)", fi.Mode(), mode(), err)
	}
}

func TestStackPath(t *testing.T) {
	top := scratch(t)
	mkdirs(t, top, "up/d", "low/d/e", "low/only")
	s := Stack{Upper: filepath.Join(top, "up"), Lowers: []string{filepath.Join(top, "low")}}
	for rel, want := range map[string]string{"d": "up/d", "d/e": "low/d/e", "only": "low/only", ".": "up"} {
		got, err := s.Path(rel)
		if err != nil || got != filepath.Join(top, want) {
			t.Errorf("Path(%s) = %s, %v; want %s", rel, got, err, want)
		}
	}
}

func TestCopyOfMergedView(t *testing.T) {
	top := scratch(t)
	mkdirs(t, top, "low", "up")
	weirdTree(t, filepath.Join(top, "low"))
	s := Stack{Upper: filepath.Join(top, "up"), Lowers: []string{filepath.Join(top, "low")}}
	if err := os.Chmod(s.Upper, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Upper, "exact"), []byte("changed"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(s.Upper, "a"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(top, "copy")
	if err := Copy(context.Background(), dst, s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(listTar(t, writeTree(t, s, ".", "/l")), listTar(t, writeTree(t, Stack{Upper: dst}, ".", "/l"))); diff != "" {
		t.Errorf("copy differs:\n%s", diff)
	}
	for _, name := range []string{"hard", "long/long", "loop"} {
		want, err1 := os.Lstat(filepath.Join(top, "low", name))
		got, err2 := os.Lstat(filepath.Join(dst, name))
		if err1 != nil || err2 != nil || !want.ModTime().Equal(got.ModTime()) {
			t.Errorf("%s: time %v, want %v (%v %v)", name, got.ModTime(), want.ModTime(), err1, err2)
		}
	}
}

func TestCopyTreeSkips(t *testing.T) {
	top := scratch(t)
	mkdirs(t, top, "src/.git/objects", "src/keep")
	for _, name := range []string{"src/.git/objects/x", "src/keep/a.pyc", "src/keep/a.py"} {
		if err := os.WriteFile(filepath.Join(top, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := CopyTree(context.Background(), filepath.Join(top, "dst"), Stack{Upper: filepath.Join(top, "src")}, func(rel string, dir bool) bool {
		return dir && rel == ".git" || strings.HasSuffix(rel, ".pyc")
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := filepath.Glob(filepath.Join(top, "dst/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{filepath.Join(top, "dst/keep/a.py")}, list); diff != "" {
		t.Error(diff)
	}
}

func TestFingerprint(t *testing.T) {
	dir := scratch(t)
	mkdirs(t, dir, "d", "skipped")
	file := filepath.Join(dir, "d/f")
	if err := os.WriteFile(file, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	skip := func(rel string, dir bool) bool { return dir && rel == "skipped" }
	print := func() (string, bool) {
		t.Helper()
		sum, racy, err := Fingerprint(context.Background(), dir, skip)
		if err != nil {
			t.Fatal(err)
		}
		return sum, racy
	}
	if _, racy := print(); !racy {
		t.Error("a file written just now is not racy")
	}
	settle := func() string {
		t.Helper()
		for range 100 {
			time.Sleep(2 * fineTick)
			if sum, racy := print(); !racy {
				return sum
			}
		}
		t.Fatal("racy for ever")
		return ""
	}
	last := settle()
	if again, _ := print(); again != last {
		t.Error("fingerprint of an unchanged tree changed")
	}
	if err := os.WriteFile(filepath.Join(dir, "skipped/x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if sum, racy := print(); sum != last || racy {
		t.Error("a skipped file counts")
	}
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]func() error{
		"same size and time": func() error {
			if err := os.WriteFile(file, []byte("two"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(file, fi.ModTime(), fi.ModTime())
		},
		"mode":     func() error { return os.Chmod(file, 0o600) },
		"dir mode": func() error { return os.Chmod(filepath.Join(dir, "d"), 0o700) },
		"new dir":  func() error { return os.Mkdir(filepath.Join(dir, "empty"), 0o755) },
		"renamed":  func() error { return os.Rename(filepath.Join(dir, "empty"), filepath.Join(dir, "empty2")) },
		"replaced": func() error {
			return errors.Join(os.WriteFile(file+"2", []byte("two"), 0o600), os.Rename(file+"2", file))
		},
	}
	for _, name := range []string{"same size and time", "mode", "dir mode", "new dir", "renamed", "replaced"} {
		if err := changes[name](); err != nil {
			t.Fatal(err)
		}
		if sum := settle(); sum == last {
			t.Errorf("%s: not noticed", name)
		} else {
			last = sum
		}
	}
}

func TestRemove(t *testing.T) {
	p := newPrison(t)
	top := filepath.Join(p.dir, "tree")
	mkdirs(t, top, "a/b", "c")
	if err := os.Symlink(p.outside, filepath.Join(top, "a/link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b", "c", "a"} {
		if err := os.Chmod(filepath.Join(top, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if err := errors.Join(Remove(top), Remove(filepath.Join(top, "x/y"))); err != nil {
		t.Errorf("what is missing: %v", err)
	}
	p.check(t)
}

// TestRemoveDeep: a tree that is deeper than a process may have files open.
func TestRemoveDeep(t *testing.T) {
	dir := t.TempDir()
	deep := tarOf(t, hdrDir(strings.Repeat("d/", 1000), 0o755), hdrLink("l", strings.Repeat("d/", 1000)), hdrDir("l/"+strings.Repeat("e/", 1000), 0o500))
	if err := Apply(t.Context(), dir, bytes.NewReader(deep), Limits{}); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	err := Remove(filepath.Join(dir, "d"))
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); rerr != nil {
		t.Fatal(rerr)
	}
	if err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v are left, %v", left, err)
	}
}

func BenchmarkWriteTree(b *testing.B) {
	dir := scratch(b)
	body := make([]byte, 10<<10)
	for i := range 100 {
		sub := filepath.Join("d"+itoa(i), "sub")
		mkdirs(b, dir, sub)
		for j := range 20 {
			if err := os.WriteFile(filepath.Join(dir, sub, itoa(j)), body, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ResetTimer()
	for b.Loop() {
		n, err := WriteTree(context.Background(), io.Discard, Stack{Upper: dir}, ".", "/l", nil, Owner{})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
}
