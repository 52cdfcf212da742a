package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The tests of this file run others again, as somebody else: sub-ids and small containers are not
// what this host has to have. The ordinary user cannot become others, and shows what is left.

// again runs tests of this binary in cmd's place and wants them to have passed, all of them.
func again(t *testing.T, cmd *exec.Cmd, tests ...string) {
	t.Helper()
	cmd.Args = append(cmd.Args, "-test.v", "-test.run", "^("+strings.Join(tests, "|")+")$")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	for _, name := range tests {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not pass:\n%s", name, out)
		}
	}
}

// public copies this binary to where everybody may run it, with a temporary directory beside it.
func public(t *testing.T, uid int) (exe, tmp string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "kiln-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, tmp = filepath.Join(dir, "probe"), filepath.Join(dir, "tmp")
	body, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.WriteFile(exe, body, 0o755), os.Mkdir(tmp, 0o700), os.Chmod(dir, 0o755), os.Chown(tmp, uid, uid))
	}
	if err != nil {
		t.Fatal(err)
	}
	return exe, tmp
}

// TestRealIDsOfAUser becomes a user who has sub-ids, in a mount namespace where /etc says so.
func TestRealIDsOfAUser(t *testing.T) {
	if os.Geteuid() != 0 {
		_, findings := realIDs(0, 0)
		if len(findings) != 1 || findings[0].Fix == "" {
			t.Errorf("an ordinary user without sub-ids: %+v", findings)
		}
		return
	}
	const uid = 4321
	exe, tmp := public(t, uid)
	etc := t.TempDir()
	accounts, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for name, line := range map[string]string{"passwd": string(accounts) + "kilntest:x:%d:4321::/:/bin/sh\n", "subids": "%d:1000000:65536\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), fmt.Appendf(nil, line, uid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const script = `mount --make-rprivate / && mount --bind "$1/passwd" /etc/passwd &&
		mount --bind "$1/subids" /etc/subuid && mount --bind "$1/subids" /etc/subgid && shift && exec "$@"`
	cmd := exec.Command("sh", "-c", script, "sh", etc, "setpriv", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups", "--inh-caps=-all", exe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + tmp, wantTier + "=1s"}
	again(t, cmd, "TestTier1S", "TestWantedTier", "TestRootStepsAreRoot", "TestOwners", "TestOwnersAreRefused", "TestOwnersInCopies")
}

// TestRealIDsOfAContainersRoot is root of a user namespace with 65535 ids, and then with 1000.
func TestRealIDsOfAContainersRoot(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ids  int
		tier Tier
	}{{mappedIDs, Tier1S}, {neededIDs, Tier1S}, {1000, Tier1F}, {1, Tier1F}} {
		if os.Geteuid() != 0 && c.ids > 1 {
			continue
		}
		cmd := exec.Command(exe)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, GidMappingsEnableSetgroups: c.ids > 1,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: c.ids}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: c.ids}}}
		// No newuidmap: none is needed.
		cmd.Env = []string{"PATH=/bin", "TMPDIR=" + t.TempDir(), wantTier + "=" + string(c.tier)}
		tests := []string{"TestWantedTier", "TestBestRoot", "TestOwners"}
		if c.ids == mappedIDs {
			tests = append(tests, "TestTier1S")
		}
		again(t, cmd, tests...)
	}
}

// TestRealIDsNeedTheCapabilities: root that may not set ids is told so, and gets tier 1f.
func TestRealIDsNeedTheCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, none := ownIDs(0, 0); none == nil || !strings.Contains(none.Cause, "capabilities") {
			t.Errorf("an ordinary user: %+v", none)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", "--bounding-set=-setgid", exe)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir(), wantTier + "=1f"}
	again(t, cmd, "TestWantedTier", "TestBestRoot")
}

// wantTier names the variable that tells TestWantedTier what is to be had.
const wantTier = "KILN_TEST_ROOT_TIER"

// TestWantedTier makes sure that what is run again is what it is meant to be.
func TestWantedTier(t *testing.T) {
	want, ok := os.LookupEnv(wantTier)
	if !ok {
		want = string(Tier1F)
		if os.Geteuid() == 0 {
			want = string(Tier1S)
		}
	}
	f := newRootFixture(t, BestRoot)
	if string(f.rep.Tier) != want {
		t.Errorf("the best for root is %s, want %s: %v", f.rep.Tier, want, f.rep.Findings)
	}
	if want == string(Tier1F) {
		_, _, err := Start(t.Context(), Options{Tier: Tier1S})
		var u *UnavailableError
		if !errors.As(err, &u) || len(u.Findings) == 0 || u.Hint() == "" {
			t.Errorf("tier 1s: %v", err)
		}
	}
}

func TestCountIDs(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "0 1000 1\n": 1, "         0          0 4294967295\n": 4294967295, "0 1000 1\n1 100000 65536\n": 65537,
		"1 100000 65536\n0 1000 1\n": 65537, "1 1 5\n": 0, "0 0 5\n6 6 5\n": 5,
	} {
		if got, err := countIDs(text); got != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	if _, err := countIDs("0 x 1\n"); err == nil {
		t.Error("took a line that is none")
	}
}
