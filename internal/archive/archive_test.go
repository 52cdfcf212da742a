package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

func TestContract(t *testing.T) {
	for name, place := range map[string]func(dir string) imagetest.Place{
		"layout": func(dir string) imagetest.Place {
			l := Layout{filepath.Join(dir, "not", "there", "yet")}
			return imagetest.Place{Target: l, Source: l}
		},
		"layout-dir": func(dir string) imagetest.Place {
			l := LayoutDir{dir}
			return imagetest.Place{Target: l, Source: l}
		},
		"oci-archive": func(dir string) imagetest.Place {
			a := OCIArchive{filepath.Join(dir, "out.tar")}
			return imagetest.Place{Target: a, Source: a, Single: true}
		},
		"docker-archive": func(dir string) imagetest.Place {
			a := DockerArchive{filepath.Join(dir, "out.tar")}
			return imagetest.Place{Target: a, Source: a, Single: true, Rewrites: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			place(dir).Test(t)
			noTemps(t, dir)
		})
	}
}

// noTemps fails if anything unfinished was left.
func noTemps(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.Contains(d.Name(), tempMark) {
			t.Errorf("%s was left behind", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// places are the three kinds, at a path below dir.
func places(dir string) map[string]Place {
	return map[string]Place{
		"oci":            Layout{filepath.Join(dir, "layout")},
		"oci-archive":    OCIArchive{filepath.Join(dir, "oci.tar")},
		"docker-archive": DockerArchive{filepath.Join(dir, "docker.tar")},
	}
}

func TestWrittenImageIsValid(t *testing.T) {
	shapes := append(imagetest.Shapes(), append(imagetest.DockerShapes(), imagetest.Shape{Name: "zstd", Image: imagetest.Zstd})...)
	for _, shape := range shapes {
		for kind, place := range places(t.TempDir()) {
			want := shape.Image(t)
			if err := place.Write(t.Context(), "app:1", want); err != nil {
				t.Fatal(err)
			}
			got, err := place.Image(t.Context(), "app:1")
			if err != nil {
				t.Fatal(err)
			}
			if err := image.Validate(t.Context(), got, nil); err != nil {
				t.Errorf("%s, %s: %v", kind, shape.Name, err)
			}
			if imagetest.ID(t, got) != imagetest.ID(t, want) {
				t.Errorf("%s, %s: the image ID changed", kind, shape.Name)
			}
		}
	}
}

// TestDeterministic: the same image gives the same bytes at another time and
// place, after other images and under another umask of the file system.
func TestDeterministic(t *testing.T) {
	img := imagetest.With(t, imagetest.Random(t, 3), imagetest.Gzip(t, imagetest.Tar(t, 5000)))
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		for _, p := range places(dir) {
			if err := p.Write(t.Context(), "app:1", img); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(1100 * time.Millisecond) // a tar's times have seconds
	}
	read := func(dir string) map[string]string {
		files := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			body, err := os.ReadFile(path)
			rel, _ := filepath.Rel(dir, path)
			files[rel] = string(body)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	first, second := read(a), read(b)
	if len(first) < 2+2+6 {
		t.Fatalf("only %d files were written", len(first))
	}
	for name, body := range first {
		if second[name] != body {
			t.Errorf("%s differs the second time", name)
		}
	}
	if len(first) != len(second) {
		t.Errorf("%d files the first time, %d the second", len(first), len(second))
	}
}

// TestOutsiders: skopeo reads what was written, to the same digest or ID, and
// what skopeo writes is read.
func TestOutsiders(t *testing.T) {
	skopeo := tool(t, "skopeo")
	img := imagetest.With(t, imagetest.Random(t, 1), imagetest.Gzip(t, imagetest.Tar(t, 70<<10)), imagetest.Layer(t, imagetest.Tar(t, 200)))
	dir := t.TempDir()
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for kind, place := range places(dir) {
		if err := place.Write(t.Context(), "some/app:1", img); err != nil {
			t.Fatal(err)
		}
		name := kind + ":" + pathOf(place) + ":some/app:1"
		out := run(t, skopeo, "inspect", name)
		var doc struct{ Digest string }
		if err := json.Unmarshal(out, &doc); err != nil {
			t.Fatal(err)
		}
		if kind != "docker-archive" && doc.Digest != digest.String() {
			t.Errorf("%s: skopeo sees %s, want %s", kind, doc.Digest, digest)
		}
		// skopeo copy reads and checks every blob.
		back := filepath.Join(dir, "back-"+kind)
		run(t, skopeo, "copy", "--insecure-policy", name, kind+":"+back+":some/app:1")
		p, ref, ok := Parse(kind + ":" + back + ":some/app:1")
		if !ok {
			t.Fatal("Parse does not know its own names")
		}
		got, err := p.Image(t.Context(), ref)
		if err != nil {
			t.Errorf("read what skopeo wrote: %v", err)
			continue
		}
		if err := image.Validate(t.Context(), got, nil); err != nil {
			t.Errorf("%s by skopeo: %v", kind, err)
		}
		if imagetest.ID(t, got) != imagetest.ID(t, img) {
			t.Errorf("%s by skopeo: another image ID", kind)
		}
	}
	// umoci wants to unpack the rootfs; rootless it may do so as anybody.
	umoci := tool(t, "umoci")
	run(t, umoci, "stat", "--image", filepath.Join(dir, "layout")+":some/app:1")
	run(t, umoci, "raw", "unpack", "--rootless", "--image", filepath.Join(dir, "layout")+":some/app:1", filepath.Join(dir, "rootfs"))
}

func pathOf(p Place) string {
	switch p := p.(type) {
	case Layout:
		return p.Dir
	case OCIArchive:
		return p.Path
	case DockerArchive:
		return p.Path
	}
	return ""
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: apt-get install %s", name, name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// TestReadsOthers: what go-containerregistry's tarball package writes, a docker
// archive with gzip layers, is read.
func TestReadsOthers(t *testing.T) {
	img := imagetest.With(t, imagetest.Random(t, 0), imagetest.Gzip(t, imagetest.Tar(t, 9000)))
	path := filepath.Join(t.TempDir(), "theirs.tar")
	tag, err := name.NewTag("some/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	got, err := DockerArchive{path}.Image(t.Context(), "docker.io/some/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), got, nil); err != nil {
		t.Error(err)
	}
	m, err := got.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if mt := m.Layers[0].MediaType; mt != types.DockerLayer {
		t.Errorf("a gzip layer has media type %s", mt)
	}
}

func TestDockerArchiveForm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.tar")
	l := imagetest.Layer(t, imagetest.Tar(t, 10))
	img := imagetest.With(t, imagetest.Random(t, 0), l, imagetest.Gzip(t, imagetest.Tar(t, 10)), l)
	for ref, want := range map[string][]string{
		"":                                    {},
		"hello":                               {"hello:latest"},
		"hello:2":                             {"hello:2"},
		"127.0.0.1:5000/me/hi":                {"127.0.0.1:5000/me/hi:latest"},
		"x@sha256:" + strings.Repeat("0", 64): {},
	} {
		if err := (DockerArchive{path}).Write(t.Context(), ref, img); err != nil {
			t.Fatal(err)
		}
		names, files := readTar(t, path)
		var entries []dockerEntry
		if err := json.Unmarshal(files["manifest.json"], &entries); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, entries[0].RepoTags); diff != "" {
			t.Errorf("tags for %q (-want +got):\n%s", ref, diff)
		}
		if len(entries[0].Layers) != 3 || entries[0].Layers[0] != entries[0].Layers[2] || len(names) != 4 {
			t.Errorf("a layer that repeats should be there once: %v in %v", entries[0].Layers, names)
		}
		for _, name := range entries[0].Layers {
			if got := imagetest.Sum(files[name]).Hex + ".tar"; got != name {
				t.Errorf("layer %s has the bytes of %s", name, got)
			}
		}
	}
	if err := (DockerArchive{path}).Write(t.Context(), "Not A Name", img); err == nil {
		t.Error("an invalid reference was taken")
	}
}

func readTar(t *testing.T, path string) (names []string, files map[string][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files = map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s: header tells of this machine: %v", h.Name, h)
		}
		names = append(names, h.Name)
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailureLeavesNothing: no file, no directory, and what was there stays.
func TestFailureLeavesNothing(t *testing.T) {
	good := imagetest.Random(t, 2)
	body := imagetest.Tar(t, 60<<10)
	bad := imagetest.With(t, good, imagetest.Broken{Tar: body, Flip: true})
	dir := t.TempDir()
	for kind, p := range places(dir) {
		if err := p.Write(t.Context(), "app:1", bad); !errors.Is(err, image.ErrInvalid) {
			t.Errorf("%s: writing wrong bytes gives %v, want ErrInvalid", kind, err)
		}
		if _, err := os.Lstat(pathOf(p)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something is there after a failure", kind)
		}
		if _, err := p.Image(t.Context(), "app:1"); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("%s: reading what does not exist gives %v, want ErrNotFound", kind, err)
		}
		if err := p.Write(t.Context(), "app:1", good); err != nil {
			t.Fatal(err)
		}
		before := listing(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Write(ctx, "app:1", imagetest.Random(t, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: a cancelled write gives %v", kind, err)
		}
		if err := p.Write(t.Context(), "app:1", bad); err == nil {
			t.Errorf("%s: wrong bytes were written", kind)
		}
		if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
			t.Errorf("%s: a failed write left things (-before +after):\n%s", kind, diff)
		}
	}
	noTemps(t, dir)
}

func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			out[path] = "dir"
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = imagetest.Sum(b).String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBrokenBlobIsReplaced: a blob that rotted in a layout is not built upon.
func TestBrokenBlobIsReplaced(t *testing.T) {
	l := Layout{t.TempDir()}
	img := imagetest.Random(t, 2)
	if err := l.Write(t.Context(), "a", img); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(l.Dir, blobName(h))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := l.Image(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), got, nil); !errors.Is(err, image.ErrInvalid) {
		t.Fatalf("a flipped bit gives %v, want ErrInvalid", err)
	}
	if err := l.Write(t.Context(), "b", img); err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), got, nil); err != nil {
		t.Errorf("after writing it again: %v", err)
	}
}

