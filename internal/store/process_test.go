package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// The test binary runs itself as other processes: KILN_STORE_HELPER says what
// to do, the store's directory is the first argument after it.
func TestMain(m *testing.M) {
	switch os.Getenv("KILN_STORE_HELPER") {
	case "":
		os.Exit(m.Run())
	case "victim":
		os.Exit(helper(victim))
	case "crowd":
		os.Exit(helper(crowd))
	case "small":
		signal.Ignore(syscall.SIGXFSZ) // so that a write fails with EFBIG
		limit := syscall.Rlimit{Cur: 200 << 10, Max: 200 << 10}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(helper(bigWrite))
	}
	os.Exit(3)
}

func helper(f func(ctx context.Context, s *store.Store) error) int {
	ctx := context.Background()
	s, err := store.Open(ctx, os.Getenv("KILN_STORE_DIR"))
	if err == nil {
		err = errors.Join(f(ctx, s), s.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func helperCommand(t *testing.T, what, dir string, wrap ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(wrap, self)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	// Few threads: strace counts calls for each thread.
	cmd.Env = append(os.Environ(), "KILN_STORE_HELPER="+what, "KILN_STORE_DIR="+dir, "GOMAXPROCS=1")
	return cmd
}

// fixedTar is the layer of that number, the same in every process.
func fixedTar(n int) []byte {
	var b bytes.Buffer
	if err := oneFile(&b, fmt.Sprintf("/layer-%d", n), strings.Repeat(fmt.Sprintln("layer", n), 50*(n+1))); err != nil {
		panic(err) // a bytes.Buffer takes everything
	}
	return b.Bytes()
}

// fixedImage is the image of that number: two layers, shared with its neighbour.
func fixedImage(n int) (v1.Image, error) {
	var adds []image.Addition
	for _, i := range []int{n, n + 1} {
		body := fixedTar(i)
		h, size, err := v1.SHA256(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		adds = append(adds, image.Addition{Layer: image.NewLayer(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(body)), nil
		}, h, size)})
	}
	return image.Append(empty.Image, adds, nil)
}

// victim does one of everything and says what was acknowledged, line by line.
func victim(ctx context.Context, s *store.Store) error {
	first, err := fixedImage(1)
	if err != nil {
		return err
	}
	second, err := fixedImage(2)
	if err != nil {
		return err
	}
	l, err := s.PutLayer(ctx, func(w io.Writer) error { _, err := w.Write(fixedTar(9)); return err })
	if err != nil {
		return err
	}
	h, err := l.DiffID()
	if err != nil {
		return err
	}
	steps := []struct {
		ack string
		do  func() error
	}{
		{"ref a 1", func() error { return s.Write(ctx, "a", first) }},
		{"", func() error { _, err := s.Tree(ctx, l); return err }},
		{"cache " + h.String(), func() error {
			return s.Cache("app").Save(ctx, spec.CacheMetadata{SBOM: spec.LayerSHA{SHA: h.String()}})
		}},
		{"", func() error { _, err := s.Compressed(ctx, l); return err }},
		{"ref b 2", func() error { return s.Write(ctx, "b", second) }},
		{"ref c 1", func() error { return s.Write(ctx, "c", first) }},
		{"ref c 2", func() error { return s.Write(ctx, "c", second) }},
		{"unref b", func() error {
			// From here until it is acknowledged, b may be there or not.
			if _, err := fmt.Println("maybe b"); err != nil {
				return err
			}
			err := s.Delete(ctx, "b")
			if errors.Is(err, image.ErrNotFound) {
				return nil
			}
			return err
		}},
		{"", func() error { _, err := s.GC(ctx); return err }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return err
		}
		if step.ack == "" {
			continue
		}
		if _, err := fmt.Println(step.ack); err != nil {
			return err
		}
	}
	return nil
}

// acked is what a victim was told to be safe.
type acked struct {
	refs   map[string]string // name -> number of image
	maybe  map[string]bool
	caches map[string]bool
}

func (a *acked) read(out string) {
	for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		switch {
		case len(f) == 3 && f[0] == "ref":
			a.refs[f[1]] = f[2]
		case len(f) == 2 && f[0] == "maybe":
			a.maybe[f[1]] = true
		case len(f) == 2 && f[0] == "unref":
			delete(a.refs, f[1])
		case len(f) == 2 && f[0] == "cache":
			a.caches[f[1]] = true
		}
	}
}

// intact opens the store after a fault and checks that nothing acknowledged is
// lost, nothing is wrong, and that work goes on without cleaning by hand.
func intact(t *testing.T, dir string, a acked, what string) {
	t.Helper()
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatalf("%s: open again: %v", what, err)
	}
	defer s.Close()
	if r, err := s.Check(t.Context(), true); err != nil {
		t.Errorf("%s: %v %+v", what, err, r.Problems)
	}
	for name, number := range a.refs {
		img, err := s.Image(t.Context(), name)
		if a.maybe[name] && errors.Is(err, image.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Errorf("%s: acknowledged image is lost: %v", what, err)
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		want, err := fixedImage(n)
		if err != nil {
			t.Fatal(err)
		}
		got, gerr := image.ID(img)
		id, err := image.ID(want)
		// A name may have been written again since it was acknowledged.
		next, _ := fixedImage(n + 1)
		nextID, _ := image.ID(next)
		if gerr != nil || err != nil || (got != id && (name != "c" || got != nextID)) {
			t.Errorf("%s: %s is %s, want %s (%v)", what, name, got, id, errors.Join(gerr, err))
		}
	}
	for id := range a.caches {
		md, ok, err := s.Cache("app").Load(t.Context())
		if err != nil || !ok || md.SBOM.SHA != id {
			t.Errorf("%s: acknowledged cache is lost: %v, %v, %v", what, md, ok, err)
			continue
		}
		if _, err := s.Layer(t.Context(), id); err != nil {
			t.Errorf("%s: layer of an acknowledged cache is lost: %v", what, err)
		}
	}
	if _, err := s.GC(t.Context()); err != nil {
		t.Errorf("%s: GC afterwards: %v", what, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(entries) > 1 { // one is this very session
		t.Errorf("%s: %d sessions are left (%v)", what, len(entries), err)
	}
}

// crowd does random things beside others that do the same.
func crowd(ctx context.Context, s *store.Store) error {
	for end := time.Now().Add(crowdTime); time.Now().Before(end); {
		n := rand.IntN(4)
		img, err := fixedImage(n)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("name-%d", rand.IntN(3))
		switch rand.IntN(8) {
		case 0, 1:
			err = s.Write(ctx, name, img)
		case 2:
			err = s.Delete(ctx, name)
		case 3:
			_, err = s.GC(ctx)
		case 4:
			err = readAll(ctx, s, name)
		case 5:
			err = cacheIt(ctx, s, n)
		case 6:
			_, err = s.Check(ctx, true)
		case 7:
			err = s.Close() // forget what was held, so that there is garbage
			if err == nil {
				var again *store.Store
				if again, err = store.Open(ctx, s.Dir()); err == nil {
					s = again
				}
			}
		}
		if err != nil && !errors.Is(err, image.ErrNotFound) {
			return err
		}
	}
	return s.Close()
}

func readAll(ctx context.Context, s *store.Store, name string) error {
	img, err := s.Image(ctx, name)
	if err != nil {
		return err
	}
	ls, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range ls {
		if _, err := s.Tree(ctx, l); err != nil {
			return fmt.Errorf("an image that was there could not be unpacked: %v", err)
		}
	}
	return nil
}

func cacheIt(ctx context.Context, s *store.Store, n int) error {
	unlock, err := s.Cache("shared").Lock(ctx, nil)
	if err != nil {
		return err
	}
	defer unlock()
	if md, ok, err := s.Cache("shared").Load(ctx); err != nil {
		return err
	} else if ok {
		if _, err := s.Layer(ctx, md.SBOM.SHA); err != nil {
			return fmt.Errorf("layer of the cache is gone: %v", err)
		}
	}
	l, err := s.PutLayer(ctx, func(w io.Writer) error { _, err := w.Write(fixedTar(n)); return err })
	if err != nil {
		return err
	}
	h, err := l.DiffID()
	if err != nil {
		return err
	}
	if err := s.Cache("shared").Save(ctx, spec.CacheMetadata{SBOM: spec.LayerSHA{SHA: h.String()}}); err != nil {
		return fmt.Errorf("save what was just put: %v", err)
	}
	return nil
}

const crowdTime = 3 * time.Second

func TestManyProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if out, err := helperCommand(t, "crowd", dir).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	s := open(t, dir)
	if r := check(t, s); r.Images == 0 && r.Caches == 0 {
		t.Errorf("nobody did anything: %+v", r)
	}
}

// bigWrite writes more than the process may. Store records are small enough.
func bigWrite(ctx context.Context, s *store.Store) error {
	_, err := s.PutLayer(ctx, func(w io.Writer) error {
		_, err := w.Write(make([]byte, 1<<20))
		return err
	})
	return err
}

func TestFileSizeLimit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	out, err := helperCommand(t, "small", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "file too large") {
		t.Errorf("a write over the limit gave %v, %q", err, out)
	}
	intact(t, dir, acked{}, "file size limit")
	assertEmpty(t, filepath.Join(dir, "blobs", "sha256"))
}

// TestFullDisk fills a small file system, where this user may mount one.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=700")
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return // not root: TestFileSizeLimit and the injected ENOSPC stand for it
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	img, err := fixedImage(1)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, "a", img)
	_, err = s.PutLayer(t.Context(), func(w io.Writer) error {
		_, err := io.Copy(w, io.LimitReader(rand.NewChaCha8([32]byte{}), 4<<20))
		return err
	})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "have ") || spec.HintOf(err) == "" {
		t.Errorf("PutLayer on a full disk = %v (hint %q)", err, spec.HintOf(err))
	}
	body := make([]byte, 4<<20)
	h, n, err := v1.SHA256(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	big, err := image.Append(img, []image.Addition{{Layer: image.NewLayer(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(body)), nil
	}, h, n)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Write(t.Context(), "a", big)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "need 4.2 MB, have ") {
		t.Errorf("Write on a full disk = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	intact(t, dir, acked{refs: map[string]string{"a": "1"}}, "full disk")
}
