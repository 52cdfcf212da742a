package cache_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

// saveForeign is k as the reference saves it.
func saveForeign(t *testing.T, v reference.Volume, k kept) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(k.dir, "md.json"))
	if err != nil {
		t.Fatal(err)
	}
	v.Save(t, text, diffIDsOf(k), func(id string) ([]byte, error) { return os.ReadFile(filepath.Join(k.dir, id)) })
}

func diffIDsOf(k kept) (ids []string) {
	for _, l := range k.md.Buildpacks[0].Layers {
		ids = append(ids, l.SHA)
	}
	return ids
}

// A cache that another lifecycle wrote is ours, and ours is its.
func TestSharedForm(t *testing.T) {
	conform.Covers(t, 161)
	dir := t.TempDir()
	other := reference.Volume{Dir: dir}
	first, second, third := newKept(t, 2000, 300), newKept(t, 700), newKept(t, 100, 200, 300)
	saveForeign(t, other, first)
	first.mustBeIn(t, dir)
	second.save(t, dir)
	if ids := other.Load(t).IDs(); len(ids) != 1 {
		t.Errorf("it has %q", ids)
	}
	third.save(t, dir)
	before := inode(t, other.Path("committed", third.md.Buildpacks[0].Layers["l1"].SHA+".tar"))
	saveForeign(t, other, third)
	third.mustBeIn(t, dir)
	third.save(t, dir)
	if after := inode(t, other.Path("committed", third.md.Buildpacks[0].Layers["l1"].SHA+".tar")); after != before {
		t.Error("an unchanged layer was written again")
	}
	// Both at home: what it leaves when it dies disturbs nobody.
	other.Open(t)
	third.mustBeIn(t, dir)
	if fi, err := os.Stat(other.Path("kiln.lock")); err != nil || fi.Size() != 0 {
		t.Errorf("the lock: %v %v", fi, err)
	}
}

func inode(t *testing.T, file string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// Whatever a builder that died left, the last whole cache is the cache.
func TestLeftovers(t *testing.T) {
	conform.Covers(t, 156)
	old, next := newKept(t, 500, 100), newKept(t, 600)
	half := func(t *testing.T, dir, name string) {
		t.Helper()
		err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o755), os.WriteFile(filepath.Join(dir, name, "sha256:"+strings.Repeat("0", 64)+".tar"), []byte("half"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	whole := func(t *testing.T, dir, name string, k kept) {
		t.Helper()
		side := t.TempDir()
		k.save(t, side)
		if err := os.Rename(filepath.Join(side, "committed"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, state := range map[string]struct {
		make func(t *testing.T, dir string)
		want *kept
	}{
		"nothing":                 {func(*testing.T, string) {}, nil},
		"first, in the making":    {func(t *testing.T, dir string) { half(t, dir, "staging") }, nil},
		"in the making":           {func(t *testing.T, dir string) { whole(t, dir, "committed", old); half(t, dir, "staging") }, &old},
		"made":                    {func(t *testing.T, dir string) { whole(t, dir, "committed", old); whole(t, dir, "staging", next) }, &old},
		"between two renames":     {func(t *testing.T, dir string) { whole(t, dir, "committed-backup", old); whole(t, dir, "staging", next) }, &old},
		"first rename, power cut": {func(t *testing.T, dir string) { whole(t, dir, "committed-backup", old) }, &old},
		"renamed": {func(t *testing.T, dir string) {
			whole(t, dir, "committed", next)
			whole(t, dir, "committed-backup", old)
		}, &next},
		"swapped":      {func(t *testing.T, dir string) { whole(t, dir, "committed", next); whole(t, dir, "staging", old) }, &next},
		"half removed": {func(t *testing.T, dir string) { whole(t, dir, "committed", next); half(t, dir, "committed-backup") }, &next},
		"all at once": {func(t *testing.T, dir string) {
			whole(t, dir, "committed", next)
			half(t, dir, "staging")
			whole(t, dir, "committed-backup", old)
		}, &next},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			state.make(t, dir)
			if state.want != nil {
				state.want.mustBeIn(t, dir)
			} else {
				v := volume(t, dir)
				if _, ok, err := v.Load(t.Context()); ok || err != nil {
					t.Errorf("%t %v", ok, err)
				}
				v.Close()
			}
			k := newKept(t, 50)
			k.save(t, dir)
			k.mustBeIn(t, dir)
		})
	}
}

// A file system that cannot swap two names gets the two renames.
func TestWithoutExchange(t *testing.T) {
	cache.WithoutExchange(t, unix.EINVAL)
	dir := t.TempDir()
	for range 3 {
		k := newKept(t, 300, 20)
		k.save(t, dir)
		k.mustBeIn(t, dir)
	}
	cache.WithoutExchange(t, unix.EIO)
	k := newKept(t, 300, 20)
	v := volume(t, dir)
	if err := v.Save(t.Context(), k.md, k.open); !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
	v.Close()
	if got := names(t, dir); got != "committed kiln.lock" {
		t.Error(got)
	}
}

// warnings collects what a cache says.
type warnings struct {
	mu    sync.Mutex
	said  []string
	heard chan string
}

func (w *warnings) Emit(e event.Event) {
	m, ok := e.(event.Message)
	if !ok {
		return
	}
	w.mu.Lock()
	w.said = append(w.said, m.Text)
	w.mu.Unlock()
	if w.heard != nil {
		w.heard <- m.Text
	}
}

// The second builder waits for the first, says for whom, and gets its turn when
// that ends, however it does.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	holder := helperCommand(t, "hold", nil, dir)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("%q %v", line, err)
	}
	w := &warnings{heard: make(chan string, 10)}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := cache.OpenVolume(ctx, dir, w); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the context ended: %v", err)
	}
	if said := <-w.heard; !strings.Contains(said, dir) || !strings.Contains(said, "process ") || !strings.Contains(said, "cache.test") {
		t.Errorf("it waits and says %q", said)
	}
	cache.Impatient(t, 50*time.Millisecond)
	if _, err := cache.OpenVolume(t.Context(), dir, w); err == nil || !strings.Contains(err.Error(), "process ") {
		t.Errorf("patience ended: %v", err)
	}
	<-w.heard
	cache.Impatient(t, time.Minute)
	opened := make(chan error, 1)
	go func() {
		v, err := cache.OpenVolume(t.Context(), dir, w)
		if err == nil {
			v.Close()
		}
		opened <- err
	}()
	<-w.heard
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("the holder is dead: %v", err)
	}
	_ = holder.Wait() // it was killed
}

