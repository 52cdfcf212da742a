package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// written is an image with these very documents. FILL stands in them for what
// has to fit: the digest and size of the config.
type written struct {
	config, manifest string
	mediaType        types.MediaType
	layers           []v1.Layer
}

func (w written) RawConfigFile() ([]byte, error)      { return []byte(w.config), nil }
func (w written) RawManifest() ([]byte, error)        { return []byte(w.manifest), nil }
func (w written) MediaType() (types.MediaType, error) { return w.mediaType, nil }
func (w written) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, l := range w.layers {
		if d, err := l.Digest(); err != nil || d == h {
			return l, err
		}
	}
	return nil, errors.New("no such layer")
}

func write(t testing.TB, config, manifest string, mt types.MediaType, layers ...v1.Layer) v1.Image {
	t.Helper()
	manifest = strings.Replace(manifest, "FILL", fmt.Sprintf(`"size":%d,"digest":"%s"`, len(config), imagetest.Sum([]byte(config))), 1)
	img, err := partial.CompressedToImage(written{config, manifest, mt, layers})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// typed is a layer under another media type.
type typed struct {
	v1.Layer
	mt types.MediaType
}

func (l typed) MediaType() (types.MediaType, error) { return l.mt, nil }

func digest(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func configOf(t testing.TB, img v1.Image) *v1.ConfigFile {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return cf
}

func rebased(t testing.TB, app, base v1.Image, n int) v1.Image {
	t.Helper()
	img, err := image.Rebase(app, base, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestRebaseReadsNothing(t *testing.T) {
	tar := func() v1.Layer { return unread{imagetest.Layer(t, imagetest.Tar(t, 10)), t} }
	old, next := imagetest.With(t, empty.Image, tar()), imagetest.With(t, empty.Image, tar(), tar())
	rebased(t, imagetest.With(t, old, tar()), next, 1)
}

// Every key that nobody here knows stays, and all that is not the base's stays
// as it was spelled.
func TestRebaseKeepsWhatItDoesNotKnow(t *testing.T) {
	a, b, c := imagetest.Layer(t, imagetest.Tar(t, 1)), imagetest.Layer(t, imagetest.Tar(t, 2)), imagetest.Gzip(t, imagetest.Tar(t, 3))
	id := func(l v1.Layer) string {
		h, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		return h.String()
	}
	blob := func(l v1.Layer) string {
		h, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		size, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`"size":%d,"digest":%q`, size, h)
	}
	const (
		config = `{"org.example":{"x":[1.0,"<"]},"architecture":"arm64","variant":"v8","os":"linux","created":"2020-01-02T03:04:05+01:00",
 "container_config":{"Cmd":["old"]},"config":{"Labels":{"z":"<","a":"1"},"OnBuild":["RUN x"],"Healthcheck":{"Test":["CMD","x"],"StartInterval":7},"io.example":true,"Memory":12345678901234567890},
 "rootfs":{"type":"layers","note":"mine","diff_ids":[%s]},"history":[%s{"created_by":"app <>","x-mine":1}],"os.features":["f"]}`
		manifest = `{"schemaVersion":2, "mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"x/y","config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL,"annotations":{"of":"config"}},
 "layers":[%s],"annotations":{"org.example":"<app>"},"subject":{"mediaType":"m","size":1,"digest":"sha256:%064d"},"unknown":null}`
	)
	appLayer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",` + blob(c) + `,"annotations":{"k":"<v>"},"more":1}`
	plain := `{"mediaType":"application/vnd.oci.image.layer.v1.tar",`
	app := write(t, fmt.Sprintf(config, strconvQuote(id(a))+","+strconvQuote(id(c)), `{"created_by":"old base"},`),
		fmt.Sprintf(manifest, plain+blob(a)+"},"+appLayer, 0), types.OCIManifestSchema1, a, c)
	base := write(t, `{"os":"linux","architecture":"amd64","os.version":"10.0","rootfs":{"type":"layers","diff_ids":["`+id(b)+`"]},"history":[{"created_by":"new base","y":2}],"config":{"User":"nobody"}}`,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL},"layers":[`+plain+blob(b)+`,"annotations":{"of":"base"}}]}`, types.OCIManifestSchema1, b)
	got := rebased(t, app, base, 1)
	if err := image.Validate(t.Context(), got, nil); err != nil {
		t.Error(err)
	}
	gotConfig, err := got.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	flat := strings.ReplaceAll(config, "\n ", "")
	wantConfig := fmt.Sprintf(strings.NewReplacer(`"arm64","variant":"v8"`, `"amd64"`, `"os.features":["f"]`, `"os.features":["f"],"os.version":"10.0"`).Replace(flat),
		strconvQuote(id(b))+","+strconvQuote(id(c)), `{"created_by":"new base","y":2},`)
	if d := cmp.Diff(wantConfig, string(gotConfig)); d != "" {
		t.Errorf("config (-want +got)\n%s", d)
	}
	gotManifest, err := got.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	wantManifest := fmt.Sprintf(strings.NewReplacer("\n ", "", "2, ", "2,", "FILL", fmt.Sprintf(`"size":%d,"digest":"%s"`, len(wantConfig), imagetest.Sum([]byte(wantConfig)))).Replace(manifest),
		plain+blob(b)+`,"annotations":{"of":"base"}},`+appLayer, 0)
	if d := cmp.Diff(wantManifest, string(gotManifest)); d != "" {
		t.Errorf("manifest (-want +got)\n%s", d)
	}
	// Onto what it stands on already, not even white space changes.
	old := write(t, `{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{"type":"layers","diff_ids":["`+id(a)+`"]},"history":[ {"created_by":"old base"}]}`,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL},"layers":[`+plain+blob(a)+`}]}`, types.OCIManifestSchema1, a)
	same, err := image.Rebase(app, old, 1, func(l map[string]string) { l["a"] = "1" })
	if err != nil {
		t.Fatal(err)
	}
	if digest(t, same) != digest(t, app) {
		t.Errorf("(-app +same)\n%s", cmp.Diff(documents(t, app), documents(t, same)))
	}
}

