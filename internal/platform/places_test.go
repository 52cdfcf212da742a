package platform

import (
	"context"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/spec"
)

func TestOwn(t *testing.T) {
	d := &destinations{}
	for _, n := range []string{"hello", "localhost:5000/me/hello:v1"} {
		name, err := ParseImageName(n)
		if err != nil {
			t.Fatal(err)
		}
		d.names = append(d.names, name.Full)
	}
	digest := "@sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]bool{
		"hello":                                  true,
		"hello:latest":                           true,
		"docker.io/library/hello":                true,
		"index.docker.io/library/hello:latest":   true,
		"hello" + digest:                         true,
		"localhost:5000/me/hello:v1":             true,
		"localhost:5000/me/hello" + digest:       true,
		"index.docker.io/library/hello" + digest: true,
		"hello:v1":                               false,
		"me/hello":                               false,
		"localhost:5000/me/hello":                false,
		"localhost:5000/hello" + digest:          false,
		"localhost:5001/me/hello" + digest:       false,
		"kiln/run:bookworm":                      false,
		"oci:out":                                false,
		"":                                       false,
	} {
		if got := d.own(ref); got != want {
			t.Errorf("%s: own is %v", ref, got)
		}
	}
}

func TestRepository(t *testing.T) {
	for full, want := range map[string]string{"a/b:1": "a/b", "localhost:5000/b:1": "localhost:5000/b", "localhost:5000/b": "localhost:5000/b"} {
		if got := repository(full); got != want {
			t.Errorf("%s: %s", full, got)
		}
	}
}

func TestRegistryOf(t *testing.T) {
	for ref, want := range map[string]string{
		"hello": "index.docker.io", "me/hello:1": "index.docker.io", "localhost:5000/x": "localhost:5000",
		"reg.example/x@sha256:" + strings.Repeat("a", 64): "reg.example", "oci:dir": "", "docker-archive:x.tar": "", "UPPER": "", "": "",
	} {
		if got, ok := registryOf(ref); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", ref, got, ok, want)
		}
	}
}

// asked is a place that remembers what it was asked for.
type asked struct{ refs *[]string }

func (a asked) Image(_ context.Context, ref string) (v1.Image, error) {
	*a.refs = append(*a.refs, "read "+ref)
	return emptyImage(), nil
}

func (a asked) Write(_ context.Context, ref string, _ v1.Image) error {
	*a.refs = append(*a.refs, "write "+ref)
	return nil
}

func (a asked) CheckRead(_ context.Context, ref string) error {
	*a.refs = append(*a.refs, "may read "+ref)
	return nil
}

func (a asked) CheckWrite(_ context.Context, ref string) error {
	*a.refs = append(*a.refs, "may write "+ref)
	return nil
}

// A step speaks to the registries that it names and to no other.
func TestStepsSpeakToWhatTheyName(t *testing.T) {
	p := offline(t)
	var refs []string
	d := &destinations{platform: p, names: []string{"reg.example/app:latest"}, run: emptyImage()}
	d.outputs = []*output{newOutput(asked{&refs}, Destination{Kind: ToRegistry})}
	use := map[string]func(ref string) error{
		"read":      func(ref string) error { _, err := d.Image(t.Context(), ref); return err },
		"write":     func(ref string) error { return d.Write(t.Context(), ref, emptyImage()) },
		"may read":  func(ref string) error { return d.CheckRead(t.Context(), ref) },
		"may write": func(ref string) error { return d.CheckWrite(t.Context(), ref) },
	}
	for _, hosts := range [][]string{nil, {"other.example"}} {
		d.hosts = hosts
		for name, f := range use {
			if err := f("reg.example/app"); err == nil || !strings.Contains(err.Error(), "reg.example") {
				t.Errorf("%s with %v: %v", name, hosts, err)
			}
		}
	}
	if len(refs) > 0 {
		t.Fatalf("the registry was asked: %v", refs)
	}
	d.hosts = []string{"other.example", "reg.example"}
	for name, f := range use {
		if err := f("reg.example/app"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Contains(refs, name+" reg.example/app") {
			t.Errorf("%s did not reach the registry: %v", name, refs)
		}
	}
	// A run image elsewhere is not gone after either.
	d.hosts = nil
	if _, err := d.Image(t.Context(), "elsewhere.example/run"); err == nil {
		t.Error("an image of a registry that no step names was opened")
	}
	// Nor are files of this host, but for the one that the user named.
	layout := "oci:" + t.TempDir()
	if err := (archive.Layout{Dir: strings.TrimPrefix(layout, "oci:")}).Write(t.Context(), "", emptyImage()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Image(t.Context(), layout); err == nil || !strings.Contains(err.Error(), "only --run-image names files") {
		t.Errorf("a file that nobody named: %v", err)
	}
	d.here = layout
	if _, err := d.Image(t.Context(), layout); err != nil {
		t.Error(err)
	}
}

func TestBuilderNamesNoFiles(t *testing.T) {
	for name, want := range map[string]bool{"builders.example/run": true, "kiln/run:bookworm": true, "oci:/etc": false, "docker-archive:x.tar": false} {
		b := Builder{Name: "b"}
		if err := b.setRunImages([]spec.RunImageEntry{{Image: "first.example/run"}, {Image: name}}); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		if b.RunImage != "first.example/run" && want {
			t.Errorf("%s: the run image is %s", name, b.RunImage)
		}
	}
}
