package platform

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// newPlatform has an empty store and collects events.
func newPlatform(t *testing.T) (*Platform, *[]event.Event) {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	var events []event.Event
	return &Platform{Store: st, Arch: "amd64", Events: event.Func(func(e event.Event) { events = append(events, e) })}, &events
}

func TestReadProject(t *testing.T) {
	const one = "[_]\nschema-version = \"0.2\"\nname = \"one\"\n"
	const other = "[_]\nschema-version = \"0.2\"\nname = \"other\"\n"
	app := filetree.New(t, map[string]string{"project.toml": one, "other.toml": other, "broken.toml": "[_\n"})
	bare := t.TempDir()
	for _, x := range []struct{ path, descriptor, want string }{
		{app, "", "one"},
		{app, filepath.Join(app, "other.toml"), "other"},
		{bare, filepath.Join(app, "other.toml"), "other"},
		{bare, "", ""},
	} {
		p, err := readProject(Request{Path: x.path, Descriptor: x.descriptor})
		if err != nil || p.Name != x.want {
			t.Errorf("%+v: name %q, %v", x, p.Name, err)
		}
	}
	for _, missing := range []string{filepath.Join(bare, "project.toml"), filepath.Join(app, "broken.toml"), app} {
		_, err := readProject(Request{Path: bare, Descriptor: missing})
		wantBadInput(t, err, missing)
	}
}

func TestWithProject(t *testing.T) {
	conform.Covers(t, 205, 206)
	p := spec.Project{Builder: "from/file", Env: []spec.ProjectEnv{
		{Name: "A", Value: "file"}, {Name: "B", Value: "file"}, {Name: "B", Value: "file again"},
		{Name: "TEST", Value: "x", ExecEnv: []string{"test"}}, {Name: "PROD", Value: "y", ExecEnv: []string{"test", "production"}}, {Name: "ALL", Value: "z", ExecEnv: []string{"*"}},
	}}
	req := Request{Env: map[string]string{"A": "typed", "EMPTY": ""}}
	got := req.withProject(p)
	want := map[string]string{"A": "typed", "B": "file again", "EMPTY": "", "PROD": "y", "ALL": "z"}
	if diff := cmp.Diff(want, got.Env); diff != "" {
		t.Error(diff)
	}
	if got.Builder != "from/file" {
		t.Errorf("builder %q", got.Builder)
	}
	if got := (Request{Builder: "typed"}).withProject(p); got.Builder != "typed" {
		t.Errorf("what is typed loses against the file: %q", got.Builder)
	}
	if len(req.Env) != 2 {
		t.Errorf("the request's own variables were changed: %v", req.Env)
	}
}

// What the file has and kiln does not know is said.
func TestProjectWarnings(t *testing.T) {
	if events := projectWarnings(spec.Project{Warnings: []string{"a", "b"}}); len(events) != 2 {
		t.Errorf("%v", events)
	}
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			if d.IsDir() {
				rel += "/"
			}
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// include and exclude of a real project.toml, through to the files that a
// build would see.
func TestSelection(t *testing.T) {
	conform.Covers(t, 203)
	source := func(build string) map[string]string {
		return map[string]string{
			"project.toml": "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\n" + build,
			"app.py":       "", "src/a.py": "", "src/deep/b.py": "", "src/deep/b.pyc": "", "node_modules/x/y.js": "", "docs/only.md": "", ".git/HEAD": "",
		}
	}
	for _, x := range []struct {
		name, build string
		want        []string
	}{
		{"everything", "", []string{".git/", ".git/HEAD", "app.py", "docs/", "docs/only.md", "node_modules/", "node_modules/x/", "node_modules/x/y.js", "project.toml", "src/", "src/a.py", "src/deep/", "src/deep/b.py", "src/deep/b.pyc"}},
		{"exclude", `exclude = ["node_modules/", ".git", "*.pyc", "/docs/**"]`, []string{"app.py", "docs/", "project.toml", "src/", "src/a.py", "src/deep/", "src/deep/b.py"}},
		{"exclude and take back", `exclude = ["*.py", "!a.py", "node_modules", ".git", "docs"]`, []string{"project.toml", "src/", "src/a.py", "src/deep/", "src/deep/b.pyc"}},
		{"include", `include = ["src/**/*.py", "app.py"]`, []string{"app.py", "src/", "src/a.py", "src/deep/", "src/deep/b.py"}},
		{"include a folder", `include = ["/src/deep/"]`, []string{"src/", "src/deep/", "src/deep/b.py", "src/deep/b.pyc"}},
	} {
		p, _ := newPlatform(t)
		dir := filetree.New(t, source(x.build))
		project, err := readProject(Request{Path: dir})
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		a, err := p.snapshot(t.Context(), dir, selectionOf(project), t.TempDir())
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		if diff := cmp.Diff(x.want, filesIn(t, a.Dir)); diff != "" {
			t.Errorf("%s: %s", x.name, diff)
		}
	}
	p, _ := newPlatform(t)
	dir := filetree.New(t, source(`include = ["*.rs"]`))
	project, err := readProject(Request{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.snapshot(t.Context(), dir, selectionOf(project), t.TempDir())
	wantBadInput(t, err, dir)
}

// A snapshot is taken once per content, and never of something that changes.
func TestSnapshot(t *testing.T) {
	p, _ := newPlatform(t)
	dir := filetree.New(t, map[string]string{"app.py": "one"})
	first, err := p.snapshot(t.Context(), dir, selection{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(first.Dir, "app.py")); err != nil || string(b) != "one" {
		t.Errorf("the snapshot follows its source: %q, %v", b, err)
	}
	if first.DiffID != "" || first.tree == "" {
		t.Errorf("nothing is known of a source that was never built: %+v", first)
	}
	for name, want := range map[string]string{".wh.x": ".wh.", "sub/.wh..wh..opq": ".wh."} {
		bad := filetree.New(t, map[string]string{"app.py": "", name: ""})
		_, err := p.snapshot(t.Context(), bad, selection{}, t.TempDir())
		wantBadInput(t, err, want)
	}
	_, err = p.snapshot(t.Context(), t.TempDir(), selection{}, t.TempDir())
	wantBadInput(t, err, "nothing in it")
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.snapshot(done, dir, selection{}, t.TempDir()); err == nil {
		t.Error("a cancelled build goes on copying")
	}
}
