package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/test/filetree"
)

// background is a kiln that runs while the test does something to it.
type background struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// Write takes what it prints.
func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

// said is what it has printed so far.
func (b *background) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func start(t *testing.T, cmd *exec.Cmd) *background {
	t.Helper()
	b := &background{t: t, cmd: cmd, done: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = b, b
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { b.done <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	return b
}

// until waits until the condition holds.
func (b *background) until(what string, holds func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-b.done:
			b.t.Fatalf("it ended before %s: %v\n%s", what, err, b.said())
		default:
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s never came", what)
		}
	}
}

// stop sends the signal and wants the end within the time, with the code that
// shells give a process that was ended by it.
func (b *background) stop(sig syscall.Signal, within time.Duration) {
	b.t.Helper()
	sent := time.Now()
	if err := b.cmd.Process.Signal(sig); err != nil {
		b.t.Fatal(err)
	}
	select {
	case err := <-b.done:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 128+int(sig) {
			b.t.Errorf("%v: got %v, want exit %d\n%s", sig, err, 128+int(sig), b.said())
		}
		if took := time.Since(sent); took > within {
			b.t.Errorf("%v: it took %v to stop", sig, took)
		}
	case <-time.After(within + 10*time.Second):
		b.t.Fatalf("%v: it does not stop\n%s", sig, b.said())
	}
}

// silent is a server that takes requests and never answers.
func silent(t *testing.T) (host string, asked <-chan struct{}) {
	t.Helper()
	first := make(chan struct{})
	var once sync.Once
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(first) })
		<-r.Context().Done()
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.Listener.Addr().String(), first
}

func closed(c <-chan struct{}) func() bool {
	return func() bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
}

// TestInterruptBeforePhases presses Ctrl-C while the source is copied, while a
// builder is pulled from a registry that hangs, while base images are made from
// a mirror that hangs, and while another build of the image is waited for.
func TestInterruptBeforePhases(t *testing.T) {
	bp := buildpack(t, "test/nothing", "", "")
	source := filetree.New(t, map[string]string{"f": "x"})
	must(t, "build", "untouched", "--path", source, "--buildpack", bp, "--quiet")
	before := must(t, "images", "--json")
	host, asked := silent(t)
	mirror, wanted := silent(t)
	empty := filepath.Join(t.TempDir(), "store")

	big := filetree.New(t, nil)
	if f, err := os.Create(filepath.Join(big, "big")); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(f.Truncate(4<<30), f.Close()); err != nil {
		t.Fatal(err)
	}
	copying := func() bool {
		found, err := filepath.Glob(filepath.Join(store, "tmp/*/*/app/tree/workspace/big"))
		return err == nil && len(found) > 0
	}
	b := start(t, kilnCommand(t.Context(), t, "build", "untouched", "--path", big, "--buildpack", bp))
	b.until("the copy", copying)
	b.stop(syscall.SIGINT, 4*time.Second)
	nothingLeft(t, big)

	b = start(t, kilnCommand(t.Context(), t, "build", "untouched", "--path", source, "--builder", host+"/some/builder"))
	b.until("the pull", closed(asked))
	b.stop(syscall.SIGINT, 2*time.Second)
	nothingLeft(t, host)

	b = start(t, withStore(t.Context(), t, empty, "build", "untouched", "--path", source, "--mirror", "http://"+mirror+"/debian"))
	b.until("the mirror", closed(wanted))
	b.stop(syscall.SIGTERM, 2*time.Second)
	if left, err := os.ReadDir(filepath.Join(empty, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("scratch left in the new store: %v %v", left, err)
	}

	word := strconv.Itoa(33_000_000 + os.Getpid()%1000)
	slow := buildpack(t, "test/slow", "", "sleep "+word)
	holder := start(t, kilnCommand(t.Context(), t, "build", "untouched", "--path", source, "--buildpack", slow))
	holder.until("the first build", func() bool { return len(processesWith(t, word)) > 0 })
	b = start(t, kilnCommand(t.Context(), t, "build", "untouched", "--path", source, "--buildpack", bp))
	b.until("the wait", func() bool {
		return strings.Contains(b.said(), "waiting for another kiln that is working on the image untouched")
	})
	b.stop(syscall.SIGINT, 2*time.Second)
	holder.stop(syscall.SIGTERM, 8*time.Second)
	nothingLeft(t, word)

	if after := must(t, "images", "--json"); after != before {
		t.Errorf("the images were\n%s\nand are\n%s", before, after)
	}
	must(t, "build", "untouched", "--path", source, "--buildpack", bp, "--quiet")
	must(t, "rm", "untouched")
	must(t, "store", "check", "--quick")
}

// TestInterruptRun stops `kiln run`: a polite server, one that ignores SIGTERM,
// and one with children in sessions of their own.
func TestInterruptRun(t *testing.T) {
	bp := buildpack(t, "test/nothing", "", "")
	must(t, "build", "server", "--path", filetree.New(t, map[string]string{"f": "x"}), "--buildpack", bp, "--quiet")
	for i, test := range []struct {
		script string
		sig    syscall.Signal
		within time.Duration
	}{
		{"exec sleep %s", syscall.SIGINT, 3 * time.Second},
		{"trap '' TERM INT; sleep %[1]s & sleep %[1]s; sleep %[1]s", syscall.SIGINT, 8 * time.Second},
		{"(trap '' TERM INT HUP; exec sleep %[1]s) & sleep %[1]s", syscall.SIGTERM, 8 * time.Second},
	} {
		word := strconv.Itoa(34_000_000 + i*1000 + os.Getpid()%1000)
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		b := start(t, kilnCommand(t.Context(), t, "run", "-p", port+":1", "server", "--", "sh", "-c", fmt.Sprintf(test.script, word)))
		b.until("the server", func() bool { return len(processesWith(t, "sleep\x00"+word)) > 0 })
		b.stop(test.sig, test.within)
		nothingLeft(t, word)
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Errorf("the port is still taken: %v", err)
			continue
		}
		l.Close()
	}
	must(t, "rm", "server")
}

