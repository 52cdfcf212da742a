package spec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/test/conform"
)

// readers runs every Read function, so that one table can hold cases of all.
var readers = map[string]func(b []byte, name string) (any, error){
	"group.toml":            func(b []byte, n string) (any, error) { return ReadGroup(b, n) },
	"order.toml":            func(b []byte, n string) (any, error) { return ReadOrder(b, n) },
	"system.toml":           func(b []byte, n string) (any, error) { return ReadSystem(b, n) },
	"plan.toml":             func(b []byte, n string) (any, error) { return ReadPlan(b, n) },
	"detect.toml":           func(b []byte, n string) (any, error) { return ReadDetectPlan(b, n) },
	"bpplan.toml":           func(b []byte, n string) (any, error) { return ReadBuildpackPlan(b, n) },
	"build.toml":            func(b []byte, n string) (any, error) { return ReadBuildTOML(b, n) },
	"launch.toml":           func(b []byte, n string) (any, error) { return ReadLaunchTOML(b, n, "0.10") },
	"launch-0.8.toml":       func(b []byte, n string) (any, error) { return ReadLaunchTOML(b, n, "0.8") },
	"launch-0.7.toml":       func(b []byte, n string) (any, error) { return ReadLaunchTOML(b, n, "0.7") },
	"store.toml":            func(b []byte, n string) (any, error) { return ReadStoreTOML(b, n) },
	"layer.toml":            func(b []byte, n string) (any, error) { return ReadLayerTOML(b, n) },
	"metadata.toml":         func(b []byte, n string) (any, error) { return ReadBuildMetadata(b, n) },
	"run.toml":              func(b []byte, n string) (any, error) { return ReadRunTOML(b, n) },
	"stack.toml":            func(b []byte, n string) (any, error) { return ReadStackTOML(b, n) },
	"analyzed.toml":         func(b []byte, n string) (any, error) { return ReadAnalyzed(b, n) },
	"project-metadata.toml": func(b []byte, n string) (any, error) { return ReadProjectMetadata(b, n) },
	"report.toml":           func(b []byte, n string) (any, error) { return ReadReport(b, n) },
	"buildpack.toml":        func(b []byte, n string) (any, error) { return ReadBuildpack(b, n) },
	"extension.toml":        func(b []byte, n string) (any, error) { return ReadExtension(b, n) },
	"project.toml":          func(b []byte, n string) (any, error) { return ReadProject(b, n) },
	"lifecycle.toml":        func(b []byte, n string) (any, error) { return ReadLifecycle(b, n) },
	"extend-config.toml": func(b []byte, n string) (any, error) {
		c, _, err := ReadExtendConfig(b, n)
		return c, err
	},
}

