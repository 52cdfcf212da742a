package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnbuild/kiln/internal/image"
)

var errBroken = errors.New("imagetest: this layer breaks when read")

// Shape is a kind of image that a place must be able to keep.
type Shape struct {
	Name  string
	Image func(t *testing.T) v1.Image
}

// Shapes are the kinds of images that have gone wrong somewhere.
func Shapes() []Shape {
	return []Shape{
		{"no layers", func(t *testing.T) v1.Image { return Random(t, 0) }},
		{"one layer", func(t *testing.T) v1.Image { return Random(t, 1) }},
		{"forty layers", func(t *testing.T) v1.Image { return Random(t, 40) }},
		{"same layer twice", func(t *testing.T) v1.Image {
			l := Layer(t, Tar(t, 100))
			return With(t, Random(t, 1), l, l)
		}},
		{"empty tar", func(t *testing.T) v1.Image { return With(t, Random(t, 1), Layer(t, make([]byte, 1024))) }},
		{"gzip layers", func(t *testing.T) v1.Image {
			return With(t, Random(t, 1), Gzip(t, Tar(t, 70<<10)), Gzip(t, Tar(t, 10)))
		}},
		{"one diffID, two blobs", func(t *testing.T) v1.Image {
			body := Tar(t, 50<<10)
			return With(t, Random(t, 0), Gzip(t, body), Layer(t, body))
		}},
		{"large layer", func(t *testing.T) v1.Image { return With(t, Random(t, 1), Layer(t, Tar(t, 5<<20))) }},
		{"labels and names", func(t *testing.T) v1.Image {
			return must(image.Append(Random(t, 1), nil, func(c *v1.ConfigFile) {
				c.Config.Labels = map[string]string{"io.example": "{\"a\":\"<é>\u2028\"}", "": "empty key"}
				c.Config.Env = []string{"A=b=c", "LANG=日本"}
				c.Config.Entrypoint = []string{"/cnb/process/web"}
				c.Created = v1.Time{Time: time.Unix(315532801, 0).UTC()}
			}))(t)
		}},
	}
}

// DockerShapes are images with Docker's media types: not every place can keep
// those as they are.
func DockerShapes() []Shape {
	return []Shape{{"docker types", func(t *testing.T) v1.Image {
		return must(mutate.AppendLayers(empty.Image, docker{Gzip(t, Tar(t, 3000))}, docker{Gzip(t, Tar(t, 30))}))(t)
	}}}
}

// AsDocker is an image of gzip layers under Docker's media types.
func AsDocker(t testing.TB, img v1.Image) v1.Image {
	t.Helper()
	layers := must(img.Layers())(t)
	var adds []mutate.Addendum
	for _, h := range must(img.ConfigFile())(t).History {
		add := mutate.Addendum{History: h}
		if !h.EmptyLayer {
			add.Layer, layers = docker{layers[0]}, layers[1:]
		}
		adds = append(adds, add)
	}
	out := must(mutate.Append(empty.Image, adds...))(t)
	return must(mutate.ConfigFile(out, must(img.ConfigFile())(t)))(t)
}

// Zstd makes an image with one zstd layer.
func Zstd(t *testing.T) v1.Image {
	body := Tar(t, 9000)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return With(t, Random(t, 1), blob{static.NewLayer(enc.EncodeAll(body, nil), types.OCILayerZStd), body})
}

// Random makes an OCI image of n uncompressed layers, unlike any other.
func Random(t *testing.T, n int) v1.Image {
	t.Helper()
	layers := make([]v1.Layer, n)
	for i := range layers {
		layers[i] = Layer(t, Tar(t, 200+i))
	}
	base := must(image.Append(empty.Image, nil, func(c *v1.ConfigFile) {
		c.OS, c.Architecture = "linux", "amd64"
		c.Config.Labels = map[string]string{"random": rand.Text()}
	}))(t)
	return With(t, base, layers...)
}

// Extended is base with one fixed layer on top: equal bases give equal images.
func Extended(t *testing.T, base v1.Image) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := []byte("extended\n")
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "/extended", Mode: 0o644, Size: int64(len(body))}), writeAll(w, body), w.Close()); err != nil {
		t.Fatal(err)
	}
	return With(t, base, Layer(t, b.Bytes()))
}

