package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func probeLimit([]string) int {
	var l unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &l)
	if err != nil {
		outcome("core", err)
		return 1
	}
	fmt.Println("core", l.Cur, l.Max)
	return 0
}

// probeParents asks whether it could signal whom it is under, its reaper and that one's caller, and see
// what they have.
func probeParents([]string) int {
	for _, p := range []struct {
		name string
		pid  int
	}{{"parent", os.Getppid()}, {"grandparent", parentOf(os.Getppid())}} {
		outcome("signal "+p.name, syscall.Kill(p.pid, 0))
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
		outcome("see "+p.name, err)
	}
	return 0
}

func probeGuarded([]string) int {
	probeStatus([]string{"NoNewPrivs", "Seccomp"})
	return probeParents(nil)
}

// probeShell waits for a child, as shells do, and does not end before.
func probeShell([]string) int {
	signal.Ignore(syscall.SIGTERM)
	pid, err := syscall.ForkExec(selfExe, []string{probeName, "onterm", "5"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		outcome("fork", err)
		return 1
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		outcome("wait", err)
	}
	return status.ExitStatus()
}

func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return -1
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return -1
	}
	return parent
}

// probeBrood leaves all kinds of processes behind, which all hold its lock: one in a session of its own
// that ignores signals, one whose parent is gone, one that is stopped, and one that goes on for ever by
// starting another and ending.
func probeBrood(args []string) int {
	lock, err := unix.Open(args[0], unix.O_RDWR, 0)
	if err == nil {
		err = unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		outcome("lock", err)
		return 1
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 1
	}
	for _, kind := range []string{"deaf", "orphan", "stopped", "runaway"} {
		if _, err := fork([]uintptr{0, w.Fd(), 2, uintptr(lock)}, "brood-"+kind, "100"); err != nil {
			outcome("fork", err)
			return 1
		}
	}
	w.Close()
	for got := 0; got < 4; { // each says when it has come to be what it is
		n, err := r.Read(make([]byte, 4))
		if err != nil {
			outcome("read", err)
			return 1
		}
		got += n
	}
	return 0
}

// probeBroodHold stays with its brood.
func probeBroodHold(args []string) int {
	if code := probeBrood(args); code != 0 {
		return code
	}
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ready")
	time.Sleep(time.Minute)
	return 0
}

func fork(files []uintptr, args ...string) (int, error) {
	return syscall.ForkExec(selfExe, append([]string{probeName}, args...), &syscall.ProcAttr{Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
}

var inherited = []uintptr{0, 1, 2, 3}

func probeDeaf([]string) int {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	fmt.Print("x")
	time.Sleep(time.Minute)
	return 0
}

func probeOrphan([]string) int {
	_, err := fork(inherited, "brood-deaf")
	if err != nil {
		return 1
	}
	return 0
}

func probeStopped([]string) int {
	fmt.Print("x")
	syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	return 0
}

// probeRunaway starts another, which is as it is itself, and ends, as fast as it can. It is heard of
// once. Where nobody stops it, it stops after some seconds.
func probeRunaway([]string) int {
	fmt.Print("x")
	runtime.LockOSThread()
	for range 20_000 {
		// A plain fork: what follows must not need the runtime, whose other threads the child lacks.
		pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid != 0 {
			syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	return 0
}

// probeWithout goes on, as another probe, under a filter like that of a container: ERRNO NUMBER,... PROBE...
func probeWithout(args []string) int {
	errno, err := strconv.Atoi(args[0])
	if err != nil {
		return 1
	}
	p := []bpf.Instruction{bpf.LoadAbsolute{Off: offNumber, Size: 4}}
	for _, number := range strings.Split(args[1], ",") {
		nr, err := strconv.Atoi(number)
		if err != nil {
			return 1
		}
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: 1}, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	}
	runtime.LockOSThread()
	err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		_, err = installFilter(append(p, bpf.RetConstant{Val: allow}), false)
	}
	if err == nil {
		err = syscall.Exec(selfExe, append([]string{probeName}, args[2:]...), os.Environ())
	}
	outcome("without", err)
	return 1
}

// probeInPlace runs a probe in place: READONLY... -- FIXED... -- PROBE..., where READONLY may be hide=FILE
func probeInPlace(args []string) int {
	i := slices.Index(args, "--")
	j := i + 1 + slices.Index(args[i+1:], "--")
	p := InPlace{FixedEntries: args[i+1 : j]}
	for _, name := range args[:i] {
		if hidden, hide := strings.CutPrefix(name, "hide="); hide {
			p.Hidden = append(p.Hidden, hidden)
		} else {
			p.ReadOnly = append(p.ReadOnly, name)
		}
	}
	r, err := p.Probe(context.Background())
	if err != nil {
		outcome("probe", err)
		return 1
	}
	for _, f := range r.Findings {
		fmt.Println("finding", f)
	}
	c := command(args[j+1], args[j+2:]...)
	c.Path, c.Stdout, c.Stderr = selfExe, os.Stdout, os.Stderr
	if err := p.Run(context.Background(), c); err != nil {
		outcome("in place", err)
		return 1
	}
	return 0
}
