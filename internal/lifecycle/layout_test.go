package lifecycle

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// layoutWorld is a world whose images are in layouts. No registry answers.
type layoutWorld struct {
	*world
	dir archive.LayoutDir
}

func newLayoutWorld(t *testing.T) layoutWorld {
	w := newWorld(t)
	w.app("registry.invalid")
	w.buildpack("second", "#!/bin/sh\necho \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n", `#!/bin/sh
cd "$CNB_LAYERS_DIR"
if test -e once.toml; then echo once is reused; else echo once is new; mkdir -p once; echo once > once/file; fi
printf '[types]\nlaunch = true\n' > once.toml
printf '[[processes]]\ntype = "web"\ncommand = ["run"]\ndefault = true\n' > launch.toml
`)
	w.write("run.toml", "[[images]]\nimage = 'example.com/base/run'\nmirrors = ['mirror.example.com/run']\n")
	w.environ = []string{"CNB_EXPERIMENTAL_MODE=silent", "CNB_USE_LAYOUT=true", "CNB_LAYOUT_DIR=" + w.path("images")}
	l := layoutWorld{w, archive.LayoutDir{Dir: w.path("images")}}
	if err := l.dir.Write(t.Context(), "example.com/base/run", runImage(t)); err != nil {
		t.Fatal(err)
	}
	return l
}

// phases are those of an app image by that name.
func (w layoutWorld) phases(ref string) [][]string {
	run := []string{"-run", w.path("run.toml"), "-uid", "1000", "-gid", "1000"}
	return [][]string{
		slices.Concat([]string{analyzer}, run, []string{ref}),
		{detector},
		slices.Concat([]string{restorer}, run),
		{builder},
		slices.Concat([]string{exporter}, run, []string{"-launcher", w.path("launcher"), "-launcher-sbom", w.path("none"), ref, ref + "-too"}),
	}
}

func (w layoutWorld) build(ref string) string {
	w.Helper()
	if err := os.RemoveAll(w.path("layers")); err != nil {
		w.Fatal(err)
	}
	w.mkdir("layers")
	var said strings.Builder
	for _, argv := range w.phases(ref) {
		w.want(0, w.run(argv[0], argv[1:]...))
		said.WriteString(w.stdout.String())
	}
	return said.String()
}

// sparse takes the blobs of all layers of an image away.
func (w layoutWorld) sparse(ref string) {
	w.Helper()
	img, err := w.dir.Image(w.Context(), ref)
	if err != nil {
		w.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		w.Fatal(err)
	}
	path, _ := w.dir.Path(ref)
	for _, l := range m.Layers {
		if err := os.Remove(filepath.Join(path, "blobs/sha256", l.Digest.Hex)); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.Fatal(err)
		}
	}
}

func (w layoutWorld) image(ref string) v1.Image {
	w.Helper()
	img, err := w.dir.Image(w.Context(), ref)
	if err != nil {
		w.Fatal(err)
	}
	return img
}

func TestLayout(t *testing.T) {
	conform.Covers(t, 194)
	w := newLayoutWorld(t)
	first := w.build("team/app:v1")
	path := w.path("images/index.docker.io/team/app/v1")
	out, err := exec.Command("skopeo", "copy", "--insecure-policy", "oci:"+path+":v1", "oci:"+t.TempDir()+":copy").CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	img := w.image("team/app:v1")
	if err := image.Validate(t.Context(), img, nil); err != nil {
		t.Error(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if d, err := w.image("team/app:v1-too").Digest(); err != nil || d != digest {
		t.Errorf("the second name has %s, %v", d, err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if l.MediaType != types.OCILayer {
			t.Errorf("a layer is %s", l.MediaType)
		}
	}
	run, err := w.image("example.com/base/run").Digest()
	if err != nil {
		t.Fatal(err)
	}
	analyzed := w.analyzed()
	if want := w.path("images/example.com/base/run/latest") + "@" + run.String(); analyzed.RunImage.Reference != want || analyzed.RunImage.Image != "example.com/base/run" {
		t.Errorf("run image %+v, want %s", analyzed.RunImage, want)
	}
	if analyzed.PreviousImage != nil || analyzed.RunImage.Target.Distro.Name != "debian" {
		t.Errorf("%+v", analyzed)
	}
	if r := w.report(); r.Image.Digest != digest.String() || len(r.Image.Tags) != 2 {
		t.Errorf("%+v", r)
	}

	// Again, on the image itself, then on what is left of both without blobs.
	second := w.build("team/app:v1")
	if !strings.Contains(first, "once is new") || !strings.Contains(second, "once is reused") {
		t.Errorf("%s\n%s", first, second)
	}
	if r := w.analyzed().PreviousImage; r == nil || r.Reference != path+"@"+digest.String() {
		t.Errorf("previous image %+v", r)
	}
	if d, err := w.image("team/app:v1").Digest(); err != nil || d != digest {
		t.Errorf("rebuilt as %s, before %s, %v", d, digest, err)
	}
	w.sparse("team/app:v1")
	w.sparse("example.com/base/run")
	w.build("team/app:v1")
	sparse := w.image("team/app:v1")
	if d, err := sparse.Digest(); err != nil || d != digest {
		t.Errorf("on sparse images it is %s, before %s, %v", d, digest, err)
	}
	missing := w.missing(sparse)
	if len(missing) != 2 { // the run image's layer, and the one that is only in the previous image
		t.Errorf("missing: %v", missing)
	}
}

// missing lists the layers of an image whose blobs are not there.
func (w layoutWorld) missing(img v1.Image) []string {
	w.Helper()
	layers, err := img.Layers()
	if err != nil {
		w.Fatal(err)
	}
	var list []string
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			digest, _ := l.Digest()
			list = append(list, digest.String())
			continue
		}
		rc.Close()
	}
	return list
}

// The creator makes the same in a layout, and needs no registry either.
func TestLayoutCreator(t *testing.T) {
	w := newLayoutWorld(t)
	w.build("team/app:v1")
	digest, err := w.image("team/app:v1").Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.path("layers")); err != nil {
		t.Fatal(err)
	}
	w.mkdir("layers")
	w.want(0, w.run(creator, "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-launcher-sbom", w.path("none"), "-uid", "1000", "-gid", "1000", "-tag", "team/created:2", "team/created:1"))
	for _, ref := range []string{"team/created:1", "team/created:2"} {
		if d, err := w.image(ref).Digest(); err != nil || d != digest {
			t.Errorf("%s is %s, five phases made %s, %v", ref, d, digest, err)
		}
	}
}

