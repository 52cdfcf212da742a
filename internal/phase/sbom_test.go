package phase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// TestChangedSBOMs: an SBOM layer that was touched is made again, and is the
// one that a first build makes; the other is not read.
func TestChangedSBOMs(t *testing.T) {
	for name, test := range map[string]struct {
		warm, cold          func(x *site)
		imageRead, cacheSHA bool // is it read; has the cache's changed
	}{
		"one changes": {
			warm:      func(x *site) { x.file("layers", "sbom/launch/acme_a/dep/sbom.cdx.json", "[1]") },
			imageRead: true,
		},
		"one of the cache changes": {
			warm:     func(x *site) { x.file("layers", "sbom/cache/acme_a/dep/sbom.cdx.json", "[1]") },
			cacheSHA: true,
		},
		"a new one": {
			warm:      func(x *site) { x.file("layers", "sbom/launch/acme_b/a/sbom.spdx.json", "[2]") },
			imageRead: true,
		},
		"one goes": {
			warm:      func(x *site) { whiteout(t, x, "sbom/launch/acme_a/dep/sbom.cdx.json") },
			cold:      func(x *site) { remove(t, x, "sbom/launch/acme_a/dep/sbom.cdx.json") },
			imageRead: true,
		},
		"a buildpack left": {
			warm:      func(x *site) { whiteout(t, x, "sbom/launch/acme_a") },
			cold:      func(x *site) { remove(t, x, "sbom/launch/acme_a") },
			imageRead: true,
		},
		"parent's mode": {
			warm:      func(x *site) { must(t, os.Chmod(filepath.Join(x.layers.Upper, "sbom"), 0o700)) },
			imageRead: true, cacheSHA: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newSite(t)
			x.contents()
			x.export()
			x.fresh()
			x.restore()
			x.optIn()
			test.warm(x)
			old := x.known["sbom/cache"]
			warm := x.export()
			image, cache := x.layerEvents()["image sbom"], x.layerEvents()["cache sbom"]
			if (image.Read != 0) != test.imageRead || (cache.Read != 0) != test.cacheSHA || (cache.DiffID != old) != test.cacheSHA {
				t.Errorf("image: %+v, cache: %+v", image, cache)
			}
			y := newSite(t)
			y.contents()
			if test.cold == nil {
				test.cold = test.warm
			}
			test.cold(y)
			cold := y.export()
			if imageID(t, warm.Image) != imageID(t, cold.Image) || y.layerEvents()["cache sbom"].DiffID != cache.DiffID {
				t.Errorf("SBOM layers %s and %s warm, %s and %s cold", image.DiffID, cache.DiffID,
					y.layerEvents()["image sbom"].DiffID, y.layerEvents()["cache sbom"].DiffID)
			}
		})
	}
}

// whiteout is what an overlay leaves in its upper directory when a file of a
// lower one is deleted.
func whiteout(t *testing.T, x *site, rel string) {
	t.Helper()
	x.file("layers", rel, "")
	remove(t, x, rel)
	must(t, unix.Mknod(filepath.Join(x.layers.Upper, rel), unix.S_IFCHR, 0))
}

func remove(t *testing.T, x *site, rel string) {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(x.layers.Upper, rel)))
}

// TestRestoreOfSBOMsThatAreNotPlaced: the buildpacks get them all the same.
func TestRestoreOfSBOMsThatAreNotPlaced(t *testing.T) {
	for _, placed := range []bool{true, false} {
		x := newSite(t)
		x.contents()
		x.export()
		x.fresh()
		a, err := Analyze(t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, AnalyzeSetting{PlatformAPI: testAPI}, nil, &x.events)
		must(t, err)
		set := RestoreSetting{PlatformAPI: testAPI, Previous: a.Previous}
		set.PlaceSBOM = func(ctx context.Context, _ string, l v1.Layer) (layer.Stack, error) {
			tree, err := x.store.Tree(ctx, l)
			if !placed {
				err = errors.New("made elsewhere")
			}
			return layer.Stack{Lowers: []string{filepath.Join(tree, "layers")}}, err
		}
		known, err := Restore(t.Context(), kept{x.cache, x.store}, Extract(x.layers), x.group, a.Analyzed, x.layers, set, &x.events)
		must(t, err)
		if (known["sbom/launch"] != "") != placed || (known["sbom/cache"] != "") != placed || x.warnings() != nil {
			t.Errorf("known %v, warnings %q", known, x.warnings())
		}
		for file, want := range map[string]string{"acme_a/dep.sbom.cdx.json": "{}", "acme_a/builder.sbom.syft.json": "[]"} {
			if body, err := os.ReadFile(filepath.Join(x.layers.Upper, file)); err != nil || string(body) != want {
				t.Errorf("placed %v: %s: %q, %v", placed, file, body, err)
			}
		}
		if list, err := filepath.Glob(filepath.Join(x.layers.Upper, "sbom*")); err != nil || len(list) != 0 {
			t.Errorf("left: %v, %v", list, err)
		}
	}
}

