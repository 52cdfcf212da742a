package sandbox

import (
	"bytes"
	"embed"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const noCaps = "0000000000000000"

func TestPitfall14AmbientCapsCleared(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("status", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"),
		"CapPrm "+noCaps, "CapEff "+noCaps, "CapBnd "+noCaps, "CapAmb "+noCaps, "NoNewPrivs 1", "Seccomp 2")
}

func TestPitfall15InheritableCapsCleared(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("status", "CapInh"), "CapInh "+noCaps)
}

func TestPitfall16NoDescriptorIsInherited(t *testing.T) {
	// One that a careless parent left open, without close-on-exec.
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	fd, err := unix.Dup(int(leak.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f := newFixture(t, Options{})
	f.want(f.must("fds"), "0", "1", "2")
	f.want(f.must("readlink", "/proc/1/fd/3", "/proc/1/cwd", "/proc/1/root"),
		"/proc/1/fd/3 EACCES", "/proc/1/cwd EACCES", "/proc/1/root EACCES")
	if os.Geteuid() == 0 { // whose the directory is; what the numbers lead to stays shut
		f.wantFewFDs()
		return
	}
	f.want(f.must("ls", "/proc/1/fd"), "/proc/1/fd EACCES")
}

func TestPitfall17InitIsShut(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("opendir", "/proc/1/exe", "/proc/1/environ", "/proc/1/mem", "/proc/1/maps"),
		"/proc/1/exe EACCES|EPERM", "/proc/1/environ EACCES|EPERM", "/proc/1/mem EACCES|EPERM", "/proc/1/maps EACCES|EPERM")
	// The program itself, which the step sees bound, must not be writable through /proc either.
	f.want(f.must("open", "/probe", "/proc/self/exe"), "/probe EROFS|ETXTBSY|EACCES", "/proc/self/exe EROFS|ETXTBSY|EACCES")
}

func TestPitfall18Groups(t *testing.T) {
	f := newFixture(t, Options{})
	if maySetGroups() {
		f.want(f.must("status", "Uid", "Gid", "Groups"), "Uid 1000,1000,1000,1000", "Gid 1000,1000,1000,1000", "Groups 1000")
		return
	}
	f.want(f.must("cat", "/proc/self/setgroups"), `/proc/self/setgroups "deny\n"`)
}

func TestPitfall19NoTerminal(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("tty"), "/dev/tty ENXIO", "/dev/ptmx ok", "unlock ok", "number ok", "slave ok",
		"ioctl 0x5412 EPERM", "ioctl 0x100005412 EPERM", "ioctl 0x541c EPERM", "ioctl 0xff000000541c EPERM", "TCGETS ok")
	f.want(f.must("ls", "/dev/pts"), "ptmx")
	if out := f.must("who"); !strings.Contains(out, "leader true") {
		t.Errorf("the step has no session of its own:\n%s", out)
	}
}

// TestPitfall20RefusedSystemCalls is about keys, and about all the others that the filter refuses.
func TestPitfall20RefusedSystemCalls(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("syscalls"), refusedCalls()...)
}

// refusedCalls is what the probe of system calls says where the filter stands.
func refusedCalls() []string {
	lines := []string{"unshare EPERM", "setns EPERM", "mount EPERM", "umount2 EPERM", "fsopen EPERM", "open_tree EPERM", "move_mount EPERM",
		"pivot_root EPERM", "keyctl EPERM", "add_key EPERM", "request_key EPERM", "bpf EPERM", "perf_event_open EPERM", "userfaultfd EPERM",
		"open_by_handle_at EPERM", "fanotify_init EPERM", "process_vm_writev EPERM", "clone EPERM", "clone+high EPERM", "clone3 ENOSYS",
		"io_uring_setup ENOSYS", "socket vsock EPERM", "socket alg EPERM", "socket alg+high EPERM", "getppid ok"}
	if foreignABI != 0 {
		lines = append(lines, "x32 ENOSYS")
	}
	return lines
}

