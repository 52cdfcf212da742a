package lifecycle

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// extend does what the extender does for the run image: it puts the image that
// the restorer saved, with a layer of its own, into <extended>.
func (w *world) extend(body string) {
	w.Helper()
	a := w.analyzed()
	_, digest, _ := strings.Cut(a.RunImage.Reference, "@")
	base, err := archive.Layout{Dir: w.path("kaniko/cache/base/" + digest)}.Image(w.Context(), "")
	if err != nil {
		w.Fatal(err)
	}
	tar := imagetest.Tar(w.T, 10)
	if body != "" {
		tar = []byte(body)
	}
	img, err := image.Append(base, []image.Addition{{Layer: imagetest.Gzip(w.T, tar), History: v1.History{CreatedBy: phase.CreatedByExtension("RUN true", "ext")}}}, func(c *v1.ConfigFile) {
		c.Config.User = "33"
		c.Config.Labels[spec.RebasableLabel] = "true"
	})
	if err != nil {
		w.Fatal(err)
	}
	if err := (archive.Layout{Dir: w.path("layers/extended/run/" + manifestDigest(w.T, img))}).WriteSparse(w.Context(), img, 1); err != nil {
		w.Fatal(err)
	}
}

// newExported is a world in which all is ready for the exporter, on a run image
// that an extension has extended.
func newExported(t *testing.T, host string) (w *world, export []string) {
	w = newWorld(t)
	w.app(host)
	w.extension("ext", "", script(runOf, extends+"RUN true\\n"))
	w.mkdir("kaniko")
	// <layers> is somewhere else on this host, as kiln has it.
	w.host.Dirs = map[string]layer.Stack{"/kaniko": {Upper: w.path("kaniko")}}
	w.environ = []string{"CNB_EXTENSIONS_DIR=" + w.path("extensions"), "CNB_RUN_PATH=" + w.path("run.toml"), "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"}
	w.want(0, w.run(analyzer, host+"/app"))
	w.want(0, w.run(detector))
	w.want(0, w.run(restorer))
	w.want(0, w.run(builder))
	return w, []string{"-launcher", w.path("launcher"), host + "/app"}
}

func TestExportOnExtendedRunImage(t *testing.T) {
	conform.Covers(t, 149, 160)
	host := newRegistry(t)
	w, export := newExported(t, host)
	w.extend("")
	w.want(0, w.run(exporter, export...))
	_, cf := pull(t, host+"/app")
	_, run := pull(t, host+"/run:1")
	base := len(run.RootFS.DiffIDs)
	if !slices.Equal(cf.RootFS.DiffIDs[:base], run.RootFS.DiffIDs) {
		t.Errorf("it does not stand on the run image: %v, %v", cf.RootFS.DiffIDs, run.RootFS.DiffIDs)
	}
	if h := cf.History[base].CreatedBy; h != "Layer: 'RUN true', Created by extension: ext" {
		t.Errorf("history %q", h)
	}
	if cf.Config.User != "33" || cf.Config.Labels[spec.RebasableLabel] != "true" {
		t.Errorf("config %+v", cf.Config)
	}
	md, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel])
	if err != nil || md.RunImage.TopLayer != run.RootFS.DiffIDs[base-1].String() || !strings.HasPrefix(md.RunImage.Reference, host+"/run@sha256:") {
		t.Errorf("%+v %v", md.RunImage, err)
	}
	build, err := spec.DecodeBuildLabel(cf.Config.Labels[spec.BuildMetadataLabel])
	if err != nil || len(build.Extensions) != 1 || build.Extensions[0].ID != "ext" {
		t.Errorf("%+v %v", build, err)
	}

	// A rebase exchanges what is below the extension's layer.
	above := cf.RootFS.DiffIDs[base:]
	pushBase(t, host+"/run:1", "newer")
	w.want(0, w.run(rebaser, host+"/app"))
	_, rebased := pull(t, host+"/app")
	_, newer := pull(t, host+"/run:1")
	if diff := cmp.Diff(slices.Concat(newer.RootFS.DiffIDs, above), rebased.RootFS.DiffIDs); diff != "" {
		t.Errorf("rebased: %s", diff)
	}
}

// An extension that chose another run image, which is not in run.toml, is not
// said to have chosen the one that is.
func TestExportOnChosenRunImage(t *testing.T) {
	host := newRegistry(t)
	digest := pushBase(t, host+"/other:1", "other")
	for _, image := range []string{host + "/other:1", host + "/mirror:1"} {
		if image != host+"/other:1" {
			digest = pushBase(t, image, "mirror")
		}
		w := newWorld(t)
		w.app(host)
		w.write("run.toml", "[[images]]\nimage = '"+host+"/run:1'\n[[images]]\nimage = '"+host+"/second:1'\nmirrors = ['"+host+"/mirror:1']\n")
		w.extension("ext", "", script(runOf, "FROM "+image))
		w.environ = []string{"CNB_EXTENSIONS_DIR=" + w.path("extensions"), "CNB_RUN_PATH=" + w.path("run.toml"), "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"}
		w.want(0, w.run(analyzer, host+"/app"))
		for _, phase := range []string{detector, restorer, builder} {
			w.want(0, w.run(phase))
		}
		w.want(0, w.run(exporter, "-launcher", w.path("launcher"), host+"/app"))
		_, cf := pull(t, host+"/app")
		md, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel])
		if err != nil {
			t.Fatal(err)
		}
		want := spec.RunImageForRebase{TopLayer: md.RunImage.TopLayer, Reference: strings.Replace(image, ":1", "@"+digest, 1), Image: image}
		if image == host+"/mirror:1" {
			want.Image, want.Mirrors = host+"/second:1", []string{host + "/mirror:1"}
		}
		if diff := cmp.Diff(want, md.RunImage); diff != "" {
			t.Error(diff)
		}
	}
}

