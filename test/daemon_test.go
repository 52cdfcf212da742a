package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

// daemons is images in a Docker and a podman daemon: built there, read from
// there, and rebased there.
func daemons(t *testing.T, s site) {
	for _, d := range daemontest.All(t) {
		tap := daemontest.NewTap(t, d.Host)
		in := inDaemon{site: s, kind: d, tap: tap, env: []string{"DOCKER_HOST=" + tap.Host}}
		t.Run(d.Kind, func(t *testing.T) {
			t.Run("output", func(t *testing.T) { in.output(t) })
			t.Run("inputs", func(t *testing.T) { in.inputs(t) })
			t.Run("refusals", func(t *testing.T) { in.refusals(t) })
		})
	}
}

type inDaemon struct {
	site
	kind *daemontest.Daemon
	tap  *daemontest.Tap
	env  []string
}

func (d inDaemon) kiln(t *testing.T, args ...string) ran {
	t.Helper()
	return runKiln(t.Context(), t, d.store, d.env, args...)
}

// build builds the site's app, or another one, with the site's builder.
func (d inDaemon) build(t *testing.T, name, source string, more ...string) string {
	t.Helper()
	args := []string{"build", name, "--quiet", "--path", source, "--buildpack", d.pack}
	if !slices.Contains(more, "--builder") {
		args = append(args, "--builder", d.addr+"/"+siteBuilder)
	}
	return d.kiln(t, append(args, more...)...).ok(t).id()
}

// transfers counts what went over the wire since the last time: images that were
// taken out, and bytes that were sent in.
func (d inDaemon) transfers() (images, sent int) {
	s := d.tap.Reset()
	return strings.Count(s, "/get HTTP/1.1\r\n"), len(s)
}

// config is the raw config of an image as skopeo sees it in the daemon.
func (d inDaemon) config(t *testing.T, name string) string {
	t.Helper()
	return skopeo(t, "inspect", "--config", "--raw", "--daemon-host", d.kind.Host, "docker-daemon:"+name)
}

