package archive

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	oci "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

func TestNamesInAPlace(t *testing.T) {
	dir := t.TempDir()
	img := imagetest.Random(t, 1)
	inDir, inFile, docker := Layout{Dir: filepath.Join(dir, "layout")}, OCIArchive{Path: filepath.Join(dir, "oci.tar")}, DockerArchive{Path: filepath.Join(dir, "docker.tar")}
	for _, p := range []Place{inDir, inFile, docker} {
		if names, err := p.Names(t.Context()); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("%T of nothing: %v %v", p, names, err)
		}
		for _, ref := range []string{"", "a/b:1"} {
			if err := p.Write(t.Context(), ref, img); err != nil {
				t.Fatal(err)
			}
		}
	}
	for p, want := range map[Place][][]string{inDir: {nil, {"a/b:1"}}, inFile: {{"a/b:1"}}, docker: {{"a/b:1"}}} {
		if names, err := p.Names(t.Context()); err != nil || !cmp.Equal(want, names) {
			t.Errorf("%T: %q (%v), want %q", p, names, err, want)
		}
	}
	for file, p := range map[string]Place{"layout/index.json": inDir, "oci.tar": inFile, "docker.tar": docker} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		if names, err := p.Names(t.Context()); err == nil {
			t.Errorf("%T of garbage: %q", p, names)
		}
	}
}

// An image that an index in the layout led to says so.
func TestFromIndex(t *testing.T) {
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	named := func(name string) layout.Option {
		return layout.WithAnnotations(map[string]string{oci.AnnotationRefName: name})
	}
	several := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: imagetest.Random(t, 1), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	if err := errors.Join(path.AppendImage(imagetest.Random(t, 1), named("one")), path.AppendIndex(several, named("several"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"one": false, "several": true} {
		img, err := Layout{Dir: dir}.Image(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got := img.(image.Chosen).FromIndex(); got != want {
			t.Errorf("%s is from an index: %t", name, got)
		}
	}
}