func TestWhatIsInTheWayStays(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	img := imagetest.Random(t, 1)
	for kind, p := range map[string]Place{"oci": Layout{dir}, "oci-archive": OCIArchive{dir}, "docker-archive": DockerArchive{dir}} {
		if err := p.Write(t.Context(), "app", img); err == nil {
			t.Errorf("%s: wrote over somebody's directory", kind)
		}
	}
	if got := listing(t, dir); len(got) != 2 {
		t.Errorf("the directory now has %v", got)
	}
	// A symlink to a file is followed, not replaced.
	target := filepath.Join(t.TempDir(), "real.tar")
	link := filepath.Join(dir, "link.tar")
	if err := errors.Join(os.WriteFile(target, nil, 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := (OCIArchive{link}).Write(t.Context(), "app", img); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the symlink is gone: %v %v", info, err)
	}
	if _, err := (OCIArchive{target}).Image(t.Context(), "app"); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	l := Layout{filepath.Join(t.TempDir(), "l")}
	a, b := imagetest.Random(t, 1), imagetest.Random(t, 2)
	if err := l.Write(t.Context(), "", a); err != nil {
		t.Fatal(err)
	}
	got, err := l.Image(t.Context(), "")
	if err != nil || imagetest.ID(t, got) != imagetest.ID(t, a) {
		t.Fatalf("the only image is not found without a name: %v", err)
	}
	if err := l.Write(t.Context(), "b", b); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Image(t.Context(), ""); !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("of two images without a name: %v; want ErrNotFound that lists them", err)
	}
	d, err := b.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got, err = l.Image(t.Context(), d.String()); err != nil || imagetest.ID(t, got) != imagetest.ID(t, b) {
		t.Errorf("by digest: %v", err)
	}
}

