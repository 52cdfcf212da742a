package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// contents writes what the buildpacks of a first build leave.
func (x *site) contents() {
	x.file("layers", "acme_a/dep.toml", types("launch cache")+"[metadata]\nversion = 3\n")
	x.file("layers", "acme_a/dep/bin/tool", "#!/bin/sh")
	x.file("layers", "acme_a/dep/lib/data", strings.Repeat("0123456789", 1000))
	x.file("layers", "acme_a/builder.toml", types("build cache")+"[metadata]\nkey = \"k\"\n")
	x.file("layers", "acme_a/builder/x", "build only")
	x.file("layers", "acme_a/scratch.toml", types("build"))
	x.file("layers", "acme_a/scratch/x", "this build only")
	x.file("layers", "acme_a/store.toml", "[metadata]\nseen = 2\n")
	x.file("layers", "acme_b/a-b.toml", types("launch"))
	x.file("layers", "acme_b/a-b/f", "1")
	x.file("layers", "acme_b/a.toml", types("launch"))
	x.file("layers", "acme_b/a/f", "2")
	x.file("layers", "acme_b/launch.toml", "")
	x.file("layers", "sbom/launch/acme_a/dep/sbom.cdx.json", "{}")
	x.file("layers", "sbom/launch/sbom.legacy.json", "null")
	x.file("layers", "sbom/cache/acme_a/dep/sbom.cdx.json", "{}")
	x.file("layers", "sbom/cache/acme_a/builder/sbom.syft.json", "[]")
	x.file("layers", "sbom/build/sbom.legacy.json", "null")
}

// optIn writes what a build that changes nothing writes: the types of layers,
// and of the SBOMs only those that no layer keeps.
func (x *site) optIn() {
	x.file("layers", "acme_a/dep.toml", types("launch cache")+"[metadata]\nversion = 3\n")
	x.file("layers", "acme_a/builder.toml", types("build cache")+"[metadata]\nkey = \"k\"\n")
	x.file("layers", "acme_a/scratch.toml", types("build"))
	x.file("layers", "acme_a/scratch/x", "this build only")
	x.file("layers", "acme_a/store.toml", "[metadata]\nseen = 2\n")
	x.file("layers", "acme_b/a-b.toml", types("launch"))
	x.file("layers", "acme_b/a.toml", types("launch"))
	x.file("layers", "sbom/build/sbom.legacy.json", "null")
}

