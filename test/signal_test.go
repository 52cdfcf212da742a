package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/test/filetree"
)

// buildpack writes a shell buildpack and an app for it.
func buildpack(t *testing.T, id, detect, build string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"buildpack.toml": fmt.Sprintf("api = \"0.10\"\n[buildpack]\nid = %q\nversion = \"1.0.0\"\n", id),
		"bin/detect":     "#!/bin/bash\n" + detect + "\n",
		"bin/build":      "#!/bin/bash\nset -e\n" + build + "\n",
	}
	filetree.Write(t, dir, 0o755, files)
	return dir
}

// processesWith lists the processes whose command line has the word.
func processesWith(t *testing.T, word string) []string {
	t.Helper()
	var found []string
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatalf("no processes to look at: %v", err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(word)) {
			found = append(found, f+": "+string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// nothingLeft holds the host against what a build must not leave behind.
func nothingLeft(t *testing.T, word string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Second)
	for {
		left := processesWith(t, word)
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("processes left: %v", left)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), filepath.Dir(store)) {
		t.Errorf("a mount is left (%v)", err)
	}
	scratch, err := os.ReadDir(filepath.Join(store, "tmp"))
	if err != nil {
		t.Error(err)
	}
	for _, s := range scratch {
		t.Errorf("scratch left: %s", s.Name())
	}
}

// TestInterruptInEveryPhase presses Ctrl-C when a phase has just begun, and in
// the middle of the buildpacks' own work.
func TestInterruptInEveryPhase(t *testing.T) {
	source := filetree.New(t, map[string]string{"f": "x"})
	for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, phase := range []string{"analyzer", "detector", "restorer", "builder", "exporter"} {
			t.Run(phase+"-"+sig.String(), func(t *testing.T) {
				word := strconv.Itoa(31_000_000 + i*1000 + os.Getpid()%1000)
				slow := "(trap '' TERM; exec sleep " + word + ") & sleep " + word
				bp := buildpack(t, "test/slow", map[bool]string{true: slow}[phase == "detector"], map[bool]string{true: slow}[phase == "builder"])
				name := "interrupted-" + phase
				cmd := kilnCommand(t.Context(), t, "build", name, "--path", source, "--buildpack", bp, "--json", "--clear-cache")
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				foreign := phase == "detector" || phase == "builder"
				var sent time.Time
				lines := bufio.NewScanner(out)
				for lines.Scan() {
					var e struct {
						Kind  string
						Event struct{ Phase string }
					}
					if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
						t.Fatalf("%s: %v", lines.Text(), err)
					}
					if e.Kind == "phase-started" && e.Event.Phase == phase {
						if foreign { // wait until the buildpack is in the middle of it
							for range 500 {
								if len(processesWith(t, word)) >= 2 {
									break
								}
								time.Sleep(10 * time.Millisecond)
							}
						}
						sent = time.Now()
						if err := cmd.Process.Signal(sig); err != nil {
							t.Fatal(err)
						}
					}
				}
				err = cmd.Wait()
				if sent.IsZero() {
					t.Fatalf("phase %s never began: %v\n%s", phase, err, stderr.String())
				}
				if took := time.Since(sent); took > 8*time.Second {
					t.Errorf("it took %v to stop", took)
				}
				var exit *exec.ExitError
				switch {
				case err == nil && !foreign:
					// The phase was done before the signal came.
				case errors.As(err, &exit) && exit.ExitCode() == 128+int(sig):
					if !strings.Contains(stderr.String(), "stopped by") {
						t.Errorf("it does not say why it stopped: %s", stderr.String())
					}
					if phase != "exporter" {
						if out, err := kilnCommand(t.Context(), t, "inspect", name).CombinedOutput(); err == nil {
							t.Errorf("the image got its name all the same:\n%s", out)
						}
					}
				default:
					t.Errorf("got %v, want exit %d\n%s", err, 128+int(sig), stderr.String())
				}
				nothingLeft(t, word)
				kilnCommand(t.Context(), t, "rm", name).Run()
			})
		}
	}
	out, err := kilnCommand(t.Context(), t, "store", "check").CombinedOutput()
	if err != nil {
		t.Errorf("store check: %v\n%s", err, out)
	}
}

// TestKilledBuildLeavesNothingForLong kills kiln where it cannot clean up: no
// process survives, and the next kiln reclaims the scratch space.
func TestKilledBuildLeavesNothingForLong(t *testing.T) {
	word := strconv.Itoa(32_000_000 + os.Getpid()%1000)
	bp := buildpack(t, "test/slow", "", "setsid sleep "+word+" & sleep "+word)
	source := filetree.New(t, map[string]string{"f": "x"})
	cmd := kilnCommand(t.Context(), t, "build", "killed", "--path", source, "--buildpack", bp)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if len(processesWith(t, word)) >= 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(processesWith(t, word)) < 2 {
		t.Fatal("the buildpack never began")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("killed, it ended well")
	}
	if out, err := kilnCommand(t.Context(), t, "store", "gc").CombinedOutput(); err != nil {
		t.Errorf("gc: %v\n%s", err, out)
	}
	nothingLeft(t, word)
}

// TestTwoBuildsOfOneImage runs the same build several times at once.
func TestTwoBuildsOfOneImage(t *testing.T) {
	bp := buildpack(t, "test/layer", "", `mkdir -p "$CNB_LAYERS_DIR/l"; cp app.txt "$CNB_LAYERS_DIR/l/"; printf '[types]\nlaunch=true\ncache=true\n' > "$CNB_LAYERS_DIR/l.toml"; sleep 0.3`)
	source := filetree.New(t, map[string]string{"app.txt": "x"})
	const n = 4
	type result struct {
		out []byte
		err error
	}
	results := make(chan result, n)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range n {
		cmd := kilnCommand(ctx, t, "build", "at-once", "--path", source, "--buildpack", bp, "--quiet")
		go func() {
			out, err := cmd.CombinedOutput()
			results <- result{out, err}
		}()
	}
	ids := map[string]bool{}
	for range n {
		r := <-results
		if r.err != nil {
			t.Errorf("%v\n%s", r.err, r.out)
		}
		ids[strings.TrimSpace(string(r.out))] = true
	}
	if len(ids) != 1 {
		t.Errorf("%d different images: %v", len(ids), ids)
	}
	if out, err := kilnCommand(ctx, t, "store", "check").CombinedOutput(); err != nil {
		t.Errorf("store check: %v\n%s", err, out)
	}
	nothingLeft(t, "at-once")
}
