// Package pythonstart is the buildpack kiln/python-start. It finds out how the
// app is started and makes that the process web: a Flask, FastAPI, Quart,
// Starlette or Django app with the server that the requirements name, else a
// script. It never starts a bare interpreter.
//
//	BP_PYTHON_START_APP  the app object, as module:object, when the search errs
//
// Servers listen on all addresses, on the port in PORT at launch (5000 for
// Flask's own server, else 8000, unless it is set).
package pythonstart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/buildpacks/python"
)

// appVariable names the app object.
const appVariable = "BP_PYTHON_START_APP"

// New is the buildpack; helper gives the program that hands PORT on.
func New(helper func() ([]byte, error)) kit.Buildpack {
	return kit.Buildpack{Detect: detect, Build: func(ctx context.Context, b *kit.Build) error { return build(b, helper) }}
}

func detect(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
	s, err := plan(&d.Context)
	if err != nil {
		return nil, err
	}
	cpython := kit.Require{Name: "cpython", Launch: true}
	packages := kit.Require{Name: "site-packages", Launch: true}
	with, without := kit.Plan{Requires: []kit.Require{cpython, packages}}, kit.Plan{Requires: []kit.Require{cpython}}
	if s.packages {
		return kit.Plans(with), nil
	}
	return kit.Plans(with, without), nil
}

// start is how the app is started.
type start struct {
	process   *kit.Process // nil when a Procfile says it
	port      string
	env       map[string]string
	fixed     bool   // the server does not follow PORT
	runserver bool   // the process needs runserver.py
	packages  bool   // the app cannot do without installed packages
	words     string // what was found, for people
	advice    string // what would be better
}

// plan finds out how the app is started, or fails with what would help.
func plan(c *kit.Context) (start, error) {
	src, err := read(c.AppDir)
	if err != nil {
		return start{}, fmt.Errorf("search the app for Python files: %w", err)
	}
	req, err := python.ReadRequirements(c.AppDir, existing(c))
	if err != nil {
		return start{}, err
	}
	if named := strings.TrimSpace(c.Getenv(appVariable)); named != "" {
		return byName(named, src, req)
	}
	if d, ok := src.django(); ok {
		return ofDjango(d, req), nil
	}
	apps := src.apps()
	if len(apps) > 0 {
		s, err := ofApp(apps[0], req)
		if err != nil && hasProcfile(c) {
			return start{port: "8000", packages: true, words: "The Procfile says how to start the app"}, nil
		}
		return s, err
	}
	if file := src.script(); file != "" {
		return start{
			process: &kit.Process{Command: []string{"python", file}},
			port:    "8000", words: fmt.Sprintf("Found the script %s", file),
		}, nil
	}
	if hasProcfile(c) {
		return start{port: "8000", words: "The Procfile says how to start the app"}, nil
	}
	if len(src.files) == 0 && len(req.Files) == 0 {
		return start{}, kit.Fail("no Python file (*.py) in the app directory")
	}
	return start{}, kit.Fail("no Flask, FastAPI or Django app, no main.py or app.py and no Procfile in the app directory: one of them must say what to start")
}

// existing are the requirements files that are there.
func existing(c *kit.Context) []string {
	var files []string
	for _, f := range python.RequirementsFiles(c) {
		path := f
		if !filepath.IsAbs(f) {
			path = filepath.Join(c.AppDir, f)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, f)
		}
	}
	return files
}