func imageID(t *testing.T, img v1.Image) string {
	t.Helper()
	id, err := image.ID(img)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRebuildOfNothingReadsNothing(t *testing.T) {
	conform.Covers(t, 132)
	x := newSite(t)
	x.contents()
	first := x.export()
	for build := range 2 {
		x.fresh()
		x.restore()
		want := Known{
			"acme_a/dep": first.DiffIDs["acme_a/dep"], "acme_a/builder": x.known["acme_a/builder"],
			"sbom/launch": first.DiffIDs["sbom/launch"], "sbom/cache": x.known["sbom/cache"],
		}
		if diff := cmp.Diff(want, x.known); diff != "" || want["acme_a/builder"] == "" || want["sbom/launch"] == "" || want["sbom/cache"] == "" {
			t.Fatalf("build %d: known layers: %s", build, diff)
		}
		x.optIn()
		out := x.export(func(in *Input) { in.AppDiffID = first.AppDiffID })
		if got, want := imageID(t, out.Image), imageID(t, first.Image); got != want {
			t.Errorf("build %d: image %s, want %s:\n%s", build, got, want, cmp.Diff(config(t, first.Image), config(t, out.Image)))
		}
		// The app's upper directory is the app itself here, so it is touched.
		for name, l := range x.layerEvents() {
			if l.Read != 0 && name != "image app" || l.Action != "reused" {
				t.Errorf("build %d: %s: %s, %d bytes read", build, name, l.Action, l.Read)
			}
		}
		if w := x.warnings(); w != nil {
			t.Errorf("build %d: warnings %q", build, w)
		}
		if len(x.layerEvents()) != 11 {
			t.Errorf("build %d: %d layer events: %v", build, len(x.layerEvents()), x.layerEvents())
		}
	}
}

// TestColdEqualsWarm: a build with a cache makes the image that one without
// makes, in another store, with any number of processors.
func TestColdEqualsWarm(t *testing.T) {
	conform.Covers(t, 131)
	x := newSite(t)
	x.contents()
	x.export()
	x.fresh()
	x.restore()
	x.optIn()
	x.file("layers", "acme_a/dep/lib/data", "changed") // through the overlay: copied up
	warm := x.export()
	if got := x.layerEvents()["image acme/a:dep"]; got.Action != "rebuilt" || got.Read != int64(len("#!/bin/shchanged")) {
		t.Errorf("changed layer: %+v", got)
	}
	for _, procs := range []int{1, 4} {
		old := runtime.GOMAXPROCS(procs)
		y := newSite(t)
		y.contents()
		y.file("layers", "acme_a/dep/lib/data", "changed")
		cold := y.export()
		runtime.GOMAXPROCS(old)
		if diff := cmp.Diff(config(t, cold.Image), config(t, warm.Image)); diff != "" {
			t.Errorf("cold (-), warm (+):\n%s", diff)
		}
		if imageID(t, cold.Image) != imageID(t, warm.Image) {
			t.Error("image IDs differ")
		}
	}
}

func TestKnownLayerIsReadAgainWhenItsTarIsWrong(t *testing.T) {
	tests := map[string]func(x *site, in *Input){
		"other owner":   func(_ *site, in *Input) { in.Owner.UID = 1001 },
		"parent's mode": func(x *site, _ *Input) { must(t, os.Chmod(filepath.Join(x.layers.Upper, "acme_a"), 0o700)) },
		"blob is gone":  func(_ *site, in *Input) { in.Known["acme_a/dep"] = "sha256:" + strings.Repeat("0", 64) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			x := newSite(t)
			x.contents()
			x.export()
			x.fresh()
			x.restore()
			x.optIn()
			x.assemble(func(in *Input) { change(x, in) })
			if got := x.layerEvents()["image acme/a:dep"]; got.Read == 0 {
				t.Errorf("it was not read: %+v", got)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestImageLayers(t *testing.T) {
	conform.Covers(t, 7, 130, 137, 151)
	x := newSite(t)
	x.contents()
	out := x.assemble()
	c := config(t, out.Image)
	var created []string
	for _, h := range c.History {
		if !h.Created.Equal(time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)) || h.EmptyLayer {
			t.Errorf("history entry %+v", h)
		}
		created = append(created, h.CreatedBy)
	}
	want := []string{
		"base", "more base",
		"Layer: 'dep', Created by buildpack: acme/a@1.0.0",
		"Layer: 'a', Created by buildpack: acme/b@2.0.0",
		"Layer: 'a-b', Created by buildpack: acme/b@2.0.0",
		"Software Bill-of-Materials", "Application Layer", "Buildpacks Application Launcher",
		"Buildpacks Launcher Config", "Buildpacks Process Types",
	}
	if diff := cmp.Diff(want, created); diff != "" {
		t.Error(diff)
	}
	layers, err := out.Image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int][]string{
		2: {"5 /layers 755 1000:1000", "5 /layers/acme_a 755 1000:1000", "5 /layers/acme_a/dep 755 1000:1000", "5 /layers/acme_a/dep/bin 755 1000:1000",
			"0 /layers/acme_a/dep/bin/tool 644 1000:1000", "5 /layers/acme_a/dep/lib 755 1000:1000", "0 /layers/acme_a/dep/lib/data 644 1000:1000"},
		5: {"5 /layers 755 1000:1000", "5 /layers/sbom 755 1000:1000", "5 /layers/sbom/launch 755 1000:1000", "5 /layers/sbom/launch/acme_a 755 1000:1000",
			"5 /layers/sbom/launch/acme_a/dep 755 1000:1000", "0 /layers/sbom/launch/acme_a/dep/sbom.cdx.json 644 1000:1000", "0 /layers/sbom/launch/sbom.legacy.json 644 1000:1000"},
		6: {"5 /workspace 755 1000:1000", "0 /workspace/app.py 644 1000:1000"},
		7: {"5 /cnb 755 0:0", "5 /cnb/lifecycle 755 0:0", "0 /cnb/lifecycle/launcher 755 0:0"},
		8: {"5 /layers 755 1000:1000", "5 /layers/config 755 1000:1000", "0 /layers/config/metadata.toml 644 1000:1000"},
		9: {"5 /cnb 755 0:0", "5 /cnb/process 755 0:0", "2 /cnb/process/web->/cnb/lifecycle/launcher 755 0:0", "2 /cnb/process/worker.x->/cnb/lifecycle/launcher 755 0:0"},
	} {
		if diff := cmp.Diff(want, tarNames(t, layers[i])); diff != "" {
			t.Errorf("layer %d:\n%s", i, diff)
		}
	}
}

// The directories that lead to a layer keep the owner that they have in the
// build container, and their mode; what is in the layer is the build user's, and
// what the lifecycle brings is root's.
func TestOwnersOfParents(t *testing.T) {
	conform.Covers(t, 129)
	x := newSite(t)
	x.contents()
	x.built.Slices = []spec.Slice{{Paths: []string{"app.py"}}}
	must(t, os.Chmod(filepath.Join(x.layers.Upper, "acme_b"), 0o750))
	real := func(fs.FileInfo) layer.Owner { return layer.Owner{UID: 7, GID: 8} }
	out := x.assemble(func(in *Input) {
		in.Layers.OwnerOf, in.App.OwnerOf = real, real
		in.App.Path, in.App.Above = "/srv/app", []layer.Parent{{Path: "/srv", Mode: fs.ModeDir | 0o711, Owner: layer.Owner{UID: 9, GID: 9}}}
	})
	layers, err := out.Image.Layers()
	must(t, err)
	for i, want := range map[int][]string{
		3:  {"5 /layers 755 7:8", "5 /layers/acme_b 750 7:8", "5 /layers/acme_b/a 755 1000:1000", "0 /layers/acme_b/a/f 644 1000:1000"},
		6:  {"5 /srv 711 9:9", "5 /srv/app 755 1000:1000", "0 /srv/app/app.py 644 1000:1000"},
		7:  {"5 /srv 711 9:9", "5 /srv/app 755 1000:1000"},
		8:  {"5 /cnb 755 0:0", "5 /cnb/lifecycle 755 0:0", "0 /cnb/lifecycle/launcher 755 0:0"},
		9:  {"5 /layers 755 7:8", "5 /layers/config 755 1000:1000", "0 /layers/config/metadata.toml 644 1000:1000"},
		10: {"5 /cnb 755 0:0", "5 /cnb/process 755 0:0", "2 /cnb/process/web->/cnb/lifecycle/launcher 755 0:0", "2 /cnb/process/worker.x->/cnb/lifecycle/launcher 755 0:0"},
	} {
		if diff := cmp.Diff(want, tarNames(t, layers[i])); diff != "" {
			t.Errorf("layer %d:\n%s", i, diff)
		}
	}
}

// TestImageConfigGolden pins config and labels, down to the image ID.
func TestImageConfigGolden(t *testing.T) {
	conform.Covers(t, 123, 138, 139, 140, 141, 142, 143, 144, 145, 147)
	x := newSite(t)
	x.contents()
	x.built.Labels = []spec.Label{{Key: "l", Value: "first"}, {Key: "l", Value: "last"}}
	out := x.assemble(func(in *Input) {
		in.Project.Source = &spec.ProjectSource{Type: "git", Version: map[string]any{"commit": "abc"}}
	})
	c := config(t, out.Image)
	want := v1.Config{
		User: "1000:1000", WorkingDir: "/workspace", Entrypoint: []string{"/cnb/process/web"},
		Env: []string{
			"PATH=/cnb/process:/cnb/lifecycle:/usr/bin:/bin", "X=1", "CNB_LAYERS_DIR=/layers", "CNB_APP_DIR=/workspace",
			"CNB_PLATFORM_API=0.15", "CNB_DEPRECATION_MODE=quiet",
		},
		Labels: c.Config.Labels,
	}
	if diff := cmp.Diff(want, c.Config); diff != "" {
		t.Errorf("config:\n%s", diff)
	}
	sha := func(layer int) string { return c.RootFS.DiffIDs[layer].String() }
	run, err := x.run.Digest()
	if err != nil {
		t.Fatal(err)
	}
	lifecycle := fmt.Sprintf(`{"app":[{"sha":"%s"}],"sbom":{"sha":"%s"},"config":{"sha":"%s"},"launcher":{"sha":"%s"},"process-types":{"sha":"%s"},`+
		`"buildpacks":[{"key":"acme/a","version":"1.0.0","layers":{"dep":{"sha":"%s","data":{"version":3},"build":false,"launch":true,"cache":true}},"store":{"metadata":{"seen":2}}},`+
		`{"key":"acme/b","version":"2.0.0","layers":{"a":{"sha":"%s","data":{},"build":false,"launch":true,"cache":false},"a-b":{"sha":"%s","data":{},"build":false,"launch":true,"cache":false}}}],`+
		`"exec-env":"production","runImage":{"topLayer":"%s","reference":"registry.example.com/base/run@%s","image":"registry.example.com/base/run:1","mirrors":["mirror.example.com/run:1"]},`+
		`"stack":{"runImage":{"image":"registry.example.com/base/run:1","mirrors":["mirror.example.com/run:1"]}}}`,
		sha(6), sha(5), sha(8), sha(7), sha(9), sha(2), sha(3), sha(4), sha(1), run)
	for label, want := range map[string]string{
		spec.LifecycleMetadataLabel: lifecycle,
		spec.BuildMetadataLabel: `{"processes":[{"type":"web","command":["serve"],"args":[],"direct":true,"buildpackID":"acme/a"},{"type":"worker.x","command":["work"],"args":[],"direct":true,"buildpackID":"acme/b"}],` +
			`"buildpacks":[{"id":"acme/a","version":"1.0.0","api":"0.12"},{"id":"acme/b","version":"2.0.0","api":"0.12"}],` +
			`"launcher":{"version":"1.2.3","source":{"git":{"repository":"","commit":""}}},"buildpack-default-process-type":"web"}`,
		spec.ProjectMetadataLabel:   `{"source":{"type":"git","version":{"commit":"abc"}}}`,
		spec.ExecEnvLabel:           "production",
		spec.RebasableLabel:         "true",
		spec.BaseDistroNameLabel:    "debian",
		spec.BaseDistroVersionLabel: "12",
		"l":                         "last",
	} {
		if got := c.Config.Labels[label]; got != want {
			t.Errorf("label %s:\n got %s\nwant %s", label, got, want)
		}
	}
	if len(c.Config.Labels) != 8 {
		t.Errorf("labels: %v", c.Config.Labels)
	}
	const id = "sha256:77bbfd51fc2cc9e5d0f367accb9081acc0bb30df8afd74b162f15e83f59d01b3"
	if got := imageID(t, out.Image); got != id {
		t.Errorf("image ID %s, want %s", got, id)
	}
}

// What the run image's config says beyond what an app image decides, stays.
func TestImageKeepsConfigOfItsBase(t *testing.T) {
	conform.Covers(t, 138, 139)
	x := newSite(t)
	x.contents()
	base := withConfig(t, x.run, func(c *v1.ConfigFile) {
		c.Architecture, c.Variant, c.OSVersion, c.Author = "arm64", "v8", "12.1", "them"
		c.Config.Entrypoint, c.Config.Cmd, c.Config.WorkingDir = []string{"/bin/sh"}, []string{"-l"}, "/root"
		c.Config.User, c.Config.StopSignal, c.Config.Hostname, c.Config.Domainname = "them:1", "SIGINT", "host", "domain"
		c.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}}
		c.Config.Volumes = map[string]struct{}{"/data": {}}
		c.Config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "true"}, Retries: 3}
		c.Config.OnBuild, c.Config.Shell, c.Config.Tty = []string{"RUN true"}, []string{"/bin/dash", "-c"}, true
	})
	c := config(t, x.assemble(func(in *Input) { in.Run = base }).Image)
	want := config(t, base)
	want.Created, want.History, want.RootFS = c.Created, c.History, c.RootFS
	want.Config.Entrypoint, want.Config.Cmd, want.Config.WorkingDir = []string{"/cnb/process/web"}, nil, "/workspace"
	want.Config.Env, want.Config.Labels = c.Config.Env, c.Config.Labels
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	for name, value := range config(t, base).Config.Labels {
		if c.Config.Labels[name] != value {
			t.Errorf("label %s is %q, the base's %q", name, c.Config.Labels[name], value)
		}
	}
}

