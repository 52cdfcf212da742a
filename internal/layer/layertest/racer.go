package layertest

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Racer is foreign code that still runs: for as long as it does, files and
// directories are something else for a moment, again and again.
type Racer struct {
	// Swaps is how often it exchanged two, when it has stopped.
	Swaps int

	rand   *rand.Rand
	dirs   []string // whose content is exchanged
	others []string // what takes the places
	// The likeliest of these: a link that leads out, to a directory that has what
	// is wanted of it, or to a file; or a pipe.
	dir, file, pipe string
}

// Race starts a racer on what is in dirs. What takes the places are links to what
// is outside of the canary's cell, pipes, devices, and files of the racer's own.
func Race(t testing.TB, c *Canary, dirs ...string) (r *Racer, stop func()) {
	t.Helper()
	const seed = 20261125
	r = &Racer{rand: rand.New(rand.NewPCG(seed, seed)), dirs: dirs}
	aside := t.TempDir()
	add := func(make func(name string) error) string {
		name := filepath.Join(aside, fmt.Sprint(len(r.others)))
		if make(name) == nil {
			r.others = append(r.others, name)
		}
		return name
	}
	link := func(to string) func(string) error { return func(name string) error { return os.Symlink(to, name) } }
	for _, to := range []string{c.Outside, c.Outside + "/dir/file", c.Outside + "/new", "/dev/zero", "self"} {
		add(link(to))
	}
	r.dir, r.file = add(link(c.Outside+"/dir")), add(link(c.Outside+"/canary"))
	r.pipe = add(func(name string) error { return syscall.Mkfifo(name, 0o666) })
	add(func(name string) error { return os.Mkdir(name, 0o755) })
	add(func(name string) error { return os.WriteFile(name, []byte("forged"), 0o644) })
	add(func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }) // zeros without end, for root
	over := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { r.run(over) })
	return r, func() { close(over); running.Wait() }
}

func (r *Racer) run(over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		default:
		}
		// One at a time, as fast as it goes: between a look and the use of what
		// was seen there are microseconds.
		if victims := r.victims(); len(victims) > 0 {
			victim := victims[r.rand.IntN(len(victims))]
			r.exchange(victim, r.choose(victim), 2*(1+r.rand.IntN(1000)))
		}
	}
}

func (r *Racer) choose(victim string) string {
	fi, err := os.Lstat(victim)
	switch n := r.rand.IntN(10); {
	case err == nil && fi.IsDir() && n < 6:
		return r.dir
	case n < 4:
		return r.file
	case n < 7:
		return r.pipe
	}
	return r.others[r.rand.IntN(len(r.others))]
}

// victims are what is there, directories more than once: more depends on them.
func (r *Racer) victims() (list []string) {
	for _, dir := range r.dirs {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && path != dir && len(list) < 1000 {
				list = append(list, path)
				if e.IsDir() {
					list = append(list, slices.Repeat([]string{path}, 3)...)
				}
			}
			return nil
		})
	}
	return list
}

// exchange exchanges two files, n times or until one of them is gone.
func (r *Racer) exchange(victim, other string, n int) {
	parent, err := unix.Openat2(unix.AT_FDCWD, filepath.Dir(victim), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return // or it would be the racer's own doing what happens outside
	}
	defer unix.Close(parent)
	for range n {
		if unix.Renameat2(parent, filepath.Base(victim), unix.AT_FDCWD, other, unix.RENAME_EXCHANGE) != nil {
			return
		}
		r.Swaps++
	}
}
