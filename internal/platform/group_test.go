package platform

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// groupsOf are the groups of an order as words.
func groupsOf(o spec.Order) (groups []string) {
	for _, g := range o.Order {
		var words []string
		for _, e := range g.Group {
			word := e.String()
			if e.Optional {
				word += "?"
			}
			words = append(words, word)
		}
		groups = append(groups, strings.Join(words, " "))
	}
	return groups
}

// aBuilder has buildpacks a, b, c and two versions of d, and an order of two groups.
func aBuilder(t *testing.T) builderRoot {
	files := map[string]string{"cnb/order.toml": `[[order]]
[[order.group]]
id = "a"
version = "1"
[[order.group]]
id = "b"
version = "1"
optional = true
[[order]]
[[order.group]]
id = "c"
version = "1"
[[order-extensions]]
[[order-extensions.group]]
id = "ext"
version = "1"
`}
	for _, bp := range []string{"a@1", "b@1", "c@1", "d@1", "d@2"} {
		id, version, _ := strings.Cut(bp, "@")
		files["cnb/buildpacks/"+id+"/"+version+"/buildpack.toml"] = descriptor(id, version)
	}
	return builderRoot{Lowers: []string{filetree.New(t, files)}}
}

// project reads a project.toml with what stands below [io.buildpacks].
func project(t *testing.T, body string) spec.Project {
	t.Helper()
	p, err := spec.ReadProject([]byte("[_]\nschema-version = \"0.2\"\n"+body), "project.toml")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestProjectGroups(t *testing.T) {
	p, b := offline(t), aBuilder(t)
	app := filetree.New(t, map[string]string{"bp/buildpack.toml": descriptor("me/mine", "3"), "app.py": ""})
	const around = "[[io.buildpacks.pre.group]]\nid = 'd'\nversion = '2'\n[[io.buildpacks.post.group]]\nuri = './bp'\n"
	for name, test := range map[string]struct {
		covers []int
		body   string
		req    Request
		want   []string
	}{
		"nothing":          {nil, "", Request{}, nil},
		"a group":          {nil, "[[io.buildpacks.group]]\nid = 'c'\nversion = '1'\n[[io.buildpacks.group]]\nuri = 'bp'\n", Request{}, []string{"c@1 me/mine@3"}},
		"before and after": {[]int{204}, around, Request{}, []string{"d@2 a@1 b@1? me/mine@3", "d@2 c@1 me/mine@3"}},
		"of a group":       {[]int{204}, around + "[[io.buildpacks.group]]\nid = 'a'\nversion = '1'\n", Request{}, []string{"d@2 a@1 me/mine@3"}},
		"of what is typed": {[]int{204}, around + "[[io.buildpacks.group]]\nid = 'a'\nversion = '1'\n", Request{Buildpacks: []string{"b", "c"}}, []string{"d@2 b@1 c@1 me/mine@3"}},
		"for production": {[]int{205}, "[[io.buildpacks.group]]\nid = 'a'\nversion = '1'\nexec-env = ['test']\n[[io.buildpacks.group]]\nid = 'b'\nversion = '1'\nexec-env = ['test', 'production']\n[[io.buildpacks.group]]\nid = 'c'\nversion = '1'\nexec-env = ['*']\n",
			Request{}, []string{"b@1 c@1"}},
		"for test": {[]int{205}, "[[io.buildpacks.group]]\nid = 'a'\nversion = '1'\nexec-env = ['test']\n[[io.buildpacks.group]]\nid = 'b'\nversion = '1'\nexec-env = ['production']\n[[io.buildpacks.group]]\nid = 'c'\nversion = '1'\n",
			Request{ExecEnv: "test"}, []string{"a@1 c@1"}},
		"around it for test": {[]int{205}, "[[io.buildpacks.pre.group]]\nid = 'd'\nversion = '2'\nexec-env = ['production']\n[[io.buildpacks.post.group]]\nid = 'd'\nversion = '1'\nexec-env = ['test']\n",
			Request{ExecEnv: "test"}, []string{"a@1 b@1? d@1", "c@1 d@1"}},
	} {
		t.Run(name, func(t *testing.T) {
			conform.Covers(t, test.covers...)
			test.req.Path = app
			req := test.req.withProject(project(t, test.body))
			x, err := p.findBuildpacks(t.Context(), req, b, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, groupsOf(x.Order)); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(name, "before") && len(x.Order.OrderExtensions) != 1 {
				t.Errorf("the builder's extensions: %v", x.Order.OrderExtensions)
			}
		})
	}
	for body, say := range map[string]string{
		"[[io.buildpacks.group]]\nid = 'none'\nversion = '1'\n":                                         "none@1 is not in the builder",
		"[[io.buildpacks.group]]\nuri = 'urn:cnb:registry:me/mine'\n":                                   "registries",
		"[[io.buildpacks.group]]\nuri = './app.py'\n":                                                   "neither a folder nor a package",
		"[[io.buildpacks.pre.group]]\n[io.buildpacks.pre.group.script]\napi='9.9'\ninline='x'\n":        "9.9",
		"[[io.buildpacks.pre.group]]\nscript = {api='0.10', inline='x', shell='sh'}\n":                  "not an absolute path",
		"[[io.buildpacks.pre.group]]\nscript = {api='0.10', inline='x', shell=\"/bin/sh\\nrm -r /\"}\n": "not an absolute path",
	} {
		content, err := spec.ReadProject([]byte("[_]\nschema-version = \"0.2\"\n"+body), "project.toml")
		if err == nil {
			_, err = p.findBuildpacks(t.Context(), Request{Path: app}.withProject(content), b, t.TempDir())
			wantBadInput(t, err, "")
		}
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", body, err, say)
		}
	}
}

