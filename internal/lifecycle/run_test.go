package lifecycle

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// world is a build container in a directory, with two buildpacks.
type world struct {
	*testing.T
	dir, repo      string // repo is what the app's image is in, unless it is me/app
	host           Host
	environ        []string // more of the environment; goes before the rest
	stdout, stderr bytes.Buffer
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, dir: t.TempDir()}
	w.host = Host{Stdout: &w.stdout, Stderr: &w.stderr, Runner: sandbox.InPlace{}}
	for _, dir := range []string{"layers", "workspace", "platform", "build-config"} {
		w.mkdir(dir)
	}
	w.buildpack("a/first", "#!/bin/sh\n"+
		"echo \"[[provides]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n",
		"#!/bin/sh\necho building first\n"+
			"mkdir -p \"$CNB_LAYERS_DIR/l/env\"; printf '[types]\\nbuild = true\\nlaunch = true\\n' > \"$CNB_LAYERS_DIR/l.toml\"; printf yes > \"$CNB_LAYERS_DIR/l/env/FROM_FIRST\"\n")
	w.buildpack("second", "#!/bin/sh\n"+
		"test -e \"$PWD/go\" || { echo no go file; exit 100; }\n"+
		"echo \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n",
		"#!/bin/sh\necho \"second sees $FROM_FIRST in $CNB_EXEC_ENV\"\n"+
			"printf '[[processes]]\\ntype = \"web\"\\ncommand = [\"run\", \"%s\"]\\ndefault = true\\n' \"$FROM_FIRST\" > \"$CNB_LAYERS_DIR/launch.toml\"\n")
	w.write("order.toml", "[[order]]\n[[order.group]]\nid = 'a/first'\nversion = '1.0.0'\n[[order.group]]\nid = 'second'\nversion = '1.0.0'\n")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) mkdir(name string) {
	w.Helper()
	if err := os.MkdirAll(w.path(name), 0o755); err != nil {
		w.Fatal(err)
	}
}

func (w *world) write(name, body string) {
	w.Helper()
	w.mkdir(filepath.Dir(name))
	if err := os.WriteFile(w.path(name), []byte(body), 0o755); err != nil {
		w.Fatal(err)
	}
}

func (w *world) read(name string) string {
	w.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil {
		w.Fatal(err)
	}
	return string(b)
}

func (w *world) buildpack(id, detect, build string) {
	dir := "buildpacks/" + spec.EscapeID(id) + "/1.0.0/"
	w.write(dir+"buildpack.toml", "api = '0.12'\n[buildpack]\nid = '"+id+"'\nversion = '1.0.0'\n")
	w.write(dir+"bin/detect", detect)
	w.write(dir+"bin/build", build)
}

// run runs a phase; paths of the world are in its environment.
func (w *world) run(phase string, args ...string) int {
	w.Helper()
	return w.runAs("0.15", phase, args...)
}

func (w *world) runAs(api, phase string, args ...string) int {
	w.Helper()
	w.stdout.Reset()
	w.stderr.Reset()
	return Run(context.Background(), phase, args, append(slices.Clone(w.environ),
		"CNB_PLATFORM_API="+api, "PATH=/usr/bin:/bin", "CNB_LAYERS_DIR="+w.path("layers"), "CNB_APP_DIR="+w.path("workspace"),
		"CNB_PLATFORM_DIR="+w.path("platform"), "CNB_BUILD_CONFIG_DIR="+w.path("build-config"),
		"CNB_BUILDPACKS_DIR="+w.path("buildpacks"), "CNB_ORDER_PATH="+w.path("order.toml"),
	), w.host)
}

func (w *world) want(code, got int) {
	w.Helper()
	if code != got {
		w.Fatalf("exit code %d, want %d\n%s%s", got, code, w.stdout.String(), w.stderr.String())
	}
}

func TestDetectAndBuild(t *testing.T) {
	conform.Covers(t, 41, 42, 118)
	w := newWorld(t)
	w.write("workspace/go", "")
	w.want(0, w.run(detector))
	const group = `[[group]]
  id = "a/first"
  version = "1.0.0"
  api = "0.12"

[[group]]
  id = "second"
  version = "1.0.0"
  api = "0.12"
`
	if diff := cmp.Diff(group, w.read("layers/group.toml")); diff != "" {
		t.Error(diff)
	}
	const plan = `[[entries]]

  [[entries.providers]]
    id = "a/first"
    version = "1.0.0"

  [[entries.requires]]
    name = "dep"
`
	if diff := cmp.Diff(plan, w.read("layers/plan.toml")); diff != "" {
		t.Error(diff)
	}

	w.want(0, w.run(builder))
	metadata, err := spec.ReadBuildMetadata([]byte(w.read("layers/config/metadata.toml")), "metadata.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := spec.BuildMetadata{
		DefaultProcessType: "web",
		Buildpacks:         []spec.GroupElement{{ID: "a/first", Version: "1.0.0", API: "0.12"}, {ID: "second", Version: "1.0.0", API: "0.12"}},
		Processes:          []spec.Process{{Type: "web", Command: []string{"run", "yes"}, Direct: true, BuildpackID: "second"}},
	}
	if diff := cmp.Diff(want, metadata); diff != "" {
		t.Error(diff)
	}
	if out := w.stdout.String(); !strings.Contains(out, "building first") || !strings.Contains(out, "second sees yes in production") {
		t.Errorf("output of the buildpacks is missing:\n%s", out)
	}
	if entries, err := os.ReadDir(w.path("layers/config")); err != nil || len(entries) != 1 {
		t.Errorf("left beside metadata.toml: %v %v", entries, err)
	}
}

