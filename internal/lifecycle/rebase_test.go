package lifecycle

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

func push(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(parsed, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return manifestDigest(t, img)
}

func manifestDigest(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func tagged(t *testing.T, ref string) string {
	t.Helper()
	img, _ := pull(t, ref)
	return manifestDigest(t, img)
}

func debianRun(t *testing.T, version string) v1.Image {
	return reference.Run(t, func(c *v1.ConfigFile) {
		c.Config.Labels = map[string]string{spec.BaseDistroNameLabel: "debian", spec.BaseDistroVersionLabel: "12", spec.BaseReleasedLabel: version}
	}, map[string]string{"/etc/version": version}, map[string]string{"/lib/libc": version})
}

func (w *world) report() spec.Report {
	w.Helper()
	report, err := spec.ReadReport([]byte(w.read("layers/report.toml")), "report.toml")
	if err != nil {
		w.Fatal(err)
	}
	return report
}

// An app image of the reference's, OCI or Docker, is rebased in its registry.
func TestRebaser(t *testing.T) {
	conform.Covers(t, 170, 172, 176, 178, 179)
	for _, docker := range []bool{false, true} {
		w, host := newWorld(t), newRegistry(t)
		old, next := debianRun(t, "1"), debianRun(t, "2")
		app := reference.App{Run: old, Image: "registry.invalid/run:1", Mirrors: []string{host + "/base/run:1"}, Reference: host + "/base/run@" + manifestDigest(t, old)}.Make(t)
		want := reference.App{Run: next, Image: "registry.invalid/run:1", Mirrors: []string{host + "/base/run:1"}, Reference: host + "/base/run@" + push(t, host+"/base/run:1", next)}.Make(t)
		if docker {
			app, want = imagetest.AsDocker(t, app), imagetest.AsDocker(t, want)
		}
		before := push(t, host+"/me/app:1", app)

		// The run image comes from the label, the app's registry first.
		w.want(0, w.run(rebaser, "-previous-image", host+"/me/app:1", host+"/other/app:1", host+"/me/app:2"))
		digest := manifestDigest(t, want)
		for _, ref := range []string{"other/app:1", "me/app:2"} {
			img, _ := pull(t, host+"/"+ref)
			if got := manifestDigest(t, img); got != digest {
				got, _ := img.RawConfigFile()
				want, _ := want.RawConfigFile()
				t.Errorf("docker=%t: %s is not what a build makes (-want +got)\n%s", docker, ref, cmp.Diff(string(want), string(got)))
			}
			if err := image.Validate(t.Context(), img, nil); err != nil {
				t.Error(err)
			}
		}
		if got := tagged(t, host+"/me/app:1"); got != before {
			t.Errorf("the previous image is now %s, was %s", got, before)
		}
		report := w.report()
		raw, err := want.RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(spec.ReportImage{Tags: []string{host + "/other/app:1", host + "/me/app:2"}, Digest: digest, ManifestSize: int64(len(raw))}, report.Image); d != "" {
			t.Errorf("report.toml (-want +got)\n%s", d)
		}
		// In place, and again: by the deprecated flag too.
		for range 2 {
			w.want(0, w.run(rebaser, "-image", host+"/base/run:1", host+"/me/app:1"))
			if got := tagged(t, host+"/me/app:1"); got != digest {
				t.Errorf("in place: %s, want %s", got, digest)
			}
		}
		// And back: the tag of the run image is moved.
		push(t, host+"/base/run:1", old)
		w.want(0, w.run(rebaser, "-report", w.path("elsewhere/report.toml"), host+"/me/app:1"))
		if got := tagged(t, host+"/me/app:1"); got != before {
			t.Errorf("back: %s, want %s", got, before)
		}
		if !strings.Contains(w.read("elsewhere/report.toml"), before) {
			t.Error(w.read("elsewhere/report.toml"))
		}
	}
}

// kiln's own image is rebased to the very image that a rebuild makes.
func TestRebaserIsARebuild(t *testing.T) {
	w, host := newWorld(t), newRegistry(t)
	w.app(host)
	w.build(host)
	push(t, host+"/run:1", runImage(t))
	w.want(0, w.run(rebaser, "-previous-image", host+"/me/app:1", host+"/me/rebased"))
	w.build(host)
	if a, b := tagged(t, host+"/me/rebased"), tagged(t, host+"/me/app:1"); a != b {
		t.Errorf("rebased %s, built %s", a, b)
	}
}

func TestRebaserRefuses(t *testing.T) {
	conform.Covers(t, 173, 174, 175, 177, 178)
	w, host := newWorld(t), newRegistry(t)
	old := debianRun(t, "1")
	push(t, host+"/base/run:1", debianRun(t, "2"))
	push(t, host+"/base/other:1", debianRun(t, "3"))
	make := func(repo string, app reference.App) {
		app.Run, app.Image, app.Reference = old, host+"/base/run:1", "r"
		push(t, host+"/"+repo, app.Make(t))
	}
	make("app", reference.App{})
	make("never", reference.App{Config: func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "false" }})
	make("arm", reference.App{Config: func(c *v1.ConfigFile) { c.Architecture = "arm64" }})
	make("stack", reference.App{PlatformAPI: "0.11", Config: func(c *v1.ConfigFile) { c.Config.Labels[spec.StackIDLabel] = "a" }})
	push(t, host+"/plain", old)
	for _, tc := range []struct {
		api  string
		code int
		want string
		args []string
	}{
		{"0.15", 72, "io.buildpacks.rebasable=false", []string{host + "/never"}},
		{"0.15", 72, `architecture "arm64", the run image for "amd64"`, []string{host + "/arm"}},
		{"0.15", 72, "does not know the run image", []string{"-run-image", host + "/base/other:1", host + "/app"}},
		{"0.15", 72, `stack "a", the run image for ""`, []string{host + "/stack"}},
		{"0.11", 72, `stack "a", the run image for ""`, []string{host + "/stack"}},
		{"0.15", 72, "no label io.buildpacks.lifecycle.metadata", []string{host + "/plain"}},
		{"0.15", 72, "image to rebase: read image " + host + "/gone", []string{host + "/gone"}},
		{"0.15", 72, "run image " + host + "/gone", []string{"-run-image", host + "/gone", host + "/app"}},
		{"0.15", 3, "give only one", []string{"-run-image", "a", "-image", "b", host + "/app"}},
		{"0.15", 3, "is not in the registry of", []string{host + "/app", "other.example/app"}},
		{"0.15", 3, "a new image gets a name and a tag", []string{host + "/app@sha256:" + strings.Repeat("0", 64)}},
		{"0.15", 3, "UPPER", []string{host + "/UPPER"}},
		{"0.15", 3, "at least one image", nil},
		{"0.11", 2, "-force", []string{"-force", host + "/app"}},
		{"0.10", 2, "-previous-image", []string{"-previous-image", host + "/app", host + "/app"}},
		{"0.12", 2, "-insecure-registry", []string{"-insecure-registry", host, host + "/app"}},
	} {
		w.want(tc.code, w.runAs(tc.api, rebaser, tc.args...))
		if out := w.stderr.String(); !strings.Contains(out, tc.want) {
			t.Errorf("%q: %q is missing in %s", tc.args, tc.want, out)
		}
		if _, err := os.Stat(w.path("layers/report.toml")); err == nil {
			t.Fatalf("%q: there is a report", tc.args)
		}
	}
	// Forced by the flag and by the variable.
	w.want(0, w.run(rebaser, "-force", host+"/never"))
	if !strings.Contains(w.stderr.String(), "forced: ") {
		t.Errorf("no warning: %s", w.stderr.String())
	}
	code := Run(t.Context(), rebaser, []string{"-report", w.path("r.toml"), "-run-image", host + "/base/other:1", host + "/app"},
		[]string{"CNB_PLATFORM_API=0.12", "CNB_FORCE_REBASE=true"}, w.host)
	w.want(0, code)
	if _, cf := pull(t, host+"/app"); !strings.Contains(cf.Config.Labels[spec.LifecycleMetadataLabel], `"image":"`+host+`/base/other:1"`) {
		t.Errorf("the label is %s", cf.Config.Labels[spec.LifecycleMetadataLabel])
	}
}

// One name that fails keeps no other from being written, and is not reported.
func TestRebaserPartialFailure(t *testing.T) {
	w := newWorld(t)
	registry := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/closed/manifests/") {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		registry.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	push(t, host+"/run:1", debianRun(t, "2"))
	push(t, host+"/app", reference.App{Run: debianRun(t, "1"), Image: host + "/run:1", Reference: "r"}.Make(t))
	w.want(spec.ExitRebase, w.run(rebaser, "-previous-image", host+"/app", host+"/a", host+"/closed", host+"/b"))
	if out := w.stderr.String(); !strings.Contains(out, host+"/closed") || !strings.Contains(out, "403") {
		t.Error(out)
	}
	if report := w.report(); !slices.Equal(report.Image.Tags, []string{host + "/a", host + "/b"}) || report.Image.Digest != tagged(t, host+"/b") {
		t.Errorf("%+v", report)
	}
}
