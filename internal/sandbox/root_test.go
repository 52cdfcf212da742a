package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// rootTiers are the tiers for steps that run as root and that this user can have. Both must look
// alike from outside: only where an owner is found differs.
func rootTiers(t *testing.T, check func(t *testing.T, f *fixture)) {
	t.Helper()
	tiers := []Tier{Tier1F}
	if maps, _ := realIDs(0, 0); len(maps) > 0 {
		tiers = append(tiers, Tier1S)
	}
	for _, tier := range tiers {
		t.Run(string(tier), func(t *testing.T) { check(t, newRootFixture(t, tier)) })
	}
}

// owner is whom the step gave a file of the host to.
func (f *fixture) owner(path string) owner {
	f.t.Helper()
	if f.rep.IDs == RecordedIDs {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(path, OwnerXattr, buf)
		if err == unix.ENODATA {
			return owner{}
		}
		if err != nil {
			f.t.Fatalf("%s: %v", path, err)
		}
		return parseOwner(string(buf[:n]))
	}
	fi, err := os.Lstat(path)
	if err != nil {
		f.t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	return owner{f.inside(f.w.ids.uids, st.Uid), f.inside(f.w.ids.gids, st.Gid)}
}

func (f *fixture) inside(maps []syscall.SysProcIDMap, host uint32) uint32 {
	for _, m := range maps {
		if at := int(host) - m.HostID; at >= 0 && at < m.Size {
			return uint32(m.ContainerID + at)
		}
	}
	f.t.Fatalf("id %d of the host is not mapped by %v", host, maps)
	return 0
}

func (f *fixture) wantOwner(rel, want string) {
	f.t.Helper()
	if got := f.owner(filepath.Join(f.spec.Root.Upper, rel)).String(); got != want {
		f.t.Errorf("%s belongs to %s, want %s", rel, got, want)
	}
}

// script runs operations and wants what they print.
func (f *fixture) script(ops []string, lines ...string) {
	f.t.Helper()
	if len(lines) == 0 {
		lines = []string{""}
	}
	f.want(f.must("script", ops...), lines...)
}

const fileCap = `"\x00\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`

func TestRootStepsAreRoot(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.want(f.must("status", "Uid", "Gid", "CapInh", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"),
			"Uid 0,0,0,0", "Gid 0,0,0,0", "CapInh "+noCaps, "CapEff 00000000800405fb", "CapBnd 00000000800405fb", "CapAmb "+noCaps, "NoNewPrivs 1", "Seccomp 2")
		f.want(f.must("readlink", "/proc/1/fd/3", "/proc/1/exe"), "/proc/1/fd/3 EACCES", "/proc/1/exe EACCES")
		f.script([]string{"mkdir /d", "write /d/f x", "chmod /d/f 0", "write /d/f y", "setcap /d/f", "getxattr /d/f security.capability",
			"chroot /d", "stat /f", "mknod /fifo 0o10644"},
			"/d/f security.capability "+fileCap, "/f 0100000 0:0 0")
	})
}

