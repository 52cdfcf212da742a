package lifecycle

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/layer/layertest"
	"github.com/kilnbuild/kiln/test/conform"
)

// TestForeignCodeStillRuns: phases that hold credentials, in containers that share
// <layers>, the app and the cache with code that is not done yet. Whatever that
// exchanges while they read or write, they read and write nothing else, and end.
func TestForeignCodeStillRuns(t *testing.T) {
	conform.Covers(t, 11)
	w, host, c := newWorld(t), newRegistry(t), layertest.NewCanary(t)
	w.app(host)
	w.build(host)
	dirs := []string{w.path("layers"), w.path("workspace"), w.path("cache")}
	foreign, stop := layertest.Race(t, c, dirs...)

	own := w.host
	mapped := own
	mapped.Dirs = map[string]layer.Stack{w.path("layers"): {Upper: w.path("layers")}, w.path("workspace"): {Upper: w.path("workspace")}}
	ran, exported := 0, 0
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
		for i, argv := range w.phases(host) {
			if argv[0] == detector || argv[0] == builder {
				continue
			}
			w.host = []Host{own, mapped}[(ran+i)%2]
			done := inBackground(func() int { return w.run(argv[0], argv[1:]...) })
			select {
			case code := <-done:
				ran++
				if code == 0 && argv[0] == exporter {
					exported++
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%q does not end\n%s%s", argv, w.stdout.String(), w.stderr.String())
			}
			if said := w.stdout.String() + w.stderr.String(); strings.Contains(said, c.Secret) {
				t.Errorf("%s says what is outside: %s", argv[0], said)
			}
		}
	}
	stop()
	c.Check(t)
	t.Logf("%d phases, %d exports, %d exchanges", ran, exported, foreign.Swaps)
	if ran < 6 || foreign.Swaps < 1000 {
		t.Errorf("%d phases and %d exchanges show nothing", ran, foreign.Swaps)
	}
	hasNoSecret(t, host, c)
	for _, dir := range dirs {
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), c.Secret) {
					t.Errorf("%s has what is outside", path)
				}
			}
			return nil
		})
	}
	// Left alone it is as it was.
	w.host = own
	w.build(host)
	for _, name := range []string{"layers", "cache"} {
		left, err := filepath.Glob(w.path(name) + "/.restore-*")
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %q %v", left, err)
		}
	}
}

// hasNoSecret reads all layers of the app's image.
func hasNoSecret(t *testing.T, host string, c *layertest.Canary) {
	t.Helper()
	img, _ := pull(t, host+"/me/app:1")
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range slices.Backward(layers) {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || strings.Contains(string(b), c.Secret) {
			t.Errorf("a layer has what is outside: %v", err)
		}
	}
}
