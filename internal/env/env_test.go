package env

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestFromContainer(t *testing.T) {
	conform.Covers(t, 55)
	got := FromContainer([]string{
		"PATH=/bin", "HOME=/home/cnb", "SECRET=x", "CNB_REGISTRY_AUTH={}", "CNB_PLATFORM_API=0.15", "CNB_STACK_ID=s",
		"http_proxy=p", "HTTPS_PROXY=q", "no_proxy=", "LD_LIBRARY_PATH=/lib", "LIBRARY_PATH=a", "CPATH=b",
		"PKG_CONFIG_PATH=c", "HOSTNAME=h", "Path=x", "PATHX=y", "=odd", "noequals", "SSL_CERT_FILE=/x",
	})
	want := Env{
		"PATH": "/bin", "HOME": "/home/cnb", "CNB_STACK_ID": "s", "http_proxy": "p", "HTTPS_PROXY": "q", "no_proxy": "",
		"LD_LIBRARY_PATH": "/lib", "LIBRARY_PATH": "a", "CPATH": "b", "PKG_CONFIG_PATH": "c", "HOSTNAME": "h",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFromLaunch(t *testing.T) {
	conform.Covers(t, 188)
	got := FromLaunch([]string{
		"PATH=/cnb/process:/a::/cnb/lifecycle:/cnb/process/:/b:/cnb/processes", "CNB_APP_DIR=x", "CNB_LAYERS_DIR=x",
		"CNB_PROCESS_TYPE=x", "CNB_PLATFORM_API=0.15", "CNB_DEPRECATION_MODE=quiet", "CNB_EXEC_ENV=test", "ANY=a=b", "=x",
	})
	want := Env{"PATH": "/a::/b:/cnb/processes", "CNB_EXEC_ENV": "test", "ANY": "a=b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := FromLaunch([]string{"A=b"}); len(got) != 1 {
		t.Errorf("%v: variables from nowhere", got)
	}
}

func TestList(t *testing.T) {
	e := Env{"B": "2", "A": "", "a": "x=y"}
	if diff := cmp.Diff([]string{"A=", "B=2", "a=x=y"}, e.List()); diff != "" {
		t.Error(diff)
	}
	c := e.Clone()
	c["B"] = "3"
	if e["B"] != "2" {
		t.Error("a clone shares its variables")
	}
}

func TestAddLayerDirs(t *testing.T) {
	conform.Covers(t, 108)
	one := filetree.New(t, map[string]string{"bin/": "", "lib/": "", "include/": "", "pkgconfig/": "", "share/": ""})
	two := filetree.New(t, map[string]string{"bin/": "", "lib": "a file"})
	build := Env{"PATH": "/bin", "LD_LIBRARY_PATH": ""}
	launch := build.Clone()
	for _, layer := range []string{one, two} {
		if err := build.AddLayerDirs(layer, false); err != nil {
			t.Error(err)
		}
		if err := launch.AddLayerDirs(layer, true); err != nil {
			t.Error(err)
		}
	}
	if err := build.AddLayerDirs(filepath.Join(two, "missing"), false); err != nil {
		t.Error(err)
	}
	want := Env{
		"PATH": two + "/bin:" + one + "/bin:/bin", "LD_LIBRARY_PATH": one + "/lib", "LIBRARY_PATH": one + "/lib",
		"CPATH": one + "/include", "PKG_CONFIG_PATH": one + "/pkgconfig",
	}
	if diff := cmp.Diff(want, build); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Env{"PATH": want["PATH"], "LD_LIBRARY_PATH": want["LD_LIBRARY_PATH"]}, launch); diff != "" {
		t.Error(diff)
	}
}

func TestAddDir(t *testing.T) {
	conform.Covers(t, 109, 110, 114)
	tests := []struct {
		name  string
		start Env
		files map[string]string
		want  Env
	}{
		{"no suffix overrides", Env{"A": "old"}, map[string]string{"A": " new\n"}, Env{"A": " new\n"}},
		{"override", Env{"A": "old"}, map[string]string{"A.override": ""}, Env{"A": ""}},
		{"default", Env{"A": "old", "E": ""}, map[string]string{"A.default": "x", "B.default": "y", "E.default": "z"}, Env{"A": "old", "B": "y", "E": "z"}},
		{"append", Env{"A": "old"}, map[string]string{"A.append": "new", "B.append": "b"}, Env{"A": "oldnew", "B": "b"}},
		{"prepend", Env{"A": "old"}, map[string]string{"A.prepend": "new", "B.prepend": "b"}, Env{"A": "newold", "B": "b"}},
		{"delimiter", Env{"A": "old", "P": "old"}, map[string]string{"A.append": "new", "A.delim": ", ", "P.prepend": "new", "P.delim": ":"}, Env{"A": "old, new", "P": "new:old"}},
		{"no delimiter when empty", Env{"A": ""}, map[string]string{"A.append": "a", "A.delim": ":", "B.prepend": "b", "B.delim": ":"}, Env{"A": "a", "B": "b"}},
		{"delimiter alone", Env{"A": "old"}, map[string]string{"A.delim": ":"}, Env{"A": "old"}},
		{"in the order of file names", Env{"A": "0"}, map[string]string{"A.append": "1", "A.override": "2", "A.prepend": "3"}, Env{"A": "32"}},
		{"plain before suffixes", Env{}, map[string]string{"A": "1", "A.append": "2"}, Env{"A": "12"}},
		{"unknown suffix", Env{"A": "old"}, map[string]string{"A.bak": "x", "A.append.bak": "x", "A.": "x", ".gitkeep": "", ".append": "x"}, Env{"A": "old"}},
		{"directories", Env{}, map[string]string{"web/A": "x", "B": "y"}, Env{"B": "y"}},
	}
	for _, tt := range tests {
		dir := filetree.New(t, tt.files)
		if err := tt.start.AddDir(dir); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, tt.start); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestSymlinks(t *testing.T) {
	dir := filetree.New(t, map[string]string{"real/A": "a", "env/": ""})
	for link, target := range map[string]string{"A": "../real/A", "D": "../real", "X": "../nowhere"} {
		if err := os.Symlink(target, filepath.Join(dir, "env", link)); err != nil {
			t.Fatal(err)
		}
	}
	want := Env{"A": "a"}
	e, p := Env{}, Env{}
	if err := e.AddDir(filepath.Join(dir, "env")); err != nil {
		t.Error(err)
	}
	if err := p.AddPlatform(dir); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, e) + cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
}

func TestAddPlatform(t *testing.T) {
	conform.Covers(t, 112, 114)
	dir := filetree.New(t, map[string]string{
		"env/PATH": "/user", "env/CPATH": "/user/include", "env/A": "user\n", "env/B.append": "whole name", "env/dir/C": "x", "other/D": "x",
	})
	e := Env{"PATH": "/bin", "A": "old", "B": "old"}
	if err := e.AddPlatform(dir); err != nil {
		t.Fatal(err)
	}
	want := Env{"PATH": "/user:/bin", "CPATH": "/user/include", "A": "user\n", "B": "old", "B.append": "whole name"}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
}

func TestAddOperator(t *testing.T) {
	conform.Covers(t, 113)
	dir := filetree.New(t, map[string]string{
		"env/A": "operator", "env/B": "operator", "env/C.override": "operator", "env/D.append": "2", "env/D.delim": ",", "env.build/E": "x",
	})
	e := Env{"A": "user", "C": "user", "D": "1"}
	if err := e.AddOperator(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Env{"A": "user", "B": "operator", "C": "operator", "D": "1,2"}, e); diff != "" {
		t.Error(diff)
	}
}

func TestNothingThere(t *testing.T) {
	file := filepath.Join(filetree.New(t, map[string]string{"env": "a file"}), "env")
	for _, dir := range []string{"/no/such/dir", file, filepath.Dir(file)} {
		e := Env{}
		if err := e.AddPlatform(dir); err != nil {
			t.Error(err)
		}
		if err := e.AddOperator(dir); err != nil {
			t.Error(err)
		}
		if dir != filepath.Dir(file) {
			if err := e.AddDir(dir); err != nil {
				t.Error(err)
			}
		}
		if len(e) > 0 {
			t.Errorf("%s gave %v", dir, e)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"NUL byte":                   {"env/A": "a\x00b"},
		"longer than the 131072":     {"env/A": strings.Repeat("x", maxFile+1)},
		"cannot be the name":         {"env/A=B": "x"},
		"env/A.delim: contains a NU": {"env/A.append": "x", "env/A.delim": "\x00"},
	} {
		dir := filetree.New(t, files)
		operator, direct := Env{}.AddOperator(dir), Env{}.AddDir(filepath.Join(dir, "env"))
		for _, err := range []error{operator, direct} {
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), dir+"/env/A") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := (Env{}).AddDir(filetree.New(t, map[string]string{"A": strings.Repeat("x", maxFile)})); err != nil {
		t.Errorf("the longest value: %v", err)
	}
}

// A pipe must be refused, not waited for.
func TestPipe(t *testing.T) {
	dir := filetree.New(t, map[string]string{"env/": ""})
	if err := syscall.Mkfifo(filepath.Join(dir, "env", "A"), 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Env{}.AddPlatform(dir) }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "must be a regular file") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("blocked on a pipe")
	}
}

