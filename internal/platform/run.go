package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
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
	if req.Network == sandbox.NoNetwork && len(req.Ports) > 0 {
		return badInput(errors.New("a port cannot be published from a sandbox without network"), "leave out --publish or --network none")
	}
	cf, lowers, err := p.runnable(ctx, req)
	if err != nil {
		return err
	}
	argv := commandLine(req, cf.Config)
	if len(argv) == 0 {
		return badInput(fmt.Errorf("image %s has no entrypoint and no command", req.Image), "give one: kiln run IMAGE -- COMMAND")
	}
	user, err := dockerfile.FindUser(layer.Stack{Lowers: lowers}, cmp.Or(req.User, cf.Config.User))
	if err != nil {
		return badInput(fmt.Errorf("image %s: %w", req.Image, err), "name one of its users, or a number, with --user")
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
	mounts, err := p.Host.mounts(filepath.Join(scratch.Dir, "host"), nil)
	if err != nil {
		return err
	}
	mounts = append(mounts, sandbox.Mount{Target: "/tmp", Tmpfs: true})
	mounts = append(mounts, volumeMounts(req.Volumes)...)
	worker, _, err := p.startWorker(ctx, req.Isolation, user.UID, user.GID, scratch.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, worker.Close()) }()
	stop, err := forward(ctx, req.Ports)
	if err != nil {
		return err
	}
	defer stop()
	return worker.In(sandbox.Spec{Root: overlay, Mounts: mounts, UID: user.UID, GID: user.GID, Network: req.Network}).Run(ctx, sandbox.Command{
		Path: argv[0], Args: argv,
		Env: runEnv(req, cf.Config, user.Home), Dir: cmp.Or(req.WorkDir, cf.Config.WorkingDir, "/"),
		Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr,
	})
}

// runnable opens the image of a RunRequest: its config, and its layers as
// trees, topmost first.
func (p *Platform) runnable(ctx context.Context, req RunRequest) (*v1.ConfigFile, []string, error) {
	img, err := p.open(ctx, req.Image, req.Insecure)
	if err != nil {
		return nil, nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, nil, fmt.Errorf("read image %s: %w", req.Image, err)
	}
	if err := p.fits("image "+req.Image, cf); err != nil {
		return nil, nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, nil, fmt.Errorf("read image %s: %w", req.Image, err)
	}
	lowers, err := p.trees(ctx, layers)
	if err != nil {
		return nil, nil, fmt.Errorf("unpack image %s: %w", req.Image, err)
	}
	return cf, lowers, hasProcess(layer.Stack{Lowers: lowers}, req.Entrypoint)
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

// runEnv is the image's environment, what docker adds, and what the user gave;
// of one name the last counts.
func runEnv(req RunRequest, config v1.Config, home string) []string {
	env := map[string]string{"HOME": home, "HOSTNAME": sandboxHost}
	for _, kv := range config.Env {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	if len(req.Ports) > 0 {
		env["PORT"] = strconv.Itoa(req.Ports[0].Target)
	}
	maps.Copy(env, req.Env)
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// sandboxHost is the sandbox's name for the machine.
const sandboxHost = "kiln"

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