func TestParse(t *testing.T) {
	type parsed struct {
		Place Place
		Ref   string
		OK    bool
	}
	for in, want := range map[string]parsed{
		"oci:./out":                     {Layout{"./out"}, "", true},
		"oci:/a/b:tag":                  {Layout{"/a/b"}, "tag", true},
		"oci-archive:x.tar":             {OCIArchive{"x.tar"}, "", true},
		"docker-archive:x.tar:me/app:1": {DockerArchive{"x.tar"}, "me/app:1", true},
		"oci:":                          {},
		"oci":                           {},
		"localhost:5000/app":            {},
		"docker-daemon:app":             {},
	} {
		p, ref, ok := Parse(in)
		if diff := cmp.Diff(want, parsed{p, ref, ok}); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", in, diff)
		}
	}
}

func TestCompressedArchiveSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.tar.gz")
	if err := os.WriteFile(path, []byte{0x1f, 0x8b, 8, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := DockerArchive{path}.Image(t.Context(), "")
	if !strings.Contains(spec.HintOf(err), "gunzip") {
		t.Errorf("a compressed archive gives %v with the hint %q", err, spec.HintOf(err))
	}
}

// TestAbandonedTempsGo: what a killed process left is removed by the next
// write of the same name, what a living one has is not.
func TestAbandonedTempsGo(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * abandoned)
	dead := filepath.Join(dir, ".out.tar"+tempMark+"dead")
	if err := errors.Join(os.WriteFile(dead, []byte("half"), 0o600), os.Chtimes(dead, old, old)); err != nil {
		t.Fatal(err)
	}
	alive, err := newTemp(dir, "out.tar", false)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.remove()
	if err := os.Chtimes(alive.path, old, old); err != nil {
		t.Fatal(err)
	}
	if err := (OCIArchive{filepath.Join(dir, "out.tar")}).Write(t.Context(), "", imagetest.Random(t, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what a dead process left is still there")
	}
	if _, err := os.Lstat(alive.path); err != nil {
		t.Errorf("what a living process has is gone: %v", err)
	}
}

// FuzzSources: no file makes a Source panic or take memory without bound, and
// an image that a Source opens and Validate accepts can be written again.
func FuzzSources(f *testing.F) {
	dir := f.TempDir()
	var seeds testing.T
	img := imagetest.With(&seeds, imagetest.Random(&seeds, 1), imagetest.Gzip(&seeds, imagetest.Tar(&seeds, 100)))
	for _, p := range []Place{OCIArchive{filepath.Join(dir, "seed")}, DockerArchive{filepath.Join(dir, "seed")}} {
		if err := p.Write(f.Context(), "app:1", img); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "seed"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "fuzz.tar")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, s := range []image.Source{OCIArchive{path}, DockerArchive{path}} {
			img, err := s.Image(t.Context(), "")
			if err != nil || image.Validate(t.Context(), img, nil) != nil {
				continue
			}
			if err := (OCIArchive{filepath.Join(dir, "again.tar")}).Write(t.Context(), "", img); err != nil {
				t.Errorf("a valid image cannot be written: %v", err)
			}
		}
	})
}

