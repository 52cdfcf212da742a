package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

func (w *world) build(plan spec.Plan, members ...string) (spec.BuildMetadata, error) {
	w.t.Helper()
	g := spec.Group{Group: group(strings.Join(members, " ")).Group}
	return Build(context.Background(), sandbox.InPlace{}, w.dirs, w.set, g, plan, w)
}

// mustBuild builds and fails the test on an error.
func (w *world) mustBuild(plan spec.Plan, members ...string) spec.BuildMetadata {
	w.t.Helper()
	md, err := w.build(plan, members...)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, w.output(members[0]))
	}
	return md
}

// tree is all paths below dir, directories with a slash.
func (w *world) tree(dir string) (list []string) {
	w.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if d.IsDir() {
			rel += "/"
		}
		list = append(list, rel)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func entry(providers string, requires ...string) spec.PlanEntry {
	var e spec.PlanEntry
	for _, p := range group(providers).Group {
		e.Providers = append(e.Providers, spec.PlanProvider{ID: p.ID, Version: p.Version})
	}
	for i, r := range requires {
		e.Requires = append(e.Requires, spec.Require{Name: r, Metadata: map[string]any{"n": int64(i)}})
	}
	return e
}

func TestBuildInOrderAndStopsAtTheFirstFailure(t *testing.T) {
	conform.Covers(t, 102)
	w := newWorld(t)
	w.add(pack{name: "a@1", build: `echo a >> ../built; echo out of a; echo err of a >&2`})
	w.add(pack{name: "b@1", build: `echo b >> ../built; printf 'no newline'; exit 3`})
	w.add(pack{name: "c@1", build: `echo c >> ../built`})
	_, err := w.build(spec.Plan{}, "a@1", "b@1", "c@1")
	if code := spec.ExitCode(err, -1); code != spec.ExitBuildpack {
		t.Errorf("exit code %d (%v), want %d", code, err, spec.ExitBuildpack)
	}
	if err == nil || !strings.Contains(err.Error(), "b@1") || !strings.Contains(err.Error(), "exited with 3") {
		t.Errorf("error %v names neither who nor how", err)
	}
	if got := w.read(filepath.Join(w.dirs.App, "../built")); got != "a\nb\n" {
		t.Errorf("built %q", got)
	}
	if got := w.output("a@1"); !strings.Contains(got, "out of a\n") || !strings.Contains(got, "err of a\n") {
		t.Errorf("output of a: %q", got)
	}
	if got := w.output("b@1"); got != "no newline\n" {
		t.Errorf("output of b: %q", got)
	}
	var kinds []string
	for _, e := range w.list {
		switch e := e.(type) {
		case event.BuildpackStarted:
			kinds = append(kinds, "start "+e.Buildpack)
		case event.BuildpackFinished:
			kinds = append(kinds, fmt.Sprintf("end %s %d", e.Buildpack, e.ExitCode))
		}
	}
	requireStrings(t, "events", kinds, "start a@1", "end a@1 0", "start b@1", "end b@1 3")
}

func TestBuildKilledIsAFailedBuildpack(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", build: `kill -9 $$`})
	_, err := w.build(spec.Plan{}, "a@1")
	if code := spec.ExitCode(err, -1); code != spec.ExitBuildpack {
		t.Errorf("exit code %d (%v)", code, err)
	}
}

func TestBuildEnvironment(t *testing.T) {
	conform.Covers(t, 7, 103, 124)
	w := newWorld(t)
	w.set.ExecEnv = "test"
	w.write(filepath.Join(w.dirs.Platform, "env/USERS"), "x", 0o666)
	w.write(filepath.Join(w.dirs.BuildConfig, "env/OPERATORS"), "y", 0o666)
	const dump = `env | grep '^CNB_\|USERS\|OPERATORS' | sort > $CNB_BUILDPACK_DIR/env; cat $CNB_BP_PLAN_PATH > $CNB_BUILDPACK_DIR/plan; pwd > $CNB_BUILDPACK_DIR/pwd; echo "$@" > $CNB_BUILDPACK_DIR/args`
	w.add(pack{name: "acme/new@1", build: dump})
	w.add(pack{name: "old@1", api: "0.11", build: dump})
	w.mustBuild(spec.Plan{}, "acme/new@1", "old@1")

	dir := filepath.Join(w.dirs.Buildpacks, "acme_new/1")
	args := strings.Fields(w.read(filepath.Join(dir, "args")))
	layers := filepath.Join(w.dirs.Layers, "acme_new")
	if len(args) != 3 || args[0] != layers || args[1] != w.dirs.Platform {
		t.Fatalf("arguments %q", args)
	}
	want := []string{
		"CNB_BP_PLAN_PATH=" + args[2], "CNB_BUILDPACK_DIR=" + dir, "CNB_EXEC_ENV=test", "CNB_LAYERS_DIR=" + layers,
		"CNB_PLATFORM_DIR=" + w.dirs.Platform, "CNB_TARGET_ARCH=amd64", "CNB_TARGET_DISTRO_NAME=debian",
		"CNB_TARGET_DISTRO_VERSION=12", "CNB_TARGET_OS=linux", "OPERATORS=y", "USERS=x",
	}
	if diff := cmp.Diff(want, sortedLines(w.read(filepath.Join(dir, "env")))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := strings.TrimSpace(w.read(filepath.Join(dir, "pwd"))); got != w.dirs.App {
		t.Errorf("working directory %s", got)
	}
	if info, err := os.Stat(layers); err != nil || !info.IsDir() {
		t.Errorf("layers directory: %v", err)
	}
	if old := w.read(filepath.Join(w.dirs.Buildpacks, "old/1/env")); strings.Contains(old, "CNB_EXEC_ENV") {
		t.Error("CNB_EXEC_ENV was given to a buildpack of API 0.11")
	}
	if _, err := os.Stat(args[2]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plan file was left behind: %v", err)
	}
}

func TestBuildPlanShares(t *testing.T) {
	conform.Covers(t, 104, 105)
	w := newWorld(t)
	show := `cat $CNB_BP_PLAN_PATH > $CNB_BUILDPACK_DIR/plan`
	w.add(pack{name: "a@1", build: show + `; printf '[[unmet]]\nname = "x"\n' > $CNB_LAYERS_DIR/build.toml`})
	w.add(pack{name: "b@1", build: show})
	w.add(pack{name: "c@1", build: show})
	w.mustBuild(spec.Plan{Entries: []spec.PlanEntry{entry("a@1 b@1 c@1", "x", "x"), entry("a@1 c@1", "y"), entry("c@1", "z")}}, "a@1", "b@1", "c@1")
	for id, want := range map[string][]string{"a": {"x", "x", "y"}, "b": {"x", "x"}, "c": {"z"}} {
		body := w.read(filepath.Join(w.dirs.Buildpacks, id, "1/plan"))
		plan, err := spec.ReadBuildpackPlan([]byte(body), "plan")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range plan.Entries {
			got = append(got, r.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s was given %v, want %v", id, got, want)
		}
		if id == "a" && plan.Entries[1].Metadata["n"] != int64(1) {
			t.Errorf("metadata of the second require: %v", plan.Entries[1].Metadata)
		}
	}
}

func TestBuildLayersAreForLaterBuildpacks(t *testing.T) {
	conform.Covers(t, 108, 111, 112)
	w := newWorld(t)
	w.write(filepath.Join(w.dirs.Platform, "env/USERS"), "user wins", 0o666)
	dump := `env | grep '^PATH=\|^LD_LIBRARY_PATH=\|^LIBRARY_PATH=\|^CPATH=\|^PKG_CONFIG_PATH=\|^V_\|USERS' | sort > $CNB_BUILDPACK_DIR/env`
	w.add(pack{name: "a@1", build: `cd $CNB_LAYERS_DIR
for l in one two launch_only; do mkdir -p $l/bin $l/lib $l/include $l/pkgconfig $l/env $l/env.build $l/env.launch; done
printf '[types]\nbuild = true\n' > one.toml
printf '[types]\nbuild = true\nlaunch = true\n' > two.toml
printf '[types]\nlaunch = true\n' > launch_only.toml
printf one > one/env/V_PLAIN; printf two > two/env/V_PLAIN
printf one > one/env/V_DEF.default; printf two > two/env/V_DEF.default
printf -- '-one' > one/env/V_APP.append; printf -- '-two' > two/env/V_APP.append; printf : > two/env/V_APP.delim
printf env > one/env/V_B.override; printf build > one/env.build/V_B.override
printf '/first:' > one/env/CPATH.prepend
printf no > one/env.launch/V_L; printf no > launch_only/env/V_L
printf 'layer' > one/env/USERS
` + dump})
	w.add(pack{name: "b@1", build: dump})
	w.mustBuild(spec.Plan{}, "a@1", "b@1")

	if got := w.read(filepath.Join(w.dirs.Buildpacks, "a/1/env")); got != "PATH=/usr/bin:/bin\nUSERS=user wins\n" {
		t.Errorf("a sees its own layers:\n%s", got)
	}
	l := filepath.Join(w.dirs.Layers, "a")
	both := func(dir string) string { return l + "/two/" + dir + ":" + l + "/one/" + dir }
	want := []string{
		// All of one layer comes before the paths of the next.
		"CPATH=" + l + "/two/include:/first:" + l + "/one/include", "LD_LIBRARY_PATH=" + both("lib"), "LIBRARY_PATH=" + both("lib"),
		"PATH=" + both("bin") + ":/usr/bin:/bin", "PKG_CONFIG_PATH=" + both("pkgconfig"), "USERS=user wins",
		"V_APP=-one:-two", "V_B=build", "V_DEF=one", "V_PLAIN=two",
	}
	if diff := cmp.Diff(want, sortedLines(w.read(filepath.Join(w.dirs.Buildpacks, "b/1/env")))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if w.set.Env["PATH"] != "/usr/bin:/bin" {
		t.Error("the caller's environment was changed")
	}
}

func TestBuildIgnoresLayersForNothing(t *testing.T) {
	conform.Covers(t, 106)
	w := newWorld(t)
	w.add(pack{name: "a@1", build: `cd $CNB_LAYERS_DIR
mkdir kept none untold none.ignore; touch none/f none.ignore/old untold/f
printf '[types]\nlaunch = true\n' > kept.toml
printf '[metadata]\na = 1\n' > none.toml`})
	w.mustBuild(spec.Plan{}, "a@1")
	requireStrings(t, "layers", w.tree(filepath.Join(w.dirs.Layers, "a")),
		"kept/", "kept.toml", "none.ignore/", "none.ignore/f", "none.toml", "untold/", "untold/f")
}

// An overlay without redirect_dir cannot rename a directory of a lower tree.
func TestIgnoreWhereADirectoryCannotBeRenamed(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.dirs.Layers, "a/l")
	w.write(filepath.Join(path, "bin/tool"), "x", 0o755)
	w.write(path+".ignore/old", "x", 0o666)
	err := ignore(context.Background(), path, func(from, to string) error {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EXDEV}
	})
	if err != nil {
		t.Fatal(err)
	}
	requireStrings(t, "layers", w.tree(filepath.Join(w.dirs.Layers, "a")), "l.ignore/", "l.ignore/bin/", "l.ignore/bin/tool")
	if info, err := os.Stat(path + ".ignore/bin/tool"); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("the copy lost its mode: %v, %v", info, err)
	}
}

func TestBuildMetadata(t *testing.T) {
	conform.Covers(t, 115, 120, 123, 126)
	w := newWorld(t)
	w.add(pack{name: "a@1", build: `cat > $CNB_LAYERS_DIR/launch.toml <<E
[[labels]]
key = "k"
value = "a"
[[slices]]
paths = ["*.js"]
[[processes]]
type = "web"
command = ["a-web", "x"]
args = ["y"]
working-dir = "/w"
exec-env = ["test"]
default = true
[[processes]]
type = "db"
command = ["a-db"]
E`})
	w.add(pack{name: "b@1", build: `cat > $CNB_LAYERS_DIR/launch.toml <<E
[[labels]]
key = "k"
value = "b"
[[slices]]
paths = ["*.css"]
[[processes]]
type = "db"
command = ["b-db"]
E`})
	g := spec.Group{Group: group("a@1 b@1").Group, GroupExtensions: []spec.GroupElement{{ID: "ext", Version: "2", API: "0.12", Extension: true}}}
	g.Group[0].Optional = true
	md, err := Build(context.Background(), sandbox.InPlace{}, w.dirs, w.set, g, spec.Plan{}, w)
	if err != nil {
		t.Fatal(err)
	}
	want := spec.BuildMetadata{
		DefaultProcessType: "web",
		Buildpacks: []spec.GroupElement{
			{ID: "a", Version: "1", API: "0.12", Homepage: "https://example.com/a"},
			{ID: "b", Version: "1", API: "0.12", Homepage: "https://example.com/b"},
		},
		Extensions: g.GroupExtensions,
		Processes: []spec.Process{
			{Type: "db", Command: []string{"b-db"}, Direct: true, BuildpackID: "b"},
			{Type: "web", Command: []string{"a-web", "x"}, Args: []string{"y"}, Direct: true, WorkingDirectory: "/w", ExecEnv: []string{"test"}, BuildpackID: "a"},
		},
		Slices: []spec.Slice{{Paths: []string{"*.js"}}, {Paths: []string{"*.css"}}},
		Labels: []spec.Label{{Key: "k", Value: "a"}, {Key: "k", Value: "b"}},
	}
	if diff := cmp.Diff(want, md, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBuildDefaultProcess(t *testing.T) {
	tests := []struct {
		name    string
		covers  int
		a, b    string // the types of two buildpacks, "*" is the default
		want    string
		warning string
	}{
		{"none", 117, "web", "db", "", ""},
		{"one", 117, "web*", "db", "web", ""},
		{"the last wins", 117, "web*", "db*", "db", ""},
		{"redefined as the default", 115, "web*", "web*", "web", ""},
		{"redefined without", 115, "web*", "web", "", `b@1 redefines the default process type "web" without making it the default: the image has no default process now`},
		{"another redefined", 115, "web* db", "db", "web", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conform.Covers(t, tt.covers)
			w := newWorld(t)
			for id, types := range map[string]string{"a": tt.a, "b": tt.b} {
				script := "cat > $CNB_LAYERS_DIR/launch.toml <<E\n"
				for _, typ := range strings.Fields(types) {
					typ, def := strings.CutSuffix(typ, "*")
					script += fmt.Sprintf("[[processes]]\ntype = %q\ncommand = [\"c\"]\ndefault = %v\n", typ, def)
				}
				w.add(pack{name: id + "@1", build: script + "E"})
			}
			md := w.mustBuild(spec.Plan{}, "a@1", "b@1")
			if md.DefaultProcessType != tt.want {
				t.Errorf("default %q, want %q", md.DefaultProcessType, tt.want)
			}
			if got := w.messages(event.Warn); got != tt.warning {
				t.Errorf("warning %q, want %q", got, tt.warning)
			}
		})
	}
}

func TestBuildRefusesBadOutputs(t *testing.T) {
	sbom := `sbom-formats = ["application/vnd.cyclonedx+json"]`
	tests := []struct {
		name                    string
		covers                  []int
		info, api, script, want string
	}{
		{"two defaults", []int{116}, "", "", `printf '[[processes]]\ntype = "a"\ncommand = ["x"]\ndefault = true\n[[processes]]\ntype = "b"\ncommand = ["x"]\ndefault = true\n' > launch.toml`, "default"},
		{"direct since 0.9", []int{119}, "", "", `printf '[[processes]]\ntype = "a"\ncommand = ["x"]\ndirect = true\n' > launch.toml`, "direct"},
		{"bad process type", nil, "", "", `printf '[[processes]]\ntype = "a/b"\ncommand = ["x"]\n' > launch.toml`, "a/b"},
		{"no command", nil, "", "", `printf '[[processes]]\ntype = "a"\n' > launch.toml`, "command"},
		{"types at the top", []int{107}, "", "", `printf 'launch = true\n' > l.toml`, "l.toml"},
		{"types at the top, build", []int{107}, "", "", `printf 'build = true\n' > l.toml`, "l.toml"},
		{"types at the top, cache", []int{107}, "", "", `printf 'cache = false\n' > l.toml`, "l.toml"},
		{"garbled layer", nil, "", "", `echo '[[[' > l.toml`, "l.toml"},
		{"garbled store", nil, "", "", `echo '[[[' > store.toml`, "store.toml"},
		{"unmet that was not asked", []int{105}, "", "", `printf '[[unmet]]\nname = "y"\n' > build.toml`, `"y"`},
		{"unmet without a name", nil, "", "", `printf '[[unmet]]\nname = ""\n' > build.toml`, "name"},
		{"SBOM not declared", []int{121}, "", "", `echo {} > launch.sbom.cdx.json`, "does not declare"},
		{"SBOM of another type declared", []int{121}, sbom, "", `echo {} > launch.sbom.spdx.json`, "does not declare"},
		{"SBOM of an unknown extension", []int{121}, sbom, "", `echo {} > launch.sbom.xml`, "unknown extension"},
		{"SBOM that is a symlink", nil, sbom, "", `ln -s /etc/passwd launch.sbom.cdx.json`, "regular file"},
		{"SBOM that is a pipe", nil, sbom, "", `mkfifo launch.sbom.cdx.json`, "regular file"},
		{"pipe", nil, "", "", `mkfifo launch.toml`, "launch.toml"},
		{"pipe as a layer", nil, "", "", `mkfifo l.toml`, "l.toml"},
		{"symlink", nil, "", "", `ln -s ../../secret launch.toml`, "launch.toml"},
		{"device", nil, "", "", `ln -s /dev/zero build.toml`, "build.toml"},
		{"directory", nil, "", "", `mkdir launch.toml`, "launch.toml"},
		{"huge", nil, "", "", `truncate -s 1T store.toml`, "store.toml"},
		{"environment that is a pipe", nil, "", "", `mkdir -p l/env; mkfifo l/env/X; printf '[types]\nbuild = true\n' > l.toml`, "env/X"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conform.Covers(t, tt.covers...)
			w := newWorld(t)
			w.write(filepath.Join(w.dirs.Layers, "../secret"), "[[labels]]\nkey = \"stolen\"\n", 0o666)
			w.add(pack{name: "a@1", info: tt.info, api: tt.api, build: "cd $CNB_LAYERS_DIR\n" + tt.script})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			plan := spec.Plan{Entries: []spec.PlanEntry{entry("a@1", "x")}}
			_, err := Build(ctx, sandbox.InPlace{}, w.dirs, w.set, spec.Group{Group: group("a@1").Group}, plan, w)
			if code := spec.ExitCode(err, -1); code != spec.ExitBuild {
				t.Fatalf("exit code %d (%v), want %d", code, err, spec.ExitBuild)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
		})
	}
}

func TestBuildSBOMs(t *testing.T) {
	conform.Covers(t, 7, 122, 125)
	w := newWorld(t)
	stale := filepath.Join(w.dirs.Layers, "sbom/launch/gone/sbom.cdx.json")
	w.write(stale, "{}", 0o666)
	w.add(pack{name: "acme/a@1", info: `sbom-formats = ["application/vnd.cyclonedx+json; version=1.4", "application/spdx+json", "application/vnd.syft+json"]`, build: `
cd $CNB_LAYERS_DIR
for n in launch build l lc b none dotted.name; do echo $n > $n.sbom.cdx.json; done
echo spdx > l.sbom.spdx.json
echo syft > l.sbom.syft.json
mkdir l lc b
printf '[types]\nlaunch = true\n' > l.toml
printf '[types]\nlaunch = true\ncache = true\n' > lc.toml
printf '[types]\nbuild = true\n' > b.toml
printf '[types]\nlaunch = true\n' > dotted.name.toml
rm -r $CNB_LAYERS_DIR/../sbom/launch; ln -s /etc $CNB_LAYERS_DIR/../sbom/launch
`})
	w.mustBuild(spec.Plan{}, "acme/a@1")
	dir := filepath.Join(w.dirs.Layers, "sbom")
	files := slices.DeleteFunc(w.tree(dir), func(p string) bool { return strings.HasSuffix(p, "/") })
	requireStrings(t, "sbom", files,
		"build/acme_a/b/sbom.cdx.json", "build/acme_a/none/sbom.cdx.json", "build/acme_a/sbom.cdx.json", "build/sbom.legacy.json",
		"cache/acme_a/lc/sbom.cdx.json",
		"launch/acme_a/dotted.name/sbom.cdx.json", "launch/acme_a/l/sbom.cdx.json", "launch/acme_a/l/sbom.spdx.json", "launch/acme_a/l/sbom.syft.json",
		"launch/acme_a/lc/sbom.cdx.json", "launch/acme_a/sbom.cdx.json", "launch/sbom.legacy.json")
	for file, want := range map[string]string{
		"launch/acme_a/sbom.cdx.json": "launch\n", "build/acme_a/sbom.cdx.json": "build\n", "launch/acme_a/l/sbom.syft.json": "syft\n",
		"launch/acme_a/dotted.name/sbom.cdx.json": "dotted.name\n",
	} {
		if got := w.read(filepath.Join(dir, file)); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

func TestBuildDoesNotFollowAPlantedLayersDirectory(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", build: `mkdir ../elsewhere; ln -s $PWD/../elsewhere $CNB_LAYERS_DIR/../b`})
	w.add(pack{name: "b@1", build: `touch $CNB_LAYERS_DIR/f`})
	_, err := w.build(spec.Plan{}, "a@1", "b@1")
	if code := spec.ExitCode(err, -1); code != spec.ExitBuild || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("exit code %d, error %v", code, err)
	}
	requireStrings(t, "elsewhere", w.tree(filepath.Join(w.dirs.App, "../elsewhere")))
}

func TestBuildUnsupportedAPIRunsNothing(t *testing.T) {
	conform.Covers(t, 2)
	w := newWorld(t)
	w.add(pack{name: "a@1", build: "touch ../ran"})
	w.add(pack{name: "b@1", api: "9.9"})
	_, err := w.build(spec.Plan{}, "a@1", "b@1")
	if code := spec.ExitCode(err, -1); code != spec.ExitBuildpackAPI {
		t.Errorf("exit code %d (%v)", code, err)
	}
	if _, err := os.Stat(filepath.Join(w.dirs.App, "../ran")); err == nil {
		t.Error("a buildpack ran")
	}
}

func TestBuildOldCommandForm(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", api: "0.8", build: `printf '[[processes]]\ntype = "web"\ncommand = "a b"\nargs = ["c"]\n' > $CNB_LAYERS_DIR/launch.toml`})
	md := w.mustBuild(spec.Plan{}, "a@1")
	want := []spec.Process{{Type: "web", Command: []string{"a b"}, Args: []string{"c"}, BuildpackID: "a"}}
	if diff := cmp.Diff(want, md.Processes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", build: "touch ../started; sleep 60"})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(w.dirs.App, "../started")); err == nil {
				cancel()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err := Build(ctx, sandbox.InPlace{}, w.dirs, w.set, spec.Group{Group: group("a@1").Group}, spec.Plan{}, w)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v does not say canceled", err)
	}
}
