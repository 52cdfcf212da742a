package archive

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/test/conform"
)

var digestOfTest = "sha256:" + strings.Repeat("0123456789abcdef", 4)

func TestLayoutPath(t *testing.T) {
	conform.Covers(t, 193)
	for ref, want := range map[string]string{
		"ubuntu":                    "index.docker.io/library/ubuntu/latest",
		"ubuntu:22.04":              "index.docker.io/library/ubuntu/22.04",
		"docker.io/library/ubuntu":  "index.docker.io/library/ubuntu/latest",
		"cnb/run":                   "index.docker.io/cnb/run/latest",
		"reg.example.com/a/b/c:v1":  "reg.example.com/a/b/c/v1",
		"localhost:5000/app":        "localhost:5000/app/latest",
		"ubuntu@" + digestOfTest:    "index.docker.io/library/ubuntu/sha256/" + digestOfTest[7:],
		"ubuntu:1@" + digestOfTest:  "index.docker.io/library/ubuntu/sha256/" + digestOfTest[7:],
		"r.io/a/b@" + digestOfTest:  "r.io/a/b/sha256/" + digestOfTest[7:],
		"app:..":                    "",
		"app:.":                     "",
		"r.io/../../etc:x":          "",
		"r.io/a/../b":               "",
		"r.io/a//b":                 "",
		"App":                       "",
		"":                          "",
		"app@sha256:abc":            "",
		"r.io/a/b@md5:0123456789ab": "",
	} {
		got, err := LayoutDir{"/dir"}.Path(ref)
		if want == "" {
			if err == nil {
				t.Errorf("%q is mapped to %s", ref, got)
			}
			continue
		}
		if err != nil || got != "/dir/"+want {
			t.Errorf("%q: %s, %v, want /dir/%s", ref, got, err, want)
		}
	}
}

// TestLayoutPathStaysBelow: whatever passes for a reference stays below the
// directory, and two references share a path only if they are the same image's.
func TestLayoutPathStaysBelow(t *testing.T) {
	elem := rapid.StringMatching(`[a-z0-9._/-]{1,6}`)
	ref := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"", "r.io/", "localhost:5000/", "../"}).Draw(t, "registry") + elem.Draw(t, "repo") +
			rapid.SampledFrom([]string{"", ":", "@sha256:"}).Draw(t, "by") + rapid.StringMatching(`[a-zA-Z0-9._-]{0,4}`).Draw(t, "tag")
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := ref.Draw(t, "a"), ref.Draw(t, "b")
		x, errA := LayoutDir{"/top/dir"}.Path(a)
		y, errB := LayoutDir{"/top/dir"}.Path(b)
		if errA != nil {
			return
		}
		if rel, err := filepath.Rel("/top/dir", x); err != nil || !filepath.IsLocal(rel) || len(strings.Split(rel, "/")) < 3 {
			t.Fatalf("%q is mapped to %s", a, x)
		}
		if errB != nil || x != y {
			return
		}
		m, _ := name.ParseReference(a)
		n, _ := name.ParseReference(b)
		if m.Name() != n.Name() {
			t.Fatalf("%q and %q are both mapped to %s", a, b, x)
		}
	})
}

