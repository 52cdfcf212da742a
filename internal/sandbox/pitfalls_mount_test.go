package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests of this file and of pitfalls_process_test.go are named after section 7 of the research
// on sandboxes: each tries what once went wrong somewhere.

func TestPitfall08SymlinkedSystemDirs(t *testing.T) {
	for _, name := range []string{"proc", "dev", "sys"} {
		f := newFixture(t, Options{})
		f.mkdir("lower/elsewhere")
		f.symlink("/elsewhere", "lower/"+name)
		_, err := f.try("exit", "0")
		if err == nil || !strings.Contains(err.Error(), "/"+name+" of the image must be a directory") || !errors.Is(err, syscall.ELOOP) {
			t.Errorf("an image whose /%s is a symbolic link: %v", name, err)
		}
	}
}

func TestPitfall08SymlinkedWorkingDir(t *testing.T) {
	f := newFixture(t, Options{})
	f.mkdir("lower/inside", "host")
	f.symlink("../../../../../../../../inside", "lower/work")
	f.symlink(f.path("host"), "lower/out")
	c := command("who")
	var out strings.Builder
	c.Stdout, c.Dir = &out, "/work"
	if err := f.w.In(f.spec).Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "\ndir /inside\n") {
		t.Errorf("working directory behind a symbolic link: %s", out.String())
	}
	c.Dir = "/out"
	if err := f.with("b").w.In(f.with("b").spec).Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "working directory /out") {
		t.Errorf("a working directory outside of the root: %v", err)
	}
}

func TestPitfall09TargetsResolveInside(t *testing.T) {
	f := newFixture(t, Options{})
	f.mkdir("host", "lower/real")
	f.symlink(strings.Repeat("../", 40)+f.path("host"), "lower/up")
	f.symlink(f.path("host"), "lower/abs")
	f.symlink("/real", "lower/var")
	f.symlink("/nowhere", "lower/dangling")
	f.write("data", "data")
	for _, target := range []string{"/up/x", "/abs/x", "/dangling/x"} {
		g := f.with("t"+filepath.Base(filepath.Dir(target)), Mount{Target: target, Source: f.path("data")})
		if _, err := g.try("exit", "0"); err == nil {
			t.Errorf("mounted at %s, where nothing of the root is", target)
		}
	}
	if left, err := os.ReadDir(f.path("host")); err != nil || len(left) > 0 {
		t.Errorf("made outside of the root: %v, %v", left, err)
	}
	g := f.with("ok", Mount{Target: "/var/../var/x/y", Source: f.path("data"), ReadOnly: true})
	g.want(g.must("cat", "/real/x/y"), `/real/x/y "data"`)
}

func TestPitfall09SwappedSource(t *testing.T) {
	f := newFixture(t, Options{})
	f.mkdir("cache", "shared/good", "shared/bad")
	f.write("secret/key", "secret")
	f.write("shared/good/key", "good")
	f.symlink(f.path("secret"), "shared/link")
	g := f.with("link", Mount{Target: "/src", Source: f.path("shared/link"), NoFollow: true})
	if _, err := g.try("exit", "0"); !errors.Is(err, syscall.ELOOP) {
		t.Fatalf("a symbolic link as source with NoFollow: %v", err)
	}
	// Somebody swaps the directory for the link all the time.
	stop := make(chan struct{})
	swapped := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				swapped <- n
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, f.path("shared/good"), unix.AT_FDCWD, f.path("shared/link"), unix.RENAME_EXCHANGE)
				n++
			}
		}
	}()
	seen := map[string]int{}
	for i := range 20 {
		g := f.with(fmt.Sprint(i), Mount{Target: "/src", Source: f.path("shared/good"), NoFollow: true})
		out, err := g.try("cat", "/src/key")
		if err != nil {
			out = "refused"
		}
		seen[out]++
	}
	close(stop)
	if n := <-swapped; n < 2 {
		t.Fatal("nothing was swapped")
	}
	if len(seen) == 0 || seen[`/src/key "good"`]+seen["refused"] != 20 {
		t.Errorf("saw %v", seen)
	}
}

// TestPitfall10ReadOnlyIsRecursive uses /dev, whose /dev/shm is a mount that anybody may write to.
func TestPitfall10ReadOnlyIsRecursive(t *testing.T) {
	if !strings.Contains(mounts(t), " /dev/shm ") {
		t.Fatal("this test needs a host whose /dev/shm is a mount of its own")
	}
	f := newFixture(t, Options{})
	name := fmt.Sprintf("/mnt/shm/kiln-test-%d", os.Getpid())
	t.Cleanup(func() { os.Remove("/dev/shm/" + filepath.Base(name)) })
	g := f.with("rw", Mount{Target: "/mnt", Source: "/dev"})
	g.want(g.must("write", name), name+" ok") // else the rest shows nothing
	g = f.with("ro", Mount{Target: "/mnt", Source: "/dev", ReadOnly: true})
	g.want(g.must("write", name), name+" EROFS")
}

