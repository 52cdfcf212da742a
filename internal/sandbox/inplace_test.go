package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/test/conform"
)

// inPlace runs a probe in place and wants what it prints.
func inPlace(t *testing.T, p InPlace, probe []string, lines ...string) {
	t.Helper()
	out, err := tryInPlace(t.Context(), p, probe...)
	if err != nil {
		t.Fatalf("probe %q: %v\n%s", probe, err, out)
	}
	(&fixture{t: t}).want(out, lines...)
}

func tryInPlace(ctx context.Context, p InPlace, probe ...string) (string, error) {
	var out bytes.Buffer
	c := command(probe[0], probe[1:]...)
	c.Path, c.Stdout, c.Stderr = selfExe, &out, &out
	// A reaper is in / and closes what it has: only the magic link finds this program.
	err := p.Run(ctx, c)
	return strings.TrimSuffix(out.String(), "\n"), err
}

func TestInPlaceIsProtected(t *testing.T) {
	r, err := InPlace{}.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Tier != Tier4 || r.Landlock != landlockABI() || !strings.HasPrefix(r.Detail, "tier 4: in place, with a session keyring of its own, no more capabilities than a container has, no_new_privs, ") {
		t.Errorf("%+v", r)
	}
	inPlace(t, InPlace{}, []string{"status", "NoNewPrivs", "Seccomp"}, "NoNewPrivs 1", "Seccomp 2")
	want := noCaps
	if os.Geteuid() == 0 {
		want = "00000000a80425fb" // as docker has them
	}
	inPlace(t, InPlace{}, []string{"status", "CapInh", "CapPrm", "CapEff", "CapAmb"}, "CapInh "+noCaps, "CapPrm "+want, "CapEff "+want, "CapAmb "+noCaps)
	inPlace(t, InPlace{}, []string{"fds"}, "0", "1", "2")
	inPlace(t, InPlace{}, []string{"limit", "core"}, "core 0 0")
	inPlace(t, InPlace{}, []string{"syscalls"}, refusedCalls()...)
	inPlace(t, InPlace{}, []string{"parents"}, "signal parent EPERM", "see parent EACCES|EPERM", "signal grandparent EPERM", "see grandparent EACCES|EPERM")
}

// TestInPlaceFilesAreKept: what a command must not change it cannot, wherever else it may.
func TestInPlaceFilesAreKept(t *testing.T) {
	f := newFixture(t, Options{})
	f.mkdir("cnb/lifecycle", "layers/one", "layers/two", "platform", "lower/home/me")
	f.write("cnb/lifecycle/exporter", "ours")
	f.write("layers/group.toml", "ours")
	f.symlink("group.toml", "layers/link")
	f.symlink("one", "layers/three")
	f.symlink("cnb", "lower/also")
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/cnb", Source: f.path("cnb")}, Mount{Target: "/layers", Source: f.path("layers")}, Mount{Target: "/platform", Source: f.path("platform")})
	refused, kept := []string{"write /cnb/lifecycle/exporter x", "write /cnb/new x", "rename /cnb/lifecycle /cnb/gone", "rm /cnb/lifecycle/exporter", "mkdir /cnb/dir", "symlink /x /cnb/link",
		"link /cnb/lifecycle/exporter /tmp/link", "rename /cnb/lifecycle/exporter /tmp/moved", "write /platform/x x", "write /also/x x",
		"write /layers/group.toml x", "write /layers/link x", "write /layers/new x", "mkdir /layers/four", "rename /layers/group.toml /layers/one/group.toml", "rm /layers/one", "rename /layers/one /layers/five",
		"truncate /cnb/lifecycle/exporter", "fifo /layers/p"}, []string{
		"write /layers/one/x x", "write /layers/three/y y", "mkdir /layers/two/a/b", "write /layers/two/a/b/c x", "rename /layers/two/a/b/c /layers/one/c", "link /layers/one/c /layers/two/c", "rename /layers/two/a /layers/one/a",
		"write /tmp/x x", "write /home/me/x x", "write /dev/null x", "write /dev/shm/x x", "rename /tmp/x /home/me/y", "write /proc/self/comm name"}
	out := f.must("inplace", append([]string{"/cnb/lifecycle", "/cnb", "/platform", "/also", "/missing", "--", "/layers", "--", "script"}, append(refused, kept...)...)...)
	var lines []string
	for _, op := range refused {
		lines = append(lines, op+" EACCES|EXDEV")
	}
	f.want(out, lines...)
	for file, want := range map[string]string{"cnb/lifecycle/exporter": "ours", "layers/group.toml": "ours", "layers/one/x": "x", "layers/one/c": "x"} {
		if b, err := os.ReadFile(f.path(file)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", file, b, err, want)
		}
	}
	// Where somebody may make files beside, they come first, and it is said.
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/tmp/closed", Source: f.path("cnb")})
	f.want(f.must("inplace", "/tmp/closed", "--", "--", "script", "write /tmp/closed/x x", "write /tmp/new x"), "finding these can be changed: /tmp/closed: somebody may make files beside it")
}

