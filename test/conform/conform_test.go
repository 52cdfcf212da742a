package conform

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCovers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KILN_CONFORMANCE", dir)
	t.Run("passing", func(t *testing.T) { Covers(t, 1, 208) })
	t.Run("skipped", func(t *testing.T) {
		probe := &skipping{TB: t}
		Covers(probe, 2)
	})
	list, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(list) != 1 {
		t.Fatalf("files %v, error %v", list, err)
	}
	b, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{`"requirement":1,"test":"test/conform.TestCovers/passing","passed":true`, `"requirement":208`} {
		if !strings.Contains(got, want) {
			t.Errorf("recorded\n%s\nwithout %s", got, want)
		}
	}
	if strings.Contains(got, `"requirement":2,`) {
		t.Errorf("a skipped test covers something:\n%s", got)
	}
}

// skipping is a test that was skipped.
type skipping struct{ testing.TB }

func (*skipping) Skipped() bool { return true }

func TestRequirements(t *testing.T) {
	all, err := Requirements()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 208 {
		t.Errorf("%d requirements, want 208", len(all))
	}
}
