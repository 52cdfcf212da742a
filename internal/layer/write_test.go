package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

// dirsOf are parents in the words of package reference.
func dirsOf(parents []Parent) (list []reference.Dir) {
	for _, p := range parents {
		list = append(list, reference.Dir{Path: p.Path, Mode: p.Mode, UID: p.Owner.UID, GID: p.Owner.GID})
	}
	return list
}

func referenceTar(t testing.TB, dir, at string, parents []Parent, owner Owner) []byte {
	t.Helper()
	return reference.Tree(t, dir, at, dirsOf(parents), owner.UID, owner.GID)
}

var (
	someParents = []Parent{{"/layers", fs.ModeDir | 0o755, Owner{0, 0}}, {"/layers/bp", fs.ModeDir | 0o750, Owner{7, 8}}}
	someOwner   = Owner{1000, 1001}
)

// weirdTree fills dir with one of every kind of file.
func weirdTree(t testing.TB, dir string) {
	t.Helper()
	mkdirs(t, dir, "a/b/c", "a-b", "empty", "sticky", strings.Repeat("long/", 60))
	files := map[string]string{
		"a/file": "content", "a-b/x": "", "a/b/c/d": strings.Repeat("z", 600000), "\xff\xfe": "not UTF-8",
		"new\nline": "n", strings.Repeat("n", 255): "255", "-dash": "", " space": "", "ünïcode": "", "a.b": "",
		strings.Repeat("long/", 60) + "deep": "deep", "exact": strings.Repeat("e", 512),
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"abs": "/etc/passwd", "dangling": "no where", "loop": "loop", "up": "../..", "longlink": strings.Repeat("x", 200)} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]uint32{"a/file": 0o4755, "exact": 0o600, "sticky": 0o1777, "a-b": 0o2755, ".": 0o755} {
		if err := unix.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o622); err != nil {
		t.Fatal(err)
	}
	makeSocket(t, filepath.Join(dir, "socket"))
}

func makeSocket(t testing.TB, path string) {
	t.Helper()
	if err := unix.Mknod(path, unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
}

func writeTree(t testing.TB, s Stack, rel, at string) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := WriteTree(context.Background(), &b, s, rel, at, someParents, someOwner); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWriteTreeEqualsReference(t *testing.T) {
	conform.Covers(t, 129, 130)
	dir := scratch(t)
	weirdTree(t, dir)
	want := referenceTar(t, dir, "/layers/bp/l", someParents, someOwner)
	got := writeTree(t, Stack{Upper: dir}, ".", "/layers/bp/l")
	if !bytes.Equal(want, got) {
		t.Errorf("tar differs:\n%s", cmp.Diff(listTar(t, want), listTar(t, got)))
	}
	single := writeTree(t, Stack{Upper: dir}, "a/file", "/x")
	if want := referenceTar(t, filepath.Join(dir, "a/file"), "/x", someParents, someOwner); !bytes.Equal(want, single) {
		t.Errorf("tar of one file differs:\n%s", cmp.Diff(listTar(t, want), listTar(t, single)))
	}
}

// listTar prints an archive's headers.
func listTar(t testing.TB, data []byte) []string {
	t.Helper()
	var list []string
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%c %q %o %d:%d %q %q %s %d %v %x", hdr.Typeflag, hdr.Name, hdr.Mode, hdr.Uid, hdr.Gid,
			hdr.Uname, hdr.Linkname, hdr.ModTime.UTC(), hdr.Size, hdr.Format, sha256.Sum256(body)))
	}
}

// TestWriteTreeGolden pins the bytes: they decide the identity of every layer
// that exists. A change here makes every cached layer of every user stale.
func TestWriteTreeGolden(t *testing.T) {
	conform.Covers(t, 129, 130)
	dir := scratch(t)
	mkdirs(t, dir, "bin", "lib/deep")
	for name, body := range map[string]string{"bin/tool": "#!/bin/sh\n", "lib/deep/data": strings.Repeat("0123456789", 100), "lib.conf": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../bin/tool", filepath.Join(dir, "lib/tool")); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{".": 0o755, "bin": 0o755, "lib": 0o755, "lib/deep": 0o700, "bin/tool": 0o755, "lib/deep/data": 0o640, "lib.conf": 0o644} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.Sum256(writeTree(t, Stack{Upper: dir}, ".", "/layers/bp/tool"))
	const want = "dd0cafcf14d9c0308c2a963c2522372f229b55d59b15003996e855911c9a7b68"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("diffID %s, want %s", got, want)
	}
}

