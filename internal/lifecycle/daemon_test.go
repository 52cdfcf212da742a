package lifecycle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/dockerfile/dockerfiletest"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

func TestMain(m *testing.M) { os.Exit(dockerfiletest.Main(withDaemons{m})) }

// withDaemons runs the tests of a package that start daemons.
type withDaemons struct{ *testing.M }

func (w withDaemons) Run() int { return daemontest.Main(w.M) }

// daemonWorld is a world whose images are in a daemon. No registry answers.
type daemonWorld struct {
	*world
	tap *daemontest.Tap
	d   *daemon.Daemon
	app string
}

const baseName = "base/run:1"

func newDaemonWorld(t *testing.T, host, app string) daemonWorld {
	w := newWorld(t)
	w.app("registry.invalid")
	// A layer that comes with every build, one that is only in the image, one
	// that changes with what the app is.
	w.buildpack("second", "#!/bin/sh\necho \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n", `#!/bin/sh
cd "$CNB_LAYERS_DIR"
if test -e once.toml; then echo once is reused; else echo once is new; mkdir -p once; echo once > once/file; fi
if test -e once.sbom.cdx.json; then echo its SBOM was restored; else echo '{"bomFormat":"CycloneDX"}' > once.sbom.cdx.json; fi
mkdir -p early; cp "$OLDPWD/go" early/file
printf '[types]\nlaunch = true\n' | tee once.toml > early.toml
printf '[[processes]]\ntype = "web"\ncommand = ["run"]\ndefault = true\n' > launch.toml
`)
	toml := w.read("buildpacks/second/1.0.0/buildpack.toml")
	w.write("buildpacks/second/1.0.0/buildpack.toml", toml+"sbom-formats = ['application/vnd.cyclonedx+json']\n")
	w.write("run.toml", "[[images]]\nimage = '"+baseName+"'\n")
	tap := daemontest.NewTap(t, host)
	w.environ = []string{"DOCKER_HOST=" + tap.Host, "CNB_USE_DAEMON=true", "CNB_LAUNCH_CACHE_DIR=" + w.path("launch-cache")}
	d := openDaemon(t, host)
	if err := d.Write(t.Context(), baseName, debianRun(t, "1")); err != nil {
		t.Fatal(err)
	}
	return daemonWorld{w, tap, d, app}
}

// build runs the five phases, all but detector and builder with more arguments.
func (w daemonWorld) build(more ...string) string {
	w.Helper()
	if err := os.RemoveAll(w.path("layers")); err != nil {
		w.Fatal(err)
	}
	w.mkdir("layers")
	common := append([]string{"-run", w.path("run.toml")}, more...)
	var said strings.Builder
	for _, argv := range [][]string{
		slices.Concat([]string{analyzer}, common, []string{"-tag", w.app + ":too", w.app}),
		{detector},
		slices.Concat([]string{restorer}, common, []string{"-cache-dir", w.path("cache")}),
		{builder},
		slices.Concat([]string{exporter}, common, []string{"-cache-dir", w.path("cache"), "-launcher", w.path("launcher"), "-launcher-sbom", w.path("none"), "-uid", "1000", "-gid", "1000", w.app, w.app + ":too"}),
	} {
		w.want(0, w.run(argv[0], argv[1:]...))
		said.WriteString(w.stdout.String() + w.stderr.String())
	}
	return said.String()
}

func (w daemonWorld) image(ref string) v1.Image {
	w.Helper()
	img, err := w.d.Image(w.Context(), ref)
	if err != nil {
		w.Fatal(err)
	}
	return img
}

// transfers counts the images that were brought from the daemon since the last
// time, and what was sent to it, in bytes.
func (w daemonWorld) transfers() (images, sent int) {
	s := w.tap.Reset()
	return strings.Count(s, "/get HTTP/1.1\r\n"), len(s)
}