func TestImageVariants(t *testing.T) {
	tests := map[string]struct {
		covers []int
		change func(*Input)
		check  func(t *testing.T, c *v1.ConfigFile)
	}{
		"process type": {[]int{138}, func(in *Input) { in.ProcessType = "worker.x" }, func(t *testing.T, c *v1.ConfigFile) {
			if c.Config.Entrypoint[0] != "/cnb/process/worker.x" {
				t.Error(c.Config.Entrypoint)
			}
		}},
		"no processes": {[]int{138}, func(in *Input) { in.Built.Processes, in.Built.DefaultProcessType = nil, "" }, func(t *testing.T, c *v1.ConfigFile) {
			if c.Config.Entrypoint[0] != "/cnb/lifecycle/launcher" || len(c.History) != 9 {
				t.Error(c.Config.Entrypoint, len(c.History))
			}
		}},
		"epoch": {[]int{150}, func(in *Input) { in.SourceDateEpoch = "1700000000" }, func(t *testing.T, c *v1.ConfigFile) {
			if want := time.Unix(1700000000, 0); !c.Created.Equal(want) || !c.History[0].Created.Equal(want) {
				t.Error(c.Created, c.History[0])
			}
		}},
		"bad epoch": {[]int{150}, func(in *Input) { in.SourceDateEpoch = "soon" }, func(t *testing.T, c *v1.ConfigFile) {
			if c.Created.Year() != 1980 {
				t.Error(c.Created)
			}
		}},
		"endless epoch": {[]int{150}, func(in *Input) { in.SourceDateEpoch = "9000000000000" }, func(t *testing.T, c *v1.ConfigFile) {
			if c.Created.Year() != 1980 {
				t.Error(c.Created)
			}
		}},
		"exec env": {[]int{148}, func(in *Input) { in.ExecEnv = "test" }, func(t *testing.T, c *v1.ConfigFile) {
			if c.Config.Labels[spec.ExecEnvLabel] != "test" || !strings.Contains(c.Config.Labels[spec.LifecycleMetadataLabel], `"exec-env":"test"`) {
				t.Error(c.Config.Labels)
			}
		}},
		"platform 0.11": {[]int{151}, func(in *Input) { in.PlatformAPI = "0.11" }, func(t *testing.T, c *v1.ConfigFile) {
			for _, h := range c.History {
				if diff := cmp.Diff(v1.History{Created: v1.Time{Time: layer.ModTime}}, h); diff != "" {
					t.Error(diff)
				}
			}
			if len(c.History) != len(c.RootFS.DiffIDs) || c.Config.Labels[spec.ExecEnvLabel] != "" {
				t.Error(len(c.History), c.Config.Labels)
			}
			// The reference is the last that runImage says; the name is in stack only.
			if !strings.Contains(c.Config.Labels[spec.LifecycleMetadataLabel], `"},"stack":{"runImage":{"image":"registry.example.com/base/run:1"`) {
				t.Error(c.Config.Labels[spec.LifecycleMetadataLabel])
			}
		}},
		"unlisted run image": {[]int{143}, func(in *Input) { in.RunTOML.Images[0].Image = "other.example.com/run" }, func(t *testing.T, c *v1.ConfigFile) {
			if !strings.Contains(c.Config.Labels[spec.LifecycleMetadataLabel], `"image":"other.example.com/run"`) {
				t.Error(c.Config.Labels[spec.LifecycleMetadataLabel])
			}
		}},
		"no PATH": {[]int{140}, func(in *Input) {
			img, err := image.Append(in.Run, nil, func(c *v1.ConfigFile) { c.Config.Env = nil })
			must(t, err)
			in.Run = img
		}, func(t *testing.T, c *v1.ConfigFile) {
			if !slices.Contains(c.Config.Env, "PATH=/cnb/process:/cnb/lifecycle") {
				t.Error(c.Config.Env)
			}
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			conform.Covers(t, test.covers...)
			x := newSite(t)
			x.contents()
			test.check(t, config(t, x.assemble(test.change).Image))
			if warned := x.warnings() != nil; warned != strings.HasSuffix(name, " epoch") {
				t.Errorf("warnings %q", x.warnings())
			}
		})
	}
}

