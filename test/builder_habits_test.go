package test

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// habits: platforms start the lifecycle each in its own way, and get the image
// that all get.
func habits(t *testing.T, w *world) {
	app := readScenario(t, "hello").below("app")
	plain := w.place(t, worldBuilder, "habits/plain", app)
	w.five(t, plain)
	want := w.id(t, "habits/plain")
	same := func(t *testing.T, repo string) {
		t.Helper()
		if got := w.id(t, repo); got != want {
			t.Errorf("the image is %s, want %s", got, want)
			sameImage(t, w.pull(t, repo), w.pull(t, "habits/plain"))
		}
	}
	t.Run("umask", func(t *testing.T) {
		p := w.place(t, worldBuilder, "habits/umask", app)
		for range 2 { // with nothing to restore, and with something
			p.fresh(t)
			w.phases(t, p, []string{"--umask", "0077"}, fivePhases(p))
			same(t, "habits/umask")
		}
	})
	t.Run("read-only root", func(t *testing.T) {
		p := w.place(t, worldBuilder, "habits/read-only", app)
		w.phases(t, p, []string{"--read-only", "--tmpfs", "/tmp"}, fivePhases(p))
		same(t, "habits/read-only")
	})
	t.Run("volumes of everybody", func(t *testing.T) { // emptyDir of Kubernetes
		p := w.place(t, worldBuilder, "habits/volumes", app)
		for _, dir := range []string{"layers", "app", "cache"} {
			everybodys(t, filepath.Join(p.dir, dir))
		}
		w.five(t, p)
		if got := w.launch(t, "habits/volumes").ok(t).stdout; got != "Hello, world!\n" {
			t.Errorf("the app says %q", got)
		}
	})
	t.Run("relative app", func(t *testing.T) { // a job of GitLab, in the checkout
		conform.Covers(t, 5)
		p := w.place(t, worldBuilder, "habits/relative", app)
		w.phases(t, p, []string{"--workdir", "/workspace"}, [][]string{{"creator", "-app", ".", p.image}})
		same(t, "habits/relative")
	})
	t.Run("Tekton", func(t *testing.T) { tekton(t, w, app); same(t, "habits/tekton") })
	t.Run("kpack", func(t *testing.T) { kpack(t, w, app); same(t, "habits/kpack") })
	t.Run("pack", func(t *testing.T) { pack(t, w, app) })
	if os.Getuid() == 0 { // without sub-ids there is no second user to start as
		t.Run("started by root", func(t *testing.T) {
			startedByRoot(t, w, app)
			same(t, "habits/root-five")
			same(t, "habits/root-creator")
		})
	}
}

func fivePhases(p *place) [][]string {
	return [][]string{{"analyzer", p.image}, {"detector"}, {"restorer", "-cache-dir", "/cache"}, {"builder"}, {"exporter", "-cache-dir", "/cache", p.image}}
}

