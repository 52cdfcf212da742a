package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options says what Start is to set up.
type Options struct {
	Tier     Tier // Best, or pinned: then Start refuses rather than give another
	UID, GID int  // the ids inside that are the caller's outside

	// Scratch are directories where the caller may put uppers, best first; empty means os.TempDir().
	// The first on which overlay works comes back as Report.Scratch.
	Scratch []string

	// Copy fills the empty directory dst with the merged view of o, Upper included. Only where
	// overlay is not to be had is it needed, and called.
	Copy func(ctx context.Context, dst string, o Overlay) error

	// Executable is re-executed as worker and as PID 1; its main must call Init first. Empty means
	// this program. A smaller one starts steps faster.
	Executable string
}

// Worker lives in the user namespace of one build and starts its steps. Its methods may be called
// from many goroutines at once.
type Worker struct {
	options   Options
	report    Report
	setGroups bool
	child     *child
	ctl       *conn
	quirks    quirks

	closing  sync.Once
	closeErr error

	mu     sync.Mutex
	copied map[string]bool // by upper
}

// Start starts a worker in a user namespace of its own and finds out what it can do there. A refusal
// is an *UnavailableError, with the causes and what would help. End it with Close.
func Start(ctx context.Context, o Options) (*Worker, Report, error) {
	if err := ctx.Err(); err != nil {
		return nil, Report{}, fmt.Errorf("start the sandbox: %w", err)
	}
	if !o.Tier.valid() {
		return nil, Report{}, fmt.Errorf("isolation %q: must be 1, 1s, 2 or 3", o.Tier)
	}
	if o.UID < 0 || o.GID < 0 {
		return nil, Report{}, fmt.Errorf("ids %d:%d: must not be negative", o.UID, o.GID)
	}
	if len(o.Scratch) == 0 {
		o.Scratch = []string{os.TempDir()}
	}
	if o.Executable == "" {
		o.Executable = selfExe
	}
	w := &Worker{options: o, setGroups: maySetGroups() || o.Tier == Tier1S, copied: map[string]bool{}}
	if err := w.spawn(); err != nil {
		return nil, Report{}, err
	}
	report, err := w.probe(ctx)
	if err != nil {
		w.Close()
		return nil, report, err
	}
	w.report = report
	return w, report, nil
}

// Probe finds out what the host gives by doing it in a child that then ends.
func Probe(ctx context.Context, o Options) (Report, error) {
	w, report, err := Start(ctx, o)
	if err != nil {
		return report, err
	}
	return report, w.Close()
}

// spawn starts the worker process and writes its id maps.
func (w *Worker) spawn() error {
	var subs *subIDs
	if w.options.Tier == Tier1S {
		var none *Finding
		if subs, none = findSubIDs(w.options.UID, w.options.GID); none != nil {
			return &UnavailableError{Tier: Tier1S, Findings: []Finding{*none}}
		}
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	w.ctl = &conn{f: ours}
	if w.child, err = w.fork(theirs, subs == nil); err != nil {
		ours.Close()
		return w.refused(err)
	}
	if subs != nil {
		if err := subs.apply(w.child.pid); err != nil {
			w.Close()
			return &UnavailableError{Tier: Tier1S, Findings: []Finding{{Tier: Tier1S, Step: "sub-ids", Cause: err.Error(),
				Fix: "newuidmap and newgidmap must be setuid root or have file capabilities: reinstall uidmap; on a nosuid file system or with no_new_privs they cannot work"}}}
		}
	}
	if err := w.ctl.send(request{Unlock: true}); err != nil {
		w.Close()
		return fmt.Errorf("start the sandbox's worker: %w", err)
	}
	return nil
}

// fork re-executes us in a new user namespace. Nothing is inherited but standard error, for a crash.
// When we die the worker sees its socket closed, ends the steps and removes what it made; a
// Pdeathsig would not leave it the time. A terminal's signals must not reach it: hence the session.
func (w *Worker) fork(socket *os.File, mapped bool) (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, AmbientCaps: workerCaps, Setsid: true}
	if mapped {
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: w.options.UID, HostID: os.Geteuid(), Size: 1}}
		sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: w.options.GID, HostID: os.Getegid(), Size: 1}}
		sys.GidMappingsEnableSetgroups = w.setGroups
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: selfEnv, Files: []uintptr{null.Fd(), null.Fd(), uintptr(syscall.Stderr), socket.Fd()}, Sys: sys}
	c, err := start(w.options.Executable, []string{workerName}, attr)
	runtime.KeepAlive(socket)
	return c, err
}