func TestWriteTreeOfMergedView(t *testing.T) {
	top := scratch(t)
	mkdirs(t, top, "low/l/d", "up/l/d", "up/l/new", "flat/l/d", "flat/l/new")
	write := func(name, body string) {
		if err := os.WriteFile(filepath.Join(top, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("low/l/d/kept", "k")
	write("low/l/d/gone", "g")
	write("low/l/d/changed", "old")
	write("up/l/d/changed", "new")
	write("flat/l/d/kept", "k")
	write("flat/l/d/changed", "new")
	mkdirs(t, top, "low/l/new")
	write("low/l/new/hidden", "h")
	if err := unix.Mknod(filepath.Join(top, "up/l/d/gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(top, "up/l/new"), opaqueXattr, []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	s := Stack{Upper: filepath.Join(top, "up"), Lowers: []string{filepath.Join(top, "low")}}
	want := referenceTar(t, filepath.Join(top, "flat/l"), "/l", someParents, someOwner)
	if got := writeTree(t, s, "l", "/l"); !bytes.Equal(want, got) {
		t.Errorf("tar differs:\n%s", cmp.Diff(listTar(t, want), listTar(t, got)))
	}
}

func TestWriteTreeCountsBytesRead(t *testing.T) {
	dir := scratch(t)
	weirdTree(t, dir)
	want := int64(0)
	err := filepath.Walk(dir, func(_ string, fi fs.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			want += fi.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := WriteTree(context.Background(), io.Discard, Stack{Upper: dir}, ".", "/x", nil, someOwner)
	if err != nil || n != want {
		t.Errorf("read %d bytes, %v; want %d", n, err, want)
	}
}

// TestWriteTreeUnreadable: what the owner owns can be stored, and keeps its mode.
func TestWriteTreeUnreadable(t *testing.T) {
	dir := scratch(t)
	mkdirs(t, dir, "noread", "noexec", "none/inner")
	for _, name := range []string{"noread/f", "noexec/f", "none/inner/f", "secret"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	modes := map[string]uint32{"secret": 0, "none/inner": 0o200, "none/inner/f": 0, "noread": 0o300, "noexec": 0o600, "none": 0}
	for _, name := range []string{"secret", "none/inner/f", "none/inner", "noread", "noexec", "none"} {
		if err := unix.Chmod(filepath.Join(dir, name), modes[name]); err != nil {
			t.Fatal(err)
		}
	}
	before := renderDisk(t, dir)
	found := 0
	tr := tar.NewReader(bytes.NewReader(writeTree(t, Stack{Upper: dir}, ".", "/l")))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if mode, ok := modes[strings.TrimPrefix(hdr.Name, "/l/")]; ok {
			found++
			if uint32(hdr.Mode) != mode {
				t.Errorf("%s: mode %o, want %o", hdr.Name, hdr.Mode, mode)
			}
		}
	}
	if found != len(modes) {
		t.Errorf("%d of %d files in the tar", found, len(modes))
	}
	if diff := cmp.Diff(before, renderDisk(t, dir)); diff != "" {
		t.Errorf("modes not restored:\n%s", diff)
	}
}

func TestWriteTreeDeep(t *testing.T) {
	const depth = 600
	dir := scratch(t)
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 100) // far beyond PATH_MAX in all
	for range depth {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	n := len(listTar(t, writeTree(t, Stack{Upper: dir}, ".", "/l")))
	if n != depth+1+len(someParents) {
		t.Errorf("%d entries, want %d", n, depth+1+len(someParents))
	}
}

func TestWriteTreeRefusesWhiteoutNames(t *testing.T) {
	for _, name := range []string{".wh.x", "d/.wh..wh..opq", ".wh."} {
		dir := scratch(t)
		mkdirs(t, dir, "d")
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := WriteTree(context.Background(), io.Discard, Stack{Upper: dir}, ".", "/workspace", nil, someOwner)
		if err == nil || !strings.Contains(err.Error(), "/workspace/"+name) || !strings.Contains(err.Error(), "rename") {
			t.Errorf("%s: error %v, want one that names the file and a way out", name, err)
		}
	}
}

// growing is a writer that, once, changes a file behind WriteTree's back.
type growing struct {
	change func()
	done   bool
}

func (g *growing) Write(p []byte) (int, error) {
	if !g.done {
		g.done = true
		g.change()
	}
	return len(p), nil
}

func TestWriteTreeNoticesChange(t *testing.T) {
	changes := map[string]func(path string) error{
		"grows":   func(p string) error { return os.WriteFile(p, make([]byte, 9<<20), 0o644) },
		"shrinks": func(p string) error { return os.Truncate(p, 10) },
		"written": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("new"), 0)
			return errors.Join(err, f.Close())
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			path := filepath.Join(dir, "big")
			if err := os.WriteFile(path, make([]byte, 8<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, make([]unix.Timespec, 2), 0); err != nil {
				t.Fatal(err)
			}
			w := &growing{change: func() {
				if err := change(path); err != nil {
					t.Error(err)
				}
			}}
			_, err := WriteTree(context.Background(), w, Stack{Upper: dir}, ".", "/l", nil, someOwner)
			if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "/l/big") {
				t.Errorf("error %v, want ErrChanged of /l/big", err)
			}
		})
	}
}

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

func TestWriteTreeReportsWriter(t *testing.T) {
	dir := scratch(t)
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, after := range []int{0, 300 << 10, 3 << 20} {
		_, err := WriteTree(context.Background(), &failing{after}, Stack{Upper: dir}, ".", "/l", nil, someOwner)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("after %d bytes: error %v, want ENOSPC", after, err)
		}
	}
}

func TestWriteTreeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := WriteTree(ctx, io.Discard, Stack{Upper: scratch(t)}, ".", "/l", nil, someOwner)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

// TestRoundTrip: a tree comes back from its tar as it was.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		data := tarOf(t, rapid.SliceOfN(drawHeader, 1, 12).Draw(rt, "entries")...)
		top := scratch(t)
		defer func() { _ = Remove(top) }()
		mkdirs(t, top, "first", "second")
		first, second := filepath.Join(top, "first"), filepath.Join(top, "second")
		if Apply(context.Background(), first, bytes.NewReader(data), Limits{}) != nil {
			return
		}
		var b bytes.Buffer
		if _, err := WriteTree(context.Background(), &b, Stack{Upper: first}, ".", "/", nil, Owner{}); err != nil {
			rt.Fatal(err)
		}
		if err := Apply(context.Background(), second, bytes.NewReader(b.Bytes()), Limits{}); err != nil {
			rt.Fatal(err)
		}
		want := withoutWhiteouts(renderDisk(t, first))
		if diff := cmp.Diff(want, renderDisk(t, second)); diff != "" {
			rt.Fatal(diff)
		}
	})
}