// sbomBuild is a buildpack that says $DOC of a layer for launch and cache, and
// then does what the test says.
const sbomBuild = `
app=$PWD
here=$CNB_LAYERS_DIR/../sbom
cd $CNB_LAYERS_DIR
mkdir -p l
printf '[types]\nlaunch = true\ncache = true\n' > l.toml
cat $app/doc > l.sbom.cdx.json
`

// sbomState is everything about <layers>/sbom that a layer's tar or an overlay
// can see: a file that was written again differs.
func (w *world) sbomState() map[string]string {
	w.t.Helper()
	state := map[string]string{}
	top := filepath.Join(w.dirs.Layers, "sbom")
	must(w.t, filepath.Walk(top, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		body := ""
		if fi.Mode().IsRegular() {
			body = w.read(path)
			if st.Nlink != 1 {
				w.t.Errorf("%s has %d names", path, st.Nlink)
			}
		}
		state[strings.TrimPrefix(path, top)] = fmt.Sprintf("%v %d %v %s", fi.Mode(), st.Ino, st.Ctim, body)
		return nil
	}))
	return state
}

// sbomTree is what <layers>/sbom shall be with body for an SBOM.
func sbomTree(body string) map[string]string {
	dir, file := "drwxr-xr-x ", "-rw-r--r-- "
	return map[string]string{
		"": dir, "/build": dir, "/cache": dir, "/cache/acme_a": dir, "/cache/acme_a/l": dir, "/launch": dir, "/launch/acme_a": dir, "/launch/acme_a/l": dir,
		"/build/sbom.legacy.json": file + "null", "/launch/sbom.legacy.json": file + "null",
		"/launch/acme_a/l/sbom.cdx.json": file + body, "/cache/acme_a/l/sbom.cdx.json": file + body,
	}
}

func (w *world) requireSBOMs(want map[string]string) {
	w.t.Helper()
	got := w.sbomState()
	for name, state := range got {
		f := strings.SplitN(state, " ", 5) // mode, inode, ctime of two numbers, body
		if got := f[0] + " " + f[4]; got != want[name] {
			w.t.Errorf("sbom%s: %q, want %q", name, got, want[name])
		}
	}
	if len(got) != len(want) {
		w.t.Errorf("%d entries in sbom, want %d", len(got), len(want))
	}
}

func TestBuildTouchesNoSBOMThatStays(t *testing.T) {
	old := unix.Umask(0o077) // has no say
	defer unix.Umask(old)
	w := newWorld(t)
	long := strings.Repeat("0123456789abcdef", 1000) // more than one buffer
	w.write(filepath.Join(w.dirs.App, "doc"), long, 0o666)
	w.add(pack{name: "acme/a@1", info: `sbom-formats = ["application/vnd.cyclonedx+json"]`, build: sbomBuild})
	w.add(pack{name: "acme/b@1", info: `sbom-formats = ["application/vnd.cyclonedx+json"]`, build: "echo '{}' > $CNB_LAYERS_DIR/launch.sbom.cdx.json\n"})
	w.mustBuild(spec.Plan{}, "acme/a@1")
	w.requireSBOMs(sbomTree(long))
	first := w.sbomState()
	w.mustBuild(spec.Plan{}, "acme/a@1")
	for name, state := range w.sbomState() {
		if state != first[name] {
			t.Errorf("sbom%s was touched", name)
		}
	}

	// One changes, in its last byte.
	changed := long[:len(long)-1] + "X"
	w.write(filepath.Join(w.dirs.App, "doc"), changed, 0o666)
	w.mustBuild(spec.Plan{}, "acme/a@1", "acme/b@1")
	want := sbomTree(changed)
	want["/launch/acme_b"], want["/launch/acme_b/sbom.cdx.json"] = "drwxr-xr-x ", "-rw-r--r-- {}\n"
	w.requireSBOMs(want)
	if w.sbomState()["/launch/sbom.legacy.json"] != first["/launch/sbom.legacy.json"] {
		t.Error("the legacy file was touched")
	}

	// A buildpack leaves the group, or all do.
	w.mustBuild(spec.Plan{}, "acme/a@1")
	w.requireSBOMs(sbomTree(changed))
	w.mustBuild(spec.Plan{}, "acme/b@1")
	dir := "drwxr-xr-x "
	w.requireSBOMs(map[string]string{
		"": dir, "/build": dir, "/launch": dir, "/launch/acme_b": dir, "/launch/acme_b/sbom.cdx.json": "-rw-r--r-- {}\n",
		"/build/sbom.legacy.json": "-rw-r--r-- null", "/launch/sbom.legacy.json": "-rw-r--r-- null",
	})
}