// TestOwners goes through the ways to change an owner.
func TestOwners(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.write("lower/etc/below", "")
		f.write("lower/etc/dir/below", "")
		f.symlink("below", "lower/etc/link")
		f.write("lower/etc/given", "")
		f.script([]string{
			"chown /etc/below 1 2", "lchown /etc/dir 3 4", "chown /etc/link -1 5", "fchown /etc/dir/below 6 7",
			"write /n1 x", "emptypath /n1 8 9", "write /n2 x", "at / n2 10 11 0", "at /etc ../n2 -1 12 0x100",
			"mkdir /j", "write /j/n3 x", "write /n3 x", "symlink /n3 /j/abs", "chdir /j", "chown n3 13 13", "chown ../n3 14 14",
			"mkdir /r/etc", "write /r/etc/x x", "symlink /etc/x /r/l", "write /etc/x x", "throughfd /etc/x 15 15", "chown /etc/given 65534 65534",
			"link /etc/x /etc/hard", "rename /n1 /moved", "bad edge /etc/x",
			"chroot /r", "chown /l 16 16", "chown /../../etc/x -1 17", "chown ../n3 -1 18",
			"chown / 19 19",
		})
		for rel, want := range map[string]string{"etc/below": "1:5", "etc/dir": "3:4", "etc/dir/below": "6:7", "moved": "8:9", "n2": "10:12", "j/n3": "13:13",
			"n3": "14:18", "etc/x": "33:33", "etc/hard": "33:33", "r/etc/x": "16:17", "etc/given": "65534:65534", "r": "19:19", "r/l": "0:0", "j": "0:0"} {
			if f.rep.IDs == RecordedIDs && rel == "r/l" {
				continue
			}
			f.wantOwner(rel, want)
		}
		f.script([]string{"chown /etc/below 0 0", "chown /moved -1 0", "chown /n2 -1 -1", "rename /etc/dir/below /kept"})
		for rel, want := range map[string]string{"etc/below": "0:0", "moved": "8:0", "n2": "10:12", "kept": "6:7"} {
			f.wantOwner(rel, want)
		}
	})
}

// TestOwnersHaveEffects: what the kernel does beside at a change of owner happens.
func TestOwnersHaveEffects(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.symlink("nowhere", "lower/etc/dangling")
		f.script([]string{
			"write /suid x", "chmod /suid 0o6755", "setcap /suid", "chown /suid 33 33", "getxattr /suid security.capability",
			"write /both x", "chown /both 33 33", "chmod /both 0o4755", "setcap /both", "getxattr /both security.capability",
			"lchown /etc/dangling 33 33", "fifo /p", "chown /p 33 33", "mkdir /sticky", "chmod /sticky 0o3777", "chown /sticky 33 33", "write /ro x", "chmod /ro 0o400", "chown /ro 34 34",
		}, "getxattr /suid security.capability no data available", "/both security.capability "+fileCap)
		for rel, mode := range map[string]os.FileMode{"suid": 0o755, "both": 0o755 | os.ModeSetuid, "sticky": 0o777 | os.ModeDir | os.ModeSticky | os.ModeSetgid, "ro": 0o400} {
			if fi, err := os.Lstat(filepath.Join(f.spec.Root.Upper, rel)); err != nil || fi.Mode() != mode {
				t.Errorf("%s: mode %v, %v, want %v", rel, fi.Mode(), err, mode)
			}
		}
		f.wantOwner("ro", "34:34")
		f.wantOwner("sticky", "33:33")
	})
}

// TestOwnersAreRefused: the errno is the one of a change of owner, whoever answers.
func TestOwnersAreRefused(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.write("ro/file", "")
		f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/ro", Source: f.path("ro"), ReadOnly: true})
		f.symlink("loop", "lower/loop")
		f.symlink("missing", "lower/dangling")
		f.write("lower/file", "")
		f.script([]string{
			"chown /missing 1 1", "chown /dangling 1 1", "chown /file/x 1 1", "chown /loop 1 1", "chown /ro/file 1 1", "at / missing 1 1 0", "at /file x 1 1 0",
			"bad pointer", "bad flags", "bad descriptor", "bad long", "chown /proc/1/exe 1 1", "emptypath /missing 1 1", "at / . 1 1 0x100000",
			"chown /dev/null 0 0", "chmod /dev/null 0o666", "write /dev/null x",
			"nocaps", "chown /file 1 1", "chown /file -1 1", "chown /file 0 0", "chown /file -1 -1",
		}, "chown /missing 1 1 ENOENT", "chown /dangling 1 1 ENOENT", "chown /file/x 1 1 not a directory", "chown /loop 1 1 too many levels of symbolic links",
			"chown /ro/file 1 1 EROFS", "at / missing 1 1 0 ENOENT", "at /file x 1 1 0 not a directory", "bad pointer bad address", "bad flags EINVAL",
			"bad descriptor EBADF", "bad long file name too long", "chown /proc/1/exe 1 1 EACCES", "emptypath /missing 1 1 ENOENT", "at / . 1 1 0x100000 EINVAL",
			"chown /dev/null 0 0 EROFS", "chmod /dev/null 0o666 EROFS",
			"chown /file 1 1 EPERM", "chown /file -1 1 EPERM")
	})
}

