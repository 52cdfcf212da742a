package store_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

func TestTreeIsUnpackedOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	a, b := open(t, dir), open(t, dir)
	var unpacked atomic.Int32
	l := counting{putTar(t, a, "/d/f", "body"), &unpacked}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s := a
			if i%2 == 0 {
				s = b
			}
			tree, err := s.Tree(t.Context(), l)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(filepath.Join(tree, "d", "f")); err != nil || string(got) != "body" {
				t.Errorf("the tree has %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := unpacked.Load(); n != 1 {
		t.Errorf("the layer was read %d times, want once", n)
	}
	if !a.HasTree(diffID(t, l)) {
		t.Error("HasTree is false")
	}
	check(t, a)
}

type counting struct {
	v1.Layer
	n *atomic.Int32
}

func (c counting) Uncompressed() (io.ReadCloser, error) {
	c.n.Add(1)
	return c.Layer.Uncompressed()
}

func TestTreeOfWrongLayer(t *testing.T) {
	s := fresh(t)
	body := imagetest.Tar(t, 3000)
	for _, l := range []v1.Layer{
		imagetest.Broken{Tar: body, Flip: true},
		imagetest.Broken{Tar: body, Extra: make([]byte, 512)},
		imagetest.Broken{Tar: body, After: 1000, Fail: errors.New("gone")},
	} {
		if dir, err := s.Tree(t.Context(), l); err == nil {
			t.Errorf("a wrong layer was unpacked to %s", dir)
		}
		if s.HasTree(diffID(t, l)) {
			t.Error("a wrong layer counts as unpacked")
		}
	}
	assertEmpty(t, filepath.Join(s.Dir(), "trees"))
	assertEmpty(t, filepath.Join(s.Dir(), "trash"))
}

func assertEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), dir)
	}
}

func TestTreeFromBeforeReboot(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", "body")
	run, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(run.Dir, "adopt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("body"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil { // as buildpacks leave them
		t.Fatal(err)
	}
	if err := s.AdoptTree(t.Context(), diffID(t, l), dir); err != nil {
		t.Fatal(err)
	}
	if !s.HasTree(diffID(t, l)) {
		t.Fatal("an adopted tree is not there")
	}
	check(t, s)
	store.SetBoot(s, "another boot")
	if s.HasTree(diffID(t, l)) {
		t.Error("a tree that nobody synced is trusted after a reboot")
	}
	tree, err := s.Tree(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(tree, "f")); err != nil || string(got) != "body" {
		t.Errorf("the tree made again has %q, %v", got, err)
	}
	store.SetBoot(s, "a third boot")
	if !s.HasTree(diffID(t, l)) {
		t.Error("a tree that was synced is not trusted after a reboot")
	}
	check(t, s)
}

