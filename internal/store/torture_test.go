package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// fault is what strace does to the victim at its nth call of a system call.
// strace counts for each thread, so a fault may also strike more than once.
type fault struct {
	call, what string
	nth        int
}

func (f fault) String() string { return fmt.Sprintf("%s:%s:when=%d", f.call, f.what, f.nth) }

// storeCalls are the system calls that a store is changed by.
var storeCalls = []string{"openat", "write", "fsync", "renameat", "unlinkat", "mkdirat", "fchmod", "flock", "syncfs", "close", "getdents64", "mknodat", "pwrite64", "ftruncate"}

var storeErrors = []string{"error=ENOSPC", "error=EIO", "error=EDQUOT", "error=EMFILE", "error=EROFS", "error=ENOMEM"}

// strike runs one victim in a store of its own and says whether the fault struck.
func strike(t *testing.T, f fault, dir string) bool {
	t.Helper()
	log := dir + ".strace"
	cmd := helperCommand(t, "victim", dir, "strace", "-f", "-qq", "-o", log, "-e", "trace="+f.call, "-e", "inject="+f.String())
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	trace, rerr := os.ReadFile(log)
	if rerr != nil {
		t.Fatalf("strace left no log: %v; %v %s", rerr, err, errOut.String())
	}
	killed := f.what == "signal=SIGKILL"
	hit := bytes.Contains(trace, []byte("(INJECTED)")) || bytes.Contains(trace, []byte("killed by SIGKILL"))
	if killed && hit == (err == nil) {
		t.Errorf("%v: the victim was struck: %v, its end: %v", f, hit, err)
	}
	if err != nil && !hit {
		t.Errorf("%v: failed without a fault: %v %s", f, err, errOut.String())
	}
	a := acked{refs: map[string]string{}, maybe: map[string]bool{}, caches: map[string]bool{}}
	a.read(out.String())
	if err == nil && len(a.refs) != 2 {
		t.Errorf("%v: success was told, but only %v acknowledged", f, a.refs)
	}
	what := fmt.Sprintf("%v (acknowledged: %q, said: %q)", f, out.String(), errOut.String())
	intact(t, dir, a, what)
	again, err := helperCommand(t, "victim", dir).CombinedOutput()
	if err != nil {
		t.Errorf("%s: the next run: %v %s", what, err, again)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Remove(log)); err != nil {
		t.Error(err)
	}
	return hit
}

// TestTorture kills a process that uses the store at some of its system
// calls, and makes others fail. KILN_TORTURE=1 takes every single one.
func TestTorture(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v: apt-get install strace", err)
	}
	all := os.Getenv("KILN_TORTURE") == "1"
	var plans []plan
	for _, call := range storeCalls {
		plans = append(plans, plan{call, "signal=SIGKILL"})
		if call == "close" {
			continue // a failing close of a file that was synced says nothing
		}
		if all {
			for _, e := range storeErrors {
				plans = append(plans, plan{call, e})
			}
		} else if call != "mknodat" && call != "pwrite64" && call != "ftruncate" {
			plans = append(plans, plan{call, storeErrors[len(plans)%2]})
		}
	}
	points, struck := runPlans(t, plans, all)
	t.Logf("torture: %d runs, %d faults struck", points, struck)
	if struck < 40 {
		t.Errorf("only %d faults struck: does strace still inject?", struck)
	}
}

// plan is one kind of fault, tried at one call after the other.
type plan struct{ call, what string }

func runPlans(t *testing.T, plans []plan, all bool) (points, struck int) {
	base := t.TempDir()
	// When not all are taken: some early calls, where the store is opened, and
	// some late ones, spread so that every kind of call is hit a few times.
	some := []int{2, 9, 23, 41}
	var n, hits atomic.Int64
	work := make(chan plan)
	var wg sync.WaitGroup
	for range 3 { // more than the cores: strace mostly waits
		wg.Go(func() {
			for p := range work {
				misses := 0
				for i := 1; misses < 3; i++ { // every thread has its own count
					at := i
					if !all {
						if i > len(some) {
							break
						}
						at = some[i-1]
					}
					dir := filepath.Join(base, fmt.Sprintf("%s-%s-%d", p.call, strings.ReplaceAll(p.what, "=", "-"), at))
					n.Add(1)
					if strike(t, fault{p.call, p.what, at}, dir) {
						hits.Add(1)
						misses = 0
					} else {
						misses++
						if !all {
							break
						}
					}
				}
			}
		})
	}
	for _, p := range plans {
		work <- p
	}
	close(work)
	wg.Wait()
	return int(n.Load()), int(hits.Load())
}
