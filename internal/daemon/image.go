package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
)

// inspected is what the daemon tells of an image.
type inspected struct {
	ID           string `json:"Id"`
	Created      string
	Author       string
	Container    string
	Architecture string
	Variant      string
	Os           string
	OsVersion    string
	Config       *v1.Config
	RootFS       struct{ Layers []v1.Hash }
}

var (
	imageID    = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	partOfID   = regexp.MustCompile(`^[0-9a-f]{6,64}$`)
	needsClean = regexp.MustCompile(`(^|/)\.{0,2}(/|$)`)
)

// names are the ways to ask the daemon for ref. Short names are Docker Hub's;
// podman may also have an image of its own by one.
func names(ref string) ([]string, error) {
	if imageID.MatchString(ref) {
		return []string{ref}, nil
	}
	full, err := fullName(ref)
	if err != nil {
		if partOfID.MatchString(ref) {
			return []string{ref}, nil
		}
		return nil, err
	}
	return []string{full, ref}, nil
}

// fullName is a reference as Docker has it: with registry, namespace and tag.
func fullName(ref string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("invalid image reference: %w", err)
	}
	registry := parsed.Context().RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	repo := registry + "/" + parsed.Context().RepositoryStr()
	if needsClean.MatchString(repo) {
		return "", fmt.Errorf("invalid image reference: %q", ref)
	}
	separator := ":"
	if _, ok := parsed.(name.Digest); ok {
		separator = "@"
	}
	return repo + separator + parsed.Identifier(), nil
}

// lookup inspects the image that ref means now.
func (d *Daemon) lookup(ctx context.Context, ref string) (inspected, error) {
	all, err := names(ref)
	if err != nil {
		return inspected{}, err
	}
	var in inspected
	for _, n := range all {
		in = inspected{}
		_, err = d.get(ctx, "inspect image "+ref, "/images/"+escape(n)+"/json", &in)
		if err == nil || !errors.Is(err, image.ErrNotFound) {
			break
		}
	}
	if err == nil {
		err = in.check()
	}
	if err == nil {
		d.learn(in)
	}
	return in, err
}

// check refuses what cannot be an image.
func (in inspected) check() error {
	if !imageID.MatchString(in.ID) {
		return fmt.Errorf("%w: the daemon says that its ID is %q", image.ErrInvalid, clip(in.ID))
	}
	if in.Config == nil {
		return fmt.Errorf("%w: the daemon tells no config of it", image.ErrInvalid)
	}
	return nil
}

// written is the config of an image that was written from here.
func (d *Daemon) written(id string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.configs[id]
}

// learn remembers which layers the daemon has.
func (d *Daemon) learn(in inspected) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.chains = append(d.chains, in.RootFS.Layers)
}

