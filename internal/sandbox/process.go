package sandbox

import (
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// files says how many came along.
func (p *process) files() int {
	n := 0
	for _, i := range p.Files {
		n = max(n, i+1)
	}
	return n
}

// start forks the process from a thread that has given up what drop says. The thread is never used for
// anything else: the runtime makes new threads from an untouched one while any is locked. The files
// that came along are closed here.
func (p *process) start(drop func() error, sys *syscall.SysProcAttr) (int, error) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, at("/dev/null", err)
	}
	sys.Setsid = true
	attr := &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: sys}
	for _, i := range p.Files {
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
	onOwnThread(func() {
		if err := drop(); err != nil {
			done <- forked{0, at("privileges", err)}
		} else {
			pid, err := p.exec(attr)
			done <- forked{pid, err}
		}
		select {}
	})
	f := <-done
	unix.Close(null)
	for i := range p.files() {
		unix.Close(connFD + 1 + i)
	}
	return f.pid, f.err
}

// onOwnThread runs f on a thread that runs nothing else, and ends with f. It is not the first of the
// process, which stands for the process before others: whoever is in the Landlock domain of that one
// may signal the process.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		onOwnThread(f)
		select {}
	}()
}

// exec finds the program with the process's own rights, and starts it.
func (p *process) exec(attr *syscall.ProcAttr) (int, error) {
	path, err := lookPath(p.Path, p.Env)
	if err != nil {
		return 0, &stepError{"exec", fmt.Errorf("run %s: %w", p.Path, err)}
	}
	pid, err := syscall.ForkExec(path, p.Args, attr)
	if err == nil {
		return pid, nil
	}
	var st unix.Stat_t
	if serr := unix.Stat(attr.Dir, &st); serr != nil {
		return 0, &stepError{"exec", fmt.Errorf("run %s: working directory %s: %w", p.Path, attr.Dir, serr)}
	}
	if err == syscall.ENOENT && unix.Stat(path, &st) == nil {
		return 0, &stepError{"exec", fmt.Errorf("run %s: its interpreter or loader is missing: %w", p.Path, err)}
	}
	return 0, &stepError{"exec", fmt.Errorf("run %s: %w", p.Path, err)}
}
