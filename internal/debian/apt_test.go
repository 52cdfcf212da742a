package debian

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestSources(t *testing.T) {
	main := []string{"main"}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []Source
	}{
		{"one line", map[string]string{"etc/apt/sources.list": `
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a.example/debian/ bookworm main contrib # ours
deb-src http://a.example/debian bookworm main
deb http://a.example/debian-security bookworm-security main
`}, []Source{{URI: "http://a.example/debian", Suite: "bookworm", Components: main},
			{URI: "http://a.example/debian-security", Suite: "bookworm-security", Components: main}}},
		{"deb822", map[string]string{"etc/apt/sources.list.d/debian.sources": `# the archive
Types: deb deb-src
URIs: https://b.example/debian
Suites: trixie
 trixie-updates
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: trixie
Components: main
`}, []Source{{URI: "https://b.example/debian", Suite: "trixie", Components: main},
			{URI: "https://b.example/debian", Suite: "trixie-updates", Components: main}}},
		{"third parties", map[string]string{"etc/apt/sources.list": `
deb http://ok.example/debian bookworm main
deb https://apt.vendor.example vendor-bookworm main
deb https://download.vendor.example/linux/debian bookworm stable
deb [signed-by=/etc/apt/keyrings/vendor.gpg] https://vendor.example bookworm main
deb cdrom:[Debian 12] bookworm main
deb tor+http://x.onion/debian bookworm main
`}, []Source{{URI: "http://ok.example/debian", Suite: "bookworm", Components: main}}},
		{"mirror list", map[string]string{
			"etc/apt/sources.list.d/a.sources": "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n",
			"etc/apt/mirrors/debian.list":      "# mirrors\nhttp://one.example/debian\tpriority:1\nhttp://two.example/debian\n",
		}, []Source{{URI: "http://one.example/debian", Suite: "bookworm", Components: main},
			{URI: "http://two.example/debian", Suite: "bookworm", Components: main}}},
		{"proxy", map[string]string{
			"etc/apt/sources.list": "deb http://a.example/debian bookworm main\ndeb https://b.example/debian bookworm main\ndeb http://near.example/debian bookworm main\n",
			"etc/apt/apt.conf.d/01proxy": `// comment
Acquire { http { Proxy "http://proxy.example:3128"; /* not this one: */ Proxy::near.example DIRECT; }; };
Acquire::https::Proxy "http://tls.example:3128"; # end`,
			"etc/apt/apt.conf.d/02proxy.bak": `Acquire::http::Proxy "http://wrong.example";`,
		}, []Source{{URI: "http://a.example/debian", Suite: "bookworm", Components: main, Proxy: "http://proxy.example:3128"},
			{URI: "https://b.example/debian", Suite: "bookworm", Components: main, Proxy: "http://tls.example:3128"},
			{URI: "http://near.example/debian", Suite: "bookworm", Components: main, Proxy: "DIRECT"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Sources(filetree.New(t, c.files))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSourcesErrors(t *testing.T) {
	_, err := Sources(filetree.New(t, map[string]string{"etc/apt/sources.list": "deb http://x.example stable-ish main\n"}))
	if err == nil || !strings.Contains(spec.HintOf(err), "--mirror") {
		t.Errorf("no Debian entry: got %v, want an error with a hint", err)
	}
	_, err = Sources(filetree.New(t, map[string]string{"etc/apt/sources.list": "\ndeb http://x.example\n"}))
	if err == nil || !strings.Contains(err.Error(), "etc/apt/sources.list:2") {
		t.Errorf("half an entry: got %v, want file and line", err)
	}
}

func TestPocketsAddUpdatesAndSecurity(t *testing.T) {
	type addresses map[string][]string
	for _, c := range []struct {
		name    string
		sources []Source
		suite   string
		want    addresses
	}{
		{"main alone", []Source{{URI: "http://m/debian", Suite: "bookworm"}}, "bookworm", addresses{
			"bookworm": {"http://m/debian"}, "bookworm-updates": {"http://m/debian"}, "bookworm-security": {"http://m/debian-security"}}},
		{"for a mirror", ForMirror("http://m/debian/", "trixie"), "trixie", addresses{
			"trixie": {"http://m/debian"}, "trixie-updates": {"http://m/debian"}, "trixie-security": {"http://m/debian-security"}}},
		{"another suite than the host's", []Source{{URI: "http://m/debian", Suite: "bookworm"}, {URI: "http://sec", Suite: "bookworm-security"}},
			"trixie", addresses{"trixie": {"http://m/debian"}, "trixie-updates": {"http://m/debian"}, "trixie-security": {"http://sec"}}},
		{"exact first", []Source{{URI: "http://a", Suite: "bookworm"}, {URI: "http://b", Suite: "trixie"}}, "trixie", addresses{
			"trixie": {"http://b", "http://a"}, "trixie-updates": {"http://b", "http://a"}, "trixie-security": {"http://b-security", "http://a-security"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ps, err := pockets(c.sources, c.suite)
			if err != nil {
				t.Fatal(err)
			}
			got := addresses{}
			for _, p := range ps {
				for _, s := range p.from {
					got[p.suite] = append(got[p.suite], s.URI)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
	if _, err := pockets([]Source{{URI: "http://s", Suite: "bookworm-security"}}, "bookworm"); err == nil {
		t.Error("security alone must be an error")
	}
}

func TestHostSuite(t *testing.T) {
	got, err := HostSuite(filetree.New(t, map[string]string{"etc/os-release": "ID=debian\nVERSION_CODENAME=\"trixie\"\n"}))
	if err != nil || got != "trixie" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := HostSuite(filetree.New(t, map[string]string{"etc/os-release": "ID=alpine\n"})); err == nil {
		t.Error("another distribution must be an error")
	}
}
