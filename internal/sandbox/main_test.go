package sandbox

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// probeName is argv[0] of this test binary inside a sandbox: there it tries what probes says, and
// prints what came of it.
const probeName = "kiln-sandbox-probe"

func TestMain(m *testing.M) {
	Init()
	if os.Args[0] == probeName {
		os.Exit(probeMain(os.Args[1], os.Args[2:]))
	}
	os.Exit(m.Run())
}

func probeMain(name string, args []string) int {
	f, ok := probes[name]
	if !ok {
		fmt.Println("unknown probe", name)
		return 99
	}
	return f(args)
}

// outcome prints the errno by name, or ok.
func outcome(what string, err error) {
	var errno syscall.Errno
	switch {
	case err == nil:
		fmt.Println(what, "ok")
	case errors.As(err, &errno):
		fmt.Println(what, errnoName(errno))
	default:
		fmt.Println(what, err)
	}
}

func errnoName(e syscall.Errno) string {
	names := map[syscall.Errno]string{syscall.EPERM: "EPERM", syscall.EACCES: "EACCES", syscall.EROFS: "EROFS", syscall.ENOENT: "ENOENT",
		syscall.ENOSYS: "ENOSYS", syscall.ENXIO: "ENXIO", syscall.ECONNREFUSED: "ECONNREFUSED", syscall.ENOSPC: "ENOSPC",
		syscall.ENOTTY: "ENOTTY", syscall.EBADF: "EBADF", syscall.EINVAL: "EINVAL", syscall.ESRCH: "ESRCH", syscall.EXDEV: "EXDEV", syscall.ETXTBSY: "ETXTBSY"}
	if n, ok := names[e]; ok {
		return n
	}
	return e.Error()
}

// fixture is a root with this binary in it, and a worker.
type fixture struct {
	t    *testing.T
	dir  string
	w    *Worker
	rep  Report
	spec Spec

	closed bool // by the test itself, which then cleans up
}

const testUID, testGID = 1000, 1000

func newFixture(t *testing.T, o Options) *fixture {
	t.Helper()
	o.UID, o.GID = testUID, testGID
	return newFixtureAs(t, o)
}

// newRootFixture is for steps that run as root.
func newRootFixture(t *testing.T, tier Tier) *fixture {
	t.Helper()
	return newFixtureAs(t, Options{Tier: tier})
}

func newFixtureAs(t *testing.T, o Options) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir()}
	if o.Scratch == nil {
		o.Scratch = []string{f.dir}
	}
	var err error
	f.w, f.rep, err = Start(t.Context(), o)
	if err != nil {
		var u *UnavailableError
		if errors.As(err, &u) {
			t.Fatalf("Start: %v\n%s", err, u.Hint())
		}
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if f.closed {
			return
		}
		// The scratch holds directories that only the worker may remove.
		if err := f.w.Remove(context.Background(), f.path("scratch")); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if err := f.w.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	f.mkdir("lower/tmp", "lower/etc", "scratch")
	f.spec = Spec{UID: o.UID, GID: o.GID, Mounts: selfMounts(t)}
	f.spec.Root = f.overlay("root", f.path("lower"))
	return f
}

func (f *fixture) path(rel string) string { return filepath.Join(f.dir, rel) }

func (f *fixture) mkdir(rels ...string) {
	f.t.Helper()
	for _, rel := range rels {
		if err := os.MkdirAll(f.path(rel), 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fixture) write(rel, body string) string {
	f.t.Helper()
	f.mkdir(filepath.Dir(rel))
	if err := os.WriteFile(f.path(rel), []byte(body), 0o644); err != nil {
		f.t.Fatal(err)
	}
	return f.path(rel)
}

func (f *fixture) symlink(to, rel string) {
	f.t.Helper()
	if err := os.Symlink(to, f.path(rel)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) overlay(name string, lowers ...string) Overlay {
	return Overlay{Lowers: lowers, Upper: f.path("scratch/" + name + "/upper"), Work: f.path("scratch/" + name + "/work")}
}

// with returns a copy whose spec has more mounts and a scratch of its own.
func (f *fixture) with(name string, mounts ...Mount) *fixture {
	g := *f
	g.spec.Root = f.overlay(name, f.spec.Root.Lowers...)
	g.spec.Mounts = append(append([]Mount(nil), f.spec.Mounts...), mounts...)
	return &g
}

// command is a probe as a Command.
func command(name string, args ...string) Command {
	return Command{Path: "/probe", Args: append([]string{probeName, name}, args...)}
}

// try runs a probe and returns what it printed.
func (f *fixture) try(name string, args ...string) (string, error) {
	var out bytes.Buffer
	c := command(name, args...)
	c.Stdout, c.Stderr = &out, &out
	err := f.w.In(f.spec).Run(f.t.Context(), c)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// must is try where only the output matters.
func (f *fixture) must(name string, args ...string) string {
	f.t.Helper()
	out, err := f.try(name, args...)
	if err != nil {
		f.t.Fatalf("probe %s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// want compares the output line by line; a wanted line may list alternatives: "x EPERM|EACCES".
func (f *fixture) want(out string, lines ...string) {
	f.t.Helper()
	got := strings.Split(out, "\n")
	if len(got) != len(lines) {
		f.t.Fatalf("got %d lines, want %d:\n%s\nwant:\n%s", len(got), len(lines), out, strings.Join(lines, "\n"))
	}
	for i, line := range lines {
		i0 := strings.LastIndex(line, " ") + 1
		ok := false
		for _, alt := range strings.Split(line[i0:], "|") {
			ok = ok || got[i] == line[:i0]+alt
		}
		if !ok {
			f.t.Errorf("got %q, want %q", got[i], line)
		}
	}
}

// wantFewFDs wants PID 1 to have its socket open and no more, once it has closed what is the step's:
// a step that is fast sees that before.
func (f *fixture) wantFewFDs() {
	f.t.Helper()
	want, got := "0\n1\n2\n3", ""
	for range 20 {
		if got = f.must("ls", "/proc/1/fd"); got == want {
			return
		}
	}
	f.t.Errorf("descriptors of PID 1: %q, want %q", got, want)
}

// selfMounts binds this binary, and the host's libraries where it is not static.
func selfMounts(t *testing.T) []Mount {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return hostLibraries(exe)
}

func hostLibraries(exe string) []Mount {
	mounts := []Mount{{Target: "/probe", Source: exe, ReadOnly: true}}
	bin, err := elf.Open(exe)
	if err != nil {
		return nil
	}
	defer bin.Close()
	for _, p := range bin.Progs {
		if p.Type == elf.PT_INTERP {
			for _, dir := range []string{"/usr", "/lib", "/lib64"} {
				mounts = append(mounts, Mount{Target: dir, Source: dir, ReadOnly: true, Optional: true})
			}
		}
	}
	return mounts
}

// hold starts a step that stays, and returns what ends it.
func (f *fixture) hold() (end func()) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	c := command("onterm", "0")
	c.Stdout = w
	done := make(chan error, 1)
	go func() {
		done <- f.w.In(f.spec).Run(ctx, c)
		w.Close()
	}()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		f.t.Fatalf("hold: %v", <-done)
	}
	return func() {
		f.t.Helper()
		defer r.Close()
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("hold: %v", err)
		}
	}
}
