package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// selection says which files of the source directory belong to the app.
type selection struct {
	include, exclude patterns
}

func selectionOf(p spec.Project) selection {
	return selection{include: parsePatterns(p.Include), exclude: parsePatterns(p.Exclude)}
}

// skips says whether rel stays out. Directories stay in when include may name
// something below them.
func (s selection) skips(rel string, isDir bool) bool {
	if s.exclude != nil {
		return s.exclude.match(rel, isDir)
	}
	if s.include != nil {
		return !isDir && !s.include.match(rel, isDir)
	}
	return false
}

// prune removes the directories that were only walked through on the way to
// what include names: nothing is in them, and no pattern names them.
func (s selection) prune(root string) error {
	if s.include == nil {
		return nil
	}
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		rel, err := filepath.Rel(root, dir)
		if err != nil {
			return err
		}
		if s.include.match(filepath.ToSlash(rel), true) {
			continue
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

// readProject reads the request's project descriptor. Without one named, a
// missing project.toml is an empty one.
func readProject(req Request) (spec.Project, error) {
	path, named := req.Descriptor, req.Descriptor != ""
	if !named {
		path = filepath.Join(req.Path, "project.toml")
	}
	content, err := readDescriptor(req, named)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return spec.Project{}, nil
	}
	if err != nil {
		hint := "make it readable, or take it out of the app"
		if named {
			hint = "name the file with --descriptor FILE, or leave the flag out"
		}
		return spec.Project{}, badInput(fmt.Errorf("project descriptor: %w", err), hint)
	}
	project, err := spec.ReadProject(content, path)
	if err != nil {
		return spec.Project{}, badInput(err, "https://buildpacks.io/docs/reference/config/project-descriptor has the format")
	}
	return project, nil
}

// readDescriptor reads the named descriptor, or that of the source, from which
// no link leads elsewhere. Nobody waits for a pipe.
func readDescriptor(req Request, named bool) ([]byte, error) {
	const flags = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY
	var f *os.File
	var err error
	if named {
		f, err = os.OpenFile(req.Descriptor, flags, 0)
	} else {
		var root *os.Root
		if root, err = os.OpenRoot(req.Path); err != nil {
			return nil, err
		}
		defer root.Close()
		f, err = root.OpenFile("project.toml", flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return readRegular(f)
}

// readRegular reads a document of a person's and closes it.
func readRegular(f *os.File) ([]byte, error) {
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	return io.ReadAll(io.LimitReader(f, spec.MaxDocument+1))
}

// withProject merges a project descriptor into a request. What the command
// line says beats the file.
func (r Request) withProject(p spec.Project) Request {
	env := map[string]string{}
	for _, e := range p.Env {
		if spec.InExecEnv(e.ExecEnv, r.execEnv()) {
			env[e.Name] = e.Value
		}
	}
	maps.Copy(env, r.Env)
	r.Env = env
	if r.Builder == "" {
		r.Builder = p.Builder
	}
	if len(r.Buildpacks) == 0 {
		r.Group = r.forHere(p.Group)
	}
	r.Pre, r.Post = r.forHere(p.Pre), r.forHere(p.Post)
	return r
}

// warnings are events for what the descriptor has and kiln leaves alone.
func projectWarnings(p spec.Project) []event.Event {
	var events []event.Event
	for _, w := range p.Warnings {
		events = append(events, event.Message{Level: event.Warn, Text: w})
	}
	return events
}
