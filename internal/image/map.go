package image

import (
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// MapLayers derives an image with other forms of the same layers, compressed
// ones say: f gets each layer and returns one with the same diffID. The config,
// and with it the image's ID, stays byte for byte; the manifest changes only
// where a layer does.
func MapLayers(img v1.Image, f func(v1.Layer) (v1.Layer, error)) (v1.Image, error) {
	manifest, config, layers, err := parts(img)
	if err != nil {
		return nil, fmt.Errorf("map layers: %w", err)
	}
	rawConfig, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("map layers: config: %w", err)
	}
	for i, l := range layers {
		mapped, err := f(l)
		if err != nil {
			return nil, fmt.Errorf("map layer %d: %w", i, err)
		}
		desc, diffID, err := describe(mapped)
		if err != nil {
			return nil, fmt.Errorf("map layer %d: %w", i, err)
		}
		if diffID != config.RootFS.DiffIDs[i] {
			return nil, fmt.Errorf("map layer %d: %w: the new form has the diffID %s, not %s", i, ErrInvalid, diffID, config.RootFS.DiffIDs[i])
		}
		if t, ok := family(manifest.MediaType)[desc.MediaType]; ok {
			desc.MediaType, mapped = t, &retyped{mapped, t}
		}
		desc.Annotations = manifest.Layers[i].Annotations
		layers[i], manifest.Layers[i] = mapped, desc
	}
	rawManifest, err := json.Marshal(manifest)
	if err != nil {
		return nil, fmt.Errorf("map layers: encode manifest: %w", err)
	}
	return &value{rawManifest: rawManifest, rawConfig: rawConfig, manifest: manifest, config: config, layers: layers}, nil
}
