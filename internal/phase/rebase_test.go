package phase

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

const (
	runA    = "registry.example.com/run:a"
	mirrorA = "mirror.example.com/run:a"
)

// debian is a run image that says what it is.
func debian(t *testing.T, version string, change func(*v1.ConfigFile), layers ...map[string]string) v1.Image {
	t.Helper()
	return reference.Run(t, func(c *v1.ConfigFile) {
		c.Config.Labels = map[string]string{
			spec.BaseDistroNameLabel: "debian", spec.BaseDistroVersionLabel: "12", spec.BaseReleasedLabel: version, spec.BaseIDLabel: "acme",
		}
		if change != nil {
			change(c)
		}
	}, layers...)
}

func oldRun(t *testing.T) v1.Image {
	t.Helper()
	return debian(t, "old", func(c *v1.ConfigFile) { c.Config.Labels["io.buildpacks.base.only-old"] = "x" },
		map[string]string{"/etc/os-release": "ID=debian\n", "/lib/libc": "1"}, map[string]string{"/lib/libssl": "1"})
}

func newRun(t *testing.T) v1.Image {
	t.Helper()
	return debian(t, "new", func(c *v1.ConfigFile) {
		c.Config.Labels["io.buildpacks.stack.id"] = "acme.stack"
		c.Config.Labels["org.example.base"] = "not the app's affair"
	}, map[string]string{"/lib/libc": "2"}, map[string]string{"/lib/libssl": "2"}, map[string]string{"/lib/more": "2"})
}

func appOn(run v1.Image) reference.App {
	return reference.App{Run: run, Image: runA, Mirrors: []string{mirrorA}, Reference: "registry.example.com/run@sha256:" + strings.Repeat("0", 64)}
}

func onto(t *testing.T, img v1.Image) NewBase {
	t.Helper()
	d, err := img.Digest()
	must(t, err)
	return NewBase{Image: img, Name: runA, Reference: "registry.example.com/run@" + d.String()}
}

