package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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
	// overlay is not to be had is it needed, and called. It may run steps of the same worker in
	// plain directories: what belongs to other ids can only be read there.
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
	ids       idMap
	findings  []Finding // what speaks against better maps
	setGroups bool
	child     *child
	ctl       *conn
	quirks    quirks

	closing  sync.Once
	closeErr error

	mu     sync.Mutex
	copied map[string]*copied // by upper
}

// Start starts a worker in a user namespace of its own and finds out what it can do there. A refusal
// is an *UnavailableError, with the causes and what would help. End it with Close.
func Start(ctx context.Context, o Options) (*Worker, Report, error) {
	if err := ctx.Err(); err != nil {
		return nil, Report{}, fmt.Errorf("start the sandbox: %w", err)
	}
	if err := o.Tier.check(o.UID, o.GID); err != nil {
		return nil, Report{}, err
	}
	if len(o.Scratch) == 0 {
		o.Scratch = []string{os.TempDir()}
	}
	if o.Executable == "" {
		o.Executable = selfExe
	}
	w := &Worker{options: o, copied: map[string]*copied{}}
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

// maps are the id maps that the tier asks for, best first.
func (w *Worker) maps() (maps []idMap, findings []Finding) {
	uid, gid := w.options.UID, w.options.GID
	switch w.options.Tier {
	case Tier1F:
		return []idMap{singleID(RecordedIDs, uid, gid)}, nil
	case Tier1S:
		return realIDs(uid, gid)
	case BestRoot:
		maps, findings = realIDs(uid, gid)
		return append(maps, singleID(RecordedIDs, uid, gid)), findings
	}
	return []idMap{singleID(SingleID, uid, gid)}, nil
}

// spawn starts the worker process with the best id map that can be had.
func (w *Worker) spawn() error {
	var maps []idMap
	maps, w.findings = w.maps()
	for _, m := range maps {
		err := w.spawnWith(m)
		var refusal *UnavailableError
		if !errors.As(err, &refusal) {
			if m.ids != RecordedIDs {
				w.findings = nil // what was tried before would have been no better for the step
			}
			return err
		}
		for _, f := range refusal.Findings {
			if !slices.Contains(w.findings, f) {
				w.findings = append(w.findings, f)
			}
		}
	}
	return w.unavailable()
}

// spawnWith starts the worker process and has its id maps written.
func (w *Worker) spawnWith(m idMap) error {
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	w.ids, w.ctl = m, &conn{f: ours}
	w.setGroups = maySetGroups() || m.ids == RealIDs
	if w.child, err = w.fork(theirs); err != nil {
		ours.Close()
		return w.refused(err)
	}
	if err := m.apply(w.child.pid); err != nil {
		ours.Close()
		<-w.child.done
		return &UnavailableError{Tier: Tier1S, Findings: []Finding{{Tier: Tier1S, Step: "sub-ids", Cause: err.Error(),
			Fix: "newuidmap and newgidmap must be setuid root or have file capabilities: reinstall uidmap; on a nosuid file system or with no_new_privs they cannot work"}}}
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
func (w *Worker) fork(socket *os.File) (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, AmbientCaps: w.ids.caps(), Setsid: true}
	if w.ids.newuidmap == "" {
		sys.UidMappings, sys.GidMappings, sys.GidMappingsEnableSetgroups = w.ids.uids, w.ids.gids, w.setGroups
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
