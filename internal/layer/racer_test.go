package layer

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer/layertest"
)

// TestRacers: while somebody exchanges files and directories for links, pipes and
// devices, nothing outside is read or written, and everything ends.
func TestRacers(t *testing.T) {
	inside := func(t *testing.T, dir string) {
		mkdirs(t, dir, "d/deep")
		for _, name := range []string{"f", "canary", "d/file", "d/deep/file"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("inside"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	var archive bytes.Buffer
	dir := t.TempDir()
	inside(t, dir)
	if _, err := WriteTree(t.Context(), &archive, Stack{Upper: dir}, ".", "/", nil, Owner{}); err != nil {
		t.Fatal(err)
	}
	// What each reads or writes is dir; what it has read comes back, and whether it fails is its own business.
	for name, do := range map[string]func(t *testing.T, dir string) string{
		"WriteTree": func(t *testing.T, dir string) string {
			var b strings.Builder
			_, _ = WriteTree(t.Context(), &b, Stack{Upper: dir}, ".", "/l", nil, Owner{})
			return b.String()
		},
		"WriteDiff": func(t *testing.T, dir string) string {
			var b strings.Builder
			_, _ = WriteDiff(t.Context(), &b, dir, nil)
			return b.String()
		},
		"Stack": func(t *testing.T, dir string) string {
			var all []byte
			for _, s := range []Stack{{Upper: dir}, {Upper: t.TempDir(), Lowers: []string{dir}}} {
				for _, name := range []string{"f", "canary", "d/file", "d/deep/file"} {
					b, _ := s.ReadFile(name, 1000)
					all = append(all, b...)
					_, _ = s.Touched(name)
				}
			}
			return string(all)
		},
		"Copy": func(t *testing.T, dir string) string {
			to := t.TempDir()
			_ = Copy(t.Context(), to, Stack{Upper: dir})
			var b strings.Builder
			_, _ = WriteTree(t.Context(), &b, Stack{Upper: to}, ".", "/l", nil, Owner{})
			return b.String()
		},
		"Fingerprint": func(t *testing.T, dir string) string {
			_, _, _ = Fingerprint(t.Context(), dir, nil)
			_ = SetTimes(t.Context(), dir)
			return ""
		},
		"Apply": func(t *testing.T, dir string) string {
			_ = Apply(t.Context(), dir, bytes.NewReader(archive.Bytes()), Limits{})
			return ""
		},
		"ApplyPlain": func(t *testing.T, dir string) string {
			_, _ = ApplyOwnedPlain(t.Context(), dir, bytes.NewReader(archive.Bytes()), Limits{}, Record)
			return ""
		},
		"Extract": func(t *testing.T, dir string) string {
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			_, _ = Extract(t.Context(), root, bytes.NewReader(archive.Bytes()), "/d", Limits{})
			return ""
		},
		"Remove": func(t *testing.T, dir string) string {
			_ = Remove(filepath.Join(dir, "d"))
			_ = ApplyPlain(t.Context(), dir, bytes.NewReader(archive.Bytes()), Limits{})
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := layertest.NewCanary(t)
			inside(t, c.Cell)
			racer, stop := layertest.Race(t, c, c.Cell)
			n := 0
			for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); n++ {
				done := make(chan string, 1)
				go func() { done <- do(t, c.Cell) }()
				select {
				case read := <-done:
					if strings.Contains(read, c.Secret) {
						t.Fatal("what is outside was read")
					}
				case <-time.After(20 * time.Second):
					t.Fatal("it does not end")
				}
			}
			stop()
			c.Check(t)
			if n < 5 || racer.Swaps < 100 {
				t.Errorf("%d times, %d exchanges: that shows nothing", n, racer.Swaps)
			}
		})
	}
}
