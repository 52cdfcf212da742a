package phase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// guarded is a source in memory that says who may do what.
type guarded struct {
	images map[string]v1.Image
	denied map[string]bool // "read name" or "write name"

	mu     sync.Mutex
	writes []string
}

func (g *guarded) Image(_ context.Context, ref string) (v1.Image, error) {
	if img := g.images[ref]; img != nil {
		return img, nil
	}
	return nil, fmt.Errorf("%s: %w", ref, image.ErrNotFound)
}

func (g *guarded) CheckRead(ctx context.Context, ref string) error {
	if g.denied["read "+ref] {
		return image.ErrUnauthorized
	}
	_, err := g.Image(ctx, ref)
	return err
}

func (g *guarded) CheckWrite(_ context.Context, ref string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writes = append(g.writes, ref)
	if g.denied["write "+ref] {
		return image.ErrUnauthorized
	}
	return nil
}

func withConfig(t *testing.T, img v1.Image, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	out, err := image.Append(img, nil, change)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnalyzeRunImage(t *testing.T) {
	conform.Covers(t, 21, 25, 26)
	run := runImage(t)
	digest, err := run.Digest()
	must(t, err)
	list := spec.RunTOML{Images: []spec.RunImageEntry{
		{Image: "one.example.com/run", Mirrors: []string{"two.example.com/run", "three.example.com/run"}}, {Image: "two.example.com/other"},
	}}
	all := map[string]v1.Image{"one.example.com/run": run, "two.example.com/run": run, "three.example.com/run": run}
	tests := map[string]struct {
		image  string
		run    string
		list   spec.RunTOML
		denied string
		want   string // reference without digest, or the error
	}{
		"named":                  {"app", "one.example.com/run", spec.RunTOML{}, "", "one.example.com/run"},
		"first":                  {"app", "", list, "", "one.example.com/run"},
		"mirror on the registry": {"three.example.com/app", "", list, "", "three.example.com/run"},
		"mirror is unreadable":   {"three.example.com/app", "", list, "read three.example.com/run", "one.example.com/run"},
		"first is unreadable":    {"app", "", list, "read one.example.com/run", "two.example.com/run"},
		"named is unreadable":    {"app", "one.example.com/run", list, "read one.example.com/run", "error: no read access to one.example.com/run"},
		"no list":                {"app", "", spec.RunTOML{}, "", "error: run.toml names none"},
		"missing":                {"app", "none.example.com/run", list, "", "error: none.example.com/run"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			g := &guarded{images: all, denied: map[string]bool{test.denied: true}}
			a, err := Analyze(t.Context(), g, Names{Image: test.image, Run: test.run}, test.list, AnalyzeSetting{PlatformAPI: testAPI}, nil, &events{})
			if want, failing := strings.CutPrefix(test.want, "error: "); failing {
				if err == nil || !strings.Contains(err.Error(), want) || spec.ExitCode(err, 0) != spec.ExitAnalyze {
					t.Errorf("error %v (exit code %d), want %q", err, spec.ExitCode(err, 0), want)
				}
				return
			}
			must(t, err)
			want := &spec.RunImage{Image: test.want, Reference: test.want + "@" + digest.String(), Target: &spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "debian", Version: "12"}}}
			if diff := cmp.Diff(want, a.RunImage); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnalyzeReferences(t *testing.T) {
	run := runImage(t)
	g := &guarded{images: map[string]v1.Image{"run": run, "dir/layout": run}}
	a, err := Analyze(t.Context(), pinned{g}, Names{Image: "app", Run: "run"}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &events{})
	must(t, err)
	if want := "run is " + imageID(t, run); a.RunImage.Reference != want {
		t.Errorf("reference %s, want %s", a.RunImage.Reference, want)
	}
	a, err = Analyze(t.Context(), g, Names{Image: "app", Run: "run"}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &events{})
	must(t, err)
	if !strings.HasPrefix(a.RunImage.Reference, "index.docker.io/library/run@sha256:") {
		t.Errorf("reference %s", a.RunImage.Reference)
	}
}

// pinned is a source with references of its own.
type pinned struct{ image.Source }

func (pinned) Pin(ref string, img v1.Image) (string, error) {
	id, err := image.ID(img)
	return ref + " is " + id, err
}

func TestAnalyzeTarget(t *testing.T) {
	conform.Covers(t, 21)
	run := runImage(t)
	for name, test := range map[string]struct {
		change func(*v1.ConfigFile)
		want   *spec.Target
	}{
		"no system": {func(c *v1.ConfigFile) { c.OS = "" }, nil},
		"variant": {func(c *v1.ConfigFile) { c.Architecture, c.Variant, c.Config.Labels = "arm64", "v8", nil },
			&spec.Target{OS: "linux", Arch: "arm64", Variant: "v8"}},
		"bionic": {func(c *v1.ConfigFile) {
			c.Config.Labels = map[string]string{spec.StackIDLabel: "io.buildpacks.stacks.bionic"}
		}, &spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "ubuntu", Version: "18.04"}}},
	} {
		g := &guarded{images: map[string]v1.Image{"run": withConfig(t, run, test.change)}}
		a, err := Analyze(t.Context(), g, Names{Image: "app", Run: "run"}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &events{})
		if test.want == nil {
			if err == nil || !strings.Contains(err.Error(), "operating system") {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		must(t, err)
		if diff := cmp.Diff(test.want, a.RunImage.Target); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestAnalyzeAccess(t *testing.T) {
	conform.Covers(t, 22, 23)
	run := runImage(t)
	names := Names{Image: "app", Tags: []string{"app:tag", "app"}, Previous: "old", Cache: "cache", Run: "run"}
	for denied, fails := range map[string]bool{
		"": false, "read run": true, "read old": true, "read cache": true, "read app": false,
		"write app": true, "write app:tag": true, "write cache": true, "write old": false,
	} {
		g := &guarded{images: map[string]v1.Image{"run": run}, denied: map[string]bool{denied: true}}
		_, err := Analyze(t.Context(), g, names, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &events{})
		if (err != nil) != fails || fails && (!errors.Is(err, image.ErrUnauthorized) || !strings.Contains(err.Error(), strings.Fields(denied)[1])) {
			t.Errorf("%q denied: %v", denied, err)
		}
		slices.Sort(g.writes)
		if !fails && !slices.Equal(g.writes, []string{"app", "app:tag", "cache"}) {
			t.Errorf("%q denied: write checks %v", denied, g.writes)
		}
	}
}

func TestAnalyzePreviousImage(t *testing.T) {
	conform.Covers(t, 17, 18, 19)
	x := newSite(t)
	x.contents()
	out := x.export()
	run := x.run
	label := func(value string) v1.Image {
		return withConfig(t, run, func(c *v1.ConfigFile) {
			c.Config.Labels = map[string]string{spec.LifecycleMetadataLabel: value}
		})
	}
	for name, test := range map[string]struct {
		img     v1.Image
		used    bool
		warning bool
	}{
		"missing":        {nil, false, false},
		"by a lifecycle": {out.Image, true, false},
		"by others":      {run, true, false},
		"garbled label":  {label(`{"buildpacks":7}`), false, true},
		"cut label":      {label(`{"buildpacks":[`), false, true},
		"broken":         {unreadable{run}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := &guarded{images: map[string]v1.Image{"run": run}}
			if test.img != nil {
				g.images["app"] = test.img
			}
			site := &site{}
			a, err := Analyze(t.Context(), g, Names{Image: "app", Run: "run"}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &site.events)
			must(t, err)
			if used := a.Previous != nil; used != test.used || used != (a.PreviousImage != nil) || (site.warnings() != nil) != test.warning {
				t.Errorf("used %v, %+v, warnings %q", used, a.PreviousImage, site.warnings())
			}
			if name == "by a lifecycle" {
				if diff := cmp.Diff(out.Metadata, a.Metadata, cmpopts.EquateEmpty()); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// unreadable is an image whose config cannot be read.
type unreadable struct{ v1.Image }

func (unreadable) ConfigFile() (*v1.ConfigFile, error) { return nil, io.ErrUnexpectedEOF }

func TestAnalyzeRestoresSBOMLayer(t *testing.T) {
	conform.Covers(t, 27)
	x := newSite(t)
	x.contents()
	x.export()
	for _, execEnv := range []string{"", "test"} {
		x.fresh()
		_, err := Analyze(t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI, ExecEnv: execEnv}, &x.layers, &x.events)
		must(t, err)
		body, err := os.ReadFile(filepath.Join(x.layers.Upper, "sbom/launch/acme_a/dep/sbom.cdx.json"))
		if restored := err == nil && string(body) == "{}"; restored != (execEnv == "") {
			t.Errorf("exec env %q: SBOM %q, %v", execEnv, body, err)
		}
		list, err := os.ReadDir(x.layers.Upper)
		if err != nil || execEnv == "" && len(list) != 1 {
			t.Errorf("left in the layers directory: %v, %v", list, err)
		}
	}
}

func TestCheckOneRegistry(t *testing.T) {
	for _, test := range []struct {
		image string
		tags  []string
		ok    bool
	}{
		{"a/b", []string{"c/d:e", "docker.io/x"}, true},
		{"r.example.com/a", []string{"r.example.com/b"}, true},
		{"r.example.com/a", []string{"b"}, false},
		{"UPPER", nil, false},
		{"a", []string{"b c"}, false},
	} {
		if err := CheckOneRegistry(test.image, test.tags); (err == nil) != test.ok {
			t.Errorf("%v: %v", test, err)
		}
	}
}

func TestRefreshRunImage(t *testing.T) {
	run := runImage(t)
	list := spec.RunTOML{Images: []spec.RunImageEntry{{Image: "run"}}}
	target := &spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "debian", Version: "12"}}
	for name, test := range map[string]struct {
		api    string
		in     spec.RunImage
		denied string
		want   *spec.Target
		fails  bool
	}{
		"cleared by an extension": {testAPI, spec.RunImage{Image: "run", Reference: "run"}, "", target, false},
		"cleared, since 0.12":     {"0.12", spec.RunImage{Image: "run", Reference: "run"}, "", target, false},
		"old platform":            {"0.11", spec.RunImage{Image: "run", Reference: "run"}, "", nil, false},
		"to be extended":          {testAPI, spec.RunImage{Image: "run", Reference: "run", Extend: true}, "", nil, false},
		"unreadable before 0.14":  {"0.13", spec.RunImage{Image: "run", Reference: "run", Target: target}, "read run", target, false},
		"as it was":               {testAPI, spec.RunImage{Image: "none", Reference: "none@x", Target: target}, "", target, false},
		"listed but unreadable":   {testAPI, spec.RunImage{Image: "run", Reference: "run", Target: target}, "read run", nil, true},
		"gone":                    {testAPI, spec.RunImage{Image: "gone", Reference: "gone"}, "", nil, true},
	} {
		g := &guarded{images: map[string]v1.Image{"run": run}, denied: map[string]bool{test.denied: true}}
		a, err := RefreshRunImage(t.Context(), g, spec.Analyzed{RunImage: &test.in}, list, AnalyzeSetting{PlatformAPI: test.api})
		if (err != nil) != test.fails || test.fails && spec.ExitCode(err, 0) != spec.ExitRestore {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.want, a.RunImage.Target); diff != "" && !test.fails {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// cacheOf is a cache in memory.
type cacheOf struct {
	md     spec.CacheMetadata
	err    error
	layers map[string]v1.Layer
}

func (c cacheOf) Load(context.Context) (spec.CacheMetadata, bool, error) {
	return c.md, c.err == nil, c.err
}

func (c cacheOf) Layer(_ context.Context, diffID string) (v1.Layer, error) {
	if l := c.layers[diffID]; l != nil {
		return l, nil
	}
	return nil, image.ErrNotFound
}

func lm(sha, flags string) spec.LayerMetadata {
	return spec.LayerMetadata{
		SHA: sha, Data: map[string]any{"from": sha},
		Build: strings.Contains(flags, "b"), Cache: strings.Contains(flags, "c"), Launch: strings.Contains(flags, "l"),
	}
}

// TestRestoreTable is requirements 2.3 and the table of 3.6.
func TestRestoreTable(t *testing.T) {
	conform.Covers(t, 78, 79, 80, 81, 82)
	const none, meta, both = "", "metadata", "metadata and contents"
	for name, test := range map[string]struct {
		image, cache string // flags of the layer there; "-" for absent
		sameSHA      bool
		api          string
		want         string
	}{
		"launch":                         {"l", "-", true, testAPI, meta},
		"launch, cached by chance":       {"l", "c", true, testAPI, both},
		"build and launch":               {"bl", "-", true, testAPI, none},
		"build, cache, launch":           {"bcl", "bcl", true, testAPI, both},
		"cache, launch":                  {"cl", "cl", true, testAPI, both},
		"cache, launch, not in cache":    {"cl", "-", true, testAPI, none},
		"cache, launch, other contents":  {"cl", "cl", false, testAPI, none},
		"cache, launch, cache disagrees": {"cl", "l", true, testAPI, none},
		"build, cache":                   {"-", "bc", true, testAPI, both},
		"cache":                          {"-", "c", true, testAPI, both},
		"image lost it":                  {"-", "cl", true, testAPI, both},
		"image lost it, old platform":    {"-", "cl", true, "0.13", none},
		"image never launched it":        {"c", "c", true, testAPI, both},
		"nowhere":                        {"-", "-", true, testAPI, none},
	} {
		t.Run(name, func(t *testing.T) {
			x := &site{}
			x.layers = Tree{Path: "/layers", Stack: layer.Stack{Upper: t.TempDir()}}
			sha := "sha256:1"
			var a spec.Analyzed
			if test.image != "-" {
				a.Metadata.Buildpacks = []spec.BuildpackLayers{{Key: "acme/a", Layers: map[string]spec.LayerMetadata{"l": lm(sha, test.image)}}}
			}
			c := cacheOf{layers: map[string]v1.Layer{}}
			if !test.sameSHA {
				sha = "sha256:2"
			}
			if test.cache != "-" {
				c.md.Buildpacks = []spec.BuildpackLayers{{Key: "acme/a", Layers: map[string]spec.LayerMetadata{"l": lm(sha, test.cache)}}}
				c.layers[sha] = struct{ v1.Layer }{}
			}
			group := spec.Group{Group: []spec.GroupElement{{ID: "acme/a"}}}
			placed := false
			known, err := Restore(t.Context(), c, func(_ context.Context, rel string, _ v1.Layer) error {
				placed = rel == "acme_a/l"
				return nil
			}, group, a, x.layers, RestoreSetting{PlatformAPI: test.api}, &x.events)
			must(t, err)
			body, err := os.ReadFile(filepath.Join(x.layers.Upper, "acme_a/l.toml"))
			got := none
			if err == nil {
				got = meta
			}
			if placed && known["acme_a/l"] == sha {
				got += " and contents"
			}
			if got != test.want || len(known) > 0 != placed {
				t.Errorf("restored %q, want %q", got, test.want)
			}
			if strings.Contains(string(body), "types") || got != none && !strings.Contains(string(body), "from = \"sha256:") {
				t.Errorf("layer.toml:\n%s", body)
			}
			if x.warnings() != nil {
				t.Errorf("warnings %q", x.warnings())
			}
		})
	}
}

// TestRestoreInPlace restores into a plain directory, as in any container.
// A layer may be for some execution environments only; its buildpack says so in
// the metadata, which comes from an image as JSON and from a cache.
func TestRestoreLayersOfThisEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		metadata any // exec-env
		execEnv  string
		api      string
		want     bool
	}{
		"says nothing":              {nil, "", testAPI, true},
		"for all":                   {[]any{"*"}, "test", testAPI, true},
		"empty":                     {[]any{}, "test", testAPI, true},
		"for this":                  {[]any{"development", "test"}, "test", testAPI, true},
		"for the default":           {[]any{"production"}, "", testAPI, true},
		"for another":               {[]any{"test"}, "", testAPI, false},
		"before there were any":     {[]any{"test"}, "", "0.14", true},
		"means something else":      {"test", "", testAPI, true},
		"means something else, too": {[]any{int64(1)}, "", testAPI, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := &site{}
			x.layers = Tree{Path: "/layers", Stack: layer.Stack{Upper: t.TempDir()}}
			layers := func(flags string) []spec.BuildpackLayers {
				l := lm("sha256:1", flags)
				if test.metadata != nil {
					l.Data["exec-env"] = test.metadata
				}
				return []spec.BuildpackLayers{{Key: "acme/a", Layers: map[string]spec.LayerMetadata{flags: l}}}
			}
			a := spec.Analyzed{Metadata: spec.LifecycleMetadata{Buildpacks: layers("l"), ExecEnv: test.execEnv}}
			c := cacheOf{md: spec.CacheMetadata{Buildpacks: layers("bc")}, layers: map[string]v1.Layer{"sha256:1": struct{ v1.Layer }{}}}
			place := func(context.Context, string, v1.Layer) error { return nil }
			known, err := Restore(t.Context(), c, place, spec.Group{Group: []spec.GroupElement{{ID: "acme/a"}}}, a, x.layers,
				RestoreSetting{PlatformAPI: test.api, ExecEnv: test.execEnv}, &x.events)
			must(t, err)
			_, inImage := os.Stat(filepath.Join(x.layers.Upper, "acme_a/l.toml"))
			_, inCache := os.Stat(filepath.Join(x.layers.Upper, "acme_a/bc.toml"))
			if (inImage == nil) != test.want || (inCache == nil) != test.want || (len(known) == 1) != test.want {
				t.Errorf("restored %v, %v, %v, want %v", inImage == nil, inCache == nil, known, test.want)
			}
		})
	}
}

func TestRestoreInPlace(t *testing.T) {
	conform.Covers(t, 84, 87)
	x := newSite(t)
	x.contents()
	must(t, os.Symlink("/etc", filepath.Join(x.layers.Upper, "acme_a/dep/link")))
	must(t, os.Chmod(filepath.Join(x.layers.Upper, "acme_a/dep"), 0o555))
	first := x.export()
	x.fresh()
	x.file("layers", "acme_a/dep/stale", "from before")
	a, err := Analyze(t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, &x.layers, &x.events)
	must(t, err)
	old := unix.Umask(0o077)
	known, err := Restore(t.Context(), kept{x.cache, x.store}, Extract(x.layers), x.group, a.Analyzed, x.layers, RestoreSetting{PlatformAPI: testAPI}, &x.events)
	unix.Umask(old)
	must(t, err)
	var got []string
	err = filepath.Walk(x.layers.Upper, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			got = append(got, fmt.Sprintf("%v %s", fi.Mode(), strings.TrimPrefix(path, x.layers.Upper)))
		}
		return err
	})
	must(t, err)
	want := []string{
		"drwxr-xr-x ", "drwxr-xr-x /acme_a", "drwxr-xr-x /acme_a/builder", "-rw-r--r-- /acme_a/builder/x",
		"-rw-r--r-- /acme_a/builder.sbom.syft.json", "-rw-r--r-- /acme_a/builder.toml",
		"dr-xr-xr-x /acme_a/dep", "drwxr-xr-x /acme_a/dep/bin", "-rw-r--r-- /acme_a/dep/bin/tool",
		"drwxr-xr-x /acme_a/dep/lib", "-rw-r--r-- /acme_a/dep/lib/data", "Lrwxrwxrwx /acme_a/dep/link",
		"-rw-r--r-- /acme_a/dep.sbom.cdx.json", "-rw-r--r-- /acme_a/dep.toml", "-rw-r--r-- /acme_a/store.toml",
		"drwxr-xr-x /acme_b", "-rw-r--r-- /acme_b/a-b.toml", "-rw-r--r-- /acme_b/a.toml",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if known["acme_a/dep"] != first.DiffIDs["acme_a/dep"] || x.warnings() != nil {
		t.Errorf("known %v, warnings %q", known, x.warnings())
	}
}

func TestRestoreOnlyStore(t *testing.T) {
	conform.Covers(t, 77)
	x := newSite(t)
	x.contents()
	x.export()
	for api, want := range map[string][]string{testAPI: {"acme_a"}, "0.9": nil} {
		x.fresh()
		a, err := Analyze(t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &x.events)
		must(t, err)
		known, err := Restore(t.Context(), kept{x.cache, x.store}, nil, x.group, a.Analyzed, x.layers, RestoreSetting{PlatformAPI: api, SkipLayers: true}, &x.events)
		must(t, err)
		list, err := filepath.Glob(filepath.Join(x.layers.Upper, "*/*"))
		must(t, err)
		if len(known) != 0 || len(list) != len(want) || len(want) == 1 && filepath.Base(list[0]) != "store.toml" {
			t.Errorf("API %s: known %v, files %v", api, known, list)
		}
	}
}

func TestRestoreNothingForOthers(t *testing.T) {
	conform.Covers(t, 85)
	x := newSite(t)
	x.contents()
	x.export()
	for name, test := range map[string]struct {
		group   []spec.GroupElement
		execEnv string
	}{
		"another buildpack": {[]spec.GroupElement{{ID: "acme/c"}}, ""},
		"another exec env":  {x.group.Group, "test"},
	} {
		x.fresh()
		a, err := Analyze(t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, &x.layers, &x.events)
		must(t, err)
		known, err := Restore(t.Context(), kept{x.cache, x.store}, Extract(x.layers), spec.Group{Group: test.group}, a.Analyzed, x.layers, RestoreSetting{PlatformAPI: testAPI, ExecEnv: test.execEnv}, &x.events)
		must(t, err)
		list, err := os.ReadDir(x.layers.Upper)
		if err != nil || len(list) != 0 || len(known) != 0 {
			t.Errorf("%s: restored %v, %v", name, list, known)
		}
	}
}

// lying is a layer whose bytes are not those of its diffID.
type lying struct {
	v1.Layer
	body []byte
}

func (l lying) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(l.body))), nil
}

// TestRestoreDamage: whatever is wrong with the cache, the build goes on
// without that layer, and says so.
func TestRestoreDamage(t *testing.T) {
	conform.Covers(t, 83, 86)
	x := newSite(t)
	x.contents()
	x.export()
	md, ok, err := x.cache.Load(t.Context())
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	sha := md.Buildpacks[0].Layers["builder"].SHA
	good, err := x.store.Layer(t.Context(), sha)
	must(t, err)
	var hostile, forged strings.Builder
	must(t, layer.WriteFiles(&forged, []layer.File{{Path: "/layers/acme_a/builder/x", Mode: 0o644, Body: []byte("forged")}}))
	must(t, layer.WriteFiles(&hostile, []layer.File{{Path: "/layers/acme_a", Link: "/tmp", Mode: 0o777}, {Path: "/layers/acme_a/builder/x", Mode: 0o644}}))
	for name, test := range map[string]struct {
		cache CacheReader
		want  string
	}{
		"no cache":           {nil, "no cache"},
		"unreadable":         {cacheOf{err: errors.New("garbled")}, "garbled"},
		"layer is gone":      {cacheOf{md: md}, "acme/a:builder"},
		"layer is truncated": {cacheOf{md: md, layers: map[string]v1.Layer{sha: lying{good, make([]byte, 300)}}}, "acme/a:builder"},
		"layer is another":   {cacheOf{md: md, layers: map[string]v1.Layer{sha: lying{good, make([]byte, 1024)}}}, "acme/a:builder"},
		"layer is forged":    {cacheOf{md: md, layers: map[string]v1.Layer{sha: lying{good, []byte(forged.String())}}}, "acme/a:builder"},
		"layer is hostile":   {cacheOf{md: md, layers: map[string]v1.Layer{sha: lying{good, []byte(hostile.String())}}}, "acme/a:builder"},
	} {
		t.Run(name, func(t *testing.T) {
			x.fresh()
			known, err := Restore(t.Context(), test.cache, Extract(x.layers), x.group, spec.Analyzed{}, x.layers, RestoreSetting{PlatformAPI: testAPI}, &x.events)
			must(t, err)
			if len(known) != 0 || !slices.ContainsFunc(x.warnings(), func(w string) bool { return strings.Contains(w, test.want) }) {
				t.Errorf("known %v, warnings %q, want one with %q", known, x.warnings(), test.want)
			}
			if list, err := filepath.Glob(filepath.Join(x.layers.Upper, "*/builder*")); err != nil || len(list) != 0 {
				t.Errorf("left: %v %v", list, err)
			}
			if list, err := filepath.Glob(filepath.Join(x.layers.Upper, ".*")); err != nil || len(list) != 0 {
				t.Errorf("left: %v %v", list, err)
			}
		})
	}
}

func TestRestoreCancelled(t *testing.T) {
	x := newSite(t)
	x.contents()
	x.export()
	x.fresh()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Restore(ctx, kept{x.cache, x.store}, func(context.Context, string, v1.Layer) error {
		cancel()
		return context.Canceled
	}, x.group, spec.Analyzed{}, x.layers, RestoreSetting{PlatformAPI: testAPI}, &x.events)
	if !errors.Is(err, context.Canceled) || spec.ExitCode(err, 0) != spec.ExitRestore {
		t.Errorf("error %v", err)
	}
}
