package debian

import (
	"archive/tar"
	"strings"
	"testing"
)

func TestAlternatives(t *testing.T) {
	a := newArchive(t)
	a.add("bookworm", simple("tools", "1", "", "usr/bin/gawk", "usr/bin/mawk", "usr/bin/gcc", "usr/bin/which.debianutils", "usr/bin/xz", "usr/bin/lzma",
		"usr/lib/x86_64-linux-gnu/blas/libblas.so.3"))
	a.add("bookworm", simple("openjdk-99-jre", "1", "", "usr/lib/jvm/java-99/bin/java", "usr/lib/jvm/java-17/bin/java"))
	certs := simple("ca-certificates", "1", "")
	certs.text("usr/share/ca-certificates/mozilla/A.crt", 0o644, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
	a.add("bookworm", certs)
	a.publish()
	l, _, err := a.build("tools", "openjdk-99-jre", "ca-certificates")
	if err != nil {
		t.Fatal(err)
	}
	h, body := l.entries(t, 0)
	for name, target := range map[string]string{
		"usr/bin/awk": "gawk", "usr/bin/cc": "gcc", "usr/bin/which": "which.debianutils", "usr/bin/java": "/usr/lib/jvm/java-99/bin/java",
		"usr/lib/x86_64-linux-gnu/libblas.so.3": "blas/libblas.so.3",
	} {
		if h[name] == nil || h[name].Typeflag != tar.TypeSymlink || h[name].Linkname != target {
			t.Errorf("%s: got %+v, want a link to %s", name, h[name], target)
		}
	}
	if h["usr/bin/c++"] != nil {
		t.Error("c++ leads to a compiler that is not there")
	}
	if h["usr/bin/lzma"].Typeflag != tar.TypeReg {
		t.Error("a package's own file gave way to an alternative")
	}
	if store := body["etc/ssl/certs/java/cacerts"]; !strings.HasPrefix(store, "\xfe\xed\xfe\xed") || !strings.Contains(store, "debian:a.pem") {
		t.Errorf("Java's trust store: %q", store)
	}
}

func TestAccountsFromBasePasswd(t *testing.T) {
	a := newArchive(t)
	d := simple("base-passwd", "1", "", "bin/dash", "bin/bash")
	d.link(tar.TypeSymlink, "bin/sh", "dash")
	d.text("usr/share/base-passwd/passwd.master", 0o644, "root:*:0:0:root:/root:/bin/bash\ngames:*:5:60::/usr/games:/usr/sbin/nologin\n")
	d.text("usr/share/base-passwd/group.master", 0o644, "root:*:0:\ngames:*:60:\n")
	a.add("bookworm", d)
	a.publish()
	l, _, err := a.build("base-passwd")
	if err != nil {
		t.Fatal(err)
	}
	_, body := l.entries(t, 0)
	if want := "root:*:0:0:root:/root:/bin/bash\ngames:*:5:60::/usr/games:/usr/sbin/nologin\ncnb:*:1000:1000:cnb:/home/cnb:/bin/bash\n"; body["etc/passwd"] != want {
		t.Errorf("passwd: %q", body["etc/passwd"])
	}
	if want := "root:*:0:\ngames:*:60:\ncnb:*:1000:\n"; body["etc/group"] != want {
		t.Errorf("group: %q", body["etc/group"])
	}
	if want := "# /etc/shells: valid login shells\n/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/dash\n/usr/bin/dash\n"; body["etc/shells"] != want {
		t.Errorf("shells: %q", body["etc/shells"])
	}
}
