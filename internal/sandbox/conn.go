package sandbox

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message: a command line and environment are at most a few MiB (ARG_MAX).
const maxMessage = 64 << 20

// maxFiles is the kernel's SCM_MAX_FD.
const maxFiles = 253

// conn carries gob values and descriptors over a stream socket. Gob, because a path, an argument
// and a variable are bytes, and JSON would mangle those that are not UTF-8.
type conn struct {
	f  *os.File
	mu sync.Mutex // one sender at a time
}

// socketpair returns both ends, close-on-exec. Ends that go to another process must be blocking
// there; ours are non-blocking so that they do not cost a thread.
func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

func (c *conn) Close() error { return c.f.Close() }

// send sends v and copies of fds.
func (c *conn) send(v any, fds ...int) error {
	if len(fds) > maxFiles {
		return fmt.Errorf("%d files for one process, at most %d can be passed", len(fds), maxFiles)
	}
	var buf bytes.Buffer
	buf.Write(make([]byte, 4))
	if err := gob.NewEncoder(&buf).Encode(v); err != nil {
		return err
	}
	msg := buf.Bytes()
	if len(msg) > maxMessage {
		return fmt.Errorf("command line and environment of %d bytes: %w", len(msg), unix.E2BIG)
	}
	binary.LittleEndian.PutUint32(msg, uint32(len(msg)-4))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.sendFirst(msg, rights)
	if err != nil || n == len(msg) { // the other side may have answered and gone already
		return err
	}
	_, err = c.f.Write(msg[n:])
	return err
}

func (c *conn) sendFirst(msg, rights []byte) (n int, err error) {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	werr := raw.Write(func(fd uintptr) bool {
		for {
			n, err = unix.SendmsgN(int(fd), msg, rights, nil, unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	return n, errors.Join(werr, err)
}

// recv fills v and returns the descriptors that came along, close-on-exec. It returns io.EOF when
// the other side has closed.
func (c *conn) recv(v any) (fds []int, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	head := make([]byte, 4)
	for got := 0; got < len(head); {
		n, more, err := c.recvFirst(head[got:])
		fds = append(fds, more...)
		if err != nil {
			return fds, err
		}
		if n == 0 {
			return fds, io.EOF
		}
		got += n
	}
	size := binary.LittleEndian.Uint32(head)
	if size > maxMessage {
		return fds, fmt.Errorf("message of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.f, body); err != nil {
		return fds, err
	}
	return fds, gob.NewDecoder(bytes.NewReader(body)).Decode(v)
}

func (c *conn) recvFirst(p []byte) (n int, fds []int, err error) {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	var oobn int
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if err := errors.Join(rerr, err); err != nil {
		return 0, nil, err
	}
	if oobn == 0 {
		return n, nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, nil, err
	}
	for i := range msgs {
		if rights, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, rights...)
		}
	}
	return n, fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// connFD is the descriptor on which a re-executed process finds its conn.
const connFD = 3

// Messages to the worker. A call is sent with one socket, on which everything else goes.
type call struct{}

type request struct {
	Run    *runRequest
	Remove string
	Unlock bool // the id maps have been written
}

// process is a Command on its way to whom starts it.
type process struct {
	Path  string
	Args  []string
	Env   []string
	Dir   string
	Files []int // for each descriptor, which file that came along, or -1 for /dev/null
}

// newProcess is c, with its descriptors as std has them, and the files that are to come along.
func newProcess(c Command, std *stdio) (process, []*os.File) {
	p := process{Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir}
	if len(p.Args) == 0 {
		p.Args = []string{c.Path}
	}
	if p.Dir == "" {
		p.Dir = "/"
	}
	var files []*os.File
	for _, f := range std.files {
		at := -1
		if f != nil {
			at = len(files)
			files = append(files, f)
		}
		p.Files = append(p.Files, at)
	}
	return p, files
}

// runRequest comes with the step's files.
type runRequest struct {
	Spec    Spec
	Process process

	BindProc  bool         // tier 3
	SetGroups bool         // setgroups is allowed
	RootCaps  bool         // uid 0 inside keeps rootCaps
	Pretend   bool         // tier 1f
	Quirks    quirks       // test hooks and fall-backs
	Probe     *probeParams // find out instead of run
}

// inPlaceRequest goes to a reaper, which was started with the command's files.
type inPlaceRequest struct {
	Process process
	As      *syscall.Credential
	Kept    kept
	Probe   bool // find out instead of run
}

// kept is what InPlace keeps from a command.
type kept struct{ ReadOnly, FixedEntries, Hidden []string }

// quirks forces the ways that a kernel other than this one would take.
type quirks struct {
	LegacyOverlay bool // mount(2) instead of lowerdir+
}

// control is what the caller says while a step runs. SIGKILL ends the namespace.
type control struct{ Signal int }

// result is how a request ended. It travels from PID 1 over the worker to the caller.
type result struct {
	Listener bool   // no end yet: the descriptor that came along is the filter's listener
	Err      string // what failed, with its operand
	Errno    int    // its errno, or 0
	Step     string // the set-up step that failed
	Code     int
	Signal   int
	Probe    *probeResult
	Guards   []guard // what protects from a command in place
}

// stepError is a set-up step that failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

func failure(err error) result {
	r := result{Err: err.Error()}
	var errno unix.Errno
	if errors.As(err, &errno) {
		r.Errno = int(errno)
	}
	var s *stepError
	if errors.As(err, &s) {
		r.Step = s.step
	}
	return r
}

// remoteError is a failure of another process. It unwraps to its errno, so that errors.Is works.
type remoteError struct {
	msg   string
	errno unix.Errno
}

func (e *remoteError) Error() string { return e.msg }

func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

func (r result) err() error {
	if r.Err != "" {
		return &remoteError{r.Err, unix.Errno(r.Errno)}
	}
	return nil
}
