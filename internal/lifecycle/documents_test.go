package lifecycle

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/test/conform"
)

// forger is a buildpack's way to say that everything was otherwise: it writes
// anew what phases hand over to each other, as far as that is there when it
// runs, and what is usually there.
func (w *world) forger(host string) string {
	files := map[string]string{
		"analyzed.toml":         "[run-image]\nreference = '" + host + "/evil:1'\nimage = '" + host + "/evil:1'\n[run-image.target]\nos = 'linux'\narch = 'amd64'\n[image]\nreference = '" + host + "/evil:1'\n",
		"group.toml":            "[[group]]\nid = 'a/first'\nversion = '1.0.0'\napi = '0.12'\n",
		"plan.toml":             "",
		"order.toml":            "[[order]]\n[[order.group]]\nid = 'a/first'\nversion = '1.0.0'\n",
		"config/metadata.toml":  "buildpack-default-process-type = 'evil'\n[[buildpacks]]\nid = 'evil'\nversion = '1'\n[[processes]]\ntype = 'evil'\ncommand = ['evil']\n",
		"project-metadata.toml": "[source]\ntype = 'evil'\n",
	}
	script := "mkdir -p " + w.path("layers/config") + "\n"
	for name, body := range files {
		file := w.path("layers/" + name)
		// Another file in its place, and the same with other content.
		script += fmt.Sprintf("cat > %[1]s.forged <<'END'\n%[2]sEND\ncat %[1]s.forged > %[1]s; mv %[1]s.forged %[1]s\n", file, body)
	}
	run := w.path("run.toml")
	return script + strings.ReplaceAll("sed 's/run:1/evil:1/' RUN > RUN.forged; mv RUN.forged RUN\n", "RUN", run) + "touch " + w.path("forged") + "$STEP\n"
}

// forge makes the app buildable, and has its second buildpack forge in detect
// and in build, if it is to.
func (w *world) forge(host string, forging bool) {
	w.Helper()
	w.app(host)
	if forging {
		dir := "buildpacks/second/1.0.0/bin/"
		detect, build := w.read(dir+"detect"), w.read(dir+"build")
		w.buildpack("second", detect+"STEP=-detect\n"+w.forger(host), build+"STEP=-build\n"+w.forger(host))
	}
	if err := os.RemoveAll(w.path("layers")); err != nil {
		w.Fatal(err)
	}
	w.mkdir("layers")
}

// wantForged makes sure that the forger was at work.
func (w *world) wantForged() {
	w.Helper()
	for _, step := range []string{"-detect", "-build"} {
		if _, err := os.Stat(w.path("forged" + step)); err != nil {
			w.Error(err)
		}
	}
	if !strings.Contains(w.read("layers/analyzed.toml")+w.read("layers/group.toml"), "evil") {
		w.Error("nothing was forged")
	}
}

// What buildpacks make of the documents that phases hand over counts for nothing
// where one process carries out more phases than one, even where the files are
// the buildpacks' to write.
func TestForgedDocuments(t *testing.T) {
	t.Run("creator", func(t *testing.T) {
		conform.Covers(t, 127)
		w, host := newWorld(t), newRegistry(t)
		push(t, host+"/evil:1", debianRun(t, "666"))
		create := func(forging bool, ref string) string {
			t.Helper()
			w.forge(host, forging)
			w.want(0, w.run(creator, "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-launcher-sbom", w.dir, "-uid", me(), "-gid", me(), "-cache-dir", w.path("cache-"+fmt.Sprint(forging)), ref))
			return tagged(t, ref)
		}
		honest := create(false, host+"/me/honest")
		if got := create(true, host+"/me/forged"); got != honest {
			_, cf := pull(t, host+"/me/forged")
			t.Errorf("the forged image has digest %s, the honest one %s\n%v", got, honest, cf.Config.Labels)
		}
		w.wantForged()
	})
	t.Run("phases of a host", func(t *testing.T) {
		conform.Covers(t, 127)
		w, host := newWorld(t), newRegistry(t)
		push(t, host+"/evil:1", debianRun(t, "666"))
		w.environ = []string{"CNB_USER_ID=" + me(), "CNB_GROUP_ID=" + me()}
		build := func(forging bool, ref string) string {
			t.Helper()
			w.forge(host, forging)
			trusted := Host{Stdout: &w.stdout, Stderr: &w.stderr, Places: &Places{}, Dirs: map[string]layer.Stack{w.path("layers"): {Upper: w.path("layers")}, w.path("workspace"): {Upper: w.path("workspace")}}}
			foreign := Host{Stdout: &w.stdout, Stderr: &w.stderr, Runner: sandbox.InPlace{}}
			for _, argv := range [][]string{
				{analyzer, "-run", w.path("run.toml"), ref},
				{detector},
				{restorer, "-run", w.path("run.toml")},
				{builder},
				{exporter, "-project-metadata=", "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-launcher-sbom", w.dir, ref}, // as kiln build has it
			} {
				w.host = trusted
				if argv[0] == detector || argv[0] == builder {
					w.host = foreign
				}
				w.want(0, w.run(argv[0], argv[1:]...))
			}
			return tagged(t, ref)
		}
		honest := build(false, host+"/me/honest")
		if got := build(true, host+"/me/forged"); got != honest {
			_, cf := pull(t, host+"/me/forged")
			t.Errorf("the forged image has digest %s, the honest one %s\n%v", got, honest, cf.Config.Labels)
		}
		w.wantForged()
	})
}

// An extension's choice of another run image is one that counts.
func TestExtensionChoosesRunImageOfHost(t *testing.T) {
	w, host := newExtended(t), newRegistry(t)
	push(t, host+"/chosen:1", debianRun(t, "13"))
	w.app(host)
	w.extension("ext", "true\n", "printf 'FROM "+host+"/chosen:1\\n' > \"$CNB_OUTPUT_DIR/run.Dockerfile\"\n")
	w.host.Places = &Places{}
	w.want(0, w.run(analyzer, "-run", w.path("run.toml"), host+"/me/app"))
	foreign := w.host
	foreign.Places = nil
	trusted := w.host
	w.host = foreign
	w.want(0, w.run(detector, "-run", w.path("run.toml")))
	w.host = trusted
	w.want(0, w.run(restorer, "-run", w.path("run.toml")))
	if got := w.analyzed().RunImage; got == nil || got.Image != host+"/chosen:1" || got.Target == nil || got.Target.OS != "linux" {
		t.Errorf("%+v", got)
	}
}