// TestInPlaceHides: what a command is not to read it does not, by whatever name, and all else it does.
func TestInPlaceHides(t *testing.T) {
	conform.Covers(t, 207)
	f := newFixture(t, Options{})
	f.mkdir("creds/..data", "creds/tls", "cnb/deep", "layers/one", "lower/home/me/.docker", "lower/srv/other")
	f.write("creds/..data/config.json", canary())
	f.symlink("..data/config.json", "creds/config.json")
	f.write("creds/ca.crt", "all may see this")
	f.write("creds/tls/key.pem", canary())
	f.write("cnb/deep/auth.json", canary())
	f.write("cnb/deep/else", "x")
	f.write("layers/group.toml", "ours")
	f.write("lower/home/me/.docker/config.json", canary())
	f.symlink("/creds", "lower/srv/link")
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/creds", Source: f.path("creds"), ReadOnly: true}, Mount{Target: "/cnb", Source: f.path("cnb")}, Mount{Target: "/layers", Source: f.path("layers")},
		Mount{Target: "/home/me", Source: f.path("lower/home/me")})
	refused := []string{"read /creds/config.json", "read /creds/..data/config.json", "read /srv/link/config.json", "read /creds/tls/key.pem", "read /cnb/deep/auth.json", "read /proc/self/root/creds/config.json",
		"reread /creds/config.json", "link /creds/..data/config.json /tmp/link", "rename /cnb/deep/auth.json /tmp/moved", "rename /cnb/deep /tmp/moved", "write /cnb/deep/else x", "write /layers/group.toml x"}
	fine := []string{"read /creds/ca.crt", "reread /creds/ca.crt", "read /cnb/deep/else", "read /layers/group.toml", "write /layers/one/x x", "read /layers/one/x", "write /tmp/x x", "read /tmp/x", "reread /tmp/x", "deleted /tmp/x",
		"read /proc/self/status", "read /dev/null", "write /dev/shm/x x", "read /dev/shm/x", "mkdir /home/me/new", "write /home/me/new/x x", "read /home/me/new/x", "read /home/me/.docker/config.json"}
	args := []string{"/cnb", "hide=/srv/link/config.json", "hide=/creds/tls", "hide=/cnb/deep/auth.json", "hide=/missing", "hide=/home/me/.docker/config.json", "--", "/layers", "--", "script"}
	lines := []string{"finding these can be read: /home/me/.docker/config.json: somebody may make files beside it"}
	for _, op := range refused {
		lines = append(lines, op+" EACCES|EXDEV")
	}
	f.want(f.must("inplace", slices.Concat(args, refused, fine)...), lines...)
	f.want(f.must("inplace", "hide=/creds/config.json", "--", "--", "script", "read /creds/config.json", "write /cnb/new x", "read /cnb/new", "rename /cnb/new /cnb/deep/new", "read /creds/tls/key.pem"), "read /creds/config.json EACCES")
}

// lockFile is a file that is locked for as long as anything of a brood is alive.
func lockFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// bystander starts a process that is no command's.
func bystander(t *testing.T) (alive func() bool) {
	t.Helper()
	cmd := exec.Command(selfExe)
	cmd.Args = []string{probeName, "onterm", "0"}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	return func() bool {
		pid, err := syscall.Wait4(cmd.Process.Pid, nil, syscall.WNOHANG, nil)
		return pid == 0 && err == nil
	}
}

