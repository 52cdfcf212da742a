package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/test/conform"
)

// mutant is one fault: a change of a source file under which the tests that
// cover some requirements must fail.
type mutant struct {
	line         int // where it stands in the list
	requirements []int
	pkg          string // the package of the covering tests, from the module's root
	run          string // go test -run
	file         string // from the module's root
	old, new     string
}

// String names the mutant.
func (m mutant) String() string {
	return fmt.Sprintf("%s:%d (requirement %s, %s)", list, m.line, join(m.requirements), m.file)
}

func join(numbers []int) string {
	var words []string
	for _, n := range numbers {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, ",")
}

// parse reads the list. Mutants stand in paragraphs:
//
//	REQUIREMENT[,REQUIREMENT...] PACKAGE RUN
//	FILE
//	- a line as it is
//	+ a line instead
//
// Lines that begin with "#" are comments.
func parse(text string) ([]mutant, error) {
	all, err := conform.Requirements()
	if err != nil {
		return nil, err
	}
	var mutants []mutant
	var m *mutant
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSuffix(line, "\n")
		fault := func(why string) ([]mutant, error) { return nil, fmt.Errorf("%s:%d: %s: %q", list, number, why, line) }
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			m = nil
		case m == nil:
			words := strings.Fields(line)
			if len(words) != 3 {
				return fault("want requirements, package and -run")
			}
			mutants = append(mutants, mutant{line: number, pkg: words[1], run: words[2]})
			m = &mutants[len(mutants)-1]
			for _, word := range strings.Split(words[0], ",") {
				n, err := strconv.Atoi(word)
				if err != nil || n < 1 || n > len(all) {
					return fault("no requirement " + word)
				}
				m.requirements = append(m.requirements, n)
			}
			if _, err := regexp.Compile(m.run); err != nil {
				return fault(err.Error())
			}
		case m.file == "":
			m.file = line
		case strings.HasPrefix(line, "-"):
			m.old += strings.TrimPrefix(line[1:], " ") + "\n"
		case strings.HasPrefix(line, "+"):
			m.new += strings.TrimPrefix(line[1:], " ") + "\n"
		default:
			return fault("neither - nor +")
		}
	}
	return mutants, nil
}

// apply returns the file with the fault in it. Indentation does not count: the
// old lines are found by their text.
func (m mutant) apply(root string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m, err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	old := trimmed(strings.SplitAfter(m.old, "\n"))
	old = old[:len(old)-1] // what follows the last line's end
	if len(old) == 0 {
		return nil, fmt.Errorf("%s: it has no old text", m)
	}
	at := -1
	for i := range len(lines) - len(old) + 1 {
		if slices.Equal(trimmed(lines[i:i+len(old)]), old) {
			if at >= 0 {
				return nil, fmt.Errorf("%s: its old text is there twice, in lines %d and %d: give more lines", m, at+1, i+1)
			}
			at = i
		}
	}
	if at < 0 {
		return nil, fmt.Errorf("%s: its old text is not in the file any more: plant the fault anew", m)
	}
	var out bytes.Buffer
	out.WriteString(strings.Join(lines[:at], ""))
	out.WriteString(m.new)
	out.WriteString(strings.Join(lines[at+len(old):], ""))
	return out.Bytes(), nil
}

func trimmed(lines []string) []string {
	var out []string
	for _, l := range lines {
		out = append(out, strings.TrimSpace(l))
	}
	return out
}