func TestLayoutDirWrites(t *testing.T) {
	conform.Covers(t, 194)
	d := LayoutDir{t.TempDir()}
	first := imagetest.With(t, imagetest.Random(t, 2), imagetest.Gzip(t, imagetest.Tar(t, 900)))
	second := imagetest.Extended(t, imagetest.Random(t, 1))
	for _, img := range []v1.Image{first, second} {
		if err := d.Write(t.Context(), "team/app:v1", img); err != nil {
			t.Fatal(err)
		}
	}
	// An image whose path leads through the layout of another is in nobody's way.
	if err := d.Write(t.Context(), "team/app/v1/deep:x", first); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(d.Dir, "index.docker.io/team/app/v1")
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	digest, _ := second.Digest()
	if len(index.Manifests) != 1 || index.Manifests[0].Digest != digest || index.Manifests[0].Annotations[oci.AnnotationRefName] != "v1" {
		t.Errorf("index.json is %s", raw)
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil || len(blobs) != 2+2 {
		t.Errorf("%d blobs, want those of the second image alone (%v)", len(blobs), err)
	}
	run(t, tool(t, "skopeo"), "copy", "--insecure-policy", "oci:"+dir+":v1", "oci:"+filepath.Join(t.TempDir(), "copy")+":v1")
	noTemps(t, d.Dir)
}

// TestLayoutDirNested: an image below another's path may come first.
func TestLayoutDirNested(t *testing.T) {
	d := LayoutDir{t.TempDir()}
	img := imagetest.Random(t, 1)
	for _, ref := range []string{"r.io/a/b/c:d", "r.io/a/b:c"} {
		if err := d.Write(t.Context(), ref, img); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range []string{"r.io/a/b/c:d", "r.io/a/b:c"} {
		got, err := d.Image(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), got, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestLayoutDirSparse: a base without blobs is read and built on, and its blobs
// are missing from the result, too; nothing else may be.
func TestLayoutDirSparse(t *testing.T) {
	conform.Covers(t, 194)
	d := LayoutDir{t.TempDir()}
	base := imagetest.With(t, imagetest.Random(t, 1), imagetest.Gzip(t, imagetest.Tar(t, 900)))
	if err := d.Write(t.Context(), "run", base); err != nil {
		t.Fatal(err)
	}
	blobs := filepath.Join(d.Dir, "index.docker.io/library/run/latest/blobs/sha256")
	layers, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		digest, _ := l.Digest()
		if err := os.Remove(filepath.Join(blobs, digest.Hex)); err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := d.Image(t.Context(), "run")
	if err != nil {
		t.Fatal(err)
	}
	app := imagetest.Extended(t, sparse)
	for range 2 { // into a new layout, and into one that is there
		if err := d.Write(t.Context(), "app", app); err != nil {
			t.Fatal(err)
		}
		got, err := d.Image(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		if imagetest.ID(t, got) != imagetest.ID(t, imagetest.Extended(t, base)) {
			t.Error("a sparse base gives another image")
		}
		known, err := image.KnownFrom(sparse)
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), got, known); err != nil {
			t.Error(err)
		}
	}
	list, err := os.ReadDir(filepath.Join(d.Dir, "index.docker.io/library/app/latest/blobs/sha256"))
	if err != nil || len(list) != 3 {
		t.Errorf("%d blobs, want manifest, config and one layer (%v)", len(list), err)
	}
	// A layout that a person names must be whole.
	whole := Layout{filepath.Join(t.TempDir(), "whole")}
	if err := whole.Write(t.Context(), "app", app); !errors.Is(err, errNoBlob) {
		t.Errorf("a sparse image in a layout of its own: %v", err)
	}
	// So must what did not come out of a layout.
	gone := imagetest.Broken{Tar: imagetest.Tar(t, 100), After: 1, Fail: os.ErrNotExist}
	if err := d.Write(t.Context(), "app", imagetest.With(t, base, gone)); err == nil {
		t.Error("a new layer that cannot be read is taken for one that is elsewhere")
	}
}

func TestLayoutDirPin(t *testing.T) {
	conform.Covers(t, 193)
	d := LayoutDir{t.TempDir()}
	img := imagetest.Random(t, 1)
	if err := d.Write(t.Context(), "run:1", img); err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	ref, err := d.Pin("run:1", img)
	if want := filepath.Join(d.Dir, "index.docker.io/library/run/1") + "@" + digest.String(); err != nil || ref != want {
		t.Fatalf("%s, %v, want %s", ref, err, want)
	}
	if again, err := d.Pin(ref, img); err != nil || again != ref {
		t.Errorf("pinned twice: %s, %v", again, err)
	}
	got, err := d.Image(t.Context(), ref)
	if err != nil || imagetest.ID(t, got) != imagetest.ID(t, img) {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), "run:1", imagetest.Random(t, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Image(t.Context(), ref); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("the pinned image is gone, and reading it gives %v", err)
	}
	outside := filepath.Join(t.TempDir(), "layout")
	if err := (Layout{outside}).Write(t.Context(), "x", img); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{outside + "@" + digest.String(), d.Dir + "/../" + filepath.Base(filepath.Dir(outside)) + "/layout@" + digest.String(), ref[:len(ref)-3], "/", d.Dir} {
		if _, err := d.Image(t.Context(), ref); err == nil {
			t.Errorf("%s was opened", ref)
		}
	}
}
