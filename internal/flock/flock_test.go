package flock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/flock"
)

func TestHold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	first, err := flock.Hold(t.Context(), file, func(string) { t.Error("waited for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flock.Try(file, os.O_RDWR, unix.LOCK_SH); !errors.Is(err, flock.ErrHeld) {
		t.Errorf("held twice: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := flock.Hold(ctx, file, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited in vain: %v", err)
	}
	holder := make(chan string, 1)
	second := make(chan *flock.Lock, 1)
	go func() {
		l, err := flock.Hold(t.Context(), file, func(h string) { holder <- h })
		if err != nil {
			t.Error(err)
		}
		second <- l
	}()
	if h := <-holder; !strings.Contains(h, "process ") || !strings.Contains(h, "flock.test") {
		t.Errorf("the holder is %q", h)
	}
	first.Unlock()
	(<-second).Unlock()
	if b, err := os.ReadFile(file); err != nil || len(b) != 0 {
		t.Errorf("a free lock says %q %v", b, err)
	}
}

// What foreign code puts in the lock's place is neither followed nor written to,
// and nothing waits for it.
func TestHostileFile(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	link, hard, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "hard"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Symlink(secret, link), os.Link(secret, hard), syscall.Mkfifo(pipe, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := flock.Hold(t.Context(), link, nil); err == nil {
		t.Error("a symlink was followed")
	}
	for _, file := range []string{hard, pipe} {
		l, err := flock.Hold(t.Context(), file, nil)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		l.Unlock()
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("written to: %q %v", b, err)
	}
}