func TestAdoptTwice(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", "body")
	want, err := s.Tree(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	run, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AdoptTree(t.Context(), diffID(t, l), run.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(run.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory that was not needed is still there (%v)", err)
	}
	if _, err := os.Lstat(filepath.Join(want, "f")); err != nil {
		t.Error(err)
	}
	if err := s.AdoptTree(t.Context(), diffID(t, l)[:20], t.TempDir()); err == nil {
		t.Error("half a digest was accepted")
	}
}

func TestGCKeepsWhatIsNeeded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	user, cleaner := open(t, dir), open(t, dir)
	inImage := putTar(t, user, "image", "1")
	inCache := putTar(t, user, "cache", "2")
	inUse := putTar(t, user, "use", "3")
	img := imagetest.With(t, imagetest.Random(t, 1), inImage, imagetest.Gzip(t, imagetest.Tar(t, 100)))
	write(t, user, "app", img)
	for _, l := range []v1.Layer{inImage, inCache, inUse} {
		if _, err := user.Tree(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if _, err := user.Compressed(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	md := spec.CacheMetadata{SBOM: spec.LayerSHA{SHA: diffID(t, inCache)}}
	if err := user.Cache("app").Save(t.Context(), md); err != nil {
		t.Fatal(err)
	}
	gc(t, cleaner)
	for _, l := range []v1.Layer{inImage, inCache, inUse} {
		assertHere(t, cleaner, l, true)
	}
	if err := user.Close(); err != nil { // as when its process ends
		t.Fatal(err)
	}
	if f := gc(t, cleaner); f.Blobs != 2 || f.Trees != 1 {
		t.Errorf("GC removed %+v, want the layer that was in use, its twin and its tree", f)
	}
	assertHere(t, cleaner, inImage, true)
	assertHere(t, cleaner, inCache, true)
	assertHere(t, cleaner, inUse, false)
	check(t, cleaner)
	if err := cleaner.Delete(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	if err := cleaner.Cache("app").Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	gc(t, cleaner)
	gc(t, cleaner)
	for _, d := range []string{"blobs/sha256", "trees", "refs", "memo/blob", "memo/diffid", "memo/gzip", "trash"} {
		assertEmpty(t, filepath.Join(dir, d))
	}
	check(t, cleaner)
}

func gc(t *testing.T, s *store.Store) store.Freed {
	t.Helper()
	f, err := s.GC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// assertHere looks without holding, unlike Store.Layer.
func assertHere(t *testing.T, s *store.Store, l v1.Layer, want bool) {
	t.Helper()
	_, err := os.Lstat(filepath.Join(s.Dir(), "blobs", "sha256", digest(t, l).Hex))
	if got := err == nil; got != want || s.HasTree(diffID(t, l)) != want {
		t.Errorf("layer %s is here: %v, unpacked: %v; want %v", diffID(t, l), got, s.HasTree(diffID(t, l)), want)
	}
}

// An image that was opened stays readable whatever happens to its name.
func TestOpenImageOutlivesItsName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	reader, other := open(t, dir), open(t, dir)
	write(t, other, "app", imagetest.Random(t, 3))
	img, err := reader.Image(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	write(t, other, "app", imagetest.Random(t, 1))
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	gc(t, open(t, dir))
	for _, l := range layers(t, img) {
		rc, err := l.Uncompressed()
		if err == nil {
			_, err = io.Copy(io.Discard, rc)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func TestGCRefusesWhatItCannotRead(t *testing.T) {
	s := fresh(t)
	write(t, s, "app", imagetest.Random(t, 1))
	other := putTar(t, s, "f", "x")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.Dir())
	refs, err := filepath.Glob(filepath.Join(s.Dir(), "refs", "*.json"))
	if err != nil || len(refs) != 1 {
		t.Fatal(refs, err)
	}
	if err := os.WriteFile(refs[0], []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context()); !errors.Is(err, store.ErrDamaged) || spec.HintOf(err) == "" {
		t.Errorf("GC = %v (hint %q), want ErrDamaged and a hint", err, spec.HintOf(err))
	}
	if _, err := s.Layer(t.Context(), diffID(t, other)); err != nil {
		t.Errorf("GC removed something all the same: %v", err)
	}
	if err := s.Delete(t.Context(), "app"); err != nil {
		t.Errorf("a damaged ref cannot be deleted: %v", err)
	}
	gc(t, s)
}

func TestRun(t *testing.T) {
	s := fresh(t)
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deny := filepath.Join(r.Dir, "a", "b")
	if err := os.MkdirAll(filepath.Join(deny, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(deny, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(r.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close there is still %s (%v)", r.Dir, err)
	}
	assertEmpty(t, filepath.Join(s.Dir(), "trash"))
}

// What a layer says of itself is not believed until it was unpacked.
func TestLayerThatLiesAboutItsDiffID(t *testing.T) {
	s := fresh(t)
	good := imagetest.Gzip(t, imagetest.Tar(t, 100))
	victim := imagetest.Layer(t, imagetest.Tar(t, 50))
	lie := lying{good, victim}
	err := s.Write(t.Context(), "evil", imagetest.With(t, imagetest.Random(t, 1), lie))
	if err == nil || !strings.Contains(err.Error(), diffID(t, victim)) {
		t.Errorf("Write = %v, want an error that names the wrong diffID", err)
	}
	if _, err := s.Layer(t.Context(), diffID(t, victim)); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("the store now has another's layer (%v)", err)
	}
	// The same with the blob here already, and honestly known.
	write(t, s, "good", imagetest.With(t, imagetest.Random(t, 1), good))
	if err := s.Write(t.Context(), "evil", imagetest.With(t, imagetest.Random(t, 1), lie)); err == nil {
		t.Error("the lie passed when the blob was here")
	}
	check(t, s)
}

type lying struct {
	v1.Layer
	about v1.Layer
}

func (l lying) DiffID() (v1.Hash, error) { return l.about.DiffID() }

func TestTarWithWhiteouts(t *testing.T) {
	s := fresh(t)
	l, err := s.PutLayer(t.Context(), func(w io.Writer) error {
		tw := tar.NewWriter(w)
		return errors.Join(
			tw.WriteHeader(&tar.Header{Name: "/d/", Typeflag: tar.TypeDir, Mode: 0o555}),
			tw.WriteHeader(&tar.Header{Name: "/d/.wh.gone"}),
			tw.WriteHeader(&tar.Header{Name: "/l", Typeflag: tar.TypeSymlink, Linkname: "/nowhere"}),
			tw.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.Tree(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(filepath.Join(tree, "d", "gone"))
	if err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("the whiteout is %v, %v; want a character device", fi, err)
	}
	check(t, s)
	// A tree with a read-only directory can be collected.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.Dir())
	if f := gc(t, s); f.Trees != 1 {
		t.Errorf("GC removed %d trees, want 1", f.Trees)
	}
	assertEmpty(t, filepath.Join(s.Dir(), "trash"))
}