func TestPitfall21HostNetwork(t *testing.T) {
	abstract, err := net.Listen("unix", fmt.Sprintf("@kiln-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	f := newFixture(t, Options{})
	wanted := "unix EPERM"
	if f.rep.Landlock < landlockScopeABI {
		wanted = "unix ok"
		if !strings.Contains(strings.Join(f.rep.Warnings, "\n"), "abstract unix sockets") {
			t.Errorf("no warning that abstract sockets are open: %q", f.rep.Warnings)
		}
	}
	f.want(f.must("dial", "unix", abstract.Addr().String()), wanted)
	f.want(f.must("serve", "unix", "@inside"), "unix ok")
	f.want(f.must("dial", "tcp", tcp.Addr().String()), "tcp ok")
	f.spec.Network = NoNetwork
	f.want(f.must("dial", "unix", abstract.Addr().String()), "unix ECONNREFUSED|EPERM")
	f.want(f.must("dial", "tcp", tcp.Addr().String()), "tcp ECONNREFUSED")
	f.want(f.must("serve", "tcp", "127.0.0.1:0"), "tcp ok") // the loopback device is up
}

func TestPitfall22EnvironmentIsBuiltFromNothing(t *testing.T) {
	t.Setenv("REGISTRY_PASSWORD", "secret")
	f := newFixture(t, Options{})
	var out bytes.Buffer
	c := command("env")
	c.Env, c.Stdout = []string{"B=2", "A=\xff\xfe not UTF-8"}, &out
	if err := f.w.In(f.spec).Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	f.want(strings.TrimSuffix(out.String(), "\n"), "B=2", "A=\xff\xfe not UTF-8")
	f.want(f.must("env"), "")
}

func TestPitfall23DaemonsEndWithTheStep(t *testing.T) {
	f := newFixture(t, Options{})
	lock := f.write("lock", "")
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/lock", Source: lock})
	f.must("daemon", "/lock") // returns when the daemon holds the lock
	if err := locked(t, lock); err != nil {
		t.Errorf("a daemon outlives its step: %v", err)
	}
}

func TestPitfall24OneProcessNamespacePerStep(t *testing.T) {
	f := newFixture(t, Options{})
	end := f.hold()
	g := f.with("other")
	var out bytes.Buffer
	c := command("processes")
	c.Stdin, c.Stdout = strings.NewReader("x"), &out
	if err := g.w.In(g.spec).Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	end()
	f.want(strings.TrimSuffix(out.String(), "\n"), "ready", initName+" "+probeName)
}

// TestPitfall32NoSetns: a process with threads cannot enter a user namespace; re-exec can.
func TestPitfall32NoSetns(t *testing.T) {
	for _, file := range sources(t) {
		b, err := source.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "unix.Setns(") || strings.Contains(string(b), "unix.Unshare(") {
			t.Errorf("%s changes namespaces of a running Go process", file)
		}
	}
}

//go:embed *.go
var source embed.FS

func sources(t *testing.T) []string {
	t.Helper()
	all, err := fs.Glob(source, "*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := slices.DeleteFunc(all, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	if len(files) < 10 {
		t.Fatalf("only %q found", files)
	}
	return files
}

// TestPitfall33TheWorkerForks: a fork with NEWUSER copies the page tables of whoever forks, so only
// the small worker forks steps, in the namespace that it already has.
func TestPitfall33TheWorkerForks(t *testing.T) {
	f := newFixture(t, Options{})
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	one := f.must("readlink", "/proc/self/ns/user")
	two := f.must("readlink", "/proc/self/ns/user")
	if one != two || strings.HasSuffix(one, ours) {
		t.Errorf("user namespaces of two steps: %s and %s; ours: %s", one, two, ours)
	}
	for _, ns := range []string{"pid", "mnt", "ipc", "uts"} {
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		one := f.must("readlink", "/proc/self/ns/"+ns)
		two := f.must("readlink", "/proc/self/ns/"+ns)
		if strings.HasSuffix(one, ours) || strings.HasSuffix(two, ours) {
			t.Errorf("namespaces %s are not a step's own: %s, %s, ours %s", ns, one, two, ours)
		}
	}
}

// TestPitfall34TheInitIsLight: every import is initialised twice before a step starts.
func TestPitfall34TheInitIsLight(t *testing.T) {
	for _, file := range sources(t) {
		b, err := source.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, b, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range tree.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if path == "net" || path == "net/http" || strings.Contains(path, ".") && path != "golang.org/x/sys/unix" && path != "golang.org/x/net/bpf" {
				t.Errorf("%s imports %s", file, path)
			}
		}
	}
}

// TestPitfall35TheSpawningThreadStays: Pdeathsig comes when the thread that forked ends, and a Go
// thread ends with a locked goroutine.
func TestPitfall35TheSpawningThreadStays(t *testing.T) {
	started := make(chan *fixture)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		var f *fixture
		defer func() { started <- f }()
		f = newFixture(t, Options{})
	}()
	f := <-started
	if f == nil {
		t.Fatal("no worker")
	}
	for range 5 {
		runtime.Gosched()
		f.must("exit", "0")
	}
}

// TestPitfall36TheHostsGODEBUGStaysOutside: with inittrace a Go program prints on standard error as
// soon as it starts.
func TestPitfall36TheHostsGODEBUGStaysOutside(t *testing.T) {
	t.Setenv("GODEBUG", "inittrace=1")
	said, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	saved, err := unix.Dup(2)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(saved)
	if err := unix.Dup3(int(said.Fd()), 2, 0); err != nil {
		t.Fatal(err)
	}
	func() {
		defer unix.Dup3(saved, 2, 0)
		f := newFixture(t, Options{})
		f.must("exit", "0")
	}()
	if b, err := os.ReadFile(said.Name()); err != nil || len(b) > 0 {
		t.Errorf("worker or init said: %s, %v", b, err)
	}
}
