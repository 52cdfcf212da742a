package image

import (
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Images are of one of two kinds, Docker's and OCI's, that differ in nothing but
// the media types in the manifest. What is derived from an image is of its kind,
// as with the reference lifecycle (requirements 5.4).

// AsOCI is img with OCI's media types: in an OCI layout most tools do not see an
// image with Docker's. Its config, and so its ID, and its layers are the same.
func AsOCI(img v1.Image) (v1.Image, error) {
	mt, err := img.MediaType()
	if err != nil || !isDocker(mt) {
		return img, err
	}
	manifest, config, layers, err := parts(img)
	if err != nil {
		return nil, fmt.Errorf("make an OCI image: %w", err)
	}
	rawConfig, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("make an OCI image: config: %w", err)
	}
	manifest.MediaType, manifest.Config.MediaType = types.OCIManifestSchema1, types.OCIConfigJSON
	for i := range manifest.Layers {
		if t, ok := ociTypes[manifest.Layers[i].MediaType]; ok {
			manifest.Layers[i].MediaType, layers[i] = t, &retyped{layers[i], t}
		}
	}
	rawManifest, err := json.Marshal(manifest)
	if err != nil {
		return nil, fmt.Errorf("make an OCI image: encode manifest: %w", err)
	}
	return &value{rawManifest: rawManifest, rawConfig: rawConfig, manifest: manifest, config: config, layers: layers}, nil
}

func isDocker(mt types.MediaType) bool {
	return strings.Contains(string(mt), types.DockerVendorPrefix)
}

// ociTypes maps Docker's media types to the OCI names of the same bytes.
var ociTypes = map[types.MediaType]types.MediaType{
	types.DockerLayer:             types.OCILayer,
	types.DockerUncompressedLayer: types.OCIUncompressedLayer,
	types.DockerForeignLayer:      types.OCIRestrictedLayer,
}

// dockerTypes is ociTypes the other way.
var dockerTypes = map[types.MediaType]types.MediaType{
	types.OCILayer:             types.DockerLayer,
	types.OCIUncompressedLayer: types.DockerUncompressedLayer,
	types.OCIRestrictedLayer:   types.DockerForeignLayer,
}

// manifestType is the media type of a manifest of these layers: kind, unless it
// is Docker's and has no name for one of them.
func manifestType(kind types.MediaType, layers []v1.Descriptor) types.MediaType {
	for _, d := range layers {
		if _, named := dockerTypes[d.MediaType]; !named && !isDocker(d.MediaType) && isDocker(kind) {
			return types.OCIManifestSchema1
		}
	}
	return kind
}

func configType(manifest types.MediaType) types.MediaType {
	if isDocker(manifest) {
		return types.DockerConfigJSON
	}
	return types.OCIConfigJSON
}

// family is how layers have to be renamed to stand in a manifest of that type:
// one that mixes Docker's media types with OCI's is refused by some tools.
func family(manifest types.MediaType) map[types.MediaType]types.MediaType {
	if isDocker(manifest) {
		return dockerTypes
	}
	return ociTypes
}

// retyped is a layer under another media type for the same bytes.
type retyped struct {
	v1.Layer
	mediaType types.MediaType
}

func (l *retyped) MediaType() (types.MediaType, error) { return l.mediaType, nil }

// Unwrap returns the layer that was given: a Target may know it.
func (l *retyped) Unwrap() v1.Layer { return l.Layer }