func strconvQuote(s string) string { return fmt.Sprintf("%q", s) }

func TestRebaseLabels(t *testing.T) {
	app := write(t, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"config":{"Labels":{"z":"<","keep":"\u003e>","old":"x"},"User":"u"}}`,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL},"layers":[]}`, types.OCIManifestSchema1)
	img, err := image.Rebase(app, imagetest.Random(t, 0), 0, func(l map[string]string) {
		delete(l, "old")
		l["new"], l["z"] = "n", "changed"
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if want := `"config":{"Labels":{"keep":"\u003e>","new":"n","z":"changed"},"User":"u"}`; !strings.Contains(string(raw), want) {
		t.Errorf("%s\nhas no %s", raw, want)
	}
	if configOf(t, app).Config.Labels["z"] != "<" {
		t.Error("the app's own labels changed")
	}
	// An image without labels gets some.
	bare := write(t, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL},"layers":[]}`, types.OCIManifestSchema1)
	if img, err = image.Rebase(bare, imagetest.Random(t, 0), 0, func(l map[string]string) { l["a"] = "b" }); err != nil {
		t.Fatal(err)
	}
	if got := configOf(t, img).Config.Labels["a"]; got != "b" {
		t.Errorf("label %q", got)
	}
}

func TestRebaseHistory(t *testing.T) {
	epoch := v1.Time{Time: time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)}
	entry := func(by string) v1.History { return v1.History{CreatedBy: by} }
	at := func(list ...v1.History) []v1.History {
		for i := range list {
			list[i].Created = epoch
		}
		return list
	}
	nothing := v1.History{EmptyLayer: true, CreatedBy: "CMD"}
	for name, tc := range map[string]struct {
		app, base, want []v1.History // of 2+1 layers, 1 layer, 1+1 layers
	}{
		"as it is":                   {[]v1.History{entry("a"), entry("b"), nothing, entry("c"), nothing}, []v1.History{nothing, entry("x"), nothing}, []v1.History{nothing, entry("x"), nothing, entry("c"), nothing}},
		"exported":                   {at(entry("a"), entry("b"), entry("c")), []v1.History{nothing, entry("x"), nothing}, at(entry("x"), entry("c"))},
		"exported, blank":            {at(v1.History{}, v1.History{}, v1.History{}), []v1.History{entry("x")}, at(v1.History{}, v1.History{})},
		"none":                       {nil, []v1.History{entry("x")}, nil},
		"base has none":              {[]v1.History{entry("a"), entry("b"), entry("c")}, nil, []v1.History{{}, entry("c")}},
		"exported, base has none":    {at(entry("a"), entry("b"), entry("c")), nil, at(v1.History{}, entry("c"))},
		"too few":                    {[]v1.History{entry("a")}, []v1.History{entry("x")}, []v1.History{entry("x"), {}}},
		"too many":                   {[]v1.History{entry("a"), entry("b"), entry("c"), entry("d")}, []v1.History{entry("x"), nothing}, []v1.History{entry("x"), nothing, {}}},
		"base has too many":          {[]v1.History{entry("a"), entry("b"), entry("c")}, []v1.History{entry("x"), entry("y")}, []v1.History{{}, entry("c")}},
		"only empty":                 {[]v1.History{nothing, nothing, nothing}, []v1.History{entry("x")}, []v1.History{entry("x"), {}}},
		"no time at all":             {[]v1.History{entry("a"), entry("b"), entry("c")}, []v1.History{{CreatedBy: "x", Created: epoch}}, []v1.History{{CreatedBy: "x", Created: epoch}, entry("c")}},
		"base ends with an ENV only": {[]v1.History{entry("a"), entry("b"), entry("c")}, []v1.History{entry("x"), nothing}, []v1.History{entry("x"), nothing, entry("c")}},
	} {
		t.Run(name, func(t *testing.T) {
			with := func(n int, history []v1.History) v1.Image {
				img := imagetest.Random(t, n)
				cf := configOf(t, img)
				cf.History, cf.Created = history, epoch
				img, err := mutate.ConfigFile(img, cf)
				if err != nil {
					t.Fatal(err)
				}
				return img
			}
			app := with(3, tc.app)
			img := rebased(t, app, with(1, tc.base), 2)
			if d := cmp.Diff(tc.want, configOf(t, img).History); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if err := image.Validate(t.Context(), img, nil); err != nil {
				t.Error(err)
			}
			if got, want := configOf(t, img).RootFS.DiffIDs, configOf(t, app).RootFS.DiffIDs; len(got) != 2 || got[1] != want[2] {
				t.Errorf("diffIDs %v: the app's layer was dropped", got)
			}
		})
	}
}

// The manifest stays of the app's kind.
func TestRebaseMediaTypes(t *testing.T) {
	docker := func(kind types.MediaType, config types.MediaType, layers ...v1.Layer) v1.Image {
		img, err := mutate.AppendLayers(empty.Image, layers...)
		if err != nil {
			t.Fatal(err)
		}
		return mutate.ConfigMediaType(mutate.MediaType(img, kind), config)
	}
	gz := func(mt types.MediaType) v1.Layer { return typed{imagetest.Gzip(t, imagetest.Tar(t, 5)), mt} }
	oci := docker(types.OCIManifestSchema1, types.OCIConfigJSON, gz(types.OCILayer), gz(types.OCILayer))
	old := docker(types.DockerManifestSchema2, types.DockerConfigJSON, gz(types.DockerLayer), gz(types.DockerLayer))
	mixed := docker(types.OCIManifestSchema1, types.DockerConfigJSON, gz(types.DockerLayer), gz(types.DockerLayer))
	const zstd = types.OCILayerZStd
	for name, tc := range map[string]struct {
		app, base v1.Image
		want      []types.MediaType // of manifest, config and layers
	}{
		"OCI onto Docker":    {oci, old, []types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, types.OCILayer, types.OCILayer}},
		"Docker onto OCI":    {old, oci, []types.MediaType{types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, types.DockerLayer, types.DockerLayer}},
		"Docker onto Docker": {old, old, []types.MediaType{types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, types.DockerLayer, types.DockerLayer}},
		"mixed up":           {mixed, oci, []types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, types.OCILayer, types.OCILayer}},
		"Docker onto zstd": {old, docker(types.OCIManifestSchema1, types.OCIConfigJSON, typed{gz(""), zstd}),
			[]types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, zstd, types.OCILayer}},
		"zstd onto Docker": {docker(types.OCIManifestSchema1, types.OCIConfigJSON, gz(types.OCILayer), typed{gz(""), zstd}), old,
			[]types.MediaType{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, types.OCILayer, zstd}},
	} {
		img := rebased(t, tc.app, tc.base, 1)
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		mt, err := img.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		got := []types.MediaType{mt, m.Config.MediaType}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range m.Layers {
			got = append(got, d.MediaType)
			if lmt, err := layers[i].MediaType(); err != nil || lmt != d.MediaType {
				t.Errorf("%s: layer %d calls itself %s, the manifest %s (%v)", name, i, lmt, d.MediaType, err)
			}
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", name, d)
		}
		known, err := image.KnownFrom(tc.app, tc.base)
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), img, known); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRebaseRefuses(t *testing.T) {
	app, base := imagetest.Random(t, 2), imagetest.Random(t, 1)
	for _, n := range []int{-1, 3} {
		if _, err := image.Rebase(app, base, n, nil); err == nil {
			t.Errorf("%d layers of two were replaced", n)
		}
	}
	const manifest = `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL},"layers":[]}`
	for _, config := range []string{
		`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"Rootfs":{"type":"layers","diff_ids":[]}}`,
		`{"os":"linux","os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`,
		`{"os":"windows","OS":"windows","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`,
		`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"config":{"Labels":{"a":"1"},"labels":{"b":"2"}}}`,
		`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"History":[{"created_by":"x","empty_layer":true}]}`,
	} {
		img, err := image.Rebase(write(t, config, manifest, types.OCIManifestSchema1), base, 0, func(l map[string]string) { l["b"] = "new" })
		if err == nil {
			raw, _ := img.RawConfigFile()
			t.Errorf("%s was taken: %s", config, raw)
		}
	}
}

