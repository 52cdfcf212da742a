package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runners are what must behave alike: a Command says the same to each.
func runners(t *testing.T, check func(t *testing.T, r Runner, probe string)) {
	t.Helper()
	t.Run("sandbox", func(t *testing.T) {
		f := newFixture(t, Options{})
		f.spec.Grace = 300 * time.Millisecond
		check(t, f.w.In(f.spec), "/probe")
	})
	t.Run("in place", func(t *testing.T) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		check(t, InPlace{Grace: 300 * time.Millisecond}, exe)
	})
}

func TestRunReportsHowItEnded(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		for _, c := range []struct {
			name, arg string
			want      *ExitError
		}{{"exit", "0", nil}, {"exit", "3", &ExitError{Code: 3}}, {"exit", "255", &ExitError{Code: 255}},
			{"signal", "9", &ExitError{Code: -1, Signal: 9}}, {"signal", "15", &ExitError{Code: -1, Signal: 15}}} {
			cmd := command(c.name, c.arg)
			cmd.Path = probe
			err := r.Run(t.Context(), cmd)
			var got *ExitError
			if c.want == nil {
				if err != nil {
					t.Errorf("%s %s: %v", c.name, c.arg, err)
				}
			} else if !errors.As(err, &got) || *got != *c.want {
				t.Errorf("%s %s: %v, want %v", c.name, c.arg, err, c.want)
			}
		}
	})
}

func TestRunPassesStdio(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		body := strings.Repeat("0123456789", 300_000)
		var out, errs bytes.Buffer
		c := command("copy")
		c.Path, c.Stdin, c.Stdout, c.Stderr = probe, strings.NewReader(body), &out, &errs
		if err := r.Run(t.Context(), c); err != nil || out.String() != body || errs.String() != "done" {
			t.Errorf("copy through pipes: %d of %d bytes, %q, %v", out.Len(), len(body), errs.String(), err)
		}
		dir := t.TempDir()
		in, to := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		if err := os.WriteFile(in, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		from, err := os.Open(in)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		file, err := os.Create(to)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		c.Stdin, c.Stdout, c.Stderr = from, file, nil
		if err := r.Run(t.Context(), c); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(to); err != nil || string(b) != body {
			t.Errorf("copy from file to file: %d of %d bytes, %v", len(b), len(body), err)
		}
	})
}

func TestRunPassesExtraFiles(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(pw, "through descriptor 3")
		pw.Close()
		defer pr.Close()
		var out bytes.Buffer
		c := command("extra")
		c.Path, c.Stdout, c.ExtraFiles = probe, &out, []*os.File{pr}
		if err := r.Run(t.Context(), c); err != nil || out.String() != "through descriptor 3" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

func TestRunOfNothing(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		for _, c := range []struct {
			cmd  Command
			says string
			is   error
		}{
			{Command{Path: "/no/such"}, "run /no/such: ", fs.ErrNotExist},
			{Command{Path: "no-such", Env: []string{"PATH=/bin:relative"}}, "run no-such: not found in PATH", fs.ErrNotExist},
			{Command{Path: "/"}, "run /: ", fs.ErrPermission},
			{Command{}, "no command given", nil},
		} {
			err := r.Run(t.Context(), c.cmd)
			var exit *ExitError
			if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%+v: %v", c.cmd, err)
			}
		}
	})
}

// ready is a writer that says when something has been written.
type ready struct {
	said  string
	first chan struct{}
}

func (r *ready) Write(p []byte) (int, error) {
	if r.said == "" {
		close(r.first)
	}
	r.said += string(p)
	return len(p), nil
}

func TestCancelAsksFirst(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		ctx, cancel := context.WithCancel(t.Context())
		out := &ready{first: make(chan struct{})}
		c := command("onterm", "7")
		c.Path, c.Stdout = probe, out
		go func() { <-out.first; cancel() }()
		err := r.Run(ctx, c)
		var exit *ExitError
		if !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Code != 7 || out.said != "ready\nterm\n" {
			t.Errorf("%q, %v", out.said, err)
		}
		if err := r.Run(ctx, c); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that is over: %v", err)
		}
	})
}

func TestCancelThenKills(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		ctx, cancel := context.WithCancel(t.Context())
		out := &ready{first: make(chan struct{})}
		c := command("hold", "/proc/self/exe")
		c.Path, c.Stdout = probe, out
		go func() { <-out.first; cancel() }()
		begin := time.Now()
		err := r.Run(ctx, c)
		var exit *ExitError
		if !errors.Is(err, context.Canceled) || !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
			t.Errorf("a step that ignores SIGTERM: %v", err)
		}
		if d := time.Since(begin); d < 300*time.Millisecond || d > 5*time.Second {
			t.Errorf("it took %v, the grace is 300 ms", d)
		}
	})
}

