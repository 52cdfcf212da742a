package cpython

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

func TestConstraint(t *testing.T) {
	tests := map[string]struct{ yes, no []string }{
		"3.11":         {[]string{"3.11.2", "3.11", "3.11.0"}, []string{"3.1", "3.12.1", "2.7.18"}},
		"3.11.*":       {[]string{"3.11.2", "3.11"}, []string{"3.10.1"}},
		"3.x":          {[]string{"3.11.2", "3.13"}, []string{"2.7"}},
		"*":            {[]string{"3.11.2"}, nil},
		"==3.11.2":     {[]string{"3.11.2", "3.11"}, []string{"3.11.3", "3.12"}},
		"3.11.9":       {[]string{"3.11", "3.11.9"}, []string{"3.11.2"}},
		">=3.9,<3.12":  {[]string{"3.9.0", "3.11.2", "3.11"}, []string{"3.8.19", "3.12.0", "3.12"}},
		">= 3.9, <4":   {[]string{"3.13.5"}, []string{"4.0.0"}},
		">3.11":        {[]string{"3.12", "3.11.1"}, []string{"3.10.9", "3.11.0"}},
		">3.11.*":      {[]string{"3.12.0"}, []string{"3.11.2"}},
		"<=3.11":       {[]string{"3.11.0", "3.10.5"}, []string{"3.11.2", "3.12"}},
		"<3.11":        {[]string{"3.10.9"}, []string{"3.11", "3.11.2"}},
		"~=3.11":       {[]string{"3.11.2", "3.13.0"}, []string{"3.10.0", "4.0.0"}},
		"~=3.11.2":     {[]string{"3.11.2", "3.11.9"}, []string{"3.11.1", "3.12.0"}},
		"~3.11":        {[]string{"3.11.2"}, []string{"3.12.0", "3.10.0"}},
		"~3.11.4":      {[]string{"3.11.4"}, []string{"3.11.2", "3.12.0"}},
		"^3.10":        {[]string{"3.11.2"}, []string{"3.9.9", "4.0"}},
		"!=3.10.*":     {[]string{"3.11.2"}, []string{"3.10.4"}},
		">=3.9,!=3.11": {[]string{"3.10.1"}, []string{"3.11.2"}},
		"v3.11":        {[]string{"3.11.2"}, nil},
	}
	for text, tt := range tests {
		c, err := parseConstraint(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		for _, v := range tt.yes {
			if !c.allows(v) {
				t.Errorf("%q does not allow %s", text, v)
			}
		}
		for _, v := range tt.no {
			if c.allows(v) {
				t.Errorf("%q allows %s", text, v)
			}
		}
	}
	for _, bad := range []string{"", " ", ",", "latest", "3.y", "=>3", "3..1", "-1", "3.11 3.12"} {
		if _, err := parseConstraint(bad); err == nil {
			t.Errorf("%q is read as a constraint", bad)
		}
	}
}

// FuzzConstraint: reading and asking never panic, and what can be read allows
// the same for the same question.
func FuzzConstraint(f *testing.F) {
	for _, s := range []string{"3.11.*", ">=3,<4", "~=3", "^", "!=3.*", "*"} {
		f.Add(s, "3.11.2")
	}
	f.Fuzz(func(t *testing.T, text, version string) {
		c, err := parseConstraint(text)
		if err != nil {
			return
		}
		// A list of clauses allows what every clause allows.
		all := true
		for _, cl := range c {
			all = all && constraint{cl}.allows(version)
		}
		if all != c.allows(version) {
			t.Errorf("%q: the clauses of it and the whole differ on %q", text, version)
		}
	})
}

func TestUpstream(t *testing.T) {
	for v, want := range map[string]string{"3.11.2-6+deb12u9": "3.11.2", "1:3.13.5-2": "3.13.5", "3.13.5": "3.13.5"} {
		if got := upstream(v); got != want {
			t.Errorf("upstream(%s) = %s, want %s", v, got, want)
		}
	}
}

func TestLayout(t *testing.T) {
	to := layout("3.11", "x86_64-linux-gnu")
	for from, want := range map[string]string{
		"usr/bin/python3.11":                        "bin/python3.11",
		"usr/bin/pdb3.11":                           "",
		"usr/lib/python3.11/os.py":                  "lib/python3.11/os.py",
		"usr/lib/python3.11/sitecustomize.py":       "",
		"usr/lib/python3.11/EXTERNALLY-MANAGED":     "",
		"usr/lib/python3.11/lib-dynload/_ssl.x.so":  "lib/python3.11/lib-dynload/_ssl.x.so",
		"usr/lib/python3.11/lib-dynload/nis.x.so":   "",
		"usr/lib/python3.11/config-3.11-x/Makefile": "lib/python3.11/config-3.11-x/Makefile",
		"usr/lib/python3.11/config-3.11-x/libp.a":   "",
		"usr/lib/x86_64-linux-gnu/libz.so.1":        "lib/libz.so.1",
		"usr/lib/x86_64-linux-gnu/libdb-5.3.so":     "lib/libdb-5.3.so",
		"usr/lib/x86_64-linux-gnu/libpython3.11.so": "",
		"usr/lib/x86_64-linux-gnu/pkgconfig/x.pc":   "",
		"usr/include/python3.11/Python.h":           "include/python3.11/Python.h",
		"usr/share/python-wheels/pip-1.whl":         "share/python-wheels/pip-1.whl",
		"usr/share/doc/zlib1g/copyright":            "share/doc/zlib1g/copyright",
		"usr/share/doc/zlib1g/changelog.gz":         "",
		"etc/python3.11/sitecustomize.py":           "",
		"usr/lib/python3.110/os.py":                 "",
	} {
		if got := to(from); got != want {
			t.Errorf("%s goes to %q, want %q", from, got, want)
		}
	}
}

func TestSuite(t *testing.T) {
	for _, tt := range []struct {
		target kit.Target
		want   string
		err    string
	}{
		{kit.Target{DistroName: "debian", DistroVersion: "12"}, "bookworm", ""},
		{kit.Target{DistroName: "debian", DistroVersion: "13.1"}, "trixie", ""},
		{kit.Target{DistroName: "debian", DistroVersion: "11"}, "", "no CPython for Debian 11"},
		{kit.Target{DistroName: "ubuntu", DistroVersion: "22.04"}, "", "no CPython for ubuntu 22.04"},
	} {
		got, err := suite(tt.target)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("suite(%v) = %q, %v", tt.target, got, err)
		}
	}
}

