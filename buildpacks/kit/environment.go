package kit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Environment is a layer's changes to the environment: files of an env
// directory (Buildpack API, "Environment Variable Modification Rules"). The
// zero value changes nothing.
type Environment struct{ files map[string]string }

// Override sets name, whatever it was.
func (e *Environment) Override(name, value string) { e.set(name, "override", value) }

// Default sets name if it is empty or not set.
func (e *Environment) Default(name, value string) { e.set(name, "default", value) }

// Append puts value behind what name has, with delim between them.
func (e *Environment) Append(name, value, delim string) {
	e.set(name, "append", value)
	e.delim(name, delim)
}

// Prepend puts value before what name has, with delim between them.
func (e *Environment) Prepend(name, value, delim string) {
	e.set(name, "prepend", value)
	e.delim(name, delim)
}

func (e *Environment) delim(name, delim string) {
	if delim != "" {
		e.set(name, "delim", delim)
	}
}

func (e *Environment) set(name, action, value string) {
	if e.files == nil {
		e.files = map[string]string{}
	}
	e.files[name+"."+action] = value
}

// write leaves the files in dir. A name that would be cut at its dot or lead
// out of dir is an error.
func (e *Environment) write(dir string) error {
	if len(e.files) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, file := range sortedKeys(e.files) {
		name := file[:strings.LastIndexByte(file, '.')]
		if name == "" || strings.ContainsAny(name, "./=\x00") {
			errs = append(errs, fmt.Errorf("environment variable %q: not a name that a file can have", name))
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, file), []byte(e.files[file]), 0o644))
	}
	return errors.Join(errs...)
}
