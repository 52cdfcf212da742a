package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/test/conform"
)

const root = "../../.."

// Every mutant can be planted in the sources as they are now.
func TestMutantsApply(t *testing.T) {
	mutants, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	planted := map[int]bool{}
	for _, m := range mutants {
		for _, n := range m.requirements {
			planted[n] = true
		}
		if _, err := m.apply(root); err != nil {
			t.Error(err)
		}
		tests, err := filepath.Glob(filepath.Join(root, m.pkg, "*_test.go"))
		if err != nil || len(tests) == 0 {
			t.Errorf("%s: %s has no tests", m, m.pkg)
		}
	}
	all, err := conform.Requirements()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if !planted[r.Number] && r.Answer == "" {
			t.Errorf("requirement %d has no mutant: nothing shows that its tests can fail (%s)", r.Number, r.Text)
		}
	}
}

func TestApply(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.go"), []byte("a\n\tb\n\tc\nb\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	planted, err := mutant{file: "f.go", old: "b\nc\n", new: "x\n"}.apply(dir)
	if err != nil || string(planted) != "a\nx\nb\n" {
		t.Errorf("%q, %v", planted, err)
	}
	for old, want := range map[string]string{"b\n": "twice", "z\n": "not in the file", "": "no old text"} {
		if _, err := (mutant{file: "f.go", old: old}).apply(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", old, err)
		}
	}
}
