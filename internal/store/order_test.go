package store_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	fsyncCall  = regexp.MustCompile(`\bfsync\(\d+<([^>]*)>`)
	syncfsCall = regexp.MustCompile(`\bsyncfs\(`)
	renameCall = regexp.MustCompile(`\brenameat2?\([^"]*"([^"]*)", [^"]*"([^"]*)"`)
	ackCall    = regexp.MustCompile(`\bwrite\(1<[^>]*>, "([^"]*)"`)
)

// TestOrderOfSyncs reads what a process asks of the kernel. Killing a process
// loses nothing that it wrote; a power cut does, and then this order is what
// counts: a file is synced before it gets its name, and the directory with the
// name is synced before anybody is told of it.
func TestOrderOfSyncs(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v: apt-get install strace", err)
	}
	base := t.TempDir()
	dir, log := filepath.Join(base, "store"), filepath.Join(base, "log")
	cmd := helperCommand(t, "victim", dir, "strace", "-f", "-qq", "-y", "-s", "300", "-o", log, "-e", "trace=fsync,syncfs,renameat,renameat2,write")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	trace, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	o := order{t: t, dir: dir, synced: map[string]bool{}, dirty: map[string]string{}}
	for _, line := range strings.Split(string(trace), "\n") {
		o.line(line)
	}
	if o.acks < 5 || o.renames < 20 {
		t.Errorf("saw %d acknowledgements and %d renames: the trace was not understood", o.acks, o.renames)
	}
}

type order struct {
	t             *testing.T
	dir           string
	synced        map[string]bool   // files by the path they were synced under
	dirty         map[string]string // directories with a name not yet synced
	syncfs        bool
	acks, renames int
}

func (o *order) line(line string) {
	if m := fsyncCall.FindStringSubmatch(line); m != nil {
		o.synced[m[1]] = true
		delete(o.dirty, m[1])
	}
	if syncfsCall.MatchString(line) {
		o.syncfs = true
	}
	if m := renameCall.FindStringSubmatch(line); m != nil {
		o.rename(m[1], m[2])
	}
	if m := ackCall.FindStringSubmatch(line); m != nil && !strings.HasPrefix(m[1], "maybe") {
		o.acks++
		for dir, name := range o.dirty {
			o.t.Errorf("%q was acknowledged before %s was synced, which holds the name %s", m[1], dir, name)
		}
	}
}

func (o *order) rename(from, to string) {
	rel := strings.TrimPrefix(to, o.dir+"/")
	if strings.HasPrefix(rel, "trash/") || strings.HasPrefix(rel, "memo/") || strings.Contains(rel, "/selftest-") {
		return
	}
	o.renames++
	if strings.HasPrefix(rel, "trees/") {
		if !o.syncfs || !o.synced[filepath.Join(from, "tree.json")] {
			o.t.Errorf("the tree %s got its name before it was on the disk", rel)
		}
	} else if !o.synced[from] {
		o.t.Errorf("%s was renamed to %s before it was synced", from, rel)
	}
	o.dirty[filepath.Dir(to)] = rel
}