// A sparse layout has what can be known without a layer.
func TestWriteSparse(t *testing.T) {
	img := imagetest.Random(t, 3)
	dir := filepath.Join(t.TempDir(), "deep/sparse")
	layout := Layout{Dir: dir}
	for range 2 {
		if err := layout.WriteSparse(t.Context(), unreadableLayers{img}, 0); err != nil {
			t.Fatal(err)
		}
	}
	got, err := layout.Image(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func(v1.Image) (string, error){
		"manifest": func(i v1.Image) (string, error) { b, err := i.RawManifest(); return string(b), err },
		"config":   func(i v1.Image) (string, error) { b, err := i.RawConfigFile(); return string(b), err },
	} {
		a, errA := f(img)
		b, errB := f(got)
		if a != b || errA != nil || errB != nil {
			t.Errorf("%s: %q %v, want %q %v", what, b, errB, a, errA)
		}
	}
	layers, err := got.Layers()
	if err != nil || len(layers) != 3 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	for _, l := range layers {
		if rc, err := l.Compressed(); err == nil {
			rc.Close()
			t.Error("a layer can be read")
		}
	}
	// A whole image of the same directory takes its place, and the other way.
	if err := layout.Write(t.Context(), "", img); err != nil {
		t.Fatal(err)
	}
	for top, want := range map[int]int{0: 2, 1: 3, 3: 5, 4: 5} {
		if err := layout.WriteSparse(t.Context(), img, top); err != nil {
			t.Fatal(err)
		}
		blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
		if err != nil || len(blobs) != want {
			t.Errorf("with %d layers: %d blobs, want %d, %v", top, len(blobs), want, err)
		}
	}
	if err := layout.WriteSparse(t.Context(), img, 1); err != nil {
		t.Fatal(err)
	}
	sparse, err := OpenStack(layer.Stack{Upper: dir})
	if err != nil {
		t.Fatal(err)
	}
	if layers, err = sparse.Layers(); err != nil || len(layers) != 3 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	for i, l := range layers {
		rc, err := l.Uncompressed()
		if (err == nil) != (i == 2) {
			t.Errorf("layer %d: %v", i, err)
		}
		if err == nil {
			rc.Close()
		}
	}
}

// What foreign code leaves in place of a layout leads nowhere and blocks nobody.
func TestOpenStackIsSafe(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"index is a pipe":      func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "index.json"), 0o600) },
		"index is a directory": func(dir string) error { return os.Mkdir(filepath.Join(dir, "index.json"), 0o700) },
		"index is a link": func(dir string) error {
			if err := os.Rename(filepath.Join(dir, "gone"), filepath.Join(dir, "elsewhere")); err != nil {
				return err
			}
			return os.Symlink("elsewhere", filepath.Join(dir, "index.json"))
		},
		"blobs is a link": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "gone"), filepath.Join(dir, "index.json")),
				os.Rename(filepath.Join(dir, "blobs"), filepath.Join(dir, "elsewhere")), os.Symlink("elsewhere", filepath.Join(dir, "blobs")))
		},
		"no index": func(string) error { return nil },
		"garbage":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o600) },
		"two images": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "gone"), filepath.Join(dir, "index.json")), Layout{dir}.Write(t.Context(), "two", imagetest.Random(t, 1)))
		},
	} {
		dir := filepath.Join(t.TempDir(), "layout")
		if err := (Layout{dir}).Write(t.Context(), "one", imagetest.Random(t, 1)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(filepath.Join(dir, "index.json"), filepath.Join(dir, "gone")), harm(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenStack(layer.Stack{Upper: dir}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// A file that somebody names as an archive is one, or an error: nobody is waited
// for, and nothing is read for ever.
func TestArchivesThatAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, device := filepath.Join(dir, "pipe"), filepath.Join(dir, "device")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink("/dev/zero", device)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, device, dir} {
		for _, s := range []image.Source{OCIArchive{path}, DockerArchive{path}} {
			if _, err := s.Image(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// FuzzLayoutDir: whatever stands in the two documents of a layout, it is opened or
// refused with its name, and written to only if it is one.
func FuzzLayoutDir(f *testing.F) {
	dir := f.TempDir()
	var seeds testing.T
	if err := (Layout{filepath.Join(dir, "seed")}).Write(f.Context(), "app:1", imagetest.Random(&seeds, 1)); err != nil {
		f.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "seed", "index.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"imageLayoutVersion":"1.0.0"}`), index)
	f.Add([]byte(`{"imageLayoutVersion":"2.0.0"}`), []byte(`{"manifests":[{"digest":"sha256:../x"}]}`))
	f.Add([]byte("{"), []byte("null"))
	img := imagetest.Random(&seeds, 0)
	f.Fuzz(func(t *testing.T, version, index []byte) {
		l := Layout{filepath.Join(dir, "fuzz")}
		if err := os.RemoveAll(l.Dir); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(l.Dir, os.DirFS(filepath.Join(dir, "seed"))); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"oci-layout": version, "index.json": index} {
			if err := os.WriteFile(filepath.Join(l.Dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Names(t.Context()); err != nil && !strings.Contains(err.Error(), l.Dir) {
			t.Errorf("%v does not name the layout", err)
		}
		if got, err := l.Image(t.Context(), ""); err == nil {
			_ = image.Validate(t.Context(), got, nil)
		}
		if l.Write(t.Context(), "new", img) != nil {
			return
		}
		if _, err := l.Image(t.Context(), "new"); err != nil {
			t.Errorf("written and not there: %v\n%s\n%s", err, version, index)
		}
	})
}

type unreadableLayers struct{ v1.Image }

func (unreadableLayers) Layers() ([]v1.Layer, error) { return nil, errors.New("a layer was asked for") }

func (unreadableLayers) LayerByDigest(v1.Hash) (v1.Layer, error) {
	return nil, errors.New("a layer was asked for")
}
