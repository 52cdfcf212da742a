package platform

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestFactsOf(t *testing.T) {
	bundle := filepath.Join(filetree.New(t, map[string]string{"ca.pem": "private"}), "ca.pem")
	f := FactsOf([]string{
		"HTTP_PROXY=http://p:1", "https_proxy=http://q:2", "NO_PROXY=", "no_proxy=a,b", "SSL_CERT_FILE=" + bundle,
		"HOME=/root", "AWS_SECRET_ACCESS_KEY=x", "ALL_PROXY=socks5://s", "odd",
	})
	if diff := cmp.Diff(map[string]string{"HTTP_PROXY": "http://p:1", "https_proxy": "http://q:2", "no_proxy": "a,b"}, f.Proxy); diff != "" {
		t.Error(diff)
	}
	if f.CABundle != bundle {
		t.Errorf("the bundle is %q, not the one that SSL_CERT_FILE names", f.CABundle)
	}
	if diff := cmp.Diff([]string{"HTTP_PROXY=http://p:1", "https_proxy=http://q:2", "no_proxy=a,b"}, f.proxyEnv()); diff != "" {
		t.Error(diff)
	}
	// What SSL_CERT_FILE names in vain is not believed.
	for _, name := range []string{"/no/such/file", filepath.Dir(bundle)} {
		if f := FactsOf([]string{"SSL_CERT_FILE=" + name}); f.CABundle == name {
			t.Errorf("the bundle is %s", name)
		}
	}
}

// Steps get copies: a link in the host's /etc leads nowhere inside, and what a
// step writes does not reach the host. What is not there is left out.
func TestHostMounts(t *testing.T) {
	host := filetree.New(t, map[string]string{"stub/resolv.conf": "nameserver 192.0.2.1\n", "hosts": "127.0.0.1 localhost\n", "bundle.pem": "roots"})
	if err := os.Symlink("stub/resolv.conf", filepath.Join(host, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	f := HostFacts{ResolvConf: filepath.Join(host, "resolv.conf"), Hosts: filepath.Join(host, "hosts"), CABundle: filepath.Join(host, "bundle.pem")}
	dir := filepath.Join(t.TempDir(), "facts")
	mounts, err := f.mounts(dir, []debian.Source{
		{URI: "http://deb.example/debian", Suite: "bookworm", Components: []string{"main", "contrib"}},
		{URI: "https://sec.example/debian", Suite: "bookworm-security", Components: []string{"main"}, Proxy: "http://proxy.example:3128"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range mounts {
		fi, err := os.Lstat(m.Source)
		if err != nil {
			t.Fatal(err)
		}
		if !m.ReadOnly || !fi.Mode().IsRegular() || filepath.Dir(m.Source) != dir {
			t.Errorf("%s is %+v with mode %s: not a read-only copy", m.Target, m, fi.Mode())
		}
		content, err := os.ReadFile(m.Source)
		if err != nil {
			t.Fatal(err)
		}
		got[m.Target] = string(content)
	}
	want := map[string]string{
		"/etc/resolv.conf": "nameserver 192.0.2.1\n",
		"/etc/hosts":       "127.0.0.1 localhost\n",
		caInside:           "roots",
		"/etc/apt/sources.list.d/kiln.sources": "Types: deb\nURIs: http://deb.example/debian\nSuites: bookworm\nComponents: main contrib\n\n" +
			"Types: deb\nURIs: https://sec.example/debian\nSuites: bookworm-security\nComponents: main\n\n",
		"/etc/apt/apt.conf.d/99kiln": "Acquire::https::Proxy \"http://proxy.example:3128\";\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	mounts, err = HostFacts{ResolvConf: "/no/such/file"}.mounts(t.TempDir(), nil)
	if err != nil || len(mounts) != 0 {
		t.Errorf("a host with nothing: %v, %v", mounts, err)
	}
	if _, err := f.mounts("/proc/no/such", nil); err == nil || !strings.Contains(err.Error(), "/proc/no") {
		t.Errorf("a directory that cannot be: %v", err)
	}
}

// Debian's sources of this host go to builders that are Debian alone, and as
// those of their release; what an image says of itself is not believed to be
// a name.
func TestDebianSourcesOfABuilder(t *testing.T) {
	mirror := Request{Mirror: "http://deb.example/debian"}
	sources := func(release string) string {
		return "Types: deb\nURIs: http://deb.example/debian\nSuites: " + release + "\nComponents: main\n\n" +
			"Types: deb\nURIs: http://deb.example/debian-security\nSuites: " + release + "-security\nComponents: main\n\n"
	}
	for release, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=bookworm\n":              sources("bookworm"),
		"ID=debian\nVERSION_CODENAME=trixie\n":                sources("trixie"),
		"ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n": "",
		"ID=alpine\nVERSION_ID=3.20\n":                        "",
		"ID=debian\n":                                         "",
		"ID=debian\nVERSION_CODENAME='x y'\n":                 "",
		"":                                                    "",
	} {
		root := filetree.New(t, map[string]string{"etc/os-release": release})
		b := &build{Platform: &Platform{}, scratch: t.TempDir(), req: mirror, root: builderRoot{Lowers: []string{root}}}
		mounts, err := b.hostMounts()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, m := range mounts {
			content, err := os.ReadFile(m.Source)
			if err != nil || m.Target != aptSourcesInside {
				t.Fatalf("%+v: %v", m, err)
			}
			got += string(content)
		}
		if got != want {
			t.Errorf("a builder with %q has the sources\n%s\nwant\n%s", release, got, want)
		}
	}
}

func TestSourcesOf(t *testing.T) {
	got := sourcesOf([]debian.Source{
		{URI: "a", Suite: "stable"}, {URI: "a", Suite: "trixie"}, {URI: "b", Suite: "trixie-security", Proxy: "p"}, {URI: "a", Suite: "trixie-updates"},
	}, "bookworm")
	want := []debian.Source{{URI: "a", Suite: "bookworm"}, {URI: "b", Suite: "bookworm-security", Proxy: "p"}, {URI: "a", Suite: "bookworm-updates"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUserEnv(t *testing.T) {
	if env := (HostFacts{}).userEnv(); len(env) != 0 {
		t.Errorf("without a bundle: %v", env)
	}
	env := HostFacts{CABundle: "/host/bundle.pem"}.userEnv()
	if diff := cmp.Diff(slices.Sorted(slices.Values(caVariables)), slices.Sorted(maps.Keys(env))); diff != "" {
		t.Error(diff)
	}
	for name, value := range env {
		if value != caInside {
			t.Errorf("%s=%s: a path of the host means nothing inside", name, value)
		}
	}
}

// What the user says beats what the host has, in the files that buildpacks read.
func TestUserBeatsHost(t *testing.T) {
	b := &build{Platform: &Platform{Host: HostFacts{CABundle: "/host/bundle.pem"}}, scratch: t.TempDir()}
	b.req.Env = map[string]string{"PIP_CERT": "/mine.pem", "X": "1"}
	dir, err := b.platformDir()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"PIP_CERT": "/mine.pem", "X": "1", "SSL_CERT_FILE": caInside} {
		content, err := os.ReadFile(filepath.Join(dir, "env", name))
		if err != nil || string(content) != want {
			t.Errorf("%s is %q, %v; want %q", name, content, err, want)
		}
	}
}