func hasProcfile(c *kit.Context) bool {
	if strings.TrimSpace(c.Getenv("BP_PROCFILE_DEFAULT_PROCESS")) != "" {
		return true
	}
	_, err := os.Stat(filepath.Join(c.AppDir, "Procfile"))
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

var appName = regexp.MustCompile(`^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(\))?$`)

// byName starts the app object that the user names; the requirements say what
// it is.
func byName(name string, src source, req python.Requirements) (start, error) {
	if !appName.MatchString(name) {
		return start{}, fmt.Errorf("%s=%q is not of the form module:object", appVariable, name)
	}
	module, object, _ := strings.Cut(name, ":")
	object, made := strings.CutSuffix(object, "()")
	for _, f := range frameworks {
		if req.Has(f.dist) {
			return ofApp(found{framework: f, module: module, object: object, made: made, file: appVariable}, req)
		}
	}
	if d, ok := src.django(); ok || req.Has("django") {
		d.wsgi = module
		return ofDjango(d, req), nil
	}
	return ofApp(found{framework: framework{name: "WSGI", dist: ""}, module: module, object: object, made: made, file: appVariable}, req)
}

// ofApp is the server for an app object.
func ofApp(a found, req python.Requirements) (start, error) {
	s := start{port: "8000", packages: true, env: map[string]string{}, words: fmt.Sprintf("Found a %s app in %s", a.name, a.file)}
	name := a.module + ":" + a.object
	wsgiName := name
	if a.made {
		wsgiName += "()"
	}
	uvicorn := req.Has("uvicorn") || req.HasExtra("fastapi", "standard") || req.HasExtra("fastapi", "all")
	var command []string
	switch {
	case a.async && uvicorn:
		command = []string{"uvicorn", name}
		if a.made {
			command = append(command, "--factory")
		}
		s.env["UVICORN_HOST"] = "0.0.0.0"
	case a.async && req.Has("hypercorn"):
		// Nothing but its arguments tells hypercorn (or waitress) the port.
		s.fixed = true
		command = []string{"hypercorn", "--bind", "0.0.0.0:8000", wsgiName}
	case a.async:
		return s, kit.Fail("a %s app in %s, but no server for it: add uvicorn to requirements.txt", a.name, a.file)
	case req.Has("gunicorn"):
		command = []string{"gunicorn", wsgiName} // binds 0.0.0.0:$PORT by itself
	case req.Has("waitress") && !a.made:
		s.fixed = true
		command = []string{"waitress-serve", "--listen=*:8000", name}
	case a.dist == "flask":
		command = []string{"python", "-m", "flask", "run"}
		s.port = "5000"
		s.env["FLASK_APP"] = name
		s.env["FLASK_RUN_HOST"] = "0.0.0.0"
		s.advice = "Flask's own server is for development: add gunicorn to requirements.txt for production"
	default:
		return s, kit.Fail("the app %s, but no server for it: add gunicorn to requirements.txt", name)
	}
	s.process = &kit.Process{Command: command, WorkingDir: a.dir}
	return s, nil
}

// ofDjango is the server for a Django project.
func ofDjango(d django, req python.Requirements) start {
	s := start{port: "8000", packages: true, env: map[string]string{}, words: "Found a Django project"}
	if d.dir != "" {
		s.words += " in " + d.dir
	}
	var command []string
	switch {
	case req.Has("gunicorn") && d.wsgi != "":
		command = []string{"gunicorn", d.wsgi + ":application"}
	case req.Has("uvicorn") && d.asgi != "":
		command = []string{"uvicorn", d.asgi + ":application"}
		s.env["UVICORN_HOST"] = "0.0.0.0"
	default:
		s.runserver = true
		s.advice = "Django's own server is for development: add gunicorn to requirements.txt for production"
	}
	s.process = &kit.Process{Command: command, WorkingDir: d.dir}
	return s
}

// runserver starts Django's own server on PORT, which it knows only as an
// argument.
const runserver = `"""Runs manage.py runserver on all addresses, on the port in PORT."""
import os
import runpy
import sys

sys.path[0] = os.getcwd()
address = "0.0.0.0:" + os.environ.get("PORT", "8000")
sys.argv = ["manage.py", "runserver", "--noreload"] + (sys.argv[1:] or [address])
runpy.run_path("manage.py", run_name="__main__")
`

// where says on which port the process listens.
func (s start) where() string {
	switch {
	case s.fixed:
		return " (port 8000)"
	case s.packages:
		return " (port " + s.port + ", or PORT at launch)"
	}
	return ""
}

func build(b *kit.Build, helper func() ([]byte, error)) error {
	s, err := plan(&b.Context)
	if err != nil {
		return err
	}
	b.Log.Info("%s", s.words)
	layer, err := b.Layer("start")
	if err != nil {
		return err
	}
	layer.Launch = true
	program, err := helper()
	if err != nil {
		return err
	}
	if s.runserver {
		s.process.Command = []string{"python", filepath.Join(layer.Path, "runserver.py")}
	}
	if p := s.process; p != nil {
		p.Type, p.Default = "web", true
		if p.WorkingDir != "" {
			p.WorkingDir = filepath.Join(b.AppDir, p.WorkingDir)
		}
		b.AddProcess(*p)
		b.Log.Detail("web: %s%s", strings.Join(p.Command, " "), s.where())
		if s.advice != "" {
			b.Log.Detail("%s", s.advice)
		}
	}
	if layer.Reuse(b.Key(s.port, s.env, s.runserver, program)) {
		return nil
	}
	if err := layer.Reset(); err != nil {
		return err
	}
	layer.LaunchEnv.Default("PORT", s.port)
	for name, value := range s.env {
		layer.LaunchEnv.Default(name, value)
	}
	if s.runserver {
		if err := os.WriteFile(filepath.Join(layer.Path, "runserver.py"), []byte(runserver), 0o644); err != nil {
			return err
		}
	}
	return layer.ExecD("port", bytes.NewReader(program))
}
