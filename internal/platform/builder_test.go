package platform

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
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
