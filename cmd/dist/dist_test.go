package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is no static program of one architecture is not packed.
func TestRefusals(t *testing.T) {
	self, err := os.Executable() // a Go program, though perhaps not a static one
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	const machineAt = 18 // of an ELF header
	foreign := append([]byte(nil), program...)
	foreign[machineAt], foreign[machineAt+1] = 243, 0 // RISC-V
	for name, test := range map[string]struct {
		launcher, lifecycle []byte
		want                string
	}{
		"missing":      {nil, nil, "no such file"},
		"not a binary": {[]byte("#!/bin/sh"), program, "launcher"},
		"dynamic":      {shell(t), shell(t), "static"},
		"no name":      {foreign, foreign, "EM_RISCV"},
	} {
		dir, out := t.TempDir(), t.TempDir()
		for file, body := range map[string][]byte{"launcher": test.launcher, "lifecycle": test.lifecycle} {
			if body == nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), body, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := run("1.0.0", []string{"archive", dir, out}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if entries, err := os.ReadDir(out); err != nil || len(entries) > 0 {
			t.Errorf("%s: left %v %v", name, entries, err)
		}
	}
	if err := run("1.0.0", []string{"sboms"}); err == nil || !strings.Contains(err.Error(), "usage") {
		t.Errorf("without a directory: %v", err)
	}
}

// shell is a dynamic program.
func shell(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	return b
}