func TestWorld(t *testing.T) {
	f := newFixture(t, Options{})
	f.spec.Hostname = "box"
	f.want(f.must("who"), "uid 1000 1000 gid 1000 1000", "umask 022", "host box", "dir /", "leader true")
	f.want(f.must("write", "/dev/null", "/dev/full", "/dev/shm/x", "/sys/x", "/tmp/x"),
		"/dev/null ok", "/dev/full ENOSPC", "/dev/shm/x ok", "/sys/x EROFS", "/tmp/x ok")
	f.want(f.must("readlink", "/dev/fd", "/dev/stdin", "/dev/ptmx"), "/dev/fd /proc/self/fd", "/dev/stdin /proc/self/fd/0", "/dev/ptmx pts/ptmx")
}

func TestMounts(t *testing.T) {
	f := newFixture(t, Options{})
	f.write("src/file", "src")
	f.write("file", "file")
	f.write("below/layer/one", "1")
	f.write("top/layer/two", "2")
	o := f.overlay("layers", f.path("top"), f.path("below"))
	g := f.with("all",
		Mount{Target: "/ro", Source: f.path("src"), ReadOnly: true},
		Mount{Target: "/rw/deep", Source: f.path("src")},
		Mount{Target: "/etc/file", Source: f.path("file"), ReadOnly: true},
		Mount{Target: "/layers", Overlay: &o},
		Mount{Target: "/mem", Tmpfs: true},
		Mount{Target: "/none", Source: f.path("missing"), Optional: true},
	)
	g.want(g.must("write", "/ro/x", "/rw/deep/x", "/etc/file", "/layers/layer/three", "/mem/x"),
		"/ro/x EROFS", "/rw/deep/x ok", "/etc/file EROFS", "/layers/layer/three ok", "/mem/x ok")
	g.want(g.must("cat", "/ro/file", "/ro/x", "/etc/file", "/layers/layer/one", "/layers/layer/two", "/mem/x"),
		`/ro/file "src"`, `/ro/x "written"`, `/etc/file "file"`, `/layers/layer/one "1"`, `/layers/layer/two "2"`, "/mem/x ENOENT")
	if b, err := os.ReadFile(filepath.Join(o.Upper, "layer/three")); err != nil || string(b) != "written" {
		t.Errorf("in the upper: %q, %v", b, err)
	}
	fi, err := os.Lstat(filepath.Join(o.Upper, "layer/three"))
	if err != nil || int(fi.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		t.Errorf("what a step made does not belong to the caller: %v, %v", fi, err)
	}
	missing := f.with("missing", Mount{Target: "/none", Source: f.path("missing")})
	if _, err := missing.try("exit", "0"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mount /none") {
		t.Errorf("a source that is missing: %v", err)
	}
}

// TestMountPointsAreTakenAway: what the sandbox had to make is no part of what the step made.
func TestMountPointsAreTakenAway(t *testing.T) {
	f := newFixture(t, Options{})
	f.write("lower/etc/had", "")
	f.write("app/file", "")
	f.mkdir("dir")
	o := f.overlay("app", f.path("app"))
	f.spec.Mounts = append(f.spec.Mounts,
		Mount{Target: "/etc/resolv.conf", Source: f.path("app/file")},
		Mount{Target: "/etc/had", Source: f.path("app/file")},
		Mount{Target: "/opt/a/b", Source: f.path("dir")},
		Mount{Target: "/opt/kept/b", Source: f.path("dir")},
		Mount{Target: "/workspace", Overlay: &o},
		Mount{Target: "/workspace/volume/deep", Source: f.path("dir")},
	)
	f.want(f.must("write", "/opt/kept/x", "/workspace/x"), "/opt/kept/x ok", "/workspace/x ok")
	for dir, want := range map[string][]string{
		f.spec.Root.Upper:                            {"etc", "opt"},
		filepath.Join(f.spec.Root.Upper, "etc"):      nil,
		filepath.Join(f.spec.Root.Upper, "opt"):      {"kept"},
		filepath.Join(f.spec.Root.Upper, "opt/kept"): {"x"},
		o.Upper: {"x"},
	} {
		entries, err := os.ReadDir(dir)
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s holds %q, %v, want %q", dir, got, err, want)
		}
	}
}

func TestWritesToMemory(t *testing.T) {
	for _, q := range []quirks{{}, {LegacyOverlay: true}} {
		f := newFixture(t, Options{})
		f.w.quirks = q
		f.spec.Root = Overlay{Lowers: []string{f.path("lower")}}
		f.want(f.must("write", "/x"), "/x ok")
		f.want(f.must("cat", "/x"), "/x ENOENT")
	}
}

func TestPlainRoot(t *testing.T) {
	f := newFixture(t, Options{})
	f.mkdir("plain")
	f.spec.Root = Overlay{Upper: f.path("plain")}
	f.want(f.must("write", "/x"), "/x ok")
	if b, err := os.ReadFile(f.path("plain/x")); err != nil || string(b) != "written" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestFilesWork: Landlock, seccomp and the overlay let everything through that a build does.
func TestFilesWork(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("files", "/tmp"), "mkdir ok", "write ok", "rename ok", "link ok", "symlink ok", "chmod ok", "truncate ok",
		"rename dir ok", "fifo ok", "xattr ok", "device EPERM")
}

