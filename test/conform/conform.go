// Package conform ties tests to the numbered requirements of the Cloud Native
// Buildpacks specifications that requirements.txt lists. A test says what it
// would fail for:
//
//	func TestWorkingDir(t *testing.T) {
//		conform.Covers(t, 139)
//
// Where KILN_CONFORMANCE names a directory, every run leaves there what became
// of it; `go run ./test/conform/table` makes docs/conformance.md of that. A
// requirement counts when a test that covers it passed, so a test must only
// name what it would fail for.
package conform

import (
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

//go:embed requirements.txt answers.txt
var files embed.FS

// Requirement is one line of requirements.txt.
type Requirement struct {
	Number int
	Phase  string // analyzer, detector, common...
	Text   string
	// Answer is why kiln does otherwise, "" where it does not.
	Answer string
}

var line = regexp.MustCompile(`^(\d+)\. \[([^]]+)\] (.+)$`)

// Requirements are all requirements, in order.
func Requirements() ([]Requirement, error) {
	list, err := files.ReadFile("requirements.txt")
	if err != nil {
		return nil, err
	}
	var all []Requirement
	for text := range strings.Lines(string(list)) {
		m := line.FindStringSubmatch(strings.TrimSpace(text))
		if m == nil {
			return nil, fmt.Errorf("requirements.txt: %q is not `N. [phase] text`", text)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil || n != len(all)+1 {
			return nil, fmt.Errorf("requirements.txt: %q: want number %d", text, len(all)+1)
		}
		all = append(all, Requirement{Number: n, Phase: m[2], Text: m[3]})
	}
	answers, err := files.ReadFile("answers.txt")
	if err != nil {
		return nil, err
	}
	for text := range strings.Lines(string(answers)) {
		text = strings.TrimSpace(text)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		number, why, _ := strings.Cut(text, ". ")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > len(all) || why == "" {
			return nil, fmt.Errorf("answers.txt: %q is not `N. reason`", text)
		}
		all[n-1].Answer = why
	}
	return all, nil
}

// Result is what became of one test that covers a requirement.
type Result struct {
	Requirement int    `json:"requirement"`
	Test        string `json:"test"` // package.Test, the package without the module
	Passed      bool   `json:"passed"`
	Root        bool   `json:"root"` // it ran as root
}

// Covers says that t fails when one of the requirements does not hold. Skipped
// tests cover nothing. It fails t for a number that no requirement has.
func Covers(t testing.TB, numbers ...int) {
	t.Helper()
	CoversAs(t, callerPackage(2)+"."+t.Name(), numbers...)
}

// CoversAs is Covers under another name, for tests that are data: scripts, rows.
func CoversAs(t testing.TB, name string, numbers ...int) {
	t.Helper()
	all, err := Requirements()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		if n < 1 || n > len(all) {
			t.Fatalf("there is no requirement %d", n)
		}
	}
	dir := os.Getenv("KILN_CONFORMANCE")
	if dir == "" {
		return
	}
	t.Cleanup(func() {
		if t.Skipped() {
			return
		}
		for _, n := range numbers {
			if err := record(dir, Result{Requirement: n, Test: name, Passed: !t.Failed(), Root: os.Getuid() == 0}); err != nil {
				t.Errorf("record the result: %v", err)
			}
		}
	})
}

var mu sync.Mutex

// record appends to this process's file.
func record(dir string, r Result) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d-%d.jsonl", os.Getuid(), os.Getpid())), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// callerPackage is the package of a function up the stack, without the module.
func callerPackage(skip int) string {
	pc, _, _, ok := runtime.Caller(skip)
	if !ok {
		return "unknown"
	}
	name := runtime.FuncForPC(pc).Name()
	slash := strings.LastIndexByte(name, '/')
	pkg, _, _ := strings.Cut(name[slash+1:], ".")
	path := name[:slash+1] + pkg
	return strings.TrimSuffix(strings.TrimPrefix(path, "github.com/kilnbuild/kiln/"), "_test")
}