func TestAssembleRefuses(t *testing.T) {
	tests := map[string]struct {
		covers []int
		change func(x *site, in *Input)
		want   string
	}{
		"no run image":          {[]int{127}, func(_ *site, in *Input) { in.Analyzed.RunImage = nil }, "no run image"},
		"unknown process type":  {[]int{138}, func(_ *site, in *Input) { in.ProcessType = "none" }, `"none"`},
		"bad process type":      {[]int{137}, func(_ *site, in *Input) { in.Built.Processes[0].Type = "../x" }, "process type"},
		"unreadable layer.toml": {nil, func(x *site, _ *Input) { x.file("layers", "acme_a/dep.toml", "= nonsense") }, "acme_a/dep.toml"},
		"top-level types":       {nil, func(x *site, _ *Input) { x.file("layers", "acme_a/dep.toml", "launch = true") }, "dep.toml"},
		"layer.toml is a link": {nil, func(x *site, _ *Input) {
			must(t, os.Remove(filepath.Join(x.layers.Upper, "acme_a/dep.toml")))
			must(t, os.Symlink("/etc/passwd", filepath.Join(x.layers.Upper, "acme_a/dep.toml")))
		}, "acme/a:dep"},
		"layer.toml is a FIFO": {nil, func(x *site, _ *Input) {
			must(t, os.Remove(filepath.Join(x.layers.Upper, "acme_a/dep.toml")))
			must(t, unix.Mkfifo(filepath.Join(x.layers.Upper, "acme_a/dep.toml"), 0o644))
		}, "acme/a:dep"},
		"buildpack's directory is a link": {nil, func(x *site, _ *Input) {
			must(t, os.Rename(filepath.Join(x.layers.Upper, "acme_a"), filepath.Join(x.layers.Upper, "aside")))
			must(t, os.Symlink("aside", filepath.Join(x.layers.Upper, "acme_a")))
		}, "acme/a"},
		"reuse of nothing": {[]int{133}, func(x *site, _ *Input) { must(t, os.RemoveAll(filepath.Join(x.layers.Upper, "acme_b/a"))) }, "acme/b:a"},
		"cache layer without contents": {[]int{134}, func(x *site, _ *Input) {
			must(t, os.RemoveAll(filepath.Join(x.layers.Upper, "acme_a/dep")))
		}, "cache layer without contents"},
		"whiteout in the app":           {nil, func(x *site, _ *Input) { x.file("app", "src/.wh.x", "") }, "/workspace/src/.wh.x"},
		"no reference of the run image": {[]int{127}, func(_ *site, in *Input) { in.Analyzed.RunImage = &spec.RunImage{Image: "run"} }, "no run image"},
		"process type with a colon":     {[]int{137}, func(_ *site, in *Input) { in.Built.Processes[0].Type = "a:b" }, "process type"},
		"slice of another directory":    {[]int{136}, func(_ *site, in *Input) { in.Built.Slices = []spec.Slice{{Paths: []string{"/etc/*"}}} }, "outside"},
		"slice that looks like the app": {[]int{136}, func(_ *site, in *Input) { in.Built.Slices = []spec.Slice{{Paths: []string{"/workspaces/*"}}} }, "outside"},
		"slice that goes out and in": {[]int{136}, func(_ *site, in *Input) {
			in.Built.Slices = []spec.Slice{{Paths: []string{"static/../../workspace/x"}}}
		}, "outside"},
		"slice outside": {[]int{136}, func(_ *site, in *Input) { in.Built.Slices = []spec.Slice{{Paths: []string{"../x"}}} }, "outside"},
		"bad slice":     {nil, func(_ *site, in *Input) { in.Built.Slices = []spec.Slice{{Paths: []string{"[x"}}} }, "slice 1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			conform.Covers(t, test.covers...)
			x := newSite(t)
			x.contents()
			in := x.input()
			test.change(x, &in)
			_, err := Assemble(t.Context(), x.store, in, &x.events)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
			if code := spec.ExitCode(err, 0); code != spec.ExitExport && code != spec.ExitInvalidArgs {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestReuseWithoutContents(t *testing.T) {
	conform.Covers(t, 133)
	x := newSite(t)
	x.contents()
	first := x.export()
	x.fresh()
	x.file("layers", "acme_b/a.toml", types("launch")+"[metadata]\nnew = true\n")
	x.group.Group = x.group.Group[1:]
	out := x.assemble()
	l := out.Metadata.Buildpacks[0].Layers["a"]
	if l.SHA != first.DiffIDs["acme_b/a"] || l.Data["new"] != true {
		t.Errorf("reused layer %+v, want %s", l, first.DiffIDs["acme_b/a"])
	}
	if e := x.layerEvents()["image acme/b:a"]; e.Action != "reused" || e.Read != 0 {
		t.Errorf("event %+v", e)
	}
}

func TestSlices(t *testing.T) {
	conform.Covers(t, 135, 136)
	x := newSite(t)
	for _, name := range []string{"static/a.css", "static/deep/b.css", "lib/one.py", "lib/two.py", "top.txt"} {
		x.file("app", name, name)
	}
	x.built.Slices = []spec.Slice{
		{Paths: []string{"static"}}, {Paths: []string{"/workspace/lib/*.py", "static/a.css"}}, {Paths: []string{"none*"}},
	}
	out := x.assemble()
	layers, err := out.Image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var got [][]string
	for _, l := range layers[2 : len(layers)-3] {
		var names []string
		for _, n := range tarNames(t, l) {
			names = append(names, strings.Fields(n)[1])
		}
		got = append(got, names)
	}
	want := [][]string{
		{"/workspace", "/workspace/static", "/workspace/static/a.css", "/workspace/static/deep", "/workspace/static/deep/b.css"},
		{"/workspace", "/workspace/lib", "/workspace/lib/one.py", "/workspace/lib/two.py"},
		nil,
		{"/workspace", "/workspace/app.py", "/workspace/lib", "/workspace/top.txt"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if h := config(t, out.Image).History; h[5].CreatedBy != "Application Slice: 4" || len(out.Metadata.App) != 4 || out.AppDiffID != "" {
		t.Errorf("%q, %v, %q", h[5].CreatedBy, out.Metadata.App, out.AppDiffID)
	}
}

func TestAppKnownByItsSource(t *testing.T) {
	x := newSite(t)
	first := x.assemble()
	x.app = Tree{Path: "/workspace", Stack: x.app.Stack}
	x.app.Lowers, x.app.Upper = []string{x.app.Upper}, filepath.Join(x.top, "empty")
	must(t, os.Mkdir(x.app.Upper, 0o755))
	must(t, os.Chmod(x.app.Upper, 0o755))
	x.events = events{}
	x.assemble(func(in *Input) { in.AppDiffID = first.AppDiffID })
	if e := x.layerEvents()["image app"]; e.Read != 0 || e.DiffID != first.AppDiffID {
		t.Errorf("untouched app: %+v", e)
	}
	x.file("app", "written", "by the build")
	out := x.assemble(func(in *Input) { in.AppDiffID = first.AppDiffID })
	if e := x.layerEvents()["image app"]; e.Read == 0 || e.DiffID == first.AppDiffID || out.AppDiffID == first.AppDiffID {
		t.Errorf("touched app: %+v", e)
	}
}

func TestPutSBOM(t *testing.T) {
	x := newSite(t)
	old := unix.Umask(0o077)
	err := PutSBOM(x.layers, "launch/buildpacksio_lifecycle/launcher/sbom.cdx.json", []byte("{}"))
	unix.Umask(old)
	must(t, err)
	out := x.assemble()
	layers, err := out.Image.Layers()
	must(t, err)
	if got := tarNames(t, layers[2]); !slices.Contains(got, "0 /layers/sbom/launch/buildpacksio_lifecycle/launcher/sbom.cdx.json 644 1000:1000") {
		t.Error(got)
	}
	outside := t.TempDir()
	must(t, os.RemoveAll(filepath.Join(x.layers.Upper, "sbom")))
	must(t, os.Symlink(outside, filepath.Join(x.layers.Upper, "sbom")))
	if err := PutSBOM(x.layers, "launch/x", []byte("{}")); err == nil {
		t.Error("written through a link")
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}

// flaky is a target that fails for some names, and damages what it took.
type flaky struct {
	image.Source
	image.Target
	fail   map[string]error
	damage func(v1.Image) v1.Image
}

func (f flaky) Write(ctx context.Context, ref string, img v1.Image) error {
	if err := f.fail[ref]; err != nil {
		return err
	}
	return f.Target.Write(ctx, ref, img)
}

func (f flaky) Image(ctx context.Context, ref string) (v1.Image, error) {
	img, err := f.Source.Image(ctx, ref)
	if err == nil && f.damage != nil {
		img = f.damage(img)
	}
	return img, err
}

func TestExport(t *testing.T) {
	conform.Covers(t, 152)
	x := newSite(t)
	x.contents()
	img := x.assemble().Image
	digest, err := img.Digest()
	must(t, err)
	raw, err := img.RawManifest()
	must(t, err)
	want := spec.Report{Image: spec.ReportImage{Tags: []string{"app", "app:two"}, Digest: digest.String(), ManifestSize: int64(len(raw))}}
	report, err := Export(t.Context(), x.store, []string{"app", "app:two", "app"}, img, nil, false, &x.events)
	if diff := cmp.Diff(want, report); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	written := 0
	for _, e := range x.events.list {
		if w, ok := e.(event.ImageWritten); ok && w.ID == imageID(t, img) && w.Digest == digest.String() && w.Size > 1000 {
			written++
		}
	}
	if written != 2 {
		t.Errorf("%d images written", written)
	}
	report, err = Export(t.Context(), x.store, []string{"app"}, img, nil, true, &x.events)
	if err != nil || report.Image.ImageID != imageID(t, img) || report.Image.Digest != "" {
		t.Errorf("daemon: %+v, %v", report, err)
	}

	full := errors.New("disk full")
	report, err = Export(t.Context(), flaky{Source: x.store, Target: x.store, fail: map[string]error{"app:bad": full}}, []string{"app:bad", "app:good"}, img, nil, false, &x.events)
	if !errors.Is(err, full) || spec.ExitCode(err, 0) != spec.ExitExport || !strings.Contains(err.Error(), "app:bad") || !slices.Equal(report.Image.Tags, []string{"app:good"}) {
		t.Errorf("partial failure: %+v, %v", report, err)
	}
}

// TestExportNoticesDamage: what is read back is not what was written.
func TestExportNoticesDamage(t *testing.T) {
	x := newSite(t)
	x.contents()
	img := x.assemble().Image
	other := config(t, img).RootFS.DiffIDs[0]
	for name, damage := range map[string]func(v1.Image) v1.Image{
		"another image":  func(v1.Image) v1.Image { return x.run },
		"layers swapped": func(i v1.Image) v1.Image { return swapped{i, other} },
	} {
		_, err := Export(t.Context(), flaky{Source: x.store, Target: x.store, damage: damage}, []string{"app"}, img, nil, false, &x.events)
		if !errors.Is(err, image.ErrInvalid) {
			t.Errorf("%s: error %v, want ErrInvalid", name, err)
		}
	}
}

// swapped says another layer's bytes are every layer's.
type swapped struct {
	v1.Image
	diffID v1.Hash
}

func (s swapped) LayerByDigest(v1.Hash) (v1.Layer, error) { return s.LayerByDiffID(s.diffID) }

func TestSaveCacheFailureIsAWarning(t *testing.T) {
	x := newSite(t)
	x.contents()
	in, out := x.input(), x.assemble()
	known, err := SaveCache(t.Context(), noCache{}, x.store, in, out, &x.events)
	if err != nil || len(x.warnings()) != 1 || len(known) != 3 {
		t.Errorf("%v, %v, warnings %q", known, err, x.warnings())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SaveCache(ctx, noCache{}, x.store, in, out, &x.events); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type noCache struct{}

func (noCache) Save(context.Context, spec.CacheMetadata, func(context.Context, string) (v1.Layer, error)) error {
	return fs.ErrPermission
}
