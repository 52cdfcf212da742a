package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// server is the worker process: it has all capabilities over its own user namespace and none
// outside, the caller's uid, no secret and a small heap to fork from.
type server struct {
	paths pathLocks
	calls sync.WaitGroup

	mu     sync.Mutex
	relays map[*relay]bool // of the running steps; nil once the caller is gone
}

func workerMain() int {
	if err := closeInherited(func(fd int) bool { return fd == connFD }); err != nil {
		return 1
	}
	syscall.Umask(0o022)
	unix.SetNonblock(connFD, true)
	ctl := &conn{f: os.NewFile(connFD, "caller")}
	var first request
	if _, err := ctl.recv(&first); err != nil || !first.Unlock {
		return 1
	}
	// From here on newuidmap has no more to look at: a step must not look into us either.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 1
	}
	s := &server{paths: pathLocks{used: map[string]int{}}, relays: map[*relay]bool{}}
	for {
		var c call
		fds, err := ctl.recv(&c)
		if err != nil {
			s.endAll()
			return 0
		}
		if len(fds) != 1 {
			closeAll(fds)
			continue
		}
		unix.SetNonblock(fds[0], true)
		s.calls.Add(1)
		go s.serve(&conn{f: os.NewFile(uintptr(fds[0]), "call")})
	}
}

// endAll kills the steps of a caller that is gone or has closed, and waits for their end.
func (s *server) endAll() {
	s.mu.Lock()
	for r := range s.relays {
		r.kill()
	}
	s.relays = nil
	s.mu.Unlock()
	s.calls.Wait()
}

func (s *server) serve(c *conn) {
	defer s.calls.Done()
	defer c.Close()
	var req request
	fds, err := c.recv(&req)
	if err != nil {
		return
	}
	var res result
	switch {
	case req.Run != nil && req.Run.Probe != nil:
		closeAll(fds)
		res = s.probe(c, req.Run)
	case req.Run != nil:
		res = s.run(c, req.Run, fds)
	case req.Remove != "":
		closeAll(fds)
		if err := s.remove(req.Remove); err != nil {
			res = failure(err)
		}
	default:
		closeAll(fds)
		res = failure(errors.New("unknown request"))
	}
	c.send(res)
}

// run starts PID 1 of a step and waits for its end, which is the end of the whole namespace.
func (s *server) run(c *conn, r *runRequest, files []int) result {
	unlock, err := s.lockSpec(&r.Spec)
	if err != nil {
		closeAll(files)
		return failure(err)
	}
	defer unlock()
	ours, theirs, err := socketpair()
	if err != nil {
		closeAll(files)
		return failure(err)
	}
	inner := &conn{f: ours}
	defer inner.Close()
	child, err := startInit(r, theirs, files)
	closeAll(files)
	theirs.Close()
	if err != nil {
		return failure(at("clone", err))
	}
	if err := inner.send(r); err != nil {
		unix.Kill(child.pid, unix.SIGKILL)
	}
	signals := &relay{pid: child.pid, inner: inner}
	defer s.track(signals)()
	go signals.from(c)
	res, super, rerr := awaitInit(inner)
	inner.Close()
	status := <-child.done
	signals.stop()
	super.end()
	if rerr != nil {
		return lostInit(status, signals.killed)
	}
	return res
}

// awaitInit waits for the result of PID 1. Before that comes the listener, if it has one.
func awaitInit(inner *conn) (res result, super *supervisor, err error) {
	fds, err := inner.recv(&res)
	if err != nil || !res.Listener {
		return res, nil, err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return res, nil, errors.New("the sandbox's init sent no listener")
	}
	super = supervise(fds[0])
	res = result{}
	_, err = inner.recv(&res)
	return res, super, err
}

// lostInit makes a result where PID 1 ended without one: killed as asked, or by the system.
func lostInit(status syscall.WaitStatus, asked bool) result {
	if asked {
		return result{Code: -1, Signal: int(syscall.SIGKILL)}
	}
	if status.Signaled() {
		return failure(fmt.Errorf("the sandbox's init was ended by signal %d (%s); was memory short?", int(status.Signal()), status.Signal()))
	}
	return failure(fmt.Errorf("the sandbox's init ended with status %d", status.ExitStatus()))
}

func startInit(r *runRequest, socket *os.File, files []int) (*child, error) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(null)
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if r.Spec.Network == NoNetwork {
		flags |= unix.CLONE_NEWNET
	}
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   selfEnv,
		Files: []uintptr{uintptr(null), uintptr(null), 2, socket.Fd()},
		Sys:   &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL, Setsid: true},
	}
	for _, fd := range files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	return start(selfExe, []string{initName}, attr)
}

