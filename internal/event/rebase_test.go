package event

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRebasedText(t *testing.T) {
	plan := Rebased{
		Name: "reg/app:1", Result: "planned", Reference: "reg/run@sha256:1", After: "sha256:2",
		Removed: []RebaseLayer{{Size: 1e6}, {Size: 2e6}}, Labels: []Change{{"io.x", "a\x1b[31m", "b"}, {"new", "", strings.Repeat("y", 200)}, {"old", "v", ""}},
		Packages: []Change{{"openssl", "3.0.11-1", "3.0.15-1"}},
	}
	done := plan
	done.Result = "rebased"
	unknown := plan
	unknown.NoPackages, unknown.Labels, unknown.Packages = "no list of dpkg's", nil, nil
	got := render(Style{}, plan, unknown, done, Rebased{Name: "b", Result: "unchanged"}, Rebased{Name: "c", Result: "failed", Error: "because"})
	want := `would rebase reg/app:1
  onto      reg/run@sha256:1
  layers    2 (3.0 MB) out, 0 in
  packages  1 changes
    openssl 3.0.11-1 -> 3.0.15-1
  labels    3 change
    io.x a -> b
    new ` + strings.Repeat("y", 117) + `... is new
    old v is gone
would rebase reg/app:1
  onto      reg/run@sha256:1
  layers    2 (3.0 MB) out, 0 in
  packages  not known: no list of dpkg's
  labels    none changes
rebased    reg/app:1  sha256:2
unchanged  b
failed     c
`
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := render(Style{Quiet: true}, plan, done); got != "" {
		t.Errorf("quiet: %q", got)
	}
	if got := render(Style{Verbose: true}, done); !strings.Contains(got, "  labels    3 change\n") || strings.Contains(got, "packages") {
		t.Errorf("verbose: %q", got)
	}
}