// run starts the image in the daemon with its own tools and returns what it says.
func (d inDaemon) run(name string) (string, error) {
	if d.kind.Kind == "podman" {
		return podmanHome{dir: d.kind.Dir()}.runtimes([]string{"run", "--rm", "--network", "none", "--user", "0:0", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, name)
	}
	cmd := exec.Command("/usr/bin/docker", "--host", d.kind.Host, "run", "--rm", "--network", "none", name)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.kind.Dir()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker run: %w\n%s", err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (d inDaemon) output(t *testing.T) {
	const name = "daemons/app"
	id := d.build(t, name, d.source)
	if got := d.build(t, name, d.source, "--tag", name+":v1", "--output", "docker-daemon", "--output", "oci:"+t.TempDir()); got != id {
		t.Errorf("to the daemon it is %s, to the store %s", got, id)
	}
	_, first := d.transfers()
	for _, tag := range []string{":latest", ":v1"} {
		if got := configDigest(d.config(t, name+tag)); got != id {
			t.Errorf("%s is %s, want %s", tag, got, id)
		}
	}
	if out, err := d.run(name); err != nil || out != "the app" {
		t.Errorf("%q, %v", out, err)
	}

	// The same again, another app on the same base, and a change.
	d.transfers()
	changed := filetree.New(t, map[string]string{"app.txt": "another app\n"})
	for _, again := range []struct {
		what, name, source string
		same               bool
	}{{"no change", name, d.source, true}, {"another name", "daemons/other", d.source, true}, {"a change", name, changed, false}} {
		got := d.build(t, again.name, again.source, "--output", "docker-daemon")
		// The launcher and what is above it have to be sent after a change below.
		if images, sent := d.transfers(); images != 0 || sent > first/4 {
			t.Errorf("%s: %d images were taken out, %d bytes sent; the first time it were %d", again.what, images, sent, first)
		}
		if same := got == id; same != again.same {
			t.Errorf("%s: %s, before %s", again.what, got, id)
		}
	}
	if out, err := d.run(name); err != nil || out != "another app" {
		t.Errorf("%q, %v", out, err)
	}

	// What kiln says of it, without taking it out.
	var info platform.ImageInfo
	if err := json.Unmarshal([]byte(d.kiln(t, "inspect", "--json", "docker-daemon:"+name+":v1").ok(t).stdout), &info); err != nil {
		t.Fatal(err)
	}
	if info.ID != id || info.Digest != "" || len(info.Layers) == 0 || info.Build == nil {
		t.Errorf("%+v", info)
	}
	if images, _ := d.transfers(); images != 0 {
		t.Error("kiln inspect took the image out")
	}
	dir := t.TempDir()
	d.kiln(t, "sbom", "download", "docker-daemon:"+name, "--output-dir", dir).ok(t)
	if list, err := filepath.Glob(dir + "/layers/sbom/launch/*"); err != nil || len(list) == 0 {
		t.Errorf("SBOMs: %q, %v", list, err)
	}
}

// put brings an image from the registry into the daemon.
func (d inDaemon) put(t *testing.T, repo, name string) {
	t.Helper()
	skopeo(t, "copy", "--src-tls-verify=false", "--dest-daemon-host", d.kind.Host, "docker://"+d.addr+"/"+repo, "docker-daemon:"+name)
}

func (d inDaemon) inputs(t *testing.T) {
	const run, name = "daemons/run:1", "daemons/on"
	d.store = t.TempDir() // one that has not seen the images of the registry
	d.put(t, siteRun, run)
	d.put(t, siteBuilder, "daemons/builder:1")
	flags := []string{"--builder", "docker-daemon:daemons/builder:1", "--run-image", "docker-daemon:" + run, "--output", "docker-daemon"}
	id := d.build(t, name, d.source, flags...)
	if images, _ := d.transfers(); images != 2 {
		t.Errorf("%d images were taken out, want builder and run image", images)
	}
	if again := d.build(t, name, d.source, flags...); again != id {
		t.Errorf("built again: %s, before %s", again, id)
	}
	if images, _ := d.transfers(); images != 0 {
		t.Errorf("%d images were taken out that are in the store", images)
	}
	before := d.parsed(t, name+":latest")
	md := metadata(t, before)
	if md.RunImage.Image != run {
		t.Errorf("label: %+v", md.RunImage)
	}

	// A new run image in the daemon: no image is taken out. To podman only
	// documents move; Docker wants the app's layers again, for they have others
	// below them now.
	d.site.put(t, "daemons/patched", d.patched(t, "7.0"))
	d.put(t, "daemons/patched", run)
	d.transfers()
	dir := t.TempDir()
	rebased := d.kiln(t, "rebase", "--quiet", "--report-output-dir", dir, "docker-daemon:"+name).ok(t).id()
	if images, sent := d.transfers(); images != 0 || d.kind.Kind == "podman" && sent > 64<<10 || sent > 4<<20 {
		t.Errorf("%d images were taken out, %d bytes sent", images, sent)
	}
	config := d.config(t, name+":latest")
	if got := configDigest(config); got != rebased {
		t.Errorf("it is %s, kiln says %s", got, rebased)
	}
	after, base := d.parsed(t, name+":latest"), d.parsed(t, run)
	old := slices.Index(before.RootFS.DiffIDs, hash(t, md.RunImage.TopLayer)) + 1
	n := len(base.RootFS.DiffIDs)
	if !slices.Equal(after.RootFS.DiffIDs[:n], base.RootFS.DiffIDs) || !slices.Equal(after.RootFS.DiffIDs[n:], before.RootFS.DiffIDs[old:]) {
		t.Errorf("layers %v", after.RootFS.DiffIDs)
	}
	if got := metadata(t, after).RunImage; got.Reference != configDigest(d.config(t, run)) || got.Image != run {
		t.Errorf("label: %+v", got)
	}
	report, err := os.ReadFile(filepath.Join(dir, "report.toml"))
	if err != nil || !strings.Contains(string(report), rebased) {
		t.Errorf("report.toml: %s, %v", report, err)
	}
	if out, err := d.run(name); err != nil || out != "the app" {
		t.Errorf("%q, %v", out, err)
	}
	if again := d.kiln(t, "rebase", "--quiet", "docker-daemon:"+name).ok(t).id(); again != rebased {
		t.Errorf("rebased again: %s, before %s", again, rebased)
	}

	// One whose run image is in the registry only.
	d.build(t, "daemons/app", d.source, "--output", "docker-daemon")
	d.kiln(t, "rebase", "docker-daemon:daemons/app").ok(t)
	d.kiln(t, "rebase", "--force", "--run-image", d.addr+"/daemons/patched", "docker-daemon:daemons/app").ok(t)
	if !slices.Equal(d.parsed(t, "daemons/app:latest").RootFS.DiffIDs[:n], base.RootFS.DiffIDs) {
		t.Error("it is not on the run image that is in the registry")
	}
}

func (d inDaemon) parsed(t *testing.T, name string) *v1.ConfigFile {
	t.Helper()
	cf, err := v1.ParseConfigFile(strings.NewReader(d.config(t, name)))
	if err != nil {
		t.Fatal(err)
	}
	return cf
}

func metadata(t *testing.T, cf *v1.ConfigFile) spec.LifecycleMetadata {
	t.Helper()
	md, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel])
	if err != nil {
		t.Fatal(err)
	}
	return md
}

func hash(t *testing.T, s string) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (d inDaemon) refusals(t *testing.T) {
	none := "unix://" + filepath.Join(t.TempDir(), "none")
	for want, args := range map[string][]string{
		"is also the name of the run image": {"build", "daemons/run:1", "--path", d.source, "--builder", d.addr + "/" + siteBuilder, "--run-image", "docker-daemon:daemons/run:1", "--output", "docker-daemon"},
		"is also the name of the builder":   {"build", "docker.io/daemons/builder:1", "--path", d.source, "--builder", "docker-daemon:daemons/builder:1", "--output", "docker-daemon"},
		"names the image":                   {"build", "x", "--output", "docker-daemon:x"},
		"daemons/none":                      {"inspect", "docker-daemon:daemons/none"},
		"docker images lists what is there": {"build", "x", "--path", d.source, "--builder", "docker-daemon:daemons/none"},
		"no such file or directory":         {"inspect", "docker-daemon:x", "--docker-host", none},
		"ssh -NL":                           {"inspect", "docker-daemon:x", "--docker-host", "ssh://me@there"},
		"is on this host":                   {"rebase", "--publish", "docker-daemon:daemons/app"},
	} {
		r := d.kiln(t, args...)
		if r.code == 0 || !strings.Contains(r.String(), want) {
			t.Errorf("%q: exit code %d, %q is missing: %s", args, r.code, want, r)
		}
	}
}
