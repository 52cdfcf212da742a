package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endTimeout bounds how long a reaper goes on killing what its command left.
const endTimeout = 10 * time.Second

// guard is one protection from a command in place, and whether it could be had.
type guard struct {
	Try    probeStep
	Detail string // of one that was
}

// reaperMain is what a command in place is under: it gives the command what protection there is, adopts
// all that the command leaves, and ends it.
func reaperMain() int {
	drop := make(chan os.Signal, 1)
	signal.Notify(drop, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE)
	c := &conn{f: os.NewFile(connFD, "caller")}
	var r inPlaceRequest
	if _, err := c.recv(&r); err != nil {
		return 1
	}
	if c.send(runInPlace(c, &r)) != nil {
		return 1
	}
	return 0
}

func runInPlace(c *conn, r *inPlaceRequest) result {
	files := r.Process.files()
	if err := closeInherited(func(fd int) bool { return fd <= connFD+files }); err != nil {
		return failure(at("close files", err))
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return failure(at("adopt processes", err))
	}
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if r.Probe {
		guards := make(chan []guard)
		onOwnThread(func() { guards <- protect(r) })
		return result{Guards: <-guards}
	}
	pid, err := r.Process.start(func() error { protect(r); return nil }, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: r.As})
	if err != nil {
		return failure(err)
	}
	f := &family{head: pid}
	go f.obey(c)
	res := f.reap()
	if err := f.end(); err != nil {
		return failure(fmt.Errorf("run %s: %w", r.Process.Path, err))
	}
	return res
}

// protect does to the calling thread what can be done. That it fails is no reason not to run: what is
// lacking is reported by Probe. The filter goes last, it refuses what the others need.
func protect(r *inPlaceRequest) []guard {
	var all []guard
	try := func(name string, f func() (string, error)) {
		detail, err := f()
		all = append(all, guard{tried(name, err), detail})
	}
	try("keyring", joinNewKeyring)
	try("capabilities", func() (string, error) {
		return "no more capabilities than a container has", limitCaps(containerCaps)
	})
	try("no_new_privs", func() (string, error) {
		return "no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	})
	abi := landlockABI()
	try("landlock", func() (string, error) {
		if abi < landlockFileABI {
			return "", unix.EOPNOTSUPP
		}
		open, err := restrictInPlace(abi, r.Kept)
		for step, list := range map[string][]string{"files": open.changes, "secrets": open.reads} {
			if len(list) > 0 {
				all = append(all, guard{Try: tried(step, fmt.Errorf("%s: somebody may make files beside it", strings.Join(list, ", ")))})
			}
		}
		return fmt.Sprintf("Landlock %d", abi), err
	})
	try("filter", func() (string, error) {
		_, err := filterSyscalls(false)
		return "the system call filter", err
	})
	return all
}

// family is a command and what it starts. The command leads a process group.
type family struct {
	head int

	mu   sync.Mutex
	gone bool // the head has been waited for: its number may be somebody else's
}

// obey passes the caller's signals on to the command's group. When the caller is gone, or wants it, all
// of it ends: the head here, the rest when the head has.
func (f *family) obey(c *conn) {
	for {
		var ctl control
		if _, err := c.recv(&ctl); err != nil {
			ctl.Signal = int(syscall.SIGKILL)
		}
		f.mu.Lock()
		if !f.gone {
			unix.Kill(-f.head, syscall.Signal(ctl.Signal))
		}
		f.mu.Unlock()
		if syscall.Signal(ctl.Signal) == syscall.SIGKILL {
			return
		}
	}
}

// reap waits for the head, and for what is adopted meanwhile.
func (f *family) reap() result {
	for {
		// Only looked at: between the end of the wait and gone nobody may signal the number.
		if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil && err != unix.EINTR {
			return failure(fmt.Errorf("wait for the command: %w", err))
		}
		if res, over := f.collect(); over {
			return res
		}
	}
}

func (f *family) collect() (res result, over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err != nil || pid == 0 {
			return res, f.gone
		}
		if pid == f.head {
			f.gone = true
			res = result{Code: status.ExitStatus()}
			if status.Signaled() {
				res = result{Code: -1, Signal: int(status.Signal())}
			}
		}
	}
}

// end kills what is left until nothing is. Only our own children are killed, whose numbers are theirs
// for as long as we have not waited for them; their children then become ours.
func (f *family) end() error {
	for deadline := time.Now().Add(endTimeout); ; time.Sleep(time.Millisecond) {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.ECHILD {
				return nil
			}
			if err != nil && err != syscall.EINTR {
				return err
			}
			if pid == 0 {
				break
			}
		}
		left, err := children(os.Getpid())
		if err != nil {
			return fmt.Errorf("it left processes that cannot be found: %w", err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it left processes that do not end: %d", left)
		}
		for _, pid := range left {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// children lists the processes whose parent is the given one. It may miss some that come and go.
func children(parent int) (pids []int, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil || len(lists) == 0 {
		return childrenByStat(parent) // a kernel without CONFIG_PROC_CHILDREN
	}
	for _, file := range lists {
		list, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// childrenByStat looks at every process there is.
func childrenByStat(parent int) (pids []int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	if len(stats) == 0 {
		return nil, errors.New("/proc is not mounted")
	}
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// PID (NAME) STATE PPID ..., and the name may hold anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// reportInPlace makes a report of what a reaper could do.
func reportInPlace(guards []guard) Report {
	r := Report{Tier: Tier4, IDs: SingleID, HostProc: true}
	var has []string
	for _, g := range guards {
		if g.Try.Err == "" {
			has = append(has, g.Detail)
			if g.Try.Step == "landlock" {
				r.Landlock = landlockABI()
			}
			continue
		}
		r.Findings = append(r.Findings, explainGuard(g.Try))
	}
	if len(has) == 0 {
		has = []string{"nothing but the end of its processes"}
	}
	r.Detail = fmt.Sprintf("tier %s: in place, with %s", r.Tier, strings.Join(has, ", "))
	if r.Landlock < landlockScopeABI {
		r.Warnings = append(r.Warnings, "without Landlock of Linux 6.12 a command reaches abstract unix sockets, and other processes of its user")
	}
	return r
}