func TestDaemon(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		conform.Covers(t, 20, 24, 144, 149, 150, 153, 159)
		w := newDaemonWorld(t, host, "daemon/app")
		w.environ = append(w.environ, "SOURCE_DATE_EPOCH=1700000000")
		first := w.build()
		img := w.image(w.app)
		if err := image.Validate(t.Context(), img, nil); err != nil {
			t.Error(err)
		}
		id := imagetest.ID(t, img)
		cf, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if cf.Created.Unix() != 1700000000 || cf.History[0].Created.Unix() != 1700000000 {
			t.Errorf("created %s", cf.Created)
		}
		if _, ok := cf.Config.Labels[spec.RebasableLabel]; ok {
			t.Error("a label that the run image does not have")
		}
		run := imagetest.ID(t, w.image(baseName))
		md, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel])
		if err != nil || md.RunImage.Reference != run || md.RunImage.Image != baseName {
			t.Errorf("label: %+v, %v", md.RunImage, err)
		}
		if a := w.analyzed(); a.RunImage.Reference != run || a.RunImage.Image != baseName || a.PreviousImage != nil {
			t.Errorf("analyzed.toml: %+v", a)
		}
		want := spec.ReportImage{Tags: []string{w.app, w.app + ":too"}, ImageID: id}
		if r := w.report().Image; !slices.Equal(r.Tags, want.Tags) || r.ImageID != want.ImageID || r.Digest != "" || r.ManifestSize != 0 {
			t.Errorf("report.toml: %+v", r)
		}
		if got := imagetest.ID(t, w.image(w.app+":too")); got != id {
			t.Errorf("the tag is %s", got)
		}
		if images, _ := w.transfers(); images != 0 {
			t.Errorf("%d images were transferred for the first build", images)
		}

		// Again: the same image, and nothing moves.
		second := w.build()
		if !strings.Contains(first, "once is new") || !strings.Contains(second, "once is reused") || !strings.Contains(second, "SBOM was restored") {
			t.Errorf("%s\n%s", first, second)
		}
		if got := imagetest.ID(t, w.image(w.app)); got != id {
			t.Errorf("rebuilt as %s, before %s", got, id)
		}
		if images, sent := w.transfers(); images != 0 || sent > 16<<10 {
			t.Errorf("%d images were transferred, %d bytes sent, for an image that is there", images, sent)
		}
		if a := w.analyzed(); a.PreviousImage == nil || a.PreviousImage.Reference != id {
			t.Errorf("analyzed.toml: %+v", a.PreviousImage)
		}

		// A layer below the one that only the last image has changes: its bytes
		// have to go to the daemon again, and come from the launch cache.
		w.write("workspace/go", "other code")
		w.build()
		w.valid(w.app, id)
		if images, _ := w.transfers(); images != 0 {
			t.Errorf("%d images were transferred in spite of the launch cache", images)
		}

		// A daemon has names of any registry.
		w.want(0, w.run(analyzer, "-run", w.path("run.toml"), "-tag", "other.example/daemon/app:2", w.app))

		// By its ID, as the image that is built upon.
		w.environ = append(w.environ, "CNB_PREVIOUS_IMAGE="+id)
		w.build()
		if a := w.analyzed(); a.PreviousImage == nil || a.PreviousImage.Reference != id {
			t.Errorf("analyzed.toml: %+v", a.PreviousImage)
		}
	})
}

// valid is an image that is whole and another than before.
func (w daemonWorld) valid(ref, before string) {
	w.Helper()
	img := w.image(ref)
	if imagetest.ID(w.T, img) == before {
		w.Errorf("%s is the image of the last build", ref)
	}
	if err := image.Validate(w.Context(), img, nil); err != nil {
		w.Errorf("%s: %v", ref, err)
	}
}

