package test

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

func hello(t *testing.T, p *proof) {
	conform.Covers(t, 131, 132, 166)
	p.everyWay(t)
	p.again(t)
	if got := p.launch(t, "five").ok(t).stdout; got != "Hello, world!\n" {
		t.Errorf("the app says %q", got)
	}
	p.change(t, "greeting.txt", "Hello, moon!\n")
	p.everyWay(t)
	if got := p.launch(t, "kiln").ok(t).stdout; got != "Hello, moon!\n" {
		t.Errorf("the changed app says %q", got)
	}
}

// everything proves each thing that a buildpack can leave by itself.
func everything(t *testing.T, p *proof) {
	img, _ := p.everyWay(t)
	second := p.again(t)
	for name, check := range map[string]func(*testing.T, *proof, v1.Image){
		"build environment": buildEnvironment, "launch environment": launchEnvironment, "exec.d": execD, "profile scripts": profileScripts,
		"process types": processTypes, "slices": slicesOfApp, "labels": labelsOfImage, "SBOMs": sboms, "commands": commands, "signals and exit codes": signals,
	} {
		t.Run(name, func(t *testing.T) { check(t, p, img) })
	}
	t.Run("second build", func(t *testing.T) {
		conform.Covers(t, 80, 84)
		for way, text := range second {
			for _, want := range []string{`the store is restored:   first = "everything"`, `the layer is restored:   version = "1.2.3", {"bomFormat": "CycloneDX", "specVersion": "1.4", "of": "lib"}`} {
				if !strings.Contains(text, want) {
					t.Errorf("%s: the second build does not say %q:\n%s", way, want, text)
				}
			}
		}
	})
	t.Run("changed app", func(t *testing.T) {
		conform.Covers(t, 132)
		before := layersByHistory(t, img)
		p.change(t, "docs/more.md", "another document\n")
		changed, _ := p.everyWay(t)
		for what, diffID := range layersByHistory(t, changed) {
			if differs := before[what] != diffID; differs != (what == "Application Slice: 2") {
				t.Errorf("layer %q differs: %t", what, differs)
			}
		}
	})
}

// buildEnvironment: what a buildpack sees of those before it.
func buildEnvironment(t *testing.T, p *proof, img v1.Image) {
	conform.Covers(t, 55, 108, 124)
	seen := fileIn(t, img, "/layers/demo_processes/seen/build-env")
	has(t, seen, "the tool says hello", "GREETING=hello", "ONLY_BUILD=yes", "FALLBACK=fallback", "LIST=two", "CNB_EXEC_ENV=production",
		"CNB_BUILDPACK_DIR=/cnb/buildpacks/demo_processes/1.0.0", "CNB_LAYERS_DIR=/layers/demo_processes", "CNB_TARGET_OS=linux")
	hasNot(t, seen, "ONLY_LAUNCH", "ONLY_WEB", "CNB_USER_ID", "CNB_PLATFORM_API", "CNB_REGISTRY_AUTH")
}

func launchEnvironment(t *testing.T, p *proof, _ v1.Image) {
	conform.Covers(t, 188, 192)
	env := p.launch(t, "five", "--env", "GREETING=mine", "--env", "FALLBACK=mine", "--env", "LIST=one").ok(t).stdout
	has(t, env, "GREETING=hello", "FALLBACK=mine", "LIST=one,two", "ONLY_LAUNCH=yes", "ONLY_WEB=yes", "PATH=/layers/demo_env/tool/bin:")
	hasNot(t, env, "ONLY_BUILD", "CNB_LAYERS_DIR", "CNB_APP_DIR", "CNB_PROCESS_TYPE", "/cnb/process")
	other := p.launch(t, "five", "--entrypoint", "launcher", "IMAGE", "--", "env").ok(t).stdout
	has(t, other, "ONLY_LAUNCH=yes", "GREETING=hello")
	hasNot(t, other, "ONLY_WEB")
}

func execD(t *testing.T, p *proof, _ v1.Image) {
	r := p.launch(t, "five").ok(t)
	has(t, r.stdout, "FROM_EXECD=in /workspace, after hello", "FROM_EXECD_WEB=after in /workspace, after hello")
	has(t, r.stderr, "exec.d runs")
	hasNot(t, p.launch(t, "five", "--entrypoint", "launcher", "IMAGE", "--", "env").ok(t).stdout, "FROM_EXECD_WEB")
}