func rebaseOK(t *testing.T, app v1.Image, base NewBase) v1.Image {
	t.Helper()
	var e events
	img, err := Rebase(app, base, false, &e)
	must(t, err)
	if len(e.list) > 0 {
		t.Errorf("it said something: %v", e.list)
	}
	if err := image.Validate(t.Context(), img, nil); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestRebase(t *testing.T) {
	conform.Covers(t, 170, 171, 172)
	ext := imagetest.Gzip(t, imagetest.Tar(t, 20))
	for name, app := range map[string]reference.App{
		"0.14": appOn(oldRun(t)),
		"0.15, unknown keys": {Run: oldRun(t), Image: runA, Reference: "r", PlatformAPI: "0.15", Label: func(s string) string {
			return strings.NewReplacer(`"app":[`, `"future":{"z":1.50},"app":[`, `"topLayer"`, `"mine":[null],"topLayer"`).Replace(s)
		}},
		"app of a shape that nobody knows": {Run: oldRun(t), Image: runA, Reference: "r", Label: func(s string) string {
			return `{"app":{"a":[1,{"sha":2}]}` + s[strings.Index(s, `,"sbom"`):]
		}},
		"extended": {Run: oldRun(t), Image: runA, Reference: "r", Above: []v1.Layer{ext}},
	} {
		t.Run(name, func(t *testing.T) {
			before, base := app.Make(t), onto(t, newRun(t))
			after := rebaseOK(t, before, base)
			had, has, below := config(t, before), config(t, after), config(t, base.Image)
			want := append(append([]v1.Hash{}, below.RootFS.DiffIDs...), had.RootFS.DiffIDs[len(config(t, app.Run).RootFS.DiffIDs):]...)
			if d := cmp.Diff(want, has.RootFS.DiffIDs); d != "" {
				t.Errorf("diffIDs (-want +got)\n%s", d)
			}
			top := func(cf *v1.ConfigFile) string { return cf.RootFS.DiffIDs[len(cf.RootFS.DiffIDs)-1].String() }
			label := strings.NewReplacer(top(config(t, app.Run)), top(below), fmt.Sprintf("%q", app.Reference), fmt.Sprintf("%q", base.Reference)).
				Replace(had.Config.Labels[spec.LifecycleMetadataLabel])
			labels := map[string]string{
				spec.LifecycleMetadataLabel: label,
				spec.BuildMetadataLabel:     had.Config.Labels[spec.BuildMetadataLabel], spec.ProjectMetadataLabel: "{}",
				spec.BaseDistroNameLabel: "debian", spec.BaseDistroVersionLabel: "12", spec.BaseReleasedLabel: "new", spec.BaseIDLabel: "acme",
				spec.StackIDLabel: "acme.stack",
			}
			if d := cmp.Diff(labels, has.Config.Labels); d != "" {
				t.Errorf("labels (-want +got)\n%s", d)
			}
			// All else is as it was.
			has.RootFS, has.Config.Labels, has.History = had.RootFS, had.Config.Labels, had.History
			if d := cmp.Diff(had, has); d != "" {
				t.Errorf("config (-want +got)\n%s", d)
			}
		})
	}
}

// An image that is rebased is the one that the same build on the new run image
// makes, to the last byte; rebasing again changes nothing, and rebasing back
// gives the old one again.
func TestRebaseIsABuild(t *testing.T) {
	conform.Covers(t, 179)
	for _, api := range []string{"0.15", "0.12", "0.11", "none"} {
		for _, docker := range []bool{false, true} {
			app, want := appOn(oldRun(t)), appOn(newRun(t))
			app.PlatformAPI, want.PlatformAPI = api, api
			if api == "0.11" || api == "none" { // stacks must be equal there
				app.Run = debian(t, "old", func(c *v1.ConfigFile) { c.Config.Labels[spec.StackIDLabel] = "acme.stack" }, map[string]string{"/lib/libc": "1"})
			}
			if docker {
				app.Run, want.Run = imagetest.AsDocker(t, app.Run), imagetest.AsDocker(t, want.Run)
			}
			base := onto(t, want.Run)
			app.Reference, want.Reference = onto(t, app.Run).Reference, base.Reference
			name := fmt.Sprintf("%s docker=%t", api, docker)
			made := app.Make(t)
			if docker {
				made = imagetest.AsDocker(t, made)
			}
			img := rebaseOK(t, made, base)
			built := want.Make(t)
			if docker {
				built = imagetest.AsDocker(t, built)
			}
			// What a run image of a build brings besides its own labels stays out of a rebase.
			built = withoutLabel(t, built, "org.example.base")
			same(t, name, built, img)
			same(t, name+", again", img, rebaseOK(t, img, base))
			same(t, name+", back", withoutLabel(t, made, "nothing"), rebaseOK(t, img, onto(t, app.Run)))
			same(t, name+", onto its own", made, rebaseOK(t, made, onto(t, app.Run)))
		}
	}
}

func withoutLabel(t *testing.T, img v1.Image, label string) v1.Image {
	t.Helper()
	cf := config(t, img)
	if _, ok := cf.Config.Labels[label]; !ok {
		return img
	}
	out, err := image.Rebase(img, img, len(cf.RootFS.DiffIDs), func(l map[string]string) { delete(l, label) })
	must(t, err)
	return out
}

func same(t *testing.T, what string, want, got v1.Image) {
	t.Helper()
	for kind, f := range map[string]func(v1.Image) ([]byte, error){"config": v1.Image.RawConfigFile, "manifest": v1.Image.RawManifest} {
		a, err := f(want)
		must(t, err)
		b, err := f(got)
		must(t, err)
		if d := cmp.Diff(string(a), string(b)); d != "" {
			t.Errorf("%s: %s (-want +got)\n%s", what, kind, d)
		}
	}
}

// Each reason not to rebase stops it, and is a warning when it is forced.
func TestRebaseSafety(t *testing.T) {
	conform.Covers(t, 173, 174, 175, 177)
	stack := func(id, mixins string) func(*v1.ConfigFile) {
		return func(c *v1.ConfigFile) {
			c.Config.Labels[spec.StackIDLabel], c.Config.Labels["io.buildpacks.stack.mixins"] = id, mixins
		}
	}
	for name, tc := range map[string]struct {
		app  func(*v1.ConfigFile)
		base func(*v1.ConfigFile)
		api  string
		run  string // "" is runA
		want string // in the error; "" is none
	}{
		"fits":                    {},
		"not rebasable":           {app: func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "false" }, want: "io.buildpacks.rebasable=false"},
		"rebasable":               {app: func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "true" }},
		"rebasable, odd":          {app: func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "no" }},
		"not rebasable, 0.11":     {api: "0.11", app: func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "false" }, want: "io.buildpacks.rebasable=false"},
		"operating system":        {base: func(c *v1.ConfigFile) { c.OS = "freebsd" }, want: `operating system "linux", the run image for "freebsd"`},
		"architecture":            {base: func(c *v1.ConfigFile) { c.Architecture = "arm64" }, want: `architecture "amd64", the run image for "arm64"`},
		"variant":                 {app: func(c *v1.ConfigFile) { c.Variant = "v7" }, base: func(c *v1.ConfigFile) { c.Variant = "v8" }, want: `variant "v7", the run image for "v8"`},
		"variant of one":          {base: func(c *v1.ConfigFile) { c.Variant = "v8" }},
		"distribution":            {base: func(c *v1.ConfigFile) { c.Config.Labels[spec.BaseDistroNameLabel] = "ubuntu" }, want: `distribution "debian", the run image for "ubuntu"`},
		"version":                 {base: func(c *v1.ConfigFile) { c.Config.Labels[spec.BaseDistroVersionLabel] = "13" }, want: `distribution version "12", the run image for "13"`},
		"no distribution":         {base: func(c *v1.ConfigFile) { c.Config.Labels = nil }},
		"no system":               {base: func(c *v1.ConfigFile) { c.OS = "" }, want: "operating system"},
		"another name":            {run: "registry.example.com/other:a", want: "does not know the run image registry.example.com/other:a: it names only registry.example.com/run:a, mirror.example.com/run:a"},
		"another tag":             {run: "registry.example.com/run:b", want: "does not know"},
		"mirror":                  {run: mirrorA},
		"with digest":             {run: runA + "@sha256:" + strings.Repeat("1", 64)},
		"digest instead of tag":   {run: "registry.example.com/run@sha256:" + strings.Repeat("1", 64), want: "does not know"},
		"0.11":                    {api: "0.11"},
		"0.11, another name":      {api: "0.11", run: "registry.example.com/other:a"},
		"0.11, another system":    {api: "0.11", base: func(c *v1.ConfigFile) { c.Config.Labels[spec.BaseDistroVersionLabel] = "13" }},
		"0.11, stack":             {api: "0.11", app: stack("a", ""), base: stack("b", ""), want: `stack "a", the run image for "b"`},
		"0.11, no stack":          {api: "0.11", app: stack("a", ""), want: `stack "a", the run image for ""`},
		"no API, stack":           {api: "none", app: stack("a", ""), base: stack("b", ""), want: `stack "a", the run image for "b"`},
		"0.11, mixins":            {api: "0.11", app: stack("a", `["x","run:y"]`), base: stack("a", `["z","y","run:x"]`)},
		"0.11, mixin gone":        {api: "0.11", app: stack("a", `["x","y"]`), base: stack("a", `["x"]`), want: "lacks the mixins y"},
		"0.11, broken mixins":     {api: "0.11", app: stack("a", `["x"]`), base: stack("a", `x`), want: "io.buildpacks.stack.mixins"},
		"0.12 has no stacks":      {api: "0.12", app: stack("a", `["x"]`), base: stack("b", ``)},
		"0.12, another name":      {api: "0.12", run: "other", want: "does not know"},
		"not one reason but more": {base: func(c *v1.ConfigFile) { c.Architecture = "arm64" }, run: "other", want: `"arm64"; the app image does not know`},
	} {
		t.Run(name, func(t *testing.T) {
			layers := map[string]string{"/lib/libc": "2"}
			app := appOn(debian(t, "old", nil, map[string]string{"/lib/libc": "1"}))
			app.PlatformAPI, app.Config = tc.api, tc.app
			base := onto(t, debian(t, "new", tc.base, layers))
			if tc.run != "" {
				base.Name = tc.run
			}
			img, err := Rebase(app.Make(t), base, false, &events{})
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want == "":
				return
			case err == nil:
				t.Fatalf("it was rebased: %v", config(t, img).Config.Labels)
			case !strings.Contains(err.Error(), tc.want) || spec.ExitCode(err, 0) != spec.ExitRebase || !strings.Contains(spec.HintOf(err), "-force"):
				t.Errorf("error %q (exit code %d, hint %q), want %q", err, spec.ExitCode(err, 0), spec.HintOf(err), tc.want)
			}
			var e events
			if img, err = Rebase(app.Make(t), base, true, &e); err != nil {
				t.Fatalf("forced: %v", err)
			}
			var said strings.Builder
			for _, ev := range e.list {
				if m, ok := ev.(event.Message); ok && m.Level == event.Warn {
					said.WriteString(m.Text + "; ")
				}
			}
			for part := range strings.SplitSeq(tc.want, "; ") {
				if !strings.Contains(said.String(), part) {
					t.Errorf("forced, and no warning says %q: %s", part, said.String())
				}
			}
			got, below := config(t, img), config(t, base.Image)
			if got.OS != below.OS || got.Architecture != below.Architecture || got.Variant != below.Variant || got.Config.Labels[spec.BaseDistroVersionLabel] != below.Config.Labels[spec.BaseDistroVersionLabel] {
				t.Errorf("forced, and the target is not the run image's: %s/%s/%s %v", got.OS, got.Architecture, got.Variant, got.Config.Labels)
			}
		})
	}
}