// TestLaunchCacheDamage: what is wrong with the launch cache, or if there is
// none, makes the build slower and nothing else.
func TestLaunchCacheDamage(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		conform.Covers(t, 159)
		w := newDaemonWorld(t, host, "launch/app")
		w.build()
		tars := func() []string {
			t.Helper()
			list, err := filepath.Glob(w.path("launch-cache/committed/sha256:*.tar"))
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		cf, err := w.image(w.app).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if all := tars(); len(all) != len(cf.RootFS.DiffIDs)-2 { // the run image's are not the app's
			t.Fatalf("%d layers in the launch cache, %d in the image", len(all), len(cf.RootFS.DiffIDs))
		}
		for name, damage := range map[string]func(file string) error{
			"flipped":   func(file string) error { return flip(file) },
			"a link":    func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)) },
			"gone":      os.Remove,
			"all of it": func(string) error { return os.RemoveAll(w.path("launch-cache")) },
		} {
			for _, file := range tars() {
				if err := damage(file); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			w.write("workspace/go", "code for "+name)
			before := imagetest.ID(t, w.image(w.app))
			w.transfers()
			said := w.build()
			w.valid(w.app, before)
			if !strings.Contains(said, "SBOM was restored") {
				t.Errorf("%s: %s", name, said)
			}
			if warned := strings.Contains(said, "launch cache: cached layer sha256:"); warned != (name != "gone" && name != "all of it") {
				t.Errorf("%s: %s", name, said)
			}
			if images, _ := w.transfers(); images == 0 {
				t.Errorf("%s: nothing was transferred, so from where is it?", name)
			}
			if len(tars()) == 0 {
				t.Errorf("%s: the launch cache is not filled again", name)
			}
		}
		w.environ = w.environ[:2]
		w.write("workspace/go", "code without a cache")
		before := imagetest.ID(t, w.image(w.app))
		w.build()
		w.valid(w.app, before)
	})
}

func flip(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(file, b, 0o644)
}

// TestDaemonCreator: the creator makes the same image as five phases.
func TestDaemonCreator(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		w := newDaemonWorld(t, host, "created/app")
		w.build("-uid", "1000", "-gid", "1000")
		id := imagetest.ID(t, w.image(w.app))
		if err := os.RemoveAll(w.path("layers")); err != nil {
			t.Fatal(err)
		}
		w.mkdir("layers")
		w.want(0, w.run(creator, "-run", w.path("run.toml"), "-uid", "1000", "-gid", "1000", "-launcher", w.path("launcher"), "-launcher-sbom", w.path("none"), "-tag", "other.example.com/created:2", "created/new"))
		for _, ref := range []string{"created/new", "other.example.com/created:2"} {
			if got := imagetest.ID(t, w.image(ref)); got != id {
				t.Errorf("%s is %s, five phases made %s", ref, got, id)
			}
		}
	})
}

// TestDaemonRebase: the app's layers stay where they are.
func TestDaemonRebase(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		w := newDaemonWorld(t, host, "rebase/app")
		w.build()
		before, err := w.image(w.app).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		next := debianRun(t, "2")
		if err := w.d.Write(t.Context(), baseName, next); err != nil {
			t.Fatal(err)
		}
		w.transfers()
		w.want(0, w.run(rebaser, "-report", w.path("layers/report.toml"), w.app))
		img := w.image(w.app)
		if err := image.Validate(t.Context(), img, nil); err != nil {
			t.Error(err)
		}
		after, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		base, err := next.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		n := len(base.RootFS.DiffIDs)
		if !slices.Equal(after.RootFS.DiffIDs[:n], base.RootFS.DiffIDs) || !slices.Equal(after.RootFS.DiffIDs[n:], before.RootFS.DiffIDs[n:]) {
			t.Errorf("layers %v", after.RootFS.DiffIDs)
		}
		md, err := spec.DecodeLifecycleMetadata(after.Config.Labels[spec.LifecycleMetadataLabel])
		if err != nil || md.RunImage.Reference != imagetest.ID(t, next) {
			t.Errorf("label: %+v, %v", md.RunImage, err)
		}
		if r := w.report().Image; r.ImageID != imagetest.ID(t, img) {
			t.Errorf("report.toml: %+v", r)
		}
		// Again, it is the same.
		w.want(0, w.run(rebaser, "-report", w.path("layers/report.toml"), w.app))
		if got := imagetest.ID(t, w.image(w.app)); got != imagetest.ID(t, img) {
			t.Errorf("rebased twice it is %s", got)
		}
	})
}