func TestRelocate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a$1b")
	lib := filepath.Join(dir, "lib", "python3.11")
	for _, d := range []string{lib, filepath.Join(dir, "bin")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(lib, "_sysconfigdata__x86_64-linux-gnu.py")
	before := "build_time_vars = {'CC': 'x /usr/y',\n 'INCLUDEPY': '/usr/include/python3.11',\n 'WHEEL_PKG_DIR': '/usr/share/python-wheels/',\n 'INCLUDEDIR': '/usr/include',\n 'prefix': '/usr'}\n"
	if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := relocate(dir, "3.11"); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(file)
	want := "build_time_vars = {'CC': 'x /usr/y',\n 'INCLUDEPY': '" + dir + "/include/python3.11',\n 'WHEEL_PKG_DIR': '" + dir + "/share/python-wheels/',\n 'INCLUDEDIR': '" + dir + "/include',\n 'prefix': '/usr'}\n"
	if err != nil || string(after) != want {
		t.Errorf("got %s, %v\nwant %s", after, err, want)
	}
	for _, name := range []string{"python", "python3"} {
		if target, err := os.Readlink(filepath.Join(dir, "bin", name)); err != nil || target != "python3.11" {
			t.Errorf("bin/%s: %q, %v", name, target, err)
		}
	}
	if err := os.WriteFile(file, []byte("build_time_vars = {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := relocate(dir, "3.11"); err == nil {
		t.Error("a library without WHEEL_PKG_DIR passes: venv would look in /usr")
	}
}