// config data in the descriptor is the old config's.
func TestRebaseDropsInlineConfig(t *testing.T) {
	app := write(t, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`,
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",FILL,"data":"e30="},"layers":[]}`, types.OCIManifestSchema1)
	raw, err := rebased(t, app, imagetest.Random(t, 1), 0).RawManifest()
	if err != nil || bytes.Contains(raw, []byte("data")) {
		t.Errorf("%s %v", raw, err)
	}
}

// drawImage makes an image of a few layers of a pool, some of them the same.
func drawImage(rt *rapid.T, t *testing.T, pool []v1.Layer, name string, kind types.MediaType) v1.Image {
	var adds []mutate.Addendum
	layers := 0
	times := []v1.Time{{}, {Time: time.Unix(315532801, 0).UTC()}, {Time: time.Unix(1e9, 5).UTC()}}
	form := rapid.IntRange(0, 3).Draw(rt, name+" history")
	created := rapid.SampledFrom(times).Draw(rt, name+" created")
	for i := range rapid.IntRange(0, 6).Draw(rt, name+" entries") {
		h := v1.History{Created: created}
		if form > 0 {
			h.CreatedBy = fmt.Sprintf("<%s %d>", name, i)
		}
		if form > 1 {
			h.Created = rapid.SampledFrom(times).Draw(rt, name+" entry")
		}
		if form > 2 && rapid.Bool().Draw(rt, name+" empty") {
			h.EmptyLayer = true
			adds = append(adds, mutate.Addendum{History: h})
			continue
		}
		l := pool[rapid.IntRange(0, len(pool)-1).Draw(rt, name+" layer")]
		mt, err := l.MediaType()
		if err != nil {
			rt.Fatal(err)
		}
		if kind == types.DockerManifestSchema2 {
			mt = map[types.MediaType]types.MediaType{types.OCILayer: types.DockerLayer, types.OCIUncompressedLayer: types.DockerUncompressedLayer}[mt]
		}
		adds = append(adds, mutate.Addendum{Layer: typed{l, mt}, History: h, MediaType: mt})
		layers++
	}
	img, err := mutate.Append(empty.Image, adds...)
	if err != nil {
		rt.Fatal(err)
	}
	cf := configOf(t, img)
	cf.OS, cf.Architecture = "linux", rapid.SampledFrom([]string{"amd64", "arm64"}).Draw(rt, name+" arch")
	cf.Variant = rapid.SampledFrom([]string{"", "v7", "v8"}).Draw(rt, name+" variant")
	cf.OSVersion = rapid.SampledFrom([]string{"", "1", "2"}).Draw(rt, name+" version")
	cf.Created = created
	cf.Config.Labels = map[string]string{"of": name}
	if rapid.IntRange(0, 4).Draw(rt, name+" none") == 0 {
		cf.History = nil
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		rt.Fatal(err)
	}
	config := types.OCIConfigJSON
	if kind == types.DockerManifestSchema2 {
		config = types.DockerConfigJSON
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, kind), config)
}

