package image_test

import (
	"encoding/json"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// unread is a layer that must not be read.
type unread struct {
	v1.Layer
	t *testing.T
}

func (u unread) Compressed() (io.ReadCloser, error) {
	u.t.Error("Append read a layer")
	return u.Layer.Compressed()
}

func (u unread) Uncompressed() (io.ReadCloser, error) { return u.Compressed() }

func TestAppendReadsNothing(t *testing.T) {
	base := imagetest.Random(t, 2)
	layer := unread{imagetest.Layer(t, imagetest.Tar(t, 10)), t}
	_, err := image.Append(base, []image.Addition{{Layer: layer}}, func(c *v1.ConfigFile) { c.Config.User = "1000" })
	if err != nil {
		t.Fatal(err)
	}
}

func TestAppendLeavesBaseAlone(t *testing.T) {
	base := imagetest.Random(t, 2)
	before := documents(t, base)
	derived, err := image.Append(base, []image.Addition{{Layer: imagetest.Layer(t, imagetest.Tar(t, 10))}}, func(c *v1.ConfigFile) {
		c.Config.Labels["new"] = "label"
		c.Config.Labels["random"] = "changed"
		c.History[0].CreatedBy = "changed"
		c.RootFS.DiffIDs[0] = v1.Hash{} // must not get through
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, documents(t, base)); d != "" {
		t.Errorf("base changed:\n%s", d)
	}
	if err := image.Validate(t.Context(), derived, nil); err != nil {
		t.Error(err)
	}
	cf, err := derived.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cf.Config.Labels["random"] != "changed" || cf.History[0].CreatedBy != "changed" {
		t.Error("the config function had no effect")
	}
	// What comes out is a copy, too.
	cf.Config.Labels["random"] = "again"
	if again, err := derived.ConfigFile(); err != nil || again.Config.Labels["random"] != "changed" {
		t.Errorf("the derived image can be changed from outside (%v)", err)
	}
}

func documents(t *testing.T, img v1.Image) []string {
	t.Helper()
	m, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return []string{string(m), string(c)}
}

// TestAppendKeepsKind: what is derived has the media types of its base's kind.
func TestAppendKeepsKind(t *testing.T) {
	docker := imagetest.DockerShapes()[0].Image(t)
	plain := imagetest.Layer(t, imagetest.Tar(t, 10))
	last := func(img v1.Image) v1.Layer {
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		return layers[len(layers)-1]
	}
	for name, tc := range map[string]struct {
		base v1.Image
		add  v1.Layer
		want []types.MediaType
	}{
		"Docker":                       {docker, plain, []types.MediaType{types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, types.DockerLayer, types.DockerUncompressedLayer}},
		"gzip on Docker":               {docker, imagetest.Gzip(t, imagetest.Tar(t, 10)), []types.MediaType{types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, types.DockerLayer, types.DockerLayer}},
		"no name for zstd":             {docker, last(imagetest.Zstd(t)), []types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, types.OCILayer, types.OCILayerZStd}},
		"OCI":                          {imagetest.With(t, empty.Image, plain), last(docker), []types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCIUncompressedLayer, types.OCILayer}},
		"no base, which says Docker's": {empty.Image, last(docker), []types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer}},
	} {
		base := mutate.Annotations(tc.base, map[string]string{"of": "the base"}).(v1.Image)
		img, err := image.Append(base, []image.Addition{{Layer: tc.add}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), img, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		var got []types.MediaType
		for _, d := range append([]v1.Descriptor{{MediaType: m.MediaType}, m.Config}, m.Layers...) {
			got = append(got, d.MediaType)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: media types (-want +got)\n%s", name, d)
		}
		if mt, err := last(img).MediaType(); err != nil || mt != got[len(got)-1] {
			t.Errorf("%s: the layer says %s (%v)", name, mt, err)
		}
		if len(m.Annotations) != 0 {
			t.Errorf("%s: the base's annotations came along: %v", name, m.Annotations)
		}
	}
}

func TestAppendHistory(t *testing.T) {
	two := imagetest.Random(t, 2)
	entry := func(by string) v1.History { return v1.History{CreatedBy: by} }
	for name, tc := range map[string]struct {
		base []v1.History
		want []v1.History
	}{
		"fits":             {[]v1.History{entry("a"), {CreatedBy: "env", EmptyLayer: true}, entry("b")}, []v1.History{entry("a"), {CreatedBy: "env", EmptyLayer: true}, entry("b"), entry("new")}},
		"none":             {nil, []v1.History{{}, {}, {}}},
		"too few":          {[]v1.History{entry("a")}, []v1.History{{}, {}, {}}},
		"too many":         {[]v1.History{entry("a"), entry("b"), entry("c")}, []v1.History{{}, {}, {}}},
		"only empty":       {[]v1.History{{EmptyLayer: true}, {EmptyLayer: true}}, []v1.History{{}, {}, {}}},
		"right count, not": {[]v1.History{entry("a"), {EmptyLayer: true}}, []v1.History{{}, {}, {}}},
	} {
		t.Run(name, func(t *testing.T) {
			cf, err := two.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			cf.History = tc.base
			base, err := mutate.ConfigFile(two, cf)
			if err != nil {
				t.Fatal(err)
			}
			img, err := image.Append(base, []image.Addition{{Layer: imagetest.Layer(t, imagetest.Tar(t, 10)), History: entry("new")}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got.History); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if len(got.RootFS.DiffIDs) != 3 {
				t.Errorf("%d diffIDs, want 3: an app layer was dropped", len(got.RootFS.DiffIDs))
			}
		})
	}
	if _, err := image.Append(two, nil, func(c *v1.ConfigFile) { c.History = c.History[:1] }); err == nil {
		t.Error("a config function may leave a history that does not fit")
	}
}

// Whatever is appended in however many steps, the result is whole, and equal
// to appending it at once.
func TestAppendIsAssociative(t *testing.T) {
	pool := []v1.Layer{}
	for i := range 4 {
		body := imagetest.Tar(t, i*10)
		pool = append(pool, imagetest.Layer(t, body), imagetest.Gzip(t, body))
	}
	rapid.Check(t, func(rt *rapid.T) {
		picks := rapid.SliceOfN(rapid.IntRange(0, len(pool)-1), 0, 12).Draw(rt, "layers")
		cut := rapid.IntRange(0, len(picks)).Draw(rt, "cut")
		adds := make([]image.Addition, len(picks))
		for i, p := range picks {
			adds[i] = image.Addition{Layer: pool[p], History: v1.History{CreatedBy: string(rune('a' + p))}}
		}
		once, err := image.Append(empty.Image, adds, nil)
		if err != nil {
			rt.Fatal(err)
		}
		first, err := image.Append(empty.Image, adds[:cut], nil)
		if err != nil {
			rt.Fatal(err)
		}
		twice, err := image.Append(first, adds[cut:], nil)
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(documents(t, once), documents(t, twice)); d != "" {
			rt.Fatalf("(-once +twice)\n%s", d)
		}
		if err := image.Validate(t.Context(), twice, nil); err != nil {
			rt.Fatal(err)
		}
		raw, err := once.RawManifest()
		if err != nil {
			rt.Fatal(err)
		}
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) != len(picks) {
			rt.Fatalf("manifest has %d layers (%v), want %d", len(m.Layers), err, len(picks))
		}
		for i, p := range picks {
			if h, err := pool[p].Digest(); err != nil || m.Layers[i].Digest != h {
				rt.Fatalf("layer %d is %s, want %s (%v)", i, m.Layers[i].Digest, h, err)
			}
		}
	})
}