// dial opens a connection for one request.
func (w *Worker) dial() (*conn, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err := w.ctl.send(call{}, int(theirs.Fd())); err != nil {
		ours.Close()
		return nil, fmt.Errorf("the sandbox's worker has ended: %w", err)
	}
	return &conn{f: ours}, nil
}

// ask sends a request and waits for its result. When ctx ends first, the request ends with it.
func (w *Worker) ask(ctx context.Context, req request) (result, error) {
	c, err := w.dial()
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	if err := c.send(req); err != nil {
		return result{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.send(control{Signal: int(syscall.SIGKILL)}) })
	defer stop()
	var res result
	if _, err := c.recv(&res); err != nil {
		return result{}, fmt.Errorf("the sandbox's worker has ended: %w", err)
	}
	return res, res.err()
}

// Remove deletes the tree at path, whatever owners and modes it has, as rm -rf would; a missing one
// is no error. It refuses what a running step uses. It does not stop half-way when ctx ends.
func (w *Worker) Remove(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	_, err = w.ask(context.WithoutCancel(ctx), request{Remove: abs})
	return err
}

// Close ends all steps and the worker, and waits until they have ended.
func (w *Worker) Close() error {
	w.closing.Do(func() {
		w.ctl.Close()
		select {
		case <-w.child.done:
		case <-time.After(2 * defaultGrace):
			syscall.Kill(w.child.pid, syscall.SIGKILL)
			<-w.child.done
			w.closeErr = errors.New("the sandbox's worker did not end by itself and was killed")
		}
	})
	return w.closeErr
}

// In returns a Runner whose processes see only what spec says. Where overlay is not to be had the
// merged directories of spec are copied into their Upper, once per worker, before the first Run;
// then Upper alone is the result.
func (w *Worker) In(spec Spec) Runner { return &step{w, spec} }

type step struct {
	w    *Worker
	spec Spec
}

// Run implements Runner.
func (s *step) Run(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	spec, err := s.w.materialise(ctx, s.spec)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	std, err := openStdio(c)
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Path, err)
	}
	res, err := s.run(ctx, s.w.runRequest(spec, c), std)
	return errors.Join(err, endOfStep(ctx, res, err), std.wait())
}

func (s *step) check() error {
	o := s.w.options
	if s.w.report.Tier != Tier1S && (s.spec.UID != o.UID || s.spec.GID != o.GID) {
		return fmt.Errorf("ids %d:%d are not mapped: tier %s has only %d:%d", s.spec.UID, s.spec.GID, s.w.report.Tier, o.UID, o.GID)
	}
	return s.spec.check()
}

func (w *Worker) runRequest(spec Spec, c Command) *runRequest {
	args := c.Args
	if len(args) == 0 {
		args = []string{c.Path}
	}
	return &runRequest{
		Spec: spec, Path: c.Path, Args: args, Env: c.Env, Dir: c.Dir,
		BindProc:  w.report.Tier == Tier3,
		SetGroups: w.setGroups,
		RootCaps:  w.report.Tier == Tier1S && spec.UID == 0,
		Quirks:    w.quirks,
	}
}