// TestInPlaceEndsAllThatIsLeft: nothing of a command's outlives it, and nothing else is touched.
func TestInPlaceEndsAllThatIsLeft(t *testing.T) {
	alive := bystander(t)
	ctx, cancel := context.WithCancel(t.Context())
	other := &ready{first: make(chan struct{})}
	otherEnded := make(chan error)
	go func() { // a command of its own, which has no part in the end of another
		c := command("onterm", "0")
		c.Path, c.Stdout = selfExe, other
		otherEnded <- InPlace{}.Run(ctx, c)
	}()
	<-other.first
	for range 5 {
		lock := lockFile(t)
		inPlace(t, InPlace{}, []string{"brood", lock}, "")
		if err := locked(t, lock); err != nil {
			t.Fatalf("something outlives its command: %v", err)
		}
	}
	if !alive() {
		t.Error("a bystander was killed")
	}
	cancel()
	if err := <-otherEnded; err != nil {
		t.Errorf("another command: %v", err)
	}
}

// TestInPlaceCancelled: a command that is killed takes what it has left with it.
func TestInPlaceCancelled(t *testing.T) {
	lock := lockFile(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &ready{first: make(chan struct{})}
	go func() { <-out.first; cancel() }()
	c := command("broodhold", lock)
	c.Path, c.Stdout = selfExe, out
	err := InPlace{Grace: 100 * time.Millisecond}.Run(ctx, c)
	var exit *ExitError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
		t.Errorf("%v", err)
	}
	if err := locked(t, lock); err != nil {
		t.Errorf("something outlives its command: %v", err)
	}
}

// TestInPlaceAsksAllOfIt: a shell that is asked to end does so when what it waits for has.
func TestInPlaceAsksAllOfIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := &ready{first: make(chan struct{})}
	go func() { <-out.first; cancel() }()
	c := command("shell")
	c.Path, c.Stdout = selfExe, out
	var exit *ExitError
	if err := (InPlace{Grace: time.Minute}).Run(ctx, c); !errors.As(err, &exit) || exit.Code != 5 || out.said != "ready\nterm\n" {
		t.Errorf("%v, %q", err, out.said)
	}
}

// TestInPlaceReaperKilled: who kills a reaper, as its command can where there is no Landlock, has killed
// the command.
func TestInPlaceReaperKilled(t *testing.T) {
	lock := lockFile(t)
	out := &ready{first: make(chan struct{})}
	ended := make(chan error)
	go func() {
		c := command("hold", lock)
		c.Path, c.Stdout = selfExe, out
		ended <- InPlace{}.Run(t.Context(), c)
	}()
	<-out.first
	reapers, err := children(os.Getpid())
	if err != nil || len(reapers) != 1 {
		t.Fatalf("reapers %v, %v", reapers, err)
	}
	syscall.Kill(reapers[0], syscall.SIGKILL)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "its reaper has ended") {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); locked(t, lock) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the command outlives its reaper")
		}
	}
}

// TestInPlaceCallerKilled: who runs a command and is killed leaves nothing of it.
func TestInPlaceCallerKilled(t *testing.T) {
	lock := lockFile(t)
	cmd := exec.Command(selfExe)
	cmd.Args = []string{probeName, "inplace", "--", "--", "broodhold", lock}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if locked(t, lock) == nil {
		t.Fatal("nothing holds the lock: this test would see nothing")
	}
	cmd.Process.Kill()
	cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); locked(t, lock) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("something outlives the killed caller")
		}
	}
}

