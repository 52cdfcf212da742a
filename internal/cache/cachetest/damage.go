package cachetest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
)

// unreadable is the damage that those who may read everything do not see.
const unreadable = "without permissions"

// damages are what becomes of a file when disks fail, people tidy up, or a
// buildpack wants to see what happens.
var damages = map[string]func(t *testing.T, file string){
	"missing":   remove,
	"emptied":   func(t *testing.T, file string) { rewrite(t, file, nil) },
	"truncated": func(t *testing.T, file string) { b := body(t, file); rewrite(t, file, b[:rand.IntN(len(b))]) },
	"longer":    func(t *testing.T, file string) { rewrite(t, file, append(body(t, file), 0)) },
	"bit flip": func(t *testing.T, file string) {
		b := body(t, file)
		b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
		rewrite(t, file, b)
	},
	unreadable: func(t *testing.T, file string) { check(t, os.Chmod(file, 0)) },
	"a directory": func(t *testing.T, file string) {
		remove(t, file)
		check(t, os.MkdirAll(filepath.Join(file, "in the way"), 0o755))
	},
	"a pipe": func(t *testing.T, file string) {
		remove(t, file)
		check(t, syscall.Mkfifo(file, 0o644))
	},
	"a dangling link": func(t *testing.T, file string) {
		remove(t, file)
		check(t, os.Symlink("/nonexistent/kiln", file))
	},
	"a link to itself": func(t *testing.T, file string) {
		remove(t, file)
		check(t, os.Symlink(filepath.Base(file), file))
	},
	"huge": func(t *testing.T, file string) {
		check(t, os.Chmod(file, 0o644))
		check(t, os.Truncate(file, 1<<42)) // sparse: it needs no space
	},
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	check(t, os.Remove(file))
}

func body(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	check(t, err)
	if len(b) == 0 {
		t.Fatalf("%s is empty", file)
	}
	return b
}

// rewrite changes the bytes in place, whatever the file's mode is.
func rewrite(t *testing.T, file string, b []byte) {
	t.Helper()
	check(t, os.Chmod(file, 0o644))
	check(t, os.WriteFile(file, b, 0o644))
}

// damagedLayer: one layer is lost, at most; the others are there, and the next
// save puts it right.
func damagedLayer(t *testing.T, p Place, name string) {
	c := sample(t)
	p.save(t, c)
	victim := c.md.Buildpacks[0].Layers["repository"].SHA
	file := p.Blob(t, victim)
	t.Cleanup(func() { _ = layer.Remove(file) }) // what the test's clean-up cannot
	damages[name](t, file)
	lost := p.honest(t, c)
	if slices.ContainsFunc(lost, func(id string) bool { return id != victim }) {
		t.Errorf("only %s was damaged, lost are %q", victim, lost)
	}
	if len(lost) == 0 && name != unreadable {
		t.Error("the damage was not noticed")
	}
	if p.Keeps {
		return
	}
	p.save(t, c)
	p.holds(t, c)
}

// damagedMetadata: without metadata there is no cache, until the next is saved.
func damagedMetadata(t *testing.T, p Place, name string) {
	c := sample(t)
	p.save(t, c)
	file := p.Metadata(t)
	t.Cleanup(func() { _ = layer.Remove(file) })
	damages[name](t, file)
	p.honest(t, c)
	if p.Keeps {
		return
	}
	p.save(t, c)
	p.holds(t, c)
}