// Layers accumulate in order: the later layer's override wins, the earlier
// one's default does, and prepend and append are mirror images.
func TestLayersInOrder(t *testing.T) {
	conform.Covers(t, 109, 110)
	rapid.Check(t, func(r *rapid.T) {
		values := rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,3}`), 1, 5).Draw(r, "values")
		e := Env{}
		for _, v := range values {
			dir, err := os.MkdirTemp("", "kiln-env-")
			if err != nil {
				r.Fatal(err)
			}
			defer os.RemoveAll(dir)
			for name, body := range map[string]string{"O": v, "D.default": v, "P.prepend": v, "P.delim": ":", "A.append": v, "A.delim": ":"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
					r.Fatal(err)
				}
			}
			if err := e.AddDir(dir); err != nil {
				r.Fatal(err)
			}
		}
		backwards := slices.Clone(values)
		slices.Reverse(backwards)
		want := Env{"O": backwards[0], "D": values[0], "A": strings.Join(values, ":"), "P": strings.Join(backwards, ":")}
		if !maps.Equal(want, e) {
			r.Fatalf("got %v, want %v", e, want)
		}
	})
}

// model is the environment after a directory of files, variable by variable:
// of one variable's files in a directory the plain one is first, then come
// append, default, override and prepend, as their names sort.
func model(before Env, files map[string]string, plain string) Env {
	e := before.Clone()
	for file := range files {
		name, _, _ := strings.Cut(file, ".")
		if name == "" {
			continue // .gitkeep
		}
		has := func(suffix string) bool { _, ok := files[name+suffix]; return ok }
		value, set := before[name]
		if has("") && (plain == "override" || value == "") {
			value, set = files[name], true
		}
		delim := func() string {
			if value == "" {
				return ""
			}
			return files[name+".delim"]
		}
		if has(".append") {
			value, set = value+delim()+files[name+".append"], true
		}
		if has(".default") && value == "" {
			value, set = files[name+".default"], true
		}
		if has(".override") {
			value, set = files[name+".override"], true
		}
		if has(".prepend") {
			value, set = files[name+".prepend"]+delim()+value, true
		}
		if set {
			e[name] = value
		}
	}
	return e
}

// Whatever the names and bytes of the files: no panic, what the model says, and
// variables that a process can be given.
func FuzzEnvDir(f *testing.F) {
	f.Add("A/A.append/B.default/A.prepend/A.delim", "x/y\n/z/ w /:", "A=0\nB=")
	f.Add("A.delim/A.prepend/A.append.bak/.x/=", ":/\x00///", "")
	f.Add("A/A./A.override/B.prepend/B.append/B.delim", "/1/2/3/4/, ", "B=old")
	f.Fuzz(func(t *testing.T, names, bodies, start string) {
		dir, files := t.TempDir(), map[string]string{}
		contents := strings.Split(bodies, "/")
		for i, name := range strings.Split(names, "/") {
			if name == "" || name == "." || name == ".." || strings.ContainsRune(name, 0) || len(name) > 255 || i >= len(contents) || i > 20 {
				return
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(contents[i]), 0o644); err != nil {
				t.Fatal(err)
			}
			files[name] = contents[i]
		}
		before := parse(strings.Split(start, "\n"))
		for plain, add := range map[string]func(Env) error{
			"override": func(e Env) error { return e.AddDir(dir) },
			"default":  func(e Env) error { return e.addDir(dir, "default") },
		} {
			e := before.Clone()
			if add(e) != nil {
				continue // a name or value that no variable can have
			}
			if diff := cmp.Diff(model(before, files, plain), e); diff != "" {
				t.Errorf("plain is %s (-model +addDir):\n%s", plain, diff)
			}
			if diff := cmp.Diff(parse(e.List()), e); diff != "" {
				t.Error(diff)
			}
		}
	})
}

// The same for directories that buildpacks could have written.
func TestEnvDirEqualsModel(t *testing.T) {
	conform.Covers(t, 109, 110, 113, 114)
	rapid.Check(t, func(r *rapid.T) {
		value := rapid.SampledFrom([]string{"", "x", " y ", "z\n", ":", "$HOME `id`", "a\nb\n"})
		name := rapid.Custom(func(r *rapid.T) string {
			return rapid.SampledFrom([]string{"A", "B", "PATH"}).Draw(r, "variable") +
				rapid.SampledFrom([]string{"", ".append", ".default", ".delim", ".override", ".prepend", ".other", ".append.x", "."}).Draw(r, "suffix")
		})
		files := rapid.MapOfN(name, value, 0, 12).Draw(r, "files")
		start := Env(rapid.MapOfN(rapid.SampledFrom([]string{"A", "B", "PATH"}), value, 0, 3).Draw(r, "start"))
		dir, err := os.MkdirTemp("", "kiln-env-")
		if err != nil {
			r.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Mkdir(filepath.Join(dir, "env"), 0o755); err != nil {
			r.Fatal(err)
		}
		for name, body := range files {
			if err := os.WriteFile(filepath.Join(dir, "env", name), []byte(body), 0o644); err != nil {
				r.Fatal(err)
			}
		}
		buildpack, operator := start.Clone(), start.Clone()
		if err := errors.Join(buildpack.AddDir(filepath.Join(dir, "env")), operator.AddOperator(dir)); err != nil {
			r.Fatal(err)
		}
		if diff := cmp.Diff(model(start, files, "override"), buildpack); diff != "" {
			r.Fatalf("a buildpack's (-model +AddDir):\n%s", diff)
		}
		if diff := cmp.Diff(model(start, files, "default"), operator); diff != "" {
			r.Fatalf("the operator's (-model +AddOperator):\n%s", diff)
		}
	})
}
