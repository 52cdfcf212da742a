package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// InPlace is a Runner in this process's own root: for code that already is inside a container or a
// sandbox. It isolates nothing. It does keep the other promises: the environment is the Command's
// alone, and the command's process group ends with the command.
type InPlace struct {
	Grace time.Duration       // between SIGTERM and SIGKILL when ctx ends; 0 means 5 s
	As    *syscall.Credential // who the command runs as, for root to say; nil: as this process
}

var _ Runner = InPlace{}

// Run implements Runner.
func (p InPlace) Run(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	path, err := lookPath(c.Path, c.Env)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	std, err := openStdio(c)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	child, err := p.start(path, c, std)
	std.closeChild()
	if err != nil {
		std.closeParent()
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	err = p.await(ctx, child)
	return errors.Join(err, std.wait())
}

// await waits for the command, ends it when ctx does, and kills what it left in its group.
func (p InPlace) await(ctx context.Context, child *child) error {
	grace := p.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	var kill <-chan time.Time
	done := ctx.Done()
	for {
		select {
		case status := <-child.done:
			syscall.Kill(-child.pid, syscall.SIGKILL)
			return endOf(ctx, status)
		case <-done:
			done = nil
			syscall.Kill(-child.pid, syscall.SIGTERM)
			t := time.NewTimer(grace)
			defer t.Stop()
			kill = t.C
		case <-kill:
			syscall.Kill(-child.pid, syscall.SIGKILL)
		}
	}
}

// endOf makes an error of a wait status. A process that ended well did so even if ctx is over.
func endOf(ctx context.Context, status syscall.WaitStatus) error {
	if status.Exited() && status.ExitStatus() == 0 {
		return nil
	}
	e := &ExitError{Code: status.ExitStatus()}
	if status.Signaled() {
		e.Code, e.Signal = -1, status.Signal()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w (%w)", err, e)
	}
	return e
}

// child is a process that was started by its own locked thread.
type child struct {
	pid  int
	done <-chan syscall.WaitStatus
}

func (p InPlace) start(path string, c Command, std *stdio) (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	argv := c.Args
	if len(argv) == 0 {
		argv = []string{c.Path}
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: c.Env, Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: p.As}}
	for _, f := range std.files {
		if f == nil {
			f = null
		}
		attr.Files = append(attr.Files, f.Fd())
	}
	ch, err := start(path, argv, attr)
	runtime.KeepAlive(std)
	return ch, err
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
