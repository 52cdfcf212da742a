package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Place is where a cache image is: a registry.
type Place interface {
	image.Source
	image.Target
}

// ImageSetting is what an Image depends on besides its name.
type ImageSetting struct {
	// Arch is the architecture that the build is for. A cache of another one is
	// no cache.
	Arch string
	// Delete removes the image of a digest reference: the cache that was there
	// before, once a new one is. Nil keeps it (RFC 0116).
	Delete func(ctx context.Context, ref string) error
	Events event.Sink
}

// Image is a cache in an image: its label is the metadata, each of its layers
// is a layer of the cache, and there is no base. It has no lock, as a registry
// has none: of two builders the one that ends last writes the cache, whole.
type Image struct {
	ref     string
	at      Place
	set     ImageSetting
	prepare func(ctx context.Context, l v1.Layer) (v1.Layer, error)

	mu     sync.Mutex
	opened bool
	old    v1.Image // what is there; nil if nothing is
	// good says of the blobs that were read whether they hold that diffID.
	good map[blob]bool
}

// blob is a blob that is said to hold a layer.
type blob struct{ digest, diffID v1.Hash }

// NewImage is the cache in the image ref of that place. Nothing is read yet.
func NewImage(ref string, at Place, set ImageSetting) *Image {
	return &Image{ref: ref, at: at, set: set, good: map[blob]bool{}}
}

// Prepare says what gives a layer that is new to the cache the form that it is
// to have there, compressed say. Without it layers go as they are.
func (i *Image) Prepare(f func(ctx context.Context, l v1.Layer) (v1.Layer, error)) { i.prepare = f }

// open opens the image that is there, once; nil if there is none.
func (i *Image) open(ctx context.Context) (v1.Image, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.opened {
		return i.old, nil
	}
	img, err := i.at.Image(ctx, i.ref)
	if errors.Is(err, image.ErrNotFound) {
		img, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	i.old, i.opened = img, true
	return img, nil
}

// Load returns the metadata of the cache. It is false if there is none, or none
// that can be trusted; err then says why, unless there is no image. A layer
// that it speaks of may still be missing or damaged: see Layer.
func (i *Image) Load(ctx context.Context) (spec.CacheMetadata, bool, error) {
	img, err := i.open(ctx)
	if img == nil || err != nil {
		return spec.CacheMetadata{}, false, err
	}
	md, err := i.metadata(img)
	if err != nil {
		return spec.CacheMetadata{}, false, fmt.Errorf("cache image %s: %w", i.ref, err)
	}
	return md, true, nil
}

func (i *Image) metadata(img v1.Image) (spec.CacheMetadata, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return spec.CacheMetadata{}, err
	}
	if has := cf.Architecture; has != "" && i.set.Arch != "" && has != i.set.Arch {
		return spec.CacheMetadata{}, fmt.Errorf("it is of builds for %s", has)
	}
	text, ok := cf.Config.Labels[spec.CacheMetadataLabel]
	if !ok {
		return spec.CacheMetadata{}, fmt.Errorf("it has no label %s", spec.CacheMetadataLabel)
	}
	return decode([]byte(text))
}

// Layer opens a layer of the cache. It fails with image.ErrNotFound if the image
// does not have it. Reading it ends in an error if it is not what diffID says.
func (i *Image) Layer(ctx context.Context, diffID string) (v1.Layer, error) {
	h, err := hashOf(diffID)
	if err != nil {
		return nil, err
	}
	img, err := i.open(ctx)
	if err != nil {
		return nil, err
	}
	l, err := find(img, h)
	if err != nil {
		return nil, fmt.Errorf("cached layer %s: %w", diffID, err)
	}
	digest, err := l.Digest()
	if err != nil {
		return nil, fmt.Errorf("cached layer %s: %w", diffID, err)
	}
	return &checkedLayer{Layer: l, want: h, done: func(good bool) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.good[blob{digest, h}] = good
	}}, nil
}

func find(img v1.Image, h v1.Hash) (v1.Layer, error) {
	if img == nil {
		return nil, image.ErrNotFound
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	for _, has := range cf.RootFS.DiffIDs {
		if has == h {
			return img.LayerByDiffID(h)
		}
	}
	return nil, image.ErrNotFound
}

// checkedLayer is a layer that is hashed while it is read.
type checkedLayer struct {
	v1.Layer
	want v1.Hash
	done func(good bool)
}

// DiffID is what the layer was asked for by.
func (l *checkedLayer) DiffID() (v1.Hash, error) { return l.want, nil }

// Unwrap returns the place's own layer: the place may know it.
func (l *checkedLayer) Unwrap() v1.Layer { return l.Layer }

func (l *checkedLayer) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.Layer.Uncompressed()
	if err != nil {
		return nil, fmt.Errorf("cached layer %s: %w", l.want, err)
	}
	return verify(rc, l.want, l.done), nil
}

