package store_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// fixture is a small store with one of everything.
type fixture struct {
	dir string
	img v1.Image
	md  spec.CacheMetadata
}

func makeFixture(t *testing.T, dir string) fixture {
	t.Helper()
	s := open(t, dir)
	plain := putTar(t, s, "/plain", "plain")
	cached := putTar(t, s, "/cached", "cached")
	f := fixture{
		dir: dir,
		img: imagetest.With(t, imagetest.Random(t, 0), plain, imagetest.Gzip(t, imagetest.Tar(t, 300))),
		md:  spec.CacheMetadata{SBOM: spec.LayerSHA{SHA: diffID(t, cached)}},
	}
	// The images in the test are read after the store they were made in was
	// damaged: keep the bytes.
	f.img = inMemory(t, f.img)
	write(t, s, "app", f.img)
	if err := s.Cache("app").Save(t.Context(), f.md); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tree(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

func inMemory(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	var ls []v1.Layer
	for _, l := range layers(t, img) {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		if digest(t, l).String() == diffID(t, l) {
			ls = append(ls, imagetest.Layer(t, b))
		} else {
			ls = append(ls, imagetest.Gzip(t, b))
		}
	}
	return imagetest.With(t, imagetest.Random(t, 0), ls...)
}

// damages are ways to spoil a file of at least two bytes.
var damages = map[string]func(b []byte, at int) []byte{
	"flip":     func(b []byte, at int) []byte { b[at] ^= 1 << (at % 8); return b },
	"truncate": func(b []byte, at int) []byte { return b[:at] },
	"append":   func(b []byte, _ int) []byte { return append(b, 0) },
	"zero":     func(b []byte, _ int) []byte { return make([]byte, len(b)) },
	"delete":   func([]byte, int) []byte { return nil },
}

// TestCheckDetects proves the checker: whatever truth is spoiled, it says so;
// and reading the image gives an error or the right bytes, never others.
func TestCheckDetects(t *testing.T) {
	base := t.TempDir()
	f := makeFixture(t, filepath.Join(base, "good"))
	var tried int
	err := filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel := strings.TrimPrefix(path, f.dir+"/")
		if !truth(rel) {
			return nil
		}
		good, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for name, damage := range damages {
			// A few places in each file, the first and last byte among them.
			for _, at := range []int{0, len(good) / 3, len(good) - 1} {
				tried++
				dir := filepath.Join(base, "bad")
				copyStore(t, f.dir, dir)
				bad := damage(bytes.Clone(good), at)
				replaceFile(t, filepath.Join(dir, rel), bad)
				f.detect(t, dir, rel, name, at)
				if err := os.RemoveAll(dir); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if tried < 100 {
		t.Errorf("only %d damages tried: is the fixture empty?", tried)
	}
}

// truth says whether a file of the store must not change unnoticed. Memos and
// the marks of trees are checked where they are used.
func truth(rel string) bool {
	return !strings.HasPrefix(rel, "locks/") && !strings.HasPrefix(rel, "memo/") && filepath.Base(rel) != "tree.json" && !strings.HasSuffix(rel, ".lock")
}

func (f fixture) detect(t *testing.T, dir, rel, name string, at int) {
	t.Helper()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		if rel != "VERSION" {
			t.Errorf("%s %s at %d: Open: %v", name, rel, at, err)
		}
		return
	}
	defer s.Close()
	if name == "delete" && (rel == "VERSION" || strings.HasPrefix(rel, "caches/")) {
		return // Open has made it again; no cache is a miss, not damage
	}
	report, err := s.Check(t.Context(), true)
	if !errors.Is(err, store.ErrDamaged) || len(report.Problems) == 0 {
		t.Errorf("%s %s at %d: Check = %v, want ErrDamaged", name, rel, at, err)
	}
	f.sameOrError(t, s, rel, name)
	// The next build repairs all of it.
	if err := s.Write(t.Context(), "app", f.img); err != nil {
		t.Errorf("%s %s at %d: write again: %v", name, rel, at, err)
	}
	putTar(t, s, "/cached", "cached")
	if err := s.Cache("app").Save(t.Context(), f.md); err != nil {
		t.Errorf("%s %s at %d: save again: %v", name, rel, at, err)
	}
	if report, err := s.Check(t.Context(), true); err != nil {
		t.Errorf("%s %s at %d: after writing all again: %v %v", name, rel, at, err, report.Problems)
	}
}

func (f fixture) sameOrError(t *testing.T, s *store.Store, rel, name string) {
	t.Helper()
	img, err := s.Image(t.Context(), "app")
	if err != nil {
		return
	}
	if imagetest.ID(t, img) != imagetest.ID(t, f.img) {
		t.Errorf("%s %s: another image came out", name, rel)
		return
	}
	want := layers(t, f.img)
	for i, l := range layers(t, img) {
		rc, err := l.Uncompressed()
		if err != nil {
			continue
		}
		h, _, err := v1.SHA256(rc)
		if err == nil && h.String() != diffID(t, want[i]) {
			t.Errorf("%s %s: layer %d came out as %s without an error", name, rel, i, h)
		}
		_ = rc.Close()
	}
}

func copyStore(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.Mkdir(dst, 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// replaceFile writes b to path; nil removes it.
func replaceFile(t *testing.T, path string, b []byte) {
	t.Helper()
	err := os.Remove(path)
	if err == nil && b != nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestWrongRefIsDetected(t *testing.T) {
	s := fresh(t)
	write(t, s, "a", imagetest.Random(t, 1))
	write(t, s, "b", imagetest.Random(t, 1))
	a, b := filepath.Join(s.Dir(), "refs", "a%3Alatest.json"), filepath.Join(s.Dir(), "refs", "b%3Alatest.json")
	swapped, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, a, swapped)
	if _, err := s.Check(t.Context(), false); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("Check = %v, want ErrDamaged", err)
	}
	if _, err := s.Image(t.Context(), "a"); err == nil {
		t.Error("an image was opened through another's ref")
	}
}

func TestQuarantine(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", "body")
	img := imagetest.With(t, imagetest.Random(t, 0), inMemoryLayer(t, l))
	write(t, s, "app", img)
	path := filepath.Join(s.Dir(), "blobs", "sha256", digest(t, l).Hex)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[600] ^= 1
	replaceFile(t, path, b)
	rc, _, err := s.OpenBlob(t.Context(), digest(t, l).String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("reading a damaged blob gives %v, want ErrDamaged", err)
	}
	_ = rc.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the damaged blob is still in its place (%v)", err)
	}
	bad, err := filepath.Glob(filepath.Join(s.Dir(), "bad", digest(t, l).Hex+"*"))
	if err != nil || len(bad) != 2 {
		t.Errorf("in bad there are %v (%v), want the blob and the reason", bad, err)
	}
	if _, err := s.Image(t.Context(), "app"); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("Image = %v, want ErrDamaged", err)
	}
	if _, err := s.Check(t.Context(), false); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("Check = %v, want ErrDamaged", err)
	}
	write(t, s, "app", img)
	if r := check(t, s); r.Quarantined != 1 {
		t.Errorf("Check reports %d quarantined blobs, want 1", r.Quarantined)
	}
}

// A reader that finds damage late must not take away the good blob that has
// replaced the bad one meanwhile.
func TestQuarantineLeavesTheReplacement(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", "body")
	path := filepath.Join(s.Dir(), "blobs", "sha256", digest(t, l).Hex)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[600] ^= 1
	replaceFile(t, path, b)
	rc, _, err := s.OpenBlob(t.Context(), digest(t, l).String())
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	putTar(t, s, "f", "body")
	if _, err := io.Copy(io.Discard, rc); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("reading a damaged blob gives %v, want ErrDamaged", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the good blob was taken away: %v", err)
	}
	check(t, s)
}

func inMemoryLayer(t *testing.T, l v1.Layer) v1.Layer {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return imagetest.Layer(t, b)
}

func TestDamagedTreeIsMadeAgain(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "/f", "body")
	tree, err := s.Tree(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, filepath.Join(tree, "f"), []byte("BODY"))
	if _, err := s.Check(t.Context(), true); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("Check = %v, want ErrDamaged", err)
	}
	if s.HasTree(diffID(t, l)) {
		t.Error("a damaged tree still counts")
	}
	tree, err = s.Tree(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(tree, "f")); err != nil || string(b) != "body" {
		t.Errorf("the tree has %q, %v", b, err)
	}
	check(t, s)
}
