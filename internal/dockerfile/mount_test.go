package dockerfile

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

// TestTakeCache: a cache is shared, or waited for, or another one is taken, as
// its mount says.
func TestTakeCache(t *testing.T) {
	for _, x := range []struct {
		held, wanted string
		got          string // "" is waited for
	}{
		{"", "", "c"}, {"shared", "shared", "c"}, {"", "locked", ""}, {"locked", "", ""}, {"locked", "locked", ""},
		{"private", "private", "c-1"}, {"shared", "private", "c-1"}, {"locked", "private", "c-1"}, {"private", "locked", ""},
	} {
		cache := filepath.Join(t.TempDir(), "c")
		_, lock, err := takeCache(t.Context(), cache, x.held)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		dir, got, err := takeCache(ctx, cache, x.wanted)
		cancel()
		switch {
		case x.got == "" && err == nil:
			t.Errorf("%q beside %q: got %s, want it to wait", x.wanted, x.held, dir)
		case x.got != "" && (err != nil || filepath.Base(dir) != x.got):
			t.Errorf("%q beside %q: got %s, %v; want %s", x.wanted, x.held, dir, err, x.got)
		}
		if got != nil {
			got.Unlock()
		}
		lock.Unlock()
		if dir, lock, err = takeCache(t.Context(), cache, x.wanted); err != nil || dir != cache {
			t.Errorf("%q after %q: got %s, %v", x.wanted, x.held, dir, err)
			continue
		}
		lock.Unlock()
	}
}