// escape makes a name part of a URL's path.
func escape(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// remote is an image in the daemon.
type remote struct {
	ctx       context.Context // of who opened it: v1.Image has no room for one
	d         *Daemon
	in        inspected
	described bool
	renamed   bool // the daemon's ID says nothing of the config
	config    *v1.ConfigFile
	raw       []byte // the bytes of the config; nil if they are not known
	manifest  *v1.Manifest
}

var _ v1.Image = (*remote)(nil)

// remote completes what inspect tells by the history.
func (d *Daemon) remote(ctx context.Context, in inspected, described bool) (*remote, error) {
	r := &remote{ctx: ctx, d: d, in: in, described: described}
	steps, err := d.history(ctx, &in)
	if err != nil {
		return nil, err
	}
	r.config = in.configFile(steps)
	if r.raw, err = d.rawConfig(in.ID, r.config); err != nil {
		return nil, err
	}
	if r.raw != nil {
		if r.config, err = v1.ParseConfigFile(bytes.NewReader(r.raw)); err != nil {
			return nil, fmt.Errorf("parse config: %w", err)
		}
	}
	r.manifest = manifestOf(in, r, sizesOf(steps, len(in.RootFS.Layers)))
	if len(in.RootFS.Layers) == 0 && r.raw != nil {
		r.described = true // all is said, and Docker saves no empty image
	}
	if !r.described && r.raw == nil {
		r.renamed, err = d.renamesImages(ctx)
	}
	return r, err
}

// configFile is the config that the daemon's words describe.
func (in inspected) configFile(steps []step) *v1.ConfigFile {
	created, _ := time.Parse(time.RFC3339Nano, in.Created) // newer daemons leave out what an image does not say
	return &v1.ConfigFile{
		Architecture: in.Architecture, Author: in.Author, Container: in.Container, Created: v1.Time{Time: created},
		History: historyOf(steps, len(in.RootFS.Layers)), OS: in.Os, OSVersion: in.OsVersion, Variant: in.Variant,
		RootFS: v1.RootFS{Type: "layers", DiffIDs: in.RootFS.Layers}, Config: *in.Config,
	}
}

// rawConfig is the config's bytes, if they are known: because the image was
// written from here, or because what the daemon tells, encoded, has the digest
// that the image is named by. That is so for images of lifecycles.
func (d *Daemon) rawConfig(id string, c *v1.ConfigFile) ([]byte, error) {
	if raw := d.written(id); raw != nil {
		return raw, nil
	}
	raw, err := json.Marshal(c)
	if err != nil || hashOf(raw).String() != id {
		return nil, err
	}
	return raw, nil
}

// step is one entry of an image's history, oldest first.
type step struct {
	v1.History
	size int64 // what it added, in bytes
}

// history asks for it, and completes what podman's copy of inspect leaves out.
func (d *Daemon) history(ctx context.Context, in *inspected) ([]step, error) {
	op := "history of image " + in.ID
	var told []struct {
		Created            int64
		CreatedBy, Comment string
		Size               int64
	}
	if _, err := d.get(ctx, op, "/images/"+in.ID+"/history", &told); err != nil {
		return nil, err
	}
	var steps []step
	for _, t := range slices.Backward(told) {
		steps = append(steps, step{v1.History{
			Created: v1.Time{Time: time.Unix(t.Created, 0).UTC()}, CreatedBy: t.CreatedBy, Comment: t.Comment,
		}, max(0, t.Size)})
	}
	if d.libpod == "" {
		markEmpty(steps, len(in.RootFS.Layers))
		return steps, nil
	}
	var more struct {
		History     []v1.History
		Healthcheck *v1.HealthConfig
	}
	_, err := d.small(ctx, op, "GET", d.libpod+"/images/"+in.ID+"/json", &more)
	if err != nil {
		return nil, err
	}
	in.Config.Healthcheck = cmp.Or(in.Config.Healthcheck, more.Healthcheck)
	for i := range steps {
		if i < len(more.History) {
			steps[i].History = more.History[i]
		}
	}
	return steps, nil
}

// markEmpty finds the steps that made no layer, which Docker does not tell: those
// that added nothing. It leaves a history that cannot be told apart.
func markEmpty(steps []step, layers int) {
	none := 0
	for _, s := range steps {
		if s.size == 0 {
			none++
		}
	}
	if len(steps)-none != layers {
		return
	}
	for i := range steps {
		steps[i].EmptyLayer = steps[i].size == 0
	}
}

// historyOf is the history, if it is one of so many layers.
func historyOf(steps []step, layers int) []v1.History {
	if len(sizesOf(steps, layers)) != layers {
		return nil
	}
	var list []v1.History
	for _, s := range steps {
		list = append(list, s.History)
	}
	return list
}

// sizesOf is what each layer takes in the daemon, nil if that is not clear.
func sizesOf(steps []step, layers int) []int64 {
	var sizes []int64
	for _, s := range steps {
		if !s.EmptyLayer {
			sizes = append(sizes, s.size)
		}
	}
	if len(sizes) != layers {
		return nil
	}
	return sizes
}

// manifestOf makes a manifest of Docker's type, for the daemon has none.
func manifestOf(in inspected, r *remote, sizes []int64) *v1.Manifest {
	m := &v1.Manifest{
		SchemaVersion: 2, MediaType: types.DockerManifestSchema2,
		Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Digest: r.id(), Size: int64(len(r.raw))},
		Layers: []v1.Descriptor{},
	}
	for i, diffID := range in.RootFS.Layers {
		desc := v1.Descriptor{MediaType: types.DockerUncompressedLayer, Digest: diffID}
		if sizes != nil {
			desc.Size = sizes[i]
		}
		m.Layers = append(m.Layers, desc)
	}
	return m
}

