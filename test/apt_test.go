package test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// TestAptWithoutSubIDs runs Debian's package manager as root of a user namespace that has a single id,
// with packages whose scripts give files to others, set group bits and set capabilities: all of it is
// recorded.
func TestAptWithoutSubIDs(t *testing.T) {
	dir := t.TempDir()
	root, host := filepath.Join(dir, "root"), filepath.Join(dir, "host")
	for _, d := range []string{root, host} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mounts := debianRoot(t, root, host)
	w, report, err := sandbox.Start(t.Context(), sandbox.Options{Tier: sandbox.Tier1F, Scratch: []string{dir}, Executable: filepath.Join(bin, "kiln")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(w.Remove(context.Background(), filepath.Join(dir, "up")), w.Close()); err != nil {
			t.Error(err)
		}
	}()
	upper := filepath.Join(dir, "up/upper")
	var out bytes.Buffer
	err = w.In(sandbox.Spec{Root: sandbox.Overlay{Lowers: []string{root}, Upper: upper, Work: filepath.Join(dir, "up/work")}, Mounts: mounts}).Run(t.Context(), sandbox.Command{
		Path: "/bin/sh", Args: []string{"sh", "-c", "apt-get update && apt-get install -y --no-install-recommends openssh-client iputils-ping libcap2-bin nginx-light"},
		Env:    append(proxies(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"),
		Stdout: &out, Stderr: &out,
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", report.Detail, err, out.String())
	}
	for path, want := range map[string]struct {
		mode  os.FileMode
		owner string
		caps  string // what is permitted
	}{
		"usr/bin/ssh-agent":           {0o755 | os.ModeSetgid, "0:" + groupOf(t, upper, "_ssh"), ""},
		"usr/bin/ping":                {0o755, "", "00200000"},
		"usr/lib/openssh/ssh-keysign": {0o755 | os.ModeSetuid, "", ""},
		"var/log/nginx":               {0o755 | os.ModeDir, "0:4", ""},
		"var/log/nginx/access.log":    {0o640, "33:4", ""},
	} {
		name := filepath.Join(upper, path)
		if fi, err := os.Lstat(name); err != nil || fi.Mode() != want.mode {
			t.Errorf("%s: %v, %v, want mode %v", path, fi, err, want.mode)
		}
		if got := attribute(t, name, sandbox.OwnerXattr); got != want.owner {
			t.Errorf("%s belongs to %q, want %q", path, got, want.owner)
		}
		// Seen from outside they are either version 2 or, with the number of the root that gave them, 3.
		if got := attribute(t, name, "security.capability"); len(got) >= 8 && hex.EncodeToString([]byte(got[4:8])) != want.caps || (got == "") != (want.caps == "") {
			t.Errorf("%s has capabilities %q, want %q", path, got, want.caps)
		}
	}
}

// TestOneNameForOwners: what a step records is what layers are made of, and the other way round.
func TestOneNameForOwners(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := layer.SetOwner(unix.AT_FDCWD, file, layer.Owner{UID: 42, GID: 101}, layer.Record); err != nil {
		t.Fatal(err)
	}
	if got := attribute(t, file, sandbox.OwnerXattr); got != "42:101" {
		t.Errorf("a layer's owner is %q to the sandbox", got)
	}
}

// debianRoot makes a Debian with apt in root, and returns what a step needs of this host.
func debianRoot(t *testing.T, root, host string) []sandbox.Mount {
	t.Helper()
	sources, err := debian.Sources("/")
	if err != nil {
		t.Fatal(err)
	}
	suite, err := debian.HostSuite("/")
	if err != nil {
		t.Fatal(err)
	}
	c, err := debian.NewClient(debian.Options{Sources: sources})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	recipe := debian.Recipe{Request: debian.Request{Suite: suite, Arch: debian.HostArch(), Groups: []debian.Group{{Name: "apt", Packages: []string{
		"base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "init-system-helpers",
		"libc-bin", "libpam-modules", "libpam-runtime", "login", "mawk", "ncurses-base", "passwd", "perl-base", "sed", "sysvinit-utils", "tar", "util-linux", "apt", "adduser", "debian-archive-keyring", "ca-certificates"}}}},
		User: debian.CNB, KeepSetuid: true}
	_, err = c.Build(t.Context(), recipe, func(_ string, write func(io.Writer) error) error {
		r, w := io.Pipe()
		applied := make(chan error, 1)
		go func() {
			err := layer.ApplyPlain(t.Context(), root, r, layer.Limits{})
			r.CloseWithError(err)
			applied <- err
		}()
		err := write(w)
		w.CloseWithError(err)
		return errors.Join(err, <-applied)
	})
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	conf := "APT::Sandbox::User \"root\";\n"
	for _, s := range sources {
		fmt.Fprintf(&list, "deb %s %s %s\n", s.URI, s.Suite, strings.Join(s.Components, " "))
		if scheme, _, _ := strings.Cut(s.URI, "://"); s.Proxy != "" {
			conf += fmt.Sprintf("Acquire::%s::Proxy %q;\n", scheme, s.Proxy)
		}
	}
	var mounts []sandbox.Mount
	for target, body := range map[string]string{"/etc/apt/sources.list": list.String(), "/etc/apt/apt.conf.d/99kiln": conf} {
		file := filepath.Join(host, filepath.Base(target))
		if err := os.WriteFile(file, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, sandbox.Mount{Source: file, Target: target, ReadOnly: true})
	}
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"} {
		mounts = append(mounts, sandbox.Mount{Source: file, Target: file, ReadOnly: true, Optional: true})
	}
	return mounts
}

func attribute(t *testing.T, path, name string) string {
	t.Helper()
	buf := make([]byte, 100)
	n, err := unix.Lgetxattr(path, name, buf)
	if err == unix.ENODATA {
		return ""
	}
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	return string(buf[:n])
}

// groupOf is the number of a group in the /etc/group that a step left.
func groupOf(t *testing.T, upper, name string) string {
	t.Helper()
	groups, err := os.ReadFile(filepath.Join(upper, "etc/group"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		if f := strings.Split(line, ":"); f[0] == name {
			return f[2]
		}
	}
	t.Fatalf("group %s is missing", name)
	return ""
}
