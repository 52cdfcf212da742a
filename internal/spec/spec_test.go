package spec

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/test/conform"
)

func TestHas(t *testing.T) {
	tests := []struct {
		api     string
		feature Feature
		want    bool
	}{
		{"0.14", PlatformExecEnv, false},
		{"0.15", PlatformExecEnv, true},
		{"0.16", PlatformExecEnv, true},
		{"1.0", PlatformExecEnv, true},
		{"1", PlatformExecEnv, true},
		{"0.9", PlatformCommandList, false}, // not a decimal: 0.9 < 0.10
		{"0.10", PlatformCommandList, true},
		{"v0.10", PlatformCommandList, true},
		{"", PlatformCommandList, false},
		{"x", PlatformCommandList, false},
		{"0.11", PlatformStackTOML, true},
		{"0.12", PlatformStackTOML, false},
		{"", PlatformStackTOML, false},
		{"0.8", BuildpackCommandList, false},
		{"0.9", BuildpackCommandList, true},
		{"0.15", Feature(-1), false},
	}
	for _, tt := range tests {
		if got := Has(tt.api, tt.feature); got != tt.want {
			t.Errorf("Has(%q, %d) = %v", tt.api, tt.feature, got)
		}
	}
	for f := PlatformSBOM; f <= BuildpackExecEnv; f++ {
		s, ok := features[f]
		if _, err := parseAPI(s.since + s.until); !ok || err != nil {
			t.Errorf("feature %d has no range of versions: %q %v", f, s, err)
		}
	}
}

func TestSupported(t *testing.T) {
	for _, api := range PlatformAPIs {
		if err := SupportedPlatform(api); err != nil {
			t.Error(err)
		}
	}
	for _, api := range append(BuildpackAPIs, "v0.10") {
		if err := SupportedBuildpack(api); err != nil {
			t.Error(err)
		}
	}
	for _, api := range []string{"", " ", "0.6", "0.16", "0", "1.0", "0.-1", "0.7.0", "0.99999999999999999999", "x"} {
		if err := SupportedPlatform(api); ExitCode(err, 0) != ExitPlatformAPI || HintOf(err) == "" {
			t.Errorf("platform API %q: %v", api, err)
		}
		if err := SupportedBuildpack(api); ExitCode(err, 0) != ExitBuildpackAPI || HintOf(err) == "" {
			t.Errorf("buildpack API %q: %v", api, err)
		}
	}
}

func TestParseAPIOrder(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.Uint64Range(0, 1000)
		a, b := apiVersion{n.Draw(r, "a"), n.Draw(r, "b")}, apiVersion{n.Draw(r, "c"), n.Draw(r, "d")}
		as, bs := fmt.Sprintf("%d.%d", a.major, a.minor), fmt.Sprintf("%d.%d", b.major, b.minor)
		if got, err := parseAPI(as); err != nil || got != a {
			r.Fatalf("%s read as %v: %v", as, got, err)
		}
		if InRange(as, bs, "") == InRange(as, "", bs) {
			r.Fatalf("%s is both or neither since and before %s", as, bs)
		}
	})
}

func TestNames(t *testing.T) {
	conform.Covers(t, 7)
	check := func(what string, f func(string) error, good, bad []string) {
		t.Helper()
		for _, s := range good {
			if err := f(s); err != nil {
				t.Errorf("%s %q: %v", what, s, err)
			}
		}
		for _, s := range bad {
			if err := f(s); err == nil {
				t.Errorf("%s %q accepted", what, s)
			}
		}
	}
	check("ID", ValidateID, []string{"a", "kiln/pip-install", "A.b/c-1", "app/x", "..."},
		[]string{"", ".", "..", "app", "App", "config", "generated", "sbom", "a b", "a_b", "ä", "a\x00", "a\n"})
	check("path version", ValidatePathVersion, []string{"1.2.3-dev", "{{.Version}}"}, []string{"", ".", "..", "a/b", "a\x00"})
	check("process type", ValidateProcessType, []string{"web", "a.b_c-D", "..."}, []string{"", ".", "..", "a/b", "a b", "a:b"})
	check("layer", ValidateLayerName, []string{"a", "a b", "build2"}, []string{"", ".", "..", "build", "launch", "store", "a/b", "\x00"})
	check("exec env", ValidateExecEnv, []string{"production", "a.b-1", "a_b", "é"}, []string{"", "a/b", "/", "a b", "a\nb", "a\x00", "\xff"})
	if EscapeID("a/b/c") != "a_b_c" {
		t.Error(EscapeID("a/b/c"))
	}
	if !InExecEnv(nil, "x") || !InExecEnv([]string{"*"}, "x") || !InExecEnv([]string{"y", "x"}, "x") || InExecEnv([]string{"y"}, "x") {
		t.Error("InExecEnv")
	}
}