func TestPitfall11ProcIsMasked(t *testing.T) {
	for _, tier := range []Tier{Tier1, Tier3} {
		f := newFixture(t, Options{Tier: tier})
		f.want(f.must("cat", "/proc/keys", "/proc/timer_list"), `/proc/keys ""`, `/proc/timer_list ""`)
		f.want(f.must("open", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"),
			"/proc/sys/kernel/core_pattern EROFS|EACCES", "/proc/sys/vm/drop_caches EROFS|EACCES", "/proc/sysrq-trigger EROFS|EACCES|ENOENT")
		if os.Geteuid() == 0 { // then ownership does not help, and the mount alone must
			f.want(f.must("open", "/proc/sys/kernel/core_pattern"), "/proc/sys/kernel/core_pattern EROFS")
		}
		f.want(f.must("cat", "/proc/sys/user/max_user_namespaces"), `/proc/sys/user/max_user_namespaces "0\n"`)
	}
}

func TestPitfall12NothingOfTheHostIsLeft(t *testing.T) {
	f := newFixture(t, Options{Tier: Tier1})
	f.write("host-only", "x")
	before := mountsAt(t, f.dir)
	out := f.must("cat", "/proc/self/mountinfo")
	if after := mountsAt(t, f.dir); before != after {
		t.Errorf("the host's mounts changed:\n%s", after)
	}
	out = strings.TrimSuffix(strings.TrimPrefix(out, `/proc/self/mountinfo "`), `"`)
	wanted := map[string]bool{"/": true, "/probe": true, "/usr": true, "/lib": true, "/lib64": true, "/proc": true, "/dev": true, "/sys": true}
	for _, line := range strings.Split(strings.TrimSuffix(out, `\n`), `\n`) {
		fields := strings.Fields(line)
		at := fields[4]
		top := "/" + strings.SplitN(at, "/", 3)[1]
		if !wanted[top] {
			t.Errorf("unexpected mount %s", line)
		}
		if strings.Contains(line, "shared:") || strings.Contains(line, "master:") {
			t.Errorf("mount that propagates: %s", line)
		}
		if at == "/" && fields[3] != "/" && !strings.Contains(line, " overlay ") {
			t.Errorf("the root is not the overlay: %s", line)
		}
	}
	f = f.with("cwd")
	f.want(f.must("readlink", "/proc/self/cwd", "/proc/self/root"), "/proc/self/cwd /", "/proc/self/root /")
	f = f.with("dotdot")
	f.want(f.must("cat", "/.."+f.path("host-only")), "/.."+f.path("host-only")+" ENOENT")
}

// TestPitfall13BoundProcIsShut: with the host's /proc shown, its processes are visible and closed.
func TestPitfall13BoundProcIsShut(t *testing.T) {
	f := newFixture(t, Options{Tier: Tier3})
	if f.rep.Tier != Tier3 {
		t.Fatalf("pinned to tier 3, got %s", f.rep.Tier)
	}
	for _, pid := range []int{os.Getpid(), f.w.child.pid} {
		dir := fmt.Sprintf("/proc/%d/", pid)
		g := f.with(fmt.Sprint(pid))
		g.want(g.must("readlink", dir+"root", dir+"exe", dir+"cwd", dir+"fd/0"),
			dir+"root EACCES|EPERM", dir+"exe EACCES|EPERM", dir+"cwd EACCES|EPERM", dir+"fd/0 EACCES|EPERM")
		g = f.with(fmt.Sprint(pid, "b"))
		g.want(g.must("opendir", dir+"mem", dir+"environ", dir+"root/etc"),
			dir+"mem EACCES|EPERM", dir+"environ EACCES|EPERM", dir+"root/etc EACCES|EPERM")
		g = f.with(fmt.Sprint(pid, "c"))
		if out := g.must("ls", dir+"task"); !strings.Contains(out, fmt.Sprint(pid)) {
			t.Errorf("process %d cannot be seen: this tests nothing:\n%s", pid, out)
		}
	}
}

func TestPitfall25VolatileWorkDirIsReused(t *testing.T) {
	f := newFixture(t, Options{})
	f.want(f.must("write", "/tmp/a"), "/tmp/a ok")
	if _, err := os.Lstat(filepath.Join(f.spec.Root.Work, "work")); err != nil {
		t.Fatalf("no overlay was mounted there: %v", err)
	}
	f.want(f.must("cat", "/tmp/a"), `/tmp/a "written"`)
}

func TestPitfall26LowerDirectoriesCanBeReplaced(t *testing.T) {
	for _, q := range []quirks{{}, {LegacyOverlay: true}} {
		f := newFixture(t, Options{})
		f.w.quirks = q
		f.write("lower/etc/conf.d/file", "x")
		f.want(f.must("rmdir", "/etc/conf.d"), "remove /etc/conf.d ok", "make /etc/conf.d ok")
		f.want(f.must("rmdir", "/etc"), "remove /etc ok", "make /etc ok")
	}
}

// TestPitfall27HardLinksBreakSafely: overlay breaks hard links on copy-up. What may not happen is
// that a lower file, which other builds share, changes.
func TestPitfall27HardLinksBreakSafely(t *testing.T) {
	f := newFixture(t, Options{})
	one := f.write("lower/etc/one", "1")
	if err := os.Link(one, f.path("lower/etc/two")); err != nil {
		t.Fatal(err)
	}
	f.want(f.must("append", "/etc/one"), "/etc/one ok")
	f.want(f.must("cat", "/etc/one", "/etc/two"), `/etc/one "1+"`, `/etc/two "1"`)
	for _, name := range []string{"one", "two"} {
		if b, err := os.ReadFile(f.path("lower/etc/" + name)); err != nil || string(b) != "1" {
			t.Errorf("lower file %s is now %q, %v", name, b, err)
		}
	}
}

// TestPitfall29LongPathsAndManyLayers: more bytes than fsconfig or a page of mount options take.
func TestPitfall29LongPathsAndManyLayers(t *testing.T) {
	long := strings.Repeat("a,b:c\\d ", 25)
	for _, c := range []struct {
		name   string
		layers int
		q      quirks
	}{{"new", 120, quirks{}}, {"old", 120, quirks{LegacyOverlay: true}}} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			f.w.quirks = c.q
			lowers := []string{f.path("lower")}
			for i := range c.layers {
				dir := fmt.Sprintf("%s/%s/%d", long, long, i)
				f.write(dir+fmt.Sprintf("/etc/file-%03d", i), "x")
				lowers = append(lowers, f.path(dir))
			}
			f.spec.Root = f.overlay("root", lowers...)
			if got := len(strings.Split(f.must("ls", "/etc"), "\n")); got != c.layers {
				t.Errorf("%d files seen through %d layers", got, c.layers)
			}
		})
	}
	f := newFixture(t, Options{})
	f.w.quirks = quirks{LegacyOverlay: true}
	for range 400 {
		f.spec.Root.Lowers = append(f.spec.Root.Lowers, f.path("lower"))
	}
	if _, err := f.try("exit", "0"); err == nil || !strings.Contains(err.Error(), "too many for this kernel") {
		t.Errorf("401 layers by mount(2): %v", err)
	}
}

