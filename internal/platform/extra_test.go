package platform

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// descriptor is a buildpack.toml.
func descriptor(id, version string) string {
	return fmt.Sprintf("api = \"0.12\"\n[buildpack]\nid = %q\nversion = %q\n", id, version)
}

// offline is a Platform whose registries are nowhere.
func offline(t *testing.T) *Platform {
	p, _ := newPlatform(t)
	p.Registry = func([]string) (*registry.Registry, error) { return nil, image.ErrUnavailable }
	return p
}

func TestFindBuildpacks(t *testing.T) {
	p := offline(t)
	dir := filetree.New(t, map[string]string{"buildpack.toml": descriptor("me/mine", "1.2.3")})
	b := builderRoot{Lowers: []string{filetree.New(t, map[string]string{
		"cnb/buildpacks/kiln_pip/1.0.0/buildpack.toml":    descriptor("kiln/pip", "1.0.0"),
		"cnb/buildpacks/kiln_python/1.0.0/buildpack.toml": descriptor("kiln/python", "1.0.0"),
		"cnb/buildpacks/kiln_python/2.0.0/buildpack.toml": descriptor("kiln/python", "2.0.0"),
		"cnb/buildpacks/broken/1/buildpack.toml":          "[[",
		"cnb/buildpacks/kiln":                             "the binary",
	})}}
	t.Chdir(filepath.Dir(dir))
	packaged(t, p, "packages.example/me/packed:1", `{"id":"me/packed","version":"7"}`)
	mine := spec.GroupElement{ID: "me/mine", Version: "1.2.3"}
	for name, want := range map[string]spec.GroupElement{
		dir:                                     mine,
		"file://" + dir:                         mine,
		"./" + filepath.Base(dir):               mine,
		filepath.Base(dir):                      mine,
		"kiln/pip":                              {ID: "kiln/pip", Version: "1.0.0"},
		"kiln/pip@1.0.0":                        {ID: "kiln/pip", Version: "1.0.0"},
		"kiln/python@2.0.0":                     {ID: "kiln/python", Version: "2.0.0"},
		"urn:cnb:builder:kiln/pip":              {ID: "kiln/pip", Version: "1.0.0"},
		"from=builder:kiln/python@1.0.0":        {ID: "kiln/python", Version: "1.0.0"},
		"packages.example/me/packed:1":          {ID: "me/packed", Version: "7"},
		"docker://packages.example/me/packed:1": {ID: "me/packed", Version: "7"},
	} {
		x, err := p.findBuildpacks(t.Context(), Request{Buildpacks: []string{name}}, b, t.TempDir())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(spec.Order{Order: []spec.OrderGroup{{Group: []spec.GroupElement{want}}}}, x.Order); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if want.ID == mine.ID {
			mounts := []sandbox.Mount{{Source: dir, Target: "/cnb/buildpacks/me_mine/1.2.3", ReadOnly: true}}
			if diff := cmp.Diff(mounts, x.Mounts); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		if strings.Contains(name, "packed") != (len(x.Lowers) == 1) {
			t.Errorf("%s: trees %v", name, x.Lowers)
		}
	}
	script := filetree.New(t, map[string]string{"buildpack.toml": descriptor("me/mine", "1.2.3"), "bin/detect": "#!/bin/sh\n"})
	for name, say := range map[string]string{
		script:                               "chmod +x " + script + "/bin/detect",
		"kiln/python":                        "several versions",
		"kiln/pip@9":                         "the builder has 1.0.0",
		"kiln/none":                          "kiln/pip@1.0.0",
		"nothing":                            "kiln/pip@1.0.0",
		"./nothing":                          "no such folder",
		"urn:cnb:builder:kiln/none":          "not in the builder",
		t.TempDir():                          "buildpack.toml",
		filepath.Join(dir, "buildpack.toml"): "neither a folder nor a package",
		"urn:cnb:registry:kiln/none":         "registries",
		filetree.New(t, map[string]string{"buildpack.toml": "[["}): "buildpack.toml",
	} {
		_, err := p.findBuildpacks(t.Context(), Request{Buildpacks: []string{name}}, b, t.TempDir())
		wantBadInput(t, err, strings.TrimPrefix(strings.TrimPrefix(name, "urn:cnb:builder:"), "file://"))
		if err != nil && !strings.Contains(err.Error()+spec.HintOf(err), say) {
			t.Errorf("%s: %v (%s), want %q in it", name, err, spec.HintOf(err), say)
		}
	}
	// Several make one group, in their order; none leaves the builder's order.
	x, err := p.findBuildpacks(t.Context(), Request{Buildpacks: []string{"kiln/pip", dir}}, b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	group := []spec.GroupElement{{ID: "kiln/pip", Version: "1.0.0"}, mine}
	if diff := cmp.Diff([]spec.OrderGroup{{Group: group}}, x.Order.Order); diff != "" {
		t.Error(diff)
	}
	layers := t.TempDir()
	if err := x.writeOrder(layer.Stack{Upper: layers}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(layers, "order.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if order, err := spec.ReadOrder(content, "order.toml"); err != nil || !cmp.Equal(order, x.Order) {
		t.Errorf("order.toml reads back as %+v, %v", order, err)
	}
	none, err := p.findBuildpacks(t.Context(), Request{}, b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	if err := none.writeOrder(layer.Stack{Upper: empty}); err != nil {
		t.Fatal(err)
	}
	if left := filesIn(t, empty); len(left) != 0 {
		t.Errorf("without --buildpack there is %v", left)
	}
}

// packaged puts a buildpackage into the store.
func packaged(t *testing.T, p *Platform, ref, label string) {
	t.Helper()
	l, err := p.Store.PutLayer(t.Context(), func(w io.Writer) error {
		return layer.WriteFiles(w, []layer.File{dirFile("/cnb", 0), dirFile("/cnb/buildpacks", 0)})
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Append(emptyImage(), []image.Addition{{Layer: l}}, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture = "linux", p.Arch
		if label != "" {
			cf.Config.Labels = map[string]string{spec.BuildpackageLabel: label}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Store.Write(t.Context(), ref, img); err != nil {
		t.Fatal(err)
	}
}

func TestPackagesThatAreNone(t *testing.T) {
	p := offline(t)
	for label, say := range map[string]string{"": "has no label", "{": "names no buildpack", `{"id":"x"}`: "names no buildpack"} {
		packaged(t, p, "packages.example/bad:1", label)
		_, err := p.findBuildpacks(t.Context(), Request{Buildpacks: []string{"packages.example/bad:1"}}, builderRoot{}, t.TempDir())
		wantBadInput(t, err, "packages.example/bad:1")
		if err != nil && !strings.Contains(err.Error(), say) {
			t.Errorf("label %q: %v", label, err)
		}
	}
}

func TestWriteEnv(t *testing.T) {
	conform.Covers(t, 206)
	dir := t.TempDir()
	if err := writeEnv(dir, map[string]string{"A": "1", "EMPTY": "", "LINES": "a\nb\n", "A.b-c": "odd"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"env/", "env/A", "env/A.b-c", "env/EMPTY", "env/LINES"}, filesIn(t, dir)); diff != "" {
		t.Error(diff)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "env", "LINES")); err != nil || string(b) != "a\nb\n" {
		t.Errorf("%q, %v", b, err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		outside := t.TempDir()
		err := writeEnv(filepath.Join(outside, "platform"), map[string]string{name: "x"})
		if err == nil || spec.ExitCode(err, 1) != spec.ExitInvalidArgs {
			t.Errorf("%q: %v", name, err)
		}
		if left := filesIn(t, outside); len(left) > 0 {
			t.Errorf("%q left %v", name, left)
		}
	}
}