func TestReadErrors(t *testing.T) {
	tests := []struct{ file, body, want string }{
		// Syntax and types: file, line, column, key, no Go types.
		{"group.toml", "[[group]]\nid = \"a", "group.toml:2:7: unterminated basic string"},
		{"group.toml", "[[group]]\nid = 3\n", "group.toml:2:1: group[0].id: must be a string, not an integer"},
		{"group.toml", "[[group]]\nid = \"a\"\nversion = \"1\"\napi = \"0.9\"\n[[group]]\nid = [\"a\"]\n", "group.toml:6:1: group[1].id: must be a string, not a list"},
		{"group.toml", "group = \"a\"\n", "group.toml:1:1: group: must be a list of tables, not a string"},
		{"group.toml", "group = [{id = \"a\", version = 2.5}]\n", "group.toml:1:21: group[0].version: must be a string, not a float"},
		{"layer.toml", "[types]\n  launch = \"yes\"\n", "layer.toml:2:3: types.launch: must be true or false, not a string"},
		{"layer.toml", "types = 1979-05-27\n", "layer.toml:1:1: types: must be a table, not a date or time"},
		{"layer.toml", "metadata = []\n", "layer.toml:1:1: metadata: must be a table, not a list"},
		{"report.toml", "[image]\nmanifest-size = \"12\"", "report.toml:2:1: image.manifest-size: must be an integer, not a string"},
		{"metadata.toml", "[[processes]]\ntype=\"a\"\ncommand=\"x\"\nargs=3\n", "metadata.toml:4:1: processes[0].args: must be a list, not an integer"},
		{"order.toml", "[[order]]\ngroup = [\n# comment\n{id = \"a\", version = \"1\"},\n{id = 4}]\n", "order.toml:5:2: order[0].group[1].id: must be a string, not an integer"},

		// Required keys: the place is that of the table that lacks them.
		{"group.toml", "[[group]]\nid = \"a/b\"\nversion = \"1.2.3\"\n", "group.toml:1:3: group[0].api: must be set"},
		{"group.toml", "[[group]]\nversion = \"1.2.3\"\n", "group.toml:1:3: group[0].id: an ID must not be empty"},
		{"group.toml", "[[group]]\nid=\"..\"\nversion = \"1.2.3\"\n", `group.toml:2:1: group[0].id: ".." is no valid ID: it would name another directory`},
		{"group.toml", "[[group-extensions]]\nid=\"a\"\nversion = \"..\"\n", `group.toml:3:1: group-extensions[0].version: ".." is no valid version`},
		{"order.toml", "[[order]]\n[[order.group]]\nid = \"a\"\n", `order.toml:2:9: order[0].group[0].version: "" is no valid version`},
		{"order.toml", "[[order-extensions]]\n[[order-extensions.group]]\nid = \"config\"\n", `order.toml:3:1: order-extensions[0].group[0].id: "config" is no valid ID: the name is reserved`},
		{"system.toml", "[[system.post.buildpacks]]\nid = \"a b\"\n", `system.toml:2:1: system.post.buildpacks[0].id: "a b" is no valid ID: only letters, digits, '.', '/' and '-' are allowed`},

		// Plans.
		{"plan.toml", "[[entries]]\n[[entries.requires]]\nname=\"a\"\n", "plan.toml:1:3: entries[0].providers: must have a provider"},
		{"plan.toml", "[[entries]]\n[[entries.providers]]\nid=\"a\"\n", "plan.toml:1:3: entries[0].requires: must have a require"},
		{"plan.toml", "[[entries]]\nproviders=[{id=\"a\"}]\nrequires=[{name=\"a\"},{name=\"b\"}]\n", `plan.toml:3:23: entries[0].requires[1].name: must be "a", like the others of this entry`},
		{"detect.toml", "[[requires]]\nname=\"a\"\nversion=\"1\"\n", "detect.toml:3:1: requires[0].version: is not allowed here; put it into [requires.metadata]"},
		{"detect.toml", "[[or]]\n[[or.requires]]\nname=\"a\"\nversion=\"1\"\n", "detect.toml:4:1: or[0].requires[0].version: is not allowed here; put it into [requires.metadata]"},
		{"detect.toml", "[[provides]]\n", "detect.toml:1:3: provides[0].name: must not be empty"},
		// Arguments of extensions.
		{"extend-config.toml", "[[build.args]]\nname=\"a\"\n", "extend-config.toml:1:9: build.args[0].value: must be set"},
		{"extend-config.toml", "[[run.args]]\nname=\"a\"\nvalue=\"\"\n[[run.args]]\nvalue=\"b\"\n", "extend-config.toml:4:7: run.args[1].name: must be set"},
		{"extend-config.toml", "[[run.args]]\nname=\"user_id\"\nvalue=\"0\"\n", `extend-config.toml:2:1: run.args[0].name: "user_id" cannot be set here: the lifecycle gives it a value`},
		{"extend-config.toml", "[[build.args]]\nname=\"a\"\nvalue=1\n", "extend-config.toml:3:1: build.args[0].value: must be a string, not an integer"},
		{"extend-config.toml", "[build]\nargs=\"a\"\n", "extend-config.toml:2:1: build.args: must be a list of tables, not a string"},
		{"extend-config.toml", "[[build.args]]\nname=\"a=b\"\nvalue=\"1\"\n", `extend-config.toml:2:1: build.args[0].name: "a=b" is no name of a build argument`},
		{"extend-config.toml", "[[build.args]]\nname=\"a\"\nvalue=\"\\u0000\"\n", "extend-config.toml:3:1: build.args[0].value: cannot have a NUL character"},

		{"build.toml", "[[unmet]]\nname=\"\"\n", "build.toml:2:1: unmet[0].name: must not be empty"},

		// Layers.
		{"layer.toml", "launch = true\n", "layer.toml:1:1: launch: is not allowed here; put it under [types]"},
		{"layer.toml", "[metadata]\na=1\nb=[1.0,inf]\n", "layer.toml:3:8: metadata.b[1]: cannot be kept: it must be a finite number"},
		{"store.toml", "[metadata]\nx.y=nan\n", "store.toml:2:3: metadata.x.y: cannot be kept: it must be a finite number"},

		// Processes.
		{"launch.toml", "[[processes]]\ntype=\"web\"\ncommand=\"x\"\n", "launch.toml:3:1: processes[0].command: must be a list of strings since Buildpack API 0.9"},
		{"launch.toml", "[[processes]]\ntype=\"web\"\ncommand=[\"x\"]\ndirect=true\n", "launch.toml:4:1: processes[0].direct: is not allowed since Buildpack API 0.9: every process is direct"},
		{"launch.toml", "[[processes]]\ntype=\"web\"\ncommand=[]\n", "launch.toml:3:1: processes[0].command: must name an executable"},
		{"launch.toml", "[[processes]]\ntype=\"web\"\n", "launch.toml:1:3: processes[0].command: must name an executable"},
		{"launch.toml", "[[processes]]\ntype=\"web\"\ncommand=[\"x\", 3]\n", "launch.toml:3:15: processes[0].command[1]: must be a string, not an integer"},
		{"launch.toml", "[[processes]]\ntype=\"web\"\ncommand={}\n", "launch.toml:3:1: processes[0].command: must be a list of strings, not a table"},
		{"launch.toml", "[[processes]]\ntype=\"a/b\"\n", `launch.toml:2:1: processes[0].type: "a/b" is no valid process type: only letters, digits, '.', '_' and '-' are allowed`},
		{"launch.toml", "processes=[{type=\"a\",command=[\"x\"]},{type=\"a\",command=[\"x\"]}]", `launch.toml:1:38: processes[1].type: "a" is already the type of another process`},
		{"launch.toml", "processes=[{type=\"a\",command=[\"x\"],default=true},{type=\"b\",command=[\"x\"],default=true}]", "launch.toml:1:74: processes[1].default: only one process can be the default"},
		{"launch.toml", "[[labels]]\nvalue=\"x\"\n", "launch.toml:1:3: labels[0].key: must not be empty"},
		{"launch-0.8.toml", "[[processes]]\ntype=\"web\"\ncommand=[\"x\"]\n", "launch-0.8.toml:3:1: processes[0].command: must be a string: lists came with Buildpack API 0.9, and this is 0.8"},

		// Images.
		{"run.toml", "[[images]]\nmirrors=[\"x\"]\n", "run.toml:1:3: images[0].image: must be set"},
		{"stack.toml", "[run-image]\nmirrors=[\"x\"]\n", "stack.toml:1:2: run-image.image: must be set"},

		// Buildpacks.
		{"buildpack.toml", "[buildpack]\nid=\"a\"\nversion=\"1.0.0\"\n", "buildpack.toml: api: must be set to the version of the Buildpack API"},
		{"buildpack.toml", "api=\"0.9\"\n[buildpack]\nid=\"app\"\nversion=\"1.0.0\"\n", `buildpack.toml:3:1: buildpack.id: "app" is no valid ID: the name is reserved`},
		{"buildpack.toml", "api=\"0.9\"\n[buildpack]\nid=\"a\"\nversion=\"1.0.0\"\nexec-env=[3]\n", "buildpack.toml:5:11: buildpack.exec-env[0]: must be the name of an execution environment"},
		{"buildpack.toml", "api=\"0.9\"\n[buildpack]\nid=\"a\"\nversion=\"1.0.0\"\nexec-env=\"x\"\n", "buildpack.toml:5:1: buildpack.exec-env: must be a list, not a string"},
		{"buildpack.toml", "api=\"0.9\"\n[buildpack]\nid=\"a\"\nversion=\"1.0.0\"\n[[order]]\n[[order.group]]\nid=\"b\"\n", `buildpack.toml:6:9: order[0].group[0].version: "" is no valid version`},
		{"extension.toml", "api=\"0.9\"\n[extension]\nid=\"a\"\nversion=\"1.0.0\"\n[[order]]\n[[order.group]]\nid=\"b\"\nversion=\"1.0.0\"\n", "extension.toml:5:3: order: an extension cannot have an order"},

		// Projects.
		{"project.toml", "[_]\nschema-version=\"9\"\n", `project.toml:2:1: _.schema-version: "9" is not known; kiln reads 0.1, 0.2 and 0.3`},
		{"project.toml", "[build]\ninclude=[\"a\"]\nexclude=[\"b\"]\n", "project.toml:3:1: build.exclude: cannot be used together with include"},
		{"project.toml", "[_]\nschema-version=\"0.2\"\n[io.buildpacks]\ninclude=[\"a\"]\nexclude=[\"b\"]\n", "project.toml:5:1: io.buildpacks.exclude: cannot be used together with include"},
		{"project.toml", "[_]\nschema-version=\"0.2\"\n[[io.buildpacks.group]]\nuri=\"x\"\nversion=\"1\"\n", "project.toml:5:1: io.buildpacks.group[0].version: cannot be used together with uri"},
		{"project.toml", "[_]\nschema-version=\"0.2\"\n[[io.buildpacks.pre.group]]\nuri=\"x\"\nscript={api=\"0.9\",inline=\"x\"}\n", "project.toml:4:1: io.buildpacks.pre.group[0].uri: cannot be used together with script"},
		{"project.toml", "[_]\nschema-version=\"0.2\"\n[[io.buildpacks.post.group]]\nscript={inline=\"x\"}\n", "project.toml:4:1: io.buildpacks.post.group[0].script.api: must be set to the version of the Buildpack API"},
		{"project.toml", "[_]\nschema-version=\"0.2\"\n[[_.licenses]]\n", "project.toml:3:5: _.licenses[0]: must have a type or a uri"},
		{"project.toml", "[[build.env]]\nname=\"a=b\"\n", `project.toml:2:1: build.env[0].name: "a=b" cannot be the name of a variable`},
		{"project.toml", "[[build.buildpacks]]\n", "project.toml:1:9: build.buildpacks[0]: must have an id, a uri or a script"},
	}
	for _, tt := range tests {
		_, err := readers[tt.file]([]byte(tt.body), tt.file)
		if err == nil {
			t.Errorf("%s accepted:\n%s", tt.file, tt.body)
			continue
		}
		if err.Error() != tt.want {
			t.Errorf("%s:\n%s\n got %s\nwant %s", tt.file, tt.body, err, tt.want)
		}
	}
}

