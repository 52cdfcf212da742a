package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
)

// A name of - stands for those of standard input.
func TestImageNames(t *testing.T) {
	for text, want := range map[string]string{
		"a\n b \n\n# no\r\nc:1\r\n": "x a b c:1 y",
		"":                          "x y",
		"no-newline":                "x no-newline y",
	} {
		file := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		names, err := (&kiln{stdin: f}).imageNames([]string{"x", "-", "y"})
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%q: %q (%v), want %s", text, names, err, want)
		}
		if text == "" {
			names, err := (&kiln{stdin: f}).imageNames([]string{"-"})
			if exitCode(err) != exitInvalid || spec.HintOf(err) == "" {
				t.Errorf("no names: %q, %v", names, err)
			}
		}
		f.Close()
	}
}

// Each image has a file of its own, whatever its name is.
func TestReportFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "reports")
	result := func(name string, err error) platform.Rebased {
		return platform.Rebased{Rebased: event.Rebased{Name: name}, Report: spec.Report{Image: spec.ReportImage{Tags: []string{name}}}, Err: err}
	}
	names := []string{"reg.example:5000/a/b:1", "reg.example_5000/a_b:1", "reg.example:5000/a:b/1", "../../etc", "oci:/tmp/x"}
	var results []platform.Rebased
	for _, n := range names {
		results = append(results, result(n, nil))
	}
	results = append(results, result("failed", os.ErrInvalid))
	if err := writeReports(dir, results, true); err != nil {
		t.Fatal(err)
	}
	var files []string
	found, err := filepath.Glob(dir + "/*/report.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		files = append(files, strings.TrimPrefix(filepath.Dir(f), dir+"/"))
	}
	slices.Sort(files)
	want := []string{"_.._etc", "oci__tmp_x", "reg.example_5000_a_b_1", "reg.example_5000_a_b_1-2", "reg.example_5000_a_b_1-3"}
	if d := cmp.Diff(want, files); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if err := writeReports(dir, results[:1], false); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/report.toml"); err != nil || !bytes.Contains(b, []byte(names[0])) {
		t.Errorf("%s %v", b, err)
	}
	if err := writeReports("/proc/nowhere", results, false); exitCode(err) != exitInvalid || spec.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}
