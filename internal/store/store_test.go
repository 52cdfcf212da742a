package store_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fresh(t *testing.T) *store.Store { return open(t, filepath.Join(t.TempDir(), "store")) }

func write(t *testing.T, s *store.Store, ref string, img v1.Image) {
	t.Helper()
	if err := s.Write(t.Context(), ref, img); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, s *store.Store) store.Report {
	t.Helper()
	r, err := s.Check(t.Context(), true)
	if err != nil {
		t.Fatalf("%v\n%+v", err, r.Problems)
	}
	return r
}

func layers(t *testing.T, img v1.Image) []v1.Layer {
	t.Helper()
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return ls
}

func diffID(t *testing.T, l v1.Layer) string {
	t.Helper()
	h, err := l.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func digest(t *testing.T, l v1.Layer) v1.Hash {
	t.Helper()
	h, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func names(t *testing.T, s *store.Store) []string {
	t.Helper()
	refs, err := s.Refs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range refs {
		out = append(out, r.Name)
	}
	return out
}

// putTar stores a layer of one file.
func putTar(t *testing.T, s *store.Store, name, body string) v1.Layer {
	t.Helper()
	l, err := s.PutLayer(t.Context(), func(w io.Writer) error { return oneFile(w, name, body) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func oneFile(w io.Writer, name, body string) error {
	tw := tar.NewWriter(w)
	err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))})
	_, err2 := io.WriteString(tw, body)
	return errors.Join(err, err2, tw.Close())
}

func TestContract(t *testing.T) {
	s := fresh(t)
	imagetest.TestTarget(t, s, s)
	for _, shape := range imagetest.DockerShapes() {
		t.Run(shape.Name, func(t *testing.T) {
			img := shape.Image(t)
			write(t, s, "docker", img)
			got, err := s.Image(t.Context(), "docker")
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(got); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("zstd", func(t *testing.T) {
		img := imagetest.Zstd(t)
		write(t, s, "zstd", img)
		ls := layers(t, img)
		l, err := s.Layer(t.Context(), diffID(t, ls[len(ls)-1]))
		if err != nil {
			t.Fatal(err)
		}
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		if h, _, err := v1.SHA256(rc); err != nil || h.String() != diffID(t, l) {
			t.Errorf("uncompressed zstd layer has digest %s (%v), want %s", h, err, diffID(t, l))
		}
	})
	if got := check(t, s); got.Images == 0 || got.Read == 0 {
		t.Errorf("Check looked at nothing: %+v", got)
	}
}

func TestName(t *testing.T) {
	const d = "@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for in, want := range map[string]string{
		"hello":                                "hello:latest",
		"hello:V1":                             "hello:V1",
		"docker.io/hello":                      "hello:latest",
		"docker.io/library/hello":              "hello:latest",
		"index.docker.io/library/hello":        "hello:latest",
		"library/hello":                        "hello:latest",
		"me/app:1":                             "me/app:1",
		"docker.io/library/a/b":                "library/a/b:latest",
		"127.0.0.1:5000/me/hello":              "127.0.0.1:5000/me/hello:latest",
		"ghcr.io/a/b:c":                        "ghcr.io/a/b:c",
		"hello" + d:                            "hello" + d,
		"hello:tag" + d:                        "hello" + d,
		"docker.io/library/sub.domain/x:1":     "library/sub.domain/x:1",
		"index.docker.io/sub.domain/thing:1":   "index.docker.io/sub.domain/thing:1",
		"registry.example.com/deep/er/path:99": "registry.example.com/deep/er/path:99",
	} {
		got, err := store.Name(in)
		if err != nil || got != want {
			t.Errorf("Name(%q) = %q, %v; want %q", in, got, err, want)
			continue
		}
		if again, err := store.Name(got); err != nil || again != got {
			t.Errorf("Name(Name(%q)) = %q, %v; want %q", in, again, err, got)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "a:b:c", "../../etc/passwd", "a/../b", "a/./b", "a/.hidden", "-a", "x@sha256:abc", strings.Repeat("a", 300)} {
		if got, err := store.Name(bad); err == nil {
			t.Errorf("Name(%q) = %q, want an error", bad, got)
		}
	}
}

func TestFind(t *testing.T) {
	s := fresh(t)
	img := imagetest.Random(t, 2)
	write(t, s, "hello", img)
	write(t, s, "127.0.0.1:5000/me/app:1", img)
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, "ghcr.io/x/y@"+h.String(), img)
	id := imagetest.ID(t, img)
	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{
		"hello", "hello:latest", "docker.io/library/hello", "127.0.0.1:5000/me/app:1", "ghcr.io/x/y@" + h.String(),
		"127.0.0.1:5000/me/app@" + h.String(), "hello@" + h.String(), id, hex, hex[:6], hex[:20], h.String(),
	} {
		got, err := s.Image(t.Context(), ref)
		if err != nil {
			t.Errorf("Image(%q): %v", ref, err)
		} else if imagetest.ID(t, got) != id {
			t.Errorf("Image(%q) is another image", ref)
		}
	}
	for _, ref := range []string{"hello:other", "me/app:1", "other@" + h.String(), hex[:5], "ffffff", "sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Image(t.Context(), ref); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("Image(%q) = %v, want ErrNotFound", ref, err)
		}
	}
	if err := s.Write(t.Context(), "a@sha256:"+strings.Repeat("0", 64), img); err == nil {
		t.Error("wrote an image under a digest that is not its own")
	}
	if err := s.Delete(t.Context(), hex[:8]); err != nil {
		t.Error(err)
	}
	if got := names(t, s); len(got) != 0 {
		t.Errorf("after deletion by ID there is %v", got)
	}
	if err := s.Delete(t.Context(), "hello"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("deleting what is not there gives %v, want ErrNotFound", err)
	}
}

func TestLongNames(t *testing.T) {
	s := fresh(t)
	tags := []string{strings.Repeat("x", 127) + "a", strings.Repeat("x", 127) + "b"}
	repo := "example.com/" + strings.Repeat("a/", 80) + "b"
	for _, tag := range tags {
		img := imagetest.Random(t, 1)
		write(t, s, repo+":"+tag, img)
		got, err := s.Image(t.Context(), repo+":"+tag)
		if err != nil {
			t.Fatal(err)
		}
		if imagetest.ID(t, got) != imagetest.ID(t, img) {
			t.Error("long names are mixed up")
		}
	}
	if got := names(t, s); len(got) != 2 {
		t.Errorf("there are %d names, want 2", len(got))
	}
}

func TestSkopeoAndUmociRead(t *testing.T) {
	for _, tool := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: apt-get install %s", err, tool)
		}
	}
	s := fresh(t)
	img := imagetest.With(t, imagetest.Random(t, 3), imagetest.Gzip(t, imagetest.Tar(t, 5000)))
	write(t, s, "hello", img)
	write(t, s, "127.0.0.1:5000/me/app:1", imagetest.Random(t, 2))
	for _, shape := range imagetest.DockerShapes() {
		// Pulled with Docker's media types, built upon, and stored as kiln build does.
		write(t, s, "base", shape.Image(t))
		base, err := s.Image(t.Context(), "base")
		if err != nil {
			t.Fatal(err)
		}
		oci, err := image.AsOCI(imagetest.Extended(t, base))
		if err != nil {
			t.Fatal(err)
		}
		write(t, s, "docker:1", oci)
	}
	for i, ref := range []string{"hello", "hello:latest", "127.0.0.1:5000/me/app:1", "docker:1"} {
		dst := fmt.Sprintf("oci-archive:%s/%d.tar", t.TempDir(), i)
		run(t, "skopeo", "copy", "oci:"+s.Dir()+":"+ref, dst)
	}
	out := run(t, "umoci", "list", "--layout", s.Dir())
	if !strings.Contains(out, "hello") {
		t.Errorf("umoci list shows %q", out)
	}
	run(t, "umoci", "stat", "--image", s.Dir()+":hello")
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String()
}

