package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// podman IMAGE PORT ID-FILE WANT: podman takes the image (docker-archive:FILE
// or docker://...), sees the image ID that the file has, runs it, and the app
// answers WANT. Nothing of it stays.
func podman(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: podman IMAGE PORT ID-FILE WANT")
	}
	p, err := newPodman()
	ts.Check(err)
	ts.Defer(p.close)
	if path, ok := strings.CutPrefix(args[0], "docker-archive:"); ok {
		args[0] = "docker-archive:" + ts.MkAbs(path)
	}
	id, err := p.run("pull", "--quiet", "--tls-verify=false", args[0])
	ts.Check(err)
	if want := strings.TrimSpace(ts.ReadFile(args[2])); "sha256:"+id != want {
		ts.Fatalf("podman says the image ID is %s, kiln said %s", id, want)
	}
	container, err := p.start(id, args[1])
	ts.Check(err)
	page, err := get("http://127.0.0.1:"+args[1]+"/", 15*time.Second)
	ts.Check(err)
	if page != args[3] {
		ts.Fatalf("the page is %q, want %q", page, args[3])
	}
	_, err = p.run("rm", "--force", "--time", "0", container)
	ts.Check(err)
}

// podmanHome is podman with a storage of its own.
type podmanHome struct {
	dir string
	as  []string // command that makes podman another user's
}

// newPodman makes the storage. The command, if there is one, becomes user 1000.
func newPodman(as ...string) (podmanHome, error) {
	if _, err := exec.LookPath("podman"); err != nil {
		return podmanHome{}, errors.New("podman is missing: apt-get install podman runc")
	}
	dir, err := os.MkdirTemp("/tmp", "kp-") // podman takes no runroot of more than 50 characters
	if err != nil {
		return podmanHome{}, err
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		return podmanHome{}, err
	}
	if len(as) > 0 {
		err = exec.Command("chown", "-R", "1000:1000", dir).Run()
	}
	return podmanHome{dir, as}, err
}

// rootless says that podman is an ordinary user's.
func (p podmanHome) rootless() bool { return os.Getuid() != 0 || len(p.as) > 0 }

// run runs podman and returns its last line.
func (p podmanHome) run(args ...string) (string, error) {
	cmd := p.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("podman %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	return lines[len(lines)-1], nil
}

// command is podman with the storage. Cgroups are left alone, since not every
// host lets them be made; without sub-ids there is one id, so owners cannot be
// kept.
func (p podmanHome) command(args ...string) *exec.Cmd {
	global := []string{"--root", p.dir + "/root", "--runroot", p.dir + "/runroot", "--tmpdir", p.dir + "/tmp",
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	if p.rootless() {
		global = append(global, "--storage-opt", "overlay.ignore_chown_errors=true")
	}
	argv := slices.Concat(p.as, []string{"podman"}, global, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + p.dir, "XDG_RUNTIME_DIR=" + p.dir + "/run"}
	return cmd
}

// start runs the image's default process with the runtime that this host bears:
// crun refuses hosts with both kinds of cgroups, runc wants to make some.
func (p podmanHome) start(image, port string) (container string, err error) {
	common := []string{"run", "--detach", "--network", "host", "--log-driver", "none", "--env", "PORT=" + port,
		// podman's own limits are higher than some hosts let even root go.
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	if os.Getuid() != 0 {
		// The one id that there is without sub-ids is the container's root: the
		// image's user 1000 would be "unable to setup user: invalid argument".
		common = append(common, "--user", "0:0")
	}
	return p.runtimes(common, image)
}

// output runs a command of the image, its default one if there is none, and
// returns the last line that it prints.
func (p podmanHome) output(image string, entrypoint ...string) (string, error) {
	common := []string{"run", "--rm", "--network", "none", "--pull", "always", "--tls-verify=false", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	if os.Getuid() != 0 {
		common = append(common, "--user", "0:0") // see start
	}
	if len(entrypoint) > 0 {
		return p.runtimes(append(common, "--entrypoint", entrypoint[0]), append([]string{image}, entrypoint[1:]...)...)
	}
	return p.runtimes(common, image)
}

// runtimes runs podman with the first runtime that this host bears.
func (p podmanHome) runtimes(flags []string, operands ...string) (string, error) {
	var errs []error
	for _, runtime := range [][]string{{"runc"}, {"crun", "--cgroups=disabled"}} {
		out, err := p.run(slices.Concat(flags[:1], []string{"--runtime", runtime[0]}, runtime[1:], flags[1:], operands)...)
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// close removes containers, the process that podman keeps a user namespace
// open with, and the storage.
func (p podmanHome) close() {
	p.run("rm", "--all", "--force", "--time", "0")
	if b, err := os.ReadFile(filepath.Join(p.dir, "tmp", "pause.pid")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	removeAll(filepath.Join(p.dir, "root"))
}
