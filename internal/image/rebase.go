package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Rebase derives an image: app with its lowest n layers replaced by those of
// base (Platform API, "rebaser"). No layer is read. The layers above keep their
// digests, descriptors and places; operating system, architecture and variant
// are base's; labels, if not nil, may change a copy of app's labels. All else in
// config and manifest stays as it was written, keys that nobody knows too. The
// manifest stays of app's kind, Docker's or OCI's, and base's media types are
// renamed to fit; only what Docker has no name for makes an OCI image of it.
//
// A history, if app has one, gets base's entries for base's layers, in the form
// that the entries of app have: an exporter may have left out entries without a
// layer, set all times to one, or everything else to nothing. What does not fit
// its layers, entry by layer, becomes blank entries.
//
// Rebasing twice is rebasing once, and rebasing back gives the first image again.
func Rebase(app, base v1.Image, n int, labels func(map[string]string)) (v1.Image, error) {
	top, err := takeApart(app)
	if err != nil {
		return nil, fmt.Errorf("rebase image: %w", err)
	}
	below, err := takeApart(base)
	if err != nil {
		return nil, fmt.Errorf("rebase onto image: %w", err)
	}
	if n < 0 || n > len(top.layers) {
		return nil, fmt.Errorf("rebase image: it has %d layers, not %d to replace", len(top.layers), n)
	}
	r := rebase{app: top, base: below, n: n}
	rawConfig, config, err := r.config(labels)
	if err != nil {
		return nil, fmt.Errorf("rebase image: config: %w", err)
	}
	img, err := r.manifest(rawConfig)
	if err != nil {
		return nil, fmt.Errorf("rebase image: manifest: %w", err)
	}
	img.config = config
	return img, nil
}

// apart is an image with its documents as they are written.
type apart struct {
	manifest               *v1.Manifest
	config                 *v1.ConfigFile
	layers                 []v1.Layer
	mediaType              types.MediaType
	rawManifest, rawConfig []byte
}

func takeApart(img v1.Image) (a apart, err error) {
	if a.manifest, a.config, a.layers, err = parts(img); err != nil {
		return a, err
	}
	if a.mediaType, err = img.MediaType(); err != nil {
		return a, fmt.Errorf("manifest: %w", err)
	}
	if a.rawManifest, err = img.RawManifest(); err != nil {
		return a, fmt.Errorf("manifest: %w", err)
	}
	if a.rawConfig, err = img.RawConfigFile(); err != nil {
		return a, fmt.Errorf("config: %w", err)
	}
	return a, nil
}

type rebase struct {
	app, base apart
	n         int // layers of app that go
}

// config edits the app's.
func (r rebase) config(labels func(map[string]string)) ([]byte, *v1.ConfigFile, error) {
	o, err := spec.ParseObject(r.app.rawConfig)
	if err != nil {
		return nil, nil, err
	}
	want := r.app.config.DeepCopy()
	if err := r.platform(o, want); err != nil {
		return nil, nil, err
	}
	want.RootFS.DiffIDs = append(slices.Clone(r.base.config.RootFS.DiffIDs), r.app.config.RootFS.DiffIDs[r.n:]...)
	if err := setIn(o, "rootfs", "diff_ids", want.RootFS.DiffIDs); err != nil {
		return nil, nil, err
	}
	if err := r.history(o); err != nil {
		return nil, nil, err
	}
	if labels != nil {
		if want.Config.Labels, err = relabel(o, want.Config.Labels, labels); err != nil {
			return nil, nil, err
		}
	}
	raw := o.Bytes()
	got, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, err
	}
	return raw, got, agrees(got, want)
}

// platform is what an app runs on: its base's.
func (r rebase) platform(o *spec.Object, want *v1.ConfigFile) error {
	base := r.base.config
	if want.OSVersion != base.OSVersion || want.Variant != base.Variant {
		// Both anew, so that they are in one order however they came and went.
		o.Delete("os.version")
		o.Delete("variant")
	}
	want.OS, want.Architecture, want.OSVersion, want.Variant = base.OS, base.Architecture, base.OSVersion, base.Variant
	for _, field := range []struct {
		name, value string
		optional    bool
	}{{"architecture", want.Architecture, false}, {"os", want.OS, false}, {"os.version", want.OSVersion, true}, {"variant", want.Variant, true}} {
		if field.optional && field.value == "" {
			continue
		}
		if err := o.Set(field.name, field.value); err != nil {
			return err
		}
	}
	return nil
}

