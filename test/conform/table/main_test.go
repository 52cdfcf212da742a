package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/test/conform"
)

// results writes a directory of them, as tests do.
func results(t *testing.T, list ...conform.Result) string {
	t.Helper()
	dir := t.TempDir()
	var lines strings.Builder
	for _, r := range list {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(b, '\n'))
	}
	if err := os.WriteFile(filepath.Join(dir, "1.jsonl"), []byte(lines.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// everything is a passing result of each requirement that has no answer.
func everything(t *testing.T, as ...bool) (list []conform.Result) {
	t.Helper()
	all, err := conform.Requirements()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range as {
		for _, r := range all {
			if r.Answer == "" {
				list = append(list, conform.Result{Requirement: r.Number, Test: "a.TestAll/with|bar", Passed: true, Root: root})
			}
		}
	}
	return list
}

const root, user = true, false

// The table is checked whole after both runs, and for the half that ran after one.
func TestCheck(t *testing.T) {
	only := func(root bool, name string) conform.Result {
		return conform.Result{Requirement: 11, Test: name, Passed: true, Root: root}
	}
	both := slices.Clip(append(everything(t, root, user), only(root, "a.TestRoot"), only(user, "a.TestUser")))
	file := filepath.Join(t.TempDir(), "conformance.md")
	if err := run(results(t, both...), file, true, false); err != nil {
		t.Fatal(err)
	}
	failing := only(user, "a.TestUser")
	failing.Passed = false
	for name, x := range map[string]struct {
		results []conform.Result
		say     string
	}{
		"both":                    {both, ""},
		"in another order":        {append(everything(t, user, root), only(user, "a.TestUser"), only(root, "a.TestRoot")), ""},
		"root alone":              {append(everything(t, root), only(root, "a.TestRoot")), ""},
		"a user alone":            {append(everything(t, user), only(user, "a.TestUser")), ""},
		"a user's test is gone":   {everything(t, user), "make conformance"},
		"a new test of a user":    {append(everything(t, user), only(user, "a.TestUser"), only(user, "a.TestNew")), "a.TestNew"},
		"root's test as a user":   {append(everything(t, user), only(user, "a.TestUser"), only(user, "a.TestRoot")), ""},
		"a test of both is gone":  {append(everything(t, user)[1:], only(user, "a.TestUser")), "[1]"},
		"a test of both is new":   {append(both, only(root, "a.TestNew"), only(user, "a.TestNew")), "a.TestNew"},
		"what failed":             {append(everything(t, root, user), only(root, "a.TestRoot"), failing), "[11]"},
		"passed, and then failed": {append(both, failing), "[11]"},
		"failed, and then passed": {append([]conform.Result{failing}, both...), "[11]"},
		"nothing":                 {nil, "no passing test"},
	} {
		err := run(results(t, x.results...), file, false, true)
		if x.say == "" && err != nil || x.say != "" && (err == nil || !strings.Contains(err.Error(), x.say)) {
			t.Errorf("%s: %v, want %q", name, err, x.say)
		}
	}
	if err := run(t.TempDir(), file, false, true); err == nil {
		t.Error("there are no results at all, and that is no error")
	}
	if err := run(results(t, both...), filepath.Join(t.TempDir(), "none.md"), false, true); err == nil || !strings.Contains(err.Error(), "make conformance") {
		t.Errorf("there is no table: %v", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"`a.TestAll/with\\|bar`<br>`a.TestRoot` (root)<br>`a.TestUser` (user) | holds |", "| 201 | distribution |", "| answered: "} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in the table", want)
		}
	}
}
