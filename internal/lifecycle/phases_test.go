package lifecycle

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// The version of the Platform API is looked at before everything else, by every phase.
func TestPlatformAPIGoesFirst(t *testing.T) {
	conform.Covers(t, 1)
	w := newWorld(t)
	for _, phase := range Phases {
		for _, environ := range [][]string{nil, {"CNB_PLATFORM_API="}, {"CNB_PLATFORM_API= "}, {"CNB_PLATFORM_API=0.6"}, {"CNB_PLATFORM_API=0.16"}, {"CNB_PLATFORM_API=one"}} {
			w.stdout.Reset()
			w.stderr.Reset()
			environ = append(environ, "CNB_LOG_LEVEL=nonsense", "CNB_USER_ID=nobody")
			w.want(spec.ExitPlatformAPI, Run(t.Context(), phase, []string{"-nonsense", "an", "image"}, environ, w.host))
			if said := w.stderr.String(); !strings.Contains(strings.ToLower(said), "platform") || strings.Contains(said, "nonsense") {
				t.Errorf("%s %q: %s", phase, environ, said)
			}
		}
	}
}

// -order, else <layers>/order.toml, else the builder's.
func TestWhichOrder(t *testing.T) {
	conform.Covers(t, 31)
	w := newWorld(t)
	for _, id := range []string{"flag", "layers", "builder"} {
		w.buildpack(id, "#!/bin/sh\n", "#!/bin/sh\n")
		w.write(id+".toml", "[[order]]\n[[order.group]]\nid = '"+id+"'\nversion = '1.0.0'\n")
	}
	w.write("cnb/order.toml", w.read("builder.toml"))
	w.host.Dirs = map[string]layer.Stack{"/cnb": {Upper: w.path("cnb")}}
	detected := func(args ...string) string {
		t.Helper()
		w.want(0, w.run(detector, args...))
		g, err := spec.ReadGroup([]byte(w.read("layers/group.toml")), "group.toml")
		if err != nil || len(g.Group) != 1 {
			t.Fatal(g, err)
		}
		return g.Group[0].ID
	}
	if got := detected("-order="); got != "builder" {
		t.Errorf("without <layers>/order.toml: %s", got)
	}
	w.write("layers/order.toml", w.read("layers.toml"))
	if got := detected("-order="); got != "layers" {
		t.Errorf("with <layers>/order.toml: %s", got)
	}
	if got := detected("-order", w.path("flag.toml")); got != "flag" {
		t.Errorf("with -order: %s", got)
	}
}

// metadata.toml has the form of the Platform API.
func TestMetadataTOMLByVersion(t *testing.T) {
	conform.Covers(t, 118)
	w := newWorld(t)
	w.write("workspace/go", "")
	w.want(0, w.run(detector))
	w.buildpack("second", "", "#!/bin/sh\nprintf '[[processes]]\\ntype = \"web\"\\ncommand = [\"run\", \"this\"]\\nargs = [\"or\", \"that\"]\\n' > $CNB_LAYERS_DIR/launch.toml\n")
	for api, want := range map[string]string{
		"0.9":  "  command = \"run\"\n  args = [\"this\", \"or\", \"that\"]\n  direct = true\n",
		"0.10": "  command = [\"run\", \"this\"]\n  args = [\"or\", \"that\"]\n  direct = true\n",
		"0.15": "  command = [\"run\", \"this\"]\n  args = [\"or\", \"that\"]\n  direct = true\n",
	} {
		w.want(0, w.runAs(api, builder))
		if got := w.read("layers/config/metadata.toml"); !strings.Contains(got, want) {
			t.Errorf("%s: want %q in\n%s", api, want, got)
		}
	}
}

// watched is a registry that refuses what is below /denied (to write) and
// /secret (at all), and notes what it is sent.
type watched struct {
	host string
	http.Handler

	mu   sync.Mutex
	sent []string // paths of blobs and manifests that were written
}

// ServeHTTP implements http.Handler.
func (r *watched) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	write := req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch
	if strings.HasPrefix(req.URL.Path, "/v2/secret/") || strings.HasPrefix(req.URL.Path, "/v2/denied/") && write {
		http.Error(w, `{"errors":[{"code":"DENIED","message":"no"}]}`, http.StatusForbidden)
		return
	}
	if req.Method == http.MethodPut {
		r.mu.Lock()
		r.sent = append(r.sent, req.URL.Path+"?"+req.URL.RawQuery)
		r.mu.Unlock()
	}
	r.Handler.ServeHTTP(w, req)
}