// Escaped IDs and valid versions name exactly one directory, the intended one.
func TestValidNamesStayInside(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		id := rapid.StringMatching(`[a-zA-Z0-9./-]{1,12}`).Draw(r, "id")
		if ValidateID(id) != nil {
			return
		}
		if e := EscapeID(id); e == "." || e == ".." || strings.Contains(e, "/") {
			r.Fatalf("%q becomes %q", id, e)
		}
	})
}

func TestTargets(t *testing.T) {
	debian := Target{OS: "linux", Arch: "arm", Variant: "v7", Distro: &Distro{"debian", "12"}}
	bare := Target{OS: "linux", Arch: "arm"}
	tests := []struct {
		target, base Target
		want         bool
	}{
		{Target{}, debian, true},
		{Target{OS: "linux"}, debian, true},
		{Target{OS: "windows"}, debian, false},
		{Target{OS: "linux", Arch: "amd64"}, debian, false},
		{Target{OS: "linux", Arch: "arm", Variant: "v6"}, debian, false},
		{Target{OS: "linux", Arch: "arm", Variant: "v6"}, bare, true},
		{Target{Distros: []Distro{{"ubuntu", "22.04"}, {"debian", "12"}}}, debian, true},
		{Target{Distros: []Distro{{"debian", "11"}}}, debian, false},
		{Target{Distros: []Distro{{Name: "debian"}}}, debian, true},
		{Target{Distros: []Distro{{Name: "debian"}}}, bare, false},
	}
	for _, tt := range tests {
		if got := tt.target.Matches(tt.base); got != tt.want {
			t.Errorf("%+v matches %+v: %v", tt.target, tt.base, got)
		}
	}

	bionic := Target{OS: "linux", Arch: "amd64", Distro: &Distro{"ubuntu", "18.04"}}
	bp := func(stacks ...string) (b Buildpack) {
		for _, s := range stacks {
			b.Stacks = append(b.Stacks, Stack{ID: s})
		}
		return b
	}
	since := func(api string, b Buildpack) Buildpack {
		b.API = api
		return b
	}
	listed := bp("*")
	listed.Targets = []Target{{OS: "windows"}}
	for i, tt := range []struct {
		b       Buildpack
		unix    bool
		base    Target
		matches bool
	}{
		{bp(), true, debian, true},
		{bp(), false, debian, false},
		{bp("io.buildpacks.stacks.bionic"), true, bionic, true},
		{bp("io.buildpacks.stacks.bionic"), true, debian, false},
		{bp("io.buildpacks.stacks.bionic", "*"), true, debian, true},
		{bp("some.stack"), true, debian, true},
		{since("0.9", bp("io.buildpacks.stacks.bionic", "some.stack")), true, debian, true},
		{since("0.9", bp("io.buildpacks.stacks.bionic")), true, debian, false},
		{since("0.10", bp("io.buildpacks.stacks.bionic", "some.stack")), true, debian, false},
		{since("0.10", bp("io.buildpacks.stacks.bionic", "some.stack")), true, bionic, true},
		{listed, true, debian, false},
	} {
		if got := AnyTarget(tt.b.EffectiveTargets(tt.unix, false), tt.base); got != tt.matches {
			t.Errorf("case %d: %v", i, got)
		}
	}
	if got := bp().EffectiveTargets(false, true); len(got) != 1 || got[0].OS != "windows" {
		t.Error(got)
	}
}

func TestErrors(t *testing.T) {
	base := errors.New("base")
	err := fmt.Errorf("outer: %w", Exit(51, WithHint(base, "try %s", "this")))
	if ExitCode(err, 1) != 51 || HintOf(err) != "try this" || !errors.Is(err, base) || err.Error() != "outer: base" {
		t.Error(ExitCode(err, 1), HintOf(err), err)
	}
	if ExitCode(base, 7) != 7 || ExitCode(nil, 7) != 0 || HintOf(base) != "" || Exit(1, nil) != nil || WithHint(nil, "x") != nil {
		t.Error("plain errors")
	}
}