func profileScripts(t *testing.T, p *proof, _ v1.Image) {
	want := "after after in /workspace, after hello|the app's own\n"
	if got := p.launch(t, "five", "--entrypoint", "shell").ok(t).stdout; got != want {
		t.Errorf("the shell process says %q, want %q", got, want)
	}
}

func processTypes(t *testing.T, p *proof, img v1.Image) {
	conform.Covers(t, 126, 180, 181, 182, 189, 191)
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"--entrypoint", "worker.v1"}, "always default arguments\n"},
		{[]string{"--entrypoint", "worker.v1", "IMAGE", "mine"}, "always mine\n"},
		{[]string{"--entrypoint", "elsewhere"}, "/tmp\n"},
		{[]string{"--entrypoint", "tests", "--env", "CNB_EXEC_ENV=test"}, "tests run\n"},
	} {
		if got := p.launch(t, "five", x.args...).ok(t).stdout; got != x.want {
			t.Errorf("%q prints %q, want %q", x.args, got, x.want)
		}
	}
	if r := p.launch(t, "five", "--entrypoint", "tests"); r.code == 0 || strings.Contains(r.stdout, "tests run") {
		t.Errorf("a process for tests runs in production: exit code %d\n%s", r.code, r)
	}
	if got := configOf(t, img).Config.Entrypoint; !slices.Equal(got, []string{"/cnb/process/web"}) {
		t.Errorf("the entrypoint is %q", got)
	}
}

// commands are processes that no buildpack knows of.
func commands(t *testing.T, p *proof, _ v1.Image) {
	conform.Covers(t, 183, 184)
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"--", "echo", "$GREETING"}, "$GREETING\n"},
		{[]string{"--", "greet"}, "the tool says hello\n"},
		{[]string{"echo", "$GREETING"}, "hello\n"},
		{[]string{`echo "$GREETING, $FROM_PROFILE" | cat`}, "hello, after in /workspace, after hello\n"},
	} {
		args := append([]string{"--entrypoint", "launcher", "IMAGE"}, x.args...)
		if got := p.launch(t, "five", args...).ok(t).stdout; got != x.want {
			t.Errorf("%q prints %q, want %q", x.args, got, x.want)
		}
	}
	if r := p.launch(t, "five", "--entrypoint", "launcher"); r.code != spec.ExitLaunch {
		t.Errorf("nothing to start: exit code %d, want %d\n%s", r.code, spec.ExitLaunch, r)
	}
	if r := p.launch(t, "five", "--entrypoint", "launcher", "IMAGE", "--", "no-such-program"); r.code < 80 || r.code > 89 {
		t.Errorf("a program that is not there: exit code %d, want 80 to 89\n%s", r.code, r)
	}
}

func signals(t *testing.T, p *proof, _ v1.Image) {
	conform.Covers(t, 190)
	if r := p.launch(t, "five", "--entrypoint", "launcher", "IMAGE", "--", "sh", "-c", "echo $$; exit 42"); r.code != 42 || r.stdout != "1\n" {
		t.Errorf("exit code %d, want 42; the process has the ID %q, want 1\n%s", r.code, r.stdout, r)
	}
	r := p.launch(t, "five", "--detach", "--rm=false", "--entrypoint", "launcher", "IMAGE", "--", "sh", "-c", `trap "exit 7" TERM; while :; do sleep 0.05; done`).ok(t)
	id := strings.TrimSpace(r.stdout)
	// Until the shell has set its trap, TERM does nothing to a process with ID 1.
	for range 100 {
		if _, err := p.podman.run("kill", "--signal", "TERM", id); err != nil {
			break // it has ended
		}
	}
	code, err := p.podman.run("wait", id)
	if err != nil || code != "7" {
		t.Errorf("after TERM the exit code is %q (%v), want 7", code, err)
	}
}

