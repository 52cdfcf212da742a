package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// RunRequest asks for a command in an image.
type RunRequest struct {
	Image string
	// Entrypoint overrides the image's: a process type, or an absolute path.
	Entrypoint string
	// Args replace the image's CMD; they go to the entrypoint.
	Args []string
	// Command runs instead of a process, through the launcher where there is
	// one, so that it sees the environment that the buildpacks made.
	Command []string
	Env     map[string]string
	User    string
	WorkDir string
	Volumes []Volume
	Ports   []Port
	Network string
	// Isolation pins the sandbox tier.
	Isolation      string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Insecure       []string
}

// Port publishes a TCP port of the app on this host.
type Port struct {
	Host      string // address, 127.0.0.1 unless given
	Published int
	Target    int
}

// ParsePort reads docker's form: [ADDRESS:]HOST-PORT[:APP-PORT].
func ParsePort(s string) (Port, error) {
	parts := strings.Split(s, ":")
	p := Port{Host: "127.0.0.1"}
	if len(parts) == 3 {
		p.Host, parts = parts[0], parts[1:]
	}
	if len(parts) > 2 {
		return p, badInput(fmt.Errorf("port %q: want [ADDRESS:]PORT[:APP-PORT]", s), "for example -p 8080:5000")
	}
	for i, to := range []*int{&p.Published, &p.Target} {
		n, err := strconv.Atoi(parts[min(i, len(parts)-1)])
		if err != nil || n < 1 || n > 65535 {
			return p, badInput(fmt.Errorf("port %q: %q is no port number", s, parts[min(i, len(parts)-1)]), "ports are numbers from 1 to 65535")
		}
		*to = n
	}
	return p, nil
}

// Run runs a command in an image of the store, a registry or an archive and
// waits for it. It leaves nothing behind. The error is a *sandbox.ExitError
// when the command ran and failed.
//
// The network is the host's, as for a process that the user starts: the app
// listens on the host's own ports, and Port adds another number for one.
func (p *Platform) Run(ctx context.Context, req RunRequest) (err error) {
	if err := checkSandbox(req.Network, req.Isolation, req.Volumes); err != nil {
		return err
	}
	if req.WorkDir != "" && !path.IsAbs(req.WorkDir) {
		return badInput(fmt.Errorf("working directory %q is not absolute", req.WorkDir), "name it from the image's root, for example /workspace")
	}
	img, err := p.open(ctx, req.Image, req.Insecure)
	if err != nil {
		return err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("read image %s: %w", req.Image, err)
	}
	layers, err := img.Layers()
	if err != nil {
		return fmt.Errorf("read image %s: %w", req.Image, err)
	}
	lowers, err := p.trees(ctx, layers)
	if err != nil {
		return fmt.Errorf("unpack image %s: %w", req.Image, err)
	}
	root := layer.Stack{Lowers: lowers}
	user, err := findUser(root, cmp.Or(req.User, cf.Config.User))
	if err != nil {
		return badInput(fmt.Errorf("image %s: %w", req.Image, err), "name one of its users, or a number, with --user")
	}
	if err := hasProcess(root, req.Entrypoint); err != nil {
		return err
	}
	scratch, err := p.Store.Run(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	overlay, err := newOverlay(scratch.Dir, "root", lowers)
	if err != nil {
		return err
	}
	worker, _, err := p.startWorker(ctx, req.Isolation, user.uid, user.gid, scratch.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, worker.Close()) }()

	mounts, err := p.Host.mounts(filepath.Join(scratch.Dir, "host"), nil)
	if err != nil {
		return err
	}
	mounts = append(mounts, sandbox.Mount{Target: "/tmp", Tmpfs: true})
	mounts = append(mounts, volumeMounts(req.Volumes)...)
	stop, err := forward(ctx, req.Ports)
	if err != nil {
		return err
	}
	defer stop()
	argv := commandLine(req, cf.Config)
	if len(argv) == 0 {
		return badInput(fmt.Errorf("image %s has no entrypoint and no command", req.Image), "give one: kiln run IMAGE -- COMMAND")
	}
	return worker.In(sandbox.Spec{Root: overlay, Mounts: mounts, UID: user.uid, GID: user.gid, Network: req.Network}).Run(ctx, sandbox.Command{
		Path: argv[0], Args: argv,
		Env: runEnv(req, cf.Config, user), Dir: cmp.Or(req.WorkDir, cf.Config.WorkingDir, "/"),
		Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr,
	})
}

// launcherPath is where the exporter puts the launcher.
const launcherPath = dirLifecycle + "/launcher"

// commandLine is what to start. A command in an image that kiln or another
// lifecycle built goes through the launcher.
func commandLine(req RunRequest, config v1.Config) []string {
	entry := config.Entrypoint
	if req.Entrypoint != "" {
		entry = []string{req.Entrypoint}
		if !strings.HasPrefix(req.Entrypoint, "/") {
			entry = []string{path.Join("/cnb/process", req.Entrypoint)}
		}
	}
	if len(req.Command) > 0 {
		if strings.HasPrefix(cmp.Or(entry...), "/cnb/") {
			return append([]string{launcherPath, "--"}, req.Command...)
		}
		return req.Command
	}
	if len(req.Args) > 0 {
		return append(entry[:len(entry):len(entry)], req.Args...)
	}
	return append(entry[:len(entry):len(entry)], config.Cmd...)
}

