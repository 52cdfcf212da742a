package launch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/spec"
)

// maxExecD bounds what an exec.d program may write, in bytes. Its variables
// have to fit into the 2 MiB or so that Linux gives arguments and environment.
const maxExecD = 4 << 20

// drain is how long to read on from an exec.d program that has ended while
// something it left behind keeps the pipe open. What it wrote is there already.
const drain = 50 * time.Millisecond

// layers lists the layer directories: for each buildpack, in build order, its
// layers in the order of their names.
func (im Image) layers() ([][]string, error) {
	var all [][]string
	for _, bp := range im.Metadata.Buildpacks {
		dir := filepath.Join(im.Layers, spec.EscapeID(bp.ID))
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list the layers of %s: %w", bp, err)
		}
		var dirs []string
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				dirs = append(dirs, path)
			}
		}
		all = append(all, dirs)
	}
	return all, nil
}

// Environment adds to e what the layers say: for each buildpack first the path
// directories of all its layers, then their env, env.launch and
// env.launch/<type>.
func (im Image) Environment(e env.Env, layers [][]string, processType string) error {
	for _, buildpack := range layers {
		for _, layer := range buildpack {
			if err := e.AddLayerDirs(layer, true); err != nil {
				return fmt.Errorf("environment of layer %s: %w", layer, err)
			}
		}
		for _, layer := range buildpack {
			dirs := []string{filepath.Join(layer, "env"), filepath.Join(layer, "env.launch")}
			if processType != "" {
				dirs = append(dirs, filepath.Join(layer, "env.launch", processType))
			}
			for _, dir := range dirs {
				if err := e.AddDir(dir); err != nil {
					return fmt.Errorf("environment of layer %s: %w", layer, err)
				}
			}
		}
	}
	return nil
}

// files lists the files in <layer>/<name> and then in <layer>/<name>/<type>,
// for every layer: the order in which exec.d programs and profile scripts run.
func files(layers [][]string, name, processType string) ([]string, error) {
	var all []string
	for _, buildpack := range layers {
		for _, layer := range buildpack {
			dirs := []string{filepath.Join(layer, name)}
			if processType != "" {
				dirs = append(dirs, filepath.Join(layer, name, processType))
			}
			for _, dir := range dirs {
				in, err := filesIn(dir)
				if err != nil {
					return nil, err
				}
				all = append(all, in...)
			}
		}
	}
	return all, nil
}

func filesIn(dir string) ([]string, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, nil // most layers have none
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		info, err := os.Stat(path)
		if err == nil && info.IsDir() {
			continue
		}
		if err := regular(info, err); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, path)
	}
	return all, nil
}

// execD runs the layers' exec.d programs, each with the environment so far,
// and sets the variables they write to file descriptor 3 (Buildpack API,
// "exec.d"). One that fails ends the launch.
func execD(e env.Env, layers [][]string, processType string) error {
	programs, err := files(layers, "exec.d", processType)
	if err != nil {
		return err
	}
	for _, program := range programs {
		out, err := runExecD(program, e.List())
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		vars, err := spec.ReadExecD(out, "output of "+program)
		if err != nil {
			return err
		}
		maps.Copy(e, vars)
	}
	return nil
}

func runExecD(program string, environ []string) ([]byte, error) {
	if err := executable(program); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Cmd{
		Path: program, Args: []string{program}, Env: environ,
		Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{w},
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	type result struct {
		b   []byte
		err error
	}
	read := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(io.LimitReader(r, maxExecD+1))
		if len(b) > maxExecD {
			r.Close() // or the program would block for ever in its next write
		}
		read <- result{b, err}
	}()
	failed := cmd.Wait()
	_ = r.SetReadDeadline(time.Now().Add(drain)) // it may be closed, see above
	out := <-read
	switch {
	case len(out.b) > maxExecD:
		return nil, fmt.Errorf("wrote more than %d bytes to file descriptor 3", maxExecD)
	case failed != nil:
		return nil, failed
	case out.err != nil && !errors.Is(out.err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("read its variables: %w", out.err)
	}
	return out.b, nil
}