// Scripts are buildpacks that run what they say in the shell that they name.
func TestProjectScripts(t *testing.T) {
	conform.Covers(t, 208)
	p, b := offline(t), aBuilder(t)
	req := Request{Path: t.TempDir()}.withProject(project(t, `
[[io.buildpacks.group]]
id = "me/first"
[io.buildpacks.group.script]
api = "0.10"
inline = """
echo "$0 in $(readlink /proc/$$/exe)"
echo second line"""
[[io.buildpacks.group]]
[io.buildpacks.group.script]
api = "0.12"
shell = "/bin/bash"
inline = 'echo "${BASH_VERSION:+bash}"'
`))
	x, err := p.findBuildpacks(t.Context(), req, b, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"me/first@0.0.0 project-script-2@0.0.0"}, groupsOf(x.Order)); diff != "" {
		t.Fatal(diff)
	}
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ target, api, says string }{
		{"/cnb/buildpacks/me_first/0.0.0", "0.10", "DIR/bin/build in " + shell + "\nsecond line\n"},
		{"/cnb/buildpacks/project-script-2/0.0.0", "0.12", "bash\n"},
	} {
		m := x.Mounts[i]
		if m.Target != want.target || !m.ReadOnly {
			t.Errorf("mount %+v, want one at %s", m, want.target)
		}
		content, err := os.ReadFile(filepath.Join(m.Source, "buildpack.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if bp, err := spec.ReadBuildpack(content, "buildpack.toml"); err != nil || bp.API != want.api {
			t.Errorf("API %s, want %s (%v)", bp.API, want.api, err)
		}
		if out, err := exec.Command(filepath.Join(m.Source, "bin/detect")).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("bin/detect: %v %s", err, out)
		}
		out, err := exec.Command(filepath.Join(m.Source, "bin/build")).CombinedOutput()
		if got := strings.ReplaceAll(string(out), m.Source, "DIR"); err != nil || got != want.says {
			t.Errorf("bin/build: %v\n%s, want\n%s", err, got, want.says)
		}
	}
}

