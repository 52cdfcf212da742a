// Package daemontest starts real daemons for tests: Debian's dockerd, which
// needs root, and podman's service, which does not. Each has images of its own
// and is gone when the tests are.
package daemontest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is a running daemon.
type Daemon struct {
	Kind string // docker or podman
	Host string // as in DOCKER_HOST
	dir  string
	cmd  *exec.Cmd
	lock *os.File
}

var (
	once    sync.Once
	started []*Daemon
	failed  error
)

// Main runs the tests of a package and stops the daemons that All has started
// for them.
func Main(m *testing.M) int {
	code := m.Run()
	for _, d := range started {
		d.Stop()
	}
	return code
}

// All is a daemon of every kind that this user can start: dockerd and podman as
// root, podman for others. They serve all tests of the package, whose TestMain
// calls Main.
func All(t testing.TB) []*Daemon {
	t.Helper()
	once.Do(func() {
		start := []func() (*Daemon, error){Podman}
		if os.Getuid() == 0 {
			start = append(start, Docker)
		}
		for _, f := range start {
			d, err := f()
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			started = append(started, d)
		}
	})
	if failed != nil {
		t.Fatal(failed)
	}
	return started
}

// Each runs a test with every daemon that there is, at the same time.
func Each(t *testing.T, test func(t *testing.T, host string)) {
	for _, d := range All(t) {
		t.Run(d.Kind, func(t *testing.T) {
			t.Parallel()
			test(t, d.Host)
		})
	}
}

// Docker starts dockerd with no network of its own.
func Docker() (*Daemon, error) {
	d, err := newDaemon("docker")
	if err != nil {
		return nil, err
	}
	return d, d.start("dockerd", "--data-root", d.path("root"), "--exec-root", d.path("exec"), "--pidfile", d.path("pid"), "--host", d.Host,
		"--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver", "overlay2", "--log-level", "error")
}

// Podman starts `podman system service`.
func Podman() (*Daemon, error) {
	d, err := newDaemon("podman")
	if err != nil {
		return nil, err
	}
	return d, d.start("podman", append(PodmanFlags(d.dir), "system", "service", "--time", "0", d.Host)...)
}

// PodmanFlags are podman's global flags for a storage of its own in dir. Cgroups
// are left alone, since not every host lets them be made; without sub-ids there
// is one id, so owners cannot be kept.
func PodmanFlags(dir string) []string {
	flags := []string{"--root", dir + "/root", "--runroot", dir + "/runroot", "--tmpdir", dir + "/tmp",
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	if os.Getuid() != 0 {
		flags = append(flags, "--storage-opt", "overlay.ignore_chown_errors=true")
	}
	return flags
}

// newDaemon makes its directory, in memory if that can be: daemons sync a lot. A
// socket's path is short by its nature, and so must be podman's run root.
func newDaemon(kind string) (*Daemon, error) {
	reclaim()
	dir, err := os.MkdirTemp("/dev/shm", "kd-")
	if err != nil {
		dir, err = os.MkdirTemp("/tmp", "kd-")
	}
	if err != nil {
		return nil, err
	}
	d := &Daemon{Kind: kind, dir: dir}
	d.Host = "unix://" + d.path("sock")
	// The kernel drops the lock with this process.
	if d.lock, err = os.Create(d.path(lockFile)); err == nil {
		err = unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	return d, errors.Join(err, os.Mkdir(d.path("run"), 0o700))
}

const lockFile = "lock"

// reclaim removes what tests left that were killed: it is in memory.
func reclaim() {
	locks, _ := filepath.Glob("/dev/shm/kd-*/" + lockFile) // the pattern is good
	for _, name := range locks {
		f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // another user's
		}
		const abandoned = time.Minute // it is locked right after it was made
		fi, err := f.Stat()
		if err == nil && time.Since(fi.ModTime()) > abandoned && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			(&Daemon{dir: filepath.Dir(name)}).Stop()
		}
		f.Close()
	}
}

func (d *Daemon) path(name string) string { return filepath.Join(d.dir, name) }

// Dir is the directory that everything of the daemon is in.
func (d *Daemon) Dir() string { return d.dir }

func (d *Daemon) start(name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name) // where an ordinary user's PATH does not lead
	}
	if err != nil {
		d.Stop()
		return fmt.Errorf("%s is missing: scripts/deps installs it", name)
	}
	d.cmd = exec.Command(path, args...)
	d.cmd.Env = append(d.cmd.Environ(), "HOME="+d.dir, "XDG_RUNTIME_DIR="+d.path("run"), "TMPDIR="+d.dir)
	log, err := os.Create(d.path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// A group of its own: rootless podman is several processes.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err = d.cmd.Start(); err == nil {
		err = d.await()
	}
	if err != nil {
		said, _ := os.ReadFile(d.path("log")) // if it said something
		d.Stop()
		return fmt.Errorf("%s: %w\n%s", name, err, said)
	}
	return nil
}

// await waits for an answer.
func (d *Daemon) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := net.Dial("unix", d.path("sock"))
		if err == nil {
			_, err = conn.Write([]byte("GET /_ping HTTP/1.0\r\n\r\n"))
			answer := make([]byte, 12)
			if err == nil {
				_, err = conn.Read(answer)
			}
			conn.Close()
			if err == nil && strings.HasSuffix(string(answer), "200") {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, errors.New("it does not answer"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the daemon and removes all that it had.
func (d *Daemon) Stop() {
	if d.cmd != nil && d.cmd.Process != nil {
		group := -d.cmd.Process.Pid
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		late := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(group, syscall.SIGKILL) })
		_ = d.cmd.Wait()
		late.Stop()
		_ = syscall.Kill(group, syscall.SIGKILL)
	}
	// Podman keeps a user namespace open with a process.
	if b, err := os.ReadFile(d.path("tmp/pause.pid")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, mount := range []string{"root/overlay", "root"} { // podman leaves one as root, dockerd when it is killed
		_ = syscall.Unmount(d.path(mount), syscall.MNT_DETACH)
	}
	_ = exec.Command("chmod", "-R", "u+rwX", d.dir).Run()
	_ = os.RemoveAll(d.dir)
	if d.lock != nil {
		_ = d.lock.Close()
	}
}
