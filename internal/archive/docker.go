package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
)

// dockerEntry is one image in manifest.json, in docker's words.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

const dockerManifest = "manifest.json"

// Write replaces the file with one that holds img, tagged ref unless that is ""
// or a digest. The image ID is that of img; the manifest is not kept, since the
// format has no place for it.
func (a DockerArchive) Write(ctx context.Context, ref string, img v1.Image) error {
	err := writeFile(a.Path, func(f *os.File) error { return writeDocker(ctx, f, ref, img) })
	if err != nil {
		return fmt.Errorf("write image %q to docker archive %s: %w", ref, a.Path, err)
	}
	return nil
}

// repoTags is what docker load calls the image: the name as typed, with a tag.
func repoTags(ref string) ([]string, error) {
	if ref == "" {
		return []string{}, nil
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("invalid image reference: %w", err)
	}
	tag, ok := parsed.(name.Tag)
	if !ok {
		return []string{}, nil
	}
	if strings.HasSuffix(ref, ":"+tag.TagStr()) {
		return []string{ref}, nil
	}
	return []string{ref + ":" + tag.TagStr()}, nil
}

func writeDocker(ctx context.Context, f *os.File, ref string, img v1.Image) error {
	tags, err := repoTags(ref)
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	cf, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return fmt.Errorf("parse config: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return fmt.Errorf("read layers: %w", err)
	}
	if len(layers) != len(cf.RootFS.DiffIDs) {
		return fmt.Errorf("%w: %d layers, %d diffIDs", image.ErrInvalid, len(layers), len(cf.RootFS.DiffIDs))
	}
	entry := dockerEntry{Config: hashOf(config).Hex + ".json", RepoTags: tags, Layers: []string{}}
	for _, h := range cf.RootFS.DiffIDs {
		entry.Layers = append(entry.Layers, h.Hex+".tar")
	}
	manifest, err := json.Marshal([]dockerEntry{entry})
	if err != nil {
		return err
	}
	w := &tarWriter{f: f}
	if err := errors.Join(w.bytes(dockerManifest, manifest), w.bytes(entry.Config, config)); err != nil {
		return err
	}
	seen := map[v1.Hash]bool{}
	for i, l := range layers {
		diffID := cf.RootFS.DiffIDs[i]
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		if err := w.file(entry.Layers[i], func(out io.Writer) error { return copyPlain(ctx, out, l, diffID) }); err != nil {
			return err
		}
	}
	return w.close()
}

// copyPlain streams the uncompressed layer. Its size may be unknown until then.
func copyPlain(ctx context.Context, w io.Writer, l v1.Layer, diffID v1.Hash) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return fmt.Errorf("open layer %s: %w", diffID, err)
	}
	defer rc.Close()
	got, _, err := v1.SHA256(io.TeeReader(&ctxReader{ctx, rc}, w))
	if err != nil {
		return fmt.Errorf("copy layer %s: %w", diffID, err)
	}
	if got != diffID {
		return fmt.Errorf("copy layer %s: %w: its bytes have %s", diffID, image.ErrInvalid, got)
	}
	return nil
}

// Image opens the image of that reference, or the only one there is when ref
// is "". It has Docker's media types, and its layers are as they are in the
// file: plain tar mostly, so their digests are their diffIDs.
func (a DockerArchive) Image(ctx context.Context, ref string) (v1.Image, error) {
	img, err := a.image(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("read image %q from docker archive %s: %w", ref, a.Path, notThere(a.Path, err))
	}
	return img, nil
}

func (a DockerArchive) image(ctx context.Context, ref string) (v1.Image, error) {
	x, err := indexTar(ctx, a.Path)
	if err != nil {
		return nil, err
	}
	open := opener(x.open)
	raw, err := open.readFile(dockerManifest, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s in it: it was not written by docker save", dockerManifest)
	} else if err != nil {
		return nil, err
	}
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("parse %s: %w", dockerManifest, err)
	}
	entry, err := findTag(entries, ref)
	if err != nil {
		return nil, err
	}
	config, err := open.readFile(entry.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	cf, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", entry.Config, err)
	}
	if len(cf.RootFS.DiffIDs) != len(entry.Layers) {
		return nil, fmt.Errorf("%w: %s names %d layers, the config has %d diffIDs", image.ErrInvalid, dockerManifest, len(entry.Layers), len(cf.RootFS.DiffIDs))
	}
	return dockerImage(ctx, open, entry, config, cf)
}

// findTag looks for ref among the tags, however short either is written.
func findTag(entries []dockerEntry, ref string) (dockerEntry, error) {
	if ref == "" && len(entries) == 1 {
		return entries[0], nil
	}
	var tags []string
	for _, e := range entries {
		if ref != "" && slices.ContainsFunc(e.RepoTags, func(t string) bool { return fullName(t) == fullName(ref) }) {
			return e, nil
		}
		tags = append(tags, e.RepoTags...)
	}
	return dockerEntry{}, fmt.Errorf("%w: it has %q", image.ErrNotFound, tags)
}

func fullName(ref string) string {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return ref
	}
	return parsed.Name()
}

// dockerImage makes the manifest that the archive lacks.
func dockerImage(ctx context.Context, open opener, entry dockerEntry, config []byte, cf *v1.ConfigFile) (v1.Image, error) {
	m := &v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.DockerManifestSchema2,
		Config:        v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config)), Digest: hashOf(config)},
		Layers:        []v1.Descriptor{},
	}
	v := &fileImage{mediaType: m.MediaType, config: config, parsed: m}
	for i, file := range entry.Layers {
		desc, err := dockerLayer(ctx, open, file, cf.RootFS.DiffIDs[i])
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, desc)
		v.layers = append(v.layers, &fileLayer{desc: desc, diffID: cf.RootFS.DiffIDs[i], open: func() (io.ReadCloser, error) {
			rc, _, err := open(file)
			if err != nil {
				return nil, err
			}
			return checked(rc, desc), nil
		}})
	}
	var err error
	v.manifest, err = json.Marshal(m)
	return v, err
}

// dockerLayer describes a layer. A compressed one, which some tools write, has
// to be read for its digest.
func dockerLayer(ctx context.Context, open opener, file string, diffID v1.Hash) (v1.Descriptor, error) {
	rc, size, err := open(file)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer rc.Close()
	magic := make([]byte, 4)
	n, err := io.ReadFull(rc, magic)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return v1.Descriptor{}, fmt.Errorf("read %s: %w", file, err)
	}
	if !isCompressed(magic[:n]) {
		return v1.Descriptor{MediaType: types.DockerUncompressedLayer, Size: size, Digest: diffID}, nil
	}
	if magic[0] != 0x1f {
		return v1.Descriptor{}, fmt.Errorf("read %s: compressed in a way that this format does not know", file)
	}
	digest, _, err := v1.SHA256(&ctxReader{ctx, io.MultiReader(bytes.NewReader(magic[:n]), rc)})
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("read %s: %w", file, err)
	}
	return v1.Descriptor{MediaType: types.DockerLayer, Size: size, Digest: digest}, nil
}