// packageImage is a buildpackage of layers, each with files below
// /cnb/buildpacks; its entrypoint is id@version.
func packageImage(t *testing.T, p *Platform, id, version string, layers ...map[string]string) v1.Image {
	t.Helper()
	var additions []image.Addition
	for _, files := range layers {
		var list []layer.File
		for name, body := range files {
			list = append(list, layer.File{Path: "/cnb/buildpacks/" + name, Mode: 0o755, Body: []byte(body)})
		}
		slices.SortFunc(list, func(a, b layer.File) int { return strings.Compare(a.Path, b.Path) })
		l, err := p.Store.PutLayer(t.Context(), func(w io.Writer) error { return layer.WriteFiles(w, list) })
		if err != nil {
			t.Fatal(err)
		}
		additions = append(additions, image.Addition{Layer: l})
	}
	img, err := image.Append(emptyImage(), additions, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture = "linux", p.Arch
		cf.Config.Labels = map[string]string{spec.BuildpackageLabel: `{"id":"` + id + `","version":"` + version + `"}`}
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A package is the same as an image and as a .cnb file, with a layer for each
// buildpack and flattened into one.
func TestPackagesAndFiles(t *testing.T) {
	p := offline(t)
	one := map[string]string{"me_all/1/buildpack.toml": descriptor("me/all", "1") + "[[order]]\n[[order.group]]\nid = \"me/part\"\nversion = \"2\"\n"}
	two := map[string]string{"me_part/2/buildpack.toml": descriptor("me/part", "2"), "me_part/2/bin/build": "#!/bin/sh\n"}
	flat := map[string]string{}
	for _, files := range []map[string]string{one, two} {
		for name, body := range files {
			flat[name] = body
		}
	}
	for name, test := range map[string]struct {
		covers int
		layers []map[string]string
	}{"a layer each": {195, []map[string]string{one, two}}, "flattened": {196, []map[string]string{flat}}} {
		t.Run(name, func(t *testing.T) {
			conform.Covers(t, test.covers)
			img := packageImage(t, p, "me/all", "1", test.layers...)
			file := filepath.Join(t.TempDir(), "all.cnb")
			err := errors.Join(
				p.Store.Write(t.Context(), "packages.example/all:1", img),
				archive.OCIArchive{Path: file}.Write(t.Context(), "", img))
			if err != nil {
				t.Fatal(err)
			}
			for _, from := range []string{"packages.example/all:1", file, "file://" + file} {
				x, err := p.findBuildpacks(t.Context(), Request{Buildpacks: []string{from}}, builderRoot{}, t.TempDir())
				if err != nil {
					t.Errorf("%s: %v", from, err)
					continue
				}
				if diff := cmp.Diff([]string{"me/all@1"}, groupsOf(x.Order)); diff != "" {
					t.Errorf("%s: %s", from, diff)
				}
				if got, want := hintOf(buildpacksOf(builderRoot{Lowers: x.Lowers})), "the builder has: me/all@1, me/part@2"; got != want {
					t.Errorf("%s: %s, want %s", from, got, want)
				}
				if _, err := (layer.Stack{Lowers: x.Lowers}).ReadFile("cnb/buildpacks/me_part/2/bin/build", 100); err != nil {
					t.Errorf("%s: %v", from, err)
				}
			}
		})
	}
}

// A descriptor that is not a file is an error, not waited for; one in the source
// that leads out of it is not followed.
func TestHostileDescriptors(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret.toml")
	if err := os.WriteFile(secret, []byte("[_]\nschema-version = \"0.2\"\nname = \"secret\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"link out":  func(path string) error { return os.Symlink(secret, path) },
	} {
		app := t.TempDir()
		path := filepath.Join(app, "project.toml")
		if err := plant(path); err != nil {
			t.Fatal(err)
		}
		project, err := readProject(Request{Path: app})
		if err == nil {
			t.Errorf("%s: read %+v", name, project)
		}
		wantBadInput(t, err, "project")
		if _, err := readProject(Request{Path: app, Descriptor: path}); (err == nil) != (name == "link out") {
			t.Errorf("%s, named: %v", name, err)
		}
	}
	inside := filetree.New(t, map[string]string{"real.toml": "[_]\nschema-version = \"0.2\"\nname = \"real\"\n"})
	if err := os.Symlink("real.toml", filepath.Join(inside, "project.toml")); err != nil {
		t.Fatal(err)
	}
	if p, err := readProject(Request{Path: inside}); err != nil || p.Name != "real" {
		t.Errorf("a link inside of the source: %+v, %v", p, err)
	}
}