// relay passes the caller's signals on to PID 1, and never to a pid that has been waited for.
type relay struct {
	mu      sync.Mutex
	pid     int
	inner   *conn
	killed  bool
	stopped bool
}

func (r *relay) from(c *conn) {
	for {
		var ctl control
		if _, err := c.recv(&ctl); err != nil {
			ctl.Signal = int(syscall.SIGKILL) // the caller is gone, or has what it wants
		}
		if syscall.Signal(ctl.Signal) != syscall.SIGKILL {
			r.inner.send(ctl)
			continue
		}
		r.kill()
		return
	}
}

func (r *relay) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.killed = true
		unix.Kill(r.pid, unix.SIGKILL)
	}
}

// track makes the step one that endAll ends.
func (s *server) track(r *relay) (forget func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relays == nil {
		r.kill()
		return func() {}
	}
	s.relays[r] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.relays, r)
	}
}

func (r *relay) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
}

// lockSpec makes the scratch directories of spec and takes them for one step: what overlayfs does
// with an upper that is mounted twice is not defined.
func (s *server) lockSpec(spec *Spec) (unlock func(), err error) {
	var held []func()
	unlock = func() {
		for _, f := range held {
			f()
		}
	}
	overlays := []*Overlay{&spec.Root}
	for _, m := range spec.Mounts {
		if m.Overlay != nil {
			overlays = append(overlays, m.Overlay)
		}
	}
	for _, o := range overlays {
		f, err := s.lockOverlay(o)
		if err != nil {
			unlock()
			return nil, err
		}
		held = append(held, f)
	}
	for _, m := range spec.Mounts {
		if m.Source != "" {
			held = append(held, s.paths.use(m.Source))
		}
	}
	return unlock, nil
}

func (s *server) lockOverlay(o *Overlay) (unlock func(), err error) {
	var held []func()
	unlock = func() {
		for _, f := range held {
			f()
		}
	}
	for _, dir := range o.Lowers {
		held = append(held, s.paths.use(dir))
	}
	if o.Upper == "" {
		return unlock, nil
	}
	held = append(held, s.paths.use(o.Upper))
	if len(o.Lowers) == 0 {
		return unlock, nil // a bind: may be shared
	}
	mode := os.FileMode(0o755)
	if fi, err := os.Stat(o.Lowers[0]); err == nil {
		mode = fi.Mode().Perm() // the upper's mode is the merged directory's
	}
	for _, dir := range []string{o.Upper, o.Work} {
		if err := makeDir(dir, mode); err != nil {
			unlock()
			return nil, err
		}
		free, err := lockDir(dir)
		if err != nil {
			unlock()
			return nil, err
		}
		held = append(held, free)
	}
	// What a volatile mount leaves there makes the next one fail. It has mode 000.
	if err := removeTree(filepath.Join(o.Work, "work")); err != nil {
		unlock()
		return nil, fmt.Errorf("clear overlay work directory: %w", err)
	}
	return unlock, nil
}

func makeDir(dir string, mode os.FileMode) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make overlay directory: %w", err)
	}
	return os.Chmod(dir, mode)
}

// lockDir takes a kernel lock, which a dead process does not hold.
func lockDir(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open overlay directory", Path: dir, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "lock overlay directory (another step uses it)", Path: dir, Err: err}
	}
	return func() {
		// Closing does not do: a step that is being started has a copy until it has exec'ed.
		unix.Flock(fd, unix.LOCK_UN)
		unix.Close(fd)
	}, nil
}

// pathLocks counts what running steps use, so that nothing is removed under them.
type pathLocks struct {
	mu   sync.Mutex
	used map[string]int
}

func (p *pathLocks) use(path string) (release func()) {
	path = filepath.Clean(path)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[path]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.used[path]--; p.used[path] == 0 {
			delete(p.used, path)
		}
	}
}

// user names a used path at, above or below path.
func (p *pathLocks) user(path string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for used := range p.used {
		if within(used, path) || within(path, used) {
			return used, true
		}
	}
	return "", false
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func (s *server) remove(path string) error {
	path = filepath.Clean(path)
	if used, ok := s.paths.user(path); ok {
		return fmt.Errorf("remove %s: a running step uses %s: %w", path, used, unix.EBUSY)
	}
	return removeTree(path)
}
