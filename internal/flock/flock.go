// Package flock locks files among processes. A lock is the kernel's (flock(2)
// on an open file description): two holders in one process exclude each other
// as two processes do, and a dead process holds none.
package flock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld says that somebody else has the lock.
var ErrHeld = errors.New("held by another process")

// Lock is a lock that is held.
type Lock struct {
	f      *os.File
	signed bool
}

// Unlock gives the lock back.
func (l *Lock) Unlock() {
	if l.signed {
		_ = l.f.Truncate(0)
	}
	// Closing alone does not do: a process that is being started has a copy of
	// the descriptor until it has exec'ed.
	_ = lock(l.f, unix.LOCK_UN)
	_ = l.f.Close()
}

// Try takes a lock without waiting, or fails with ErrHeld. The file is opened
// with flags; how is unix.LOCK_SH or unix.LOCK_EX. On a file system that has no
// locks it fails with errors.ErrUnsupported.
func Try(path string, flags, how int) (*Lock, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f, how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrHeld
		}
		return nil, fmt.Errorf("flock %s: %w", path, err)
	}
	return &Lock{f: f}, nil
}

// Take takes a lock, waiting for it as long as ctx lives.
func Take(ctx context.Context, path string, flags, how int) (*Lock, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := Try(path, flags, how)
	if !errors.Is(err, ErrHeld) {
		return l, err
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	// A blocked flock cannot be called off. Whoever waits in vain leaves a
	// goroutine behind that gives the lock back the moment it gets it.
	got := make(chan error, 1)
	go func() { got <- lock(f, how) }()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		return &Lock{f: f}, nil
	case <-ctx.Done():
		go func() { <-got; _ = f.Close() }()
		return nil, fmt.Errorf("wait for lock %s: %w", path, ctx.Err())
	}
}

// Hold takes the exclusive lock of the regular file at path, which it makes,
// and writes into it who it is. If another has it, wait (unless nil) is called
// once with who that is, and Hold waits for as long as ctx lives. It follows no
// link.
func Hold(ctx context.Context, path string, wait func(holder string)) (*Lock, error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	l, err := Try(path, flags, unix.LOCK_EX)
	if errors.Is(err, ErrHeld) {
		if wait != nil {
			wait(holderOf(path))
		}
		l, err = Take(ctx, path, flags, unix.LOCK_EX)
	}
	if err != nil {
		return nil, err
	}
	l.sign()
	return l, nil
}

// sign is for people only: who holds the lock is the kernel's knowledge.
func (l *Lock) sign() {
	var st unix.Stat_t
	if unix.Fstat(int(l.f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return
	}
	where := ""
	if host, err := os.Hostname(); err == nil {
		where = " on " + host
	}
	text := fmt.Sprintf("process %d (%s)%s, since %s", os.Getpid(), filepath.Base(os.Args[0]), where, time.Now().Format(time.TimeOnly))
	_ = l.f.Truncate(0)
	_, err := l.f.WriteAt([]byte(text), 0)
	l.signed = err == nil
}

// maxHolder is as much as is shown of a lock file, in bytes.
const maxHolder = 200

func holderOf(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "another process"
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHolder))
	if err != nil || len(b) == 0 {
		return "another process"
	}
	return string(b)
}

func lock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch err {
		case unix.EINTR:
			continue
		case unix.ENOLCK: // what network file systems say
			return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return err
	}
}
