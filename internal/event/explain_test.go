package event

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func result(name, result, reason string) MemberResult {
	name, optional := strings.CutSuffix(name, "?")
	return MemberResult{Buildpack: name, Optional: optional, Result: result, Reason: reason}
}

func tried(members ...MemberResult) GroupTried { return GroupTried{Group: members} }

func TestExplain(t *testing.T) {
	disagree := tried(result("cpython@1", "pass", ""), result("pip@1", "pass", ""))
	disagree.Problems = []PlanProblem{{Buildpack: "pip@1", Name: "wheel"}, {Buildpack: "cpython@1", Name: "cpython", Unused: true}}
	disagree.Plan = "pip@1 requires wheel, ..."
	misplaced := tried(result("a@1", "pass", ""), result("b@1", "pass", ""), result("c@1?", "error", "boom"))
	misplaced.Problems = []PlanProblem{{Buildpack: "a@1", Name: "x", Misplaced: []string{"b@1"}}}
	misplaced.Plan = "a@1 requires x, ..."

	tests := []struct {
		name   string
		groups []GroupTried
		want   string
	}{
		{"nothing was tried", nil, ""},
		{"a group passed", []GroupTried{tried(result("a@1", "fail", "x")), {Passed: true}}, ""},
		{"a group without members says nothing", []GroupTried{tried(result("a@1", "fail", "x")), tried()},
			`group 1 (a@1):
  a@1 declined: x
  to make it pass: give the app what a@1 looks for`},
		{"in its own words",
			[]GroupTried{tried(result("pip@1", "fail", "no requirements.txt"), result("start@1", "pass", ""))},
			`group 1 (pip@1, start@1):
  pip@1 declined: no requirements.txt
  to make it pass: give the app what pip@1 looks for: requirements.txt`},
		{"the nearest miss first",
			[]GroupTried{
				tried(result("npm@1", "fail", "no package.json"), result("node@1", "fail", "no node")),
				tried(result("pip@1", "fail", "no requirements.txt"), result("cpython@1", "pass", "")),
			},
			`group 2 (pip@1, cpython@1) came nearest:
  pip@1 declined: no requirements.txt
  to make it pass: give the app what pip@1 looks for: requirements.txt
group 1 (npm@1, node@1):
  npm@1 declined: no package.json
  node@1 declined: no node
  to make it pass: give the app what npm@1 and node@1 look for: package.json`},
		{"more who want to take part are nearer",
			[]GroupTried{tried(result("a@1", "fail", "x")), tried(result("b@1", "fail", "y"), result("c@1", "pass", ""))},
			`group 2 (b@1, c@1) came nearest:
  b@1 declined: y
  to make it pass: give the app what b@1 looks for
group 1 (a@1):
  a@1 declined: x
  to make it pass: give the app what a@1 looks for`},
		{"an error", []GroupTried{tried(result("a@1", "error", "bin/detect exited with 7: \x1b[31mouch\x1b[0m"))},
			`group 1 (a@1):
  a@1 failed in an unexpected way: bin/detect exited with 7: ouch
  to make it pass: mend what a@1 ran into`},
		{"only optional members", []GroupTried{tried(result("a@1?", "fail", "x"), result("b@1?", "fail", "y"))},
			`group 1 (a@1, b@1):
  a@1 declined: x
  b@1 declined: y
  to make it pass: give the app what a@1 or b@1 looks for`},
		{"all skipped", []GroupTried{tried(result("a@1", "skipped", "it is for the execution environment test, not production"))},
			`group 1 (a@1):
  a@1 was skipped: it is for the execution environment test, not production
  to make it pass: build where a@1 takes part`},
		{"an optional failure is not in the way", []GroupTried{tried(result("a@1?", "fail", "x"), result("b@1", "fail", "y"))},
			`group 1 (a@1, b@1):
  b@1 declined: y
  to make it pass: give the app what b@1 looks for`},
		{"no agreement", []GroupTried{disagree},
			`group 1 (cpython@1, pip@1):
  plan: pip@1 requires wheel, which no buildpack of the group provides
  plan: cpython@1 provides cpython, which no buildpack of the group requires
  to make it pass: add a buildpack that provides wheel before pip@1; add a buildpack that requires cpython after cpython@1, or leave cpython@1 out`},
		{"no agreement in this order, and one left out", []GroupTried{misplaced},
			`group 1 (a@1, b@1, c@1):
  plan: a@1 requires x, which only b@1 provides, and that comes after it
  c@1 (optional) was left out: boom
  to make it pass: put b@1 before a@1`},
		{"everybody dropped by the plan",
			[]GroupTried{{Group: []MemberResult{result("a@1?", "skipped", "a@1 requires x, which no buildpack of the group provides")}, Plan: "nobody is left",
				Problems: []PlanProblem{{Buildpack: "a@1", Name: "x"}}}},
			`group 1 (a@1):
  plan: a@1 requires x, which no buildpack of the group provides
  to make it pass: add a buildpack that provides x before a@1`},
		{"a plan without values", []GroupTried{{Group: []MemberResult{result("a@1", "pass", "")}, Plan: "nobody is left"}},
			`group 1 (a@1):
  plan: nobody is left
  to make it pass: choose other buildpacks with --buildpack`},
		{"the same reason is told once",
			[]GroupTried{tried(result("a@1", "pass", ""), result("f@1", "fail", "x")), tried(result("b@1", "pass", ""), result("f@1", "fail", "x"))},
			`group 1 (a@1, f@1):
  f@1 declined: x
  to make it pass: give the app what f@1 looks for`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Explain(tt.groups)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestExplainIsBounded(t *testing.T) {
	var groups []GroupTried
	for i := range 500 {
		groups = append(groups, tried(result(fmt.Sprintf("b%d@1", i), "fail", "x")))
	}
	got := Explain(groups)
	if n := strings.Count(got, "to make it pass"); n != maxMisses {
		t.Errorf("%d groups are explained, want %d", n, maxMisses)
	}
	if want := "... and 490 more, which were further from passing"; !strings.HasSuffix(got, want) {
		t.Errorf("the end is %q", got[len(got)-80:])
	}
}

// Whoever blocks the nearest group is named, and nothing in the text can move
// a terminal's cursor.
func TestExplainNamesWhoIsInTheWay(t *testing.T) {
	word := rapid.StringOfN(rapid.RuneFrom([]rune("ab \n\r\x1b[m")), 0, 10, -1)
	member := rapid.Custom(func(t *rapid.T) MemberResult {
		return MemberResult{
			Buildpack: rapid.SampledFrom([]string{"a@1", "b@1", "c@1"}).Draw(t, "name"),
			Optional:  rapid.Bool().Draw(t, "optional"),
			Result:    rapid.SampledFrom([]string{"pass", "fail", "error", "skipped"}).Draw(t, "result"),
			Reason:    word.Draw(t, "reason"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var groups []GroupTried
		for range rapid.IntRange(1, 4).Draw(t, "groups") {
			groups = append(groups, tried(rapid.SliceOfN(member, 1, 4).Draw(t, "members")...))
		}
		got := Explain(groups)
		if !strings.HasPrefix(got, "group ") || !strings.Contains(got, "to make it pass: ") {
			t.Fatalf("got %q", got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return r < 0x20 && r != '\n' }); i >= 0 {
			t.Fatalf("control character in %q", got)
		}
		for _, g := range groups {
			for _, m := range g.Group {
				if !m.Optional && m.Result == "error" && !strings.Contains(got, m.Buildpack+" failed in an unexpected way: ") {
					t.Fatalf("%s is not named in\n%s", m.Buildpack, got)
				}
			}
		}
	})
}

func TestNamesIn(t *testing.T) {
	for text, want := range map[string][]string{
		"no requirements.txt in the app directory (BP_PIP_REQUIREMENT can name other files)": {"requirements.txt", "BP_PIP_REQUIREMENT"},
		"no Python file (*.py) in the app directory":                                         {"*.py"},
		`no "package.json", Procfile or .tool-versions.`:                                     {"package.json", "Procfile", ".tool-versions"},
		"set GOFLAGS_X=1; src/main.go is missing.":                                           {"GOFLAGS_X", "main.go"},
		"node 20.1.2 is too old; it wants v1.2, e.g. 3.x":                                    nil,
		"it gave no reason (bin/detect exited with 100 and printed nothing)":                 nil,
		"No such thing. Nothing at all":                                                      nil,
		"":                                                                                   nil,
	} {
		if diff := cmp.Diff(want, namesIn(text)); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
	if n := len(namesIn(strings.Repeat("ab.c ", 100))); n != maxNames {
		t.Errorf("%d names", n)
	}
}

// Misses are Explain in values.
func TestMisses(t *testing.T) {
	groups := []GroupTried{
		tried(result("npm@1", "fail", "no package.json"), result("node@1", "fail", "no node")),
		tried(result("pip@1", "fail", "no requirements.txt"), result("cpython@1", "pass", "")),
	}
	want := []Miss{
		{Group: 2, Blockers: []string{"pip@1"}, Names: []string{"requirements.txt"}, Remedy: "give the app what pip@1 looks for: requirements.txt"},
		{Group: 1, Blockers: []string{"npm@1", "node@1"}, Names: []string{"package.json"}, Remedy: "give the app what npm@1 and node@1 look for: package.json"},
	}
	if diff := cmp.Diff(want, Misses(groups)); diff != "" {
		t.Error(diff)
	}
	if got := Misses(append(groups, GroupTried{Passed: true})); got != nil {
		t.Errorf("%+v", got)
	}
}
