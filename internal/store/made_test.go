package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/store"
)

// TestMade: what a step made is there again, also after the garbage was
// collected, until nobody has asked for it for long, or it is damaged.
func TestMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	if l, there, err := s.Made(t.Context(), "key"); l != nil || there || err != nil {
		t.Errorf("never made: %v %v %v", l, there, err)
	}
	l := putTar(t, s, "f", "body")
	if err := errors.Join(s.RememberMade(t.Context(), "key", l), s.RememberMade(t.Context(), "none", nil)); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(dir, "blobs", "sha256", digest(t, l).Hex)
	want := diffID(t, l)
	reopen := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir)
		if _, err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	age := func() {
		t.Helper()
		memos, err := filepath.Glob(filepath.Join(dir, "memo", "made", "*"))
		if err != nil || len(memos) != 2 {
			t.Fatalf("memos %v, %v; want two", memos, err)
		}
		for _, m := range memos {
			if err := os.Chtimes(m, time.Time{}, time.Now().Add(-89*24*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // it is young again each time
		age()
		reopen()
		got, there, err := s.Made(t.Context(), "key")
		if err != nil || !there || diffID(t, got) != want {
			t.Fatalf("made %v, %v, %v; want %s", got, there, err, want)
		}
		if got, there, err := s.Made(t.Context(), "none"); got != nil || !there || err != nil {
			t.Errorf("nothing was made, and it is %v, %v, %v", got, there, err)
		}
	}

	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	b[600] ^= 1
	replaceFile(t, blob, b)
	if got, there, err := s.Made(t.Context(), "key"); got != nil || there || !errors.Is(err, store.ErrDamaged) {
		t.Errorf("damaged: %v %v %v", got, there, err)
	}
	if _, there, err := s.Made(t.Context(), "key"); there || err != nil {
		t.Errorf("gone: %v %v", there, err)
	}

	putTar(t, s, "f", "body")
	if _, there, err := s.Made(t.Context(), "key"); !there || err != nil {
		t.Errorf("there again: %v %v", there, err)
	}
	old := time.Now().Add(-91 * 24 * time.Hour)
	memos, _ := filepath.Glob(filepath.Join(dir, "memo", "made", "*"))
	for _, m := range memos {
		if err := os.Chtimes(m, old, old); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	if _, err := os.Lstat(blob); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer of an old memo is still there: %v", err)
	}
	if _, there, err := s.Made(t.Context(), "key"); there || err != nil {
		t.Errorf("old: %v %v", there, err)
	}
}