// TestReaderGoesAway is `kiln build | head -n1`: the build ends, and cleans up.
func TestReaderGoesAway(t *testing.T) {
	word := strconv.Itoa(35_000_000 + os.Getpid()%1000)
	// It would talk for ever.
	bp := buildpack(t, "test/chatty", "", "sleep "+word+" & while echo again; do sleep 0.01; done")
	source := filetree.New(t, map[string]string{"f": "x"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := kilnCommand(ctx, t, "build", "unread", "--path", source, "--buildpack", bp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 0, 1<<10)
	for !bytes.Contains(seen, []byte("again")) {
		n, err := out.Read(seen[len(seen):cap(seen)])
		seen = seen[:len(seen)+n]
		if err == io.EOF || len(seen) == cap(seen) {
			t.Fatalf("the build says: %s%s", seen, stderr.String())
		}
	}
	gone := time.Now()
	out.Close()
	err = cmd.Wait()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 128+int(syscall.SIGPIPE) {
		t.Errorf("got %v, want exit %d: %s", err, 128+int(syscall.SIGPIPE), stderr.String())
	}
	if took := time.Since(gone); took > 8*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if stderr.Len() > 0 {
		t.Errorf("it says: %s", stderr.String())
	}
	nothingLeft(t, word)
	if r := kiln(t, "inspect", "unread"); r.code == 0 {
		t.Error("the image got its name all the same")
	}
}

// TestBuildBesideGCAndRemove builds while others clean up.
func TestBuildBesideGCAndRemove(t *testing.T) {
	bp := buildpack(t, "test/layer", "", `mkdir -p "$CNB_LAYERS_DIR/l"; cp app.txt "$CNB_LAYERS_DIR/l/"; printf '[types]\nlaunch=true\ncache=true\n' > "$CNB_LAYERS_DIR/l.toml"`)
	source := filetree.New(t, map[string]string{"app.txt": "beside gc"})
	over := make(chan struct{})
	var others sync.WaitGroup
	for _, args := range [][]string{{"store", "gc"}, {"rm", "beside-2"}} {
		others.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				// There may be nothing to remove at that moment.
				if r := kiln(t, args...); r.code != 0 && !(args[0] == "rm" && r.code == 4) {
					t.Errorf("kiln %q: exit %d %s", args, r.code, r.err)
				}
			}
		})
	}
	var builds sync.WaitGroup
	ids := make(chan string, 20)
	for n := range 2 {
		builds.Go(func() {
			for range 4 {
				r := kiln(t, "build", fmt.Sprintf("beside-%d", n+1), "--path", source, "--buildpack", bp, "--quiet")
				if r.code == 4 && n == 1 && strings.Contains(r.err, "somebody has removed it already") {
					continue
				}
				if r.code != 0 {
					t.Errorf("build beside gc: exit %d\n%s", r.code, r.err)
				}
				ids <- r.out
			}
		})
	}
	builds.Wait()
	close(over)
	others.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first {
			t.Errorf("images %s and %s", first, id)
		}
	}
	must(t, "run", "beside-1", "--", "cat", "/layers/test_layer/l/app.txt")
	kiln(t, "rm", "beside-1")
	kiln(t, "rm", "beside-2")
	must(t, "store", "check", "--quick")
	nothingLeft(t, source)
}
