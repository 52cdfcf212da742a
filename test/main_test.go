package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
)

// bin is the directory of the real kiln, built by make from this tree.
var bin string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	make := exec.Command("make", "-s", "-C", "..", "build")
	make.Stdout, make.Stderr = os.Stderr, os.Stderr
	if err := make.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "make build:", err)
		return 1
	}
	dir, err := filepath.Abs("../bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = dir
	// While working on a test, a store that stays saves making the base images.
	store = os.Getenv("KILN_TEST_STORE")
	keep := store != ""
	code := daemontest.Main(m)
	if store != "" && !keep {
		removeAll(store)
	}
	return code
}

// store is where all tests of this package keep images: the base images are
// made once, and the tests are so many processes at once.
var store string

func sharedStore(t testing.TB) string {
	t.Helper()
	if store != "" {
		return store
	}
	dir, err := os.MkdirTemp("", "kiln-test-")
	if err != nil {
		t.Fatal(err)
	}
	store = filepath.Join(dir, "store")
	return store
}

// removeAll removes trees that have directories without write permission.
func removeAll(dir string) {
	exec.Command("chmod", "-R", "u+rwX", dir).Run()
	os.RemoveAll(filepath.Dir(dir))
}

// hostEnv is what kiln must see of this host to reach package registries.
func hostEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy":
			env = append(env, kv)
		}
	}
	return env
}

func TestScripts(t *testing.T) {
	shared := sharedStore(t)
	samples, err := filepath.Abs("../samples")
	if err != nil {
		t.Fatal(err)
	}
	// The base images are made before scripts run side by side, so that none
	// of them waits for another's.
	warm := exec.Command(filepath.Join(bin, "kiln"), "build", "warm-up", "--path", filepath.Join(samples, "flask"))
	warm.Env = append(hostEnv(), "PATH="+os.Getenv("PATH"), "KILN_STORE="+shared, "HOME="+t.TempDir())
	if out, err := warm.CombinedOutput(); err != nil {
		t.Fatalf("first build: %v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir: "scripts",
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			if err := os.Mkdir(home, 0o755); err != nil {
				return err
			}
			e.Vars = append(e.Vars, hostEnv()...)
			e.Vars = append(e.Vars, "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+home, "KILN_STORE="+shared, "SAMPLES="+samples,
				"UID="+strconv.Itoa(os.Getuid()), "NAME="+strings.ToLower(strings.ReplaceAll(filepath.Base(e.WorkDir), "script-", "")))
			port, err := freePort()
			if err != nil {
				return err
			}
			e.Vars = append(e.Vars, "PORT="+port)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fetch":    fetch,
			"podman":   podman,
			"registry": registry,
			"same":     same,
		},
	})
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// fetch URL [WANT]: get a page, with patience for an app that still starts.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: fetch URL [WANT]")
	}
	body, err := get(args[0], 15*time.Second)
	if neg {
		if err == nil {
			ts.Fatalf("%s answers: %s", args[0], body)
		}
		return
	}
	ts.Check(err)
	if len(args) == 2 && body != args[1] {
		ts.Fatalf("%s is %q, want %q", args[0], body, args[1])
	}
	ts.Logf("%s", body)
}

func get(url string, patience time.Duration) (string, error) {
	deadline := time.Now().Add(patience)
	for {
		resp, err := http.Get(url)
		if err == nil {
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s: %s: %s", url, resp.Status, b)
			}
			return string(b), err
		}
		if time.Now().After(deadline) {
			return "", err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// registry NAME: start Debian's docker-registry and set NAME to its address.
func registry(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: registry NAME")
	}
	addr, stop, err := startRegistry(ts.MkAbs("registry"))
	ts.Check(err)
	ts.Defer(stop)
	ts.Setenv(args[0], addr)
}

func startRegistry(dir string) (addr string, stop func(), err error) {
	path, err := exec.LookPath("docker-registry")
	if err != nil {
		return "", nil, fmt.Errorf("docker-registry is missing: apt-get install docker-registry")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	addr = "127.0.0.1:" + port
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %q}\n", dir, addr)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return "", nil, err
	}
	cmd := exec.Command(path, "serve", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	if _, err := get("http://"+addr+"/v2/", 10*time.Second); err != nil {
		stop()
		return "", nil, fmt.Errorf("docker-registry: %w\n%s", err, log.String())
	}
	return addr, stop, nil
}

// same FILE...: the files, without white space at their ends, are equal.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: same FILE FILE...")
	}
	first := strings.TrimSpace(ts.ReadFile(args[0]))
	if first == "" {
		ts.Fatalf("%s is empty", args[0])
	}
	for _, f := range args[1:] {
		if got := strings.TrimSpace(ts.ReadFile(f)); got != first {
			ts.Fatalf("%s has %q, %s has %q", args[0], first, f, got)
		}
	}
}

// kiln runs the real binary with the shared store.
func kilnCommand(ctx context.Context, t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "kiln"), args...)
	cmd.Env = append(hostEnv(), "PATH="+os.Getenv("PATH"), "KILN_STORE="+sharedStore(t), "HOME="+t.TempDir())
	return cmd
}
