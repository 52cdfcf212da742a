package main

import (
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestDetect(t *testing.T) {
	flask := map[string]string{"app.py": "from flask import Flask\napp = Flask(__name__)\n", "requirements.txt": "flask\n"}
	tests := map[string]struct {
		id       string
		files    map[string]string
		user     map[string]string
		code     int
		last     string
		provides []string
		requires []string
	}{
		"cpython":         {id: "kiln/cpython", provides: []string{"cpython"}},
		"cpython version": {id: "kiln/cpython", user: map[string]string{"BP_CPYTHON_VERSION": "3.11.*"}, provides: []string{"cpython"}, requires: []string{"cpython"}},
		"cpython nonsense": {id: "kiln/cpython", user: map[string]string{"BP_CPYTHON_VERSION": "newest"}, code: 1,
			last: `ERROR: BP_CPYTHON_VERSION="newest": "newest" is no version constraint`},
		"pip":         {id: "kiln/pip", provides: []string{"pip"}, requires: []string{"cpython"}},
		"pip version": {id: "kiln/pip", user: map[string]string{"BP_PIP_VERSION": "24.0"}, provides: []string{"pip"}, requires: []string{"cpython", "pip"}},
		"pip-install": {id: "kiln/pip-install", files: flask, provides: []string{"site-packages"}, requires: []string{"cpython", "pip"}},
		"pip-install, nothing": {id: "kiln/pip-install", code: 100,
			last: "no requirements.txt in the app directory (BP_PIP_REQUIREMENT can name other files)"},
		"pip-install, named": {id: "kiln/pip-install", files: flask, user: map[string]string{"BP_PIP_REQUIREMENT": "requirements.txt dev.txt"}, code: 100,
			last: "no file dev.txt in the app directory, which BP_PIP_REQUIREMENT names"},
		"python-start":          {id: "kiln/python-start", files: flask, requires: []string{"cpython", "site-packages"}},
		"python-start, nothing": {id: "kiln/python-start", code: 100, last: "no Python file (*.py) in the app directory"},
		"procfile":              {id: "kiln/procfile", files: map[string]string{"Procfile": "web: x"}, provides: []string{"procfile"}, requires: []string{"procfile"}},
		"procfile, nothing": {id: "kiln/procfile", code: 100,
			last: "no Procfile with a process in it in the app directory (BP_PROCFILE_DEFAULT_PROCESS would do too)"},
		"procfile, broken": {id: "kiln/procfile", files: map[string]string{"Procfile": "web x"}, code: 1,
			last: `ERROR: Procfile, line 1: "web x" is not of the form <type>: <command>`},
		"ca-certificates": {id: "kiln/ca-certificates", provides: []string{"ca-certificates-helper"}, requires: []string{"ca-certificates-helper"}},
		"ca-certificates, off": {id: "kiln/ca-certificates", user: map[string]string{"BP_RUNTIME_CERT_BINDING_DISABLED": "true"}, code: 100,
			last: "no service binding of the type ca-certificates, and BP_RUNTIME_CERT_BINDING_DISABLED is set"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tt.files)
			if tt.user != nil {
				w.user = tt.user
			}
			code, out, plan := w.detect(tt.id)
			if code != tt.code || lastLine(out) != tt.last {
				t.Errorf("exit %d, %q; want %d, %q", code, out, tt.code, tt.last)
			}
			var provides, requires []string
			for _, p := range plan.Provides {
				provides = append(provides, p.Name)
			}
			for _, r := range plan.Requires {
				requires = append(requires, r.Name)
			}
			if !slices.Equal(provides, tt.provides) || !slices.Equal(requires, tt.requires) {
				t.Errorf("provides %v, requires %v", provides, requires)
			}
		})
	}
}

// TestPlainPythonNeedsNoPackages: the second group of the order holds.
func TestPlainPythonNeedsNoPackages(t *testing.T) {
	_, _, plan := newWorld(t, map[string]string{"main.py": "print(1)"}).detect("kiln/python-start")
	if len(plan.Or) != 1 || len(plan.Or[0].Requires) != 1 || plan.Or[0].Requires[0].Name != "cpython" {
		t.Errorf("alternatives %+v: want one with cpython alone", plan.Or)
	}
}