// Nothing that a buildpack puts in the directory leads out of it.
func TestHostileDirectory(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	whole := t.TempDir()
	newKept(t, 100).save(t, whole)
	for name, make := range map[string]func(t *testing.T, dir string) error{
		"committed is a link": func(t *testing.T, dir string) error {
			return os.Symlink(filepath.Join(whole, "committed"), filepath.Join(dir, "committed"))
		},
		"committed is a file": func(t *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "committed"), []byte("x"), 0o644)
		},
		"staging is a link": func(t *testing.T, dir string) error { return os.Symlink(outside, filepath.Join(dir, "staging")) },
		"backup is a link": func(t *testing.T, dir string) error {
			return os.Symlink(outside, filepath.Join(dir, "committed-backup"))
		},
		"the lock is a link":      func(t *testing.T, dir string) error { return os.Symlink(secret, filepath.Join(dir, "kiln.lock")) },
		"the lock is a directory": func(t *testing.T, dir string) error { return os.MkdirAll(filepath.Join(dir, "kiln.lock", "x"), 0o755) },
		"the lock is a pipe":      func(t *testing.T, dir string) error { return syscall.Mkfifo(filepath.Join(dir, "kiln.lock"), 0o644) },
		"no permissions": func(t *testing.T, dir string) error {
			newKept(t, 10).save(t, dir)
			t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "committed"), 0o755) })
			return os.Chmod(filepath.Join(dir, "committed"), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := make(t, dir); err != nil {
				t.Fatal(err)
			}
			v := volume(t, dir)
			md, ok, err := v.Load(t.Context())
			if strings.HasPrefix(name, "committed is") && (ok || err == nil) {
				t.Errorf("load: %+v %t %v", md, ok, err)
			}
			v.Close()
			k := newKept(t, 400)
			k.save(t, dir)
			k.mustBeIn(t, dir)
			if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" || names(t, outside) != "secret" {
				t.Errorf("outside: %q %s %v", b, names(t, outside), err)
			}
			if got := names(t, whole); got != "committed kiln.lock" {
				t.Errorf("another's cache: %s", got)
			}
		})
	}
}

// Every single byte of the metadata may be wrong.
func TestEveryByteOfMetadata(t *testing.T) {
	conform.Covers(t, 165)
	dir := t.TempDir()
	k := newKept(t, 100, 50)
	k.save(t, dir)
	file := filepath.Join(dir, "committed", "io.buildpacks.lifecycle.cache.metadata")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v := volume(t, dir)
	defer v.Close()
	for i := range text {
		for _, mask := range []byte{0x01, 0x80, 0xff} {
			bad := append([]byte(nil), text...)
			bad[i] ^= mask
			if err := os.WriteFile(file, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			md, ok, err := v.Load(t.Context())
			if ok != (err == nil) {
				t.Fatalf("byte %d: %t %v", i, ok, err)
			}
			if !ok {
				continue
			}
			for _, b := range md.Buildpacks {
				for _, l := range b.Layers {
					if got, err := v.Layer(t.Context(), l.SHA); err == nil {
						if rc, err := got.Uncompressed(); err == nil {
							rc.Close()
						}
					} else if !errors.Is(err, image.ErrNotFound) {
						t.Fatalf("byte %d: %v", i, err)
					}
				}
			}
		}
	}
}

// A directory that cannot be written to is restored from, in silence.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	k := newKept(t, 500, 20)
	k.save(t, dir)
	under := []string{"unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "sh", "-ec",
		`mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"; exec "$@"`, "sh"}
	for _, state := range []string{"committed", "committed-backup"} {
		if out, err := helperCommand(t, "read", under, dir, k.dir).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v %s", state, err, out)
		}
		out, err := helperCommand(t, "save", under, dir, k.dir).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "read-only file system") || !strings.Contains(string(out), dir) {
			t.Errorf("%s: %v %s", state, err, out)
		}
		if err := os.Rename(filepath.Join(dir, "committed"), filepath.Join(dir, "committed-backup")); err != nil && state == "committed" {
			t.Fatal(err)
		}
	}
	k.mustBeIn(t, dir)
}

