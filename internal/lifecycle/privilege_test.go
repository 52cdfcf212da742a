package lifecycle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/registry/registrytest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// buildUser is who builds are for. As an ordinary user the tests are that.
func buildUser() int {
	if os.Geteuid() == 0 {
		return 1000
	}
	return os.Geteuid()
}

// container is a world with the real binary, a registry that wants to know who
// asks, and what a container has besides.
type container struct {
	*world
	registry *registrytest.Registry
	bin      string
	home     string // root's
	said     string
}

// binaries are the real commands, where every user can run them.
func binaries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "github.com/kilnbuild/kiln/cmd/lifecycle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, p := range Phases {
		if err := os.Symlink("lifecycle", filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPrivileges runs the real commands, as root where the tests are.
func TestPrivileges(t *testing.T) {
	bin := binaries(t)
	t.Run("five phases", func(t *testing.T) { fivePhasesAsRoot(t, newContainer(t, bin)) })
	for _, d := range daemontest.All(t) {
		t.Run("five phases in "+d.Kind, func(t *testing.T) { daemonAsRoot(t, newContainer(t, bin), d.Host) })
	}
	t.Run("concealed", func(t *testing.T) { concealed(t, newContainer(t, bin)) })
	t.Run("CNB_REGISTRY_AUTH is hidden", func(t *testing.T) { hidden(t, newContainer(t, bin), true) })
	t.Run("docker config is hidden", func(t *testing.T) { hidden(t, newContainer(t, bin), false) })
}

func newContainer(t *testing.T, bin string) *container {
	c := &container{world: newWorld(t), bin: bin, registry: registrytest.Start(t, registrytest.Options{Auth: true})}
	if err := os.Chmod(filepath.Dir(c.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	c.app(c.registry.Host)
	c.home = c.path("root-home")
	ref, err := name.ParseReference(c.registry.Host + "/run:1")
	if err == nil {
		err = remote.Write(ref, runImage(t), remote.WithAuth(&authn.Basic{Username: registrytest.User, Password: registrytest.Password}))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.mkdir("tmp")
	c.mkdir("user-home")
	for _, dir := range []string{"tmp", "user-home"} {
		if err := os.Chmod(c.path(dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// login writes root's docker config, which nobody else can read.
func (c *container) login() {
	c.Helper()
	config, err := json.Marshal(map[string]any{"auths": map[string]any{c.registry.Host: map[string]string{"auth": strings.TrimPrefix(registrytest.Header(), "Basic ")}}})
	if err != nil {
		c.Fatal(err)
	}
	c.write("root-home/.docker/config.json", string(config))
	if err := os.Chmod(c.path("root-home/.docker/config.json"), 0o600); err != nil {
		c.Fatal(err)
	}
	if err := os.Chmod(c.home, 0o700); err != nil {
		c.Fatal(err)
	}
}

// command is a phase as root, or as the ordinary user that the test is.
func (c *container) command(environ []string, phase string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.Context(), filepath.Join(c.bin, phase), args...)
	cmd.Env = append([]string{
		"CNB_PLATFORM_API=0.15", "PATH=/usr/bin:/bin", "HOME=" + c.home, "TMPDIR=" + c.path("tmp"), "CNB_LAYERS_DIR=" + c.path("layers"), "CNB_APP_DIR=" + c.path("workspace"),
		"CNB_PLATFORM_DIR=" + c.path("platform"), "CNB_BUILD_CONFIG_DIR=" + c.path("build-config"), "CNB_RUN_PATH=" + c.path("run.toml"),
		"CNB_BUILDPACKS_DIR=" + c.path("buildpacks"), "CNB_ORDER_PATH=" + c.path("order.toml"),
	}, environ...)
	return cmd
}

func (c *container) phase(code int, environ []string, phase string, args ...string) {
	c.Helper()
	cmd := c.command(environ, phase, args...)
	if os.Geteuid() == 0 && (phase == detector || phase == builder) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(buildUser()), Gid: uint32(buildUser())}}
	}
	out, _ := cmd.CombinedOutput() // the exit code tells
	c.said = string(out)
	if got := cmd.ProcessState.ExitCode(); got != code {
		c.Errorf("%s %q exits with %d, want %d\n%s", phase, args, got, code, out)
	}
}

// user is the build user, in the environment that a builder image has.
func userEnv() []string {
	return []string{"CNB_USER_ID=" + strconv.Itoa(buildUser()), "CNB_GROUP_ID=" + strconv.Itoa(buildUser())}
}

// owned fails for everything below the directories that is not the user's.
func (c *container) owned(names ...string) {
	c.Helper()
	for _, name := range names {
		n := 0
		err := filepath.WalkDir(c.path(name), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			n++
			if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != buildUser() || int(st.Gid) != buildUser() {
				c.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
			}
			return nil
		})
		if err != nil || n < 2 {
			c.Errorf("%s: %d files, %v", name, n, err)
		}
	}
}

// Phases that are started as root use what only root can, become the build user
// and leave everything to it.
func fivePhasesAsRoot(t *testing.T, c *container) {
	conform.Covers(t, 9, 10, 11)
	c.login()
	img, cached := c.registry.Host+"/me/app", []string{"-cache-dir", c.path("cache")}
	for _, kept := range []string{"kept is new", "kept was restored"} {
		c.phase(0, userEnv(), analyzer, img)
		c.owned("layers")
		c.phase(0, userEnv(), detector)
		c.phase(0, userEnv(), restorer, cached...)
		c.phase(0, userEnv(), builder)
		if !strings.Contains(c.said, kept) {
			t.Errorf("want %q: %s", kept, c.said)
		}
		c.phase(0, userEnv(), exporter, append(cached, "-launcher", c.path("launcher"), "-launcher-sbom", c.dir, img)...)
		c.owned("layers", "cache")
	}
	c.phase(0, userEnv(), rebaser, "-report", c.path("layers/report.toml"), "-run-image", c.registry.Host+"/run:1", img)
	if left := names(t, c.path("tmp")); len(left) > 0 {
		t.Errorf("left in the temporary directory: %q", left)
	}
	c.phase(0, append(userEnv(), "CNB_CACHE_IMAGE="+c.registry.Host+"/me/cache"), creator, "-launcher", c.path("launcher"), "-launcher-sbom", c.dir, img)
	c.owned("layers")
	if os.Geteuid() != 0 {
		return
	}
	c.phase(0, nil, rebaser, "-report", c.path("report.toml"), "-run-image", c.registry.Host+"/run:1", img)
	for _, phase := range registries {
		if phase == rebaser {
			continue
		}
		c.phase(spec.ExitInvalidArgs, nil, phase, img)
		if phase != restorer && (!strings.Contains(c.said, "CNB_USER_ID") || !strings.Contains(c.said, "root")) {
			t.Errorf("%s without a user: %s", phase, c.said)
		}
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// While it moves images a phase is the user in all its threads, and nobody of
// that user can look into it.
func concealed(t *testing.T, c *container) {
	conform.Covers(t, 11)
	environ := append(userEnv(), "CNB_REGISTRY_AUTH="+registrytest.AuthJSON(c.registry.Host))
	for _, phase := range []string{analyzer, rebaser} {
		cmd := c.command(environ, phase, c.registry.Host+"/me/app")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		var looked atomic.Int32
		c.registry.Hook(func(*http.Request) {
			if looked.Add(1) == 1 {
				c.look(cmd.Process.Pid)
			}
		})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was long enough to look at
		c.registry.Hook(nil)
		if looked.Load() == 0 {
			t.Errorf("%s asked for nothing: %s", phase, out.String())
		}
	}
}

// look looks at a process from outside, and as the same user.
func (c *container) look(pid int) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		c.Errorf("%q %v", tasks, err)
	}
	id := strconv.Itoa(buildUser())
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			c.Error(err)
		}
		want := map[string]string{"Uid": strings.Repeat(id+" ", 4), "Gid": strings.Repeat(id+" ", 4), "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000"}
		if os.Geteuid() == 0 {
			want["Groups"] = id
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			if w, ok := want[key]; ok && strings.Join(strings.Fields(value), " ") != strings.TrimSpace(w) {
				c.Errorf("%s: %s is %s, want %s", task, key, strings.TrimSpace(value), w)
			}
		}
	}
	peek := exec.Command("sh", "-c", fmt.Sprintf("for f in environ maps mem fd/0 cwd; do cat /proc/%[1]d/$f || ls -l /proc/%[1]d/$f/; done 2>&1", pid))
	if os.Geteuid() == 0 {
		peek.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(buildUser()), Gid: uint32(buildUser())}}
	}
	out, _ := peek.Output() // it fails
	if n := bytes.Count(out, []byte("ermission denied")); n < 5 || bytes.Contains(out, []byte("CNB_")) {
		c.Errorf("another process of the user sees:\n%s", out)
	}
}

