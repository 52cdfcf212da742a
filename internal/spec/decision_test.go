package spec

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const decisionAsJSON = `{
  "passed": true, "unknown": [{"group": 1}],
  "group": [
    {"id": "a/x", "version": "1.0", "api": "0.10"},
    {"id": "a/y", "version": "2", "api": "0.10", "homepage": "h"}
  ],
  "groupExtensions": [{"id": "e", "version": "1", "api": "0.12"}],
  "entries": [
    {"name": "tool", "providers": ["a/x@1.0", "e@1"],
     "requires": [{"by": "a/y@2", "metadata": {"version": "3", "n": 3, "f": 1.5, "l": [1, {"x": true}]}}, {"by": ""}]}
  ]
}
`

const decisionAsTOML = `[[group]]
id = "a/x"
version = "1.0"
api = "0.10"
[[group]]
id = "a/y"
version = "2"
api = "0.10"
homepage = "h"
[[group-extensions]]
id = "e"
version = "1"
api = "0.12"
[[entries]]
[[entries.providers]]
id = "a/x"
version = "1.0"
[[entries.providers]]
id = "e"
version = "1"
extension = true
[[entries.requires]]
name = "tool"
[entries.requires.metadata]
version = "3"
n = 3
f = 1.5
l = [1, {x = true}]
[[entries.requires]]
name = "tool"
`

// Both forms of a decision say the same.
func TestReadDecision(t *testing.T) {
	want := Decision{
		Group: Group{
			Group:           []GroupElement{{ID: "a/x", Version: "1.0", API: "0.10"}, {ID: "a/y", Version: "2", API: "0.10", Homepage: "h"}},
			GroupExtensions: []GroupElement{{ID: "e", Version: "1", API: "0.12", Extension: true}},
		},
		Plan: Plan{Entries: []PlanEntry{{
			Providers: []PlanProvider{{ID: "a/x", Version: "1.0"}, {ID: "e", Version: "1", Extension: true}},
			Requires: []Require{
				{Name: "tool", Metadata: map[string]any{"version": "3", "n": int64(3), "f": 1.5, "l": []any{int64(1), map[string]any{"x": true}}}},
				{Name: "tool"},
			},
		}}},
	}
	for name, body := range map[string]string{"d.json": decisionAsJSON, "d.toml": decisionAsTOML, "with a mark": "\ufeff" + decisionAsJSON} {
		got, err := ReadDecision([]byte(body), name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Decision{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReadDecisionFaults(t *testing.T) {
	change := func(body, from, to string) string {
		if !strings.Contains(body, from) {
			t.Fatalf("%q is not in\n%s", from, body)
		}
		return strings.Replace(body, from, to, 1)
	}
	for _, x := range []struct{ name, body, want string }{
		{"JSON: no version", change(decisionAsJSON, `"version": "2", `, ""), "f:5:5: group[1].version: "},
		{"JSON: no api", change(decisionAsJSON, `, "api": "0.10"}`, "}"), "f:4:5: group[0].api: must be set"},
		{"JSON: bad id", change(decisionAsJSON, `"a/x"`, `"a x"`), "f:4:6: group[0].id: "},
		{"JSON: of the wrong type", change(decisionAsJSON, `"1.0"`, `1`), "f:4:"},
		{"JSON: broken", change(decisionAsJSON, `"0.10"},`, `"0.10"`), "f:5:5: invalid character"},
		{"JSON: cut off", decisionAsJSON[:200], "has no end"},
		{"JSON: two", decisionAsJSON + "{}", "something follows"},
		{"JSON: empty", "{}", "f: group: must have a buildpack"},
		{"JSON: twice", change(decisionAsJSON, `"id": "a/y", "version": "2"`, `"id": "a/x", "version": "1.0"`), "f:5:6: group[1].id: a/x@1.0 stands in the group twice"},
		{"JSON: provider", change(decisionAsJSON, `"e@1"`, `"gone@1"`), "f:9:47: entries[0].providers[1]: gone@1 is not in the group"},
		{"JSON: requirer", change(decisionAsJSON, `"by": "a/y@2"`, `"by": "gone@2"`), "f:10:20: entries[0].requires[0].by: gone@2 is not in the group"},
		{"JSON: no name", change(decisionAsJSON, `"name": "tool", `, ""), "f:9:5: entries[0].name: must be set"},
		{"JSON: no provider", change(decisionAsJSON, `"providers": ["a/x@1.0", "e@1"],`, ""), "entries[0].providers: must have a provider"},
		{"JSON: null", change(decisionAsJSON, `"n": 3`, `"n": null`), "entries[0].requires[0].metadata: "},
		{"TOML: no api", change(decisionAsTOML, "api = \"0.10\"\n", ""), "f:1:3: group[0].api: must be set"},
		{"TOML: provider", change(decisionAsTOML, "[[entries.providers]]\nid = \"e\"", "[[entries.providers]]\nid = \"gone\""), "f:18:11: entries[0].providers[1]: gone@1 is not in the group"},
		{"TOML: no require", "[[group]]\nid='a'\nversion='1'\napi='0.10'\n[[entries]]\n[[entries.providers]]\nid='a'\nversion='1'\n", "entries[0].requires"},
		{"TOML: broken", "[[group", "f:1:"},
		{"nothing", "", "f: group: must have a buildpack"},
	} {
		_, err := ReadDecision([]byte(x.body), "f")
		if _, ok := errors.AsType[*DocumentError](err); !ok || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %s", x.name, err, x.want)
		}
	}
	d, err := ReadDecision([]byte(decisionAsJSON), "f")
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Fault("x", true, 0).Error(); got != "f:7:24: groupExtensions[0].id: x" {
		t.Error(got)
	}
}

// Whatever the document is: a decision that holds together, or an error that
// says where.
func FuzzDecision(f *testing.F) {
	for _, seed := range []string{decisionAsJSON, decisionAsTOML, "{", "{}", `{"group":[{"id":"a","version":"1","api":"0.10"}],"entries":[{"name":"x","providers":["@"],"requires":[{"metadata":{"a":1e999}}]}]}`, "[[group]]", `{"a":[[[[]]]]`, "{\"\xff\":1}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		d, err := ReadDecision([]byte(body), "f")
		if err != nil {
			if fault, ok := errors.AsType[*DocumentError](err); !ok || fault.File != "f" || fault.Line < 0 || fault.Line > strings.Count(body, "\n")+1 {
				t.Errorf("%#v", err)
			}
			return
		}
		if len(d.Group.Group) == 0 {
			t.Error("nobody takes part")
		}
		for _, e := range d.Plan.Entries {
			if len(e.Providers) == 0 || len(e.Requires) == 0 {
				t.Errorf("%+v", e)
			}
		}
		if _, err := json.Marshal(d.Fault("x", false, 0)); err != nil {
			t.Error(err)
		}
	})
}