// run sends the step with its files and waits for its end.
func (s *step) run(ctx context.Context, r *runRequest, std *stdio) (result, error) {
	defer std.closeChild()
	c, err := s.w.dial()
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	var fds []int
	for _, f := range std.files {
		at := -1
		if f != nil {
			at = len(fds)
			fds = append(fds, int(f.Fd()))
		}
		r.Files = append(r.Files, at)
	}
	err = c.send(request{Run: r}, fds...)
	runtime.KeepAlive(std)
	if err != nil {
		return result{}, fmt.Errorf("run %s: %w", r.Path, err)
	}
	std.closeChild()
	return s.await(ctx, c)
}

// await waits for the result; when ctx ends it asks the step to end, and after the grace makes it.
func (s *step) await(ctx context.Context, c *conn) (result, error) {
	type reply struct {
		res result
		err error
	}
	done := make(chan reply, 1)
	go func() {
		var r reply
		_, r.err = c.recv(&r.res)
		done <- r
	}()
	grace := s.spec.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	var kill <-chan time.Time
	over := ctx.Done()
	for {
		select {
		case r := <-done:
			if r.err != nil {
				return r.res, fmt.Errorf("the sandbox's worker has ended: %w", r.err)
			}
			return r.res, nil
		case <-over:
			over = nil
			c.send(control{Signal: int(syscall.SIGTERM)})
			t := time.NewTimer(grace)
			defer t.Stop()
			kill = t.C
		case <-kill:
			c.send(control{Signal: int(syscall.SIGKILL)})
		}
	}
}

// endOfStep makes an error of a result. A step that ended well did so even if ctx is over.
func endOfStep(ctx context.Context, res result, failed error) error {
	if failed != nil {
		return nil
	}
	err := res.err()
	if err == nil && (res.Code != 0 || res.Signal != 0) {
		err = &ExitError{Code: res.Code, Signal: syscall.Signal(res.Signal)}
	}
	if cerr := ctx.Err(); err != nil && cerr != nil {
		return fmt.Errorf("%w (%w)", cerr, err)
	}
	return err
}

// materialise replaces the overlays of spec by directories, where that must be.
func (w *Worker) materialise(ctx context.Context, spec Spec) (Spec, error) {
	if !w.report.Copies {
		return spec, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	if spec.Root, err = w.copyOnce(ctx, spec.Root); err != nil {
		return spec, err
	}
	spec.Mounts = append([]Mount(nil), spec.Mounts...)
	for i, m := range spec.Mounts {
		if m.Overlay == nil {
			continue
		}
		o, err := w.copyOnce(ctx, *m.Overlay)
		if err != nil {
			return spec, err
		}
		spec.Mounts[i].Overlay = &o
	}
	return spec, nil
}

// copyOnce fills o.Upper with the merged view, by a copy in o.Work and two renames.
func (w *Worker) copyOnce(ctx context.Context, o Overlay) (Overlay, error) {
	if len(o.Lowers) == 0 {
		return o, nil
	}
	if o.Upper == "" {
		return o, errors.New("without overlay a merged directory needs an upper directory to be copied to")
	}
	plain := Overlay{Upper: o.Upper}
	if w.copied[o.Upper] {
		return plain, nil
	}
	if err := w.copy(ctx, o); err != nil {
		return o, fmt.Errorf("copy the layers into %s: %w", o.Upper, err)
	}
	w.copied[o.Upper] = true
	return plain, nil
}

func (w *Worker) copy(ctx context.Context, o Overlay) error {
	merged, old := filepath.Join(o.Work, "merged"), filepath.Join(o.Work, "old")
	for _, dir := range []string{merged, old} {
		if err := w.Remove(ctx, dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{o.Upper, merged} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := w.options.Copy(ctx, merged, o); err != nil {
		return err
	}
	if err := os.Rename(o.Upper, old); err != nil {
		return err
	}
	if err := os.Rename(merged, o.Upper); err != nil {
		return err
	}
	return w.Remove(ctx, old)
}
