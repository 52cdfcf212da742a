package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	oci "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names lists the images in a place, each with the names that it has there: none
// for an image without a name. Whoever replaces an image needs to know them,
// since an archive is written anew as a whole.
func (l Layout) Names(context.Context) ([][]string, error) { return layoutNames(l.open, l.Dir) }

// Names is Layout's, of the archive.
func (a OCIArchive) Names(ctx context.Context) ([][]string, error) {
	x, err := indexTar(ctx, a.Path)
	if err != nil {
		return nil, fmt.Errorf("read OCI archive %s: %w", a.Path, notThere(a.Path, err))
	}
	return layoutNames(x.open, a.Path)
}

// Names is Layout's, of the archive.
func (a DockerArchive) Names(ctx context.Context) ([][]string, error) {
	fail := func(err error) ([][]string, error) {
		return nil, fmt.Errorf("read docker archive %s: %w", a.Path, notThere(a.Path, err))
	}
	x, err := indexTar(ctx, a.Path)
	if err != nil {
		return fail(err)
	}
	raw, err := opener(x.open).readFile(dockerManifest, maxManifest)
	if err != nil {
		return fail(err)
	}
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return fail(fmt.Errorf("parse %s: %w", dockerManifest, err))
	}
	var names [][]string
	for _, e := range entries {
		names = append(names, e.RepoTags)
	}
	return names, nil
}

func layoutNames(open opener, path string) ([][]string, error) {
	raw, err := open.readFile(oci.ImageIndexFile, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("read OCI layout %s: %w", path, notThere(path, err))
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("read OCI layout %s: parse %s: %w", path, oci.ImageIndexFile, err)
	}
	var names [][]string
	for _, d := range index.Manifests {
		var list []string
		if name := d.Annotations[oci.AnnotationRefName]; name != "" {
			list = append(list, name)
		}
		names = append(names, list)
	}
	return names, nil
}
