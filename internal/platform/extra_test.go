package platform

import (
	"fmt"
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
	packed := packageImage(t, p, "me/packed", "7", map[string]string{"me_packed/7/buildpack.toml": descriptor("me/packed", "7")})
	if err := p.Store.Write(t.Context(), "packages.example/me/packed:1", packed); err != nil {
		t.Fatal(err)
	}
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

// Nothing is looked for in a buildpack registry, and somebody who wants that is
// told how to do without.
func TestRegistryNamesAreRefused(t *testing.T) {
	conform.Covers(t, 201)
	p := offline(t)
	for _, name := range []string{"urn:cnb:registry:kiln/none", "urn:cnb:registry:ns/name@1.2.3"} {
		_, err := p.findBuildpacks(t.Context(), Request{Buildpacks: []string{name}}, builderRoot{}, t.TempDir())
		wantBadInput(t, err, name)
		if err != nil && (!strings.Contains(err.Error(), "registries") || !strings.Contains(spec.HintOf(err), "name the image")) {
			t.Errorf("%v (%s)", err, spec.HintOf(err))
		}
	}
}

// What a package's labels say of it must be so: that of the format, and pack's.
func TestPackagesThatAreNone(t *testing.T) {
	conform.Covers(t, 195)
	p := offline(t)
	one := map[string]string{"me_all/1/buildpack.toml": descriptor("me/all", "1")}
	good := packageImage(t, p, "me/all", "1", one)
	cf, err := good.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	diffID := cf.RootFS.DiffIDs[0].String()
	inLayer := func(name, in string) string {
		id, version, _ := strings.Cut(name, "@")
		return fmt.Sprintf(`{"me/all":{"1":{"api":"0.12","layerDiffID":%q}},%q:{%q:{"layerDiffID":%q}}}`, diffID, id, version, in)
	}
	for _, x := range []struct{ entry, layers, say string }{
		{`{"id":"me/all","version":"1"}`, "", ""},
		{`{"id":"me/all","version":"1","stacks":[{"id":"*"}],"homepage":"x"}`, `{"me/all":{"1":{"layerDiffID":"` + diffID + `"}}}`, ""},
		{"", "", "has no label"},
		{"{", "", "names no buildpack"},
		{`{"id":"x"}`, "", "names no buildpack"},
		{`{"id":"x y","version":"1"}`, "", "no valid ID"},
		{`{"id":"me/all","version":"../1"}`, "", "no valid version"},
		{`{"id":"me/other","version":"1"}`, "", "me/other@1, which is not in it"},
		{`{"id":"me/all","version":"2"}`, "", "me/all@2, which is not in it"},
		{`{"id":"me/all","version":"1"}`, "[", "label " + spec.BuildpackLayersLabel},
		{`{"id":"me/all","version":"1"}`, inLayer("me/part@2", diffID), "me/part@2, which is not in it"},
		{`{"id":"me/all","version":"1"}`, inLayer("me/part@2", "sha256:"+strings.Repeat("0", 64)), "which it does not have"},
		{`{"id":"me/all","version":"1"}`, inLayer("me/part@2", ""), "which it does not have"},
	} {
		img, err := image.Append(good, nil, func(cf *v1.ConfigFile) {
			cf.Config.Labels = map[string]string{spec.BuildpackageLabel: x.entry, spec.BuildpackLayersLabel: x.layers}
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Store.Write(t.Context(), "packages.example/bad:1", img); err != nil {
			t.Fatal(err)
		}
		_, err = p.findBuildpacks(t.Context(), Request{Buildpacks: []string{"packages.example/bad:1"}}, builderRoot{}, t.TempDir())
		if x.say == "" {
			if err != nil {
				t.Errorf("labels %s, %s: %v", x.entry, x.layers, err)
			}
			continue
		}
		wantBadInput(t, err, "packages.example/bad:1")
		if err != nil && !strings.Contains(err.Error(), x.say) {
			t.Errorf("labels %s, %s: %v, want %q", x.entry, x.layers, err, x.say)
		}
	}
}

// Whatever a package's labels say: no panic, an error that names the package, or
// ids that may stand in an order and layers that are the package's.
func FuzzPackageLabels(f *testing.F) {
	layers := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}
	f.Add(`{"id":"a/b","version":"1"}`, `{"a/b":{"1":{"layerDiffID":"`+layers.String()+`"}}}`)
	f.Add(`{"id":"a","version":"1"}`, `{"a":null,"b":{"":{}}}`)
	f.Add(`{"id":["a"]}`, "[]")
	f.Add("", "{")
	f.Fuzz(func(t *testing.T, entry, inside string) {
		m, all, err := describePackage("some/package", &v1.ConfigFile{RootFS: v1.RootFS{DiffIDs: []v1.Hash{layers}}, Config: v1.Config{
			Labels: map[string]string{spec.BuildpackageLabel: entry, spec.BuildpackLayersLabel: inside},
		}})
		if err != nil {
			if !strings.Contains(err.Error(), "some/package") {
				t.Errorf("the error names no package: %v", err)
			}
			return
		}
		if spec.ValidateID(m.ID) != nil || spec.ValidatePathVersion(m.Version) != nil {
			t.Errorf("%+v", m)
		}
		if len(all) > 0 && !strings.Contains(inside, "layerDiffID") {
			t.Errorf("%+v of %s", all, inside)
		}
	})
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

// What is decided must be in the builder, or come with the request.
func TestCheckDecision(t *testing.T) {
	root := builderRoot{Lowers: []string{filetree.New(t, map[string]string{
		"cnb/buildpacks/kiln_pip/1.0.0/buildpack.toml": descriptor("kiln/pip", "1.0.0"),
		"cnb/extensions/acme_apt/2/extension.toml":     "api = \"0.12\"\n[extension]\nid = \"acme/apt\"\nversion = \"2\"\n",
	})}}
	root.Name = "b"
	member := func(id, version string) string {
		return fmt.Sprintf(`{"id":%q,"version":%q,"api":"0.12"}`, id, version)
	}
	for _, x := range []struct{ group, extensions, want string }{
		{member("kiln/pip", "1.0.0") + "," + member("me/mine", "1"), member("acme/apt", "2"), ""},
		{member("kiln/pip", "2.0.0"), "", "plan: f:1:12: group[0].id: builder b has no buildpack kiln/pip@2.0.0"},
		{member("acme/apt", "2"), "", "has no buildpack acme/apt@2"},
		{member("me/mine", "1"), member("kiln/pip", "1.0.0"), "groupExtensions[0].id: builder b has no image extension kiln/pip@1.0.0"},
	} {
		d, err := spec.ReadDecision([]byte(`{"group":[`+x.group+`],"groupExtensions":[`+x.extensions+`]}`), "f")
		if err != nil {
			t.Fatal(err)
		}
		b := build{root: root, decided: &d}
		err = b.checkDecision(extras{Mounted: []spec.GroupElement{{ID: "me/mine", Version: "1"}}})
		if (err == nil) != (x.want == "") || err != nil && (!strings.Contains(err.Error(), x.want) || spec.HintOf(err) == "" || spec.ExitCode(err, 0) != spec.ExitInvalidArgs) {
			t.Errorf("%v, want %q", err, x.want)
		}
	}
}
