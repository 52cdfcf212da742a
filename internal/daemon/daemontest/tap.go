package daemontest

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Tap is between a client and a daemon and sees what is sent.
type Tap struct {
	Host string // where the client finds it

	mu    sync.Mutex
	conns int
	sent  []byte
}

// NewTap listens until the test ends.
func NewTap(t testing.TB, host string) *Tap {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kt-")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	tp := &Tap{Host: "unix://" + socket}
	t.Cleanup(func() {
		l.Close()
		os.RemoveAll(dir)
	})
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			tp.mu.Lock()
			tp.conns++
			tp.mu.Unlock()
			go tp.serve(client, strings.TrimPrefix(host, "unix://"))
		}
	}()
	return tp
}

func (tp *Tap) serve(client net.Conn, socket string) {
	defer client.Close()
	daemon, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(client, daemon) // the client will see
		client.Close()
	}()
	_, _ = io.Copy(daemon, io.TeeReader(client, tp)) // so will the daemon
	daemon.Close()
}

// Write takes what a client sends.
func (tp *Tap) Write(p []byte) (int, error) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.sent = append(tp.sent, p...)
	return len(p), nil
}

// Reset forgets what was sent, and returns it.
func (tp *Tap) Reset() string {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	s := string(tp.sent)
	tp.sent = nil
	return s
}

// Conns is how many connections were made.
func (tp *Tap) Conns() int {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return tp.conns
}
