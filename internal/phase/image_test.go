package phase

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

const testAPI = "0.15"

// site is a place to assemble images in: a store, and the directories of one
// build after another, the layers of each an overlay over what was restored.
type site struct {
	t      *testing.T
	store  *store.Store
	cache  *store.Cache
	top    string
	n      int
	layers Tree
	app    Tree
	run    v1.Image
	events events
	group  spec.Group
	built  spec.BuildMetadata

	known    Known
	analysis Analysis
}

// runName is where the run image of a site is.
const runName = "registry.example.com/base/run:1"

func newSite(t *testing.T) *site {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	x := &site{t: t, store: s, cache: s.Cache("test"), top: t.TempDir(), run: runImage(t)}
	if err := s.Write(t.Context(), runName, x.run); err != nil {
		t.Fatal(err)
	}
	x.group.Group = []spec.GroupElement{{ID: "acme/a", Version: "1.0.0", API: "0.12"}, {ID: "acme/b", Version: "2.0.0", API: "0.12"}}
	x.built = spec.BuildMetadata{
		Buildpacks: x.group.Group, DefaultProcessType: "web",
		Processes: []spec.Process{{Type: "web", Command: []string{"serve"}, Direct: true, BuildpackID: "acme/a"}, {Type: "worker.x", Command: []string{"work"}, Direct: true, BuildpackID: "acme/b"}},
	}
	t.Cleanup(func() {
		if err := layer.Remove(x.top); err != nil {
			t.Error(err)
		}
	})
	x.fresh()
	return x
}

// runImage is always the same image of two layers.
func runImage(t *testing.T) v1.Image {
	t.Helper()
	fixed := func(name string) v1.Layer {
		var b bytes.Buffer
		if err := layer.WriteFiles(&b, []layer.File{{Path: "/" + name, Mode: 0o644, Body: []byte(name)}}); err != nil {
			t.Fatal(err)
		}
		return imagetest.Layer(t, b.Bytes())
	}
	img, err := image.Append(empty.Image, []image.Addition{
		{Layer: fixed("etc"), History: v1.History{CreatedBy: "base"}}, {Layer: fixed("usr"), History: v1.History{CreatedBy: "more base", Author: "them"}},
	}, func(c *v1.ConfigFile) {
		c.OS, c.Architecture = "linux", "amd64"
		c.Created = v1.Time{Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)}
		c.History = slices.Insert(c.History, 1, v1.History{CreatedBy: "ENV X=1", EmptyLayer: true})
		c.Config.User = "1000:1000"
		c.Config.Env = []string{"PATH=/usr/bin:/bin", "X=1"}
		c.Config.Cmd = []string{"/bin/bash"}
		c.Config.Labels = map[string]string{spec.BaseDistroNameLabel: "debian", spec.BaseDistroVersionLabel: "12", spec.RebasableLabel: "true"}
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// fresh makes the directories of the next build. Nothing is restored in them.
func (x *site) fresh() {
	x.t.Helper()
	x.n++
	x.layers = Tree{Path: "/layers", Stack: layer.Stack{Upper: filepath.Join(x.top, fmt.Sprint(x.n), "layers")}}
	x.app = Tree{Path: "/workspace", Stack: layer.Stack{Upper: filepath.Join(x.top, fmt.Sprint(x.n), "app")}}
	for _, dir := range []string{x.layers.Upper, x.app.Upper} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			x.t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			x.t.Fatal(err)
		}
	}
	x.known, x.analysis, x.events = nil, Analysis{}, events{}
	x.file("app", "app.py", "print()")
}

// file writes below the upper directory of layers or app, directories 0755 and
// files 0644 whatever the umask is.
func (x *site) file(tree, name, body string) {
	x.t.Helper()
	root := x.layers.Upper
	if tree == "app" {
		root = x.app.Upper
	}
	dir := root
	for _, part := range strings.Split(path.Dir(name), "/") {
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err == nil {
			err = os.Chmod(dir, 0o755)
			if err != nil {
				x.t.Fatal(err)
			}
		} else if !errors.Is(err, fs.ErrExist) {
			x.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, name), []byte(body), 0o644); err != nil {
		x.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, name), 0o644); err != nil {
		x.t.Fatal(err)
	}
}

func types(flags string) string {
	var b strings.Builder
	b.WriteString("[types]\n")
	for _, f := range strings.Fields(flags) {
		fmt.Fprintf(&b, "%s = true\n", f)
	}
	return b.String()
}