// TestInPlaceWithLess: what a container's own filter refuses, or a kernel lacks, is done without, and said.
func TestInPlaceWithLess(t *testing.T) {
	for _, c := range []struct {
		name  string
		errno unix.Errno
		nrs   []int
		lines []string
	}{
		{"no Landlock", unix.ENOSYS, []int{unix.SYS_LANDLOCK_CREATE_RULESET}, []string{"finding Landlock is not to be had (landlock: operation not supported)", "NoNewPrivs 1", "Seccomp 2",
			"signal parent ok", "see parent EACCES|EPERM", "signal grandparent ok", "see grandparent EACCES|EPERM"}},
		{"Landlock refused", unix.EPERM, []int{unix.SYS_LANDLOCK_RESTRICT_SELF}, []string{"finding Landlock is not to be had (landlock: operation not permitted)", "NoNewPrivs 1", "Seccomp 2",
			"signal parent ok", "see parent EACCES|EPERM", "signal grandparent ok", "see grandparent EACCES|EPERM"}},
		{"no filter of ours", unix.EPERM, []int{unix.SYS_SECCOMP}, []string{"finding the host refuses filter (filter: operation not permitted)", "NoNewPrivs 1", "Seccomp 2",
			"signal parent EPERM", "see parent EACCES|EPERM", "signal grandparent EPERM", "see grandparent EACCES|EPERM"}},
		{"no keys", unix.ENOSYS, []int{unix.SYS_KEYCTL}, []string{"NoNewPrivs 1", "Seccomp 2",
			"signal parent EPERM", "see parent EACCES|EPERM", "signal grandparent EPERM", "see grandparent EACCES|EPERM"}},
		{"a full store of keys", unix.EDQUOT, []int{unix.SYS_KEYCTL}, []string{"finding the session keyring is shared (keyring: disk quota exceeded)", "NoNewPrivs 1", "Seccomp 2",
			"signal parent EPERM", "see parent EACCES|EPERM", "signal grandparent EPERM", "see grandparent EACCES|EPERM"}},
	} {
		numbers := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.nrs), " ", ","), "[]")
		cmd := exec.Command(selfExe)
		cmd.Args = []string{probeName, "without", fmt.Sprint(int(c.errno)), numbers, "inplace", "--", "--", "guarded"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, out)
			continue
		}
		(&fixture{t: t}).want(strings.TrimSuffix(string(out), "\n"), c.lines...)
	}
}

// TestInPlaceNeedsInit: a program that would run itself again, and again, says so instead.
func TestInPlaceNeedsInit(t *testing.T) {
	initialised = false
	defer func() { initialised = true }()
	if _, err := tryInPlace(t.Context(), InPlace{}, "exit", "0"); err == nil || !strings.Contains(err.Error(), "sandbox.Init") {
		t.Errorf("without Init: %v", err)
	}
}

// TestInPlaceLeavesNothingInTheCaller: no descriptor, no child, and no lasting change.
func TestInPlaceLeavesNothingInTheCaller(t *testing.T) {
	count := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	inPlace(t, InPlace{}, []string{"exit", "0"}, "")
	before := count()
	for range 20 {
		inPlace(t, InPlace{}, []string{"exit", "0"}, "")
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
	if kids, err := children(os.Getpid()); err != nil || len(kids) > 0 {
		t.Errorf("children %v, %v", kids, err)
	}
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || d != 1 {
		t.Errorf("dumpable %d, %v", d, err)
	}
}

func TestChildren(t *testing.T) {
	if kids, err := children(os.Getpid()); err != nil || len(kids) > 0 {
		t.Errorf("without any: %v, %v", kids, err)
	}
	bystander(t)
	kids, err := children(os.Getpid())
	slow, serr := childrenByStat(os.Getpid())
	if err != nil || serr != nil || len(kids) != 1 || !slices.Equal(kids, slow) {
		t.Errorf("one child is %v, %v, and otherwise found %v, %v", kids, err, slow, serr)
	}
}

// TestInPlaceAsAnother: root may have a command run as somebody, whose processes end all the same.
func TestInPlaceAsAnother(t *testing.T) {
	p := InPlace{As: &syscall.Credential{Uid: 4321, Gid: 4322, Groups: []uint32{4323}}}
	if os.Geteuid() != 0 {
		if out, err := tryInPlace(t.Context(), p, "exit", "0"); !errors.Is(err, syscall.EPERM) {
			t.Errorf("an ordinary user: %v, %s", err, out)
		}
		return
	}
	inPlace(t, p, []string{"status", "Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp"}, "Uid 4321,4321,4321,4321", "Gid 4322,4322,4322,4322", "Groups 4323", "CapEff "+noCaps, "NoNewPrivs 1", "Seccomp 2")
	lock := filepath.Join(os.TempDir(), fmt.Sprintf("kiln-lock-%d", os.Getpid()))
	defer os.Remove(lock)
	if err := errors.Join(os.WriteFile(lock, nil, 0o666), os.Chmod(lock, 0o666)); err != nil {
		t.Fatal(err)
	}
	inPlace(t, p, []string{"brood", lock}, "")
	if err := locked(t, lock); err != nil {
		t.Errorf("something outlives its command: %v", err)
	}
}
