package phase

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// world is a build container in a temporary directory: its buildpacks are
// shell scripts, run in place.
type world struct {
	t    *testing.T
	dirs Dirs
	set  Setting
	events
}

// events keeps what was emitted.
type events struct {
	mu   sync.Mutex
	list []event.Event
}

func (e *events) Emit(ev event.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, ev)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root := t.TempDir()
	w := &world{t: t, set: Setting{
		PlatformAPI: "0.15",
		Target:      spec.Target{OS: "linux", Arch: "amd64", Distro: &spec.Distro{Name: "debian", Version: "12"}},
		Env:         env.Env{"PATH": "/usr/bin:/bin", "HOME": "/home/cnb"},
	}}
	w.dirs = Dirs{
		App: filepath.Join(root, "app"), Layers: filepath.Join(root, "layers"), Platform: filepath.Join(root, "platform"),
		BuildConfig: filepath.Join(root, "config"), Buildpacks: filepath.Join(root, "buildpacks"), Extensions: filepath.Join(root, "extensions"),
	}
	for _, d := range []string{w.dirs.App, w.dirs.Layers, w.dirs.Platform, w.dirs.BuildConfig, w.dirs.Buildpacks, w.dirs.Extensions} {
		if err := os.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) write(path, body string, mode os.FileMode) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), mode); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(path string) string {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// shebang starts every script of a test.
const shebang = "#!/bin/sh\nset -e\n"

// pack is a component buildpack or, with order, a composite.
type pack struct {
	name   string // id@version
	api    string // default 0.12
	info   string // more lines of [buildpack]
	more   string // more of buildpack.toml
	detect string // shell; empty: passes
	build  string // shell
}

func (w *world) add(p pack) {
	w.t.Helper()
	id, version, _ := strings.Cut(p.name, "@")
	dir := filepath.Join(w.dirs.Buildpacks, spec.EscapeID(id), version)
	api := p.api
	if api == "" {
		api = "0.12"
	}
	w.write(filepath.Join(dir, "buildpack.toml"), fmt.Sprintf(
		"api = %q\n[buildpack]\nid = %q\nversion = %q\nhomepage = \"https://example.com/%s\"\n%s\n%s\n", api, id, version, id, p.info, p.more), 0o666)
	if strings.Contains(p.more, "[[order") {
		return
	}
	log := fmt.Sprintf("echo %s >> ../runs\n", p.name)
	w.write(filepath.Join(dir, "bin/detect"), shebang+log+p.detect, 0o777)
	w.write(filepath.Join(dir, "bin/build"), shebang+p.build, 0o777)
}

// composite adds a composite buildpack: groups of members, "?" is optional.
func (w *world) composite(name string, groups ...string) {
	w.t.Helper()
	var more strings.Builder
	for _, g := range groups {
		more.WriteString("[[order]]\n")
		for _, m := range strings.Fields(g) {
			m, optional := strings.CutSuffix(m, "?")
			id, version, _ := strings.Cut(m, "@")
			fmt.Fprintf(&more, "[[order.group]]\nid = %q\nversion = %q\noptional = %v\n", id, version, optional)
		}
	}
	w.add(pack{name: name, more: more.String()})
}

// group makes the entries of one group of "id@version", "?" is optional.
func group(text string) (g spec.OrderGroup) {
	for _, m := range strings.Fields(text) {
		m, optional := strings.CutSuffix(m, "?")
		id, version, _ := strings.Cut(m, "@")
		g.Group = append(g.Group, spec.GroupElement{ID: id, Version: version, Optional: optional})
	}
	return g
}

func order(groups ...string) (o spec.Order) {
	for _, g := range groups {
		o.Order = append(o.Order, group(g))
	}
	return o
}

// runs is how often each buildpack's bin/detect ran.
func (w *world) runs() map[string]int {
	counts := map[string]int{}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(w.dirs.App), "runs"))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	for _, name := range strings.Fields(string(b)) {
		counts[name]++
	}
	return counts
}

// tried is the groups that were tried, as text: each member with its result.
func (w *world) tried() []string {
	var list []string
	for _, e := range w.list {
		if g, ok := e.(event.GroupTried); ok {
			var s []string
			for _, m := range g.Group {
				s = append(s, m.Buildpack+":"+m.Result)
			}
			list = append(list, strings.Join(s, " "))
		}
	}
	return list
}

// output is what a buildpack's events said it printed.
func (w *world) output(buildpack string) string {
	var s strings.Builder
	for _, e := range w.list {
		if o, ok := e.(event.Output); ok && o.Buildpack == buildpack {
			s.WriteString(o.Text)
		}
	}
	return s.String()
}

func (w *world) messages(level event.Level) string {
	var s []string
	for _, e := range w.list {
		if m, ok := e.(event.Message); ok && m.Level == level {
			s = append(s, m.Text)
		}
	}
	return strings.Join(s, "\n")
}

func names(g []spec.GroupElement) string {
	var s []string
	for _, e := range g {
		s = append(s, e.String())
	}
	return strings.Join(s, " ")
}

func requireStrings(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}