func TestExportWithoutExtendedRunImage(t *testing.T) {
	host := newRegistry(t)
	for _, tt := range []struct {
		name, want string
		change     func(w *world)
	}{
		{"nothing", "there is no image in", func(*world) {}},
		{"an empty directory", "there is no image in", func(w *world) { w.mkdir("layers/extended/run") }},
		{"several", "one image belongs here, and there are 2", func(w *world) {
			w.extend("")
			w.extend("")
		}},
		{"a file", "not a directory", func(w *world) { w.write("layers/extended/run/sha256:1", "") }},
		{"no layout", "image not found", func(w *world) { w.mkdir("layers/extended/run/sha256:1") }},
		{"a link", "not a directory", func(w *world) {
			w.extend("")
			dir, err := filepath.Glob(w.path("layers/extended/run/sha256:*"))
			if err != nil || len(dir) != 1 {
				w.Fatal(dir, err)
			}
			if err := os.Rename(dir[0], w.path("elsewhere")); err != nil {
				w.Fatal(err)
			}
			if err := os.Symlink(w.path("elsewhere"), dir[0]); err != nil {
				w.Fatal(err)
			}
		}},
		{"a pipe", "index.json", func(w *world) {
			w.mkdir("layers/extended/run/sha256:1")
			if err := syscall.Mkfifo(w.path("layers/extended/run/sha256:1/index.json"), 0o600); err != nil {
				w.Fatal(err)
			}
		}},
		{"of another run image", "extends another image", func(w *world) {
			w.extend("")
			a, digest := w.analyzed(), pushBase(w.T, host+"/run:2", "another")
			before := w.read("layers/analyzed.toml")
			_, old, _ := strings.Cut(a.RunImage.Reference, "@")
			w.write("layers/analyzed.toml", strings.ReplaceAll(before, old, digest))
		}},
		{"no tar", "layer extension 1", func(w *world) { w.extend("no tar at all") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, export := newExported(t, host)
			tt.change(w)
			w.want(spec.ExitExport, w.run(exporter, export...))
			if !strings.Contains(w.stderr.String(), tt.want) {
				t.Errorf("%q is missing: %s", tt.want, w.stderr.String())
			}
		})
	}
}

// In a daemon, too, the image that is extended comes from its registry; what the
// app stands on is the daemon's own copy of it, whether that knows the
// registry's digest or not.
func TestDaemonExportOnExtendedRunImage(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, daemonHost string) {
		conform.Covers(t, 89, 144, 160)
		host := newRegistry(t)
		w := newDaemonWorld(t, daemonHost, "daemon/extended")
		w.app = "daemon/extended"
		run, _ := pull(t, host+"/run:1")
		if err := w.d.Write(t.Context(), host+"/run:1", run); err != nil {
			t.Fatal(err)
		}
		w.write("run.toml", "[[images]]\nimage = '"+host+"/run:1'\n")
		w.extension("ext", "", script(runOf, extends+"RUN true\\n"))
		w.mkdir("kaniko")
		w.host.Dirs = map[string]layer.Stack{"/kaniko": {Upper: w.path("kaniko")}}
		w.environ = append(w.environ, "CNB_EXTENSIONS_DIR="+w.path("extensions"), "CNB_RUN_PATH="+w.path("run.toml"), "CNB_USER_ID=1000", "CNB_GROUP_ID=1000")
		w.want(0, w.run(analyzer, w.app))
		id := imagetest.ID(t, w.image(host+"/run:1"))
		if got := w.analyzed().RunImage.Reference; got != id {
			t.Errorf("analyzed.toml has %s, want the image ID %s", got, id)
		}
		w.want(0, w.run(detector))
		w.want(0, w.run(restorer))
		if got, want := w.analyzed().RunImage.Reference, host+"/run@"+manifestDigest(t, run); got != want {
			t.Errorf("analyzed.toml has %s after the restorer, want %s", got, want)
		}
		w.want(0, w.run(builder))
		w.extend("")
		w.want(0, w.run(exporter, "-launcher", w.path("launcher"), w.app))
		cf, err := w.image(w.app).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		base, err := run.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		n := len(base.RootFS.DiffIDs)
		if !slices.Equal(cf.RootFS.DiffIDs[:n], base.RootFS.DiffIDs) || cf.History[n].CreatedBy != "Layer: 'RUN true', Created by extension: ext" || cf.Config.User != "33" {
			t.Errorf("%+v", cf)
		}
		md, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel])
		if err != nil || md.RunImage.Reference != id || md.RunImage.Image != host+"/run:1" {
			t.Errorf("label: %+v %v", md.RunImage, err)
		}
	})
}