// onTop is base with an app's layers, its documents written by an exporter of
// the test's own: history kept, or normalised, or left out.
func onTop(rt *rapid.T, t *testing.T, base v1.Image, kind types.MediaType, app []v1.Layer) v1.Image {
	cf := configOf(t, base).DeepCopy()
	m, err := base.Manifest()
	if err != nil {
		rt.Fatal(err)
	}
	layers, err := base.Layers()
	if err != nil {
		rt.Fatal(err)
	}
	filled := 0
	for _, h := range cf.History {
		if !h.EmptyLayer {
			filled++
		}
	}
	form := rapid.SampledFrom([]string{"verbatim", "plain", "blank", "none"}).Draw(rt, "exporter")
	if filled != len(layers) {
		cf.History = make([]v1.History, len(layers))
		if form != "none" {
			form = "blank"
		}
	}
	stamp := v1.Time{Time: time.Unix(315532801, 0).UTC()}
	var history []v1.History
	for i, h := range append(cf.History, make([]v1.History, len(app))...) {
		if i >= len(cf.History) {
			h = v1.History{CreatedBy: fmt.Sprintf("app %d", i-len(cf.History)), Created: v1.Time{Time: time.Unix(77, 0).UTC()}}
		}
		switch {
		case form == "verbatim":
		case h.EmptyLayer:
			continue
		case form == "blank":
			h = v1.History{Created: stamp}
		default:
			h.Created = stamp
		}
		history = append(history, h)
	}
	if form == "none" {
		history = nil
	}
	cf.Created, cf.History = stamp, history
	docker := map[types.MediaType]types.MediaType{types.OCILayer: types.DockerLayer, types.OCIUncompressedLayer: types.DockerUncompressedLayer}
	oci := map[types.MediaType]types.MediaType{types.DockerLayer: types.OCILayer, types.DockerUncompressedLayer: types.OCIUncompressedLayer}
	names, config := oci, types.OCIConfigJSON
	if kind == types.DockerManifestSchema2 {
		names, config = docker, types.DockerConfigJSON
	}
	for _, l := range app {
		d, err := partial.Descriptor(l)
		if err != nil {
			rt.Fatal(err)
		}
		diffID, err := l.DiffID()
		if err != nil {
			rt.Fatal(err)
		}
		m.Layers, cf.RootFS.DiffIDs = append(m.Layers, *d), append(cf.RootFS.DiffIDs, diffID)
		layers = append(layers, l)
	}
	for i := range m.Layers {
		if mt, ok := names[m.Layers[i].MediaType]; ok {
			m.Layers[i].MediaType, layers[i] = mt, typed{layers[i], mt}
		}
	}
	rawConfig, err := json.Marshal(cf)
	if err != nil {
		rt.Fatal(err)
	}
	m.MediaType = kind
	m.Config = v1.Descriptor{MediaType: config, Size: int64(len(rawConfig)), Digest: imagetest.Sum(rawConfig)}
	rawManifest, err := json.Marshal(m)
	if err != nil {
		rt.Fatal(err)
	}
	return write(t, string(rawConfig), string(rawManifest), kind, layers...)
}

