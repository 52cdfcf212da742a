// Command table makes docs/conformance.md of what the tests left in a
// directory: requirement, tests, state. -write writes it; -open only says which
// requirements are neither held by a passing test nor answered; -check fails if
// there are such, or, with results of root and of an ordinary user, when the
// file is not up to date.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/test/conform"
)

func main() {
	results := flag.String("results", "", "the `directory` that KILN_CONFORMANCE named")
	file := flag.String("file", "docs/conformance.md", "the table")
	write := flag.Bool("write", false, "write the table")
	flag.Bool("open", false, "say what is open (default)")
	check := flag.Bool("check", false, "fail unless all holds and the table is up to date")
	flag.Parse()
	if err := run(*results, *file, *write, *check); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(dir, file string, write, check bool) error {
	all, err := conform.Requirements()
	if err != nil {
		return err
	}
	found, err := read(dir)
	if err != nil {
		return err
	}
	table, open := render(all, found)
	fmt.Printf("%d of %d requirements hold or are answered", len(all)-len(open), len(all))
	if len(open) > 0 {
		fmt.Printf("; open: %v", open)
	}
	fmt.Println()
	if write {
		return os.WriteFile(file, table, 0o644)
	}
	if !check {
		return nil
	}
	if len(open) > 0 {
		return fmt.Errorf("no passing test covers %d requirements, and no answer says why: %v", len(open), open)
	}
	if !found.root || !found.user {
		return nil // half of the tests: the table is of both
	}
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Equal(old, table) {
		return fmt.Errorf("%s is not what the tests say: make conformance", file)
	}
	return nil
}

// outcomes are the tests of each requirement, and whether all of their runs passed.
type outcomes struct {
	tests      map[int]map[string]bool
	root, user bool
}

func read(dir string) (outcomes, error) {
	o := outcomes{tests: map[int]map[string]bool{}}
	list, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return o, err
	}
	if len(list) == 0 {
		return o, fmt.Errorf("no results in %q: run the tests with KILN_CONFORMANCE set to it", dir)
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		if err != nil {
			return o, err
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		for lines.Scan() {
			var r conform.Result
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return o, fmt.Errorf("%s: %w", name, err)
			}
			tests := o.tests[r.Requirement]
			if tests == nil {
				tests = map[string]bool{}
				o.tests[r.Requirement] = tests
			}
			passed, seen := tests[r.Test]
			tests[r.Test] = r.Passed && (passed || !seen)
			o.root, o.user = o.root || r.Root, o.user || !r.Root
		}
		if err := lines.Err(); err != nil {
			return o, fmt.Errorf("%s: %w", name, err)
		}
	}
	return o, nil
}

// render is the table, and the numbers of what neither holds nor is answered.
func render(all []conform.Requirement, found outcomes) (table []byte, open []int) {
	var b bytes.Buffer
	b.WriteString("# Conformance\n\n<!-- Made by make conformance from the results of the tests. -->\n\n" +
		"What the specifications (and the de-facto contract of the reference lifecycle) ask of a lifecycle and a\n" +
		"platform, the tests that fail when it does not hold, and whether they passed, as root and as an ordinary user.\n\n" +
		"| # | phase | requirement | tests | state |\n|---|---|---|---|---|\n")
	for _, r := range all {
		tests := slices.Sorted(maps.Keys(found.tests[r.Number]))
		state := "open"
		if len(tests) > 0 {
			state = "holds"
		}
		for _, t := range tests {
			if !found.tests[r.Number][t] {
				state = "fails"
			}
		}
		if r.Answer != "" && state != "fails" {
			state = "answered: " + r.Answer
		}
		if state == "open" || state == "fails" {
			open = append(open, r.Number)
		}
		for i := range tests {
			tests[i] = "`" + tests[i] + "`"
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", r.Number, r.Phase, cell(r.Text), cell(strings.Join(tests, " ")), cell(state))
	}
	return b.Bytes(), open
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