// With is base with layers on top.
func With(t *testing.T, base v1.Image, layers ...v1.Layer) v1.Image {
	t.Helper()
	adds := make([]image.Addition, len(layers))
	for i, l := range layers {
		adds[i] = image.Addition{Layer: l, History: v1.History{CreatedBy: fmt.Sprintf("imagetest %d", i)}}
	}
	return must(image.Append(base, adds, nil))(t)
}

// Tar makes a tar of one file of n random bytes, and a directory.
func Tar(t *testing.T, n int) []byte {
	t.Helper()
	body := make([]byte, n)
	_, _ = rand.Read(body) // never fails
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Name: "/dir", Typeflag: tar.TypeDir, Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: "/dir/" + rand.Text(), Mode: 0o644, Size: int64(n)}),
		writeAll(w, body), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer makes an uncompressed layer of a tar.
func Layer(t *testing.T, body []byte) v1.Layer {
	t.Helper()
	return image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }, Sum(body), int64(len(body)))
}

// Gzip makes a compressed layer of a tar.
func Gzip(t testing.TB, body []byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if err := errors.Join(writeAll(w, body), w.Close()); err != nil {
		t.Fatal(err)
	}
	return blob{static.NewLayer(b.Bytes(), types.OCILayer), body}
}

// Sum is the digest of b.
func Sum(b []byte) v1.Hash {
	h := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h[:])}
}

// blob is a compressed layer with its tar at hand.
type blob struct {
	v1.Layer
	body []byte
}

func (b blob) DiffID() (v1.Hash, error) { return Sum(b.body), nil }
func (b blob) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.body)), nil
}

type docker struct{ v1.Layer }

func (docker) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }

// Broken is an uncompressed layer that claims to be Tar and is not.
type Broken struct {
	Tar   []byte
	Flip  bool   // one bit is wrong
	After int    // if not 0: the bytes end here
	Fail  error  // and then reading fails with it
	Extra []byte // come after the rest
}

// Digest is that of Tar.
func (b Broken) Digest() (v1.Hash, error) { return Sum(b.Tar), nil }

// DiffID is that of Tar.
func (b Broken) DiffID() (v1.Hash, error) { return Sum(b.Tar), nil }

// Size is that of Tar.
func (b Broken) Size() (int64, error) { return int64(len(b.Tar)), nil }

// MediaType is that of an uncompressed layer.
func (b Broken) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }

// Compressed gives the wrong bytes.
func (b Broken) Compressed() (io.ReadCloser, error) { return b.Uncompressed() }

// Uncompressed gives the wrong bytes.
func (b Broken) Uncompressed() (io.ReadCloser, error) {
	body := append(bytes.Clone(b.Tar), b.Extra...)
	if b.Flip {
		body[len(body)/2] ^= 4
	}
	if b.After > 0 {
		body = body[:b.After]
	}
	r := io.Reader(bytes.NewReader(body))
	if b.Fail != nil {
		r = io.MultiReader(r, failing{b.Fail})
	}
	return io.NopCloser(r), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (p Place) concurrent(t *testing.T) {
	base := Random(t, 3)
	images := make([]v1.Image, 6)
	for i := range images {
		images[i] = With(t, base, Layer(t, Tar(t, 300)))
	}
	var wg sync.WaitGroup
	for i, img := range images {
		wg.Go(func() {
			if err := p.Target.Write(t.Context(), p.Ref(fmt.Sprintf("concurrent-%d", i)), img); err != nil {
				t.Errorf("write %d beside others: %v", i, err)
			}
			if err := p.Target.Write(t.Context(), p.Ref("concurrent"), img); err != nil {
				t.Errorf("write one name beside others: %v", err)
			}
		})
	}
	wg.Wait()
	for i, img := range images {
		p.same(t, fmt.Sprintf("concurrent-%d", i), img)
	}
	got, err := p.Source.Image(t.Context(), p.Ref("concurrent"))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if ID(t, img) == ID(t, got) {
			p.same(t, "concurrent", img)
			return
		}
	}
	t.Errorf("the name that all wrote means %s, which nobody wrote", ID(t, got))
}

func withCancel(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func writeAll(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}