func TestOpenRefuses(t *testing.T) {
	t.Run("writable by others", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o770); err != nil {
			t.Fatal(err)
		}
		_, err := store.Open(t.Context(), dir)
		if err == nil || !strings.Contains(spec.HintOf(err), "chmod") {
			t.Errorf("Open = %v (hint %q), want a refusal with chmod in the hint", err, spec.HintOf(err))
		}
	})
	t.Run("something else", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "thesis.txt") {
			t.Errorf("Open = %v, want a refusal that names thesis.txt", err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "VERSION")); err == nil {
			t.Error("it was made a store all the same")
		}
	})
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(t.Context(), file); err == nil {
			t.Error("Open of a file succeeded")
		}
	})
	t.Run("another version", func(t *testing.T) {
		s := fresh(t)
		if err := os.WriteFile(filepath.Join(s.Dir(), "VERSION"), []byte("kiln store 9\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(t.Context(), s.Dir()); err == nil || !strings.Contains(err.Error(), "kiln store 9") {
			t.Errorf("Open = %v, want a refusal that names the version", err)
		}
	})
	t.Run("another user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			// Only root can give a directory away; root's own / will do.
			if _, err := store.Open(t.Context(), "/"); err == nil || !strings.Contains(err.Error(), "belongs to uid 0") {
				t.Errorf("Open(/) = %v, want a refusal that names the owner", err)
			}
			return
		}
		dir := t.TempDir()
		if err := os.Chown(dir, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "belongs to uid 12345") {
			t.Errorf("Open = %v, want a refusal that names the owner", err)
		}
	})
	t.Run("half made", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		write(t, s, "x", imagetest.Random(t, 1))
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o700 {
			t.Errorf("store has mode %v, want 0700", fi.Mode())
		}
	})
}

func TestNothingIsCopiedTwice(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", "body")
	img := imagetest.With(t, imagetest.Random(t, 1), l)
	write(t, s, "a", img)
	before := inode(t, s, digest(t, l))
	// A layer that is known by its digest must not even be opened.
	unread := unreadable{l, t}
	write(t, s, "b", imagetest.With(t, imagetest.Random(t, 0), unread))
	if !os.SameFile(before, inode(t, s, digest(t, l))) {
		t.Error("the blob was written again")
	}
}

