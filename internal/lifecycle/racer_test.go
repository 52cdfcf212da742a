package lifecycle

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/layer/layertest"
	"github.com/kilnbuild/kiln/test/conform"
)

// racer is foreign code that still runs: for as long as it does, files and
// directories of the build are something else for a moment, again and again.
type racer struct {
	rand  *rand.Rand
	dirs  []string // whose content is exchanged
	aside string   // where the other things are
	swaps int
}

// others makes what takes the places: links to what is outside, pipes, files
// of its own.
func (r *racer) others(c *layertest.Canary) (list []string) {
	add := func(make func(name string) error) {
		name := filepath.Join(r.aside, fmt.Sprint(len(list)))
		if make(name) == nil {
			list = append(list, name)
		}
	}
	for _, to := range []string{c.Outside, c.Outside + "/canary", c.Outside + "/dir", c.Outside + "/open", c.Outside + "/shared/file", c.Outside + "/new", "/dev/zero", "self"} {
		add(func(name string) error { return os.Symlink(to, name) })
	}
	add(func(name string) error { return syscall.Mkfifo(name, 0o666) })
	add(func(name string) error { return os.Mkdir(name, 0o755) })
	add(func(name string) error { return os.WriteFile(name, []byte("forged"), 0o644) })
	add(func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }) // zeros without end, for root
	return list
}

// run exchanges until stop is closed, and puts everything back.
func (r *racer) run(others []string, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		victims := r.victims()
		if len(victims) == 0 {
			continue
		}
		// One at a time, as fast as it goes: between a look and the use of what
		// was seen there are microseconds.
		r.exchange(victims[r.rand.IntN(len(victims))], others[r.rand.IntN(len(others))], 2*(1+r.rand.IntN(2000)))
	}
}

// exchange exchanges two files, n times or until one of them is gone.
func (r *racer) exchange(victim, other string, n int) {
	parent, err := unix.Openat2(unix.AT_FDCWD, filepath.Dir(victim), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return // or it would be this test's doing what happens outside
	}
	defer unix.Close(parent)
	for range n {
		if unix.Renameat2(parent, filepath.Base(victim), unix.AT_FDCWD, other, unix.RENAME_EXCHANGE) != nil {
			return
		}
		r.swaps++
	}
}

// victims are what is there, directories many times: more depends on them, and
// without a document a phase soon ends.
func (r *racer) victims() (list []string) {
	for _, dir := range r.dirs {
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && path != dir && len(list) < 1000 {
				list = append(list, path)
				if e.IsDir() {
					list = append(list, slices.Repeat([]string{path}, 10)...)
				}
			}
			return nil
		})
	}
	return list
}

// TestForeignCodeStillRuns: phases that hold credentials, in containers that share
// <layers>, the app and the cache with code that is not done yet. Whatever that
// exchanges while they read or write, they read and write nothing else, and end.
func TestForeignCodeStillRuns(t *testing.T) {
	conform.Covers(t, 11)
	w, host, c := newWorld(t), newRegistry(t), layertest.NewCanary(t)
	w.app(host)
	w.build(host)
	const seed = 20261125
	dirs := []string{w.path("layers"), w.path("workspace"), w.path("cache")}
	stop := make(chan struct{})
	var racing sync.WaitGroup
	foreign := &racer{rand: rand.New(rand.NewPCG(seed, seed)), dirs: dirs, aside: t.TempDir()}
	others := foreign.others(c)
	racing.Go(func() { foreign.run(others, stop) })

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
	close(stop)
	racing.Wait()
	c.Check(t)
	t.Logf("%d phases, %d exports, %d exchanges", ran, exported, foreign.swaps)
	if ran < 6 || foreign.swaps < 1000 {
		t.Errorf("%d phases and %d exchanges show nothing", ran, foreign.swaps)
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