// TestPretending is about what tier 1f only pretends.
func TestPretending(t *testing.T) {
	f := newRootFixture(t, Tier1F)
	f.spec.Groups = []int{4, 24} // nobody has them, and nobody minds
	f.script([]string{
		"seteuid 42", "groups 7", "become 33", "write /mine x", "stat /mine", "chown /mine 33 33", "stat /mine",
		"mknod /null 0o20666 1 3", "stat /null", "mknod /disk 0o60600 8 0", "stat /disk",
		"mknod /pipe 0o10600", "stat /pipe", "mknod /sock 0o140600", "stat /sock", "mknod /plain 0o100600", "stat /plain",
	}, "/mine 0100644 0:0 0", "/mine 0100644 0:0 0", "stat /null ENOENT", "stat /disk ENOENT",
		"/pipe 010600 0:0 0", "/sock 0140600 0:0 0", "/plain 0100600 0:0 0")
	f.wantOwner("mine", "33:33")
	f.script([]string{"setxattr /mine " + OwnerXattr + " nonsense", "chown /mine -1 5"})
	f.wantOwner("mine", "0:5")
}

// TestOwnersWhereTheProcIsTheHosts: then the numbers of processes are others.
func TestOwnersWhereTheProcIsTheHosts(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.w.report.HostProc = true
		f.script([]string{"mkdir /d", "write /d/f x", "chdir /d", "lchown f 33 34", "at / d 35 36 0", "fchown /tmp 37 38", "throughfd /etc 39 40"})
		for rel, want := range map[string]string{"d/f": "33:34", "d": "35:36", "tmp": "37:38", "etc": "39:40"} {
			f.wantOwner(rel, want)
		}
	})
}

// TestOwnersInCopies: where overlay is not to be had the copier itself may need to run as the step's root.
func TestOwnersInCopies(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.w.report.Copies = true
		f.mkdir("empty")
		f.w.options.Copy = func(ctx context.Context, dst string, o Overlay) error {
			spec := f.spec
			spec.Root = Overlay{Upper: f.path("empty")}
			spec.Mounts = append(slices.Clip(spec.Mounts), Mount{Target: "/dst", Source: dst})
			if err := f.w.In(spec).Run(ctx, command("script", "mkdir /dst/etc", "write /dst/etc/copied x", "chown /dst/etc/copied 5 6")); err != nil {
				return err
			}
			return copyAll(ctx, dst, o)
		}
		f.script([]string{"chown /etc/copied -1 7", "mkdir /x", "chown /x 8 9"})
		f.wantOwner("etc/copied", "5:7")
		f.wantOwner("x", "8:9")
	})
}

// TestManyOwnersAtOnce: callers that are many, that are threads, and that are killed while they wait.
func TestManyOwnersAtOnce(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.want(f.must("crowd", "8", "50"), "")
		for i := range 8 {
			for j := range 50 {
				f.wantOwner(fmt.Sprintf("crowd/%d-%d", i, j), fmt.Sprintf("%d:%d", 100+i, 100+j))
			}
		}
	})
}

