package encode

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/spec"
)

// What the lifecycle of Heroku's builders wrote at the end of 2022
// (buildpacks/lifecycle#945), and what an exporter reported in 2025 (#1498).
func TestAsItWasSeen(t *testing.T) {
	m := spec.BuildMetadata{
		DefaultProcessType: "web",
		Buildpacks:         []spec.GroupElement{{ID: "heroku/python", Version: "0.0.0", API: "0.4"}, {ID: "heroku/procfile", Version: "2.0.0", API: "0.8", Homepage: "https://github.com/heroku/procfile-cnb"}},
		Processes:          []spec.Process{{Type: "web", Command: []string{"foo"}, BuildpackID: "heroku/procfile"}},
	}
	const metadata = `buildpack-default-process-type = "web"

[[buildpacks]]
  id = "heroku/python"
  version = "0.0.0"
  api = "0.4"

[[buildpacks]]
  id = "heroku/procfile"
  version = "2.0.0"
  api = "0.8"
  homepage = "https://github.com/heroku/procfile-cnb"

[[processes]]
  type = "web"
  command = "foo"
  args = []
  direct = false
  buildpack-id = "heroku/procfile"
`
	report := spec.Report{Image: spec.ReportImage{Tags: []string{"registry.example.com:3000/app"}, Digest: "sha256:30d5", ManifestSize: 3020}}
	for want, doc := range map[string]any{
		metadata: m.TOML("0.9"),
		"[image]\n  tags = [\"registry.example.com:3000/app\"]\n  digest = \"sha256:30d5\"\n  manifest-size = 3020\n": report,
	} {
		got, err := TOML(doc)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, string(got)); d != "" {
			t.Error(d)
		}
	}
}

// TestReadsBack: whatever a buildpack remembers, the reader that package spec
// has finds it again.
func TestReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		doc := table(3).Draw(t, "document")
		b, err := TOML(doc)
		if err != nil {
			t.Fatal(err)
		}
		again, err := TOML(doc)
		if err != nil || string(again) != string(b) {
			t.Fatalf("twice: %v\n%s\n%s", err, b, again)
		}
		got := map[string]any{}
		if err := toml.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		if d := cmp.Diff(doc, got); d != "" {
			t.Fatalf("%s\n%s", d, b)
		}
	})
}

// table draws a table of everything that TOML has and JSON, too.
func table(depth int) *rapid.Generator[map[string]any] {
	text := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.SampledFrom([]rune("'\"\\ ab=[]#.\n\t\x00\x7fé")), 0, 12, -1))
	return rapid.MapOfN(text, rapid.Custom(func(r *rapid.T) any {
		kinds := 7
		if depth == 0 {
			kinds = 4
		}
		switch rapid.IntRange(0, kinds-1).Draw(r, "kind") {
		case 0:
			return text.Draw(r, "string")
		case 1:
			return rapid.Int64().Draw(r, "int")
		case 2:
			return rapid.Bool().Draw(r, "bool")
		case 3:
			return rapid.Float64().Draw(r, "float")
		case 4:
			list := []any{}
			for _, s := range rapid.SliceOf(text).Draw(r, "list") {
				list = append(list, s)
			}
			return list
		case 5:
			return append(rapid.SampledFrom([][]any{nil, {true}}).Draw(r, "before"), table(depth-1).Draw(r, "in list"))
		}
		return table(depth-1).Draw(r, "table")
	}), 0, 4)
}

func TestRefuses(t *testing.T) {
	for _, v := range []any{map[string]any{"a": []any{nil}}, map[int]string{1: "a"}, map[string]any{"a": func() {}}} {
		if b, err := TOML(v); err == nil {
			t.Errorf("%v is\n%s", v, b)
		}
	}
	if b, err := TOML(map[string]any{"a": nil, "b": map[string]any(nil)}); err != nil || len(b) > 0 {
		t.Errorf("nothing is %q %v", b, err)
	}
}
