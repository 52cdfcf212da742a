package reference

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// Label is io.buildpacks.lifecycle.metadata (requirements 5.5), its keys in the
// order in which they are written. In analyzed.toml the metadata of a layer has
// another key than in the label: see Analyze.
type Label struct {
	App          []SHA       `json:"app"`
	SBOM         *SHA        `json:"sbom,omitempty"`
	Config       SHA         `json:"config"`
	Launcher     SHA         `json:"launcher"`
	ProcessTypes SHA         `json:"process-types"`
	Buildpacks   []Buildpack `json:"buildpacks"`
	RunImage     Base        `json:"runImage"`
	Stack        *Stack      `json:"stack,omitempty"`
}

// String is the label as JSON.
func (l Label) String() string {
	b, err := json.Marshal(l)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Base is the run image in a Label.
type Base struct {
	TopLayer  string   `json:"topLayer"`
	Reference string   `json:"reference"`
	Image     string   `json:"image,omitempty"`
	Mirrors   []string `json:"mirrors,omitempty"`
}

// Stack is what a Label says of the run image again.
type Stack struct {
	RunImage struct {
		Image   string   `json:"image"`
		Mirrors []string `json:"mirrors,omitempty"`
	} `json:"runImage"`
}

// Build is what the reference's exporter is given.
type Build struct {
	// Layers and App are directories and, as in a build container, the paths that
	// they have in the image.
	Layers, App  string
	UID, GID     int
	PlatformAPI  string // 0.12 or later
	Run          v1.Image
	RunName      string
	Mirrors      []string
	RunReference string
	Launcher     []byte
	Created      time.Time // SOURCE_DATE_EPOCH; zero is Epoch
}

// Exported is what it makes of that.
type Exported struct {
	Image v1.Image
	Label Label
	// By is what the history says of the layers above the run image.
	By    []string
	Cache CacheMetadata
	// Tars are the layers of Cache, by diffID.
	Tars map[string][]byte
}

// Export is the reference's exporter.
func (b Build) Export(t testing.TB) Exported {
	t.Helper()
	e := &exporting{TB: t, Build: b, out: Exported{Tars: map[string][]byte{}}}
	group := Same[Group](t, filepath.Join(b.Layers, "group.toml"))
	metadata := Same[Metadata](t, filepath.Join(b.Layers, "config/metadata.toml"))
	for _, m := range group.Group {
		e.buildpack(m)
	}
	if dir := filepath.Join(b.Layers, "sbom/launch"); exists(dir) {
		e.out.Label.SBOM = &SHA{e.add(sbomHistory, e.dir(dir))}
	}
	e.app(metadata)
	e.out.Label.Launcher.SHA = e.add(launcherHistory, launcherTar(t, b.Launcher))
	e.out.Label.Config.SHA = e.add(configHistory, e.dir(filepath.Join(b.Layers, "config")))
	var types []string
	for _, p := range metadata.Processes {
		types = append(types, p.Type)
	}
	if len(types) > 0 {
		e.out.Label.ProcessTypes.SHA = e.add(processHistory, processTar(t, types))
	}
	if dir := filepath.Join(b.Layers, "sbom/cache"); exists(dir) {
		e.out.Cache.SBOM.SHA = e.keep(e.dir(dir))
	}
	base := must(b.Run.ConfigFile())(t)
	e.out.Label.RunImage = Base{base.RootFS.DiffIDs[len(base.RootFS.DiffIDs)-1].String(), b.RunReference, b.RunName, b.Mirrors}
	e.out.Label.Stack = &Stack{}
	e.out.Label.Stack.RunImage.Image, e.out.Label.Stack.RunImage.Mirrors = b.RunName, b.Mirrors
	e.out.Image = compose{
		run: b.Run, platformAPI: b.PlatformAPI, parts: e.parts, layers: b.Layers, workspace: b.App, process: metadata.DefaultProcess, created: b.Created,
	}.image(t, func(cf *v1.ConfigFile) {
		cf.Config.Labels["io.buildpacks.lifecycle.metadata"] = compact(t, e.out.Label)
		cf.Config.Labels["io.buildpacks.build.metadata"] = fmt.Sprintf(`{"processes":%s,"buildpacks":%s,"launcher":{"version":"0.21.17","source":{"git":{"repository":"github.com/buildpacks/lifecycle","commit":"4bd4b13"}}},"buildpack-default-process-type":%q}`,
			compact(t, metadata.Processes), compact(t, metadata.Buildpacks), metadata.DefaultProcess)
		for _, l := range metadata.Labels {
			cf.Config.Labels[l.Key] = l.Value
		}
		if b.PlatformAPI == "0.15" {
			cf.Config.Labels["io.buildpacks.exec-env"] = "production"
		}
	})
	return e.out
}

// CacheImage is the cache as an image (requirements 5.8).
func (e Exported) CacheImage(t testing.TB) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, id := range e.Cache.IDs() {
		layers = append(layers, imagetest.Gzip(t, e.Tars[id]))
	}
	if len(layers) == 0 {
		layers = append(layers, imagetest.Gzip(t, make([]byte, 1024)))
	}
	img := must(mutate.AppendLayers(oci, layers...))(t)
	cf := must(img.ConfigFile())(t).DeepCopy()
	cf.OS, cf.Config.Labels = "linux", map[string]string{cacheMetadata: compact(t, e.Cache)}
	return must(mutate.ConfigFile(img, cf))(t)
}

