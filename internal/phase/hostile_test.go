package phase

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/layer/layertest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// layerOfTar is a layer of a cache: of any bytes, but of those.
func layerOfTar(tar []byte) v1.Layer {
	return image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tar)), nil }, imagetest.Sum(tar), int64(len(tar)))
}

// oneLayer is a tar of what a buildpack left at path.
func oneLayer(t *testing.T, path string) []byte {
	t.Helper()
	var b bytes.Buffer
	files := []layer.File{{Path: path, Mode: fs.ModeDir | 0o755}, {Path: path + "/f", Mode: 0o644, Body: []byte("x")}}
	if err := layer.WriteFiles(&b, files); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestHostileLayersRestored: whatever a cache has, what comes out of it is in the
// layer's directory or nowhere.
func TestHostileLayersRestored(t *testing.T) {
	honest := oneLayer(t, "/layers/bp/l")
	layertest.Each(t, func(t *testing.T, a layertest.Archive, c *layertest.Canary) {
		tar, ok := a.Entries(c.Outside)
		if !ok {
			tar = a.Tar(c.Outside)
		}
		tar = append(tar, honest...)
		must(t, os.Mkdir(filepath.Join(c.Cell, "bp"), 0o755))
		err := Extract(Tree{Stack: layer.Stack{Upper: c.Cell}, Path: "/layers"})(t.Context(), "bp/l", layerOfTar(tar))
		view := layer.Stack{Upper: c.Cell}
		names := func(rel string) (list []string) {
			entries, err := view.ReadDir(rel)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				list = append(list, e.Name())
			}
			return list
		}
		requireStrings(t, "left in <layers>", names("."), "bp")
		if err != nil {
			requireStrings(t, "left in bp", names("bp"))
			return
		}
		requireStrings(t, "left in bp", names("bp"), "l")
	})
}

// TestRestoreFollowsNoLink: before the restorer comes foreign code has been in
// <layers>. No link of it leads anything out, and what it put in the way goes.
func TestRestoreFollowsNoLink(t *testing.T) {
	conform.Covers(t, 80)
	md := spec.CacheMetadata{Buildpacks: []spec.BuildpackLayers{{Key: "bp", Layers: map[string]spec.LayerMetadata{}}}}
	tar := oneLayer(t, "/layers/bp/l")
	md.Buildpacks[0].Layers["l"] = spec.LayerMetadata{SHA: imagetest.Sum(tar).String(), Cache: true}
	for name, plant := range map[string]func(c *layertest.Canary) error{
		"the buildpack's directory is a link":      func(c *layertest.Canary) error { return os.Symlink(c.Outside, c.Cell+"/bp") },
		"the buildpack's directory leads nowhere":  func(c *layertest.Canary) error { return os.Symlink(c.Outside+"/new", c.Cell+"/bp") },
		"the buildpack's directory is a file":      func(c *layertest.Canary) error { return os.WriteFile(c.Cell+"/bp", nil, 0o644) },
		"the buildpack's directory is another one": func(c *layertest.Canary) error { return os.Symlink("other", c.Cell+"/bp") },
		"the layer is a link": func(c *layertest.Canary) error {
			return planted(os.Mkdir(c.Cell+"/bp", 0o755), os.Symlink(c.Outside+"/dir", c.Cell+"/bp/l"), os.Symlink(c.Outside+"/canary", c.Cell+"/bp/l.toml"))
		},
		"SBOMs are links": func(c *layertest.Canary) error { return os.Symlink(c.Outside, c.Cell+"/sbom") },
	} {
		t.Run(name, func(t *testing.T) {
			c := layertest.NewCanary(t)
			must(t, plant(c))
			layers := Tree{Stack: layer.Stack{Upper: c.Cell}, Path: "/layers"}
			group := spec.Group{Group: []spec.GroupElement{{ID: "bp", Version: "1", API: "0.12"}}}
			known, err := Restore(t.Context(), oneCache{md, layerOfTar(tar)}, Extract(layers), group, spec.Analyzed{}, layers, RestoreSetting{PlatformAPI: testAPI}, &events{})
			if err != nil || len(known) != 1 {
				t.Errorf("%v, restored %v", err, known)
			}
			if b, err := layers.ReadFile("bp/l/f", 10); err != nil || string(b) != "x" {
				t.Errorf("%q, %v", b, err)
			}
			if b, err := layers.ReadFile("bp/l.toml", 100); err != nil || strings.Contains(string(b), c.Secret) {
				t.Errorf("%q, %v", b, err)
			}
			c.Check(t)
		})
	}
}

func planted(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// oneCache is a cache of one layer.
type oneCache struct {
	md spec.CacheMetadata
	l  v1.Layer
}

func (c oneCache) Load(context.Context) (spec.CacheMetadata, bool, error) { return c.md, true, nil }

func (c oneCache) Layer(context.Context, string) (v1.Layer, error) { return c.l, nil }