func TestPitfall30OneStepPerUpper(t *testing.T) {
	f := newFixture(t, Options{})
	end := f.hold()
	_, err := f.try("exit", "0")
	if err == nil || !strings.Contains(err.Error(), "another step uses it") {
		t.Errorf("a second step on the same upper: %v", err)
	}
	g := f.with("other")
	g.spec.Root.Work = f.spec.Root.Work
	if _, err := g.try("exit", "0"); err == nil || !strings.Contains(err.Error(), "another step uses it") {
		t.Errorf("a second step on the same work directory: %v", err)
	}
	h := f.with("third")
	h.must("exit", "0")
	end()
	f.must("exit", "0")
	same := f.overlay("same", f.path("lower"))
	twice := f.with("twice", Mount{Target: "/a", Overlay: &same}, Mount{Target: "/b", Overlay: &same})
	if _, err := twice.try("exit", "0"); err == nil {
		t.Error("one upper was mounted twice in a step")
	}
}

func TestPitfall31LowersAreSafe(t *testing.T) {
	f := newFixture(t, Options{})
	f.write("lower/etc/file", "kept")
	end := f.hold()
	for _, path := range []string{f.path("lower"), f.path("lower/etc"), f.dir, f.spec.Root.Upper} {
		if err := f.w.Remove(t.Context(), path); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("Remove(%s) under a running step: %v", path, err)
		}
	}
	if err := f.w.Remove(t.Context(), f.path("lowe")); err != nil {
		t.Errorf("Remove of a missing path beside: %v", err)
	}
	end()
	f.want(f.must("rmdir", "/etc"), "remove /etc ok", "make /etc ok")
	if b, err := os.ReadFile(f.path("lower/etc/file")); err != nil || string(b) != "kept" {
		t.Errorf("the lower changed: %q, %v", b, err)
	}
	if err := f.w.Remove(t.Context(), f.path("lower")); err != nil {
		t.Error(err)
	}
}