// withoutWhiteouts drops what a single layer does not show.
func withoutWhiteouts(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasSuffix(line, " whiteout\n") {
			b.WriteString(strings.Replace(line, "opaque=true", "opaque=false", 1))
		}
	}
	return b.String()
}

func TestWriteSlice(t *testing.T) {
	conform.Covers(t, 135)
	dir := scratch(t)
	mkdirs(t, dir, "a/deep", "a-b")
	for _, name := range []string{"a/deep/f", "a/g", "a-b/h", "top"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	slice := func(paths ...string) []string {
		var b bytes.Buffer
		if _, err := WriteSlice(context.Background(), &b, Stack{Upper: dir}, "/workspace", paths, someParents, someOwner); err != nil {
			t.Fatal(err)
		}
		var names []string
		tr := tar.NewReader(&b)
		for {
			hdr, err := tr.Next()
			if err == io.EOF {
				return names
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, hdr.Name)
		}
	}
	want := []string{"/layers", "/layers/bp", "/workspace", "/workspace/a", "/workspace/a-b", "/workspace/a-b/h", "/workspace/a/deep", "/workspace/a/deep/f"}
	if diff := cmp.Diff(want, slice("a/deep/f", "a-b/h")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/layers", "/layers/bp", "/workspace"}, slice(".")); diff != "" {
		t.Error(diff)
	}
	if got := slice(); got != nil {
		t.Errorf("empty slice has %v", got)
	}
	_, err := WriteSlice(context.Background(), io.Discard, Stack{Upper: dir}, "/workspace", []string{"../x"}, nil, someOwner)
	if err == nil {
		t.Error("a slice reaches out of the app directory")
	}
}

func TestWriteSliceEqualsReference(t *testing.T) {
	conform.Covers(t, 129, 130, 135)
	dir := scratch(t)
	mkdirs(t, dir, "a/b/c", "a-b", "a.b", "z", strings.Repeat("long/", 60))
	all := []string{".", "a", "a/b", "a/b/c", "a-b", "a.b", "z", "link", strings.TrimSuffix(strings.Repeat("long/", 60), "/")}
	for _, name := range []string{"a/b/c/d", "a/b/x", "a/x", "a-b/x", "a.b/x", "ab", "a b", "\xff", strings.Repeat("long/", 60) + "deep"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(name, 200)), 0o640); err != nil {
			t.Fatal(err)
		}
		all = append(all, name)
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(r *rapid.T) {
		paths := rapid.SliceOf(rapid.SampledFrom(all)).Draw(r, "paths")
		var got bytes.Buffer
		if _, err := WriteSlice(t.Context(), &got, Stack{Upper: dir}, "/srv/app", paths, someParents, someOwner); err != nil {
			r.Fatal(err)
		}
		if want := reference.Slice(t, dir, "/srv/app", paths, dirsOf(someParents), someOwner.UID, someOwner.GID); !bytes.Equal(want, got.Bytes()) {
			r.Fatalf("tar differs:\n%s", cmp.Diff(listTar(t, want), listTar(t, got.Bytes())))
		}
	})
}

