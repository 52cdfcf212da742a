package registry

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// rebasedThere pushes an app of three layers on a base of two, and a new base of
// four, and returns the app on the new base with all its layers in the registry.
func rebasedThere(t *testing.T, r *Registry, host string) v1.Image {
	t.Helper()
	old := imagetest.Random(t, 2)
	app := imagetest.With(t, old, imagetest.Layer(t, imagetest.Tar(t, 1)), imagetest.Layer(t, imagetest.Tar(t, 2)), imagetest.Layer(t, imagetest.Tar(t, 3)))
	for ref, img := range map[string]v1.Image{"/app:1": app, "/base:1": imagetest.Random(t, 4)} {
		if err := r.Write(t.Context(), host+ref, img); err != nil {
			t.Fatal(err)
		}
	}
	there, err := r.Image(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	base, err := r.Image(t.Context(), host+"/base:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := image.Rebase(there, base, 2, func(l map[string]string) { l["new"] = "label" })
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// relabelled is another image of the same layers.
func relabelled(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	out, err := image.Rebase(img, img, len(cf.RootFS.DiffIDs), func(l map[string]string) { l["another"] = "label" })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func validAt(t *testing.T, r *Registry, ref string) {
	t.Helper()
	back, err := r.Image(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), back, nil); err != nil {
		t.Error(err)
	}
}

// Only manifest and config travel for an image that is put on another base.
func TestRebaseSendsTwoDocuments(t *testing.T) {
	var c counter
	host := proxyTo(t, debian(t), c.wrap)
	r, _ := newRegistry(t, Options{})
	img := rebasedThere(t, r, host)
	c.take()
	if err := r.Write(t.Context(), host+"/app:1", img); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"HEAD blobs": 1, "POST mount": 4, "POST uploads": 1, "PUT uploads": 1, "PUT manifests": 2, "GET manifests": 1}
	if diff := cmp.Diff(want, c.take()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	validAt(t, r, host+"/app:1")
}

// A blob that the registry does not link, but has, is not sent.
func TestNotLinkedButThere(t *testing.T) {
	var c counter
	host := proxyTo(t, debian(t), func(next http.Handler) http.Handler {
		return c.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("mount") { // as registries do that know no mounts
				r = r.Clone(r.Context())
				r.URL.RawQuery = ""
			}
			next.ServeHTTP(w, r)
		}))
	})
	r, _ := newRegistry(t, Options{})
	img := rebasedThere(t, r, host)
	for i, want := range []map[string]int{
		{"HEAD blobs": 5, "POST mount": 4, "POST uploads": 1, "PUT uploads": 5, "PUT manifests": 2, "GET manifests": 1, "GET blobs": 4},
		{"HEAD blobs": 5, "POST mount": 4, "POST uploads": 1, "PUT uploads": 1, "PUT manifests": 2, "GET manifests": 1},
	} {
		c.take()
		if err := r.Write(t.Context(), host+"/app:1", img); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, c.take()); diff != "" {
			t.Errorf("push %d: requests (-want +got):\n%s", i+1, diff)
		}
		img = relabelled(t, img)
	}
	validAt(t, r, host+"/app:1")
}

// A registry that has lost a blob of an image says so of the manifest; then it is
// asked for all of them, and what can be had elsewhere is sent.
func TestLostBlobIsSentAgain(t *testing.T) {
	var lost atomic.Value // path of a blob that is gone
	lost.Store("")
	var heals atomic.Bool // until it is sent again
	refused := 0
	host := memory(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gone := lost.Load().(string)
			switch {
			case gone != "" && strings.HasSuffix(r.URL.Path, gone):
				w.WriteHeader(http.StatusNotFound)
				return
			case gone != "" && r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
				refused++
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusNotFound)
				w.Write([]byte(`{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}`))
				return
			case gone != "" && heals.Load() && r.Method == http.MethodPut && strings.Contains(r.URL.RawQuery, strings.ReplaceAll(gone[strings.LastIndex(gone, "/")+1:], ":", "%3A")):
				lost.Store("")
			}
			next.ServeHTTP(w, r)
		})
	})
	r, _ := newRegistry(t, Options{})
	base := imagetest.Random(t, 2)
	if err := r.Write(t.Context(), host+"/app:1", base); err != nil {
		t.Fatal(err)
	}
	there, err := r.Image(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	lost.Store("/blobs/" + digest.String())
	// The blob comes from the registry's image: it cannot be sent again.
	if err := r.Write(t.Context(), host+"/app:2", relabelled(t, there)); err == nil {
		t.Error("an image without a layer was pushed")
	}
	// Of this one it is at hand.
	heals.Store(true)
	if err := r.Write(t.Context(), host+"/app:2", relabelled(t, base)); err != nil {
		t.Error(err)
	}
	if refused == 0 {
		t.Error("the registry refused nothing")
	}
	validAt(t, r, host+"/app:2")
}

// The handshake asks a host once, however many repositories it is about.
func TestOneGreeting(t *testing.T) {
	var c counter
	host := memory(t, c.wrap)
	r, _ := newRegistry(t, Options{})
	for _, repo := range []string{"/a", "/b", "/c"} {
		if err := r.Write(t.Context(), host+repo, imagetest.Random(t, 1)); err != nil {
			t.Fatal(err)
		}
		validAt(t, r, host+repo)
	}
	if n := c.take()["GET v2"]; n != 1 {
		t.Errorf("GET /v2/ was asked %d times", n)
	}
}
