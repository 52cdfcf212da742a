package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// probeCaller is a caller that runs a step which holds a lock. Somebody kills it.
func probeCaller(args []string) int {
	dir, exe := args[0], args[1]
	ctx := context.Background()
	w, _, err := Start(ctx, Options{UID: testUID, GID: testGID, Scratch: []string{dir}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	spec := Spec{UID: testUID, GID: testGID, Root: Overlay{Lowers: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"}}
	spec.Mounts = append(hostLibraries(exe), Mount{Target: "/lock", Source: dir + "/lock"})
	c := command("hold", "/lock")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	err = w.In(spec).Run(ctx, c)
	fmt.Println("ended", err)
	return 0
}

// TestCallerKilledWhileItProbes wants the probe's directory to be gone too, whenever the kill comes.
func TestCallerKilledWhileItProbes(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 15 {
		dir := t.TempDir()
		cmd := exec.Command(exe)
		cmd.Args = []string{probeName, "caller", dir, exe}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = w // which the worker and its steps have too: when all are gone it is closed
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		time.Sleep(time.Duration(i) * 2 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		r.SetReadDeadline(time.Now().Add(10 * time.Second))
		if said, err := io.ReadAll(r); err != nil || len(said) > 0 {
			t.Errorf("the worker outlives its caller: %q, %v", said, err)
		}
		r.Close()
		if left, err := filepath.Glob(filepath.Join(dir, ".kiln*")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
		if err := removeAsCaller(dir); err != nil {
			t.Error(err)
		}
	}
}

// TestKilledCaller kills the caller, which cannot clean up, and wants nothing to be left of its step.
func TestKilledCaller(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lower"), 0o755); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(dir, "lock")
	if err := os.WriteFile(lock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := mountsAt(t, dir)
	cmd := exec.Command(exe)
	cmd.Args = []string{probeName, "caller", dir, exe}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := out.Read(buf)
	if got := string(buf[:n]); err != nil || got != "hold ok\n" {
		t.Fatalf("the step said %q, %v", got, err)
	}
	if locked(t, lock) == nil {
		t.Fatal("the step holds no lock: this test would see nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); locked(t, lock) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the step outlives its caller")
		}
	}
	if after := mountsAt(t, dir); after != before {
		t.Errorf("mounts were left:\n%s", after)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".kiln*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := removeAsCaller(dir); err != nil {
		t.Error(err)
	}
}

// removeAsCaller removes the overlay's work directory, which has mode 000.
func removeAsCaller(dir string) error {
	w, _, err := Start(context.Background(), Options{UID: testUID, GID: testGID, Scratch: []string{dir}})
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Remove(context.Background(), filepath.Join(dir, "work"))
}

// locked is nil when nobody holds the lock.
func locked(t *testing.T, path string) error {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// mountsAt lists the host's mounts where the sandbox of a test attaches some, in a namespace of its own: at
// and below dir, and the host's own directories. What others mount meanwhile is elsewhere.
func mountsAt(t *testing.T, dir string) string {
	t.Helper()
	var here []string
	for line := range strings.Lines(mounts(t)) {
		if at := strings.Fields(line)[4]; within(dir, at) || strings.Count(at, "/") == 1 {
			here = append(here, line)
		}
	}
	return strings.Join(here, "")
}