func TestSpecIsChecked(t *testing.T) {
	f := newFixture(t, Options{})
	bad := func(change func(*Spec)) Spec {
		s := f.spec
		s.Mounts = nil
		change(&s)
		return s
	}
	mount := func(m Mount) Spec { return bad(func(s *Spec) { s.Mounts = []Mount{m} }) }
	for want, spec := range map[string]Spec{
		"are not mapped":      bad(func(s *Spec) { s.UID = 0 }),
		"groups [5] are not":  bad(func(s *Spec) { s.Groups = []int{5} }),
		`network "offline"`:   bad(func(s *Spec) { s.Network = "offline" }),
		"a lower or an upper": bad(func(s *Spec) { s.Root = Overlay{} }),
		"a work directory":    bad(func(s *Spec) { s.Root = Overlay{Lowers: []string{"/a"}, Upper: "/b"} }),
		"is no absolute path": bad(func(s *Spec) { s.Root = Overlay{Upper: "b"} }),
		"and not /":           mount(Mount{Target: "/", Tmpfs: true}),
		"must be an absolute": mount(Mount{Target: "tmp", Tmpfs: true}),
		"/proc is the sand":   mount(Mount{Target: "/tmp/../proc/self", Tmpfs: true}),
		"exactly one of":      mount(Mount{Target: "/x"}),
		"source x is no abs":  mount(Mount{Target: "/x", Source: "x"}),
	} {
		err := f.w.In(spec).Run(t.Context(), command("exit", "0"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestCloseEndsSteps(t *testing.T) {
	f := newFixture(t, Options{})
	lock := f.write("lock", "")
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/lock", Source: lock})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := command("hold", "/lock")
	c.Stdout = w
	done := make(chan error)
	go func() { done <- f.w.In(f.spec).Run(t.Context(), c) }()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	other := newFixture(t, Options{})
	if err := f.w.Close(); err != nil {
		t.Error(err)
	}
	if err := locked(t, lock); err != nil {
		t.Errorf("the step outlives its worker: %v", err)
	}
	if err := <-done; err == nil {
		t.Error("Run returned nil for a step that was killed")
	}
	w.Close()
	if err := f.w.In(f.spec).Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "worker has ended") {
		t.Errorf("Run after Close: %v", err)
	}
	if err := other.w.Remove(t.Context(), f.path("scratch")); err != nil {
		t.Error(err)
	}
	f.closed = true
}

func TestRemove(t *testing.T) {
	f := newFixture(t, Options{})
	f.mkdir("out/deep", "kept")
	f.write("kept/file", "x")
	f.symlink(f.path("kept"), "out/link")
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/out", Source: f.path("out")})
	f.want(f.must("lock", "/out/a", "/out/b"), "/out/a ok", "/out/b ok")
	f.must("deep", "/out/deep", "3000")
	if err := f.w.Remove(t.Context(), f.path("out")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(f.path("out")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(f.path("kept/file")); err != nil {
		t.Errorf("followed a symbolic link: %v", err)
	}
	for _, path := range []string{"/", f.path("out"), f.path("no/such")} {
		if err := f.w.Remove(t.Context(), path); (err != nil) != (path == "/") {
			t.Errorf("Remove(%s): %v", path, err)
		}
	}
}

func TestSameWriter(t *testing.T) {
	runners(t, func(t *testing.T, r Runner, probe string) {
		var out bytes.Buffer // written to from one goroutine, as the race detector would say
		c := command("copy")
		c.Path, c.Stdin, c.Stdout, c.Stderr = probe, strings.NewReader("x"), &out, &out
		if err := r.Run(t.Context(), c); err != nil || out.String() != "xdone" {
			t.Errorf("%q, %v", out.String(), err)
		}
		failing := writerFunc(func([]byte) (int, error) { return 0, errors.New("no room") })
		c = command("flood", "1000000")
		c.Path, c.Stdout = probe, failing
		if err := r.Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "pass on output: no room") {
			t.Errorf("a writer that fails: %v", err)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

var _ io.Writer = writerFunc(nil)

func BenchmarkRun(b *testing.B) {
	dir := b.TempDir()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	w, _, err := Start(b.Context(), Options{UID: testUID, GID: testGID, Scratch: []string{dir}})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	if err := os.Mkdir(filepath.Join(dir, "lower"), 0o755); err != nil {
		b.Fatal(err)
	}
	o := Overlay{Lowers: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"}
	r := w.In(Spec{UID: testUID, GID: testGID, Root: o, Mounts: hostLibraries(exe)})
	for b.Loop() {
		if err := r.Run(b.Context(), command("exit", "0")); err != nil {
			b.Fatal(err)
		}
	}
	w.Remove(context.Background(), dir+"/work")
}

func BenchmarkInPlace(b *testing.B) {
	c := command("exit", "0")
	c.Path = selfExe
	for b.Loop() {
		if err := (InPlace{ReadOnly: []string{"/usr"}}).Run(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}
