package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
)

// parcel is an image on its way to the daemon.
type parcel struct {
	tag    string
	id     v1.Hash
	raw    []byte
	config *v1.ConfigFile
	parts  []*part
}

// part is one layer in a form that every daemon reads: a tar, plain or gzipped.
type part struct {
	layer  v1.Layer
	diffID v1.Hash
	digest v1.Hash // of the form that is sent
	size   int64
	out    bool                          // it is left out: the daemon has it
	open   func() (io.ReadCloser, error) // nil until it is prepared
	file   *os.File                      // that it was put into, if it was
}

func newParcel(img v1.Image, tag string) (*parcel, error) {
	p := &parcel{tag: tag}
	var err error
	if p.raw, err = img.RawConfigFile(); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	p.id = hashOf(p.raw)
	if p.config, err = v1.ParseConfigFile(bytes.NewReader(p.raw)); err != nil {
		return nil, fmt.Errorf("parse config: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("read layers: %w", err)
	}
	if len(layers) != len(p.config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%w: %d layers, %d diffIDs", image.ErrInvalid, len(layers), len(p.config.RootFS.DiffIDs))
	}
	for i, l := range layers {
		p.parts = append(p.parts, &part{layer: l, diffID: p.config.RootFS.DiffIDs[i]})
	}
	return p, nil
}

// size is how much there is to send, in bytes, as far as it is known.
func (p *parcel) size() int64 {
	var sum int64
	for _, part := range p.parts {
		if n, err := part.layer.Size(); err == nil {
			sum += n
		}
	}
	return sum
}

// left counts the layers that are left out.
func (p *parcel) left() int {
	n := 0
	for _, part := range p.parts {
		if part.out {
			n++
		}
	}
	return n
}

func (p *parcel) takeAll() {
	for _, part := range p.parts {
		part.out = false
	}
}

func (p *parcel) close() {
	for _, part := range p.parts {
		if part.file != nil {
			part.file.Close()
		}
	}
}

// prepare makes everything that is to be sent readable, before the daemon is
// made to wait: one connection cannot bring a layer and take one.
func (p *parcel) prepare(ctx context.Context) error {
	for _, part := range p.parts {
		if part.out || part.open != nil {
			continue
		}
		if err := part.prepare(ctx); err != nil {
			return fmt.Errorf("layer %s: %w", part.diffID, err)
		}
	}
	return nil
}

func (p *part) prepare(ctx context.Context) error {
	l, err := beneath(p.layer)
	if err != nil {
		return err
	}
	mt, err := l.MediaType()
	if err != nil {
		return err
	}
	switch mt {
	case types.OCIUncompressedLayer, types.DockerUncompressedLayer, types.OCILayer, types.DockerLayer:
	default:
		return p.unpack(ctx, l)
	}
	if p.digest, err = l.Digest(); err != nil {
		return err
	}
	if p.size, err = l.Size(); err != nil {
		return err
	}
	p.open = l.Compressed
	return nil
}

// beneath is the layer that others may be wrapped around, whole if it is one of
// a daemon.
func beneath(l v1.Layer) (v1.Layer, error) {
	for inner := l; ; {
		if r, ok := inner.(*remoteLayer); ok {
			return r.whole()
		}
		w, ok := inner.(interface{ Unwrap() v1.Layer })
		if !ok {
			return l, nil
		}
		inner = w.Unwrap()
	}
}

// unpack writes a layer, whose form not every daemon reads, to a file.
func (p *part) unpack(ctx context.Context, l v1.Layer) error {
	f, err := os.CreateTemp("", "kiln-daemon-")
	if err != nil {
		return err
	}
	p.file = f
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	if p.size, err = io.Copy(f, &contextReader{ctx, rc}); err != nil {
		return err
	}
	p.digest = p.diffID
	p.open = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, p.size)), nil }
	return nil
}

// writeTo writes the tar that `docker load` reads. Layers that are left out are
// empty files: podman wants one for each, Docker does not look at them.
func (p *parcel) writeTo(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	entry := struct {
		Config           string
		RepoTags, Layers []string
	}{p.id.Hex + ".json", []string{p.tag}, []string{}}
	if err := writeFile(t, entry.Config, p.raw); err != nil {
		return err
	}
	sent := map[string]bool{}
	for i, part := range p.parts {
		name := part.diffID.Hex + ".tar"
		if part.out {
			name = fmt.Sprintf("blank_%d", i)
		}
		entry.Layers = append(entry.Layers, name)
		if sent[name] {
			continue
		}
		sent[name] = true
		if part.out {
			if err := writeFile(t, name, nil); err != nil {
				return err
			}
			continue
		}
		if err := part.writeTo(ctx, t, name); err != nil {
			return fmt.Errorf("layer %s: %w", part.diffID, err)
		}
	}
	// Last, so that what breaks off is no image.
	manifest, err := json.Marshal([]any{entry})
	if err != nil {
		return err
	}
	if err := writeFile(t, "manifest.json", manifest); err != nil {
		return err
	}
	return t.Close()
}

func writeFile(t *tar.Writer, name string, b []byte) error {
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(b))})
	if err == nil {
		_, err = t.Write(b)
	}
	return err
}

// writeTo streams the layer. Bytes that are not what was promised end it.
func (p *part) writeTo(ctx context.Context, t *tar.Writer, name string) error {
	rc, err := p.open()
	if err != nil {
		return err
	}
	defer rc.Close()
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: p.size}); err != nil {
		return err
	}
	got, n, err := v1.SHA256(io.TeeReader(&contextReader{ctx, io.LimitReader(rc, p.size+1)}, t))
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != p.size {
		return fmt.Errorf("%w: it does not have the %d bytes that it should", image.ErrInvalid, p.size)
	}
	if err == nil && got != p.digest {
		err = fmt.Errorf("%w: its bytes have digest %s, not %s", image.ErrInvalid, got, p.digest)
	}
	return err
}

// contextReader ends reading when ctx does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
