package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/spec"
)

// execDirect replaces this process by the command. The command is looked up in
// the new PATH while still in the app directory.
func execDirect(s Start, e env.Env) error {
	path, err := find(s.Command, e["PATH"])
	if chdir := os.Chdir(s.Dir); chdir != nil {
		return fmt.Errorf("enter the working directory: %w", chdir)
	}
	if err != nil && strings.Contains(s.Command, "/") {
		// A path relative to the process's own working directory.
		path, err = find(s.Command, e["PATH"])
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Command, err)
	}
	return execve(path, append([]string{s.Command}, s.Args...), e)
}

func execve(path string, argv []string, e env.Env) error {
	err := syscall.Exec(path, argv, e.List())
	return fmt.Errorf("start %s: %w", path, explain(path, err))
}

// find resolves a command to an absolute path, the way that a shell does: a
// name without slash on PATH, everything else as it is.
func find(command, path string) (string, error) {
	if strings.Contains(command, "/") {
		if err := executable(command); err != nil {
			return "", err
		}
		return filepath.Abs(command)
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		candidate := filepath.Join(dir, command)
		switch err := executable(candidate); {
		case err == nil:
			return filepath.Abs(candidate)
		case errors.Is(err, fs.ErrPermission) && denied == nil:
			denied = fmt.Errorf("%s: %w", candidate, err)
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", spec.WithHint(errors.New("not found on PATH"), "PATH is %q", path)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return errors.New("no such file")
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("is a directory")
	case !info.Mode().IsRegular():
		return errors.New("is not a regular file")
	case info.Mode()&0o111 == 0:
		return spec.WithHint(fmt.Errorf("not executable (mode %04o): %w", info.Mode().Perm(), fs.ErrPermission), "chmod +x %s", path)
	}
	return nil
}

// explain says what the kernel does not: a program that is there and yet "does
// not exist" lacks its interpreter, and one without "#!" has the wrong format.
func explain(path string, err error) error {
	head := make([]byte, 256)
	f, openErr := os.Open(path)
	if openErr != nil {
		return err
	}
	defer f.Close()
	n, _ := f.Read(head) // an empty head is explained as well
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	switch {
	case errors.Is(err, syscall.ENOENT) && bytes.HasPrefix(line, []byte("#!")):
		if bytes.HasSuffix(line, []byte("\r")) {
			return fmt.Errorf("it has Windows line endings: %w", err)
		}
		interpreter, _, _ := strings.Cut(strings.TrimSpace(string(line[2:])), " ")
		return fmt.Errorf("its interpreter %s is not in the image: %w", interpreter, err)
	case errors.Is(err, syscall.ENOENT) && bytes.HasPrefix(line, []byte("\x7fELF")):
		return fmt.Errorf("its dynamic loader is not in the image: %w", err)
	case errors.Is(err, syscall.ENOEXEC) && bytes.HasPrefix(line, []byte("\x7fELF")):
		return fmt.Errorf("it is for another architecture: %w", err)
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("it is neither a program nor a script that begins with #!: %w", err)
	case errors.Is(err, syscall.E2BIG):
		return fmt.Errorf("arguments and environment are too large: %w", err)
	}
	return err
}

// execShell replaces this process by bash, which sources the layers' profile
// scripts and the app's .profile and is then replaced by the command. A
// command without arguments is a script for the shell; with arguments, each
// word of the command is expanded on its own, so that $VAR works and blanks
// survive.
func (im Image) execShell(argv0 string, s Start, layers [][]string, e env.Env) error {
	bash, err := find("bash", e["PATH"])
	if err != nil {
		if bash, err = find("/bin/bash", ""); err != nil {
			err := fmt.Errorf("start %s: it needs a shell, and there is no bash in this image", s.Command)
			return spec.WithHint(err, "give the command after --, to run it without a shell")
		}
	}
	profiles, err := files(layers, "profile.d", s.Type)
	if err != nil {
		return err
	}
	own := filepath.Join(im.App, ".profile")
	if info, err := os.Stat(own); err == nil && !info.IsDir() {
		if err := regular(info, nil); err != nil {
			return fmt.Errorf("%s: %w", own, err)
		}
		profiles = append(profiles, own)
	}
	argv := append([]string{"bash", "-c", script(profiles, s, bash), argv0, s.Command}, s.Args...)
	return execve(bash, argv, e)
}

const (
	execScript = `exec -a bash %s -c "$@"`
	// The names are unlikely ones because profile scripts share this shell.
	execWords = `cnb_launcher_words=()
for cnb_launcher_word in "$@"; do eval "cnb_launcher_words+=(\"$cnb_launcher_word\")" || exit; done
exec "${cnb_launcher_words[@]}"`
)

// script is what bash runs. Paths are quoted, because an app may be anywhere.
func script(profiles []string, s Start, bash string) string {
	var b strings.Builder
	for _, p := range profiles {
		fmt.Fprintf(&b, "source %s\n", quote(p))
	}
	fmt.Fprintf(&b, "cd %s || exit %d\n", quote(s.Dir), spec.ExitLaunch)
	if len(s.Args) > 0 {
		b.WriteString(execWords)
	} else {
		fmt.Fprintf(&b, execScript, quote(bash))
	}
	return b.String()
}

// quote makes one word of s for a shell.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