func slicesOfApp(t *testing.T, p *proof, img v1.Image) {
	conform.Covers(t, 128, 135, 136, 151)
	want := map[string][]string{
		"Application Slice: 1": {"static/deep/two.txt", "static/one.txt"},
		"Application Slice: 2": {"README.md", "docs/more.md"},
		"Application Slice: 3": {".profile", "docs/picture.txt", "everything.txt"},
	}
	got, history := map[string][]string{}, configOf(t, img).History
	var order []string
	for _, h := range history[runLayers(t, img):] {
		order = append(order, h.CreatedBy)
	}
	if want := []string{
		"Layer: 'tool', Created by buildpack: demo/env@1.0.0", "Layer: 'helpers', Created by buildpack: demo/execd@1.0.0",
		"Layer: 'scripts', Created by buildpack: demo/profile@1.0.0", "Layer: 'seen', Created by buildpack: demo/processes@1.0.0",
		"Layer: 'lib', Created by buildpack: demo/sboms@1.0.0", "Software Bill-of-Materials",
		"Application Slice: 1", "Application Slice: 2", "Application Slice: 3",
		"Buildpacks Application Launcher", "Buildpacks Launcher Config", "Buildpacks Process Types",
	}; !slices.Equal(order, want) {
		t.Errorf("the layers are\n%q, want\n%q", order, want)
	}
	for i, l := range layersOf(t, img) {
		what := history[i].CreatedBy
		if _, ok := want[what]; !ok {
			continue
		}
		walkLayer(t, l, func(h *tar.Header, _ []byte) {
			if rel, ok := strings.CutPrefix(h.Name, "/workspace/"); ok && h.Typeflag == tar.TypeReg {
				got[what] = append(got[what], rel)
			}
		})
	}
	for what, files := range want {
		if !slices.Equal(got[what], files) {
			t.Errorf("%s has %q, want %q", what, got[what], files)
		}
	}
}

func labelsOfImage(t *testing.T, p *proof, img v1.Image) {
	conform.Covers(t, 142, 145, 147)
	labels := configOf(t, img).Config.Labels
	if got, want := labels["org.opencontainers.image.title"], `everything, "quoted" <&>`; got != want {
		t.Errorf("the buildpack's label is %q, want %q", got, want)
	}
	md := lifecycleMetadata(t, img)
	i := slices.IndexFunc(md.Buildpacks, func(b spec.BuildpackLayers) bool { return b.Key == "demo/store" })
	if i < 0 || md.Buildpacks[i].Store == nil || md.Buildpacks[i].Store.Metadata["first"] != "everything" {
		t.Errorf("the store is not in the label: %+v", md.Buildpacks)
	}
	has(t, labels[spec.BuildMetadataLabel], `"type":"worker.v1"`, `"exec-env":["test"]`, `"id":"demo/profile","version":"1.0.0","api":"0.8"`)
}

// sboms: the image has those of the app and its layers, that of the build stays
// with the build.
func sboms(t *testing.T, p *proof, img v1.Image) {
	conform.Covers(t, 122, 154)
	for name, of := range map[string]string{"sbom.cdx.json": "launch", "lib/sbom.cdx.json": "lib"} {
		has(t, fileIn(t, img, path.Join("/layers/sbom/launch/demo_sboms", name)), `"of": "`+of+`"`)
	}
	for _, l := range layersOf(t, img) {
		walkLayer(t, l, func(h *tar.Header, _ []byte) {
			if strings.Contains(h.Name, "spdx") && !strings.Contains(h.Name, "/buildpacksio_lifecycle/launcher/") {
				t.Errorf("the image has the SBOM of the build: %s", h.Name)
			}
		})
	}
	for _, at := range []*place{p.five, p.creator} {
		has(t, at.read(t, "layers/sbom/build/demo_sboms/sbom.spdx.json"), `"of": "build"`)
		has(t, at.read(t, "layers/sbom/build/buildpacksio_lifecycle/sbom.cdx.json"), "go-containerregistry")
	}
	for _, format := range []string{"cdx", "spdx", "syft"} {
		launcher := fileIn(t, img, "/layers/sbom/launch/buildpacksio_lifecycle/launcher/sbom."+format+".json")
		has(t, launcher, "pkg:golang/github.com/pelletier/go-toml/v2@v2.")
		hasNot(t, launcher, "go-containerregistry")
	}
}