// A run image that the app does not know becomes the one that it asks for.
func TestRebaseForcedName(t *testing.T) {
	conform.Covers(t, 175)
	app := appOn(oldRun(t)).Make(t)
	base := onto(t, newRun(t))
	entry := func(img v1.Image) (run, stack map[string]any) {
		var label struct {
			RunImage map[string]any
			Stack    struct{ RunImage map[string]any }
		}
		must(t, json.Unmarshal([]byte(config(t, img).Config.Labels[spec.LifecycleMetadataLabel]), &label))
		return label.RunImage, label.Stack.RunImage
	}
	for _, force := range []bool{false, true} {
		img, err := Rebase(app, base, force, &events{})
		must(t, err)
		if run, stack := entry(img); run["image"] != runA || run["mirrors"] == nil || stack["mirrors"] == nil {
			t.Errorf("force=%t onto a known name: %v %v", force, run, stack)
		}
	}
	base.Name = "other.example.com/run:c"
	img, err := Rebase(app, base, true, &events{})
	must(t, err)
	run, stack := entry(img)
	if run["image"] != base.Name || run["mirrors"] != nil || run["reference"] != base.Reference {
		t.Errorf("runImage %v", run)
	}
	if stack["image"] != base.Name || stack["mirrors"] != nil {
		t.Errorf("stack.runImage %v", stack)
	}
	same(t, "forced twice", img, rebaseOK(t, img, base))
}