func TestLifecycleLabel(t *testing.T) {
	conform.Covers(t, 142)
	m := LifecycleMetadata{
		App: []LayerSHA{{"sha256:app"}}, SBOM: &LayerSHA{"sha256:sbom"}, Config: LayerSHA{"sha256:config"},
		Launcher: LayerSHA{"sha256:launcher"}, ProcessTypes: LayerSHA{"sha256:types"},
		Buildpacks: []BuildpackLayers{
			{Key: "b", Version: "1", Layers: map[string]LayerMetadata{"z": {SHA: "sha256:z", Launch: true}, "a": {Data: map[string]any{"y": int64(1), "x": 2.5, "t": "<&>"}, Cache: true}},
				Store: &StoreTOML{Metadata: map[string]any{"k": int64(9007199254740993)}}},
			{Key: "a", Version: "2"},
		},
		ExecEnv: "test", RunImage: RunImageForRebase{TopLayer: "sha256:top", Reference: "r@sha256:1", Image: "r", Mirrors: []string{"m"}},
		Stack: &StackForRebase{RunImageEntry{Image: "r"}},
	}
	want := `{"app":[{"sha":"sha256:app"}],"sbom":{"sha":"sha256:sbom"},"config":{"sha":"sha256:config"},"launcher":{"sha":"sha256:launcher"},` +
		`"process-types":{"sha":"sha256:types"},"buildpacks":[{"key":"b","version":"1","layers":{` +
		`"a":{"sha":"","data":{"t":"\u003c\u0026\u003e","x":2.5,"y":1},"build":false,"launch":false,"cache":true},` +
		`"z":{"sha":"sha256:z","data":{},"build":false,"launch":true,"cache":false}},"store":{"metadata":{"k":9007199254740993}}},` +
		`{"key":"a","version":"2","layers":{}}],"exec-env":"test",` +
		`"runImage":{"topLayer":"sha256:top","reference":"r@sha256:1","image":"r","mirrors":["m"]},"stack":{"runImage":{"image":"r"}}}`
	got, err := EncodeLabel(m)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	back, err := DecodeLifecycleMetadata(got)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := EncodeLabel(back); err != nil || again != got {
		t.Errorf("%v\n%s\n%s", err, got, again)
	}
	if n, ok := back.Buildpacks[0].Layers["a"].Data["y"].(int64); !ok || n != 1 {
		t.Errorf("an integer came back as %T", back.Buildpacks[0].Layers["a"].Data["y"])
	}

	empty, err := EncodeLabel(LifecycleMetadata{})
	want = `{"app":[],"config":{"sha":""},"launcher":{"sha":""},"process-types":{"sha":""},"buildpacks":[],"runImage":{"topLayer":"","reference":""}}`
	if diff := cmp.Diff(want, empty); err != nil || diff != "" {
		t.Error(err, diff)
	}

	// The label's null and nested values survive the way through analyzed.toml.
	back, err = DecodeLifecycleMetadata(`{"buildpacks":[{"key":"a","layers":{"n":{"data":null},"s":{"data":"text","launch":true},"l":{"data":{"a":null,"b":[1,null,{"c":1.5}],"d":1e3,"big":1e30}}},"store":null}]}`)
	if err != nil {
		t.Fatal(err)
	}
	b, err := encode.TOML(Analyzed{Metadata: back}.TOML())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ReadAnalyzed(b, "analyzed.toml")
	wantData := map[string]any{"b": []any{int64(1), map[string]any{"c": 1.5}}, "d": 1000.0, "big": 1e30}
	if diff := cmp.Diff(wantData, a.Metadata.Buildpacks[0].Layers["l"].Data); err != nil || diff != "" {
		t.Errorf("%v %s\n%s", err, diff, b)
	}

	if s := back.Buildpacks[0].Layers["s"]; s.Data != nil || !s.Launch || back.Buildpacks[0].Layers["n"].Data != nil {
		t.Errorf("metadata that is no table: %+v", back)
	}

	for _, bad := range []string{"", "[]", "{", `{"app":3}`, "{} {}"} {
		if _, err := DecodeLifecycleMetadata(bad); err == nil || !strings.Contains(err.Error(), LifecycleMetadataLabel) {
			t.Errorf("label %q: %v", bad, err)
		}
	}
}