// A launch cache has layers and no metadata.
func TestLayersAlone(t *testing.T) {
	dir := t.TempDir()
	k := newKept(t, 100, 200)
	a, b := k.md.Buildpacks[0].Layers["l0"].SHA, k.md.Buildpacks[0].Layers["l1"].SHA
	v := volume(t, dir)
	defer v.Close()
	if err := v.SaveLayers(t.Context(), []string{a, b}, k.open); err != nil {
		t.Fatal(err)
	}
	if err := v.SaveLayers(t.Context(), []string{b}, func(context.Context, string) (v1.Layer, error) { return nil, image.ErrNotFound }); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Layer(t.Context(), a); !errors.Is(err, image.ErrNotFound) {
		t.Error(err)
	}
	if _, err := v.Layer(t.Context(), b); err != nil {
		t.Error(err)
	}
	if got := names(t, filepath.Join(dir, "committed")); got != b+".tar" {
		t.Error(got)
	}
}

// calls are the system calls that a volume is changed by.
var calls = []string{"openat", "write", "fsync", "renameat", "renameat2", "linkat", "unlinkat", "mkdirat", "flock", "close", "ftruncate", "fchmod"}

// TestTorture kills a builder at its system calls, and makes others fail: the
// cache is the old one or the new one, whole, and the next builder can go on.
// KILN_TORTURE=1 takes every single call.
func TestTorture(t *testing.T) {
	conform.Covers(t, 156)
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v: apt-get install strace", err)
	}
	all := os.Getenv("KILN_TORTURE") == "1"
	old, next := newKept(t, 3000, 700), newKept(t, 5000, 80)
	// When not all are taken: some early ones, where the cache is opened, and some
	// late ones.
	some := []int{1, 2, 4, 7, 14}
	var struck atomic.Int64
	n := 0
	t.Run("faults", func(t *testing.T) {
		for _, call := range calls {
			for _, what := range []string{"signal=SIGKILL", "error=ENOSPC", "error=EIO", "error=EROFS"} {
				if what != "signal=SIGKILL" && call == "close" {
					continue // a failing close of a file that was synced says nothing
				}
				if n++; !all && what != "signal=SIGKILL" && n%2 == 0 {
					continue
				}
				t.Run(call+" "+what, func(t *testing.T) {
					t.Parallel()
					for when, misses := 1, 0; misses < 3 && when < 400; when++ { // every thread has its own count
						if !all && !slices.Contains(some, when) {
							continue
						}
						if torture(t, old, next, call, what, when) {
							struck.Add(1)
						} else {
							misses++
						}
					}
				})
			}
		}
	})
	t.Logf("torture: %d faults struck", struck.Load())
	if struck.Load() < 30 {
		t.Errorf("only %d faults struck: does strace still inject?", struck.Load())
	}
}

func torture(t *testing.T, old, next kept, call, what string, when int) (struck bool) {
	t.Helper()
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "strace")
	old.save(t, dir)
	at := call + ":" + what + ":when=" + strconv.Itoa(when)
	cmd := helperCommand(t, "save", []string{"strace", "-f", "-qq", "-o", log, "-e", "trace=" + call, "-e", "inject=" + at}, dir, next.dir)
	out, err := cmd.CombinedOutput()
	trace, rerr := os.ReadFile(log)
	if rerr != nil {
		t.Fatalf("%v: %s", rerr, out)
	}
	struck = strings.Contains(string(trace), "(INJECTED)") || strings.Contains(string(trace), "killed by SIGKILL")
	if err != nil && !struck {
		t.Errorf("%s: %v %s", at, err, out)
	}
	v := volume(t, dir)
	errNext, errOld := next.in(t.Context(), v), old.in(t.Context(), v)
	if errNext != nil && (errOld != nil || err == nil) {
		t.Errorf("%s: the builder said %v %s, the cache is neither the new one (%v) nor the old one (%v)", at, err, out, errNext, errOld)
	}
	v.Close()
	next.save(t, dir)
	next.mustBeIn(t, dir)
	return struck
}
