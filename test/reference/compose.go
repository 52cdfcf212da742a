package reference

import (
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// part is a layer of an app image and what the history says of it.
type part struct {
	by    string
	layer v1.Layer
}

const (
	sbomHistory     = "Software Bill-of-Materials"
	launcherHistory = "Buildpacks Application Launcher"
	configHistory   = "Buildpacks Launcher Config"
	processHistory  = "Buildpacks Process Types"
)

func gzipped(t testing.TB, tar []byte) v1.Layer {
	t.Helper()
	return imagetest.Gzip(t, tar)
}

func (p part) diffID(t testing.TB) string {
	t.Helper()
	return must(p.layer.DiffID())(t).String()
}

// before12 tells of versions of the Platform API whose images have another form.
func before12(api string) bool {
	return api == "none" || slices.Contains([]string{"0.7", "0.8", "0.9", "0.10", "0.11"}, api)
}

// compose puts an app image together (requirements 5.4): config, history, media
// types.
type compose struct {
	run               v1.Image
	platformAPI       string // "none" leaves CNB_PLATFORM_API out
	parts             []part
	layers, workspace string
	process           string    // the default one; "" is none
	created           time.Time // zero is Epoch
}

func (c compose) image(t testing.TB, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	created := v1.Time{Time: c.created}
	if c.created.IsZero() {
		created.Time = Epoch
	}
	old := before12(c.platformAPI)
	base := must(c.run.ConfigFile())(t)
	var adds []mutate.Addendum
	for _, p := range c.parts {
		h := v1.History{Created: created}
		if !old {
			h.CreatedBy = p.by
		}
		adds = append(adds, mutate.Addendum{Layer: p.layer, History: h})
	}
	img := must(mutate.Append(c.run, adds...))(t)
	cf := must(img.ConfigFile())(t).DeepCopy()
	var history []v1.History
	for i, h := range cf.History {
		if h.EmptyLayer {
			continue
		}
		h.Created = created
		if old && i < len(base.History) {
			h = v1.History{Created: h.Created}
		}
		history = append(history, h)
	}
	if len(history) != len(cf.RootFS.DiffIDs) {
		history = make([]v1.History, len(cf.RootFS.DiffIDs))
		for i := range history {
			history[i].Created = created
		}
	}
	cf.History, cf.Created = history, created
	cf.Config.WorkingDir, cf.Config.Entrypoint, cf.Config.Cmd = c.workspace, []string{"/cnb/lifecycle/launcher"}, nil
	if c.process != "" {
		cf.Config.Entrypoint = []string{"/cnb/process/" + c.process}
	}
	cf.Config.Env = c.env(cf.Config.Env)
	if cf.Config.Labels == nil {
		cf.Config.Labels = map[string]string{}
	}
	cf.Config.Labels["io.buildpacks.project.metadata"] = "{}"
	if change != nil {
		change(cf)
	}
	img = must(mutate.ConfigFile(img, cf))(t)
	if must(c.run.MediaType())(t) == types.DockerManifestSchema2 {
		img = imagetest.AsDocker(t, img)
	}
	return img
}

// env is that of the run image with what the launcher needs.
func (c compose) env(base []string) []string {
	var env []string
	search := "PATH=/cnb/process:/cnb/lifecycle"
	for _, kv := range base {
		if len(kv) > 5 && kv[:5] == "PATH=" {
			search += ":" + kv[5:]
			continue
		}
		env = append(env, kv)
	}
	env = append([]string{search}, env...)
	env = append(env, "CNB_LAYERS_DIR="+c.layers, "CNB_APP_DIR="+c.workspace)
	if c.platformAPI != "none" {
		env = append(env, "CNB_PLATFORM_API="+c.platformAPI, "CNB_DEPRECATION_MODE=quiet")
	}
	return env
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