// SaveVolume makes it the cache of a directory.
func (e Exported) SaveVolume(t testing.TB, dir string) {
	t.Helper()
	Volume{dir}.Save(t, []byte(compact(t, e.Cache)), e.Cache.IDs(), func(id string) ([]byte, error) { return e.Tars[id], nil })
}

// ReadCacheImage reads a cache image strictly.
func ReadCacheImage(t testing.TB, img v1.Image) CacheMetadata {
	t.Helper()
	cf := must(img.ConfigFile())(t)
	md := readCacheMetadata(t, cf.Config.Labels[cacheMetadata])
	for _, id := range md.IDs() {
		h := must(v1.NewHash(id))(t)
		if _, err := img.LayerByDiffID(h); err != nil {
			t.Errorf("the cache image lacks %s: %v", id, err)
		}
	}
	if cf.OS != "linux" {
		t.Errorf("the cache image is for %q", cf.OS)
	}
	return md
}

// ReadProcesses reads those of io.buildpacks.build.metadata strictly.
func ReadProcesses(t testing.TB, img v1.Image) []Process {
	t.Helper()
	var label struct {
		Processes  []Process
		Buildpacks []struct {
			Member
			API string `json:"api"` // which the specification has, and the reference has not
		}
		Launcher struct {
			Version string
			Source  struct {
				Git struct{ Repository, Commit string }
			}
		}
		DefaultProcess string `json:"buildpack-default-process-type"`
	}
	strict(t, must(img.ConfigFile())(t).Config.Labels["io.buildpacks.build.metadata"], &label)
	return label.Processes
}

type exporting struct {
	testing.TB
	Build
	parts []part
	out   Exported
}

// dir is the layer of a directory.
func (e *exporting) dir(path string) []byte {
	e.Helper()
	return Tree(e, path, path, Above(e, path), e.UID, e.GID)
}

// add puts a layer on the image.
func (e *exporting) add(by string, tar []byte) string {
	e.Helper()
	e.out.By = append(e.out.By, by)
	p := part{by, gzipped(e, tar)}
	e.parts = append(e.parts, p)
	return p.diffID(e)
}

// keep puts a layer into the cache.
func (e *exporting) keep(tar []byte) string {
	id := imagetest.Sum(tar).String()
	e.out.Tars[id] = tar
	return id
}

