package main

import (
	"context"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/test/filetree"
)

var arch = runtime.GOARCH

// TestTalksApp builds samples/flask with CPython from Debian's packages and the
// requirements from the package index, starts what the buildpacks say, and
// fetches the page. Then it builds again, and anew in other directories'
// stead: nothing runs, and every byte is the same.
func TestTalksApp(t *testing.T) {
	files := map[string]string{}
	for _, f := range []string{"app.py", "requirements.txt"} {
		body, err := os.ReadFile(filepath.Join("..", "..", "samples", "flask", f))
		if err != nil {
			t.Fatal(err)
		}
		files[f] = string(body)
	}
	group := []string{"kiln/ca-certificates", "kiln/cpython", "kiln/pip", "kiln/pip-install", "kiln/python-start"}
	w := newWorld(t, files)
	first := w.build(group...)
	for _, id := range group {
		t.Logf("%s\n%s", id, first[id])
	}
	for _, p := range []string{
		"kiln_cpython/cpython/bin/python3.11", "kiln_cpython/cpython/include/python3.11/Python.h",
		"kiln_cpython/cpython/env/PYTHONPATH.override", "kiln_cpython/cpython.sbom.cdx.json",
		"kiln_pip/pip/bin/pip", "kiln_pip/pip/env/PYTHONPATH.prepend", "kiln_pip/pip/env/PYTHONPATH.delim",
		"kiln_pip-install/packages/bin/flask", "kiln_pip-install/packages/lib/python3.11/site-packages/flask/__init__.py",
		"kiln_pip-install/packages/env/PYTHONPATH.prepend", "kiln_pip-install/packages.sbom.syft.json",
		"kiln_pip-install/packages.sbom.spdx.json", "kiln_pip-install/cache",
	} {
		if _, err := os.Lstat(filepath.Join(w.layers, p)); err != nil {
			t.Error(err)
		}
	}
	hashedBytecode(t, w)
	servesPage(t, w, group)

	kept := map[string]map[string]string{}
	launched := []string{"kiln_ca-certificates/helper", "kiln_cpython/cpython", "kiln_pip/pip", "kiln_pip-install/packages", "kiln_python-start/start"}
	for _, l := range launched {
		kept[l] = tree(t, filepath.Join(w.layers, l))
	}
	before := tree(t, w.layers)
	again := w.build(group...)
	if strings.Contains(again["kiln/pip-install"], "Collecting") || !strings.Contains(again["kiln/pip-install"], "Reusing the installed packages") {
		t.Errorf("pip ran again: %s", again["kiln/pip-install"])
	}
	if d := differences(before, tree(t, w.layers)); len(d) > 0 {
		t.Errorf("a build with nothing new changed %v", d)
	}

	pipFailsInOneSentence(t, w, group)
	filetree.Write(t, w.app, 0o644, files)

	if err := os.RemoveAll(w.layers); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.layers, 0o755); err != nil {
		t.Fatal(err)
	}
	w.build(group...)
	for _, l := range launched {
		if d := differences(kept[l], tree(t, filepath.Join(w.layers, l))); len(d) > 0 {
			t.Errorf("layer %s has other bytes when it is made again: %v", l, d)
		}
	}
}

// hashedBytecode holds that no .pyc has its source's time in it: a source in a
// layer that comes back has another one, and the layer would be changed by who
// runs Python.
func hashedBytecode(t *testing.T, w *world) {
	t.Helper()
	const uncheckedHash = "\x01\x00\x00\x00" // PEP 552
	n := 0
	err := filepath.WalkDir(w.layers, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".pyc") {
			return err
		}
		n++
		body, err := os.ReadFile(path)
		if err == nil && (len(body) < 16 || string(body[4:8]) != uncheckedHash) {
			t.Errorf("%s holds a time", path)
		}
		return err
	})
	if err != nil || n < 100 {
		t.Errorf("%d .pyc files, %v", n, err)
	}
}

// pipFailsInOneSentence asks for what is not there.
func pipFailsInOneSentence(t *testing.T, w *world, group []string) {
	t.Helper()
	for _, tt := range []struct {
		requirements, index, says string
	}{
		{"Flask==0.0.99\n", "", "ERROR: the requirement Flask==0.0.99 has no version that fits: the newest that would do here is "},
		{"kiln-has-no-such-package==1\n", "", "ERROR: the requirement kiln-has-no-such-package==1 does not exist: the package index has no such package: pip install: exit status 1"},
		{"click\n", "http://127.0.0.1:1/simple", "ERROR: the package index cannot be reached: pip install: exit status 1\nhint: check the network"},
		{"click=1\n", "", "ERROR: the requirements file has a line that is no requirement: 'click=1'"},
	} {
		filetree.Write(t, w.app, 0o644, map[string]string{"requirements.txt": tt.requirements})
		w.user = map[string]string{"PIP_RETRIES": "1"}
		if tt.index != "" {
			w.user["PIP_INDEX_URL"] = tt.index
		}
		out, err := w.tryBuild(group...)
		if err == nil || !strings.Contains(out["kiln/pip-install"], tt.says) {
			t.Errorf("%q: %v\n%s\nwant %s", tt.requirements, err, out["kiln/pip-install"], tt.says)
		}
	}
	w.user = map[string]string{}
}

// servesPage starts the default process and fetches the page.
func servesPage(t *testing.T, w *world, group []string) {
	t.Helper()
	processes := w.processes("kiln/python-start")
	if len(processes) != 1 || !processes[0].Default {
		t.Fatalf("processes %+v: want one, the default", processes)
	}
	e := w.launchEnv(group...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	e["PORT"] = port
	for k, v := range runExecD(t, filepath.Join(w.own("kiln/python-start"), "start", "exec.d", "port"), e) {
		e[k] = v
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	command := processes[0].Command
	path, err := lookPath(command[0], e["PATH"])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, command[1:]...)
	cmd.Dir, cmd.Env = w.app, e.List()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	page := ""
	for deadline := time.Now().Add(20 * time.Second); page == "" && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if r, err := http.Get("http://127.0.0.1:" + port + "/"); err == nil {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			page = string(b)
		}
	}
	cancel()
	_ = cmd.Wait()
	if page != "Hello, Kubecon EU!" {
		t.Errorf("the page is %q; %v printed\n%s", page, command, out.String())
	}
}

func lookPath(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", exec.ErrNotFound
}