type unreadable struct {
	v1.Layer
	t *testing.T
}

func (u unreadable) Compressed() (io.ReadCloser, error) {
	u.t.Error("a layer that the store has was read")
	return u.Layer.Compressed()
}

func inode(t *testing.T, s *store.Store, h v1.Hash) os.FileInfo {
	t.Helper()
	fi, err := os.Stat(filepath.Join(s.Dir(), "blobs", "sha256", h.Hex))
	if err != nil {
		t.Fatal(err)
	}
	return fi
}

func TestCompressed(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", strings.Repeat("compress me ", 100_000))
	var wg sync.WaitGroup
	twins := make([]v1.Layer, 4)
	for i := range twins {
		wg.Go(func() {
			var err error
			if twins[i], err = s.Compressed(t.Context(), l); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, twin := range twins {
		if digest(t, twin) != digest(t, twins[0]) {
			t.Error("the layer was compressed in two ways")
		}
	}
	img := imagetest.With(t, imagetest.Random(t, 0), twins[0])
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	if diffID(t, twins[0]) != diffID(t, l) {
		t.Errorf("the twin has diffID %s, want %s", diffID(t, twins[0]), diffID(t, l))
	}
	again, err := s.Compressed(t.Context(), twins[0])
	if err != nil || again != twins[0] {
		t.Errorf("a compressed layer was compressed again (%v)", err)
	}
}

func TestCacheKeepsTypes(t *testing.T) {
	s := fresh(t)
	l := putTar(t, s, "f", "x")
	c := s.Cache("app / with:odd\x00key")
	if _, ok, err := c.Load(t.Context()); ok || err != nil {
		t.Fatalf("Load of nothing = %v, %v", ok, err)
	}
	md := spec.CacheMetadata{Buildpacks: []spec.BuildpackLayers{{
		Key: "kiln/pip", Version: "1", Store: &spec.StoreTOML{Metadata: map[string]any{"n": int64(1)}},
		Layers: map[string]spec.LayerMetadata{"pip": {SHA: diffID(t, l), Cache: true, Data: map[string]any{
			"int": int64(3), "float": 3.0, "text": "a\nb\"'''\x01", "list": []any{int64(1), "a"}, "deep": map[string]any{"": true},
		}}},
	}}}
	if err := c.Save(t.Context(), md); err != nil {
		t.Fatal(err)
	}
	got, ok, err := c.Load(t.Context())
	if err != nil || !ok {
		t.Fatalf("Load = %v, %v", ok, err)
	}
	if d := cmp.Diff(md, got); d != "" {
		t.Errorf("(-saved +loaded)\n%s", d)
	}
	md.SBOM.SHA = "sha256:" + strings.Repeat("1", 64)
	if err := c.Save(t.Context(), md); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("Save with a missing layer = %v, want ErrNotFound", err)
	}
	if _, ok, err := c.Load(t.Context()); !ok || err != nil {
		t.Errorf("the cache before is gone: %v", err)
	}
	if err := c.Clear(t.Context()); err != nil {
		t.Error(err)
	}
	if _, ok, err := c.Load(t.Context()); ok || err != nil {
		t.Errorf("Load after Clear = %v, %v", ok, err)
	}
}

func TestCacheLock(t *testing.T) {
	s := fresh(t)
	unlock, err := s.Cache("k").Lock(t.Context(), func(string) { t.Error("waited for a free lock") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = open(t, s.Dir()).Cache("k").Lock(ctx, func(holder string) {
		if !strings.Contains(holder, fmt.Sprint(os.Getpid())) {
			t.Errorf("holder is %q, want this process in it", holder)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Lock of a held cache = %v, want Canceled", err)
	}
	other, err := s.Cache("other").Lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	other()
	done := make(chan struct{})
	go func() {
		defer close(done)
		unlock2, err := s.Cache("k").Lock(t.Context(), nil)
		if err != nil {
			t.Error(err)
			return
		}
		unlock2()
	}()
	unlock()
	<-done
}

func TestMemo(t *testing.T) {
	s := fresh(t)
	if _, ok := s.Recall("app", "k"); ok {
		t.Error("recalled what was never remembered")
	}
	for _, v := range [][]byte{{}, []byte("one"), {0, 255, 10}} {
		if err := s.Remember(t.Context(), "app", "k\x00/../..", v); err != nil {
			t.Fatal(err)
		}
		if got, ok := s.Recall("app", "k\x00/../.."); !ok || !bytes.Equal(got, v) {
			t.Errorf("recalled %q, %v; want %q", got, ok, v)
		}
	}
	if err := s.Remember(t.Context(), "../x", "k", nil); err == nil {
		t.Error("a path was taken for a kind")
	}
	files, err := filepath.Glob(filepath.Join(s.Dir(), "memo", "app", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("memo files: %v, %v; want one", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if err := os.WriteFile(files[0], bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := s.Recall("app", "k\x00/../.."); ok {
			t.Fatalf("recalled %q with byte %d flipped", got, i)
		}
	}
}
