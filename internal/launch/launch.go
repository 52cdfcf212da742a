// Package launch chooses a process of a finished image and turns the launcher
// into it (Platform API, "launcher"). It is all that the launcher does, and the
// launcher is copied into every app image: it imports next to nothing.
package launch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Image is what a launch needs to know of the image it happens in.
type Image struct {
	App, Layers string
	ExecEnv     string
	PlatformAPI string
	Metadata    spec.BuildMetadata
}

// Start is a chosen process. Args are what follows Command, complete.
type Start struct {
	Type    string // "" for a command of the user's
	Command string
	Args    []string
	Direct  bool // else through a shell
	Dir     string
}

// Run becomes the process that argv asks for: it returns only with an error,
// always a *spec.ExitError. Warnings go to stderr.
func Run(argv, environ []string, stderr io.Writer) error {
	image, err := Open(environ)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(environ, func(nv string) bool { return strings.HasPrefix(nv, "CNB_PROCESS_TYPE=") }) {
		fmt.Fprintln(stderr, "launcher: warning: CNB_PROCESS_TYPE is not used any more; start /cnb/process/<type> instead")
	}
	start, err := image.Choose(argv)
	if err != nil {
		return fail(err)
	}
	if err := os.Chdir(image.App); err != nil {
		return fail(fmt.Errorf("enter the app directory: %w", err))
	}
	e := env.FromLaunch(environ)
	layers, err := image.layers()
	if err == nil {
		err = image.Environment(e, layers, start.Type)
	}
	if err == nil {
		err = execD(e, layers, start.Type)
	}
	if err != nil {
		return fail(err)
	}
	if start.Direct {
		return fail(execDirect(start, e))
	}
	return fail(image.execShell(argv[0], start, layers, e))
}

// fail gives an error the launcher's exit code, unless it has one.
func fail(err error) error {
	return spec.Exit(spec.ExitCode(err, spec.ExitLaunch), err)
}

// Open reads what the image says of itself. It checks the version of the
// Platform API first, and those of the buildpacks.
func Open(environ []string) (Image, error) {
	vars := map[string]string{}
	for _, nv := range environ {
		name, value, _ := strings.Cut(nv, "=")
		vars[name] = value
	}
	image := Image{
		App:         cmp.Or(vars["CNB_APP_DIR"], "/workspace"),
		Layers:      cmp.Or(vars["CNB_LAYERS_DIR"], "/layers"),
		ExecEnv:     cmp.Or(vars["CNB_EXEC_ENV"], spec.DefaultExecEnv),
		PlatformAPI: vars["CNB_PLATFORM_API"],
	}
	if err := spec.SupportedPlatform(image.PlatformAPI); err != nil {
		return Image{}, err
	}
	for _, dir := range []*string{&image.App, &image.Layers} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return Image{}, fail(fmt.Errorf("find %s: %w", *dir, err))
		}
		*dir = abs
	}
	path := filepath.Join(image.Layers, "config", "metadata.toml")
	b, err := readFile(path, spec.MaxDocument)
	if err == nil {
		image.Metadata, err = spec.ReadBuildMetadata(b, path)
	}
	if err != nil {
		return Image{}, fail(fmt.Errorf("read the image's processes: %w", err))
	}
	for _, bp := range image.Metadata.Buildpacks {
		if err := spec.SupportedBuildpack(bp.API); err != nil {
			return Image{}, fail(fmt.Errorf("buildpack %s: %w", bp, err))
		}
	}
	return image, nil
}

// readFile reads a regular file of at most limit bytes, and waits for no pipe.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := regular(f.Stat()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, err
}

// regular refuses what a shell or a reader would wait for, or read for ever.
func regular(info fs.FileInfo, err error) error {
	if err == nil && !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	return err
}

// Choose decides what to start. The base name of argv[0] is a process type, as
// with /cnb/process/web; or the arguments are a command, run directly after
// "--" and by a shell otherwise.
func (im Image) Choose(argv []string) (Start, error) {
	if len(argv) == 0 {
		return Start{}, errors.New("started without a name")
	}
	name, args := filepath.Base(argv[0]), argv[1:]
	switch process, err := im.process(name); {
	case err != nil:
		return Start{}, err
	case process != nil:
		return im.start(*process, args), nil
	case len(args) > 1 && args[0] == "--":
		return Start{Command: args[1], Args: args[2:], Direct: true, Dir: im.App}, nil
	case len(args) > 0 && args[0] != "--":
		return Start{Command: args[0], Args: args[1:], Dir: im.App}, nil
	}
	err := fmt.Errorf("nothing to start: %q is no process of this image, and there is no command", name)
	return Start{}, spec.WithHint(err, "%s; or give a command: launcher -- <command> [args...]", im.offer())
}

// process finds the process of that type which is meant for the execution
// environment; nil if the image has none of that type at all.
func (im Image) process(name string) (*spec.Process, error) {
	var found *spec.Process
	for i, p := range im.Metadata.Processes {
		if p.Type != name {
			continue
		}
		if im.eligible(p) {
			return &im.Metadata.Processes[i], nil
		}
		found = &im.Metadata.Processes[i]
	}
	if found == nil {
		return nil, nil
	}
	err := fmt.Errorf("process %q is not meant for the execution environment %q", name, im.ExecEnv)
	return nil, spec.WithHint(err, "it is for %s; set CNB_EXEC_ENV to start it", strings.Join(found.ExecEnv, ", "))
}

func (im Image) eligible(p spec.Process) bool {
	return !spec.Has(im.PlatformAPI, spec.PlatformExecEnv) || spec.InExecEnv(p.ExecEnv, im.ExecEnv)
}

// offer says which processes could be started.
func (im Image) offer() string {
	var types []string
	for _, p := range im.Metadata.Processes {
		if im.eligible(p) {
			types = append(types, "/cnb/process/"+p.Type)
		}
	}
	if len(types) == 0 {
		return "the image has no processes"
	}
	return "the image has " + strings.Join(types, ", ")
}

// start joins a process and the user's arguments. They replace the default
// arguments, or follow them where either API is too old for that.
func (im Image) start(p spec.Process, args []string) Start {
	s := Start{Type: p.Type, Command: p.Command[0], Dir: cmp.Or(p.WorkingDirectory, im.App)}
	if im.overridable(p) {
		s.Direct = true
		if len(args) == 0 {
			args = p.Args
		}
		s.Args = slices.Concat(p.Command[1:], args)
		return s
	}
	s.Direct = p.Direct
	s.Args = slices.Concat(p.Command[1:], p.Args, args)
	return s
}

// overridable reports whether a user's arguments replace the process's. A
// process that names no buildpack comes from a platform of today.
func (im Image) overridable(p spec.Process) bool {
	if !spec.Has(im.PlatformAPI, spec.PlatformCommandList) {
		return false
	}
	for _, bp := range im.Metadata.Buildpacks {
		if bp.ID == p.BuildpackID {
			return spec.Has(bp.API, spec.BuildpackOverridableArgs)
		}
	}
	return true
}
