package lifecycle

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// specified reads what the requirements say of the inputs.
func specified(t *testing.T) []Row {
	t.Helper()
	b, err := os.ReadFile("testdata/specified.txt")
	if err != nil {
		t.Fatal(err)
	}
	var rows []Row
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, ";")
		if len(f) < 6 || len(f) > 7 {
			t.Fatalf("%q has %d columns", line, len(f))
		}
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		r := Row{Flag: f[1], Env: f[2], Default: f[3], Since: f[4], Until: f[5], Phases: strings.Fields(f[0])}
		if f[0] == "*" {
			r.Phases = Phases
		}
		rows = append(rows, r)
	}
	if len(rows) < 100 {
		t.Fatalf("only %d inputs", len(rows))
	}
	return rows
}

// For every command and version of the Platform API the parser has what the
// requirements say, with its variable and default, and nothing else.
func TestSpecifiedInterface(t *testing.T) {
	conform.Covers(t, 13)
	list := func(rows []Row, phase, api string) (all []string) {
		for _, r := range rows {
			if slices.Contains(r.Phases, phase) && spec.InRange(api, r.Since, r.Until) {
				all = append(all, fmt.Sprintf("%s | %s | %s", r.Flag, r.Env, r.Default))
			}
		}
		slices.Sort(all)
		return all
	}
	want := specified(t)
	for _, phase := range Phases {
		for _, api := range spec.PlatformAPIs {
			if diff := cmp.Diff(list(want, phase, api), list(table, phase, api)); diff != "" {
				t.Errorf("%s at %s (-requirements +table):\n%s", phase, api, diff)
				break
			}
		}
	}
}