func TestWriteFiles(t *testing.T) {
	conform.Covers(t, 129, 130)
	var b bytes.Buffer
	err := WriteFiles(&b, []File{
		{Path: "/cnb", Mode: fs.ModeDir | 0o755},
		{Path: "/cnb/process/web", Mode: 0o755, Link: "/cnb/lifecycle/launcher"},
		{Path: "/cnb/lifecycle/launcher", Mode: 0o755, Body: []byte("exe"), Owner: Owner{1, 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := listTar(t, b.Bytes())
	for i, want := range []string{
		`5 "/cnb" 755 0:0 "" "" 1980-01-01 00:00:01 +0000 UTC 0 USTAR`,
		`2 "/cnb/process/web" 755 0:0 "" "/cnb/lifecycle/launcher" 1980-01-01 00:00:01 +0000 UTC 0 USTAR`,
		`0 "/cnb/lifecycle/launcher" 755 1:2 "" "" 1980-01-01 00:00:01 +0000 UTC 3 USTAR`,
	} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("entry %d is %s, want %s", i, got[i], want)
		}
	}
}

// TestPitfall28SpuriousOpaques: the kernel marks every directory opaque that is
// made in a merged one. A layer's tar shows the merged tree, so no mark and no
// whiteout may differ it from the tar of the same tree written in a plain
// directory.
func TestPitfall28SpuriousOpaques(t *testing.T) {
	lower, upper, plain := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(dir, name string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(lower, "bp/kept")
	write(lower, "bp/layer/gone")
	write(upper, "bp/layer/new/f")
	for _, dir := range []string{"bp/layer", "bp/layer/new"} {
		if err := unix.Setxattr(filepath.Join(upper, dir), "user.overlay.opaque", []byte("y"), 0); err != nil {
			t.Fatalf("this file system has no user xattrs, which overlayfs needs as well: %v", err)
		}
	}
	write(plain, "bp/layer/new/f")
	var merged, want bytes.Buffer
	if _, err := WriteTree(t.Context(), &merged, Stack{Upper: upper, Lowers: []string{lower}}, "bp/layer", "/layers/bp/layer", nil, Owner{1, 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteTree(t.Context(), &want, Stack{Upper: plain}, "bp/layer", "/layers/bp/layer", nil, Owner{1, 1}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(merged.Bytes(), want.Bytes()) {
		t.Error("the layer of a directory that was made in an overlay differs from that of a plain one")
	}
}