// everybodys makes a folder root's, as far as this user can, with everybody
// allowed to write.
func everybodys(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(dir, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// tekton: the creator with every flag that the catalog's task has, most of them
// empty, and docker's configuration where DOCKER_CONFIG says.
func tekton(t *testing.T, w *world, app map[string]string) {
	p := w.place(t, worldBuilder, "habits/tekton", app)
	locked := w.locked(t)
	p.image = locked + "/habits/tekton"
	p.secrets = []string{"--volume", dockerConfig(t, locked) + ":/tekton/creds:ro", "--env", "DOCKER_CONFIG=/tekton/creds", "--env", "HOME=/tekton/home"}
	for range 2 {
		p.fresh(t)
		w.phases(t, p, nil, [][]string{{"creator", "-app=/workspace", "-cache-dir=/cache", "-cache-image=", "-uid=1000", "-gid=1000", "-layers=/layers",
			"-platform=/platform", "-report=/layers/report.toml", "-process-type=", "-skip-restore=false", "-previous-image=", "-run-image=", p.image}})
	}
	has(t, p.read(t, "layers/report.toml"), p.image, "digest")
}

// kpack: a container a phase, each file named, and the credentials in the home
// folder of those that need them.
func kpack(t *testing.T, w *world, app map[string]string) {
	conform.Covers(t, 9)
	p := w.place(t, worldBuilder, "habits/kpack", app)
	locked := w.locked(t)
	p.image = locked + "/habits/kpack"
	home := t.TempDir()
	if err := os.Rename(dockerConfig(t, locked), filepath.Join(home, ".docker")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o755); err != nil {
		t.Fatal(err)
	}
	p.secrets = []string{"--volume", home + ":/builder/home:ro", "--env", "HOME=/builder/home"}
	files := []string{"-layers=/layers", "-group=/layers/group.toml", "-analyzed=/layers/analyzed.toml"}
	w.phases(t, p, nil, [][]string{
		{"analyzer", "-layers=/layers", "-analyzed=/layers/analyzed.toml", "-run-image=" + w.addr + "/" + worldRun, p.image},
		{"detector", "-app=/workspace", "-group=/layers/group.toml", "-plan=/layers/plan.toml", "-order=/cnb/order.toml"},
		append([]string{"restorer", "-cache-dir=/cache"}, files...),
		{"builder", "-app=/workspace", "-layers=/layers", "-group=/layers/group.toml", "-plan=/layers/plan.toml"},
		append(append([]string{"exporter", "-app=/workspace", "-cache-dir=/cache", "-project-metadata=/layers/project-metadata.toml", "-report=/layers/elsewhere/report.toml", "-process-type=hello"}, files...), p.image),
	})
	has(t, p.read(t, "layers/elsewhere/report.toml"), p.image, "digest")
}

// pack: the creator with names, a time, a source, and the variables of a
// trusted builder.
func pack(t *testing.T, w *world, app map[string]string) {
	conform.Covers(t, 8, 150, 169)
	p := w.place(t, worldBuilder, "habits/pack", app)
	locked := w.locked(t)
	p.image = locked + "/habits/pack"
	filetree.Write(t, filepath.Join(p.dir, "layers"), 0o644, map[string]string{"project-metadata.toml": "[source]\ntype = \"git\"\n[source.version]\ncommit = \"abc\"\n"})
	p.give(t)
	p.secrets = []string{"--env", `CNB_REGISTRY_AUTH={"` + locked + `":"` + basicAuth() + `"}`, "--env", "SOURCE_DATE_EPOCH=1234567890"}
	w.phases(t, p, nil, [][]string{{"creator", "-app", "/workspace", "-cache-dir", "/cache", "-run-image", w.addr + "/" + worldRun, "-skip-restore", "-log-level", "debug",
		"-previous-image", locked + "/habits/plain", "-tag", locked + "/habits/pack:v1", "-tag", locked + "/habits/pack-too:v2", p.image}})
	img := w.pull(t, "habits/pack")
	for _, repo := range []string{"habits/pack:v1", "habits/pack-too:v2"} {
		if got, want := w.digest(t, repo), w.digest(t, "habits/pack"); got != want {
			t.Errorf("%s has the digest %s, want %s", repo, got, want)
		}
		has(t, p.read(t, "layers/report.toml"), locked+"/"+repo)
	}
	cf := configOf(t, img)
	if got := cf.Created.Unix(); got != 1234567890 {
		t.Errorf("it was created at %d", got)
	}
	has(t, cf.Config.Labels[spec.ProjectMetadataLabel], `"commit":"abc"`)
}

// asRoot are podman's arguments for a phase that starts as root and becomes the
// build user, with no capability but those that it takes.
func asRoot() []string {
	return []string{"--user", "0:0", "--cap-add", "CHOWN", "--cap-add", "SETUID", "--cap-add", "SETGID", "--cap-add", "DAC_OVERRIDE"}
}

// startedByRoot: the phases that run no buildpack, and creator, start as root
// on volumes of root's, and leave everything to the build user.
func startedByRoot(t *testing.T, w *world, app map[string]string) {
	conform.Covers(t, 11)
	ids := []string{"-uid", "1000", "-gid", "1000"}
	for name, phases := range map[string]func(*place) [][]string{
		"five":    fivePhases,
		"creator": func(p *place) [][]string { return [][]string{{"creator", "-cache-dir", "/cache", p.image}} },
	} {
		p := w.place(t, worldBuilder, "habits/root-"+name, app)
		p.secrets = asRoot()
		for _, dir := range []string{"layers", "cache"} {
			if err := os.Chown(filepath.Join(p.dir, dir), 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		list := phases(p)
		for i, phase := range list {
			if phase[0] != "detector" && phase[0] != "builder" {
				list[i] = slices.Insert(phase, 1, ids...)
			}
		}
		w.phases(t, p, nil, list)
		if out, err := exec.Command("find", p.dir+"/layers", p.dir+"/cache", "!", "-uid", "1000").CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: not the build user's: %s (%v)", name, out, err)
		}
	}
}

// locked is the world's registry behind one that asks for a name and a
// password.
func (w *world) locked(t *testing.T) (addr string) {
	t.Helper()
	back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.addr})
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != canaryUser || password != canaryPassword {
			rw.Header().Set("Www-Authenticate", `Basic realm="test"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		back.ServeHTTP(rw, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func basicAuth() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(canaryUser+":"+canaryPassword))
}

// dockerConfig is docker's configuration with the canary for a host, in a
// folder that the build user can read.
func dockerConfig(t *testing.T, host string) (dir string) {
	t.Helper()
	dir = canary(t, host)
	if os.Getuid() == 0 {
		give(t, dir)
	}
	return dir
}