// The top layer may be there more than once.
func TestRebaseRepeatedTopLayer(t *testing.T) {
	conform.Covers(t, 170)
	nothing := make([]byte, 1024)
	void := imagetest.Gzip(t, nothing)
	one, two := imagetest.Gzip(t, imagetest.Tar(t, 1)), imagetest.Gzip(t, imagetest.Tar(t, 2))
	id := func(l v1.Layer) string {
		h, err := l.DiffID()
		must(t, err)
		return h.String()
	}
	sha := func(l v1.Layer) string { return `{"sha":"` + id(l) + `"}` }
	for name, tc := range map[string]struct {
		base, own []v1.Layer
		label     string
		keeps     int // layers of the app
	}{
		"in the base":          {[]v1.Layer{one, void, two, void}, []v1.Layer{two}, `"app":[` + sha(two) + `]`, 1},
		"in the app":           {[]v1.Layer{one, void}, []v1.Layer{two, void, one}, `"app":[` + sha(void) + `],"launcher":` + sha(one) + `,"buildpacks":[{"layers":{"x":` + sha(two) + `}}]`, 3},
		"in both":              {[]v1.Layer{void, one, void}, []v1.Layer{void, two}, `"app":[` + sha(void) + `,` + sha(two) + `]`, 2},
		"the app is nothing":   {[]v1.Layer{void, void}, []v1.Layer{void, void}, `"app":[` + sha(void) + `,` + sha(void) + `]`, 2},
		"label of no use":      {[]v1.Layer{one, void}, []v1.Layer{two, void}, `"app":"what?"`, 2},
		"label does not fit":   {[]v1.Layer{one, void}, []v1.Layer{two, void}, `"app":[` + sha(one) + `]`, 2},
		"label lists it all":   {[]v1.Layer{one, void}, []v1.Layer{two, void}, `"app":[` + sha(one) + `,` + sha(void) + `,` + sha(two) + `,` + sha(void) + `]`, 2},
		"label lists too much": {[]v1.Layer{one, void}, []v1.Layer{void}, `"app":[` + sha(one) + `,` + sha(void) + `,` + sha(two) + `,` + sha(void) + `]`, 1},
		"an extension's too":   {[]v1.Layer{one, void}, []v1.Layer{two, one}, `"app":[` + sha(one) + `]`, 2},
	} {
		var adds []image.Addition
		for _, l := range append(append([]v1.Layer{}, tc.base...), tc.own...) {
			adds = append(adds, image.Addition{Layer: l})
		}
		app, err := image.Append(debian(t, "old", nil), adds, func(c *v1.ConfigFile) {
			c.Config.Labels[spec.LifecycleMetadataLabel] = fmt.Sprintf(`{%s,"runImage":{"topLayer":%q,"reference":"r","image":%q}}`, tc.label, id(void), runA)
			c.Config.Env = []string{"CNB_PLATFORM_API=0.14"}
		})
		must(t, err)
		base := onto(t, newRun(t))
		got := config(t, rebaseOK(t, app, base)).RootFS.DiffIDs[len(config(t, base.Image).RootFS.DiffIDs):]
		want := config(t, app).RootFS.DiffIDs[len(tc.base)+len(tc.own)-tc.keeps:]
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: layers of the app (-want +got)\n%s", name, d)
		}
	}
}

