package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

// rebases is rebasing in Debian's docker-registry, in the store and in files;
// skopeo, umoci and podman read what comes out.
func rebases(t *testing.T, s site) {
	t.Run("rebuild", func(t *testing.T) { rebaseIsARebuild(t, s) })
	t.Run("podman", func(t *testing.T) { podmanRunsRebased(t, s) })
	t.Run("fleet", func(t *testing.T) { rebaseFleet(t, s) })
	t.Run("files", func(t *testing.T) { rebaseFiles(t, s) })
	t.Run("stop", func(t *testing.T) { rebaseStops(t, s) })
}

func (s site) put(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	if err := remote.Write(s.ref(t, repo), img); err != nil {
		t.Fatal(err)
	}
	return s.digest(t, repo)
}

// patched is the site's run image with a security update: a layer more, and
// labels that say so.
func (s site) patched(t *testing.T, version string) v1.Image {
	t.Helper()
	run, err := remote.Image(s.ref(t, siteRun))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := run.Layers()
	if err != nil {
		t.Fatal(err)
	}
	more := reference.Run(t, nil, map[string]string{"/etc/patched": version + "\n", "/var/lib/dpkg/status.d/patch": "Package: patch\nVersion: " + version + "\n"})
	patch, err := more.Layers()
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(run, mutate.Addendum{Layer: patch[0], History: v1.History{CreatedBy: "patch " + version}})
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Config.Labels[spec.BaseReleasedLabel] = version
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	if n := len(layers); n == 0 {
		t.Fatal("the run image has no layers")
	}
	return img
}

// rebaseIsARebuild: an image that is rebased in the store is the one that a build
// on the new run image makes; the dry run says what changes.
func rebaseIsARebuild(t *testing.T, s site) {
	conform.Covers(t, 170, 172, 179)
	const run = "base/moving:1"
	s.copy(t, siteRun, run)
	store := t.TempDir()
	build := s.build("moved", s.source, "--run-image", s.addr+"/"+run)
	before := runKiln(t.Context(), t, store, nil, build...).ok(t).id()
	if got := runKiln(t.Context(), t, store, nil, "rebase", "moved").ok(t); !strings.Contains(got.stdout, "unchanged  moved") {
		t.Errorf("onto its own run image:\n%s", got)
	}
	s.put(t, run, s.patched(t, "2.0"))
	plan := runKiln(t.Context(), t, store, nil, "rebase", "--dry-run", "--packages", "moved").ok(t)
	for _, want := range []string{"would rebase moved", "onto      " + s.addr + "/base/moving@sha256:", "1 (", "patch 2.0 is new", spec.BaseReleasedLabel, "runImage.topLayer sha256:"} {
		if !strings.Contains(plan.stdout, want) {
			t.Errorf("the dry run does not say %q:\n%s", want, plan)
		}
	}
	if now := runKiln(t.Context(), t, store, nil, "images", "--quiet").ok(t).stdout; !strings.Contains(now, before) {
		t.Errorf("after a dry run there are %s, and no %s", now, before)
	}
	rebased := runKiln(t.Context(), t, store, nil, "rebase", "--quiet", "moved").ok(t).id()
	if out := runKiln(t.Context(), t, store, nil, "run", "moved", "--", "cat", "/etc/patched", "app.txt").ok(t).stdout; out != "2.0\nthe app\n" {
		t.Errorf("in the rebased image: %q", out)
	}
	built := runKiln(t.Context(), t, store, nil, append(build, "--clear-cache")...).ok(t).id()
	if rebased == before || built != rebased {
		t.Errorf("built anew %s, rebased %s, before %s", built, rebased, before)
	}
	runKiln(t.Context(), t, store, nil, "store", "check").ok(t)
}

