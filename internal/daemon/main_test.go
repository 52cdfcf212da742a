package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

var daemons []*daemontest.Daemon

func TestMain(m *testing.M) {
	var err error
	if daemons, err = daemontest.All(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, d := range daemons {
		d.Stop()
	}
	os.Exit(code)
}

func unpack(ctx context.Context, file string) (v1.Image, error) {
	return archive.DockerArchive{Path: file}.Image(ctx, "")
}

func open(t *testing.T, o Options) *Daemon {
	t.Helper()
	o.Unpack = unpack
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// each runs a test with every daemon that there is.
func each(t *testing.T, test func(t *testing.T, host string)) {
	for _, d := range daemons {
		t.Run(d.Kind, func(t *testing.T) {
			t.Parallel()
			test(t, d.Host)
		})
	}
}

// tap is between a client and a daemon and sees what is sent.
type tap struct {
	host string

	mu    sync.Mutex
	conns int
	sent  []byte
}

func newTap(t *testing.T, host string) *tap {
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
	tp := &tap{host: "unix://" + socket}
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

func (tp *tap) serve(client net.Conn, socket string) {
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

func (tp *tap) Write(p []byte) (int, error) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.sent = append(tp.sent, p...)
	return len(p), nil
}

// reset forgets what was seen, and returns it.
func (tp *tap) reset() string {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	s := string(tp.sent)
	tp.sent = nil
	return s
}

// cancelling is a layer that is cut off while it is read.
type cancelling struct {
	imagetest.Broken
	cancel func()
}

func (c cancelling) Compressed() (io.ReadCloser, error) {
	rc, err := c.Broken.Compressed()
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, 1<<18), readerFunc(func([]byte) (int, error) { c.cancel(); return 0, io.EOF }), rc), rc}, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