// setIn sets a key of an object in o.
func setIn(o *spec.Object, outer, inner string, v any) error {
	child, err := o.Object(outer)
	if err != nil {
		return err
	}
	if err := child.Set(inner, v); err != nil {
		return err
	}
	o.Put(outer, child.Bytes())
	return nil
}

// relabel hands a copy of the labels to change and puts what changed into o.
func relabel(o *spec.Object, old map[string]string, change func(map[string]string)) (map[string]string, error) {
	labels := maps.Clone(old)
	if labels == nil {
		labels = map[string]string{}
	}
	change(labels)
	if maps.Equal(labels, old) {
		return old, nil
	}
	config, err := o.Object("config")
	if err != nil {
		return nil, err
	}
	written, err := config.Object("Labels")
	if err != nil {
		return nil, err
	}
	var next spec.Object
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if raw := written.Raw(key); raw != nil && old[key] == labels[key] {
			next.Put(key, raw)
		} else if err := next.Set(key, labels[key]); err != nil {
			return nil, err
		}
	}
	config.Put("Labels", next.Bytes())
	o.Put("config", config.Bytes())
	return labels, nil
}

// agrees makes sure that everybody reads the edited config as it is meant:
// decoders differ in keys that differ in case only.
func agrees(got, want *v1.ConfigFile) error {
	switch {
	case !slices.Equal(got.RootFS.DiffIDs, want.RootFS.DiffIDs):
	case len(got.History) > 0 && !historyFits(got):
	case !maps.Equal(got.Config.Labels, want.Config.Labels):
	case got.OS != want.OS, got.Architecture != want.Architecture, got.OSVersion != want.OSVersion, got.Variant != want.Variant:
	default:
		return nil
	}
	return invalid("it has a key in more than one spelling")
}

// manifest edits the app's to list base's layers, then the app's own.
func (r rebase) manifest(rawConfig []byte) (*value, error) {
	o, err := spec.ParseObject(r.app.rawManifest)
	if err != nil {
		return nil, err
	}
	kind := manifestType(r.app.mediaType, r.base.manifest.Layers)
	if kind != r.app.mediaType {
		if err := o.Set("mediaType", kind); err != nil {
			return nil, err
		}
	}
	config, err := o.Object("config")
	if err != nil {
		return nil, err
	}
	sum := sum(rawConfig)
	if sum != r.app.manifest.Config.Digest {
		config.Delete("data") // the document itself, which some tools put there
		config.Put("digest", quoted(sum.String()))
		config.Put("size", json.RawMessage(fmt.Sprint(len(rawConfig))))
	}
	if isDocker(r.app.manifest.Config.MediaType) != isDocker(kind) {
		config.Put("mediaType", quoted(string(configType(kind))))
	}
	o.Put("config", config.Bytes())

	layers := append(slices.Clone(r.base.layers), r.app.layers[r.n:]...)
	descriptors, err := r.descriptors()
	if err != nil {
		return nil, err
	}
	for i := range descriptors {
		if descriptors[i], layers[i], err = retype(descriptors[i], layers[i], family(kind)); err != nil {
			return nil, err
		}
	}
	o.Put("layers", spec.List(descriptors))
	raw := o.Bytes()
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(layers) || m.Config.Digest != sum {
		return nil, invalid("it has a key in more than one spelling")
	}
	return &value{rawManifest: raw, rawConfig: rawConfig, manifest: m, layers: layers}, nil
}

func quoted(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a string always can be
	return b
}

// descriptors are those of base's layers and the app's own, as they are written.
func (r rebase) descriptors() ([]json.RawMessage, error) {
	var lists [2][]json.RawMessage
	for i, a := range []apart{r.base, r.app} {
		o, err := spec.ParseObject(a.rawManifest)
		if err != nil {
			return nil, err
		}
		if err := o.Get("layers", &lists[i]); err != nil {
			return nil, err
		}
		if len(lists[i]) != len(a.layers) {
			return nil, invalid("it has a key in more than one spelling")
		}
	}
	return append(lists[0], lists[1][r.n:]...), nil
}

// retype renames the media type of a layer, if it has to be.
func retype(descriptor json.RawMessage, l v1.Layer, names map[types.MediaType]types.MediaType) (json.RawMessage, v1.Layer, error) {
	o, err := spec.ParseObject(descriptor)
	if err != nil {
		return nil, nil, fmt.Errorf("layers: %w", err)
	}
	var mt types.MediaType
	if err := o.Get("mediaType", &mt); err != nil {
		return nil, nil, fmt.Errorf("layers: %w", err)
	}
	t, ok := names[mt]
	if !ok {
		return descriptor, l, nil
	}
	o.Put("mediaType", quoted(string(t)))
	return o.Bytes(), &retyped{l, t}, nil
}