// podmanRunsRebased: an image of the reference's with a real run image under it,
// rebased in its registry, runs.
func podmanRunsRebased(t *testing.T, s site) {
	conform.Covers(t, 170, 178)
	const run = "base/podman:1"
	s.copy(t, siteRun, run)
	old, err := remote.Image(s.ref(t, run))
	if err != nil {
		t.Fatal(err)
	}
	for _, docker := range []bool{false, true} {
		s.put(t, run, old)
		app := reference.App{Run: old, Image: s.addr + "/" + run, Reference: "r"}.Make(t)
		if docker {
			app = imagetest.AsDocker(t, app)
		}
		s.put(t, "me/podman", app)
		s.put(t, run, s.patched(t, "3.0"))
		dir := t.TempDir()
		runKiln(t.Context(), t, s.store, nil, "rebase", "--publish", "--report-output-dir", dir, s.addr+"/me/podman").ok(t)
		report, err := os.ReadFile(filepath.Join(dir, "report.toml"))
		if err != nil || !strings.Contains(string(report), s.digest(t, "me/podman")) {
			t.Errorf("report.toml: %s %v", report, err)
		}
		p, err := newPodman()
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		if out, err := p.output(s.addr + "/me/podman"); err != nil || out != "the app" {
			t.Errorf("docker=%t: %q %v", docker, out, err)
		}
		if out, err := p.output(s.addr+"/me/podman", "cat", "/etc/patched"); err != nil || out != "3.0" {
			t.Errorf("docker=%t, the base: %q %v", docker, out, err)
		}
	}
}

// rebaseFleet: many images, named on standard input; only documents travel, and
// an image that fails is said to have failed, with the rest done.
func rebaseFleet(t *testing.T, s site) {
	conform.Covers(t, 170, 173, 179)
	p := s.proxy(t)
	old := reference.Run(t, nil, map[string]string{"/a": "1"}, map[string]string{"/b": "1"})
	next := reference.Run(t, nil, map[string]string{"/a": "2"}, map[string]string{"/b": "2"}, map[string]string{"/c": "2"})
	s.put(t, "fleet/run:1", next)
	var list strings.Builder
	list.WriteString("# every image of the team\n\n")
	const n = 10
	blobs := map[string]bool{}
	for i := range n {
		app := reference.App{Run: old, Image: p.addr + "/fleet/run:1", Reference: "r", Files: map[string]string{"n": fmt.Sprint(i)}}
		if i == 3 {
			app.Config = func(c *v1.ConfigFile) { c.Config.Labels[spec.RebasableLabel] = "false" }
		}
		s.put(t, fmt.Sprintf("fleet/app%d", i), app.Make(t))
		fmt.Fprintf(&list, "%s/fleet/app%d\n", p.addr, i)
		for _, l := range append(s.layers(t, fmt.Sprintf("fleet/app%d", i)), s.layers(t, "fleet/run:1")...) {
			blobs[l] = true
		}
	}
	rebase := func(code int, args ...string) []event.Rebased {
		cmd := exec.Command(filepath.Join(bin, "kiln"), append([]string{"rebase", "--publish", "--json", "-"}, args...)...)
		cmd.Env = []string{"KILN_STORE=" + s.store, "HOME=" + t.TempDir()}
		cmd.Stdin = strings.NewReader(list.String())
		got := runCommand(t, cmd)
		if got.code != code {
			t.Fatalf("exit code %d, want %d\n%s", got.code, code, got)
		}
		var results []event.Rebased
		if err := event.Decode(strings.NewReader(got.stdout), event.Func(func(e event.Event) {
			switch e := e.(type) {
			case event.Rebased:
				results = append(results, e)
			case event.Message:
				if !strings.Contains(e.Text, "forced: ") || !slices.Contains(args, "--force") {
					t.Errorf("not an event: %s", e.Text)
				}
			}
		})); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(results, func(a, b event.Rebased) int { return strings.Compare(a.Name, b.Name) })
		return results
	}
	p.take()
	results := rebase(spec.ExitRebase)
	if len(results) != n {
		t.Fatalf("%d results", len(results))
	}
	for i, r := range results {
		repo := fmt.Sprintf("fleet/app%d", i)
		if i == 3 {
			if r.Result != "failed" || !strings.Contains(r.Error, "io.buildpacks.rebasable=false") {
				t.Errorf("%+v", r)
			}
			continue
		}
		if r.Result != "rebased" || r.After != s.digest(t, repo) || len(r.Removed) != 2 || len(r.Added) != 3 {
			t.Errorf("%+v, and the registry has %s", r, s.digest(t, repo))
		}
		skopeo(t, "copy", "-q", "--src-tls-verify=false", "docker://"+s.addr+"/"+repo, "dir:"+t.TempDir())
	}
	gets := 0
	for _, r := range p.take() {
		for blob := range blobs {
			if strings.HasPrefix(r, "GET ") && strings.HasSuffix(r, blob) {
				t.Errorf("a layer was read: %s", r)
			}
		}
		if strings.HasPrefix(r, "GET /v2/fleet/run/") {
			gets++
		}
	}
	if gets != 2 {
		t.Errorf("the run image was asked for %d times, want its manifest and its config", gets)
	}
	for i, r := range rebase(spec.ExitRebase) {
		if i != 3 && r.Result != "unchanged" {
			t.Errorf("again: %+v", r)
		}
	}
	if slices.ContainsFunc(p.take(), uploads) {
		t.Error("something was sent again")
	}
	for _, r := range rebase(0, "--force") {
		if r.Result == "failed" {
			t.Errorf("forced: %+v", r)
		}
	}
}

