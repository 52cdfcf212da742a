package test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/test/filetree"
)

// place is where one app is built, again and again: what a platform mounts for
// the phases. Its folders belong to the build user.
type place struct {
	dir     string
	builder string // image in podman
	image   string // what is built
	env     []string
	offline bool     // detector and builder have no network
	secrets []string // podman's arguments for phases that hold credentials
}

// place lays out an app to build in containers of the builder.
func (w *world) place(t *testing.T, builder, image string, app map[string]string) *place {
	t.Helper()
	p := &place{dir: filepath.Join(w.dir, strings.ReplaceAll(image, "/", "-")), builder: w.inPodman(t, builder), image: w.addr + "/" + image, env: append(proxies(), "CNB_PLATFORM_API=0.15")}
	user := map[string]string{"SSL_CERT_FILE": insideCAs, "NODE_EXTRA_CA_CERTS": insideCAs}
	maps.Copy(user, w.user)
	filetree.Write(t, filepath.Join(p.dir, "platform", "env"), 0o644, user)
	p.fresh(t)
	p.setApp(t, app)
	filetree.Write(t, filepath.Join(p.dir, "cache"), 0o644, nil)
	p.give(t)
	return p
}

// insideCAs is where the build containers have the host's CA bundle.
const insideCAs = "/etc/ssl/certs/ca-certificates.crt"

// inPodman pulls an image, once.
func (w *world) inPodman(t *testing.T, repo string) string {
	t.Helper()
	ref := w.addr + "/" + repo
	if _, err := w.podman.run("image", "exists", ref); err != nil {
		if _, err := w.podman.run("pull", "--quiet", "--tls-verify=false", ref); err != nil {
			t.Fatal(err)
		}
	}
	return ref
}

// fresh empties <layers>, as platforms do before each build: only the cache
// and the last image are carried over.
func (p *place) fresh(t *testing.T) {
	t.Helper()
	p.empty(t, "layers")
	p.give(t)
}

func (p *place) setApp(t *testing.T, app map[string]string) {
	t.Helper()
	p.empty(t, "app")
	filetree.Write(t, filepath.Join(p.dir, "app"), 0o644, app)
	p.give(t)
}

func (p *place) empty(t *testing.T, name string) {
	t.Helper()
	dir := filepath.Join(p.dir, name)
	exec.Command("chmod", "-R", "u+rwX", dir).Run()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	filetree.Write(t, dir, 0o644, nil)
}

func (p *place) give(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		give(t, p.dir)
	}
}

// give makes everything in a folder the build user's.
func give(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.Command("chown", "-hR", "1000:1000", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// container runs one phase of the lifecycle in a container of its own, as
// platforms do: as the build user, without any capability or a way to get one.
func (w *world) container(t *testing.T, p *place, more []string, phase ...string) ran {
	t.Helper()
	network := "host"
	if foreign := phase[0] == "/cnb/lifecycle/detector" || phase[0] == "/cnb/lifecycle/builder"; foreign && p.offline {
		network = "none"
	}
	args := slices.Concat(w.containerArgs(p, network), w.asBuildUser(), more, []string{p.builder}, w.inside(phase))
	return runCommand(t, w.podman.command(args...))
}

func (w *world) containerArgs(p *place, network string) []string {
	args := slices.Concat([]string{"run", "--rm"}, w.runtime, []string{"--network", network, "--log-driver", "none", "--ulimit", "nofile=1024:1024", "--ulimit", processes(),
		"--cap-drop", "ALL", "--security-opt", "no-new-privileges",
		"--volume", p.dir + "/layers:/layers", "--volume", p.dir + "/app:/workspace", "--volume", p.dir + "/cache:/cache", "--volume", p.dir + "/platform:/platform:ro",
		"--volume", w.cas + ":" + insideCAs + ":ro"})
	for _, e := range p.env {
		args = append(args, "--env", e)
	}
	return args
}

// asBuildUser are podman's arguments for a container of the user 1000. Without
// sub-ids podman has one id, which runc wants to be the container's root: then
// the container begins with a user namespace in which that id is 1000 again.
// Linux asks for CAP_SETFCAP to make it; nothing of it is left inside.
func (w *world) asBuildUser() []string {
	if !w.podman.rootless() {
		return []string{"--user", "1000:1000"}
	}
	return []string{"--user", "0:0", "--cap-add", "SETFCAP"}
}

func (w *world) inside(argv []string) []string {
	if !w.podman.rootless() {
		return argv
	}
	return append([]string{"unshare", "--user", "--map-user=1000", "--map-group=1000", "--"}, argv...)
}

// five runs the five phases, each in a container, and returns what they said.
func (w *world) five(t *testing.T, p *place) string {
	t.Helper()
	return w.phases(t, p, nil, [][]string{
		{"analyzer", p.image},
		{"detector", "-app", "/workspace", "-platform", "/platform"},
		{"restorer", "-cache-dir", "/cache"},
		{"builder", "-app", "/workspace", "-platform", "/platform"},
		{"exporter", "-app", "/workspace", "-cache-dir", "/cache", p.image},
	})
}

// phases runs phases, each in a container with more of podman's arguments. Those
// that run no buildpack see p.secrets besides.
func (w *world) phases(t *testing.T, p *place, more []string, phases [][]string) string {
	t.Helper()
	var log strings.Builder
	for _, phase := range phases {
		args := slices.Clone(more)
		if foreign := phase[0] == "detector" || phase[0] == "builder"; !foreign {
			args = append(args, p.secrets...)
		}
		r := w.container(t, p, args, append([]string{"/cnb/lifecycle/" + phase[0]}, phase[1:]...)...)
		fmt.Fprintf(&log, "--- %s\n%s", phase[0], r)
		if r.code != 0 {
			t.Fatalf("exit code %d\n%s", r.code, log.String())
		}
	}
	return log.String()
}

// creator runs all phases in one container.
func (w *world) creator(t *testing.T, p *place) string {
	t.Helper()
	return w.phases(t, p, nil, [][]string{{"creator", "-app", "/workspace", "-platform", "/platform", "-cache-dir", "/cache", p.image}})
}

// launch runs an image of the registry in podman: what stands before IMAGE are
// flags of podman, what follows are the arguments of the container.
func (w *world) launch(t *testing.T, repo string, args ...string) ran {
	t.Helper()
	flags := slices.Concat([]string{"run", "--rm"}, w.runtime, []string{"--pull", "newer", "--tls-verify=false", "--network", "host", "--log-driver", "none",
		"--ulimit", "nofile=1024:1024", "--ulimit", processes(), "--cap-drop", "ALL"})
	if w.podman.rootless() {
		flags = append(flags, "--user", "0:0")
	}
	var given []string
	if i := slices.Index(args, "IMAGE"); i >= 0 {
		args, given = args[:i], args[i+1:]
	}
	return runCommand(t, w.podman.command(slices.Concat(flags, args, []string{w.addr + "/" + repo}, given)...))
}

// read is a file of the place.
func (p *place) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// processes is how many processes a user may have in containers: a quarter of
// what it may have here, for podman itself may have less. Its own limits are
// higher than some hosts let even root go, and all that the user runs counts.
func processes() string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &limit); err != nil {
		panic(err)
	}
	most := min(limit.Cur/4, 1<<20)
	return fmt.Sprintf("nproc=%d:%d", most, most)
}