// Whatever app and bases are: the layers are base's and then the app's, the
// image is whole, twice is once, and there and back is where it began.
func TestRebaseThereAndBack(t *testing.T) {
	pool := []v1.Layer{}
	for i := range 3 {
		body := imagetest.Tar(t, i*10)
		pool = append(pool, imagetest.Layer(t, body), imagetest.Gzip(t, body))
	}
	kinds := []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2}
	rapid.Check(t, func(rt *rapid.T) {
		old := drawImage(rt, t, pool, "old", rapid.SampledFrom(kinds).Draw(rt, "old kind"))
		next := drawImage(rt, t, pool, "new", rapid.SampledFrom(kinds).Draw(rt, "new kind"))
		var own []v1.Layer
		for range rapid.IntRange(1, 4).Draw(rt, "own layers") {
			own = append(own, pool[rapid.IntRange(0, len(pool)-1).Draw(rt, "own")])
		}
		app := onTop(rt, t, old, rapid.SampledFrom(kinds).Draw(rt, "kind"), own)
		oldLayers, newLayers := len(configOf(t, old).RootFS.DiffIDs), len(configOf(t, next).RootFS.DiffIDs)

		there := rebased(t, app, next, oldLayers)
		if err := image.Validate(t.Context(), there, nil); err != nil {
			rt.Fatal(err)
		}
		want := append(slices.Clone(configOf(t, next).RootFS.DiffIDs), configOf(t, app).RootFS.DiffIDs[oldLayers:]...)
		if d := cmp.Diff(want, configOf(t, there).RootFS.DiffIDs); d != "" {
			rt.Fatalf("diffIDs (-want +got)\n%s", d)
		}
		layers, err := there.Layers()
		if err != nil {
			rt.Fatal(err)
		}
		m, err := there.Manifest()
		if err != nil {
			rt.Fatal(err)
		}
		for i, l := range layers {
			if h, err := l.DiffID(); err != nil || h != want[i] {
				rt.Fatalf("layer %d is %s, want %s (%v)", i, h, want[i], err)
			}
			if h, err := l.Digest(); err != nil || h != m.Layers[i].Digest {
				rt.Fatalf("layer %d has the digest %s, the manifest says %s (%v)", i, h, m.Layers[i].Digest, err)
			}
		}
		cf := configOf(t, there)
		if base := configOf(t, next); cf.OS != base.OS || cf.Architecture != base.Architecture || cf.Variant != base.Variant || cf.OSVersion != base.OSVersion {
			rt.Fatal("the platform is not the base's")
		}
		if (len(cf.History) == 0) != (len(configOf(t, app).History) == 0) && len(want) > 0 {
			rt.Fatalf("history of %d entries, the app had %d", len(cf.History), len(configOf(t, app).History))
		}
		if again := rebased(t, there, next, newLayers); digest(t, again) != digest(t, there) {
			rt.Fatalf("twice is not once\n%s", cmp.Diff(documents(t, there), documents(t, again)))
		}
		if back := rebased(t, there, old, newLayers); digest(t, back) != digest(t, app) {
			rt.Fatalf("there and back is another image (-app +back)\n%s", cmp.Diff(documents(t, app), documents(t, back)))
		}
	})
}

