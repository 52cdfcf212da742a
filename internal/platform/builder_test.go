package platform

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestDescribeBuilder(t *testing.T) {
	config := func(label string, env ...string) *v1.ConfigFile {
		return &v1.ConfigFile{Config: v1.Config{Env: env, Labels: map[string]string{spec.BuilderMetadataLabel: label}}}
	}
	ids := []string{"CNB_USER_ID=1001", "CNB_GROUP_ID=1000"}
	for name, x := range map[string]struct {
		config *v1.ConfigFile
		want   Builder
	}{
		"images":        {config(`{"images":[{"image":"run:1","mirrors":["m/run:1"]},{"image":"run:2"}]}`, ids...), Builder{Name: "b", RunImage: "run:1", RunImages: []string{"run:1", "run:2"}, UID: 1001, GID: 1000}},
		"stack":         {config(`{"stack":{"runImage":{"image":"run:old"}}}`, ids...), Builder{Name: "b", RunImage: "run:old", RunImages: []string{"run:old"}, UID: 1001, GID: 1000}},
		"both":          {config(`{"stack":{"runImage":{"image":"run:old"}},"images":[{"image":"run:1"}]}`, ids...), Builder{Name: "b", RunImage: "run:1", RunImages: []string{"run:1"}, UID: 1001, GID: 1000}},
		"no label":      {config("", ids...), Builder{Name: "b", UID: 1001, GID: 1000}},
		"last of a env": {config("", "CNB_USER_ID=5", "CNB_USER_ID=1001", "CNB_GROUP_ID=1000", "X"), Builder{Name: "b", UID: 1001, GID: 1000}},
		"group root":    {config("", "CNB_USER_ID=1001", "CNB_GROUP_ID=0"), Builder{Name: "b", UID: 1001, GID: 0}},
	} {
		got, err := describeBuilder("b", x.config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(x.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, x := range map[string]struct {
		config *v1.ConfigFile
		say    string
	}{
		"no builder":       {config(""), "is not a builder"},
		"no group":         {config("", "CNB_USER_ID=1"), "CNB_GROUP_ID"},
		"root":             {config("", "CNB_USER_ID=0", "CNB_GROUP_ID=0"), "must not run as root"},
		"words":            {config("", "CNB_USER_ID=cnb", "CNB_GROUP_ID=1"), "CNB_USER_ID=cnb"},
		"negative":         {config("", "CNB_USER_ID=-1", "CNB_GROUP_ID=1"), "CNB_USER_ID=-1"},
		"huge":             {config("", "CNB_USER_ID=4294967297", "CNB_GROUP_ID=1"), "CNB_USER_ID=4294967297"},
		"label is no JSON": {config("{", ids...), spec.BuilderMetadataLabel},
		"a file":           {config(`{"images":[{"image":"oci:/etc"}]}`, ids...), "is one of this host"},
		"in the daemon":    {config(`{"images":[{"image":"docker-daemon:x"}]}`, ids...), "is one of this host"},
	} {
		_, err := describeBuilder("some/builder", x.config)
		wantBadInput(t, err, "some/builder")
		if err != nil && !strings.Contains(err.Error(), x.say) {
			t.Errorf("%s: %v, want %q in it", name, err, x.say)
		}
	}
}

func TestDescribeBuilderWithExtensions(t *testing.T) {
	for label, want := range map[string]string{"": "false", "[]": "false", "null": "false", `[{"group":[{"id":"a","version":"1"}]}]`: "true", "{": "error"} {
		got, err := describeBuilder("b", &v1.ConfigFile{Config: v1.Config{
			Env: []string{"CNB_USER_ID=1001", "CNB_GROUP_ID=1000"}, Labels: map[string]string{spec.OrderExtensionsLabel: label}}})
		if say := fmt.Sprint(got.Extensions); err == nil && say != want || err != nil && want != "error" {
			t.Errorf("%q: %v, %v", label, got.Extensions, err)
		}
	}
}

func TestFits(t *testing.T) {
	p := &Platform{Arch: "amd64"}
	for _, ok := range []v1.ConfigFile{{OS: "linux", Architecture: "amd64"}, {}, {Architecture: "amd64"}} {
		if err := p.fits("builder b", &ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []v1.ConfigFile{{OS: "linux", Architecture: "arm64"}, {OS: "windows", Architecture: "amd64"}, {Architecture: "386"}} {
		wantBadInput(t, p.fits("builder b", &bad), "builder b")
	}
}

// What a layer of the builder deleted must not come back for trusted code.
func TestBuilderDirectories(t *testing.T) {
	bottom := filetree.New(t, map[string]string{"cnb/run.toml": "[[images]]\nimage = \"old\"\n", "cnb/buildpacks/a/1/buildpack.toml": descriptor("a", "1"), "cnb/buildpacks/b/1/buildpack.toml": descriptor("b", "1")})
	top := filetree.New(t, map[string]string{"cnb/buildpacks/c/2/buildpack.toml": descriptor("c", "2")})
	b := builderRoot{Lowers: []string{top, bottom}}
	if diff := cmp.Diff("the builder has: a@1, b@1, c@2", hintOf(buildpacksOf(b))); diff != "" {
		t.Error(diff)
	}
	if err := b.readRunTOML(); err != nil || b.RunImage != "old" {
		t.Errorf("run image %q, %v", b.RunImage, err)
	}

	// An opaque directory hides those below it, and so does a file in its place.
	if err := unix.Setxattr(filepath.Join(top, "cnb"), "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("the builder has: c@2", hintOf(buildpacksOf(b))); diff != "" {
		t.Errorf("an opaque /cnb: %s", diff)
	}
	hidden := builderRoot{Lowers: []string{top, bottom}}
	if err := hidden.readRunTOML(); err != nil || hidden.RunImage != "" {
		t.Errorf("a run.toml that was deleted names %q (%v)", hidden.RunImage, err)
	}
	file := filetree.New(t, map[string]string{"cnb": "a file"})
	if got := buildpacksOf(builderRoot{Lowers: []string{file, bottom}}); len(got) != 0 {
		t.Errorf("below a file are %v", got)
	}
	link := t.TempDir()
	if err := os.Symlink(filepath.Join(bottom, "cnb"), filepath.Join(link, "cnb")); err != nil {
		t.Fatal(err)
	}
	if got := buildpacksOf(builderRoot{Lowers: []string{link}}); len(got) != 0 {
		t.Errorf("through a link of the image are %v", got)
	}
}

// A builder whose layers were flattened into one has what it had before, and
// what its layers deleted stays deleted.
func TestFlattenedBuilders(t *testing.T) {
	conform.Covers(t, 196)
	p := offline(t)
	layers := []map[string]string{
		{"cnb/order.toml": "[[order]]\n[[order.group]]\nid = \"old\"\nversion = \"1\"\n", "cnb/buildpacks/a/1/buildpack.toml": descriptor("a", "1"), "cnb/buildpacks/gone/1/buildpack.toml": descriptor("gone", "1")},
		{"cnb/buildpacks/.wh.gone": "", "cnb/buildpacks/b/1/buildpack.toml": descriptor("b", "1"), "cnb/buildpacks/b/2/buildpack.toml": descriptor("b", "2")},
		{"cnb/order.toml": "[[order]]\n[[order.group]]\nid = \"a\"\nversion = \"1\"\n"},
	}
	flat := map[string]string{}
	for _, files := range layers {
		maps.Copy(flat, files)
	}
	delete(flat, "cnb/buildpacks/gone/1/buildpack.toml")
	delete(flat, "cnb/buildpacks/.wh.gone")
	var lists [][]string
	for _, layers := range [][]map[string]string{layers, {flat}} {
		var made []v1.Layer
		for _, files := range layers {
			var list []layer.File
			for _, name := range slices.Sorted(maps.Keys(files)) {
				list = append(list, layer.File{Path: "/" + name, Mode: 0o644, Body: []byte(files[name])})
			}
			l, err := p.Store.PutLayer(t.Context(), func(w io.Writer) error { return layer.WriteFiles(w, list) })
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, l)
		}
		lowers, err := p.trees(t.Context(), made)
		if err != nil {
			t.Fatal(err)
		}
		b := builderRoot{Lowers: lowers}
		order, err := b.order()
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, append(groupsOf(order), hintOf(buildpacksOf(b))))
	}
	if diff := cmp.Diff([]string{"a@1", "the builder has: a@1, b@1, b@2"}, lists[0]); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(lists[0], lists[1]); diff != "" {
		t.Errorf("flattened: %s", diff)
	}
}

// The built-in builder is one: files, labels and environment are what other
// platforms want to find.
func TestBuiltinBuilder(t *testing.T) {
	conform.Covers(t, 198)
	p := offline(t)
	p.Payload = Payload{
		Launcher: []byte("launcher"), Lifecycle: []byte("lifecycle"), Buildpacks: []byte("buildpacks"), Version: "1.2.3",
		SBOMs:   map[string][]byte{"launcher.sbom.cdx.json": []byte("{}")},
		Shipped: []Shipped{{"me/mine", "1.0.0", []byte(descriptor("me/mine", "1.0.0"))}},
		Order:   []byte("[[order]]\n[[order.group]]\nid = \"me/mine\"\nversion = \"1.0.0\"\noptional = true\n"),
	}
	base, err := image.Append(emptyImage(), nil, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture = "linux", p.Arch
		cf.Config.Env = []string{"PATH=/bin", "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"}
		cf.Config.Labels = map[string]string{"io.buildpacks.base.distro.name": "debian"}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{builtinBuild, builtinRunImage} {
		if err := p.Store.Write(t.Context(), name, base); err != nil {
			t.Fatal(err)
		}
	}
	img, err := p.builtin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	rest := cf.RootFS.DiffIDs[len(cf.RootFS.DiffIDs)-1].String()
	delete(cf.Config.Labels, payloadLabel)
	versions := func(list []string) string { return `"` + strings.Join(list, `","`) + `"` }
	apis := `{"buildpack":{"deprecated":[],"supported":[` + versions(spec.BuildpackAPIs) + `]},"platform":{"deprecated":[],"supported":[` + versions(spec.PlatformAPIs) + `]}}`
	lowest := `{"buildpack":"` + spec.BuildpackAPIs[0] + `","platform":"` + spec.PlatformAPIs[0] + `"}`
	want := map[string]string{
		"io.buildpacks.base.distro.name": "debian",
		"io.buildpacks.builder.metadata": `{"description":"kiln's built-in builder: Debian bookworm and the shipped buildpacks","buildpacks":[{"id":"me/mine","version":"1.0.0"}],"extensions":[],` +
			`"stack":{"runImage":{"image":"kiln/run:bookworm"}},"images":[{"image":"kiln/run:bookworm"}],"lifecycle":{"version":"1.2.3","api":` + lowest + `,"apis":` + apis + `},"createdBy":{"name":"kiln","version":"1.2.3"}}`,
		"io.buildpacks.buildpack.order":   `[{"group":[{"id":"me/mine","version":"1.0.0","optional":true}]}]`,
		"io.buildpacks.buildpack.layers":  `{"me/mine":{"1.0.0":{"api":"0.12","layerDiffID":"` + rest + `"}}}`,
		"io.buildpacks.lifecycle.version": "1.2.3",
		"io.buildpacks.lifecycle.apis":    apis,
	}
	if diff := cmp.Diff(want, cf.Config.Labels); diff != "" {
		t.Error(diff)
	}
	if cf.Config.WorkingDir != "/layers" || !slices.Contains(cf.Config.Env, "CNB_USER_ID=1000") {
		t.Errorf("working directory %s, environment %q", cf.Config.WorkingDir, cf.Config.Env)
	}
	root, err := p.openBuilder(t.Context(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	all := layer.Stack{Lowers: root.Lowers}
	for file, content := range map[string]string{
		"cnb/order.toml": string(p.Payload.Order), "cnb/run.toml": "[[images]]\nimage = \"kiln/run:bookworm\"\n", "cnb/stack.toml": "[run-image]\nimage = \"kiln/run:bookworm\"\n",
		"cnb/lifecycle/launcher": "launcher", "cnb/lifecycle/lifecycle": "lifecycle", "cnb/lifecycle/launcher.sbom.cdx.json": "{}",
		"cnb/buildpacks/me_mine/1.0.0/buildpack.toml": descriptor("me/mine", "1.0.0"),
	} {
		if b, err := all.ReadFile(file, 1000); err != nil || string(b) != content {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
	for _, dir := range []string{"cnb/build-config/env", "platform/env", "workspace", "layers"} {
		if fi, err := all.Lstat(dir); err != nil || !fi.IsDir() {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for _, name := range []string{"analyzer", "detector", "restorer", "extender", "builder", "exporter", "creator", "rebaser"} {
		if to, err := all.Readlink("cnb/lifecycle/" + name); err != nil || to != "lifecycle" {
			t.Errorf("%s: %q, %v", name, to, err)
		}
	}
	if diff := cmp.Diff([]spec.GroupElement{{ID: "me/mine", Version: "1.0.0"}}, buildpacksOf(root)); diff != "" {
		t.Error(diff)
	}
	if again, err := p.builtin(t.Context(), ""); err != nil || !sameImage(img, again) {
		t.Errorf("it is another the second time: %v", err)
	}
}

func sameImage(a, b v1.Image) bool {
	x, err1 := a.Digest()
	y, err2 := b.Digest()
	return err1 == nil && err2 == nil && x == y
}

func TestReadRunTOML(t *testing.T) {
	for content, want := range map[string]string{
		"": "", "[[images]]\nimage = \"run:1\"\nmirrors = [\"m\"]\n[[images]]\nimage = \"run:2\"\n": "run:1",
	} {
		b := builderRoot{Lowers: []string{filetree.New(t, map[string]string{"cnb/run.toml": content})}}
		if err := b.readRunTOML(); err != nil || b.RunImage != want {
			t.Errorf("%q: %q, %v; want %q", content, b.RunImage, err, want)
		}
	}
	none := builderRoot{Lowers: []string{t.TempDir()}}
	if err := none.readRunTOML(); err != nil {
		t.Errorf("without run.toml: %v", err)
	}
	broken := builderRoot{Builder: Builder{Name: "some/builder"}, Lowers: []string{filetree.New(t, map[string]string{"cnb/run.toml": "[["})}}
	if err := broken.readRunTOML(); err == nil || !strings.Contains(err.Error(), "some/builder") {
		t.Errorf("a broken run.toml: %v", err)
	}
}

func TestDedupe(t *testing.T) {
	if diff := cmp.Diff([]string{"a", "b", "c"}, dedupe([]string{"a", "b", "a", "c", "b"})); diff != "" {
		t.Error(diff)
	}
}

// A builder of another machine is refused before anything is made with it.
func TestForeignBuilderIsRefused(t *testing.T) {
	p := offline(t)
	img, err := image.Append(emptyImage(), nil, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture = "linux", "arm64"
		cf.Config.Env = []string{"CNB_USER_ID=1000", "CNB_GROUP_ID=1000"}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Store.Write(t.Context(), "builders/arm", img); err != nil {
		t.Fatal(err)
	}
	_, err = p.Build(t.Context(), Request{Image: "hello", Path: filetree.New(t, map[string]string{"app.py": ""}), Builder: "builders/arm"})
	wantBadInput(t, err, "builders/arm")
	if err != nil && !strings.Contains(err.Error(), "linux/arm64") {
		t.Error(err)
	}
	wantBadInput(t, p.Run(t.Context(), RunRequest{Image: "builders/arm", Command: []string{"true"}}), "builders/arm")
	if refs, err := p.Store.Refs(t.Context()); err != nil || len(refs) != 1 {
		t.Errorf("the store has %v, %v", refs, err)
	}
}

// Whatever a builder's labels and variables say: no panic, an error that names
// the builder and is its author's to mend, or ids that buildpacks can run as and
// run images that are no files of this host.
func FuzzBuilderLabels(f *testing.F) {
	f.Add(`{"images":[{"image":"run:1","mirrors":["m"]}]}`, `[{"group":[{"id":"a","version":"1"}]}]`, "1001", "1000")
	f.Add(`{"stack":{"runImage":{"image":"oci:/etc"}}}`, "[]", "1", "0")
	f.Add(`{"images":[{"image":"oci-archive:x"}],"stack":null}`, "null", "0x10", "-1")
	f.Add("{", "", "0", "1")
	f.Add(`{"images":{}}`, `{"group":[]}`, "2147483648", " 1")
	f.Fuzz(func(t *testing.T, metadata, extensions, uid, gid string) {
		b, err := describeBuilder("some/builder", &v1.ConfigFile{Config: v1.Config{
			Env:    []string{"CNB_USER_ID=" + uid, "CNB_GROUP_ID=" + gid},
			Labels: map[string]string{spec.BuilderMetadataLabel: metadata, spec.OrderExtensionsLabel: extensions},
		}})
		if err != nil {
			wantBadInput(t, err, "some/builder")
			return
		}
		if b.UID <= 0 || b.GID < 0 {
			t.Errorf("uid %d, gid %d", b.UID, b.GID)
		}
		for _, ref := range b.RunImages {
			if _, _, file := archive.Parse(ref); file {
				t.Errorf("run image %q", ref)
			}
		}
	})
}
