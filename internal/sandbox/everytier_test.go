package sandbox

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// place is where a step runs: a tier.
type place struct {
	name   string
	run    func(c Command) error
	dir    string // of the host
	inside string // the same, as the step sees it; "" when it cannot
}

// everyTier runs check in all tiers that this user can have. In place the step is an ordinary user's,
// as it is in any builder.
func everyTier(t *testing.T, check func(t *testing.T, p place)) {
	t.Helper()
	for _, tier := range []Tier{Tier1, Tier1S, Tier1F, Tier2, Tier3} {
		o := Options{Tier: tier, UID: testUID, GID: testGID, Copy: copyAll}
		if tier == Tier1S || tier == Tier1F {
			o.UID, o.GID = 0, 0
		}
		if maps, _ := realIDs(0, 0); tier == Tier1S && len(maps) == 0 {
			continue // TestTier1S wants the refusal
		}
		t.Run(string(tier), func(t *testing.T) {
			f := newFixtureAs(t, o)
			f.mkdir("shared")
			f.spec.Mounts = append(f.spec.Mounts, Mount{Target: "/shared", Source: f.path("shared")})
			check(t, place{"tier " + string(tier), func(c Command) error { c.Path = "/probe"; return f.w.In(f.spec).Run(t.Context(), c) }, f.path("shared"), "/shared"})
		})
	}
	t.Run(string(Tier4), func(t *testing.T) {
		p, dir := InPlace{}, t.TempDir()
		if os.Geteuid() == 0 {
			p.As = &syscall.Credential{Uid: testUID, Gid: testGID}
			for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
		}
		check(t, place{"tier 4", func(c Command) error { c.Path = selfExe; return p.Run(t.Context(), c) }, dir, dir})
	})
}

func (p place) want(t *testing.T, probe []string, lines ...string) {
	t.Helper()
	var out bytes.Buffer
	c := command(probe[0], probe[1:]...)
	c.Stdout, c.Stderr = &out, &out
	if err := p.run(c); err != nil {
		t.Errorf("%s: probe %q: %v\n%s", p.name, probe, err, out.String())
		return
	}
	(&fixture{t: t}).want(strings.TrimSuffix(out.String(), "\n"), lines...)
}

// TestEveryTier is what holds wherever a step runs, whoever it is there.
func TestEveryTier(t *testing.T) {
	t.Setenv("REGISTRY_PASSWORD", "secret")
	abstract, err := net.Listen("unix", fmt.Sprintf("@kiln-every-tier-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	leak, err := syscall.Open("/", syscall.O_RDONLY, 0) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leak)
	alive := bystander(t)
	everyTier(t, func(t *testing.T, p place) {
		p.want(t, []string{"env"}, "")
		p.want(t, []string{"fds"}, "0", "1", "2")
		p.want(t, []string{"status", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp"}, "CapInh "+noCaps, "CapAmb "+noCaps, "NoNewPrivs 1", "Seccomp 2")
		p.want(t, []string{"syscalls"}, refusedCalls()...)
		p.want(t, []string{"limit"}, "core 0 0")
		if landlockABI() >= landlockScopeABI {
			p.want(t, []string{"dial", "unix", abstract.Addr().String()}, "unix EPERM")
		}
		p.want(t, []string{"open", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/self/exe", "/dev/mem", "/dev/kmsg", "/sys/kernel/uevent_helper"},
			"/proc/sys/kernel/core_pattern EROFS|EACCES", "/proc/sys/vm/drop_caches EROFS|EACCES", "/proc/sysrq-trigger EROFS|EACCES|ENOENT", "/proc/self/exe EROFS|ETXTBSY|EACCES",
			"/dev/mem ENOENT|EACCES", "/dev/kmsg ENOENT|EACCES", "/sys/kernel/uevent_helper ENOENT|EACCES|EROFS")
		lock := filepath.Join(p.dir, "lock")
		if err := os.WriteFile(lock, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(lock, 0o666); err != nil {
			t.Fatal(err)
		}
		p.want(t, []string{"brood", filepath.Join(p.inside, "lock")}, "")
		if err := locked(t, lock); err != nil {
			t.Errorf("something outlives its step: %v", err)
		}
	})
	if !alive() {
		t.Error("a bystander was killed")
	}
}

// TestRootStepsDoNotGetOut: what root of a step has does not reach beyond it.
func TestRootStepsDoNotGetOut(t *testing.T) {
	rootTiers(t, func(t *testing.T, f *fixture) {
		f.write("host-only", "host")
		f.mkdir("lower/jail")
		// The classic way out of a chroot ends at the step's own root.
		f.script([]string{"chroot /jail", "chdir ../../../../../../../../..", "chroot .", "stat " + f.path("host-only"), "ls /jail", "stat /tmp"},
			"stat "+f.path("host-only")+" ENOENT", "/tmp 040755 0:0 0")
		f.script([]string{"chmod /proc/sys/kernel/core_pattern 0o777", "chown /proc/sysrq-trigger 0 0", "mknod /disk 0o60600 8 0", "stat /disk", "chmod /sys 0o777", "chown /dev/null 0 0"},
			f.denied()...)
	})
}

func (f *fixture) denied() []string {
	lines := []string{"chmod /proc/sys/kernel/core_pattern 0o777 EROFS", "chown /proc/sysrq-trigger 0 0 EROFS|ENOENT", "mknod /disk 0o60600 8 0 EPERM", "stat /disk ENOENT", "chmod /sys 0o777 EROFS", "chown /dev/null 0 0 EROFS"}
	if f.rep.IDs == RecordedIDs {
		lines = append(lines[:2], lines[3:]...) // there it is pretended
	}
	return lines
}