func TestRebaseRefuses(t *testing.T) {
	app := appOn(oldRun(t))
	base := onto(t, newRun(t))
	for name, tc := range map[string]struct {
		label string
		want  string
	}{
		"no label":        {"", "no label io.buildpacks.lifecycle.metadata"},
		"no JSON":         {"{", "label io.buildpacks.lifecycle.metadata: unexpected EOF"},
		"no run image":    {`{"app":[]}`, "does not know the run image"},
		"unknown layer":   {`{"runImage":{"topLayer":"sha256:1","image":"` + runA + `"}}`, `no layer "sha256:1"`},
		"no top layer":    {`{"runImage":{"image":"` + runA + `"}}`, `no layer ""`},
		"run image shape": {`{"runImage":[1]}`, "runImage: not a JSON object"},
		"name shape":      {`{"runImage":{"image":{}}}`, "runImage: image: "},
		"stack shape":     {`{"stack":7}`, "stack: not a JSON object"},
		"twice":           {`{"runImage":{},"runImage":{}}`, "twice"},
	} {
		app.Label = func(string) string { return tc.label }
		_, err := Rebase(app.Make(t), base, false, &events{})
		if err == nil || !strings.Contains(err.Error(), tc.want) || spec.ExitCode(err, 0) != spec.ExitRebase {
			t.Errorf("%s: error %v (exit code %d), want %q", name, err, spec.ExitCode(err, 0), tc.want)
		}
	}
	app.Label = nil
	base.Image = debian(t, "empty", nil)
	if _, err := Rebase(app.Make(t), base, true, &events{}); err == nil || !strings.Contains(err.Error(), "has no layers") {
		t.Errorf("onto nothing: %v", err)
	}
}

func TestRunImageFor(t *testing.T) {
	conform.Covers(t, 176)
	run := oldRun(t)
	all := map[string]v1.Image{runA: run, mirrorA: run}
	for name, tc := range map[string]struct {
		app    func(*reference.App)
		target string
		denied string
		want   string // the error, with "error: "
	}{
		"its name":                 {target: "app", want: runA},
		"mirror in the registry":   {target: "mirror.example.com/app", want: mirrorA},
		"mirror cannot be read":    {target: "mirror.example.com/app", denied: mirrorA, want: runA},
		"name cannot be read":      {target: "app", denied: runA, want: mirrorA},
		"from the stack":           {app: func(a *reference.App) { a.PlatformAPI = "0.11" }, target: "mirror.example.com/app", want: mirrorA},
		"stack only when there is": {app: func(a *reference.App) { a.Image, a.Mirrors = "", nil }, target: "app", want: "error: names none"},
		"no label":                 {app: func(a *reference.App) { a.Label = func(string) string { return "" } }, target: "app", want: "error: no label"},
	} {
		app := appOn(run)
		if tc.app != nil {
			tc.app(&app)
		}
		got, err := RunImageFor(t.Context(), &guarded{images: all, denied: map[string]bool{"read " + tc.denied: true}}, app.Make(t), tc.target)
		if want, failing := strings.CutPrefix(tc.want, "error: "); failing {
			if err == nil || !strings.Contains(err.Error(), want) || spec.ExitCode(err, 0) != spec.ExitRebase || spec.HintOf(err) == "" {
				t.Errorf("%s: error %v (exit code %d, hint %q), want %q", name, err, spec.ExitCode(err, 0), spec.HintOf(err), want)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, tc.want)
		}
	}
}

