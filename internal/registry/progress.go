package registry

import (
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
)

// progressEvery bounds how often a transfer tells of itself: often enough to
// look alive, seldom enough not to matter.
const progressEvery = 100 * time.Millisecond

// transfer counts the bytes of one or more blobs. A nil one counts nothing.
type transfer struct {
	mu    sync.Mutex
	sink  event.Sink
	state event.Progress
	last  time.Time
}

func newTransfer(sink event.Sink, id, text string, total int64) *transfer {
	return &transfer{sink: sink, state: event.Progress{ID: id, Text: text, Total: total, Unit: "bytes"}}
}

func (t *transfer) add(n int64) {
	if t == nil || n == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Done += n
	if now := time.Now(); !t.state.End && now.Sub(t.last) >= progressEvery {
		t.last = now
		t.sink.Emit(t.state)
	}
}

// end tells of the last state, once, if anything moved.
func (t *transfer) end() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state.End || t.state.Done == 0 {
		return
	}
	t.state.End = true
	t.sink.Emit(t.state)
}

// upload is a request's body. It counts, keeps the error of its source apart
// from those of the network, and checks what it sends: the last bytes are held
// back until size and digest are known to be right, so wrong ones never arrive
// whole.
type upload struct {
	io.ReadCloser
	desc     v1.Descriptor
	sum      hash.Hash
	progress *transfer

	mu     sync.Mutex
	n      int64
	err    error
	closed bool
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.sum.Write(p[:n])
	u.mu.Lock()
	if wrong := u.check(u.n+int64(n), err); wrong != nil {
		n, err = 0, wrong
	}
	u.n += int64(n)
	if err != nil && err != io.EOF && !u.closed {
		u.err = err
	}
	u.mu.Unlock()
	u.progress.add(int64(n))
	return n, err
}

// check is told where the source is and how it reads on from there. At the end,
// or past it, it looks whether the bytes were the right ones.
func (u *upload) check(at int64, err error) error {
	if err == nil && at == u.desc.Size {
		var one [1]byte
		var n int
		n, err = io.ReadFull(u.ReadCloser, one[:])
		at += int64(n)
	}
	switch {
	case err != nil && err != io.EOF:
		return err
	case at > u.desc.Size:
		return fmt.Errorf("%w: more than the %d bytes that were said", ErrCorrupt, u.desc.Size)
	case err == nil:
		return nil
	case at < u.desc.Size:
		return fmt.Errorf("%w: %d bytes of the %d that were said", ErrCorrupt, at, u.desc.Size)
	}
	if got := hex.EncodeToString(u.sum.Sum(nil)); got != u.desc.Digest.Hex {
		return fmt.Errorf("%w: got sha256:%s", ErrCorrupt, got)
	}
	return nil
}

// Close comes from net/http, perhaps while it still reads.
func (u *upload) Close() error {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	return u.ReadCloser.Close()
}

func (u *upload) sent() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n
}

func (u *upload) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}