// buildpack adds the layers of one.
func (e *exporting) buildpack(m Member) {
	e.Helper()
	dir := filepath.Join(e.Layers, strings.ReplaceAll(m.ID, "/", "_"))
	launch, cache := Buildpack{Key: m.ID, Version: m.Version, Layers: map[string]Layer{}}, Buildpack{Key: m.ID, Version: m.Version, Layers: map[string]Layer{}}
	if file := filepath.Join(dir, "store.toml"); exists(file) {
		s, _ := Read[struct {
			Metadata map[string]any `toml:"metadata"`
		}](e, file)
		launch.Store = &Store{s.Metadata}
	}
	for _, name := range layerNames(e, dir) {
		doc, _ := Read[LayerTOML](e, filepath.Join(dir, name+".toml"))
		if doc.Metadata == nil {
			doc.Metadata = map[string]any{}
		}
		l := Layer{Data: doc.Metadata, Build: doc.Types.Build, Launch: doc.Types.Launch, Cache: doc.Types.Cache}
		path := filepath.Join(dir, name)
		if !l.Launch && !l.Cache || !exists(path) {
			continue
		}
		tar := e.dir(path)
		if l.SHA = imagetest.Sum(tar).String(); l.Launch {
			e.add(fmt.Sprintf("Layer: '%s', Created by buildpack: %s@%s", name, m.ID, m.Version), tar)
			launch.Layers[name] = l
		}
		if l.Cache {
			e.keep(tar)
			cache.Layers[name] = l
		}
	}
	e.out.Label.Buildpacks, e.out.Cache.Buildpacks = append(e.out.Label.Buildpacks, launch), append(e.out.Cache.Buildpacks, cache)
}

func layerNames(t testing.TB, dir string) (names []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range found {
		if name := strings.TrimSuffix(filepath.Base(file), ".toml"); !slices.Contains([]string{"build", "launch", "store"}, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// app adds the app: its slices and the rest, or all of it.
func (e *exporting) app(m Metadata) {
	e.Helper()
	if len(m.Slices) == 0 {
		e.out.Label.App = append(e.out.Label.App, SHA{e.add("Application Layer", e.dir(e.App))})
		return
	}
	var patterns [][]string
	for _, s := range m.Slices {
		patterns = append(patterns, s.Paths)
	}
	for i, paths := range Slices(e, e.App, patterns) {
		tar := Slice(e, e.App, e.App, paths, Above(e, e.App), e.UID, e.GID)
		e.out.Label.App = append(e.out.Label.App, SHA{e.add(fmt.Sprintf("Application Slice: %d", i+1), tar)})
	}
}

// Slices divides an app by globs: the paths of each slice, then what they leave.
// A slice sees what those before it left; a directory stands for all below it.
func Slices(t testing.TB, app string, patterns [][]string) (list [][]string) {
	t.Helper()
	left := map[string]bool{}
	walk(t, app, app, func(rel string) { left[rel] = true })
	for _, slice := range patterns {
		var taken []string
		for _, pattern := range slice {
			matches, err := filepath.Glob(filepath.Join(app, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range matches {
				walk(t, app, match, func(rel string) {
					if left[rel] {
						delete(left, rel)
						taken = append(taken, rel)
					}
				})
			}
		}
		list = append(list, taken)
	}
	return append(list, append(slices.Collect(maps.Keys(left)), "."))
}

// walk names everything at path, relative to the app.
func walk(t testing.TB, app, path string, each func(rel string)) {
	t.Helper()
	err := filepath.Walk(path, func(path string, _ fs.FileInfo, err error) error {
		if rel, _ := filepath.Rel(app, path); err == nil && rel != "." {
			each(rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// compact is JSON as it is in labels.
func compact(t testing.TB, v any) string {
	t.Helper()
	return string(must(json.Marshal(v))(t))
}

// ReadLabel reads io.buildpacks.lifecycle.metadata strictly, and makes sure that
// its bytes are those that the reference writes. The specification has one more
// key than it: the execution environment that the image was built for.
func ReadLabel(t testing.TB, img v1.Image) (label Label, execEnv string) {
	t.Helper()
	text := must(img.ConfigFile())(t).Config.Labels["io.buildpacks.lifecycle.metadata"]
	var both struct {
		Label
		ExecEnv string `json:"exec-env"`
	}
	strict(t, text, &both)
	want := compact(t, both.Label)
	if got := strings.Replace(text, fmt.Sprintf(`"exec-env":%q,`, both.ExecEnv), "", 1); got != want {
		t.Errorf("the reference writes the label\n%s\nnot\n%s", want, got)
	}
	return both.Label, both.ExecEnv
}
