package layer

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/test/conform"
)

// fileNames draws names that a file can have and a layer can hold.
func fileNames() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{"a", "a-b", "a.b", "a b", "A", ".wh", "x.wh.y", "wh.", "-", "ünïcode", "日本", "é", "e\u0301", "\xff\xfe", "new\nline", "tab\t", "..a", "pax 100", strings.Repeat("n", 255), strings.Repeat("n", 101)}),
		rapid.StringMatching(`[a-c.\-_ ]{1,4}`),
		rapid.String(),
	).Filter(func(s string) bool {
		return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\x00") && !strings.HasPrefix(s, whiteoutPrefix)
	})
}

// growTree fills dir with files of all kinds, and returns how many it made.
func growTree(r *rapid.T, dir string) int {
	dirs, files := []string{dir}, []string{}
	try := func(err error) bool {
		if err != nil && !os.IsExist(err) {
			r.Fatal(err)
		}
		return err == nil
	}
	n := rapid.IntRange(0, 12).Draw(r, "files")
	for range n {
		path := filepath.Join(rapid.SampledFrom(dirs).Draw(r, "in"), fileNames().Draw(r, "name"))
		mode := rapid.Uint32Range(0, 0o7777).Draw(r, "mode")
		made := false
		switch kind := rapid.SampledFrom([]string{"file", "file", "dir", "link", "hard", "sparse", "fifo", "socket"}).Draw(r, "kind"); kind {
		case "file", "sparse":
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if made = try(err); !made {
				continue
			}
			if kind == "sparse" {
				try(f.Truncate(rapid.Int64Range(0, 100_000).Draw(r, "size")))
			} else {
				_, err = f.Write(rapid.SliceOfN(rapid.Byte(), 0, 1100).Draw(r, "body"))
				try(err)
			}
			try(f.Close())
			_ = unix.Setxattr(path, "user.of.somebody", []byte("x"), 0) // where there are any
			files = append(files, path)
			mode |= 0o400
		case "dir":
			if made = try(os.Mkdir(path, 0o700)); made {
				dirs = append(dirs, path)
			}
			mode |= 0o700
		case "link":
			try(os.Symlink(rapid.SampledFrom([]string{"a", "../..", "/etc/passwd", strings.Repeat("t", 300), "日本"}).Draw(r, "target"), path))
		case "hard":
			if len(files) > 0 {
				try(os.Link(rapid.SampledFrom(files).Draw(r, "of"), path))
			}
		case "fifo":
			made = try(unix.Mkfifo(path, 0o600))
		case "socket":
			made = try(unix.Mknod(path, unix.S_IFSOCK|0o600, 0))
		}
		if made {
			try(unix.Chmod(path, mode))
			at := time.Unix(rapid.Int64Range(0, 4e9).Draw(r, "mtime"), 123)
			try(os.Chtimes(path, at, at))
		}
	}
	return n
}

// TestAnyTreeEqualsReference: of any tree both lifecycles make the same layer.
func TestAnyTreeEqualsReference(t *testing.T) {
	conform.Covers(t, 129, 130)
	ids := rapid.SampledFrom([]int{0, 1000, 65534, 2097151, 2097152, 1<<31 - 2})
	grown := 0
	rapid.Check(t, func(r *rapid.T) {
		dir := scratch(t)
		grown += growTree(r, dir)
		owner := Owner{ids.Draw(r, "uid"), ids.Draw(r, "gid")}
		at := rapid.SampledFrom([]string{"/layers/bp/l", "/l", "/" + strings.Repeat("long/", 30) + "l"}).Draw(r, "at")
		parents := []Parent{{"/layers", fs.ModeDir | fs.ModeSticky | 0o777, Owner{0, 0}}, {"/layers/bp", fs.ModeDir | 0o750, Owner{ids.Draw(r, "parent"), 8}}}
		want := referenceTar(t, dir, at, parents, owner)
		var got bytes.Buffer
		if _, err := WriteTree(context.Background(), &got, Stack{Upper: dir}, ".", at, parents, owner); err != nil {
			r.Fatal(err)
		}
		if !bytes.Equal(want, got.Bytes()) {
			r.Fatalf("tar differs (-theirs +ours):\n%s", cmp.Diff(listTar(t, want), listTar(t, got.Bytes())))
		}
	})
	if grown == 0 {
		t.Error("no tree had a file")
	}
}
