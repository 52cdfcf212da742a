// Package env holds the environment rules of the Buildpack API ("Environment"):
// which variables a buildpack or process sees, and how layers, users and
// operators change them. An Env is a value that is built up step by step, in
// the order that the phases prescribe; nothing here touches the environment of
// this process.
package env

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Env maps variable names to values.
type Env map[string]string

// buildAllowed are the only variables of a build container that buildpacks
// see. Everything else would make builds depend on where they run.
var buildAllowed = []string{
	"PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "PKG_CONFIG_PATH",
	"HOME", "HOSTNAME", "CNB_STACK_ID",
	"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
}

// launchHidden are the variables that configure the launcher and that the
// process it starts must not see.
var launchHidden = []string{
	"CNB_APP_DIR", "CNB_LAYERS_DIR", "CNB_PROCESS_TYPE", "CNB_PLATFORM_API", "CNB_DEPRECATION_MODE",
}

// launchPathHidden are taken off PATH at launch, so that a process does not
// find another process's launcher under a common name such as "web".
var launchPathHidden = []string{"/cnb/process", "/cnb/lifecycle"}

// pathVar is a variable that layers extend by having a directory of that name.
type pathVar struct {
	name, dir string
	launch    bool
}

var pathVars = []pathVar{
	{"PATH", "bin", true},
	{"LD_LIBRARY_PATH", "lib", true},
	{"LIBRARY_PATH", "lib", false},
	{"CPATH", "include", false},
	{"PKG_CONFIG_PATH", "pkgconfig", false},
}

// FromContainer is the environment that a build starts from: of the
// container's variables only those on the short list of the specification.
func FromContainer(environ []string) Env {
	all := parse(environ)
	e := Env{}
	for _, name := range buildAllowed {
		if v, ok := all[name]; ok {
			e[name] = v
		}
	}
	return e
}

// FromLaunch is the environment that a launch starts from: all of the
// container's variables but those meant for the launcher, and with the
// launcher's own directories off PATH.
func FromLaunch(environ []string) Env {
	e := parse(environ)
	for _, name := range launchHidden {
		delete(e, name)
	}
	if path, ok := e["PATH"]; ok {
		dirs := slices.DeleteFunc(strings.Split(path, ":"), func(dir string) bool {
			return dir != "" && slices.Contains(launchPathHidden, filepath.Clean(dir))
		})
		e["PATH"] = strings.Join(dirs, ":")
	}
	return e
}

func parse(environ []string) Env {
	e := make(Env, len(environ))
	for _, nv := range environ {
		// "=C:=..." style entries have an empty name and are nobody's variable.
		if name, value, ok := strings.Cut(nv, "="); ok && name != "" {
			e[name] = value
		}
	}
	return e
}

// List returns the variables as NAME=value, sorted by name.
func (e Env) List() []string {
	names := make([]string, 0, len(e))
	for name := range e {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = name + "=" + e[name]
	}
	return names
}

// Clone returns a copy that can be changed on its own.
func (e Env) Clone() Env {
	c := make(Env, len(e))
	for name, value := range e {
		c[name] = value
	}
	return c
}

// AddLayerDirs puts the layer's bin, lib, include and pkgconfig directories,
// as far as they exist, in front of PATH, LD_LIBRARY_PATH, LIBRARY_PATH, CPATH
// and PKG_CONFIG_PATH; at launch only bin and lib count. layer is an absolute
// path. Call it in ascending order: the later layer ends up first.
func (e Env) AddLayerDirs(layer string, launch bool) error {
	for _, v := range pathVars {
		if launch && !v.launch {
			continue
		}
		dir := filepath.Join(layer, v.dir)
		info, err := os.Stat(dir)
		if missing(err) || err == nil && !info.IsDir() {
			continue
		}
		if err != nil {
			return err // an *fs.PathError names the directory
		}
		e.prepend(v.name, dir, ":")
	}
	return nil
}

func (e Env) prepend(name, value, delim string) {
	if old := e[name]; old != "" {
		value += delim + old
	}
	e[name] = value
}

func (e Env) append(name, value, delim string) {
	if old := e[name]; old != "" {
		value = old + delim + value
	}
	e[name] = value
}