// java: what Maven downloaded is in the cache, so that the next build needs no
// network.
func java(t *testing.T, p *proof) {
	conform.Covers(t, 80, 155)
	p.everyWay(t)
	cache := p.five.read(t, cacheMetadata)
	has(t, cache, `"repository":{"sha":"sha256:`)
	p.offline()
	for _, text := range p.again(t) {
		has(t, text, "the dependencies are restored: Maven works offline")
	}
	if got := p.launch(t, "five").ok(t).stdout; got != "Hello, 4a617661\n" {
		t.Errorf("the app says %q", got)
	}
	hello := "src/main/java/demo/Hello.java"
	p.change(t, hello, strings.Replace(p.s.files["app/"+hello], `"Hello, "`, `"Goodbye, "`, 1))
	p.everyWay(t)
	if got := p.launch(t, "kiln").ok(t).stdout; got != "Goodbye, 4a617661\n" {
		t.Errorf("the changed app says %q", got)
	}
	if now := p.five.read(t, cacheMetadata); now != cache {
		t.Errorf("the cache has changed:\n%s\n%s", cache, now)
	}
}

const cacheMetadata = "cache/committed/" + spec.CacheMetadataLabel

func node(t *testing.T, p *proof) {
	conform.Covers(t, 80, 132)
	img, _ := p.everyWay(t)
	before := layersByHistory(t, img)
	p.offline()
	for _, text := range p.again(t) {
		has(t, text, "node_modules is restored")
	}
	if got := p.launch(t, "five").ok(t).stdout; got != "Hello, node: 3 is odd: true\n" {
		t.Errorf("the app says %q", got)
	}
	p.change(t, "app.js", "console.log('Goodbye:', require('is-odd')(4));\n")
	img, _ = p.everyWay(t)
	for what, diffID := range layersByHistory(t, img) {
		if differs := before[what] != diffID; differs != (what == "Application Layer") {
			t.Errorf("layer %q differs: %t", what, differs)
		}
	}
	if got := p.launch(t, "kiln").ok(t).stdout; got != "Goodbye: false\n" {
		t.Errorf("the changed app says %q", got)
	}
}

// plans: who takes part and what each is asked for.
func plans(t *testing.T, p *proof) {
	conform.Covers(t, 33, 37, 43, 44, 47, 104, 105)
	img, said := p.everyWay(t)
	md := buildMetadata(t, img)
	var group []string
	for _, b := range md.Buildpacks {
		group = append(group, b.ID)
	}
	if want := []string{"demo/leaf-a", "demo/leaf-b", "demo/chooses"}; !slices.Equal(group, want) {
		t.Errorf("%q took part, want %q", group, want)
	}
	want := "[[entries]]\n  name = \"tool-b\"\n  [entries.metadata]\n    version = \"2\"\n"
	if got := p.launch(t, "five").ok(t).stdout; got != want+want {
		t.Errorf("the buildpacks were asked for\n%swant twice\n%s", got, want)
	}
	for _, text := range said {
		has(t, text, "this buildpack is broken")
	}
	p.planned(t, false)
}

// planned makes sure that kiln plan tells of the build what it does, and that
// its plan makes the same image.
func (p *proof) planned(t *testing.T, extended bool) {
	t.Helper()
	name, app := p.addr+"/kiln/"+p.s.name, []string{"--path", p.source, "--builder", p.addr + "/" + p.builder}
	md := buildMetadata(t, p.pull(t, "kiln/"+p.s.name))
	plan := must(t, append([]string{"plan", "--json"}, app...)...)
	var d platform.Detection
	if err := json.Unmarshal([]byte(plan), &d); err != nil {
		t.Fatalf("%v\n%s", err, plan)
	}
	var group []string
	for _, e := range d.Group {
		group = append(group, e.ID)
	}
	var took []string
	for _, e := range md.Buildpacks {
		took = append(took, e.ID)
	}
	if !d.Passed || !slices.Equal(group, took) || d.ExtendBuild != extended || len(d.GroupExtensions) > 0 != extended || d.ExtendRun != extended {
		t.Errorf("%q took part, and the plan has %q:\n%s", took, group, plan)
	}
	file := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(file, []byte(plan), 0o644); err != nil {
		t.Fatal(err)
	}
	before := p.id(t, "kiln/"+p.s.name)
	said := patiently(t, slices.Concat([]string{"build", name, "--publish", "--plan", file}, app)...)
	has(t, said, "nothing is detected")
	if after := p.id(t, "kiln/"+p.s.name); after != before {
		t.Errorf("the build of the plan made %s, that with a detection %s:\n%s", after, before, said)
	}
}