// FuzzRebase: whatever an image's documents say, rebasing it is an error or an
// image that names a layer for each diffID, and rebasing that again changes
// nothing.
func FuzzRebase(f *testing.F) {
	var seeds testing.T
	l := imagetest.Layer(&seeds, imagetest.Tar(&seeds, 1))
	diffID, err := l.DiffID()
	if err != nil {
		f.Fatal(err)
	}
	layers := fmt.Sprintf(`[{"mediaType":"%s","size":1,"digest":"%s"}]`, types.OCILayer, diffID)
	f.Add(fmt.Sprintf(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]},"history":[{"empty_layer":true},{"created_by":"x"}],"x":{"y":1}}`, diffID),
		`{"schemaVersion":2,"config":{FILL,"x":1},"layers":`+layers+`,"annotations":{"a":"b"}}`, uint8(1))
	f.Add(`{"rootfs":{"diff_ids":["`+diffID.String()+`"]},"history":null,"config":{"Labels":null}}`, `{"config":{FILL},"layers":`+layers+`}`, uint8(0))
	f.Add(`{"rootfs":[],"history":{}}`, `{"layers":{}}`, uint8(255))
	f.Add(`[`, `null`, uint8(0))
	base := imagetest.Random(&seeds, 2)
	f.Fuzz(func(t *testing.T, config, manifest string, n uint8) {
		manifest = strings.Replace(manifest, "FILL", fmt.Sprintf(`"size":%d,"digest":"%s"`, len(config), imagetest.Sum([]byte(config))), 1)
		app, err := partial.CompressedToImage(written{config, manifest, types.OCIManifestSchema1, []v1.Layer{l}})
		if err != nil {
			return
		}
		labels := func(m map[string]string) { m["new"] = "label" }
		once, err := image.Rebase(app, base, int(n), labels)
		if err != nil {
			return
		}
		m, err := once.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if cf := configOf(t, once); len(m.Layers) != len(cf.RootFS.DiffIDs) || len(m.Layers) < 2 {
			t.Errorf("%d layers, %d diffIDs", len(m.Layers), len(cf.RootFS.DiffIDs))
		}
		twice, err := image.Rebase(once, base, 2, labels)
		if err != nil {
			t.Fatalf("once, and not twice: %v", err)
		}
		if a, b := digest(t, once), digest(t, twice); a != b {
			t.Errorf("rebased is %s, and rebased again %s", a, b)
		}
	})
}