func TestDaemonRefuses(t *testing.T) {
	w := newDaemonWorld(t, daemontest.All(t)[0].Host, "refuses/app")
	refused := func(code int, want string, argv ...string) {
		t.Helper()
		w.want(code, w.run(argv[0], argv[1:]...))
		if out := w.stderr.String(); !strings.Contains(out, want) {
			t.Errorf("%q: %q is missing in %s", argv, want, out)
		}
	}
	run := []string{"-run", w.path("run.toml")}
	// In a daemon that others build in, too, an app must not become a run image.
	for _, argv := range [][]string{{"base/run:1"}, {"docker.io/base/run:1"}, {"-tag", "index.docker.io/base/run:1", "app"}, {"-run-image", "base/run:1", "-run", w.path("none"), "base/run:1"}} {
		refused(spec.ExitInvalidArgs, "name of the run image", slices.Concat([]string{analyzer}, run, argv)...)
	}
	w.want(0, w.run(analyzer, append(run, "refuses/app")...))
	w.want(0, w.run(detector))
	w.want(0, w.run(builder))
	export := []string{exporter, "-launcher", w.path("launcher"), "-uid", "1000", "-gid", "1000"}
	refused(spec.ExitInvalidArgs, "name of the run image", append(export, "-run", w.path("none"), "base/run:1")...)
	refused(spec.ExitAnalyze, "none/such", analyzer, "-run-image", "none/such", "app")
	refused(spec.ExitInvalidArgs, "INVALID", analyzer, "-run-image", "base/run:1", "INVALID")
	// The cache image is in a registry all the same.
	refused(spec.ExitAnalyze, "no read access to registry.invalid/cache", slices.Concat([]string{analyzer}, run, []string{"-cache-image", "registry.invalid/cache", "app"})...)
	w.environ[0] = "DOCKER_HOST=unix://" + w.path("none")
	refused(spec.ExitAnalyze, "DOCKER_HOST", append([]string{analyzer}, append(run, "app")...)...)
	w.environ[0] = "DOCKER_HOST=nonsense"
	refused(spec.ExitInvalidArgs, "nonsense", append([]string{analyzer}, append(run, "app")...)...)
}

// -launch-cache is for daemons.
func TestLaunchCacheWithoutDaemon(t *testing.T) {
	conform.Covers(t, 28)
	host := newRegistry(t)
	w := newWorld(t)
	w.want(0, w.run(analyzer, "-run-image", host+"/run:1", "-launch-cache", w.path("launch-cache"), host+"/app"))
	if !strings.Contains(w.stderr.String(), "-launch-cache is ignored") {
		t.Error(w.stderr.String())
	}
	if _, err := os.Stat(w.path("launch-cache")); err == nil {
		t.Error("it was made")
	}
}

// daemonAsRoot: a socket that is root's is opened before the phase becomes the
// build user, and everything goes over that one connection: images are read,
// taken out and written.
func daemonAsRoot(t *testing.T, c *container, host string) {
	conform.Covers(t, 11)
	tap := daemontest.NewTap(t, host) // in a directory that is the tests' alone
	if err := openDaemon(t, host).Write(t.Context(), baseName, debianRun(t, "1")); err != nil {
		t.Fatal(err)
	}
	c.write("run.toml", "[[images]]\nimage = '"+baseName+"'\n")
	environ := append(userEnv(), "DOCKER_HOST="+tap.Host, "CNB_USE_DAEMON=true")
	export := []string{"-launcher", c.path("launcher"), "-launcher-sbom", c.dir, "privileges/app"}
	images, phases := 0, 0
	count := func() {
		phases++
		images += strings.Count(tap.Reset(), "/get HTTP/1.1\r\n")
		if n := tap.Conns(); n > phases {
			t.Fatalf("%d connections in %d phases", n, phases)
		}
	}
	for range 2 {
		for _, argv := range [][]string{{analyzer, "privileges/app"}, {detector}, {restorer}, {builder}, append([]string{exporter}, export...)} {
			c.phase(0, environ, argv[0], argv[1:]...)
			count()
		}
		c.owned("layers")
	}
	if images != 1 { // for the SBOMs of the last image
		t.Errorf("%d images were taken out", images)
	}
	c.phase(0, environ, rebaser, "-report", c.path("layers/report.toml"), "privileges/app")
	count()
	c.phase(0, environ, creator, export...)
	count()
	if left := names(t, c.path("tmp")); len(left) > 0 {
		t.Errorf("left in the temporary directory: %q", left)
	}
}

func openDaemon(t *testing.T, host string) *daemon.Daemon {
	t.Helper()
	d, err := daemon.Open(t.Context(), daemon.Options{Host: host, Unpack: func(ctx context.Context, file string) (v1.Image, error) {
		return archive.DockerArchive{Path: file}.Image(ctx, "")
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