// took returns the kinds of what was sent since it was asked last.
func (r *watched) took() (blobs, manifests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, path := range r.sent {
		if strings.Contains(path, "/manifests/") {
			manifests++
		} else {
			blobs++
		}
	}
	r.sent = nil
	return blobs, manifests
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	r := &watched{Handler: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(r.host + "/run:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, runImage(t)); err != nil {
		t.Fatal(err)
	}
	r.took()
	return r
}

// Who may not read or write what the build needs, learns it from the analyzer,
// before anything is written.
func TestAnalyzerChecksAccess(t *testing.T) {
	r := newWatched(t)
	run := []string{"-run-image", r.host + "/run:1"}
	for name, test := range map[string]struct {
		covers int
		args   []string
		want   string
	}{
		"write image":    {22, append(run, r.host+"/denied/app"), "no write access to " + r.host + "/denied/app"},
		"write tag":      {22, append(run, "-tag", r.host+"/denied/tag", r.host+"/app"), "no write access to " + r.host + "/denied/tag"},
		"write cache":    {22, append(run, "-cache-image", r.host+"/denied/cache", r.host+"/app"), "no write access to " + r.host + "/denied/cache"},
		"read run image": {23, []string{"-run-image", r.host + "/secret/run", r.host + "/app"}, "no read access to " + r.host + "/secret/run"},
		"read previous":  {23, append(run, "-previous-image", r.host+"/secret/app", r.host+"/app"), "no read access to " + r.host + "/secret/app"},
	} {
		t.Run(name, func(t *testing.T) {
			conform.Covers(t, test.covers)
			w := newWorld(t)
			w.want(spec.ExitAnalyze, w.run(analyzer, test.args...))
			if said := w.stderr.String(); !strings.Contains(said, test.want) {
				t.Errorf("%q is missing in %s", test.want, said)
			}
			if list, err := os.ReadDir(w.path("layers")); err != nil || len(list) > 0 {
				t.Errorf("written: %v, %v", list, err)
			}
			if blobs, manifests := r.took(); blobs+manifests > 0 {
				t.Errorf("%d blobs and %d manifests were sent", blobs, manifests)
			}
		})
	}
}

// Names that no registry could have are the caller's fault.
func TestInvalidReferences(t *testing.T) {
	conform.Covers(t, 6)
	w := newWorld(t)
	digest := "@sha256:" + strings.Repeat("0", 64)
	for name, argv := range map[string][]string{
		"image":               {analyzer, "-run-image", "run", "r.example/IMAGE"},
		"tag":                 {analyzer, "-run-image", "run", "-tag", "r.example/a b", "r.example/app"},
		"previous image":      {analyzer, "-run-image", "run", "-previous-image", "OLD", "r.example/app"},
		"run image":           {analyzer, "-run-image", "RUN", "r.example/app"},
		"cache image":         {analyzer, "-run-image", "run", "-cache-image", "a:b:c", "r.example/app"},
		"exported":            {exporter, "r.example/app:"},
		"exported to digest":  {exporter, "r.example/app" + digest},
		"second exported":     {exporter, "r.example/app", "r.example/app" + digest},
		"created":             {creator, "-run-image", "run", ":latest"},
		"created, second tag": {creator, "-run-image", "run", "-tag", "::", "r.example/app"},
	} {
		w.want(spec.ExitInvalidArgs, w.run(argv[0], argv[1:]...))
		if said := w.stderr.String(); !strings.Contains(said, "image") {
			t.Errorf("%s: %s", name, said)
		}
	}
}

// exported is the config's labels and the manifest's digest of an image.
func exported(t *testing.T, ref string) (labels map[string]string, digest string) {
	t.Helper()
	img, cf := pull(t, ref)
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return cf.Config.Labels, d.String()
}

func TestAnalyzedTOMLHasTheLabel(t *testing.T) {
	w, r := newWorld(t), newWatched(t)
	w.app(r.host)
	w.build(r.host)
	labels, digest := exported(t, r.host+"/me/app:1")
	t.Run("metadata", func(t *testing.T) {
		conform.Covers(t, 17, 19)
		w.T = t
		first, err := spec.ReadAnalyzed([]byte(w.read("layers/analyzed.toml")), "analyzed.toml")
		if err != nil || first.PreviousImage != nil {
			t.Errorf("the first build has a previous image: %+v, %v", first.PreviousImage, err)
		}
		w.want(0, w.run(analyzer, "-run", w.path("run.toml"), r.host+"/me/app:1"))
		analyzed, err := spec.ReadAnalyzed([]byte(w.read("layers/analyzed.toml")), "analyzed.toml")
		if err != nil {
			t.Fatal(err)
		}
		if got := analyzed.PreviousImage; got == nil || got.Reference != r.host+"/me/app@"+digest {
			t.Errorf("previous image %+v, want %s", got, digest)
		}
		label, err := spec.DecodeLifecycleMetadata(labels[spec.LifecycleMetadataLabel])
		if diff := cmp.Diff(label, analyzed.Metadata, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
		if store := analyzed.Metadata.Buildpacks[1].Store; store == nil || store.Metadata["remember"] != "this" {
			t.Errorf("store: %+v", store)
		}
	})
	t.Run("SBOM layer", func(t *testing.T) {
		conform.Covers(t, 27)
		w.T = t
		const sbom = "layers/sbom/launch/buildpacksio_lifecycle/launcher/launcher.sbom.cdx.json"
		for _, skip := range []bool{false, true} {
			if err := os.RemoveAll(w.path("layers")); err != nil {
				t.Fatal(err)
			}
			w.mkdir("layers")
			args := []string{"-run", w.path("run.toml"), r.host + "/me/app:1"}
			if skip {
				args = append([]string{"-skip-layers"}, args...)
			}
			w.want(0, w.run(analyzer, args...))
			if _, err := os.Stat(w.path(sbom)); (err != nil) != skip {
				t.Errorf("skip %v: %v", skip, err)
			}
		}
	})
}

// The same app again: the same digest, nothing is sent that is there already,
// and what no project-metadata.toml says is said by an empty label.
func TestExportAgain(t *testing.T) {
	w, r := newWorld(t), newWatched(t)
	w.app(r.host)
	w.build(r.host)
	if blobs, manifests := r.took(); blobs < 5 || manifests < 2 {
		t.Fatalf("the first build sent %d blobs and %d manifests", blobs, manifests)
	}
	labels, first := exported(t, r.host+"/me/app:1")
	t.Run("project metadata", func(t *testing.T) {
		conform.Covers(t, 146)
		w.T = t
		if got := labels[spec.ProjectMetadataLabel]; got != "{}" {
			t.Errorf("without project-metadata.toml the label is %q", got)
		}
		w.write("project-metadata.toml", "[source]\ntype = \"git\"\n[source.version]\ncommit = \"c0ffee\"\n[source.metadata]\nrefs = [\"main\"]\n")
		w.want(0, w.run(exporter, "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-project-metadata", w.path("project-metadata.toml"), r.host+"/me/other:1"))
		labels, _ := exported(t, r.host+"/me/other:1")
		if got, want := labels[spec.ProjectMetadataLabel], `{"source":{"type":"git","version":{"commit":"c0ffee"},"metadata":{"refs":["main"]}}}`; got != want {
			t.Errorf("label %s, want %s", got, want)
		}
	})
	t.Run("unchanged", func(t *testing.T) {
		conform.Covers(t, 131, 132)
		w.T = t
		r.took()
		w.build(r.host)
		if _, again := exported(t, r.host+"/me/app:2"); again != first {
			t.Errorf("%s again is %s", first, again)
		}
		if blobs, _ := r.took(); blobs != 0 {
			t.Errorf("%d blobs were sent again", blobs)
		}
	})
	t.Run("one layer changes", func(t *testing.T) {
		conform.Covers(t, 132)
		w.T = t
		w.write("workspace/go", "other code")
		w.build(r.host)
		if blobs, _ := r.took(); blobs != 2 { // the app and the config
			t.Errorf("%d blobs were sent", blobs)
		}
	})
}

// A name that cannot be written fails the export; the others are written, and
// they are what the report says.
func TestOneNameOfManyFails(t *testing.T) {
	conform.Covers(t, 152)
	w, r := newWorld(t), newWatched(t)
	w.app(r.host)
	w.build(r.host)
	args := []string{"-run", w.path("run.toml"), "-launcher", w.path("launcher"), r.host + "/one", r.host + "/denied/two", r.host + "/three:3"}
	w.want(spec.ExitExport, w.run(exporter, args...))
	if said := w.stderr.String(); !strings.Contains(said, r.host+"/denied/two") {
		t.Errorf("the name is missing: %s", said)
	}
	report, err := spec.ReadReport([]byte(w.read("layers/report.toml")), "report.toml")
	_, digest := exported(t, r.host+"/one")
	_, other := exported(t, r.host+"/three:3")
	want := spec.Report{Image: spec.ReportImage{Tags: []string{r.host + "/one", r.host + "/three:3"}, Digest: digest, ManifestSize: report.Image.ManifestSize}}
	if diff := cmp.Diff(want, report); err != nil || diff != "" || other != digest || report.Image.ManifestSize < 100 {
		t.Errorf("%v %s %s", err, diff, other)
	}
}

// The creator's exit codes are those of its phases.
func TestCreatorExitCodes(t *testing.T) {
	conform.Covers(t, 169)
	w, r := newWorld(t), newWatched(t)
	w.app(r.host)
	const detect = "#!/bin/sh\necho \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n"
	common := []string{"-run", w.path("run.toml"), "-launcher", w.path("launcher"), r.host + "/me/app:1"}
	for _, test := range []struct {
		change func()
		args   []string
		code   int
	}{
		{func() {}, common, 0},
		{func() {}, append([]string{"-run-image", r.host + "/gone:1"}, common...), spec.ExitAnalyze},
		{func() {}, append([]string{"-process-type", "none"}, common...), spec.ExitExport},
		{func() { w.buildpack("second", detect, "#!/bin/sh\nexit 4\n") }, common, spec.ExitBuildpack},
		{func() { w.buildpack("second", detect, "#!/bin/sh\necho = > $CNB_LAYERS_DIR/l.toml\n") }, common, spec.ExitBuild},
		{func() { w.buildpack("second", "#!/bin/sh\nexit 100\n", "") }, common, spec.ExitDetectFail},
		{func() { w.buildpack("second", "#!/bin/sh\nexit 1\n", "") }, common, spec.ExitDetectError},
	} {
		test.change()
		w.want(test.code, w.run(creator, test.args...))
	}
}