// analyze and restore as kiln does: contents as lower trees.
func (x *site) restore() {
	x.t.Helper()
	var err error
	set := AnalyzeSetting{PlatformAPI: testAPI}
	x.analysis, err = Analyze(x.t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, set, nil, &x.events)
	if err != nil {
		x.t.Fatal(err)
	}
	trees := make(chan string, 100)
	x.known, err = Restore(x.t.Context(), kept{x.cache, x.store}, func(ctx context.Context, _ string, l v1.Layer) error {
		tree, err := x.store.Tree(ctx, l)
		trees <- tree
		return err
	}, x.group, x.analysis.Analyzed, x.layers, RestoreSetting{
		PlatformAPI: testAPI, Previous: x.analysis.Previous,
		PlaceSBOM: func(ctx context.Context, _ string, l v1.Layer) (layer.Stack, error) {
			tree, err := x.store.Tree(ctx, l)
			trees <- tree
			return layer.Stack{Lowers: []string{filepath.Join(tree, "layers")}}, err
		},
	}, &x.events)
	if err != nil {
		x.t.Fatal(err)
	}
	close(trees)
	for tree := range trees {
		x.layers.Lowers = append(x.layers.Lowers, filepath.Join(tree, "layers"))
	}
}

// kept is what a host makes of its store for Restore and SaveCache.
type kept struct {
	*store.Cache
	store *store.Store
}

func (r kept) Layer(ctx context.Context, diffID string) (v1.Layer, error) {
	return r.store.Layer(ctx, diffID)
}

func (r kept) Save(ctx context.Context, md spec.CacheMetadata, _ func(context.Context, string) (v1.Layer, error)) error {
	return r.Cache.Save(ctx, md)
}

func (x *site) input() Input {
	x.t.Helper()
	if x.analysis.Run == nil {
		set := AnalyzeSetting{PlatformAPI: testAPI}
		a, err := Analyze(x.t.Context(), x.store, Names{Image: "app", Run: runName}, spec.RunTOML{}, set, nil, &x.events)
		if err != nil {
			x.t.Fatal(err)
		}
		x.analysis = a
	}
	return Input{
		PlatformAPI: testAPI, Run: x.analysis.Run, Previous: x.analysis.Previous, Analyzed: x.analysis.Analyzed,
		RunTOML: spec.RunTOML{Images: []spec.RunImageEntry{{Image: runName, Mirrors: []string{"mirror.example.com/run:1"}}}},
		Group:   x.group, Built: x.built, Layers: x.layers, App: x.app, Owner: layer.Owner{UID: 1000, GID: 1000},
		Known: x.known, Launcher: []byte("launcher"), LauncherInfo: spec.LauncherInfo{Version: "1.2.3"},
	}
}

func (x *site) assemble(change ...func(*Input)) Output {
	x.t.Helper()
	in := x.input()
	for _, f := range change {
		f(&in)
	}
	out, err := Assemble(x.t.Context(), x.store, in, &x.events)
	if err != nil {
		x.t.Fatal(err)
	}
	if err := image.Validate(x.t.Context(), out.Image, nil); err != nil {
		x.t.Fatal(err)
	}
	return out
}

// export assembles, exports and saves the cache.
func (x *site) export(change ...func(*Input)) Output {
	x.t.Helper()
	in := x.input()
	for _, f := range change {
		f(&in)
	}
	out := x.assemble(change...)
	if _, err := Export(x.t.Context(), x.store, []string{"app"}, out.Image, nil, false, &x.events); err != nil {
		x.t.Fatal(err)
	}
	if _, err := SaveCache(x.t.Context(), kept{x.cache, x.store}, x.store, in, out, &x.events); err != nil {
		x.t.Fatal(err)
	}
	return out
}

// layerEvents are the layer events, as "target name action read?".
func (x *site) layerEvents() map[string]event.Layer {
	m := map[string]event.Layer{}
	for _, e := range x.events.list {
		if l, ok := e.(event.Layer); ok {
			m[l.Target+" "+l.Name] = l
		}
	}
	return m
}

func (x *site) warnings() (list []string) {
	for _, e := range x.events.list {
		if m, ok := e.(event.Message); ok && m.Level == event.Warn {
			list = append(list, m.Text)
		}
	}
	return list
}

func config(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tarNames lists each layer of an image.
func tarNames(t *testing.T, l v1.Layer) (names []string) {
	t.Helper()
	rc, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	tr := tar.NewReader(rc)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		name := hdr.Name
		if hdr.Linkname != "" {
			name += "->" + hdr.Linkname
		}
		names = append(names, fmt.Sprintf("%c %s %o %d:%d", hdr.Typeflag, name, hdr.Mode, hdr.Uid, hdr.Gid))
	}
}