// id is the image ID: the digest of the config. It is the daemon's name of the
// image, unless its store is one that names images by their manifests.
func (r *remote) id() v1.Hash {
	if r.raw != nil {
		return hashOf(r.raw)
	}
	h, _ := v1.NewHash(r.in.ID) // check has seen it
	return h
}

// whole is the image as the daemon saves it.
func (r *remote) whole() (v1.Image, error) { return r.d.save(r.ctx, r.in) }

func (r *remote) MediaType() (types.MediaType, error) { return r.manifest.MediaType, nil }
func (r *remote) Digest() (v1.Hash, error)            { return partial.Digest(r) }
func (r *remote) Size() (int64, error)                { return partial.Size(r) }

func (r *remote) ConfigName() (v1.Hash, error) {
	if r.raw != nil || r.described || !r.renamed {
		return r.id(), nil
	}
	img, err := r.whole()
	if err != nil {
		return v1.Hash{}, err
	}
	return img.ConfigName()
}

func (r *remote) ConfigFile() (*v1.ConfigFile, error) {
	if r.raw != nil || r.described {
		return r.config.DeepCopy(), nil
	}
	img, err := r.whole()
	if err != nil {
		return nil, err
	}
	return img.ConfigFile()
}

func (r *remote) RawConfigFile() ([]byte, error) {
	if r.raw != nil {
		return bytes.Clone(r.raw), nil
	}
	img, err := r.whole()
	if err != nil {
		return nil, err
	}
	return img.RawConfigFile()
}

func (r *remote) Manifest() (*v1.Manifest, error) {
	if r.described {
		return r.manifest.DeepCopy(), nil
	}
	img, err := r.whole()
	if err != nil {
		return nil, err
	}
	return img.Manifest()
}

func (r *remote) RawManifest() ([]byte, error) {
	m, err := r.Manifest()
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func (r *remote) Layers() ([]v1.Layer, error) {
	if !r.described {
		img, err := r.whole()
		if err != nil {
			return nil, err
		}
		return img.Layers()
	}
	var layers []v1.Layer
	for _, desc := range r.manifest.Layers {
		layers = append(layers, &remoteLayer{image: r, desc: desc})
	}
	return layers, nil
}

func (r *remote) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if h == r.id() {
		return partial.ConfigLayer(r)
	}
	return r.find(h, v1.Layer.Digest)
}

func (r *remote) LayerByDiffID(h v1.Hash) (v1.Layer, error) { return r.find(h, v1.Layer.DiffID) }

func (r *remote) find(h v1.Hash, by func(v1.Layer) (v1.Hash, error)) (v1.Layer, error) {
	layers, err := r.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if got, err := by(l); err == nil && got == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", h, image.ErrNotFound)
}

// remoteLayer is a layer in the daemon. To read it is to transfer the image.
type remoteLayer struct {
	image *remote
	desc  v1.Descriptor
}

var _ v1.Layer = (*remoteLayer)(nil)

func (l *remoteLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *remoteLayer) DiffID() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *remoteLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *remoteLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *remoteLayer) Compressed() (io.ReadCloser, error)  { return l.Uncompressed() }
func (l *remoteLayer) Uncompressed() (io.ReadCloser, error) {
	whole, err := l.whole()
	if err != nil {
		return nil, err
	}
	return whole.Uncompressed()
}

// Exists spares those who ask the transfer (partial.Exists).
func (l *remoteLayer) Exists() (bool, error) { return true, nil }

// whole is the layer with its true size.
func (l *remoteLayer) whole() (v1.Layer, error) {
	img, err := l.image.whole()
	if err != nil {
		return nil, err
	}
	return img.LayerByDiffID(l.desc.Digest)
}
