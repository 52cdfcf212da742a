package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
)

func TestPlanText(t *testing.T) {
	a := event.Detected{Buildpack: "a@1", Output: "hello\n", Alternatives: []event.Alternative{{Provides: []string{"x"}}, {Provides: []string{"y"}, Requires: []string{"y"}}}}
	d := platform.Detection{
		Builder: "b\x1b[31m", RunImage: "run", ExtendBuild: true, ExtendRun: true, Passed: true,
		Group: []spec.GroupElement{{ID: "a", Version: "1"}}, GroupExtensions: []spec.GroupElement{{ID: "a", Version: "1", Extension: true}},
		Entries: []event.PlanEntry{{Name: "y", Providers: []string{"a@1"}, Requires: []event.Requirement{{By: "a@1"}, {By: "a@1"}}}},
		Groups: []event.GroupTried{
			{Group: []event.MemberResult{{Buildpack: "a@1", Result: "pass"}, {Buildpack: "c@1", Result: "fail", Reason: "no c\nd"}}},
			{Passed: true, Group: []event.MemberResult{{Buildpack: "a@1", Result: "pass", Extension: true}, {Buildpack: "a@1", Result: "pass", Alternative: 2}}},
		},
		Buildpacks: []event.Detected{a, {Buildpack: "c@1", ExitCode: 100}, {Buildpack: "a@1", Extension: true, Alternatives: []event.Alternative{{}}}},
	}
	want := `builder    b
run image  run

Groups tried
|- group 1 failed
|  |- a@1 takes part
|  |  |- 1. provides x
|  |  '- 2. provides y; requires y
|  '- c@1 declined (exit code 100): no cd
'- group 2 passed
   |- extension a@1 takes part
   '- a@1 takes part
      |- 1. provides x
      '- 2. provides y; requires y (taken)

Build plan
'- y: a@1 provides it for a@1

The build
|- extend the build image
|  '- a@1
|- run the buildpacks
|  '- a@1
|- extend the run image
|  '- a@1
'- put the app on run
`
	if diff := cmp.Diff(want, planText(d, false)); diff != "" {
		t.Error(diff)
	}
	if got := planText(d, true); !strings.Contains(got, "'- said: hello\n") {
		t.Error(got)
	}
}

// An order can stand for thousands of groups: the first ones are shown, and the
// one that passed.
func TestPlanTextIsBounded(t *testing.T) {
	d := platform.Detection{Passed: true}
	for i := range 500 {
		d.Groups = append(d.Groups, event.GroupTried{Group: []event.MemberResult{{Buildpack: fmt.Sprintf("b%d@1", i), Result: "fail"}}, Passed: i == 499})
	}
	got := planText(d, false)
	if strings.Count(got, "- group ") != maxGroupsShown || !strings.Contains(got, "- ... 480 more that failed") || !strings.Contains(got, "'- group 500 passed") {
		t.Error(got)
	}
	if got := planText(d, true); strings.Count(got, "- group ") != 500 {
		t.Errorf("verbose:\n%s", got)
	}
}