func TestCacheMetadata(t *testing.T) {
	got, err := EncodeLabel(CacheMetadata{})
	if err != nil || got != `{"sbom":{"sha":""},"buildpacks":[]}` {
		t.Error(got, err)
	}
	m, err := DecodeCacheMetadata(`{"sbom":{"sha":"s"},"buildpacks":[{"key":"a","version":"1","layers":{"l":{"sha":"x","data":{"n":1},"build":false,"launch":false,"cache":true}}}]}`)
	want := CacheMetadata{SBOM: LayerSHA{"s"}, Buildpacks: []BuildpackLayers{{Key: "a", Version: "1",
		Layers: map[string]LayerMetadata{"l": {SHA: "x", Data: map[string]any{"n": int64(1)}, Cache: true}}}}}
	if diff := cmp.Diff(want, m); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestBuildLabel(t *testing.T) {
	conform.Covers(t, 145, 146)
	l := BuildLabel{
		Processes:  []Process{{Type: "web", Command: []string{"x", "y"}, Args: []string{"z"}, Direct: true, Default: true, WorkingDirectory: "/w", BuildpackID: "a"}, {Type: "t", Command: []string{"u"}, ExecEnv: []string{"*"}}},
		Buildpacks: []GroupElement{{ID: "a", Version: "1", API: "0.10", Homepage: "h"}}, Extensions: []GroupElement{{ID: "e", Version: "1", API: "0.10"}},
		Launcher: LauncherInfo{Version: "1", Source: LauncherSource{LauncherGit{"r", "c"}}}, DefaultProcessType: "web",
	}
	const rest = `"launcher":{"version":"1","source":{"git":{"repository":"r","commit":"c"}}},"buildpack-default-process-type":"web"}`
	for api, want := range map[string]string{
		"0.12": `{"processes":[{"type":"web","command":["x","y"],"args":["z"],"direct":true,"buildpackID":"a","working-dir":"/w"},{"type":"t","command":["u"],"args":[],"direct":false,"exec-env":["*"]}],` +
			`"buildpacks":[{"id":"a","version":"1","api":"0.10","homepage":"h"}],"extensions":[{"id":"e","version":"1","api":"0.10"}],` + rest,
		"0.9": `{"processes":[{"type":"web","command":"x","args":["y","z"],"direct":true,"buildpackID":"a","working-dir":"/w"},{"type":"t","command":"u","args":[],"direct":false}],` +
			`"buildpacks":[{"id":"a","version":"1","homepage":"h"}],"extensions":[{"id":"e","version":"1"}],` + rest,
	} {
		got, err := EncodeBuildLabel(l, api)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("API %s: %v %s", api, err, diff)
		}
		back, err := DecodeBuildLabel(got)
		if err != nil || len(back.Processes) != 2 || back.Processes[0].Command[0] != "x" || back.DefaultProcessType != "web" {
			t.Errorf("API %s: %v %+v", api, err, back)
		}
	}
	if l.Buildpacks[0].API == "" {
		t.Error("writing a label changed its value")
	}
	got, err := EncodeBuildLabel(BuildLabel{}, "0.15")
	if err != nil || got != `{"processes":[],"buildpacks":[],"launcher":{"version":"","source":{"git":{"repository":"","commit":""}}}}` {
		t.Error(got, err)
	}
	if got, err := EncodeLabel(ProjectMetadata{}); err != nil || got != "{}" {
		t.Error(got, err)
	}
}

func TestMarshal(t *testing.T) {
	tests := []struct {
		name string
		v    any
		want string
	}{
		{"restored layer has no types", LayerTOML{Metadata: map[string]any{"b": int64(1), "a": map[string]any{"z": true}}}, "[metadata]\n  b = 1\n  [metadata.a]\n    z = true\n"},
		{"layer", LayerTOML{Types: LayerTypes{Launch: true}}, "[types]\n  launch = true\n  build = false\n  cache = false\n"},
		{"empty group", Group{}, ""},
		{"group", Group{Group: []GroupElement{{ID: "a", Version: "1", API: "0.9"}}}, "[[group]]\n  id = \"a\"\n  version = \"1\"\n  api = \"0.9\"\n"},
		{"report", Report{ReportImage{Tags: []string{"t"}, Digest: "d", ManifestSize: 12}}, "[image]\n  tags = [\"t\"]\n  digest = \"d\"\n  manifest-size = 12\n"},
		{"report of a daemon", Report{ReportImage{Tags: []string{"t"}, ImageID: "i"}}, "[image]\n  tags = [\"t\"]\n  image-id = \"i\"\n"},
		{"analyzed", Analyzed{RunImage: &RunImage{Image: "i", Reference: "r"}}, "[run-image]\n  image = \"i\"\n  reference = \"r\"\n"},
		{"plan", Plan{Entries: []PlanEntry{{[]PlanProvider{{ID: "a", Version: "1"}}, []Require{{Name: "n"}}}}}, "[[entries]]\n\n  [[entries.providers]]\n    id = \"a\"\n    version = \"1\"\n\n  [[entries.requires]]\n    name = \"n\"\n"},
	}
	for _, tt := range tests {
		for range 3 {
			got, err := encode.TOML(tt.v)
			if diff := cmp.Diff(tt.want, string(got)); err != nil || diff != "" {
				t.Errorf("%s: %v %s", tt.name, err, diff)
			}
		}
	}
}