// TestBuildReplacesHostileSBOMs: whatever a buildpack does to <layers>/sbom, it
// is what it would be in a first build, and nothing outside changes.
func TestBuildReplacesHostileSBOMs(t *testing.T) {
	const cdx = "$here/launch/acme_a/l/sbom.cdx.json"
	for name, script := range map[string]string{
		"FIFO":                 "rm " + cdx + "; mkfifo " + cdx,
		"link to equal file":   "rm " + cdx + "; ln -s $app/doc " + cdx,
		"second name":          "rm " + cdx + "; ln $here/cache/acme_a/l/sbom.cdx.json " + cdx,
		"name elsewhere":       "rm " + cdx + "; ln l.sbom.cdx.json " + cdx,
		"directory":            "rm " + cdx + "; mkdir -p " + cdx + "/x",
		"set-user-id":          "chmod 4644 " + cdx,
		"unreadable":           "chmod 0 " + cdx,
		"other bytes":          "printf doX > " + cdx,
		"more bytes":           "printf ument >> " + cdx,
		"file for a directory": "rm -r $here/launch/acme_a; cp l.sbom.cdx.json $here/launch/acme_a",
		"link for a directory": "mv $here/launch/acme_a $here/../aside; ln -s ../../aside $here/launch/acme_a",
		"link out":             "rm -r $here/launch; ln -s $app $here/launch",
		"link for everything":  "rm -r $here; ln -s $app $here",
		"file for everything":  "rm -r $here; cp l.sbom.cdx.json $here",
		"nothing":              "rm -r $here",
		"directory's mode":     "chmod 1777 $here/launch/acme_a $here/cache $here",
		"closed directory":     "chmod 0 $here/launch/acme_a",
		"closed leftover":      "mkdir -p $here/launch/x/y; chmod 0 $here/launch/x",
		"leftovers":            "mkdir -p $here/evil/x $here/launch/acme_a/m; cp l.sbom.cdx.json $here/top; cp l.sbom.cdx.json $here/launch/acme_a/m/sbom.cdx.json; mkfifo $here/build/p",
		"launcher's":           "mkdir -p $here/launch/buildpacksio_lifecycle/launcher; cp l.sbom.cdx.json $here/launch/buildpacksio_lifecycle/launcher/sbom.cdx.json",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.write(filepath.Join(w.dirs.App, "doc"), "doc", 0o666)
			w.add(pack{name: "acme/a@1", info: `sbom-formats = ["application/vnd.cyclonedx+json"]`, build: sbomBuild})
			w.mustBuild(spec.Plan{}, "acme/a@1")
			w.add(pack{name: "acme/a@1", info: `sbom-formats = ["application/vnd.cyclonedx+json"]`, build: sbomBuild + script + "\n"})
			w.mustBuild(spec.Plan{}, "acme/a@1")
			w.requireSBOMs(sbomTree("doc"))
			if list := w.tree(w.dirs.App); len(list) != 1 || w.read(filepath.Join(w.dirs.App, "doc")) != "doc" {
				t.Errorf("outside: %q", list)
			}
		})
	}
}

// TestLauncherSBOMStays: what the exporter put there for the last image stays
// as long as it is going to put the same.
func TestLauncherSBOMStays(t *testing.T) {
	const dir = "/launch/buildpacksio_lifecycle/launcher"
	w := newWorld(t)
	w.dirs.Lifecycle = t.TempDir()
	w.write(filepath.Join(w.dirs.Lifecycle, "launcher.sbom.cdx.json"), "launcher", 0o644)
	w.add(pack{name: "acme/a@1"})
	w.mustBuild(spec.Plan{}, "acme/a@1")
	if got := w.sbomState()[dir]; got != "" {
		t.Errorf("written before the exporter did: %s", got)
	}
	layers := Tree{Stack: layer.Stack{Upper: w.dirs.Layers}, Path: "/layers"}
	put := func(ext string) {
		t.Helper()
		must(t, PutSBOM(layers, dir[1:]+"/sbom."+ext, []byte("launcher")))
	}
	put("cdx.json")
	put("spdx.json") // the lifecycle has it no more
	first := w.sbomState()
	w.mustBuild(spec.Plan{}, "acme/a@1")
	put("cdx.json")
	got := w.sbomState()
	if file := dir + "/sbom.cdx.json"; got[file] == "" || got[file] != first[file] {
		t.Errorf("it was %s and is %s", first[file], got[file])
	}
	if got[dir+"/sbom.spdx.json"] != "" {
		t.Error("a stale one stays")
	}

	// On an overlay nothing is written beside what shows through.
	above := Tree{Stack: layer.Stack{Upper: t.TempDir(), Lowers: []string{w.dirs.Layers}}, Path: "/layers"}
	layers = above
	put("cdx.json")
	if touched, err := above.Touched("sbom"); touched || err != nil {
		t.Errorf("touched: %v, %v", touched, err)
	}
	put("syft.json")
	if touched, err := above.Touched("sbom/launch"); !touched || err != nil {
		t.Errorf("not touched: %v", err)
	}
}