// hasProcess says whether the image has the process that is asked for.
func hasProcess(root layer.Stack, entrypoint string) error {
	if entrypoint == "" || strings.HasPrefix(entrypoint, "/") {
		return nil
	}
	const dir = "cnb/process"
	if _, err := root.Lstat(path.Join(dir, entrypoint)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	hint := "the image has no processes: name a program by its absolute path"
	if entries, err := root.ReadDir(dir); err == nil && len(entries) > 0 {
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		hint = "the image has: " + strings.Join(names, ", ")
	}
	return badInput(fmt.Errorf("the image has no process %q", entrypoint), hint)
}

// runEnv is the image's environment, what docker adds, and what the user gave.
func runEnv(req RunRequest, config v1.Config, user user) []string {
	env := map[string]string{"HOME": user.home, "HOSTNAME": "kiln"}
	var order []string
	set := func(k, v string) {
		if _, ok := env[k]; !ok {
			order = append(order, k)
		}
		env[k] = v
	}
	order = append(order, "HOME", "HOSTNAME")
	for _, kv := range config.Env {
		k, v, _ := strings.Cut(kv, "=")
		set(k, v)
	}
	if len(req.Ports) > 0 {
		set("PORT", strconv.Itoa(req.Ports[0].Target))
	}
	for k, v := range req.Env {
		set(k, v)
	}
	out := make([]string, 0, len(order))
	for _, k := range order {
		out = append(out, k+"="+env[k])
	}
	return out
}

// user is who a command runs as.
type user struct {
	uid, gid int
	home     string
}

// findUser resolves the User of an image config (name or id, optionally with a
// group) with the image's own /etc/passwd and /etc/group.
func findUser(root layer.Stack, s string) (user, error) {
	const limit = 4 << 20
	name, group, hasGroup := strings.Cut(s, ":")
	u := user{home: "/"}
	passwd, err := readIfThere(root, "etc/passwd", limit)
	if err != nil {
		return u, err
	}
	id, isID := number(name)
	if name == "" {
		id, isID = 0, true
	}
	found := isID
	u.uid = id
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 6 {
			continue
		}
		uid, ok := number(f[2])
		if !ok || f[0] != name && !(isID && uid == id) {
			continue
		}
		gid, _ := number(f[3])
		u.uid, u.gid, u.home, found = uid, gid, f[5], true
		break
	}
	if !found {
		return u, fmt.Errorf("user %q is not in its /etc/passwd", name)
	}
	if !hasGroup {
		return u, nil
	}
	if gid, ok := number(group); ok {
		u.gid = gid
		return u, nil
	}
	groups, err := readIfThere(root, "etc/group", limit)
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.Split(line, ":")
		if gid, ok := number(cmp.Or(append(f, "", "")[2])); ok && f[0] == group {
			u.gid = gid
			return u, nil
		}
	}
	return u, fmt.Errorf("group %q is not in its /etc/group", group)
}

func readIfThere(root layer.Stack, rel string, limit int64) ([]byte, error) {
	b, err := root.ReadFile(rel, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// forward listens on the ports that differ from the app's own and passes
// connections on. A port that is taken is an error before anything starts.
func forward(ctx context.Context, ports []Port) (stop func(), err error) {
	var listeners []net.Listener
	stop = func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	for _, p := range ports {
		addr := net.JoinHostPort(p.Host, strconv.Itoa(p.Published))
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			stop()
			return nil, spec.WithHint(fmt.Errorf("publish port %d: %w", p.Published, err), "choose another one, for example -p %d:%d", p.Published+1, p.Target)
		}
		if p.Published == p.Target {
			// The app listens there itself: it shares the host's network.
			l.Close()
			continue
		}
		listeners = append(listeners, l)
		go serve(ctx, l, net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Target)))
	}
	return stop, nil
}

func serve(ctx context.Context, l net.Listener, target string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				io.Copy(out, in)
				if c, ok := out.(*net.TCPConn); ok {
					c.CloseWrite()
				}
			}()
			io.Copy(in, out)
		}()
	}
}

func volumeMounts(volumes []Volume) []sandbox.Mount {
	var mounts []sandbox.Mount
	for _, v := range volumes {
		mounts = append(mounts, sandbox.Mount{Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly})
	}
	return mounts
}

// newOverlay makes the scratch half of an overlay in dir/name.
func newOverlay(dir, name string, lowers []string) (sandbox.Overlay, error) {
	o := sandbox.Overlay{Lowers: lowers, Upper: filepath.Join(dir, name, "upper"), Work: filepath.Join(dir, name, "work")}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return o, err
		}
		// The mode of /layers is in every layer's tar: the umask has no say.
		if err := os.Chmod(d, 0o755); err != nil {
			return o, err
		}
	}
	return o, nil
}