func TestBuildMetadata(t *testing.T) {
	conform.Covers(t, 118)
	m := BuildMetadata{
		DefaultProcessType: "web", Buildpacks: []GroupElement{{ID: "a", Version: "1", API: "0.10"}},
		Processes: []Process{{Type: "web", Command: []string{"x", "y"}, Args: []string{"z"}, Direct: true, WorkingDirectory: "/w", BuildpackID: "a", ExecEnv: []string{"*"}}},
		Slices:    []Slice{{[]string{"p"}}}, Labels: []Label{{"k", "v"}},
	}
	b, err := encode.TOML(m.TOML("0.15"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadBuildMetadata(b, "metadata.toml")
	if diff := cmp.Diff(m, got); err != nil || diff != "" {
		t.Error(err, diff)
	}

	b, err = encode.TOML(m.TOML("0.9"))
	if err != nil || !strings.Contains(string(b), "\n  command = \"x\"\n  args = [\"y\", \"z\"]\n  direct = true\n") {
		t.Errorf("%v\n%s", err, b)
	}
	got, err = ReadBuildMetadata(b, "metadata.toml")
	old := m
	old.Processes = []Process{{Type: "web", Command: []string{"x"}, Args: []string{"y", "z"}, Direct: true, WorkingDirectory: "/w", BuildpackID: "a"}}
	if diff := cmp.Diff(old, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// A date without an offset stays one in TOML; a label has the time that the
// reference's decoder makes of it.
func TestLocalTimes(t *testing.T) {
	const body = "[metadata]\n  d = 2026-01-02\n  dt = 2026-01-02T03:04:05.6\n  list = [{t = 07:08:09}]\n"
	l, err := ReadLayerTOML([]byte(body), "layer.toml")
	if err != nil {
		t.Fatal(err)
	}
	again, err := encode.TOML(struct {
		Metadata map[string]any `toml:"metadata"`
	}{l.Metadata})
	if diff := cmp.Diff("[metadata]\n  d = 2026-01-02\n  dt = 2026-01-02T03:04:05.6\n\n  [[metadata.list]]\n    t = 07:08:09\n", string(again)); err != nil || diff != "" {
		t.Error(err, diff)
	}
	label, err := EncodeLabel(l.Metadata)
	if want := `{"d":"2026-01-02T00:00:00Z","dt":"2026-01-02T03:04:05.6Z","list":[{"t":"0000-01-01T07:08:09Z"}]}`; err != nil || label != want {
		t.Errorf("%v: the label is\n%s\nwant\n%s", err, label, want)
	}
}

// metadata draws the kind of value that buildpacks keep in [metadata].
func metadata(depth int) *rapid.Generator[map[string]any] {
	return rapid.MapOfN(rapid.String(), rapid.Custom(func(r *rapid.T) any {
		kinds := 5
		if depth > 0 {
			kinds = 7
		}
		switch rapid.IntRange(0, kinds-1).Draw(r, "kind") {
		case 0:
			return rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.SampledFrom([]rune("'\"\\ ab=[]#.\n\t\x00\x7fé")), 0, 12, -1)).Draw(r, "string")
		case 1:
			return rapid.Int64().Draw(r, "int")
		case 2:
			return rapid.Bool().Draw(r, "bool")
		case 3:
			return rapid.Float64Range(-1e9, 1e9).Draw(r, "float")
		case 4:
			list := []any{}
			for _, s := range rapid.SliceOfN(rapid.String(), 0, 3).Draw(r, "list") {
				list = append(list, s)
			}
			return list
		case 5:
			return append(rapid.SampledFrom([][]any{nil, {true}}).Draw(r, "before"), metadata(depth-1).Draw(r, "in list"))
		}
		return metadata(depth-1).Draw(r, "table")
	}), 0, 4)
}

// What a buildpack keeps comes back the same through <layer>.toml, and through
// the label and analyzed.toml.
func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		want := metadata(2).Draw(r, "metadata")
		b, err := encode.TOML(LayerTOML{Metadata: want})
		if err != nil {
			r.Fatal(err)
		}
		layer, err := ReadLayerTOML(b, "layer.toml")
		if err != nil {
			r.Fatalf("%v\n%s", err, b)
		}
		got := layer.Metadata
		if got == nil {
			got = map[string]any{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.Fatalf("%s\n%s", diff, b)
		}
		label := func(data map[string]any) string {
			s, err := EncodeLabel(LifecycleMetadata{Buildpacks: []BuildpackLayers{{Key: "k", Layers: map[string]LayerMetadata{"l": {Data: data}}}}})
			if err != nil {
				r.Fatal(err)
			}
			return s
		}
		first := label(want)
		m, err := DecodeLifecycleMetadata(first)
		if err != nil {
			r.Fatal(err)
		}
		if b, err = encode.TOML(Analyzed{Metadata: m}.TOML()); err != nil {
			r.Fatal(err)
		}
		a, err := ReadAnalyzed(b, "analyzed.toml")
		if err != nil {
			r.Fatalf("%v\n%s", err, b)
		}
		if again := label(a.Metadata.Buildpacks[0].Layers["l"].Data); again != first {
			r.Fatalf("%s\n%s", first, again)
		}
	})
}

