package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// canary marks what a step must not find. It is put together at run time, so that no program has it
// by itself.
func canary() string { return strings.Join([]string{"kiln", "canary", "bird"}, "-") }

// hideouts are where a caller has its secret, and where a hunter looks for it.
var hideouts = []string{"cmdline", "environ", "fd", "keyring", "memory"}

// probeVictim has a secret in every hideout and runs a hunter: DIR HOW, where HOW is a tier, "place" or
// "plain", which is without any protection. Its environment and command line have the secret already.
func probeVictim(args []string) int {
	dir, how := args[0], args[1]
	runtime.LockOSThread()
	secret := canary() + "-in-memory"
	defer runtime.KeepAlive(secret)
	if err := hideSecrets(dir); err != nil {
		outcome("hide", err)
		return 1
	}
	var out bytes.Buffer
	c := command("hunt", strconv.Itoa(os.Getpid()))
	c.Path, c.Stdout, c.Stderr, c.Env = selfExe, &out, &out, []string{"A=b"}
	var err error
	switch how {
	case "plain":
		cmd := exec.Command(selfExe)
		cmd.Args, cmd.Env, cmd.Stdout, cmd.Stderr = append(c.Args, "only"), c.Env, &out, &out
		err = cmd.Run()
	case "place":
		err = InPlace{}.Run(context.Background(), c)
	default:
		c.Path = "/probe"
		err = huntInside(dir, Tier(how), c)
	}
	fmt.Print(out.String())
	if err != nil {
		outcome("hunt", err)
		return 1
	}
	return 0
}

func hideSecrets(dir string) error {
	if _, err := joinNewKeyring(); err != nil {
		return err
	}
	if _, err := unix.AddKey("user", canary(), []byte(canary()+"-key"), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
		return fmt.Errorf("add a key: %w", err)
	}
	unix.Prctl(unix.PR_SET_PTRACER, unix.PR_SET_PTRACER_ANY, 0, 0, 0) // where Yama would help
	file, err := os.OpenFile(filepath.Join(dir, "secret"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	if _, err := file.WriteString(canary() + "-in-a-file"); err != nil {
		return err
	}
	_, err = unix.FcntlInt(file.Fd(), unix.F_SETFD, 0) // for whoever is started without care
	return err
}

func huntInside(dir string, tier Tier, c Command) error {
	o := Options{Tier: tier, UID: testUID, GID: testGID, Scratch: []string{dir}}
	if tier == Tier1S || tier == Tier1F {
		o.UID, o.GID = 0, 0
	}
	ctx := context.Background()
	w, _, err := Start(ctx, o)
	if err != nil {
		return err
	}
	defer w.Close()
	exe, err := os.Readlink(selfExe)
	if err != nil {
		return err
	}
	root := Overlay{Lowers: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"}
	err = w.In(Spec{UID: o.UID, GID: o.GID, Root: root, Mounts: hostLibraries(exe)}).Run(ctx, c)
	for _, left := range []string{root.Upper, root.Work} {
		if rerr := w.Remove(ctx, left); rerr != nil && err == nil {
			err = rerr
		}
	}
	return err
}

// probeHunt looks for the secret wherever one process can look at others, and says where it is: VICTIM
// for all processes that there are, VICTIM only for that one.
func probeHunt(args []string) int {
	found := map[string]bool{}
	look := func(hideout string, text []byte) {
		if bytes.Contains(text, []byte(canary())) {
			found[hideout] = true
		}
	}
	look("environ", []byte(strings.Join(os.Environ(), "\n")))
	for fd := range 64 { // what was inherited
		look("fd", readFD(strconv.Itoa(fd)))
	}
	huntKeys(look)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if len(args) > 1 {
		dirs = []string{"/proc/" + args[0]}
	}
	self, serr := os.Readlink("/proc/self")
	if err != nil || serr != nil {
		return 1
	}
	for _, dir := range dirs {
		pid := filepath.Base(dir)
		if pid == self {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		look("cmdline", command)
		look("environ", environ)
		fds, _ := filepath.Glob(dir + "/fd/*")
		for _, fd := range fds {
			look("fd", readFD(fd))
		}
		if pid == args[0] || strings.HasPrefix(string(command), "kiln-sandbox") { // nobody else's business
			huntMemory(pid, self, look)
		}
	}
	var where []string
	for hideout := range found {
		where = append(where, hideout)
	}
	sort.Strings(where)
	fmt.Println("found", where)
	return 0
}

// readFD reads a regular file from the beginning, by descriptor or by its place in /proc, without
// waiting for anything.
func readFD(name string) []byte {
	if _, err := strconv.Atoi(name); err == nil {
		name = "/proc/self/fd/" + name
	}
	if fi, err := os.Stat(name); err != nil || !fi.Mode().IsRegular() || fi.Size() > 1<<20 {
		return nil
	}
	text, _ := os.ReadFile(name)
	return text
}

func huntKeys(look func(string, []byte)) {
	buf := make([]byte, 4096)
	for _, ring := range []int{unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_PROCESS_KEYRING, unix.KEY_SPEC_THREAD_KEYRING} {
		key, err := unix.KeyctlSearch(ring, "user", canary(), 0)
		if err == nil {
			if n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, key, buf, 0); err == nil {
				look("keyring", buf[:min(n, len(buf))])
			}
		}
	}
	if key, err := unix.RequestKey("user", canary(), "", 0); err == nil {
		if n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, key, buf, 0); err == nil {
			look("keyring", buf[:min(n, len(buf))])
		}
	}
	// Whose names it sees it may read by number.
	keys, _ := os.ReadFile("/proc/keys")
	for _, line := range strings.Split(string(keys), "\n") {
		if id, _, ok := strings.Cut(line, " "); ok && strings.Contains(line, canary()) {
			key, _ := strconv.ParseInt(id, 16, 64)
			if n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, int(key), buf, 0); err == nil {
				look("keyring", buf[:min(n, len(buf))])
			}
		}
	}
}

// huntMemory reads another process's memory in the three ways there are.
func huntMemory(name, self string, look func(string, []byte)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	maps, err := os.ReadFile("/proc/" + name + "/maps")
	if err != nil {
		maps = []byte("00400000-00401000 r\nc000000000-c000400000 rw\n") // where a Go program has its heap
	}
	pid, _ := strconv.Atoi(name)
	if self != strconv.Itoa(os.Getpid()) {
		pid = -1 // this /proc has other numbers than system calls take
	}
	attached := syscall.PtraceAttach(pid) == nil
	if attached {
		syscall.Wait4(pid, nil, 0, nil)
		defer syscall.PtraceDetach(pid)
	}
	mem, _ := os.Open("/proc/" + name + "/mem")
	defer mem.Close()
	for _, line := range strings.Split(string(maps), "\n") {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x", &from, &to); n != 2 || to-from > 16<<20 {
			continue
		}
		buf := make([]byte, to-from)
		if n, err := mem.ReadAt(buf, int64(from)); err == nil {
			look("memory", buf[:n])
		}
		local := []unix.Iovec{{Base: &buf[0]}}
		local[0].SetLen(len(buf))
		if n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(from), Len: len(buf)}}, 0); err == nil {
			look("memory", buf[:n])
		}
		if attached {
			n, _ := syscall.PtracePeekData(pid, uintptr(from), buf[:min(len(buf), 4096)])
			look("memory", buf[:n])
		}
	}
}

