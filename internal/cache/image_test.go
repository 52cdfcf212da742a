package cache_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/registry/registrytest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/conform"
)

// inRegistry is a registry with a cache image, as an exporter has them.
type inRegistry struct {
	*registrytest.Registry
	client *registry.Registry
	store  *store.Store
	ref    string
}

func newInRegistry(t *testing.T, o registrytest.Options) inRegistry {
	t.Helper()
	server := registrytest.Start(t, o)
	client, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return inRegistry{server, client, s, server.Host + "/me/cache:latest"}
}

// cache is the cache as the next process sees it.
func (r inRegistry) cache(set cache.ImageSetting) *cache.Image {
	set.Arch, set.Events = "amd64", event.Discard
	i := cache.NewImage(r.ref, r.client, set)
	i.Prepare(func(ctx context.Context, l v1.Layer) (v1.Layer, error) {
		l, err := r.store.Compressed(ctx, l)
		if err != nil {
			return nil, err
		}
		return r.client.Likely(r.Host+"/me/app", l), nil
	})
	return i
}

func (r inRegistry) save(t *testing.T, k kept) {
	t.Helper()
	if err := r.cache(cache.ImageSetting{}).Save(t.Context(), k.md, k.open); err != nil {
		t.Fatal(err)
	}
}

func (r inRegistry) reference(t *testing.T) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(r.ref)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// pull reads the image with another client.
func (r inRegistry) pull(t *testing.T) (v1.Image, *v1.Manifest, *v1.ConfigFile) {
	t.Helper()
	img, err := remote.Image(r.reference(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return img, m, cf
}

// whole fails unless every layer of k comes out of the cache.
func (r inRegistry) whole(t *testing.T, k kept) {
	t.Helper()
	c := r.cache(cache.ImageSetting{})
	md, ok, err := c.Load(t.Context())
	if err != nil || !ok || len(md.Buildpacks) != len(k.md.Buildpacks) {
		t.Fatalf("%+v %t %v", md, ok, err)
	}
	for name, l := range k.md.Buildpacks[0].Layers {
		if err := consume(t.Context(), c, l.SHA); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImageInRegistry(t *testing.T) {
	conform.Covers(t, 163)
	r := newInRegistry(t, registrytest.Options{})
	k := newKept(t, 4000, 100, 2000)
	r.save(t, k)
	r.whole(t, k)
	_, m, cf := r.pull(t)
	if cf.OS != "linux" || cf.Architecture != "amd64" || !strings.HasPrefix(cf.Config.Labels["io.buildpacks.lifecycle.cache.metadata"], `{"sbom":{"sha":"`) || len(cf.RootFS.DiffIDs) != 3 {
		t.Errorf("%+v", cf)
	}
	if y := cf.Created.Year(); y != 1980 {
		t.Errorf("created in %d: it is not the same again", y)
	}
	for _, l := range m.Layers {
		if l.MediaType != types.OCILayer {
			t.Errorf("a layer is %s", l.MediaType)
		}
	}

	// The same again sends nothing, and is the same.
	r.Requests()
	before := m.Config.Digest
	r.save(t, k)
	asked := r.Requests()
	if up := registrytest.Uploads(asked); len(up) > 0 {
		t.Errorf("an unchanged cache was sent: %q", up)
	}
	if _, m, _ := r.pull(t); m.Config.Digest != before {
		t.Error("the same cache is another image")
	}

	// One layer less and one more: what stays is not sent.
	next := newKept(t, 300)
	next.md.Buildpacks[0].Layers["stays"] = k.md.Buildpacks[0].Layers["l0"]
	r.Requests()
	r.save(t, next)
	if up := registrytest.Uploads(r.Requests()); len(up) != 2 { // the new layer and the config
		t.Errorf("sent: %q", up)
	}
	r.whole(t, next)
	if _, _, cf := r.pull(t); len(cf.RootFS.DiffIDs) != 2 {
		t.Errorf("layers that are not cached any more: %v", cf.RootFS.DiffIDs)
	}
}

// What the app image's repository has is linked, not sent.
func TestImageIsMounted(t *testing.T) {
	r := newInRegistry(t, registrytest.Options{})
	k := newKept(t, 4000, 100)
	var layers []image.Addition
	for _, m := range k.md.Buildpacks[0].Layers {
		l, err := k.open(t.Context(), m.SHA)
		if err != nil {
			t.Fatal(err)
		}
		if l, err = r.store.Compressed(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, image.Addition{Layer: l})
	}
	app, err := image.Append(empty.Image, layers, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.Write(t.Context(), r.Host+"/me/app:1", app); err != nil {
		t.Fatal(err)
	}
	r.Requests()
	r.save(t, k)
	asked := r.Requests()
	if up, mounts := registrytest.Uploads(asked), registrytest.Mounts(asked); len(up) != 1 || len(mounts) != 2 {
		t.Errorf("sent %q, linked %q", up, mounts)
	}
	r.whole(t, k)
}

// An empty cache is an image that tools can pull.
func TestEmptyImage(t *testing.T) {
	conform.Covers(t, 163)
	r := newInRegistry(t, registrytest.Options{})
	if err := r.cache(cache.ImageSetting{}).Save(t.Context(), spec.CacheMetadata{}, nil); err != nil {
		t.Fatal(err)
	}
	img, _, cf := r.pull(t)
	// 1024 zero bytes.
	if len(cf.RootFS.DiffIDs) != 1 || cf.RootFS.DiffIDs[0].String() != "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef" {
		t.Errorf("layers: %v", cf.RootFS.DiffIDs)
	}
	if err := image.Validate(t.Context(), img, nil); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+r.ref, "oci:"+filepath.Join(t.TempDir(), "copy")+":x").CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
	if md, ok, err := r.cache(cache.ImageSetting{}).Load(t.Context()); !ok || err != nil || len(md.Buildpacks) != 0 {
		t.Errorf("%+v %t %v", md, ok, err)
	}
}

// The image before goes where platforms of old expect that, if it is another
// and if the registry lets it go; it stays where they do not.
func TestOldImage(t *testing.T) {
	conform.Covers(t, 164)
	for name, test := range map[string]struct {
		options registrytest.Options
		old     bool // Platform API before 0.13
		gone    bool
	}{
		"kept":    {registrytest.Options{Delete: true}, false, false},
		"deleted": {registrytest.Options{Delete: true}, true, true},
		"not let": {registrytest.Options{}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newInRegistry(t, test.options)
			set := cache.ImageSetting{}
			if test.old {
				set.Delete = r.client.Delete
			}
			k, next := newKept(t, 200), newKept(t, 300)
			var digest v1.Hash
			for i, k := range []kept{k, k, next} {
				if err := r.cache(set).Save(t.Context(), k.md, k.open); err != nil {
					t.Fatal(err)
				}
				r.whole(t, k) // the same again is not deleted
				if i == 0 {
					img, _, _ := r.pull(t)
					var err error
					if digest, err = img.Digest(); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err := r.client.Image(t.Context(), fmt.Sprintf("%s/me/cache@%s", r.Host, digest))
			if gone := err != nil; gone != test.gone {
				t.Errorf("the first image: %v", err)
			}
		})
	}
}

// Manifests that have a layer in the place of another were once written by
// everybody's lifecycle: such a layer is a miss, and is put right.
func TestWrongDescriptors(t *testing.T) {
	r := newInRegistry(t, registrytest.Options{})
	k := newKept(t, 400, 900)
	r.save(t, k)
	img, _, _ := r.pull(t)
	if err := remote.Write(r.reference(t), swapped{img}); err != nil {
		t.Fatal(err)
	}
	c := r.cache(cache.ImageSetting{})
	if _, ok, err := c.Load(t.Context()); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for name, l := range k.md.Buildpacks[0].Layers {
		if err := consume(t.Context(), c, l.SHA); err == nil || !strings.Contains(err.Error(), l.SHA) || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.save(t, k) // by a process that has not seen it
	r.whole(t, k)
}

// swapped has its layers in the other order.
type swapped struct{ v1.Image }

func (s swapped) Manifest() (*v1.Manifest, error) {
	m, err := s.Image.Manifest()
	if err != nil {
		return nil, err
	}
	m = m.DeepCopy()
	m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0]
	return m, nil
}

func (s swapped) RawManifest() ([]byte, error) {
	m, err := s.Manifest()
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func (s swapped) Digest() (v1.Hash, error) {
	b, err := s.RawManifest()
	return imagetest.Sum(b), err
}

// What is no cache, or another's, is none, and says why.
func TestForeignImage(t *testing.T) {
	r := newInRegistry(t, registrytest.Options{})
	k := newKept(t, 400)
	for name, test := range map[string]struct {
		config func(*v1.ConfigFile)
		want   string
	}{
		"no label":     {func(cf *v1.ConfigFile) {}, "no label"},
		"garbage":      {func(cf *v1.ConfigFile) { cf.Config.Labels = map[string]string{spec.CacheMetadataLabel: "{"} }, "label"},
		"another arch": {func(cf *v1.ConfigFile) { cf.Architecture = "s390x" }, "s390x"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := k.open(t.Context(), k.md.Buildpacks[0].Layers["l0"].SHA)
			if err != nil {
				t.Fatal(err)
			}
			img, err := image.Append(empty.Image, []image.Addition{{Layer: l}}, test.config)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.client.Write(t.Context(), r.ref, img); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := r.cache(cache.ImageSetting{}).Load(t.Context()); ok || err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), r.ref) {
				t.Errorf("%t %v", ok, err)
			}
			r.save(t, k)
			r.whole(t, k)
		})
	}
}

// lossy is a place that says yes and loses a layer's bytes.
type lossy struct{ cache.Place }

func (l lossy) Image(ctx context.Context, ref string) (v1.Image, error) {
	img, err := l.Place.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	return swapped{img}, nil
}

// What was written is read back.
func TestReadBack(t *testing.T) {
	r := newInRegistry(t, registrytest.Options{})
	k := newKept(t, 400, 500)
	c := cache.NewImage(r.ref, lossy{r.client}, cache.ImageSetting{Arch: "amd64", Events: event.Discard})
	if err := c.Save(t.Context(), k.md, k.open); err == nil || !strings.Contains(err.Error(), "read it back") {
		t.Errorf("%v", err)
	}
}