// A byte order mark and the line ends of Windows are read as nothing, and do not
// move what is told of a fault.
func TestMarkedDocuments(t *testing.T) {
	const text = "[[order]]\r\n[[order.group]]\r\nid = 'a'\r\nversion = '1'\r\n"
	o, err := ReadOrder([]byte("\ufeff"+text), "order.toml")
	if err != nil || len(o.Order) != 1 || o.Order[0].Group[0].ID != "a" {
		t.Errorf("%+v, %v", o, err)
	}
	_, err = ReadOrder([]byte("\ufeff"+strings.Replace(text, "'a'", "3", 1)), "order.toml")
	if err == nil || !strings.HasPrefix(err.Error(), "order.toml:3:1: order[0].group[0].id") {
		t.Error(err)
	}
	if vars, err := ReadExecD([]byte("\ufeffA = 'b'\r\n"), "exec.d"); err != nil || vars["A"] != "b" {
		t.Errorf("%v, %v", vars, err)
	}
	for _, bad := range []string{"\ufeff\ufeffa = 1", "\xff\xfea\x00", "a = 1\x00", "a = \"\x00\""} {
		_, err := ReadOrder([]byte(bad), "order.toml")
		if err == nil || !strings.HasPrefix(err.Error(), "order.toml:1:") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDocumentSize(t *testing.T) {
	big := strings.Repeat("#", MaxDocument+1)
	for name, read := range readers {
		if _, err := read([]byte(big), name); err == nil || !strings.Contains(err.Error(), name+": 8388609 bytes") {
			t.Errorf("%s of %d bytes: %v", name, len(big), err)
		}
		for _, key := range []string{"[metadata.a]\n", "a=1       \n"} {
			keys := strings.Repeat(key, maxKeys+2)
			if _, err := read([]byte(keys), name); err == nil || !strings.Contains(err.Error(), name+": about 5000") {
				t.Errorf("%s with as many of %q: %v", name, key, err)
			}
		}
	}
}

func TestReadLaunchTOML(t *testing.T) {
	newer := `
[[labels]]
key = "a"
value = "b"
[[processes]]
type = "web"
command = ["python", "-m"]
args = ["flask"]
default = true
working-dir = "/x"
exec-env = ["test"]
[[slices]]
paths = ["a", "b/*"]
`
	got, err := readers["launch.toml"]([]byte(newer), "launch.toml")
	want := LaunchTOML{
		Labels: []Label{{"a", "b"}},
		Processes: []Process{{Type: "web", Command: []string{"python", "-m"}, Args: []string{"flask"},
			Direct: true, Default: true, WorkingDirectory: "/x", ExecEnv: []string{"test"}}},
		Slices: []Slice{{[]string{"a", "b/*"}}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}

	older := "[[processes]]\ntype='a'\ncommand='echo $X'\nworking-dir='/x'\n[[processes]]\ntype='b'\ncommand='echo'\nargs=['1']\ndirect=true\n"
	for file, dir := range map[string]string{"launch-0.8.toml": "/x", "launch-0.7.toml": ""} {
		got, err := readers[file]([]byte(older), "launch.toml")
		want := LaunchTOML{Processes: []Process{
			{Type: "a", Command: []string{"echo $X"}, WorkingDirectory: dir},
			{Type: "b", Command: []string{"echo"}, Args: []string{"1"}, Direct: true},
		}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(file, err, diff)
		}
	}
}

func TestReadBuildpack(t *testing.T) {
	const head = "api = '0.12'\n[buildpack]\nid = 'a/b'\nversion = '1.2.3'\nclear-env = true\n"
	want := Buildpack{API: "0.12", Buildpack: BuildpackInfo{ID: "a/b", Version: "1.2.3", ClearEnv: true, ExecEnv: []string{"test", "x"}}}
	for _, form := range []string{"exec-env = ['test', 'x']\n", "[[buildpack.exec-env]]\nname='test'\n[[buildpack.exec-env]]\nname='x'\n"} {
		got, err := ReadBuildpack([]byte(head+form), "buildpack.toml")
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}

	got, err := ReadBuildpack([]byte(head+`
[[targets]]
os = "linux"
arch = "arm"
variant = "v6"
[[targets]]
os = "linux"
arch-variant = "v7"
[[targets.distros]]
name = "debian"
version = "12"
[metadata]
n = 3
`), "buildpack.toml")
	want.Buildpack.ExecEnv = nil
	want.Targets = []Target{{OS: "linux", Arch: "arm", Variant: "v6"}, {OS: "linux", Variant: "v7", Distros: []Distro{{"debian", "12"}}}}
	want.Metadata = map[string]any{"n": int64(3)}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestReadAnalyzed(t *testing.T) {
	want := Analyzed{
		PreviousImage: &ImageReference{Reference: "x@sha256:1"},
		BuildImage:    &BuildImage{Reference: "b@sha256:3", Extend: true},
		Metadata: LifecycleMetadata{
			App: []LayerSHA{{"sha256:a"}}, SBOM: &LayerSHA{"sha256:b"},
			Buildpacks: []BuildpackLayers{{Key: "a/b", Version: "1", Layers: map[string]LayerMetadata{
				"x": {SHA: "sha256:c", Data: map[string]any{"n": int64(1), "t": map[string]any{"u": []any{"v", int64(2)}}}, Launch: true},
			}, Store: &StoreTOML{Metadata: map[string]any{"k": "v"}}}},
			RunImage: RunImageForRebase{TopLayer: "sha256:t", Reference: "r", Image: "i", Mirrors: []string{"m"}},
		},
		RunImage: &RunImage{Image: "run", Reference: "run@sha256:2", Target: &Target{
			OS: "linux", Arch: "arm", Variant: "v7", Distro: &Distro{"debian", "12"}}},
	}
	b, err := encode.TOML(want.TOML())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadAnalyzed(b, "analyzed.toml")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, both := range []string{"variant = \"v7\"", "arch-variant = \"v7\"", "[metadata.buildpacks.layers.x.data]", "[metadata.buildpacks.layers.x.metadata]"} {
		if !slices.Contains(strings.Fields(strings.ReplaceAll(string(b), " = ", "=")), strings.ReplaceAll(both, " = ", "=")) {
			t.Errorf("%s is missing:\n%s", both, b)
		}
	}

	got, err = ReadAnalyzed([]byte("[[metadata.buildpacks]]\nkey='k'\n[metadata.buildpacks.layers.l]\nsha='s'\n[metadata.buildpacks.layers.l.metadata]\nn=1\n"+
		"[metadata.buildpacks.layers.m]\nlaunch=true\nmetadata='text'\n"), "analyzed.toml")
	want = Analyzed{Metadata: LifecycleMetadata{Buildpacks: []BuildpackLayers{{Key: "k", Layers: map[string]LayerMetadata{"l": {SHA: "s", Data: map[string]any{"n": int64(1)}}, "m": {Launch: true}}}}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}

	got, err = ReadAnalyzed([]byte("[run-image]\nreference='r'\nextend=true\n[run-image.target]\nos='linux'\narch='arm'\narch-variant='v7'\n"), "analyzed.toml")
	want = Analyzed{RunImage: &RunImage{Reference: "r", Extend: true, Target: &Target{OS: "linux", Arch: "arm", Variant: "v7"}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestReadExtendConfig(t *testing.T) {
	conform.Covers(t, 74)
	got, unused, err := ReadExtendConfig([]byte(`
[[build.args]]
name = "a"
value = "1"
[[run.args]]
name = "a"
value = "2"
valeu = "3"
[[run.args]]
name = "a"
value = ""
[[rum.args]]
name = "b"
`), "extend-config.toml")
	want := ExtendConfig{Build: ExtendArgs{[]ExtendArg{{"a", "1"}}}, Run: ExtendArgs{[]ExtendArg{{"a", "2"}, {"a", ""}}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if diff := cmp.Diff([]string{"extend-config.toml:12:3: rum: is not used", "extend-config.toml:8:1: run.args[0].valeu: is not used"}, unused); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"a": ""}, got.Run.Map()); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"base_image", "build_id", "user_id", "group_id"} {
		if _, _, err := ReadExtendConfig([]byte("[[run.args]]\nname='"+name+"'\nvalue='x'\n"), "extend-config.toml"); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, unused, err := ReadExtendConfig([]byte(strings.Repeat("[[run.arg]]\n", 100)+"[a]\n[b]\n[c]\n[d]\n[e]\n[f]\n[g]\n[h]\n[i]\n[j]\n[k]\n"), "extend-config.toml"); err != nil || len(unused) != maxUnused {
		t.Errorf("%d unused keys are told, error %v", len(unused), err)
	}
}

func TestProjectVersions(t *testing.T) {
	conform.Covers(t, 202)
	const buildpacks = "[[io.buildpacks.group]]\nid = \"a\"\nversion = \"1\"\nexec-env = [\"test\"]\n[[io.buildpacks.build.env]]\nname = \"A\"\nvalue = \"B\"\nexec-env = [\"test\"]\n"
	for version, body := range map[string]string{
		"0.1": "[[build.buildpacks]]\nid = \"a\"\nversion = \"1\"\n[[build.env]]\nname = \"A\"\nvalue = \"B\"\n",
		"0.2": buildpacks,
		"0.3": buildpacks,
	} {
		got, err := ReadProject([]byte("[_]\nschema-version = \""+version+"\"\n"+body), "project.toml")
		want := Project{SchemaVersion: version, Group: []ProjectBuildpack{{ID: "a", Version: "1"}}, Env: []ProjectEnv{{Name: "A", Value: "B"}}}
		if version != "0.1" {
			want.Group[0].ExecEnv, want.Env[0].ExecEnv = []string{"test"}, []string{"test"}
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", version, err, diff)
		}
	}
	for _, group := range []string{"[build]\nbuildpacks = [%s]\n", "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\ngroup = [%s]\n", "[_]\nschema-version = \"0.3\"\n[io.buildpacks.post]\ngroup = [%s]\n"} {
		for entry, key := range map[string]string{
			`{id = "a", uri = "b", version = "1"}`:                            "version",
			`{uri = "b", script = {api = "0.10", inline = "x"}}`:              "uri",
			`{id = "a", version = "1", script = {api = "0.10", inline = ""}}`: "version",
			`{id = "a", script = {inline = "x"}}`:                             "script.api",
			`{id = "a", script = {api = "0.10"}}`:                             "script.inline",
		} {
			_, err := ReadProject(fmt.Appendf(nil, group, entry), "project.toml")
			if err == nil || !strings.Contains(err.Error(), "[0]."+key+":") {
				t.Errorf(group+": %v", entry, err)
			}
		}
	}
	for _, both := range []string{"[build]\n", "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\n", "[_]\nschema-version = \"0.3\"\n[io.buildpacks]\n"} {
		if _, err := ReadProject([]byte(both+"include = [\"a\"]\nexclude = [\"b\"]\n"), "project.toml"); err == nil || !strings.Contains(err.Error(), "include") {
			t.Errorf("include and exclude: %v", err)
		}
	}
}

func TestReadProject(t *testing.T) {
	got, err := ReadProject([]byte(`
[_]
schema-version = "0.2"
id = "x"
[[_.licenses]]
type = "MIT"
[_.metadata]
a = "b"
[io.buildpacks]
builder = "b"
exclude = ["*.md"]
colour = "red"
[[io.buildpacks.group]]
id = "a/b"
version = "1.2.3"
[[io.buildpacks.group]]
id = "in/line"
[io.buildpacks.group.script]
api = "0.10"
inline = "echo"
[[io.buildpacks.post.group]]
uri = "./x"
exec-env = ["test"]
[[io.buildpacks.build.env]]
name = "A"
value = "B"
[com.example]
anything = 1
`), "project.toml")
	want := Project{
		SchemaVersion: "0.2", ID: "x", Licenses: []License{{Type: "MIT"}}, Metadata: map[string]any{"a": "b"},
		Builder: "b", Exclude: []string{"*.md"},
		Group:    []ProjectBuildpack{{ID: "a/b", Version: "1.2.3"}, {ID: "in/line", Script: &ProjectScript{API: "0.10", Inline: "echo"}}},
		Post:     []ProjectBuildpack{{URI: "./x", ExecEnv: []string{"test"}}},
		Env:      []ProjectEnv{{Name: "A", Value: "B"}},
		Warnings: []string{"project.toml:12:1: io.buildpacks.colour: is not used"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}

	got, err = ReadProject([]byte("[project]\nid='x'\n[build]\ninclude=['a']\n[[build.env]]\nname='A'\nvalue='B'\n[[build.buildpacks]]\nid='p'\n[metadata]\nk=1\n"), "project.toml")
	want = Project{
		SchemaVersion: "0.1", ID: "x", Include: []string{"a"}, Env: []ProjectEnv{{Name: "A", Value: "B"}},
		Group: []ProjectBuildpack{{ID: "p"}}, Metadata: map[string]any{"k": int64(1)},
		Warnings: []string{"project.toml: no schema-version under [_]; read as version 0.1"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}