// TestNoStepFindsASecret hunts from every tier for what its caller keeps. In tiers 3 and 4 the caller is
// there to be seen, and with it its command line: no secret belongs there. Without any protection all is
// found, else the others would show nothing.
func TestNoStepFindsASecret(t *testing.T) {
	want := map[string][]string{"plain": hideouts, "1": nil, "3": {"cmdline"}, "1f": nil, "place": {"cmdline"}}
	if maps, _ := realIDs(0, 0); len(maps) > 0 {
		want["1s"] = nil
	}
	want["place without Landlock"], want["place without Landlock and filter"] = []string{"cmdline"}, []string{"cmdline"}
	for how, where := range want {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "lower"), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(selfExe)
			cmd.Args = []string{probeName}
			how, without, less := strings.Cut(how, " without ")
			if less {
				numbers := map[string]string{"Landlock": fmt.Sprint(unix.SYS_LANDLOCK_CREATE_RULESET),
					"Landlock and filter": fmt.Sprintf("%d,%d", unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_SECCOMP)}[without]
				cmd.Args = append(cmd.Args, "without", fmt.Sprint(int(unix.ENOSYS)), numbers)
			}
			cmd.Args = append(cmd.Args, "victim", dir, how, canary())
			cmd.Env = []string{"SECRET=" + canary()}
			out, err := cmd.CombinedOutput()
			if got := strings.TrimSuffix(string(out), "\n"); err != nil || got != fmt.Sprintf("found %v", where) {
				t.Errorf("%v: %s, want found %v", err, got, where)
			}
		})
	}
}
