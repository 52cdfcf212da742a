package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// foreignTar is a tar that tries everything to write outside of its directory.
func foreignTar(t testing.TB, outside string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "/layers/sbom/launch/good.json", Typeflag: tar.TypeReg, Size: 2, Mode: 0o6777},
		{Name: "/layers/sbom/../../" + outside + "/evil", Typeflag: tar.TypeReg},
		{Name: "layers/sbom/../escape", Typeflag: tar.TypeReg},
		{Name: outside + "/absolute", Typeflag: tar.TypeReg},
		{Name: "/layers/sbom/link", Typeflag: tar.TypeSymlink, Linkname: outside},
		{Name: "./layers//sbom/link/through", Typeflag: tar.TypeReg},
		{Name: "/layers/sbom/hard", Typeflag: tar.TypeLink, Linkname: outside + "/secret"},
		{Name: "/layers/sbom/fifo", Typeflag: tar.TypeFifo},
		{Name: "/layers/sbom/dev", Typeflag: tar.TypeChar},
		{Name: "/layers/sbom/dir/", Typeflag: tar.TypeDir},
		{Name: "/layers/sbom/.wh.x", Typeflag: tar.TypeReg},
		{Name: "/layers/sbomb/x", Typeflag: tar.TypeReg},
		{Name: "/layers/acme/x", Typeflag: tar.TypeReg},
		{Name: "/layers/sbom", Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			w.Write([]byte("{}"))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// files lists what is below dir; what is no regular file is said to be none.
func filesBelow(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if !d.Type().IsRegular() {
			rel += " " + d.Type().String()
		}
		list = append(list, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func rootAt(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// Only regular files below the directory are written, and below the root.
func TestExtract(t *testing.T) {
	top := t.TempDir()
	outside, dir := filepath.Join(top, "outside"), filepath.Join(top, "dir")
	for _, d := range []string{outside, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outside+"/secret", []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := Extract(t.Context(), rootAt(t, dir), bytes.NewReader(foreignTar(t, outside)), "/layers/sbom", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"layers/sbom/launch/good.json", "layers/sbom/link/through"}
	if !slices.Equal(files, want) || !slices.Equal(filesBelow(t, dir), want) {
		t.Errorf("%q, and in the directory %q", files, filesBelow(t, dir))
	}
	if got := filesBelow(t, outside); !slices.Equal(got, []string{"secret"}) {
		t.Errorf("outside: %q", got)
	}
	if fi, err := os.Stat(filepath.Join(dir, want[0])); err != nil || fi.Mode()&^0o666 != 0 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	// A link that is there already and leads out is not followed.
	if err := errors.Join(os.RemoveAll(dir+"/layers"), os.Symlink(outside, dir+"/layers")); err != nil {
		t.Fatal(err)
	}
	if _, err := Extract(t.Context(), rootAt(t, dir), bytes.NewReader(foreignTar(t, outside)), "/layers/sbom", Limits{}); err == nil || len(filesBelow(t, outside)) != 1 {
		t.Errorf("%v, %q", err, filesBelow(t, outside))
	}
}

func TestExtractIsBounded(t *testing.T) {
	body := foreignTar(t, "/nowhere")
	extract := func(ctx context.Context, r io.Reader, l Limits) error {
		_, err := Extract(ctx, rootAt(t, t.TempDir()), r, "/layers/sbom", l)
		return err
	}
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"at the end": io.MultiReader(bytes.NewReader(body), brokenReader{broken}),
		"cut":        io.MultiReader(bytes.NewReader(body[:600]), brokenReader{broken}),
	} {
		if err := extract(t.Context(), r, Limits{}); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, l := range map[string]Limits{"entries": {Entries: 13}, "the path": {Path: 20}, "a file": {Bytes: 1}, "what follows": {Bytes: 4000}} {
		long := io.MultiReader(bytes.NewReader(body), bytes.NewReader(make([]byte, 4000)))
		if err := extract(t.Context(), long, l); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "/layers/sbom/x", Typeflag: tar.TypeReg, Size: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	if err := extract(t.Context(), &b, Limits{Bytes: 1 << 30}); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := extract(ctx, bytes.NewReader(body), Limits{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// Whatever the tar is: regular files below the directory, or an error.
func FuzzExtract(f *testing.F) {
	f.Add(foreignTar(f, "/tmp/outside"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		files, err := Extract(t.Context(), root, bytes.NewReader(b), "/layers/sbom", Limits{Entries: 1000, Bytes: 1 << 20})
		if err != nil {
			return
		}
		found := filesBelow(t, dir)
		slices.Sort(found)
		if !slices.Equal(files, found) && len(files)+len(found) > 0 {
			t.Fatalf("said %q, wrote %q", files, found)
		}
		for _, name := range found {
			if !strings.HasPrefix(name, "layers/sbom/") {
				t.Fatalf("wrote %q", name)
			}
		}
	})
}
