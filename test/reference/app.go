package reference

import (
	"archive/tar"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// oci is no layers, under OCI's media types.
var oci = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)

// Run makes a run image of one gzip layer for each map of paths to contents, as
// `docker build` leaves one: with entries in the history that have no layer.
func Run(t *testing.T, change func(*v1.ConfigFile), layers ...map[string]string) v1.Image {
	t.Helper()
	var adds []mutate.Addendum
	for i, files := range layers {
		adds = append(adds,
			mutate.Addendum{Layer: imagetest.Gzip(t, tarOf(t, files)), History: v1.History{CreatedBy: fmt.Sprintf("ADD base %d", i), Created: v1.Time{Time: Epoch.AddDate(40, 0, i)}}},
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

// tarOf is a layer of files, and the directories above them, all root's.
func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	a := newArchive(t, 0, 0)
	seen := map[string]bool{"/": true}
	var above func(dir string)
	above = func(dir string) {
		if seen[dir] {
			return
		}
		above(path.Dir(dir))
		seen[dir] = true
		a.dirs([]Dir{{Path: dir, Mode: 0o755}})
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		above(path.Dir(name))
		mode := int64(0o644)
		if strings.HasPrefix(files[name], "#!") {
			mode = 0o755
		}
		a.write(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(files[name]))}, []byte(files[name]))
	}
	return a.bytes()
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
	old := before12(a.PlatformAPI)
	parts := []part{
		{"Layer: 'dep', Created by buildpack: acme/a@1.0.0", gzipped(t, tarOf(t, map[string]string{"/layers/acme_a/dep/f": "dep"}))},
		{sbomHistory, gzipped(t, tarOf(t, map[string]string{
			"/layers/sbom/launch/acme_a/dep/sbom.cdx.json": `{"bomFormat":"CycloneDX","specVersion":"1.5"}`, "/layers/sbom/launch/sbom.legacy.json": "null",
		}))},
		{"Application Layer", gzipped(t, tarOf(t, prefixed("/workspace/", a.Files)))},
		{launcherHistory, gzipped(t, tarOf(t, map[string]string{"/cnb/lifecycle/launcher": "#!/bin/sh\nexec cat /workspace/app.txt\n"}))},
		{configHistory, gzipped(t, tarOf(t, map[string]string{"/layers/config/metadata.toml": "[[processes]]\ntype = \"web\"\n"}))},
		{processHistory, gzipped(t, tarOf(t, map[string]string{"/cnb/process/web": "#!/bin/sh\nexec cat /workspace/app.txt\n"}))},
	}
	var sha []any
	for _, p := range parts {
		sha = append(sha, p.diffID(t))
	}
	for i := range a.Above {
		parts = slices.Insert(parts, i, part{"Layer: 'RUN x', Created by extension: acme/ext", a.Above[i]})
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
	return compose{run: a.Run, platformAPI: cmp.Or(a.PlatformAPI, "0.14"), parts: parts, workspace: "/workspace", layers: "/layers", process: "web"}.image(t, func(cf *v1.ConfigFile) {
		cf.Config.Labels["io.buildpacks.lifecycle.metadata"] = label
		cf.Config.Labels["io.buildpacks.build.metadata"] = `{"processes":[{"type":"web","command":["cat","/workspace/app.txt"],"args":null,"direct":true,"buildpackID":"acme/a"}],` +
			`"buildpacks":[{"id":"acme/a","version":"1.0.0"}],"launcher":{"version":"0.21.17","source":{"git":{"repository":"github.com/buildpacks/lifecycle","commit":"4bd4b13"}}},"buildpack-default-process-type":"web"}`
		if a.Config != nil {
			a.Config(cf)
		}
	})
}

func prefixed(dir string, files map[string]string) map[string]string {
	out := map[string]string{dir + "app.txt": "the app\n"}
	for name, body := range files {
		out[dir+name] = body
	}
	return out
}
