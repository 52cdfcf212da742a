package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func copyAll(ctx context.Context, dst string, o Overlay) error {
	for i := len(o.Lowers) - 1; i >= 0; i-- {
		if err := copyOver(ctx, dst, o.Lowers[i]); err != nil {
			return err
		}
	}
	return copyOver(ctx, dst, o.Upper)
}

func copyOver(ctx context.Context, dst, src string) error {
	return exec.CommandContext(ctx, "cp", "-a", src+"/.", dst).Run()
}

func TestTier2Copies(t *testing.T) {
	copies := 0
	f := newFixture(t, Options{Tier: Tier2, Copy: func(ctx context.Context, dst string, o Overlay) error {
		copies++
		return copyAll(ctx, dst, o)
	}})
	if f.rep.Tier != Tier2 || !f.rep.Copies || !strings.Contains(f.rep.Detail, "copies") {
		t.Fatalf("report %+v", f.rep)
	}
	f.write("lower/etc/file", "lower")
	f.write("below/layer/one", "below")
	f.write("scratch/layers/upper/layer/two", "upper")
	o := f.overlay("layers", f.path("below"))
	f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/layers", Overlay: &o})
	f.want(f.must("cat", "/etc/file", "/layers/layer/one", "/layers/layer/two"), `/etc/file "lower"`, `/layers/layer/one "below"`, `/layers/layer/two "upper"`)
	f.want(f.must("append", "/etc/file", "/layers/layer/one"), "/etc/file ok", "/layers/layer/one ok")
	f.want(f.must("cat", "/etc/file", "/layers/layer/one"), `/etc/file "lower+"`, `/layers/layer/one "below+"`)
	if copies != 2 {
		t.Errorf("%d copies for 2 overlays and 3 steps", copies)
	}
	for path, want := range map[string]string{f.path("lower/etc/file"): "lower", f.path("below/layer/one"): "below",
		filepath.Join(f.spec.Root.Upper, "etc/file"): "lower+", filepath.Join(o.Upper, "layer/one"): "below+", filepath.Join(o.Upper, "layer/two"): "upper"} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", path, b, err, want)
		}
	}
	f.spec.Root = Overlay{Lowers: []string{f.path("lower")}}
	if _, err := f.try("exit", "0"); err == nil || !strings.Contains(err.Error(), "needs an upper directory") {
		t.Errorf("no upper: %v", err)
	}
}

func TestTier2NeedsACopier(t *testing.T) {
	_, _, err := Start(t.Context(), Options{Tier: Tier2, Scratch: []string{t.TempDir()}})
	var u *UnavailableError
	if !errors.As(err, &u) || u.Tier != Tier2 {
		t.Errorf("tier 2 without Copy: %v", err)
	}
}

