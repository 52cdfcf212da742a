// Command mutants shows that the tests which stand for requirements can fail:
// it plants one fault of mutants.txt after the other in the sources (with the
// go command's -overlay, so that no file changes), runs the tests that cover
// the requirement, and wants a test that recorded its failure for it.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/test/conform"
)

const list = "test/conform/mutants/mutants.txt"

//go:embed mutants.txt
var text string

// patience is for one mutant: compiling what depends on the file, and the
// tests, some of which wait for what a fault keeps from coming.
const patience = 5 * time.Minute

func main() {
	only := flag.String("only", "", "plant only the mutants of this requirement, or of this `file`")
	jobs := flag.Int("j", 2, "how many at a time")
	flag.Parse()
	if err := run(*only, *jobs); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(only string, jobs int) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	mutants, err := parse(text)
	if err != nil {
		return err
	}
	if only != "" {
		number, _ := strconv.Atoi(only)
		mutants = slices.DeleteFunc(mutants, func(m mutant) bool { return m.file != only && !slices.Contains(m.requirements, number) })
	}
	var (
		mu    sync.Mutex
		found int
		errs  []error
		all   sync.WaitGroup
		free  = make(chan struct{}, max(1, jobs))
	)
	for _, m := range mutants {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			began := time.Now()
			err := m.find(root)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				fmt.Println(err)
				return
			}
			found++
			fmt.Printf("found: %s, %.0fs\n", m, time.Since(began).Seconds())
		})
	}
	all.Wait()
	fmt.Printf("mutants: %d planted, %d found\n", len(mutants), found)
	if len(errs) > 0 {
		return fmt.Errorf("%d mutants were not found: the tests are too weak, or the mutant is", len(errs))
	}
	if len(mutants) == 0 {
		return errors.New("there are none")
	}
	return nil
}

// find plants the fault and runs the tests. It is an error if none of them
// recorded that a requirement does not hold.
func (m mutant) find(root string) error {
	scratch, err := os.MkdirTemp("", "kiln-mutant-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := m.overlay(root, scratch); err != nil {
		return err
	}
	results := filepath.Join(scratch, "results")
	if err := os.Mkdir(results, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-vet=off", "-run", m.run, "./"+m.pkg)
	cmd.Dir, cmd.WaitDelay = root, time.Second
	// GOFLAGS, so that programs which tests build have the fault as well.
	cmd.Env = append(os.Environ(), "KILN_CONFORMANCE="+results, "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+filepath.Join(scratch, "overlay.json"))
	out, err := cmd.CombinedOutput()
	failed, readErr := failures(results)
	if readErr != nil {
		return readErr
	}
	for _, n := range m.requirements {
		switch {
		case slices.Contains(failed, n):
		case bytes.Contains(out, []byte("[build failed]")):
			return fmt.Errorf("%s does not compile:\n%s", m, out)
		case err != nil:
			return fmt.Errorf("%s: tests failed, but none that covers %d:\n%s", m, n, out)
		default:
			return fmt.Errorf("%s: the tests pass with it:\n%s", m, out)
		}
	}
	return nil
}

// overlay writes the file with the fault, and the overlay that puts it in place.
func (m mutant) overlay(root, scratch string) error {
	body, err := m.apply(root)
	if err != nil {
		return err
	}
	planted := filepath.Join(scratch, filepath.Base(m.file))
	if err := os.WriteFile(planted, body, 0o644); err != nil {
		return err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.file): planted}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(scratch, "overlay.json"), b, 0o644)
}

// failures are the requirements that some test found not to hold.
func failures(dir string) ([]int, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	var failed []int
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(strings.NewReader(string(b)))
		for lines.Scan() {
			var r conform.Result
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if !r.Passed {
				failed = append(failed, r.Requirement)
			}
		}
	}
	return failed, nil
}