// written are the documents that kiln writes, and so must read back.
func written(name string) bool {
	switch name {
	case "project.toml", "stack.toml", "buildpack.toml", "extension.toml", "detect.toml":
		return false
	}
	return !strings.HasPrefix(name, "launch")
}

// checkFault wants of the fault of a document that it names the file, the place
// and, unless the document is no TOML at all, the key, and speaks no Go.
func checkFault(t *testing.T, name, body string, err error) {
	t.Helper()
	fault, ok := errors.AsType[*DocumentError](err)
	if !ok || fault.File != name || !strings.HasPrefix(err.Error(), name+":") {
		t.Errorf("%s: %T %v\n%q", name, err, err, body)
		return
	}
	var tree map[string]any
	syntax := toml.Unmarshal([]byte(body), &tree) != nil
	if fault.Key == "" && (!syntax || fault.Line == 0) {
		t.Errorf("%s names no place: %v\n%q", name, err, body)
	}
	if lines := strings.Count(body, "\n") + 1; fault.Line > lines {
		t.Errorf("%s has %d lines: %v\n%q", name, lines, err, body)
	}
	for _, word := range []string{"spec.", "interface {}", "toml: ", "reflect"} {
		if strings.Contains(fault.Msg, word) && !strings.Contains(body, word) {
			t.Errorf("speaks Go: %v", err)
		}
	}
}

