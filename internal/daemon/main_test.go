package daemon

import (
	"context"
	"io"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

func TestMain(m *testing.M) { os.Exit(daemontest.Main(m)) }

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
