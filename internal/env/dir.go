package env

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxFile bounds one variable's file, in bytes. Linux refuses to start a
// process with a variable of more than 128 KiB (MAX_ARG_STRLEN), so that what
// is larger could only fail later and with a worse message.
const maxFile = 128 << 10

// AddDir applies a buildpack's env directory (env, env.build, env.launch or
// env.launch/<type>). A file NAME or NAME.override replaces, NAME.default
// applies where NAME is unset or empty, NAME.append and NAME.prepend extend
// with the delimiter in NAME.delim of the same directory, none if there is no
// such file. Other suffixes are ignored, and so is a directory that does not exist.
func (e Env) AddDir(dir string) error { return e.addDir(dir, "override") }

// AddOperator applies <build-config>/env, where a file without suffix is a
// default. dir is the build config directory. It comes after everything else
// and also for buildpacks that want a clear environment.
func (e Env) AddOperator(dir string) error { return e.addDir(filepath.Join(dir, "env"), "default") }

// AddPlatform applies <platform>/env, the user's variables: each file's name is
// a variable, its bytes are the value. Path variables are extended at the
// front, others replaced. dir is the platform directory.
func (e Env) AddPlatform(dir string) error {
	dir = filepath.Join(dir, "env")
	names, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		value, ok, err := read(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := checkName(dir, name, name); err != nil {
			return err
		}
		if slices.ContainsFunc(pathVars, func(v pathVar) bool { return v.name == name }) {
			e.prepend(name, value, ":")
			continue
		}
		e[name] = value
	}
	return nil
}

func (e Env) addDir(dir, plain string) error {
	files, err := list(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		name, action, found := strings.Cut(file, ".")
		if !found {
			action = plain
		}
		if name == "" || !slices.Contains([]string{"override", "default", "append", "prepend"}, action) {
			continue // .gitkeep, NAME.delim, NAME.whatever
		}
		if err := e.addFile(dir, file, name, action); err != nil {
			return err
		}
	}
	return nil
}

func (e Env) addFile(dir, file, name, action string) error {
	value, ok, err := read(filepath.Join(dir, file))
	if err != nil || !ok {
		return err
	}
	if err := checkName(dir, file, name); err != nil {
		return err
	}
	switch action {
	case "override":
		e[name] = value
	case "default":
		if e[name] == "" {
			e[name] = value
		}
	default:
		delim, _, err := read(filepath.Join(dir, name+".delim"))
		if err != nil {
			return err
		}
		if action == "append" {
			e.append(name, value, delim)
		} else {
			e.prepend(name, value, delim)
		}
	}
	return nil
}

func checkName(dir, file, name string) error {
	if strings.Contains(name, "=") {
		return fmt.Errorf("%s: %q cannot be the name of a variable", filepath.Join(dir, file), name)
	}
	return nil
}

// list returns the names in dir, sorted: the specification's order of
// application. What is not there, or not a directory, has none.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names, nil
}

// read returns the content of a file, not trimmed; symlinks are followed. It
// reports false for what is not there, and for a directory. Pipes and devices
// are refused without waiting for them.
func read(path string) (value string, ok bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if missing(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", false, err
	}
	if info.IsDir() {
		return "", false, nil
	}
	if !info.Mode().IsRegular() {
		return "", false, fmt.Errorf("%s: a variable must be a regular file, not %s", path, info.Mode().Type())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", false, err
	}
	if len(b) > maxFile {
		return "", false, fmt.Errorf("%s: longer than the %d bytes that a variable can have", path, maxFile)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return "", false, fmt.Errorf("%s: contains a NUL byte, which no variable can", path)
	}
	return string(b), true, nil
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
