package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// InPlace is a Runner in this process's own root, tier 4: for code that already is inside a container
// or a sandbox. It needs no privilege and no user namespace.
//
// The environment is the Command's alone, and no descriptor is inherited. The command is in a session
// of its own under a reaper, a re-executed child of ours: when the command ends, whatever it left
// running is ended, daemons too, and when we are killed all of it is; nothing else is. Run ends
// what it can for ten seconds before it gives up.
//
// What the kernel and the container allow of the following is done, and Probe says what that is:
// no_new_privs, the system call filter of the other tiers, a session keyring of its own, Landlock (no
// abstract socket, signal or look into a process that is not its own; no change to ReadOnly and
// FixedEntries; nothing read of what is Hidden), no core dumps. While a command runs this process is
// undumpable: its memory, environment, descriptors and maps are closed to code of the same user.
//
// What stays open is this process's command line, which holds no secret, the network, and all other
// files that its user may read.
type InPlace struct {
	Grace time.Duration // between SIGTERM and SIGKILL when ctx ends; 0 means 5 s

	// As is who the command runs as, for root to say; nil: as this process. Its supplementary groups
	// are this process's where the kernel lets nobody set any.
	As *syscall.Credential

	// ReadOnly are directories below which commands change nothing. FixedEntries are directories of
	// whose entries they neither change the files nor make new ones; the subdirectories are theirs.
	// Links are followed, missing ones are no error. Landlock cannot keep a directory that lies in one
	// where this user may make files.
	ReadOnly, FixedEntries []string

	// Hidden are files that commands do not read, or directories of such. What is said of links, missing
	// ones and Landlock holds for them, too.
	Hidden []string
}

var _ Runner = InPlace{}

// Run implements Runner.
func (p InPlace) Run(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	std, err := openStdio(c)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	proc, files := newProcess(c, std)
	as := p.As
	if as != nil && !maySetGroups() {
		kept := *as
		kept.NoSetGroups = true
		as = &kept
	}
	res, err := p.reaped(ctx, inPlaceRequest{Process: proc, As: as}, files, std.closeChild)
	if err != nil {
		err = fmt.Errorf("run %s: %w", c.Path, err)
	}
	return errors.Join(err, endOfStep(ctx, res, err), std.wait())
}

// Probe says what protects from a command in place here. Findings are what is missing.
func (p InPlace) Probe(ctx context.Context) (Report, error) {
	res, err := p.reaped(ctx, inPlaceRequest{Probe: true}, nil, func() {})
	if err == nil {
		err = res.err()
	}
	if err != nil {
		return Report{}, fmt.Errorf("probe what protects in place: %w", err)
	}
	return reportInPlace(res.Guards), nil
}

// reaped has a reaper do what r says, with files, and waits until it is gone.
func (p InPlace) reaped(ctx context.Context, r inPlaceRequest, files []*os.File, started func()) (result, error) {
	defer started()
	if !initialised {
		return result{}, errors.New("this program cannot start commands: its main does not call sandbox.Init first")
	}
	r.Kept = kept{p.ReadOnly, p.FixedEntries, p.Hidden}
	ours, theirs, err := socketpair()
	if err != nil {
		return result{}, err
	}
	c := &conn{f: ours}
	defer c.Close()
	defer shut()()
	child, err := startReaper(theirs, files)
	theirs.Close()
	if err != nil {
		return result{}, fmt.Errorf("start its reaper: %w", err)
	}
	started()
	var res result
	if err = c.send(r); err == nil {
		res, err = await(ctx, c, p.Grace)
	}
	c.Close() // in whatever state it is, it ends now
	select {
	case <-child.done:
	case <-time.After(2 * endTimeout):
		syscall.Kill(child.pid, syscall.SIGKILL)
		<-child.done
	}
	if err != nil {
		err = fmt.Errorf("its reaper has ended: %w", err)
	}
	return res, err
}

func startReaper(socket *os.File, files []*os.File) (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: "/", Env: selfEnv, Files: []uintptr{null.Fd(), null.Fd(), uintptr(syscall.Stderr), socket.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true}} // a terminal's signals must not reach it
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	ch, err := start(selfExe, []string{reaperName}, attr)
	runtime.KeepAlive(files)
	return ch, err
}

// dumpable is how many commands run in place, and what this process was before the first.
var dumpable struct {
	sync.Mutex
	running, before int
}

// shut makes this process undumpable until open is called.
func shut() (open func()) {
	dumpable.Lock()
	defer dumpable.Unlock()
	if dumpable.running++; dumpable.running == 1 {
		dumpable.before, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	return func() {
		dumpable.Lock()
		defer dumpable.Unlock()
		if dumpable.running--; dumpable.running == 0 {
			unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable.before), 0, 0, 0)
		}
	}
}

// child is a process that was started by its own locked thread.
type child struct {
	pid  int
	done <-chan syscall.WaitStatus
}

// start forks from a thread that stays until the child has been waited for: Pdeathsig is sent when
// the forking *thread* ends, and the Go runtime ends threads as it likes.
func start(path string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	type started struct {
		pid int
		err error
	}
	begun := make(chan started)
	done := make(chan syscall.WaitStatus, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		pid, err := syscall.ForkExec(path, argv, attr)
		begun <- started{pid, err}
		if err != nil {
			return
		}
		done <- waitFor(pid)
	}()
	s := <-begun
	if s.err != nil {
		return nil, s.err
	}
	return &child{pid: s.pid, done: done}, nil
}

func waitFor(pid int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			return status
		}
	}
}

// lookPath finds a bare name in the PATH of env, never in ours.
func lookPath(name string, env []string) (string, error) {
	if name == "" {
		return "", errors.New("no command given")
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(getenv(env, "PATH")) {
		if !filepath.IsAbs(dir) {
			continue // a relative PATH entry would run what lies in the working directory
		}
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("not found in PATH: %w", syscall.ENOENT)
}

func getenv(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}