// No document makes a reader panic; faults name file, line and key; what was
// read and is kiln's to write can be written and read again, the same.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"[[group]]\nid = 'a'\nversion = '1.0.0'\napi = '0.9'\n",
		"[[order]]\n[[order.group]]\nid='a'\nversion='1'\noptional=true\n",
		"[types]\nlaunch=true\n[metadata]\na.b=[1,{c=2}]\nd=1979-05-27T07:32:00Z\ne=1979-05-27\n",
		"[[processes]]\ntype='web'\ncommand=['x']\n[[labels]]\nkey='k'\n",
		"[[or]]\n[[or.requires]]\nname='a'\n[or.requires.metadata]\nx=1\n",
		"api='0.10'\n[buildpack]\nid='a'\nversion='1.0.0'\nexec-env=['test']\n[[targets]]\narch-variant='v7'\n",
		"[run-image]\nreference='r'\n[run-image.target]\nos='linux'\n[metadata]\napp=[{sha='x'}]\n",
		"[_]\nschema-version='0.2'\n[[io.buildpacks.group]]\nid='a'\n", "[build]\ninclude=['a']\n",
		"[[build.args]]\nname='a'\nvalue='b'\n[[run.args]]\nname='c'\nvalue=''\nx=1\n", "[build-image]\nreference='r'\nextend=true\n",
		"[api]\nplatform='0.3'\nbuildpack='0.2'\n[apis.platform]\nsupported=['0.3','1']\ndeprecated=['0.3']\n", "[[build.args]]\nname='a'\nvalue='b'\n",
		"a=[[[[[[1]]]]]]", "\"\" = 1\n", "x = \"\\u0000\"", "command = 1", "[[processes]]\ncommand=1\n[[processes.command]]\n", "\xff",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for name, read := range readers {
			v, err := read([]byte(body), name)
			if err != nil {
				checkFault(t, name, body, err)
				continue
			}
			if !written(name) {
				continue
			}
			b, err := encode.TOML(v)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			again, err := read(b, name)
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, b)
				continue
			}
			if diff := cmp.Diff(v, again, cmpopts.EquateEmpty(), cmpopts.EquateNaNs(), cmp.AllowUnexported(localTime{})); diff != "" {
				t.Errorf("%s reads back as another: %s\n%s", name, diff, b)
			}
			if b2, err := encode.TOML(again); err != nil || string(b2) != string(b) {
				t.Errorf("%s: not stable\n%s\n%s", name, b, b2)
			}
		}
		vars, err := ReadExecD([]byte(body), "exec.d")
		if err != nil {
			checkFault(t, "exec.d", body, err)
		}
		for name, value := range vars {
			if name == "" || strings.ContainsAny(name+value, "\x00") || strings.Contains(name, "=") {
				t.Errorf("%q=%q", name, value)
			}
		}
	})
}

// No label makes a reader panic; faults name the label; what was read is written
// and read the same, and survives the way through analyzed.toml.
func FuzzLabels(f *testing.F) {
	for _, seed := range []string{
		`{"app":[{"sha":"sha256:a"}],"sbom":{"sha":"s"},"config":{"sha":""},"launcher":{"sha":""},"buildpacks":[{"key":"a","version":"1","layers":{"l":{"sha":"x","data":{"n":1,"f":1.5,"t":[null,{"a":"b"}]},"build":false,"launch":true,"cache":true}},"store":{"metadata":{"k":1e30}}}],"runImage":{"topLayer":"t","reference":"r"}}`,
		`{"processes":[{"type":"web","command":["a","b"],"args":[],"direct":true}],"buildpacks":[{"id":"a","version":"1","api":"0.10"}],"launcher":{"version":"1"}}`,
		`{"processes":[{"type":"web","command":"a","args":["b"],"direct":false}],"buildpacks":null}`,
		`{"sbom":{"sha":""},"buildpacks":[]}`, `{"buildpacks":[{"layers":null,"store":null}]}`, `{"buildpacks":[{"layers":{"":{"data":{"":-0,"x":9223372036854775808,"y":1e999}}}}]}`,
		"", "null", "[]", "{", "{}{}", `{"app":3}`, "\xff",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, label string) {
		check(t, label, LifecycleMetadataLabel, DecodeLifecycleMetadata, func(m LifecycleMetadata) (string, error) {
			b, err := encode.TOML(Analyzed{Metadata: m}.TOML())
			if err != nil {
				return "", err
			}
			a, err := ReadAnalyzed(b, "analyzed.toml")
			if err != nil {
				return "", err
			}
			return EncodeLabel(a.Metadata)
		})
		check(t, label, CacheMetadataLabel, DecodeCacheMetadata, func(m CacheMetadata) (string, error) { return EncodeLabel(m) })
		check(t, label, BuildMetadataLabel, DecodeBuildLabel, func(l BuildLabel) (string, error) { return EncodeBuildLabel(l, "0.15") })
	})
}

func check[T any](t *testing.T, label, name string, decode func(string) (T, error), through func(T) (string, error)) {
	t.Helper()
	v, err := decode(label)
	if err != nil {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name the label", err)
		}
		return
	}
	direct, err := EncodeLabel(v)
	if err != nil {
		t.Errorf("%s: %v", label, err)
		return
	}
	back, err := through(v)
	if err != nil {
		t.Errorf("%s: %v", label, err)
		return
	}
	if back != direct {
		t.Errorf("%s becomes\n%s and\n%s", label, direct, back)
	}
	if again, err := decode(back); err != nil {
		t.Errorf("%s: %v", back, err)
	} else if b, err := EncodeLabel(again); err != nil || b != direct {
		t.Errorf("%s reads back as %s (%v)", direct, b, err)
	}
}
