package debian

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// finish writes what maintainer scripts would have made of a layer. What depends
// on the whole image comes with the last one.
func (b *builder) finish(l *layerWriter, last bool) error {
	for _, top := range slices.Sorted(maps.Keys(b.tree.merged)) {
		if b.tree.nodes[top] != nil {
			continue
		}
		if err := l.dir("usr/"+top, 0o755, 0, 0); err != nil {
			return err
		}
		if err := l.symlink(top, "usr/"+top); err != nil {
			return err
		}
	}
	if err := b.bundle(l); err != nil {
		return err
	}
	if !last {
		return nil
	}
	for _, step := range []func(*layerWriter) error{b.directories, b.accounts, b.alternatives, b.java, b.trustStore, b.database} {
		if err := step(l); err != nil {
			return err
		}
	}
	return nil
}

// directories are those that base-files' script and the system's start make.
func (b *builder) directories(l *layerWriter) error {
	for _, d := range []struct {
		name string
		mode int64
	}{
		{"tmp", 0o1777}, {"var/tmp", 0o1777}, {"run", 0o755}, {"run/lock", 0o1777}, {"root", 0o700}, {"home", 0o755},
		{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755}, {"etc", 0o755}, {"mnt", 0o755}, {"opt", 0o755},
		{"usr/local/bin", 0o755}, {"usr/local/lib", 0o755}, {"usr/local/share", 0o755},
	} {
		if err := l.dir(d.name, d.mode, 0, 0); err != nil {
			return err
		}
	}
	if err := l.symlink("var/run", "/run"); err != nil {
		return err
	}
	return l.symlink("var/lock", "/run/lock")
}

// nsswitch is where names are looked up: files, and hosts in the DNS too.
const nsswitch = `passwd:         files
group:          files
shadow:         files
hosts:          files dns
networks:       files
protocols:      files
services:       files
ethers:         files
rpc:            files
`

// accounts writes passwd and group: base-passwd's where the image has that
// package, else root and nobody, and the image's user. There is no shadow file
// and every password is locked.
func (b *builder) accounts(l *layerWriter) error {
	u := b.recipe.User
	passwd, group := b.captured["usr/share/base-passwd/passwd.master"], b.captured["usr/share/base-passwd/group.master"]
	if passwd == nil {
		passwd = []byte("root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
	}
	if group == nil {
		group = []byte("root:*:0:\ntty:*:5:\nstaff:*:50:\nnogroup:*:65534:\n")
	}
	shell := "/usr/sbin/nologin"
	for _, s := range []string{"/bin/sh", "/bin/bash"} {
		if b.tree.lookup(s) != nil {
			shell = s
		}
	}
	if u.Name != "" {
		passwd = fmt.Appendf(bytes.Clone(passwd), "%s:*:%d:%d:%s:%s:%s\n", u.Name, u.UID, u.GID, u.Name, u.Home, shell)
		group = fmt.Appendf(bytes.Clone(group), "%s:*:%d:\n", u.Name, u.GID)
	}
	if err := l.file("etc/passwd", 0o644, passwd); err != nil {
		return err
	}
	if err := l.file("etc/group", 0o644, group); err != nil {
		return err
	}
	if err := l.file("etc/nsswitch.conf", 0o644, []byte(nsswitch)); err != nil {
		return err
	}
	if u.Name != "" {
		if err := l.dir(strings.TrimPrefix(path.Clean(u.Home), "/"), 0o755, u.UID, u.GID); err != nil {
			return err
		}
	}
	shells := "# /etc/shells: valid login shells\n"
	for _, s := range []string{"/bin/sh", "/bin/bash", "/bin/rbash", "/bin/dash"} {
		if b.tree.lookup(s) != nil {
			shells += s + "\n" + "/usr" + s + "\n"
		}
	}
	return l.file("etc/shells", 0o644, []byte(shells))
}

// alternative is a link that update-alternatives would make.
type alternative struct {
	link    string
	targets []string // the first that exists
}

// alternatives that programs and build systems rely on, best first as Debian's
// priorities have it.
var alternatives = []alternative{
	{"usr/bin/awk", []string{"gawk", "mawk", "original-awk"}},
	{"usr/bin/nawk", []string{"gawk", "mawk", "original-awk"}},
	{"usr/bin/cc", []string{"gcc", "clang"}},
	{"usr/bin/c++", []string{"g++", "clang++"}},
	{"usr/bin/c89", []string{"c89-gcc"}},
	{"usr/bin/c99", []string{"c99-gcc"}},
	{"usr/bin/which", []string{"which.debianutils", "which.gnu"}},
	{"usr/bin/pager", []string{"less", "more"}},
	{"usr/bin/lzma", []string{"xz"}},
	{"usr/bin/unlzma", []string{"unxz"}},
	{"usr/bin/lzcat", []string{"xzcat"}},
	{"usr/bin/w", []string{"w.procps"}},
	{"usr/sbin/rmt", []string{"rmt-tar"}},
	{"usr/bin/editor", []string{"nano", "vim.basic", "vim.tiny"}},
	{"usr/bin/vi", []string{"vim.basic", "vim.tiny"}},
	{"usr/bin/nc", []string{"nc.openbsd", "nc.traditional"}},
	{"usr/bin/node", []string{"nodejs"}},
	{"usr/bin/mvn", []string{"../share/maven/bin/mvn"}},
	{"usr/bin/mvnDebug", []string{"../share/maven/bin/mvnDebug"}},
}

// libraryAlternatives are shared libraries that have several implementations,
// each in a directory of its own below that of the architecture's libraries.
var libraryAlternatives = []alternative{
	{"libblas.so.3", []string{"openblas-pthread/libblas.so.3", "openblas-openmp/libblas.so.3", "openblas-serial/libblas.so.3", "atlas/libblas.so.3", "blas/libblas.so.3"}},
	{"liblapack.so.3", []string{"openblas-pthread/liblapack.so.3", "openblas-openmp/liblapack.so.3", "openblas-serial/liblapack.so.3", "atlas/liblapack.so.3", "lapack/liblapack.so.3"}},
}

func (b *builder) alternatives(l *layerWriter) error {
	alternatives := slices.Clone(alternatives)
	dir := "usr/lib/" + machines[b.result.Lock.Arch].triplet + "/"
	for _, a := range libraryAlternatives {
		alternatives = append(alternatives, alternative{dir + a.link, a.targets})
	}
	for _, a := range alternatives {
		for _, target := range a.targets {
			if b.tree.nodes[path.Join(path.Dir(a.link), target)] == nil || b.tree.nodes[a.link] != nil {
				continue
			}
			if err := l.symlink(a.link, target); err != nil {
				return err
			}
		}
	}
	return nil
}

// java links the newest Java's tools into usr/bin.
func (b *builder) java(l *layerWriter) error {
	var tools []string
	for p := range b.tree.nodes {
		if ok, _ := path.Match("usr/lib/jvm/*/bin/*", p); ok { // the pattern is well formed
			tools = append(tools, p)
		}
	}
	slices.Sort(tools)
	slices.Reverse(tools)
	for _, p := range tools {
		if err := l.symlink("usr/bin/"+path.Base(p), "/"+p); err != nil {
			return err
		}
	}
	return nil
}
