package sandbox

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// argv[0] of a re-exec'ed process says what it is to be.
const (
	workerName = "kiln-sandbox-worker"
	initName   = "kiln-sandbox-init"
)

// selfExe is this very program, even if its file has been replaced or deleted meanwhile.
const selfExe = "/proc/self/exe"

// selfEnv is the environment of worker and PID 1: nothing of the host's. The Go runtime is told not to
// size itself by cgroup, which costs time, and files that it keeps open.
var selfEnv = []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0"}

// Init must be the first call of main, and of TestMain: where this process is a re-executed worker
// or PID 1 of a step it never returns. Elsewhere it costs nothing.
func Init() {
	if len(os.Args) != 1 {
		return
	}
	switch os.Args[0] {
	case workerName:
		os.Exit(workerMain())
	case initName:
		os.Exit(initMain())
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
	files := 0
	for _, i := range r.Files {
		files = max(files, i+1)
	}
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
	pid, err := startStep(c, r, files)
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
	unix.KeyctlJoinSessionKeyring("") // a fresh one; where keys are not compiled in there is nothing to hide
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

// startStep forks the step from a thread that has given up everything. The thread is never used for
// anything else: the runtime makes new threads from an untouched one while any is locked.
func startStep(c *conn, r *runRequest, files int) (int, error) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, at("/dev/null", err)
	}
	attr := &syscall.ProcAttr{Dir: r.Dir, Env: r.Env, Sys: &syscall.SysProcAttr{Setsid: true}}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	for _, i := range r.Files {
		fd := null
		if i >= 0 {
			fd = connFD + 1 + i
		}
		attr.Files = append(attr.Files, uintptr(fd))
	}
	type forked struct {
		pid int
		err error
	}
	done := make(chan forked)
	go func() {
		runtime.LockOSThread()
		pid, err := dropAndExec(c, r, attr)
		done <- forked{pid, err}
		select {}
	}()
	f := <-done
	unix.Close(null)
	for i := range files {
		unix.Close(connFD + 1 + i)
	}
	return f.pid, f.err
}

func dropAndExec(c *conn, r *runRequest, attr *syscall.ProcAttr) (int, error) {
	listener, err := dropPrivileges(r)
	if err == nil {
		err = handOver(c, listener)
	}
	if err != nil {
		return 0, at("privileges", err)
	}
	return execStep(r, attr)
}

// handOver gives the filter's listener, where there is one, to the worker.
func handOver(c *conn, listener int) error {
	if listener < 0 {
		return nil
	}
	defer unix.Close(listener)
	return c.send(result{Listener: true}, listener)
}

// execStep finds the program with the step's own rights, and starts it.
func execStep(r *runRequest, attr *syscall.ProcAttr) (int, error) {
	path, err := lookPath(r.Path, r.Env)
	if err != nil {
		return 0, &stepError{"exec", fmt.Errorf("run %s: %w", r.Path, err)}
	}
	pid, err := syscall.ForkExec(path, r.Args, attr)
	if err == nil {
		return pid, nil
	}
	var st unix.Stat_t
	if serr := unix.Stat(attr.Dir, &st); serr != nil {
		return 0, &stepError{"exec", fmt.Errorf("run %s: working directory %s: %w", r.Path, attr.Dir, serr)}
	}
	if err == syscall.ENOENT && unix.Stat(path, &st) == nil {
		return 0, &stepError{"exec", fmt.Errorf("run %s: its interpreter or loader is missing: %w", r.Path, err)}
	}
	return 0, &stepError{"exec", fmt.Errorf("run %s: %w", r.Path, err)}
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