func TestJSON(t *testing.T) {
	w := newWorld(t)
	w.write("workspace/go", "")
	w.want(0, w.run(detector))
	w.want(0, w.run(builder, "-log-format", "json", "-log-level", "debug"))
	var kinds []string
	err := event.Decode(&w.stdout, event.Func(func(e event.Event) {
		kinds = append(kinds, e.Kind())
		if m, ok := e.(event.Message); ok {
			t.Errorf("not an event: %s", m.Text)
		}
	}))
	want := []string{"phase-started", "buildpack-started", "output", "buildpack-finished", "buildpack-started", "output", "buildpack-finished", "phase-finished"}
	if diff := cmp.Diff(want, kinds); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestDetectFails(t *testing.T) {
	w := newWorld(t)
	w.want(spec.ExitDetectFail, w.run(detector))
	if !strings.Contains(w.stderr.String(), "no group of buildpacks passed detection") || !strings.Contains(w.stdout.String(), "no go file") {
		t.Errorf("%s%s", w.stdout.String(), w.stderr.String())
	}
	for _, name := range []string{"group.toml", "plan.toml"} {
		if _, err := os.Stat(w.path("layers/" + name)); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	// Why is told without -log-level debug: here the place of a fault in a plan.
	w.buildpack("second", "#!/bin/sh\nprintf '[[requires]]\\nname = 3\\n' > \"$CNB_BUILD_PLAN_PATH\"\n", "#!/bin/sh\n")
	w.want(spec.ExitDetectError, w.run(detector))
	if out := w.stdout.String(); !strings.Contains(out, "build plan of second@1.0.0:2:1: requires[0].name: must be a string, not an integer") {
		t.Errorf("%s%s", out, w.stderr.String())
	}
	w.want(spec.ExitDetectError, w.run(detector, "-log-level", "error"))
	if out := w.stdout.String(); out != "" {
		t.Errorf("-log-level error: %s", out)
	}
	w.buildpack("second", "#!/bin/sh\nexit 100\n", "#!/bin/sh\n")
	if err := os.Remove(w.path("order.toml")); err != nil {
		t.Fatal(err)
	}
	w.want(spec.ExitDetect, w.run(detector))
	if out := w.stderr.String(); !strings.Contains(out, w.path("order.toml")) || !strings.Contains(out, "(the order of buildpacks is in") {
		t.Error(out)
	}
	w.write("order.toml", "[[order]]\n[[order.group]]\nid=3\n")
	w.want(spec.ExitDetect, w.run(detector))
	if out := w.stderr.String(); !strings.Contains(out, "order.toml:3:1: order[0].group[0].id: must be a string, not an integer") {
		t.Error(out)
	}
}

func TestBuildFails(t *testing.T) {
	w := newWorld(t)
	w.want(spec.ExitBuild, w.run(builder)) // no group.toml
	w.write("workspace/go", "")
	w.want(0, w.run(detector))
	w.buildpack("second", "#!/bin/sh\n", "#!/bin/sh\nexit 3\n")
	w.want(spec.ExitBuildpack, w.run(builder))
	if out := w.stderr.String(); !strings.Contains(out, "build of second@1.0.0") {
		t.Error(out)
	}
	if _, err := os.Stat(w.path("layers/config/metadata.toml")); err == nil {
		t.Error("metadata.toml was written")
	}
}

func TestSystemBuildpacksAndOrderInLayers(t *testing.T) {
	w := newWorld(t)
	w.buildpack("sys", "#!/bin/sh\n", "#!/bin/sh\n")
	w.write("system.toml", "[[system.pre.buildpacks]]\nid = 'sys'\nversion = '1.0.0'\n")
	w.write("layers/order.toml", w.read("order.toml"))
	w.write("workspace/go", "")
	members := func(api string, args ...string) string {
		w.Helper()
		w.want(0, w.runAs(api, detector, args...))
		g, err := spec.ReadGroup([]byte(w.read("layers/group.toml")), "group.toml")
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, m := range g.Group {
			ids = append(ids, m.ID)
		}
		return strings.Join(ids, " ")
	}
	if got := members("0.15", "-system", w.path("system.toml"), "-order="); got != "sys a/first second" {
		t.Error(got)
	}
	if got := members("0.15", "-system", w.path("nothing.toml")); got != "a/first second" {
		t.Error(got)
	}
	if got := members("0.15", "-system="); got != "a/first second" {
		t.Error(got)
	}
	if got := members("0.14"); got != "a/first second" {
		t.Error(got)
	}
}

func TestRefusesRoot(t *testing.T) {
	w := newWorld(t)
	w.write("workspace/go", "")
	for phase, covers := range map[string]int{detector: 30, builder: 101} {
		t.Run(phase, func(t *testing.T) {
			conform.Covers(t, covers)
			w.T = t
			w.host.Runner = sandbox.InPlace{} // what the builder needs is there
			w.want(0, w.run(detector))
			w.host.Runner = nil
			want := 0
			if os.Geteuid() == 0 {
				want = spec.ExitGeneric
			}
			w.want(want, w.run(phase))
			if refused := strings.Contains(w.stderr.String(), "refusing to run buildpacks as root"); refused != (os.Geteuid() == 0) {
				t.Errorf("%s as %d: %s", phase, os.Geteuid(), w.stderr.String())
			}
		})
	}
}

func TestBeforeAnything(t *testing.T) {
	conform.Covers(t, 1, 6)
	w := newWorld(t)
	w.want(spec.ExitPlatformAPI, w.runAs("", detector, "-nonsense"))
	w.want(spec.ExitPlatformAPI, w.runAs("0.99", detector, "-nonsense"))
	if !strings.Contains(w.stderr.String(), `detector: error: platform API "0.99": not supported`) {
		t.Error(w.stderr.String())
	}
	w.want(spec.ExitUsage, w.run(detector, "-nonsense"))
	w.want(spec.ExitInvalidArgs, w.run(detector, "image"))
	w.want(0, w.runAs("", detector, "-version"))
	if w.stdout.String() != spec.Version+"\n" {
		t.Error(w.stdout.String())
	}
	w.want(0, w.run(detector, "-help"))
	if !strings.Contains(w.stdout.String(), "usage: detector") {
		t.Error(w.stdout.String())
	}
}

// Trusted code reads and writes what foreign code may have left: no link leads
// it out of a mapped directory.
func TestMappedDirectories(t *testing.T) {
	dir := t.TempDir()
	lower, upper, secret := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "secret")
	for _, d := range []string{lower, upper, secret} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, body string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(lower+"/a", "lower")
	write(lower+"/b", "lower")
	write(upper+"/b", "upper")
	write(secret+"/file", "secret")
	for link, target := range map[string]string{"link": secret + "/file", "config": secret, "inside": "b"} {
		if err := os.Symlink(target, filepath.Join(upper, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(upper+"/pipe", 0o644); err != nil {
		t.Fatal(err)
	}
	h := Host{Dirs: map[string]layer.Stack{"/layers": {Upper: upper, Lowers: []string{lower}}, "/layers/deep": {Upper: secret}}}
	for p, want := range map[path]string{"/layers/a": "lower", "/layers/b": "upper", "/layers/deep/file": "secret"} {
		if b, err := h.read(p); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", p, b, err)
		}
	}
	for _, p := range []path{"/layers/link", "/layers/pipe", "/layers/config/file", "/layersx", "/layers/missing"} {
		if b, err := h.read(p); err == nil {
			t.Errorf("%s: %q", p, b)
		}
	}
	if err := h.write("/layers/config/metadata.toml", []byte("x")); err == nil {
		t.Error("wrote through a link out of the directory")
	}
	if err := h.write("/layers/link", []byte("new")); err != nil {
		t.Error(err)
	}
	if err := h.write("/layers/new/dir/file", []byte("new")); err != nil {
		t.Error(err)
	}
	for file, want := range map[string]string{secret + "/file": "secret", upper + "/link": "new", upper + "/new/dir/file": "new"} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", file, b, err)
		}
	}
	if entries, err := os.ReadDir(secret); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}

// The command answers to the names of its phases.
func TestBinary(t *testing.T) {
	conform.Covers(t, 15)
	dir := t.TempDir()
	bin := filepath.Join(dir, "lifecycle")
	build := exec.Command("go", "build", "-o", bin, "github.com/kilnbuild/kiln/cmd/lifecycle")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Symlink("lifecycle", filepath.Join(dir, "detector")); err != nil {
		t.Fatal(err)
	}
	run := func(code int, env string, argv ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(dir, argv[0]), argv[1:]...)
		cmd.Env = []string{env}
		out, _ := cmd.CombinedOutput() // the exit code tells
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("%q: exit code %d, want %d\n%s", argv, got, code, out)
		}
		return string(out)
	}
	for _, argv := range [][]string{{"detector", "-version"}, {"lifecycle", "-version"}, {"lifecycle", "detect", "-version"}} {
		if out := run(0, "A=b", argv...); out != spec.Version+"\n" {
			t.Errorf("%q: %q", argv, out)
		}
	}
	run(spec.ExitPlatformAPI, "A=b", "detector")
	run(spec.ExitUsage, "CNB_PLATFORM_API=0.15", "lifecycle")
	run(spec.ExitUsage, "CNB_PLATFORM_API=0.15", "lifecycle", "detect", "-x")
}