// Save makes md, and the layers that it speaks of, the cache: an image that
// takes the place of the old one when all of it is there. A layer that the old
// one has, and that is what it should be, is not sent again; the others come
// from open. The image is read back and validated.
func (i *Image) Save(ctx context.Context, md spec.CacheMetadata, open Open) error {
	if err := i.save(ctx, md, open); err != nil {
		return fmt.Errorf("save cache image %s: %w", i.ref, err)
	}
	return nil
}

func (i *Image) save(ctx context.Context, md spec.CacheMetadata, open Open) error {
	label, err := encode(md)
	if err != nil {
		return err
	}
	i.forget() // the image that Load saw: another builder may have written since
	old, err := i.open(ctx)
	if err != nil {
		return err
	}
	known := map[v1.Hash]v1.Hash{}
	var layers []image.Addition
	for _, id := range diffIDs(md) {
		l, err := i.layer(ctx, id, open, known)
		if err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
		layers = append(layers, image.Addition{Layer: l})
	}
	if len(layers) == 0 {
		// Without any, some tools do not take it for an image.
		l, err := i.prepared(ctx, emptyTar())
		if err != nil {
			return err
		}
		layers = append(layers, image.Addition{Layer: l})
	}
	img, err := image.Append(empty.Image, layers, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture = "linux", i.set.Arch
		cf.Created = v1.Time{Time: layer.ModTime}
		cf.Config.Labels = map[string]string{spec.CacheMetadataLabel: label}
		for n := range cf.History {
			cf.History[n].Created = cf.Created
		}
	})
	if err != nil {
		return err
	}
	if err := i.write(ctx, img, known); err != nil {
		return err
	}
	i.drop(ctx, old, img)
	return nil
}

// layer finds a layer for the new image: that of the old one, if it is whole,
// or a new one. known is told of those that need not be read again.
func (i *Image) layer(ctx context.Context, diffID string, open Open, known map[v1.Hash]v1.Hash) (v1.Layer, error) {
	if l, err := i.Layer(ctx, diffID); err == nil {
		if b, ok := i.whole(ctx, l); ok {
			known[b.digest] = b.diffID
			return l, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := open(ctx, diffID)
	if err != nil {
		return nil, err
	}
	return i.prepared(ctx, l)
}

// whole says whether a layer of the old image is what its diffID says. Where
// nobody has read it in this process it is read for that: one that a manifest
// has in the wrong place would be a miss for ever.
func (i *Image) whole(ctx context.Context, l v1.Layer) (blob, bool) {
	digest, err := l.Digest()
	if err != nil {
		return blob{}, false
	}
	diffID, err := l.DiffID()
	if err != nil {
		return blob{}, false
	}
	b := blob{digest, diffID}
	i.mu.Lock()
	good, read := i.good[b]
	i.mu.Unlock()
	if read {
		return b, good
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return b, false
	}
	_, err = io.Copy(io.Discard, contextReader{ctx, rc})
	return b, errors.Join(err, rc.Close()) == nil
}

func (i *Image) prepared(ctx context.Context, l v1.Layer) (v1.Layer, error) {
	if i.prepare == nil {
		return l, nil
	}
	return i.prepare(ctx, l)
}

func (i *Image) write(ctx context.Context, img v1.Image, known map[v1.Hash]v1.Hash) error {
	want, err := img.Digest()
	if err != nil {
		return err
	}
	if err := i.at.Write(ctx, i.ref, img); err != nil {
		return err
	}
	back, err := i.at.Image(ctx, i.ref)
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	got, err := back.Digest()
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	if got != want {
		warn(i.set.Events, "cache image %s: another build has written it meanwhile (%s)", i.ref, got)
	}
	err = image.Validate(ctx, back, func(digest v1.Hash) (v1.Hash, bool) {
		diffID, ok := known[digest]
		return diffID, ok
	})
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	i.forget()
	return nil
}

func (i *Image) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.old, i.opened = nil, false
}

// drop deletes the old image, as platforms of old expect, if the new one is
// another. Most registries do not let it be done; the cache is no worse for it.
func (i *Image) drop(ctx context.Context, old, img v1.Image) {
	if i.set.Delete == nil || old == nil {
		return
	}
	was, err := old.Digest()
	if err != nil {
		return
	}
	if is, err := img.Digest(); err != nil || is == was {
		return
	}
	ref, err := name.ParseReference(i.ref)
	if err == nil {
		err = i.set.Delete(ctx, ref.Context().Name()+"@"+was.String())
	}
	if err != nil {
		i.set.Events.Emit(event.Message{Level: event.Debug, Text: fmt.Sprintf("the cache image before this one stays: %v", err)})
	}
}

// emptyTar is the layer of an empty cache: the two blocks that end a tar.
func emptyTar() v1.Layer {
	const size = 1024
	body := make([]byte, size)
	h, _, _ := v1.SHA256(bytes.NewReader(body)) // memory does not fail
	return image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }, h, size)
}
