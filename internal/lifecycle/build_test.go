package lifecycle

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/conform"
)

// runImage is a small base.
func runImage(t *testing.T) v1.Image {
	t.Helper()
	l, err := random.Layer(512, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config.User, cf.Config.Env = "1000:1000", []string{"PATH=/usr/bin:/bin"}
	cf.Config.Labels = map[string]string{spec.BaseDistroNameLabel: "debian", spec.BaseDistroVersionLabel: "12"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// newRegistry starts a registry with a run image in it.
func newRegistry(t *testing.T) (host string) {
	t.Helper()
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/run:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, runImage(t)); err != nil {
		t.Fatal(err)
	}
	return host
}

func pull(t *testing.T, ref string) (v1.Image, *v1.ConfigFile) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return img, cf
}

// app makes the world's app buildable: layers of every kind, run.toml, launcher.
func (w *world) app(host string) {
	w.write("workspace/go", "code")
	w.write("launcher", "not really a launcher")
	w.write("launcher.sbom.cdx.json", `{"bomFormat":"CycloneDX"}`)
	w.write("run.toml", "[[images]]\nimage = '"+host+"/run:1'\n")
	w.buildpack("second", "#!/bin/sh\necho \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n", `#!/bin/sh
cd "$CNB_LAYERS_DIR"
if test -e kept/file; then echo kept was restored; else echo kept is new; fi
if test -e launch.toml; then echo launch.toml was there; fi
if test -e both.toml; then echo "both.toml says $(tr -d '\n' < both.toml)"; fi
if test -e store.toml; then echo "store.toml says $(tr -d '\n' < store.toml)"; fi
mkdir -p kept both bin
echo kept > kept/file
echo both > both/file
printf '[types]\ncache = true\n' > kept.toml
printf '[types]\nlaunch = true\ncache = true\n[metadata]\nn = 3\n' > both.toml
printf '[metadata]\nremember = "this"\n' > store.toml
printf '[[processes]]\ntype = "web"\ncommand = ["run"]\ndefault = true\n' > launch.toml
`)
}

// me is the user of a build: buildpacks run as whoever tests, so that the owners
// of what they leave and of what is restored are the same.
func me() string { return strconv.Itoa(os.Getuid()) }

func (w *world) phases(host string, more ...string) [][]string {
	repo := host + "/me/app"
	if w.repo != "" {
		repo = host + "/" + w.repo
	}
	img := repo + ":1"
	run, cache := []string{"-run", w.path("run.toml")}, append([]string{"-cache-dir", w.path("cache")}, more...)
	return [][]string{
		slices.Concat([]string{analyzer}, run, []string{"-tag", repo + ":2", img}),
		{detector},
		slices.Concat([]string{restorer}, run, cache),
		{builder},
		slices.Concat([]string{exporter}, run, cache, []string{"-launcher", w.path("launcher"), "-launcher-sbom", w.dir, "-uid", me(), "-gid", me(), img, repo + ":2"}),
	}
}

// build runs the five phases, restorer and exporter with more arguments, and
// returns what the buildpacks said.
func (w *world) build(host string, more ...string) string {
	w.Helper()
	if err := os.RemoveAll(w.path("layers")); err != nil {
		w.Fatal(err)
	}
	w.mkdir("layers")
	var said strings.Builder
	for _, argv := range w.phases(host, more...) {
		if code := w.run(argv[0], argv[1:]...); code != 0 {
			w.Fatalf("%s: exit code %d\n%s%s", argv[0], code, w.stdout.String(), w.stderr.String())
		}
		said.WriteString(w.stdout.String())
	}
	return said.String()
}

func TestFivePhases(t *testing.T) {
	conform.Covers(t, 83, 131)
	w := newWorld(t)
	host := newRegistry(t)
	w.app(host)
	first := w.build(host)
	if !strings.Contains(first, "kept is new") {
		t.Error(first)
	}
	img, cf := pull(t, host+"/me/app:1")
	if got := cf.Config.Entrypoint; !slices.Equal(got, []string{"/cnb/process/web"}) {
		t.Errorf("entrypoint %q", got)
	}
	if cf.Config.WorkingDir != w.path("workspace") || cf.Config.User != "1000:1000" {
		t.Errorf("%+v", cf.Config)
	}
	md, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel])
	if err != nil {
		t.Fatal(err)
	}
	if l := md.Buildpacks[1].Layers["both"]; !l.Launch || !l.Cache || l.Data["n"] != int64(3) {
		t.Errorf("label: %+v", l)
	}
	if md.SBOM == nil || md.RunImage.Image != host+"/run:1" || md.ExecEnv != "production" {
		t.Errorf("label: %+v", md)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	report, err := spec.ReadReport([]byte(w.read("layers/report.toml")), "report.toml")
	if err != nil {
		t.Fatal(err)
	}
	if report.Image.Digest != digest.String() || !slices.Equal(report.Image.Tags, []string{host + "/me/app:1", host + "/me/app:2"}) {
		t.Errorf("%+v", report)
	}
	analyzed, err := spec.ReadAnalyzed([]byte(w.read("layers/analyzed.toml")), "analyzed.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := &spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "debian", Version: "12"}}
	if diff := cmp.Diff(want, analyzed.RunImage.Target); diff != "" || analyzed.PreviousImage != nil {
		t.Error(diff, analyzed.PreviousImage)
	}

	// Again: everything comes back, and the image is the same.
	second := w.build(host)
	for _, s := range []string{"kept was restored", "both.toml says [metadata]  n = 3", `store.toml says [metadata]  remember = "this"`} {
		if !strings.Contains(second, s) {
			t.Errorf("%q is missing:\n%s", s, second)
		}
	}
	if strings.Contains(second, "launch.toml was there") {
		t.Error(second)
	}
	again, _ := pull(t, host+"/me/app:2")
	if d, err := again.Digest(); err != nil || d != digest {
		t.Errorf("rebuilt with digest %s, before %s %v", d, digest, err)
	}

	// A damaged cache is a miss, and heals.
	tars, err := filepath.Glob(w.path("cache/committed/sha256:*.tar"))
	if err != nil || len(tars) != 2 {
		t.Fatalf("%q %v", tars, err)
	}
	for _, tar := range tars {
		if err := os.WriteFile(tar, []byte("garbage"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if third := w.build(host); !strings.Contains(third, "kept is new") {
		t.Error(third)
	}
	if fourth := w.build(host); !strings.Contains(fourth, "kept was restored") {
		t.Error(fourth)
	}
	if again, _ = pull(t, host+"/me/app:1"); again != nil {
		if d, err := again.Digest(); err != nil || d != digest {
			t.Errorf("rebuilt with digest %s, before %s %v", d, digest, err)
		}
	}
}

func TestCreatorMakesTheSame(t *testing.T) {
	conform.Covers(t, 166, 169)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	w.build(host)
	img, _ := pull(t, host+"/me/app:1")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.path("layers")); err != nil {
		t.Fatal(err)
	}
	w.mkdir("layers")
	w.want(0, w.run(creator, "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-launcher-sbom", w.dir, "-uid", me(), "-gid", me(),
		"-tag", host+"/me/created:2", host+"/me/created:1"))
	for _, tag := range []string{":1", ":2"} {
		img, _ := pull(t, host+"/me/created"+tag)
		if d, err := img.Digest(); err != nil || d != digest {
			t.Errorf("created%s has digest %s, five phases made %s %v", tag, d, digest, err)
		}
	}
	w.buildpack("second", "#!/bin/sh\nexit 100\n", "")
	w.want(spec.ExitDetectFail, w.run(creator, "-run", w.path("run.toml"), host+"/me/created:1"))
}

func (c storeCache) Save(ctx context.Context, md spec.CacheMetadata, _ cache.Open) error {
	return c.Cache.Save(ctx, md)
}

// storePlaces is what kiln's own process lends to the trusted phases.
type storeCache struct {
	*store.Cache
	*store.Store
}

func TestHostWithStore(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.app("index.docker.io")
	s, err := store.Open(ctx, w.path("store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Write(ctx, "index.docker.io/run:1", runImage(t)); err != nil {
		t.Fatal(err)
	}
	places := &Places{Source: s, Target: s, Layers: s, Cache: storeCache{s.Cache("app"), s}, Trusted: image.Known(s.DiffID)}
	lowers := []string{}
	var events []event.Event
	one := func() {
		t.Helper()
		for _, dir := range []string{"upper", "layers"} {
			if err := os.RemoveAll(w.path(dir)); err != nil {
				t.Fatal(err)
			}
			w.mkdir(dir)
		}
		lowers = lowers[:0]
		places.Place = func(ctx context.Context, rel string, l v1.Layer) error { return nil }
		host := Host{
			Dirs: map[string]layer.Stack{
				"/layers":        {Upper: w.path("layers")},
				"/workspace":     {Upper: w.path("workspace")},
				"/cnb/lifecycle": {Upper: w.dir},
				"/cnb":           {Upper: w.dir},
			},
			Places: places, Events: event.Func(func(e event.Event) { events = append(events, e) }),
		}
		places.Place = phase.Extract(phase.Tree{Stack: host.Dirs["/layers"], Path: "/layers"})
		environ := []string{"CNB_PLATFORM_API=0.15", "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"}
		do := func(phase string, args ...string) {
			t.Helper()
			if err := Do(ctx, phase, args, environ, host); err != nil {
				t.Fatalf("%s: %v", phase, err)
			}
		}
		do(analyzer, "-run", "/cnb/run.toml", "app")
		w.want(0, w.run(detector))
		do(restorer)
		w.want(0, w.run(builder))
		do(exporter, "app", "app:other")
	}
	one()
	img, err := s.Image(ctx, "app")
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cf.Config.WorkingDir != "/workspace" || !slices.Equal(cf.Config.Entrypoint, []string{"/cnb/process/web"}) {
		t.Errorf("%+v", cf.Config)
	}
	if places.Exported.AppDiffID == "" || len(places.Cached) != 2 || len(places.Report.Image.Tags) != 2 {
		t.Errorf("results: %+v %v %+v", places.Exported, places.Cached, places.Report)
	}
	id, err := image.ID(img)
	if err != nil {
		t.Fatal(err)
	}
	events = nil
	one()
	if img, err = s.Image(ctx, "app:other"); err != nil {
		t.Fatal(err)
	}
	if again, err := image.ID(img); err != nil || again != id {
		t.Errorf("rebuilt as %s, before %s %v", again, id, err)
	}
	reused := 0
	for _, e := range events {
		if l, ok := e.(event.Layer); ok && l.Action == "reused" {
			reused++
		}
	}
	if reused == 0 {
		t.Errorf("nothing was reused: %v", events)
	}

	// Errors carry the phase's exit code, and nothing is framed or printed here.
	err = Do(ctx, exporter, []string{"-process-type", "nonsense", "-layers", "/layers", "app"}, []string{"CNB_PLATFORM_API=0.15", "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"},
		Host{Places: places, Dirs: map[string]layer.Stack{"/layers": {Upper: w.path("layers")}, "/workspace": {Upper: w.path("workspace")}, "/cnb/lifecycle": {Upper: w.dir}}})
	if spec.ExitCode(err, 0) != spec.ExitExport || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
}

func TestTrustedFailures(t *testing.T) {
	conform.Covers(t, 6, 26)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	check := func(code int, want string, argv ...string) {
		t.Helper()
		w.want(code, w.run(argv[0], argv[1:]...))
		if out := w.stderr.String(); !strings.Contains(out, want) {
			t.Errorf("%q: %q is missing in %s", argv, want, out)
		}
	}
	check(spec.ExitInvalidArgs, "is not in the registry of", analyzer, "-run-image", host+"/run:1", "-tag", "other.example/x", host+"/app")
	check(spec.ExitInvalidArgs, "INVALID", analyzer, "-run-image", host+"/run:1", host+"/INVALID")
	check(spec.ExitAnalyze, "no run image", analyzer, "-run", w.path("nothing.toml"), host+"/app")
	check(spec.ExitAnalyze, "run image "+host+"/gone", analyzer, "-run-image", host+"/gone", host+"/app")
	check(spec.ExitRestore, "group.toml", restorer)
	check(spec.ExitExport, "group.toml", exporter, host+"/app")
	check(spec.ExitExtend, "analyzed.toml has no reference of the build image", extender)
	if _, err := os.Stat(w.path("layers/analyzed.toml")); err == nil {
		t.Error("analyzed.toml was written by a failed analyzer")
	}

	// A restorer without a cache warns and goes on.
	w.want(0, w.run(analyzer, "-run", w.path("run.toml"), host+"/app"))
	w.want(0, w.run(detector))
	w.want(0, w.run(restorer))
	if !strings.Contains(w.stderr.String(), "no cache") {
		t.Error(w.stderr.String())
	}
	// The exporter needs a launcher and a known process.
	w.want(0, w.run(builder))
	check(spec.ExitExport, "launcher", exporter, "-launcher", w.path("nothing"), host+"/app")
	check(spec.ExitExport, `nonsense`, exporter, "-launcher", w.path("launcher"), "-process-type", "nonsense", host+"/app")
}
