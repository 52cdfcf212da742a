package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Epoch is the time that the reference lifecycle gives to all it makes.
var Epoch = time.Date(1980, time.January, 1, 0, 0, 1, 0, time.UTC)

// oci is no layers, under OCI's media types.
var oci = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)

// AsDocker is an image of gzip layers under Docker's media types.
func AsDocker(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	layers := must(img.Layers())(t)
	var adds []mutate.Addendum
	for _, h := range must(img.ConfigFile())(t).History {
		add := mutate.Addendum{History: h}
		if !h.EmptyLayer {
			add.Layer, layers = docker{layers[0]}, layers[1:]
		}
		adds = append(adds, add)
	}
	out := must(mutate.Append(empty.Image, adds...))(t)
	return must(mutate.ConfigFile(out, must(img.ConfigFile())(t)))(t)
}

// Run makes a run image of one gzip layer for each map of paths to contents, as
// `docker build` leaves one: with entries in the history that have no layer.
func Run(t *testing.T, change func(*v1.ConfigFile), layers ...map[string]string) v1.Image {
	t.Helper()
	var adds []mutate.Addendum
	for i, files := range layers {
		adds = append(adds,
			mutate.Addendum{Layer: Gzip(t, tarOf(t, files)), History: v1.History{CreatedBy: fmt.Sprintf("ADD base %d", i), Created: v1.Time{Time: Epoch.AddDate(40, 0, i)}}},
			mutate.Addendum{History: v1.History{CreatedBy: fmt.Sprintf("ENV I=%d", i), EmptyLayer: true, Comment: "buildkit"}})
	}
	img := must(mutate.Append(oci, adds...))(t)
	cf := must(img.ConfigFile())(t).DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Created = v1.Time{Time: Epoch.AddDate(40, 0, 0)}
	cf.Config.Env = []string{"PATH=/usr/bin:/bin"}
	cf.Config.User = "1000:1000"
	cf.Config.Labels = map[string]string{}
	if change != nil {
		change(cf)
	}
	return must(mutate.ConfigFile(img, cf))(t)
}

// tarOf writes files, and the directories above them, the plain way.
func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	seen := map[string]bool{"/": true, ".": true}
	var parents func(dir string)
	parents = func(dir string) {
		if seen[dir] {
			return
		}
		parents(path.Dir(dir))
		seen[dir] = true
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: Epoch}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		parents(path.Dir(name))
		mode := int64(0o644)
		if strings.HasPrefix(files[name], "#!") {
			mode = 0o755
		}
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(files[name])), ModTime: Epoch}), writeAll(w, []byte(files[name]))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// App is an app image as the reference lifecycle exports it: written by hand
// after the specification, with nothing of kiln's exporter.
type App struct {
	// Run is what it stands on, by the names that run.toml had and by reference.
	Run       v1.Image
	Image     string
	Mirrors   []string
	Reference string
	// PlatformAPI is CNB_PLATFORM_API; "" is 0.14, "none" leaves it out.
	PlatformAPI string
	// Above are more layers between run image and app: those of extensions.
	Above []v1.Layer
	// Files are the app's.
	Files map[string]string
	// Label may change the text of io.buildpacks.lifecycle.metadata.
	Label func(string) string
	// Config may change everything before it is written.
	Config func(*v1.ConfigFile)
}