func TestStartRefusesNonsense(t *testing.T) {
	for want, o := range map[string]Options{
		"for root": {Tier: Tier1F, UID: 1}, `"root" is for root`: {Tier: BestRoot, GID: 1},
		`isolation "4"`: {Tier: "4"}, "must not be negative": {UID: -1}, "no such file": {Executable: "/no/such/kiln"},
	} {
		if _, _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Start(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v", err)
	}
}

// TestTier1S asserts what this machine can show: real owners, or a refusal that says what to do.
func TestTier1S(t *testing.T) {
	maps, _ := realIDs(testUID, testGID)
	if len(maps) == 0 {
		_, _, err := Start(t.Context(), Options{Tier: Tier1S, UID: testUID, GID: testGID})
		var u *UnavailableError
		if !errors.As(err, &u) || u.Tier != Tier1S || len(u.Findings) != 1 {
			t.Fatalf("without sub-ids: %v", err)
		}
		if h := u.Hint(); !strings.Contains(h, "usermod --add-subuids") && !strings.Contains(h, "apt-get install uidmap") {
			t.Errorf("no fix: %q", h)
		}
		return
	}
	f := newFixture(t, Options{Tier: Tier1S})
	f.spec.UID, f.spec.GID = 0, 0
	f.want(f.must("status", "Uid", "Gid", "Groups", "CapInh", "CapEff", "CapAmb"),
		"Uid 0,0,0,0", "Gid 0,0,0,0", "Groups 0", "CapInh "+noCaps, "CapEff 00000000800405fb", "CapAmb "+noCaps)
	f.want(f.must("chown", "/tmp/owned", "42", "101"), "write ok", "chown ok")
	f.want(f.must("readlink", "/proc/1/fd/3", "/proc/1/exe"), "/proc/1/fd/3 EACCES", "/proc/1/exe EACCES")
	f.wantFewFDs() // the numbers are the namespace's root's to see
	f.spec.UID, f.spec.GID = 33, 33
	f.want(f.must("status", "Uid", "Groups", "CapEff"), "Uid 33,33,33,33", "Groups 33", "CapEff "+noCaps)
	f.spec.Groups = []int{24, 4}
	f.want(f.must("status", "Gid", "Groups"), "Gid 33,33,33,33", "Groups 4,24,33")
	f.spec.Groups = []int{mappedIDs}
	if _, err := f.try("exit", "0"); err == nil || !strings.Contains(err.Error(), "set groups [33 65536]") {
		t.Errorf("a group that is not mapped: %v", err)
	}
	fi, err := os.Lstat(filepath.Join(f.spec.Root.Upper, "tmp/owned"))
	if err != nil || int(fi.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() {
		t.Errorf("the owner is not a sub-id: %v", err)
	}
	if err := f.w.Remove(t.Context(), f.spec.Root.Upper); err != nil {
		t.Error(err)
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	r, err := Probe(t.Context(), Options{UID: testUID, GID: testGID, Scratch: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Tier != Tier1 || r.Scratch != dir || r.Copies || len(r.Findings) > 0 || !strings.HasPrefix(r.Detail, "tier 1: ") {
		t.Errorf("%+v", r)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	other := t.TempDir()
	r, err = Probe(t.Context(), Options{Scratch: []string{filepath.Join(dir, "missing"), other}})
	if err != nil || r.Scratch != other || r.Tier != Tier1 || len(r.Findings) != 1 {
		t.Errorf("with a scratch directory that is missing: %+v, %v", r, err)
	}
}

// TestDecide goes through the ladder with what hosts answer.
func TestDecide(t *testing.T) {
	bad := func(e unix.Errno) probeStep { return probeStep{Errno: int(e), Err: e.Error()} }
	good := probeStep{}
	cases := []struct {
		name  string
		ask   Tier
		ids   IDs
		probe probeResult
		want  Tier // "" is a refusal
		copy  bool
		says  string
	}{
		{"all", Best, SingleID, probeResult{Overlays: []probeStep{good}}, Tier1, false, ""},
		{"masked proc", Best, SingleID, probeResult{Overlays: []probeStep{good}, Proc: bad(unix.EPERM)}, Tier3, false, "systempaths=unconfined"},
		{"no overlay", Best, SingleID, probeResult{Overlays: []probeStep{bad(unix.EINVAL)}}, Tier2, true, "ext4"},
		{"neither", Best, SingleID, probeResult{Overlays: []probeStep{bad(unix.EINVAL)}, Proc: bad(unix.EPERM)}, Tier3, true, "systempaths"},
		{"no mounts", Best, SingleID, probeResult{Mount: bad(unix.EACCES)}, "", false, "aa"},
		{"1 pinned, masked proc", Tier1, SingleID, probeResult{Overlays: []probeStep{good}, Proc: bad(unix.EPERM)}, "", false, "systempaths"},
		{"1 pinned, no overlay", Tier1, SingleID, probeResult{Overlays: []probeStep{bad(unix.EIO)}}, "", false, "ext4"},
		{"2 pinned, all", Tier2, SingleID, probeResult{Overlays: []probeStep{good}}, Tier2, true, ""},
		{"2 pinned, masked proc", Tier2, SingleID, probeResult{Overlays: []probeStep{good}, Proc: bad(unix.EPERM)}, "", false, "systempaths"},
		{"3 pinned, all", Tier3, SingleID, probeResult{Overlays: []probeStep{good}}, Tier3, false, ""},
		{"1s pinned, masked proc", Tier1S, RealIDs, probeResult{Overlays: []probeStep{good}, Proc: bad(unix.EPERM)}, "", false, "systempaths"},
		{"root, all", BestRoot, RealIDs, probeResult{Overlays: []probeStep{good}}, Tier1S, false, ""},
		{"root, recorded", BestRoot, RecordedIDs, probeResult{Overlays: []probeStep{good}}, Tier1F, false, ""},
		{"root, neither", BestRoot, RecordedIDs, probeResult{Overlays: []probeStep{bad(unix.EINVAL)}, Proc: bad(unix.EPERM)}, Tier1F, true, "systempaths"},
		{"root, no record", BestRoot, RecordedIDs, probeResult{Overlays: []probeStep{good}, Pretend: bad(unix.ENOTSUP)}, "", false, "sub-ids"},
		{"1f pinned, all", Tier1F, RecordedIDs, probeResult{Overlays: []probeStep{good}}, Tier1F, false, ""},
		{"1f pinned, no overlay", Tier1F, RecordedIDs, probeResult{Overlays: []probeStep{bad(unix.EIO)}}, "", false, "ext4"},
	}
	for _, c := range cases {
		w := &Worker{options: Options{Tier: c.ask, Scratch: []string{"/scratch"}, Copy: copyAll}, ids: idMap{ids: c.ids}}
		r, err := w.decide(c.probe, hostFacts{apparmor: true})
		if c.says == "aa" {
			c.says = "apparmor_restrict_unprivileged_userns=0"
		}
		var u *UnavailableError
		if c.want == "" {
			if !errors.As(err, &u) || u.Tier != c.ask || !strings.Contains(u.Hint(), c.says) || u.Error() == "" {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || r.Tier != c.want || r.Copies != c.copy || r.IDs != c.ids || r.HostProc != (c.probe.Proc.Err != "" || c.ask == Tier3) || !strings.HasPrefix(r.Detail, "tier "+string(c.want)) {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
		fixes := ""
		for _, f := range r.Findings {
			fixes += f.Fix
		}
		if !strings.Contains(fixes, c.says) || (c.says == "") != (fixes == "") {
			t.Errorf("%s: the report does not say why: %+v", c.name, r)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		step  string
		errno unix.Errno
		host  hostFacts
		fix   string
	}{
		{"clone", unix.EPERM, hostFacts{usernsOff: true}, fixSysctl},
		{"clone", unix.EPERM, hostFacts{container: true, filtered: true}, fixDocker},
		{"clone", unix.ENOSYS, hostFacts{container: true}, fixDocker},
		{"clone", unix.ENOSYS, hostFacts{}, "boot a kernel with CONFIG_USER_NS"},
		{"clone", unix.ENOSPC, hostFacts{maxUserns0: true}, fixMax},
		{"clone", unix.ENOSPC, hostFacts{container: true}, fixMax},
		{"clone", unix.EACCES, hostFacts{apparmor: true}, fixAppArmor()},
		{"id map", unix.EACCES, hostFacts{apparmor: true}, fixAppArmor()},
		{"mount", unix.EPERM, hostFacts{container: true}, fixDocker},
		{"mount", unix.EACCES, hostFacts{apparmor: true}, fixAppArmor()},
		{"/proc", unix.EPERM, hostFacts{}, fixProc},
		{"overlay", unix.EINVAL, hostFacts{}, fixFS},
		{"pretend", unix.EBUSY, hostFacts{}, fixOwners},
	} {
		f := explain(c.step, c.errno, c.host)
		if f.Fix != c.fix || f.Cause == "" || !strings.Contains(f.String(), c.step) {
			t.Errorf("%s %v %+v: %+v", c.step, c.errno, c.host, f)
		}
	}
}

func TestLayIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inside, start := rapid.IntRange(0, mappedIDs-1).Draw(t, "inside"), rapid.IntRange(100000, 1<<30).Draw(t, "start")
		next, used := 0, start
		cut := rapid.IntRange(0, mappedIDs-1).Draw(t, "cut")
		free := []idRange{{start, cut}, {start + cut, mappedIDs}}
		for _, m := range layIDs(free, inside, 7) {
			if m.ContainerID != next || m.Size < 1 {
				t.Fatalf("gap at %d: %+v", next, m)
			}
			next += m.Size
			if m.ContainerID == inside && m.Size == 1 && m.HostID == 7 {
				continue
			}
			if m.HostID != used || m.ContainerID <= inside && inside < m.ContainerID+m.Size {
				t.Fatalf("%+v: want host id %d", m, used)
			}
			used += m.Size
		}
		if next != mappedIDs || used != start+mappedIDs-1 {
			t.Fatalf("%d ids mapped, %d sub-ids used", next, used-start)
		}
	})
}

func TestParseSubIDs(t *testing.T) {
	const file = "# comment\nother:1:2\nme:100000:65536\n1000:300000:70000\nmelon:9:9\nme:5:5\n"
	got, err := parseSubIDs(strings.NewReader(file), "me", "1000")
	want := []idRange{{100000, 65536}, {300000, 70000}, {5, 5}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(idRange{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := parseSubIDs(strings.NewReader("me:x:1"), "me", "1000"); err == nil {
		t.Error("took a line that is none")
	}
}

func FuzzParseSubIDs(f *testing.F) {
	f.Add("me:100000:65536\n")
	f.Add("me:-1:99999999999999999999\n")
	f.Fuzz(func(t *testing.T, file string) {
		ranges, err := parseSubIDs(strings.NewReader(file), "me", "1000")
		for _, r := range ranges {
			if err == nil && (r.start < 0 || r.count < 0) {
				t.Errorf("range %+v", r)
			}
		}
	})
}