// execEnvs: a build for tests has more than one for production, and gets
// nothing from it.
func execEnvs(t *testing.T, p *proof) {
	conform.Covers(t, 60, 62, 148)
	img, _ := p.everyWay(t)
	if got := p.launch(t, "five").ok(t).stdout; got != "production" {
		t.Errorf("the app was built for %q", got)
	}
	if got := len(buildMetadata(t, img).Buildpacks); got != 1 {
		t.Errorf("%d buildpacks took part in production, want 1", got)
	}
	for _, at := range []*place{p.five, p.creator} {
		at.env = append(at.env, "CNB_EXEC_ENV=test")
		at.fresh(t)
	}
	said := p.world.five(t, p.five) + p.world.creator(t, p.creator)
	hasNot(t, said, "restored from a build for")
	test := p.pull(t, "five/"+p.s.name)
	if a, b := imageID(t, test), p.id(t, "creator/"+p.s.name); a != b {
		t.Errorf("five phases made %s, creator made %s", a, b)
	}
	if got := configOf(t, test).Config.Labels[spec.ExecEnvLabel]; got != "test" {
		t.Errorf("the label says %q", got)
	}
	if got := p.launch(t, "five", "--env", "CNB_EXEC_ENV=test").ok(t).stdout; got != "tests run\n" {
		t.Errorf("the tests say %q", got)
	}
	if r := p.launch(t, "five"); r.code == 0 {
		t.Errorf("the tests run in production:\n%s", r)
	}
}

func systemBuildpacks(t *testing.T, p *proof) {
	conform.Covers(t, 58, 59)
	img, _ := p.everyWay(t)
	var group []string
	for _, b := range buildMetadata(t, img).Buildpacks {
		group = append(group, b.ID)
	}
	if want := []string{"demo/first", "demo/app"}; !slices.Equal(group, want) {
		t.Errorf("%q took part, want %q", group, want)
	}
	if got := configOf(t, img).Config.Labels["owner"]; got != "everybody" {
		t.Errorf("the system buildpack's label is %q", got)
	}
	if got := p.launch(t, "five").ok(t).stdout; got != "An app.\n" {
		t.Errorf("the app says %q", got)
	}
}

// has fails the test unless the text has all the words.
func has(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("there is no %q in\n%s", w, text)
		}
	}
}

func hasNot(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if strings.Contains(text, w) {
			t.Errorf("there is %q in\n%s", w, text)
		}
	}
}

// fileIn is a file of the app image.
func fileIn(t *testing.T, img v1.Image, name string) string {
	t.Helper()
	content, found := "", false
	for _, l := range layersOf(t, img)[runLayers(t, img):] {
		walkLayer(t, l, func(h *tar.Header, body []byte) {
			if h.Name == name && h.Typeflag == tar.TypeReg {
				content, found = string(body), true
			}
		})
	}
	if !found {
		t.Errorf("the image has no %s", name)
	}
	return content
}

// runLayers is how many layers of an app image are the run image's.
func runLayers(t *testing.T, img v1.Image) int {
	t.Helper()
	top := lifecycleMetadata(t, img).RunImage.TopLayer
	i := slices.IndexFunc(configOf(t, img).RootFS.DiffIDs, func(h v1.Hash) bool { return h.String() == top })
	if i < 0 {
		t.Fatalf("the image does not have the top layer of its run image, %s", top)
	}
	return i + 1
}

// layersByHistory are the layers above the run image, by what made them.
func layersByHistory(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	cf := configOf(t, img)
	made := map[string]string{}
	for i := runLayers(t, img); i < len(cf.History); i++ {
		made[cf.History[i].CreatedBy] = cf.RootFS.DiffIDs[i].String()
	}
	return made
}

func lifecycleMetadata(t *testing.T, img v1.Image) spec.LifecycleMetadata {
	t.Helper()
	md, err := spec.DecodeLifecycleMetadata(configOf(t, img).Config.Labels[spec.LifecycleMetadataLabel])
	if err != nil {
		t.Fatal(err)
	}
	return md
}

// builtBy is what the label of a build says.
type builtBy struct {
	Buildpacks []struct{ ID, API string }
}

func buildMetadata(t *testing.T, img v1.Image) (md builtBy) {
	t.Helper()
	if err := json.Unmarshal([]byte(configOf(t, img).Config.Labels[spec.BuildMetadataLabel]), &md); err != nil {
		t.Fatal(err)
	}
	return md
}

func uncompressed(t *testing.T, l v1.Layer) []byte {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
