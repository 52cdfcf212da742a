// Command table makes docs/conformance.md of what the tests left in a
// directory: requirement, tests, state. -write writes it; -open only says which
// requirements are neither held by a passing test nor answered; -check fails if
// there are such, or when the file is not what the tests say. Results of an
// ordinary user alone are held against that user's part of the file.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	found.complete(old)
	table, open := render(all, found)
	fmt.Printf("%d of %d requirements hold or are answered", len(all)-len(open), len(all))
	if len(open) > 0 {
		fmt.Printf("; open: %v", open)
	}
	fmt.Println()
	switch {
	case write:
		return os.WriteFile(file, table, 0o644)
	case !check:
		return nil
	case len(open) > 0:
		return fmt.Errorf("no passing test covers %d requirements, and no answer says why: %v", len(open), open)
	case !bytes.Equal(old, table):
		return fmt.Errorf("%s is not what the tests say (make conformance): %s", file, difference(old, table))
	}
	return nil
}

// difference is the first line in which two tables differ.
func difference(old, table []byte) string {
	have, want := strings.Split(string(old), "\n"), strings.Split(string(table), "\n")
	for i, line := range want {
		if i >= len(have) || have[i] != line {
			return "want " + line
		}
	}
	return "it has more lines"
}

// outcome is what became of one test: whether all of its runs passed, and who
// it ran as.
type outcome struct{ passed, root, user bool }

// Marks of tests that only run as one of the two.
const onlyRoot, onlyUser = " (root)", " (user)"

func (o outcome) mark() string {
	switch {
	case o.root && o.user:
		return ""
	case o.root:
		return onlyRoot
	}
	return onlyUser
}

// outcomes are the tests of each requirement.
type outcomes struct {
	tests      map[int]map[string]outcome
	root, user bool
}

func (o *outcomes) of(requirement int) map[string]outcome {
	if o.tests[requirement] == nil {
		o.tests[requirement] = map[string]outcome{}
	}
	return o.tests[requirement]
}

func read(dir string) (outcomes, error) {
	o := outcomes{tests: map[int]map[string]outcome{}}
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
			t, seen := o.of(r.Requirement)[r.Test]
			o.of(r.Requirement)[r.Test] = outcome{r.Passed && (t.passed || !seen), t.root || r.Root, t.user || !r.Root}
			o.root, o.user = o.root || r.Root, o.user || !r.Root
		}
		if err := lines.Err(); err != nil {
			return o, fmt.Errorf("%s: %w", name, err)
		}
	}
	return o, nil
}

var (
	row  = regexp.MustCompile(`^\| (\d+) \|`)
	test = regexp.MustCompile("`([^`]+)`( \\((?:root|user)\\))?")
)

// complete adds to the results of one user what table says of the other, who
// did not run the tests this time: in a table of half of the tests, the other
// half would be missing.
func (o *outcomes) complete(table []byte) {
	if o.root && o.user {
		return
	}
	for line := range strings.Lines(string(table)) {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		number, _ := strconv.Atoi(m[1]) // digits
		for _, m := range test.FindAllStringSubmatch(line, -1) {
			name, mark := strings.ReplaceAll(m[1], `\|`, "|"), m[2]
			t, ran := o.of(number)[name]
			switch {
			case ran && mark == "":
				t.root, t.user = true, true
			case mark == onlyRoot && o.user: // if it ran, this user can do more than that of both runs
				t = outcome{passed: t.passed || !ran, root: true}
			case mark == onlyUser && o.root:
				t = outcome{passed: t.passed || !ran, user: true}
			default:
				continue
			}
			o.of(number)[name] = t
		}
	}
}

// render is the table, and the numbers of what neither holds nor is answered.
func render(all []conform.Requirement, found outcomes) (table []byte, open []int) {
	var rows bytes.Buffer
	held := 0
	for _, r := range all {
		tests := found.tests[r.Number]
		state := stateOf(r, tests)
		switch state {
		case "open", "fails":
			open = append(open, r.Number)
		case "holds":
			held++
		}
		var names []string
		for _, name := range slices.Sorted(maps.Keys(tests)) {
			names = append(names, "`"+name+"`"+tests[name].mark())
		}
		fmt.Fprintf(&rows, "| %d | %s | %s | %s | %s |\n", r.Number, r.Phase, cell(r.Text), cell(strings.Join(names, "<br>")), cell(state))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Conformance\n\n<!-- Made by make conformance from the results of the tests. -->\n\n"+
		"What the specifications (and the de-facto contract of the reference lifecycle) ask of a lifecycle and a\n"+
		"platform, the tests that fail when it does not hold, and whether they passed, as root and as an ordinary\n"+
		"user; (root) and (user) mark tests that only run as one of them. `make test` fails when this table is not\n"+
		"what the tests say; `make mutants` plants faults and wants these tests to find them.\n\n"+
		"%d of %d requirements hold; an answer says why where kiln does otherwise.\n\n"+
		"| # | phase | requirement | tests | state |\n|---|---|---|---|---|\n", held, len(all))
	b.Write(rows.Bytes())
	return b.Bytes(), open
}

// stateOf says whether a requirement holds. A test that fails counts more than
// an answer.
func stateOf(r conform.Requirement, tests map[string]outcome) string {
	for _, t := range tests {
		if !t.passed {
			return "fails"
		}
	}
	switch {
	case r.Answer != "":
		return "answered: " + r.Answer
	case len(tests) == 0:
		return "open"
	}
	return "holds"
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
