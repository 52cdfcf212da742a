package sandbox

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// argv[0] of a re-exec'ed process says what it is to be.
const (
	workerName = "kiln-sandbox-worker"
	initName   = "kiln-sandbox-init"
	reaperName = "kiln-sandbox-reaper"
)

// selfExe is this very program, even if its file has been replaced or deleted meanwhile.
const selfExe = "/proc/self/exe"

// selfEnv is the environment of worker and PID 1: nothing of the host's. The Go runtime is told not to
// size itself by cgroup, which costs time, and files that it keeps open.
var selfEnv = []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0"}

// initialised says that this program knows what to do when it is re-executed.
var initialised bool

// Init must be the first call of main, and of TestMain: where this process is a re-executed worker,
// PID 1 of a step or the reaper of a command in place it never returns. Elsewhere it costs nothing.
func Init() {
	initialised = true
	if len(os.Args) != 1 {
		return
	}
	switch os.Args[0] {
	case workerName:
		os.Exit(workerMain())
	case initName:
		os.Exit(initMain())
	case reaperName:
		os.Exit(reaperMain())
	}
}

// closeInherited closes for real what is open beyond the standard descriptors, but those of keep,
// which become close-on-exec. What the Go runtime polls with, if it does already, must stay.
func closeInherited(keep func(fd int) bool) error {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 {
			continue
		}
		if keep(fd) {
			unix.CloseOnExec(fd)
			continue
		}
		what, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || what == "anon_inode:[eventpoll]" || what == "anon_inode:[eventfd]" {
			continue // ENOENT: the listing's own
		}
		unix.Close(fd)
	}
	return nil
}

// initMain is PID 1 of a step: it makes the step's world, starts the step in it, passes on signals
// and reaps. When it ends, the kernel ends what is left in the namespace.
func initMain() int {
	// Handlers, where PID 1 would ignore them and hand that down, or end for a signal from inside.
	drop := make(chan os.Signal, 1)
	signal.Notify(drop, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	c := &conn{f: os.NewFile(connFD, "worker")}
	var r runRequest
	if _, err := c.recv(&r); err != nil {
		return 1 // the worker is gone, and nobody is left to tell
	}
	res := runStep(c, &r)
	if err := c.send(res); err != nil {
		return 1
	}
	return 0
}

func runStep(c *conn, r *runRequest) result {
	files := r.Process.files()
	err := closeInherited(func(fd int) bool { return fd <= connFD+files })
	if err != nil {
		return failure(at("close files", err))
	}
	if r.Probe != nil {
		return result{Probe: probeInside(c, r)}
	}
	w := &world{req: r}
	if err := w.build(); err != nil {
		return failure(err)
	}
	if err := prepare(r); err != nil {
		return failure(err)
	}
	pid, err := r.Process.start(func() error {
		listener, err := dropPrivileges(r)
		if err != nil {
			return err
		}
		return handOver(c, listener)
	}, &syscall.SysProcAttr{})
	if err != nil {
		return failure(err)
	}
	go func() {
		for {
			var ctl control
			if _, err := c.recv(&ctl); err != nil {
				os.Exit(1) // the worker is gone: so is the step
			}
			unix.Kill(pid, syscall.Signal(ctl.Signal))
		}
	}()
	res := reap(pid)
	endRest()
	w.tidy()
	return res
}

// prepare does what else the whole process is to have.
func prepare(r *runRequest) error {
	syscall.Umask(0o022)
	name := r.Spec.Hostname
	if name == "" {
		name = "kiln"
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return at("host name", err)
	}
	if r.Spec.Network == NoNetwork {
		if err := loopbackUp(); err != nil {
			return at("loopback device", err)
		}
	}
	if err := limits(); err != nil {
		return at("limits", err)
	}
	// Same uid outside as the step: without this the step could look into us, and write to our file.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return at("dumpable", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// maxOpenFiles is enough for any build, and few enough for programs that close them all in a loop.
const maxOpenFiles = 65536

func limits() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Max = min(files.Max, maxOpenFiles)
	files.Cur = files.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
}

// handOver gives the filter's listener, where there is one, to the worker.
func handOver(c *conn, listener int) error {
	if listener < 0 {
		return nil
	}
	defer unix.Close(listener)
	return c.send(result{Listener: true}, listener)
}

// reap waits for the step, and for what it left to PID 1 meanwhile.
func reap(step int) result {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return failure(fmt.Errorf("wait for the step: %w", err))
		}
		if pid != step {
			continue
		}
		if status.Signaled() {
			return result{Code: -1, Signal: int(status.Signal())}
		}
		return result{Code: status.ExitStatus()}
	}
}

// endRest ends what the step left behind, and waits until it has: the kernel would do it when we
// end, but before that the root is to be tidied.
func endRest() {
	unix.Kill(-1, unix.SIGKILL)
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && err != syscall.EINTR {
			return
		}
	}
}