// rebaseFiles: an OCI layout and archives, as skopeo writes and reads them.
func rebaseFiles(t *testing.T, s site) {
	dir := t.TempDir()
	old := reference.Run(t, nil, map[string]string{"/a": "1"})
	s.put(t, "files/run:1", reference.Run(t, nil, map[string]string{"/a": "2"}, map[string]string{"/b": "2"}))
	s.put(t, "files/app:1", reference.App{Run: old, Image: s.addr + "/files/run:1", Reference: "r"}.Make(t))
	places := []string{"oci:" + dir + "/layout:app", "oci-archive:" + dir + "/oci.tar", "docker-archive:" + dir + "/docker.tar:me/app:1"}
	for _, place := range places {
		skopeo(t, "copy", "-q", "--src-tls-verify=false", "docker://"+s.addr+"/files/app:1", place)
	}
	ids := runKiln(t.Context(), t, s.store, nil, append([]string{"rebase", "--quiet"}, places...)...).ok(t).stdout
	for i, id := range strings.Fields(ids) {
		if got := configDigest(skopeo(t, "inspect", "--config", "--raw", places[i])); got != id {
			t.Errorf("%s holds %s, kiln said %s", places[i], got, id)
		}
		skopeo(t, "copy", "-q", places[i], "dir:"+t.TempDir())
	}
	out, err := exec.Command("umoci", "stat", "--image", dir+"/layout:app", "--json").CombinedOutput()
	if err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	var stat struct {
		History []struct {
			Layer     json.RawMessage
			CreatedBy string `json:"created_by"`
		}
	}
	if err := json.Unmarshal(out, &stat); err != nil || len(stat.History) != 8 || stat.History[1].CreatedBy != "ADD base 1" || stat.History[2].CreatedBy != "Layer: 'dep', Created by buildpack: acme/a@1.0.0" {
		t.Errorf("umoci sees %s (%v)", out, err)
	}
}

// rebaseStops: Ctrl-C ends it soon, and every tag is the old image or the new.
func rebaseStops(t *testing.T, s site) {
	slow := &rule{"PUT", "/manifests/sha256", -1, nil}
	p := s.proxy(t)
	slow.do = delays(300 * time.Millisecond)
	p.rules = append(p.rules, slow)
	old := reference.Run(t, nil, map[string]string{"/a": "1"})
	s.put(t, "stop/run:1", reference.Run(t, nil, map[string]string{"/a": "2"}))
	args := []string{"rebase", "--publish", "--jobs", "2"}
	before := map[string]string{}
	for i := range 12 {
		repo := fmt.Sprintf("stop/app%d", i)
		before[repo] = s.put(t, repo, reference.App{Run: old, Image: p.addr + "/stop/run:1", Reference: "r", Files: map[string]string{"n": fmt.Sprint(i)}}.Make(t))
		args = append(args, p.addr+"/"+repo)
	}
	cmd := exec.Command(filepath.Join(bin, "kiln"), args...)
	cmd.Env = []string{"KILN_STORE=" + s.store, "HOME=" + t.TempDir()}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "rebased ") {
		t.Errorf("first line %q", lines.Text())
	}
	cmd.Process.Signal(syscall.SIGINT)
	for lines.Scan() {
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("exit code %d, want 130", cmd.ProcessState.ExitCode())
	}
	moved := 0
	for repo, was := range before {
		img, err := remote.Image(s.ref(t, repo))
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), img, nil); err != nil {
			t.Errorf("%s: %v", repo, err)
		}
		if s.digest(t, repo) != was {
			moved++
		}
	}
	if moved == 0 || moved == len(before) {
		t.Errorf("%d of %d images were rebased", moved, len(before))
	}
}