// TestOwnersBesideOtherSteps: what is done for one step is not done to the worker.
func TestOwnersBesideOtherSteps(t *testing.T) {
	f := newRootFixture(t, Tier1F)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.w.In(f.spec).Run(ctx, command("restless", "/tmp/x")) }()
	for i := range 20 {
		g := f.with(fmt.Sprint("beside-", i))
		g.script([]string{"write /f x", "chown /f 33 33"})
		g.wantOwner("f", "33:33")
		if err := f.w.Remove(t.Context(), f.path(fmt.Sprint("scratch/beside-", i))); err != nil {
			t.Error(err)
		}
		if left, err := os.Lstat(g.spec.Root.Upper); err == nil {
			t.Errorf("%s is still there", left.Name())
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// fileModel is what a tree of files and their owners ought to be.
type fileModel struct {
	files  map[string]int // path to inode; directories are in dirs as well
	dirs   map[string]bool
	owners []owner
}

func (m *fileModel) add(path string, dir bool) {
	m.files[path], m.dirs[path] = len(m.owners), dir
	m.owners = append(m.owners, owner{})
}

func (m *fileModel) paths(dirsToo bool) (paths []string) {
	for p := range m.files {
		if dirsToo || !m.dirs[p] {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}

// scenario is a model and the operations that lead to it.
type scenario struct {
	fileModel
	ops []string
}

func drawScenario(t *rapid.T) *scenario {
	s := &scenario{fileModel: fileModel{files: map[string]int{}, dirs: map[string]bool{}}}
	for _, p := range []string{"/m", "/m/a", "/m/b", "/m/d", "/m/d/c"} {
		s.add(p, p == "/m" || p == "/m/d")
	}
	for i := range rapid.IntRange(20, 200).Draw(t, "length") {
		s.ops = append(s.ops, s.draw(t, i))
	}
	return s
}

// TestOwnersAsAModelHasThem changes owners of files that are renamed, linked, copied up and
// replaced. A step is too dear to have one for each of a hundred short scenarios, so these are long.
func TestOwnersAsAModelHasThem(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		for _, rel := range []string{"lower/m/a", "lower/m/b", "lower/m/d/c"} {
			f.write(rel, "")
		}
		for seed := range 10 {
			f := f.with(fmt.Sprint("model-", seed))
			s := rapid.Custom(drawScenario).Example(seed)
			f.script(s.ops)
			for p, inode := range s.files {
				path := filepath.Join(f.spec.Root.Upper, p)
				if _, err := os.Lstat(path); err != nil && s.owners[inode] == (owner{}) {
					continue // it may not have been copied up
				}
				if got := f.owner(path); got != s.owners[inode] {
					t.Errorf("%s belongs to %s, want %s; after %q", p, got, s.owners[inode], s.ops)
				}
			}
		}
	})
}

// draw draws an operation that works, and does it to the model.
func (m *fileModel) draw(t *rapid.T, i int) string {
	fresh := fmt.Sprintf("/m/n%d", i)
	file := func() string { return rapid.SampledFrom(m.paths(false)).Draw(t, "file") }
	switch rapid.IntRange(0, 9).Draw(t, "op") {
	case 0:
		m.add(fresh, true)
		return "mkdir " + fresh
	case 1:
		m.add(fresh, false)
		return "write " + fresh + " x"
	case 2:
		from := file()
		m.files[fresh], m.dirs[fresh] = m.files[from], false
		return "link " + from + " " + fresh
	case 3:
		from, to := file(), file()
		if m.files[from] == m.files[to] {
			return "nothing"
		}
		m.files[to] = m.files[from]
		delete(m.files, from)
		return "rename " + from + " " + to
	}
	p := rapid.SampledFrom(m.paths(true)).Draw(t, "path")
	// The same few often enough, that nothing and root are among them.
	wish := owner{rapid.SampledFrom([]uint32{keepID, 0, 33, 65534}).Draw(t, "uid"), rapid.SampledFrom([]uint32{keepID, 0, 101}).Draw(t, "gid")}
	m.owners[m.files[p]] = wish.over(m.owners[m.files[p]])
	op := rapid.SampledFrom([]string{"chown", "lchown", "fchown", "emptypath", "throughfd"}).Draw(t, "how")
	return fmt.Sprintf("%s %s %d %d", op, p, int32(wish.uid), int32(wish.gid))
}

// TestBestRoot wants the best that this user can have.
func TestBestRoot(t *testing.T) {
	f := newRootFixture(t, BestRoot)
	maps, findings := realIDs(0, 0)
	if len(maps) > 0 {
		if f.rep.Tier != Tier1S || f.rep.IDs != RealIDs || len(f.rep.Findings) > 0 {
			t.Errorf("report %+v", f.rep)
		}
		return
	}
	if f.rep.Tier != Tier1F || f.rep.IDs != RecordedIDs || !slices.Equal(f.rep.Findings, findings) || len(findings) == 0 || findings[0].Tier != Tier1S {
		t.Errorf("report %+v", f.rep)
	}
}

// TestLayersAreHandledInside: unpacking a layer, copying into one and writing the difference that a
// step made are steps as well, for what belongs to others can be read and made nowhere else.
func TestLayersAreHandledInside(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.write("lower/etc/gone", "")
		f.write("lower/etc/dir/gone", "")
		// A step whose difference is wanted.
		f.script([]string{"rm /etc/gone", "rm /etc/dir", "mkdir /etc/dir", "write /etc/dir/secret s", "setcap /etc/dir/secret", "chown /etc/dir/secret 7 8", "chmod /etc/dir/secret 0o600",
			"setcap /etc/dir/secret", "chown /etc/dir 7 8", "chmod /etc/dir 0o700"})
		f.mkdir("layer", "empty")
		tool := f.spec
		tool.Root = Overlay{Upper: f.path("empty")}
		tool.Mounts = append(slices.Clip(tool.Mounts), Mount{Target: "/lower", Source: f.path("lower"), ReadOnly: true},
			Mount{Target: "/upper", Source: f.spec.Root.Upper}, Mount{Target: "/layer", Source: f.path("layer")})
		g := *f
		g.spec = tool
		record := "0:0"
		if f.rep.IDs == RecordedIDs {
			g.script([]string{"getxattr /upper/etc/dir " + OwnerXattr}, `/upper/etc/dir `+OwnerXattr+` "7:8"`)
		} else {
			record = "7:8"
		}
		// It can all be read: whiteouts, opaque marks, capabilities, what nobody else may.
		g.script([]string{"stat /upper/etc/gone", "getxattr /upper/etc/dir user.overlay.opaque", "stat /upper/etc/dir/secret", "getxattr /upper/etc/dir/secret security.capability", "ls /lower/etc",
			"write /lower/x x"},
			"/upper/etc/gone 020000 0:0 0", `/upper/etc/dir user.overlay.opaque "y"`, "/upper/etc/dir/secret 0100600 "+record+" 0", "/upper/etc/dir/secret security.capability "+fileCap,
			"/lower/etc/dir", "/lower/etc/gone", "write /lower/x x EROFS")
		g.want(g.must("cat", "/upper/etc/dir/secret"), `/upper/etc/dir/secret "s"`)
		// It can all be made, and is then a layer that the next step has below.
		g.script([]string{"mkdir /layer/etc/dir", "mknod /layer/etc/gone 0o20000 0 0", "setxattr /layer/etc/dir user.overlay.opaque y", "write /layer/etc/dir/new n", "chown /layer/etc/dir/new 33 34",
			"setcap /layer/etc/dir/new", "chmod /layer/etc/dir/new 0o4750"})
		f.spec.Root = f.overlay("next", f.path("layer"), f.path("lower"))
		f.script([]string{"ls /etc", "ls /etc/dir", "chown /etc/dir/new -1 35"}, "/etc/dir", "/etc/dir/new")
		f.wantOwner("etc/dir/new", "33:35")
		for _, rel := range []string{"layer", "scratch"} {
			if err := f.w.Remove(t.Context(), f.path(rel)); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestTheToolIsSafe: the program that handles layers is ours and runs as our own user outside. What it
// runs on may not change it.
func TestTheToolIsSafe(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.want(f.must("open", "/probe", "/proc/self/exe"), "/probe EROFS|ETXTBSY|EACCES", "/proc/self/exe EROFS|ETXTBSY|EACCES")
		f.script([]string{"chown /probe 1 1", "chmod /probe 0o777", "chown /probe 0 0", "rm /probe", "setxattr /probe user.x y", "throughfd /probe 0 0"}, "chown /probe 1 1 EROFS", "chmod /probe 0o777 EROFS",
			"chown /probe 0 0 EROFS", "rm /probe device or resource busy", "setxattr /probe user.x y EROFS", "throughfd /probe 0 0 EROFS")
	})
}