// platforms is a source with an index behind each name.
type platforms struct {
	guarded
	byArch map[string]v1.Image
}

func (p *platforms) ImageFor(_ context.Context, ref string, want v1.Platform) (v1.Image, error) {
	if img := p.byArch[want.String()]; img != nil {
		return img, nil
	}
	return nil, fmt.Errorf("%s for %s: %w", ref, want, image.ErrNotFound)
}

// Of an index the run image for the app's platform is taken, not for this machine's.
func TestOpenNewBase(t *testing.T) {
	arm := debian(t, "arm", func(c *v1.ConfigFile) { c.Architecture = "arm64" }, map[string]string{"/a": "b"})
	p := &platforms{byArch: map[string]v1.Image{"linux/arm64": arm}}
	for _, variant := range []string{"", "v8"} {
		app := appOn(debian(t, "arm", func(c *v1.ConfigFile) { c.Architecture, c.Variant = "arm64", variant }, map[string]string{"/a": "a"})).Make(t)
		base, err := OpenNewBase(t.Context(), p, app, runA)
		must(t, err)
		d, err := arm.Digest()
		must(t, err)
		if base.Image != arm || base.Name != runA || base.Reference != "registry.example.com/run@"+d.String() {
			t.Errorf("variant %q: %+v", variant, base)
		}
	}
	app := appOn(oldRun(t)).Make(t)
	if _, err := OpenNewBase(t.Context(), p, app, runA); err == nil || spec.ExitCode(err, 0) != spec.ExitRebase || !strings.Contains(err.Error(), runA) {
		t.Errorf("error %v", err)
	}
	base, err := OpenNewBase(t.Context(), &guarded{images: map[string]v1.Image{runA: arm}}, app, runA)
	must(t, err)
	if d, err := arm.Digest(); err != nil || base.Reference != "registry.example.com/run@"+d.String() {
		t.Errorf("a source without a choice: %+v (%v)", base, err)
	}
}

// What kiln's own exporter writes is rebased to what it would have written.
func TestRebaseIsKilnsBuild(t *testing.T) {
	x := newSite(t)
	next, err := image.Rebase(x.run, debian(t, "new", nil, map[string]string{"/lib/libc": "2"}), 1, func(l map[string]string) { l[spec.BaseReleasedLabel] = "new" })
	must(t, err)
	base := onto(t, next)
	base.Name, base.Reference = runName, strings.Replace(base.Reference, "run@", "base/run@", 1)
	for _, api := range []string{"0.15", "0.11"} {
		built := x.assemble(func(in *Input) { in.PlatformAPI = api })
		want := x.assemble(func(in *Input) {
			in.PlatformAPI, in.Run = api, next
			run := *in.Analyzed.RunImage
			run.Reference = base.Reference
			in.Analyzed.RunImage = &run
		})
		img := rebaseOK(t, built.Image, base)
		same(t, api, want.Image, img)
		same(t, api+", again", img, rebaseOK(t, img, base))
	}
}

// FuzzMixins: whatever the label is, it is a list, or an error that names it.
func FuzzMixins(f *testing.F) {
	f.Add(`["run:a","b"]`)
	f.Add(`{"a":[]}`)
	f.Add("[1]")
	f.Fuzz(func(t *testing.T, label string) {
		list, err := mixins(&v1.ConfigFile{Config: v1.Config{Labels: map[string]string{spec.StackMixinsLabel: label}}})
		if err != nil && !strings.Contains(err.Error(), spec.StackMixinsLabel) {
			t.Errorf("%v does not name the label", err)
		}
		if err == nil && label == "" && len(list) > 0 {
			t.Errorf("no label has %q", list)
		}
	})
}
