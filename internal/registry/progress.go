package registry

import (
	"io"
	"sync"
	"time"

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

// upload is a request's body: it counts, and keeps the error of its source
// apart from those of the network.
type upload struct {
	io.ReadCloser
	progress *transfer

	mu     sync.Mutex
	n      int64
	err    error
	closed bool
}

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.mu.Lock()
	u.n += int64(n)
	if err != nil && err != io.EOF && !u.closed {
		u.err = err
	}
	u.mu.Unlock()
	u.progress.add(int64(n))
	return n, err
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