// probe is a buildpack that looks for credentials where it can.
const probe = `#!/bin/sh
exec 2>/dev/null
{
  env
  cat /proc/$PPID/environ /proc/self/environ /proc/[0-9]*/environ /proc/$PPID/cmdline
  timeout 1 cat /proc/$PPID/mem /proc/$PPID/maps
  for fd in /proc/self/fd/*; do echo "fd ${fd##*/} $(readlink $fd)"; done
  for fd in /proc/$PPID/fd/*; do timeout 1 cat "$fd"; done
  cat "$ROOT_HOME"/.docker/config.json "$HOME"/.docker/config.json /root/.docker/config.json
  cat "$CNB_PLATFORM_DIR"/env/*
  find "$CNB_LAYERS_DIR/../" /tmp "$TMPDIR" -newer "$CNB_BUILDPACK_DIR/buildpack.toml" -type f -user "$(id -u)" -size -1000k -exec cat {} +
  echo "HOME is $HOME, USER is $USER, id is $(id -u):$(id -g) $(id -G)"
} > "$CNB_LAYERS_DIR/found" </dev/null
`

// Credentials never reach the buildpacks of a creator, whoever started it.
func hidden(t *testing.T, c *container, variable bool) {
	conform.Covers(t, 8, 10)
	c.buildpack("second", probe+"echo \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n", probe)
	environ := append(userEnv(), "ROOT_HOME="+c.home)
	if variable {
		environ = append(environ, "CNB_REGISTRY_AUTH="+registrytest.AuthJSON(c.registry.Host))
	} else {
		c.login()
	}
	cmd := c.command(environ, creator, "-launcher", c.path("launcher"), "-launcher-sbom", c.dir, c.registry.Host+"/me/app")
	open, err := os.Open(c.path("order.toml"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	cmd.ExtraFiles = []*os.File{open} // what somebody forgot to close
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := c.read("layers/second/found")
	for _, canary := range []string{registrytest.User, registrytest.Password, strings.TrimPrefix(registrytest.Header(), "Basic ")} {
		if strings.Contains(found, canary) && (variable || os.Geteuid() == 0) { // a user's own file is the user's to read
			t.Errorf("the buildpack found %s", canary)
		}
	}
	if strings.Contains(found, "order.toml\n") {
		t.Error("an open file was handed on")
	}
	id := strconv.Itoa(buildUser())
	if !strings.Contains(found, "id is "+id+":"+id+" ") || !strings.Contains(found, "CNB_BUILDPACK_DIR=") {
		t.Errorf("the probe did not look: %s", found)
	}
	if os.Geteuid() == 0 && strings.Contains(found, "HOME is "+c.home+",") && hasUser(buildUser()) {
		t.Error("HOME is root's")
	}
}

// hasUser says whether this machine knows a user, so that there is a HOME.
func hasUser(uid int) bool {
	b, err := os.ReadFile("/etc/passwd")
	return err == nil && strings.Contains(string(b), fmt.Sprintf(":x:%d:", uid))
}

// A directory that the user may write to stays as it is; one that it may not is
// given, without a step out of it.
func TestGive(t *testing.T) {
	if os.Geteuid() != 0 {
		// Only root can give: an ordinary user gives to itself.
		dir := t.TempDir()
		if err := give(path(dir), os.Getuid(), os.Getgid()); err != nil {
			t.Error(err)
		}
		return
	}
	outside, dir := t.TempDir(), t.TempDir()
	w := world{T: t, dir: dir}
	w.write("sub/file", "")
	if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": filepath.Join(outside, "secret"), "dir": outside} {
		if err := os.Symlink(target, w.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(outside, "secret"), w.path("hard")); err != nil {
		t.Fatal(err)
	}
	owner := func(name string) string {
		t.Helper()
		fi, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		return fmt.Sprint(st.Uid, ":", st.Gid)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := give(path(dir), 1000, 1001); err != nil || owner(w.path("sub")) != "0:0" {
		t.Errorf("a directory that everybody may write to: %v, %s", err, owner(w.path("sub")))
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := give(path(dir), 1000, 1001); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "sub", "sub/file", "link", "dir"} {
		if got := owner(w.path(name)); got != "1000:1001" {
			t.Errorf("%s belongs to %s", name, got)
		}
	}
	if got := owner(filepath.Join(outside, "secret")) + owner(outside); got != "0:00:0" {
		t.Errorf("outside: %s", got)
	}
	if err := give(path(w.path("missing")), 1000, 1000); err != nil {
		t.Error(err)
	}
}