func TestProcfileBuild(t *testing.T) {
	w := newWorld(t, map[string]string{"Procfile": "worker: sleep 1\nweb: gunicorn -b :$PORT app:app\n"})
	w.build("kiln/procfile")
	got := w.processes("kiln/procfile")
	if len(got) != 2 || got[0].Type != "worker" || !slices.Equal(got[0].Command, []string{"sleep", "1"}) || got[0].Default ||
		!slices.Equal(got[1].Command, []string{"sh", "-c", "gunicorn -b :$PORT app:app"}) || !got[1].Default {
		t.Errorf("processes %+v", got)
	}
}

func TestCertificatesBuild(t *testing.T) {
	w := newWorld(t, nil)
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("corp")}))
	filetree.Write(t, w.platform, 0o644, map[string]string{"bindings/corp/type": "ca-certificates", "bindings/corp/ca.pem": cert})
	w.user["BP_EMBED_CERTS"] = "true"
	w.build("kiln/ca-certificates")
	own := w.own("kiln/ca-certificates")
	bundle, err := os.ReadFile(filepath.Join(own, "ca-certificates", "ca-certificates.crt"))
	if err != nil || !strings.HasSuffix(string(bundle), cert) {
		t.Errorf("the bundle does not end with the binding's certificate: %v", err)
	}
	e := w.base()
	w.apply(own, e, false)
	if want := filepath.Join(own, "ca-certificates", "ca-certificates.crt"); e["SSL_CERT_FILE"] != want {
		t.Errorf("SSL_CERT_FILE=%s at build, want %s", e["SSL_CERT_FILE"], want)
	}
	if l := w.layer(filepath.Join(own, "ca-certificates.toml")); l.Types != (spec.LayerTypes{Launch: true, Build: true, Cache: true}) {
		t.Errorf("types %+v", l.Types)
	}
	t.Setenv("TMPDIR", t.TempDir())
	launch := w.launchEnv("kiln/ca-certificates")
	launch["SERVICE_BINDING_ROOT"], launch["TMPDIR"] = filepath.Join(w.platform, "bindings"), t.TempDir()
	vars := runExecD(t, filepath.Join(own, "helper", "exec.d", "ca-certificates"), launch)
	if text, err := os.ReadFile(vars["SSL_CERT_FILE"]); err != nil || !strings.HasSuffix(string(text), cert) {
		t.Errorf("at launch: %v, %v", vars, err)
	}
	before := tree(t, w.layers)
	w.build("kiln/ca-certificates")
	if d := differences(before, tree(t, w.layers)); len(d) > 0 {
		t.Errorf("a second build changed %v", d)
	}
}

func TestCalledByNobody(t *testing.T) {
	binary := filepath.Join(filepath.Dir(installed), "buildpacks")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "buildpack.toml"), []byte("api=\"0.10\"\n[buildpack]\nid=\"x/y\"\nversion=\"1.0.0\"\n[[targets]]\nos=\"linux\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for says, env := range map[string][]string{
		"CNB_BUILDPACK_DIR is not set": nil,
		`"x/y" is none of`:             {"CNB_BUILDPACK_DIR=" + dir},
		"no such file":                 {"CNB_BUILDPACK_DIR=" + filepath.Join(dir, "none")},
	} {
		cmd := exec.Command(binary)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), says) {
			t.Errorf("exit %d, %q; want 1, %s", cmd.ProcessState.ExitCode(), out, says)
		}
	}
}

func TestCPythonThatIsNotToBeHad(t *testing.T) {
	w := newWorld(t, map[string]string{"main.py": ""})
	w.user["BP_CPYTHON_VERSION"] = "3.9.*"
	out, err := w.tryBuild("kiln/cpython")
	if err == nil || !strings.Contains(out["kiln/cpython"], "ERROR: CPython 3.9.*, asked for by BP_CPYTHON_VERSION, is not to be had: Debian bookworm has 3.11\nhint: ask for 3.11.*") {
		t.Errorf("%v, %s", err, out["kiln/cpython"])
	}
}
