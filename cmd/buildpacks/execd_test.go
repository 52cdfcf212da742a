package main

import (
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/kilnbuild/kiln/internal/env"
)

// runExecD runs a program as the launcher does, and reads what it sets.
func runExecD(t *testing.T, path string, e env.Env) map[string]string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(path)
	cmd.Env = e.List()
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.CombinedOutput()
	w.Close()
	if err != nil {
		t.Fatalf("%s: %v\n%s", path, err, out)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var vars map[string]string
	if err := toml.Unmarshal(text, &vars); err != nil {
		t.Fatalf("%s wrote %q: %v", path, text, err)
	}
	return vars
}