func TestLayoutRefuses(t *testing.T) {
	conform.Covers(t, 14, 29)
	w := newLayoutWorld(t)
	refused := func(code int, want string, argv ...string) {
		t.Helper()
		w.want(code, w.run(argv[0], argv[1:]...))
		if out := w.stderr.String(); !strings.Contains(out, want) {
			t.Errorf("%q: %q is missing in %s", argv, want, out)
		}
	}
	named := []string{"-run-image", "example.com/base/run"}
	layout := w.environ
	w.environ = []string{"CNB_EXPERIMENTAL_MODE=silent", "CNB_USE_LAYOUT=true"}
	refused(spec.ExitInvalidArgs, "-layout needs -layout-dir", slices.Concat([]string{analyzer}, named, []string{"app"})...)
	w.environ = layout
	refused(spec.ExitAnalyze, "example.com/none", analyzer, "-run-image", "example.com/none", "app")
	for _, argv := range [][]string{{"a/../b"}, {"-tag", "app:..", "app"}, {"-previous-image", "a/../b", "app"}, {"-run-image", "../run", "app"}} {
		refused(spec.ExitInvalidArgs, "cannot be mapped", slices.Concat([]string{analyzer}, named, argv)...)
	}
	refused(spec.ExitInvalidArgs, "cannot be mapped", exporter, "a/../b")
	refused(spec.ExitInvalidArgs, "INVALID", analyzer, "INVALID")
	for mode, code := range map[string]int{"": spec.ExitGeneric, "error": spec.ExitGeneric, "warn": 0, "silent": 0, "quiet": 0} {
		w.environ = append([]string{"CNB_EXPERIMENTAL_MODE=" + mode}, layout[1:]...)
		w.want(code, w.run(analyzer, "-run-image", "example.com/base/run", "app"))
		if said := strings.Contains(w.stderr.String(), "experimental"); said != (mode != "silent" && mode != "quiet") {
			t.Errorf("mode %q: %s", mode, w.stderr.String())
		}
	}
	// What foreign code wrote into analyzed.toml leads nowhere else.
	w.environ = layout
	w.want(0, w.run(analyzer, "-run-image", "example.com/base/run", "app"))
	w.want(0, w.run(detector))
	w.want(0, w.run(builder))
	outside := archive.Layout{Dir: w.path("outside")}
	if err := outside.Write(t.Context(), "x", runImage(t)); err != nil {
		t.Fatal(err)
	}
	digest, err := runImage(t).Digest()
	if err != nil {
		t.Fatal(err)
	}
	good := w.read("layers/analyzed.toml")
	export := []string{exporter, "-launcher", w.path("launcher"), "-uid", "1000", "-gid", "1000", "app"}
	for _, ref := range []string{w.path("outside") + "@" + digest.String(), w.path("images/../outside") + "@" + digest.String(), "/etc/passwd"} {
		w.write("layers/analyzed.toml", "[run-image]\nreference = '"+ref+"'\nimage = 'x'\n")
		refused(spec.ExitExport, "not below the directory", export...)
	}
	// A run image in a layout is not extended.
	w.write("layers/analyzed.toml", strings.Replace(good, "[run-image]\n", "[run-image]\nextend = true\n", 1))
	refused(spec.ExitExport, "cannot be extended", export...)
	refused(spec.ExitRestore, "cannot be extended", restorer)
}