// Make writes it.
func (a App) Make(t *testing.T) v1.Image {
	t.Helper()
	base := must(a.Run.ConfigFile())(t)
	old := a.PlatformAPI == "none" || slices.Contains([]string{"0.7", "0.8", "0.9", "0.10", "0.11"}, a.PlatformAPI)
	own := []struct {
		by    string
		layer v1.Layer
	}{
		{"Layer: 'dep', Created by buildpack: acme/a@1.0.0", Gzip(t, tarOf(t, map[string]string{"/layers/acme_a/dep/f": "dep"}))},
		{"Software Bill-of-Materials", Gzip(t, tarOf(t, map[string]string{
			"/layers/sbom/launch/acme_a/dep/sbom.cdx.json": `{"bomFormat":"CycloneDX","specVersion":"1.5"}`, "/layers/sbom/launch/sbom.legacy.json": "null",
		}))},
		{"Application Layer", Gzip(t, tarOf(t, prefixed("/workspace/", a.Files)))},
		{"Buildpacks Application Launcher", Gzip(t, tarOf(t, map[string]string{"/cnb/lifecycle/launcher": "#!/bin/sh\nexec cat /workspace/app.txt\n"}))},
		{"Buildpacks Launcher Config", Gzip(t, tarOf(t, map[string]string{"/layers/config/metadata.toml": "[[processes]]\ntype = \"web\"\n"}))},
		{"Buildpacks Process Types", Gzip(t, tarOf(t, map[string]string{"/cnb/process/web": "#!/bin/sh\nexec cat /workspace/app.txt\n"}))},
	}
	var adds []mutate.Addendum
	entry := func(l v1.Layer, by string) {
		h := v1.History{Created: v1.Time{Time: Epoch}}
		if !old {
			h.CreatedBy = by
		}
		adds = append(adds, mutate.Addendum{Layer: l, History: h})
	}
	for _, l := range a.Above {
		entry(l, "Layer: 'RUN x', Created by extension: acme/ext")
	}
	var sha []any
	for _, o := range own {
		entry(o.layer, o.by)
		sha = append(sha, must(o.layer.DiffID())(t).String())
	}
	img := must(mutate.Append(a.Run, adds...))(t)
	cf := must(img.ConfigFile())(t).DeepCopy()
	var history []v1.History
	for i, h := range cf.History {
		if h.EmptyLayer {
			continue
		}
		h.Created = v1.Time{Time: Epoch}
		if old && i < len(base.History) {
			h = v1.History{Created: h.Created}
		}
		history = append(history, h)
	}
	cf.History, cf.Created = history, v1.Time{Time: Epoch}
	cf.Config.WorkingDir, cf.Config.Entrypoint, cf.Config.Cmd = "/workspace", []string{"/cnb/process/web"}, nil
	cf.Config.Env = []string{"PATH=/cnb/process:/cnb/lifecycle:/usr/bin:/bin", "CNB_LAYERS_DIR=/layers", "CNB_APP_DIR=/workspace"}
	if api := a.PlatformAPI; api != "none" {
		if api == "" {
			api = "0.14"
		}
		cf.Config.Env = append(cf.Config.Env, "CNB_PLATFORM_API="+api, "CNB_DEPRECATION_MODE=quiet")
	}
	label := fmt.Sprintf(`{"app":[{"sha":%[3]q}],"sbom":{"sha":%[2]q},"config":{"sha":%[5]q},"launcher":{"sha":%[4]q},"process-types":{"sha":%[6]q},`+
		`"buildpacks":[{"key":"acme/a","version":"1.0.0","layers":{"dep":{"sha":%[1]q,"data":{"n":1,"sha":"x"},"build":false,"launch":true,"cache":false}},"store":{"metadata":{"k":"v"}}}],`, sha...)
	names := fmt.Sprintf(`"image":%q`, a.Image)
	if len(a.Mirrors) > 0 {
		names += `,"mirrors":` + string(must(json.Marshal(a.Mirrors))(t))
	}
	run := fmt.Sprintf(`"runImage":{"topLayer":%q,"reference":%q`, base.RootFS.DiffIDs[len(base.RootFS.DiffIDs)-1], a.Reference)
	if !old && a.Image != "" {
		run += "," + names
	}
	label += run + `},"stack":{"runImage":{` + names + `}}}`
	if a.Label != nil {
		label = a.Label(label)
	}
	if cf.Config.Labels == nil {
		cf.Config.Labels = map[string]string{}
	}
	cf.Config.Labels["io.buildpacks.lifecycle.metadata"] = label
	cf.Config.Labels["io.buildpacks.build.metadata"] = `{"processes":[{"type":"web","command":["cat","/workspace/app.txt"],"args":null,"direct":true,"buildpackID":"acme/a"}],` +
		`"buildpacks":[{"id":"acme/a","version":"1.0.0"}],"launcher":{"version":"0.21.17","source":{"git":{"repository":"github.com/buildpacks/lifecycle","commit":"4bd4b13"}}},"buildpack-default-process-type":"web"}`
	cf.Config.Labels["io.buildpacks.project.metadata"] = "{}"
	if a.Config != nil {
		a.Config(cf)
	}
	return must(mutate.ConfigFile(img, cf))(t)
}

func prefixed(dir string, files map[string]string) map[string]string {
	out := map[string]string{dir + "app.txt": "the app\n"}
	for name, body := range files {
		out[dir+name] = body
	}
	return out
}
