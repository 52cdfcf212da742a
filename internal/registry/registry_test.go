package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/test/conform"
)

// The tests must not use what the machine's owner is logged in to.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the registry in memory talks of what is done to it
	dir, err := os.MkdirTemp("", "kiln-registry-test-")
	if err != nil {
		panic(err)
	}
	for k, v := range map[string]string{"HOME": dir, "DOCKER_CONFIG": dir, "XDG_RUNTIME_DIR": dir, "XDG_CONFIG_HOME": dir} {
		if err := os.Setenv(k, v); err != nil {
			panic(err)
		}
	}
	os.Unsetenv("REGISTRY_AUTH_FILE")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// events collects what is emitted.
type events struct {
	mu  sync.Mutex
	all []event.Event
}

func (e *events) Emit(v event.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, v)
}

func (e *events) messages() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, v := range e.all {
		if m, ok := v.(event.Message); ok {
			out = append(out, m.Text)
		}
	}
	return out
}

// newRegistry makes one that waits a hundredth of what it says, so that what
// passes can pass, with what it waited.
func newRegistry(t *testing.T, o Options) (*Registry, *[]time.Duration) {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	waits := &[]time.Duration{}
	r.retry.sleep = func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		*waits = append(*waits, d)
		mu.Unlock()
		time.Sleep(d / 100)
		return ctx.Err()
	}
	r.certDirs = nil
	t.Cleanup(r.Close)
	return r, waits
}

// memory is a registry in this process, behind wrap if that is not nil.
func memory(t *testing.T, wrap func(http.Handler) http.Handler) (host string) {
	t.Helper()
	h := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// debian starts Debian's docker-registry.
func debian(t *testing.T) (host string) {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatal("docker-registry is not installed: apt-get install docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	yml := fmt.Sprintf("version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: %s\n  delete:\n    enabled: true\nhttp:\n  addr: %s\n", filepath.Join(dir, "data"), host)
	if err := os.WriteFile(conf, []byte(yml), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", conf)
	// It takes REGISTRY_AUTH_FILE, which is podman's, for its own.
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 100 {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not answer on %s:\n%s", host, out.String())
	return ""
}

func TestContract(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{
		"memory": func(t *testing.T) string { return memory(t, nil) },
		"debian": debian,
	} {
		t.Run(name, func(t *testing.T) {
			host := start(t)
			r, _ := newRegistry(t, Options{})
			r.retry.sleep = sleep // a registry that is slow gets the time that users give it
			imagetest.Place{Target: r, Source: r, Ref: func(word string) string { return host + "/some/app:" + word }}.Test(t)
		})
	}
}

func TestPushedImageIsValid(t *testing.T) {
	host := debian(t)
	r, _ := newRegistry(t, Options{})
	for _, shape := range append(imagetest.Shapes(), append(imagetest.DockerShapes(), imagetest.Shape{Name: "zstd", Image: imagetest.Zstd})...) {
		ref := host + "/valid:" + strings.NewReplacer(" ", "-", ",", "").Replace(shape.Name)
		if err := r.Write(t.Context(), ref, shape.Image(t)); err != nil {
			t.Fatal(err)
		}
		img, err := r.Image(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), img, nil); err != nil {
			t.Errorf("%s: %v", shape.Name, err)
		}
	}
}

func TestSkopeoReadsAPush(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Fatal("skopeo is not installed: apt-get install skopeo")
	}
	host := debian(t)
	r, _ := newRegistry(t, Options{})
	ref := host + "/some/app:latest"
	img := imagetest.With(t, imagetest.Random(t, 1), imagetest.Gzip(t, imagetest.Tar(t, 100<<10)))
	if err := r.Write(t.Context(), ref, img); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(skopeo, "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+ref).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo inspect: %v\n%s", err, out)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != want.String() {
		t.Errorf("skopeo sees digest %s, want %s", got, want)
	}
	dir := filepath.Join(t.TempDir(), "out")
	if out, err := exec.Command(skopeo, "copy", "--insecure-policy", "--src-tls-verify=false", "docker://"+ref, "dir:"+dir).CombinedOutput(); err != nil {
		t.Errorf("skopeo copy: %v\n%s", err, out)
	}
}

// counter counts requests by method and kind.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counter) wrap(h http.Handler) http.Handler {
	c.n = map[string]int{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.n[kind(r)]++
		c.mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

func (c *counter) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.n
	c.n = map[string]int{}
	return n
}

// kind is what a request is for: "PUT manifests", "HEAD blobs", "POST uploads", "GET v2".
func kind(r *http.Request) string {
	what := "v2"
	for _, s := range []string{"uploads", "blobs", "manifests"} {
		if strings.Contains(r.URL.Path, "/"+s+"/") || strings.HasSuffix(r.URL.Path, "/"+s) {
			what = s
			break
		}
	}
	if r.Method == http.MethodPost && r.URL.Query().Has("mount") {
		what = "mount"
	}
	return r.Method + " " + what
}

func TestOnlyWhatIsMissingIsSent(t *testing.T) {
	var c counter
	host := memory(t, c.wrap)
	r, _ := newRegistry(t, Options{})
	base := imagetest.Random(t, 5)
	if err := r.Write(t.Context(), host+"/app:1", base); err != nil {
		t.Fatal(err)
	}
	c.take()
	if err := r.Write(t.Context(), host+"/app:2", imagetest.Extended(t, base)); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"HEAD blobs": 7, "POST uploads": 2, "PUT uploads": 2, "PUT manifests": 2, "GET manifests": 1}
	if diff := cmp.Diff(want, c.take()); diff != "" {
		t.Errorf("requests for one more layer (-want +got):\n%s", diff)
	}
	if err := r.Write(t.Context(), host+"/app:1", base); err != nil {
		t.Fatal(err)
	}
	want = map[string]int{"HEAD blobs": 6, "HEAD manifests": 2, "GET manifests": 1}
	if diff := cmp.Diff(want, c.take()); diff != "" {
		t.Errorf("requests for what is there (-want +got):\n%s", diff)
	}
	if err := r.Write(t.Context(), host+"/app:2", base); err != nil {
		t.Fatal(err)
	}
	want["PUT manifests"] = 1
	if diff := cmp.Diff(want, c.take()); diff != "" {
		t.Errorf("requests to move a tag (-want +got):\n%s", diff)
	}
}

func TestMount(t *testing.T) {
	host := debian(t)
	r, _ := newRegistry(t, Options{})
	base := imagetest.Random(t, 4)
	if err := r.Write(t.Context(), host+"/base:1", base); err != nil {
		t.Fatal(err)
	}
	var c counter
	proxy := proxyTo(t, host, c.wrap)
	// The proxy is another host to the client, so the base is read through it.
	got, err := r.Image(t.Context(), proxy+"/base:1")
	if err != nil {
		t.Fatal(err)
	}
	c.take()
	app := imagetest.Extended(t, got)
	if err := r.Write(t.Context(), proxy+"/app:1", app); err != nil {
		t.Fatal(err)
	}
	n := c.take()
	if n["POST mount"] != 4 || n["POST uploads"] != 2 || n["PUT uploads"] != 2 || n["GET blobs"] != 0 {
		t.Errorf("want 4 base layers mounted, one layer and the config sent, nothing read; got %v", n)
	}
	back, err := r.Image(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), back, nil); err != nil {
		t.Error(err)
	}
}

func TestIndex(t *testing.T) {
	conform.Covers(t, 199)
	host := memory(t, nil)
	amd, arm := imagetest.Random(t, 1), imagetest.Random(t, 2)
	r, _ := newRegistry(t, Options{Platform: v1.Platform{OS: "linux", Architecture: "arm64"}})
	for tag, img := range map[string]v1.Image{"amd": amd, "arm": arm} {
		if err := r.Write(t.Context(), host+"/multi:"+tag, img); err != nil {
			t.Fatal(err)
		}
	}
	index := mutate.IndexMediaType(mutate.AppendManifests(emptyIndex(t),
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
	), types.OCIImageIndex)
	raw, err := index.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPut, "http://"+host+"/v2/multi/manifests/latest", bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", string(types.OCIImageIndex))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status)
	}

	pinned, img, err := r.Resolve(t.Context(), host+"/multi")
	if err != nil {
		t.Fatal(err)
	}
	want, err := arm.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if pinned != host+"/multi@"+want.String() {
		t.Errorf("pinned is %s, want digest %s", pinned, want)
	}
	if imagetest.ID(t, img) != imagetest.ID(t, arm) {
		t.Error("the image for another platform was opened")
	}
	if h, err := r.Digest(t.Context(), host+"/multi"); err != nil || h != hashOf(raw) {
		t.Errorf("Digest is %v %v, want that of the index, %v", h, err, hashOf(raw))
	}

	for _, want := range []struct {
		platform v1.Platform
		img      v1.Image
	}{{v1.Platform{OS: "linux", Architecture: "amd64"}, amd}, {v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, arm}} {
		if img, err := r.ImageFor(t.Context(), host+"/multi", want.platform); err != nil || imagetest.ID(t, img) != imagetest.ID(t, want.img) {
			t.Errorf("the image for %s was not opened (%v)", want.platform, err)
		}
	}

	other, _ := newRegistry(t, Options{Platform: v1.Platform{OS: "linux", Architecture: "riscv64"}})
	_, err = other.Image(t.Context(), host+"/multi")
	if !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), "linux/riscv64") || !strings.Contains(err.Error(), "linux/arm64/v8") {
		t.Errorf("an index without the platform gives %v; want ErrNotFound that names what was wanted and what there is", err)
	}
}

func TestAccess(t *testing.T) {
	host := debian(t)
	r, _ := newRegistry(t, Options{})
	if err := r.CheckWrite(t.Context(), host+"/new/app:1"); err != nil {
		t.Errorf("CheckWrite: %v", err)
	}
	if err := r.CheckRead(t.Context(), host+"/new/app:1"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("CheckRead of what is not there gives %v, want ErrNotFound", err)
	}
	if err := r.Write(t.Context(), host+"/new/app:1", imagetest.Random(t, 1)); err != nil {
		t.Fatal(err)
	}
	if err := r.CheckRead(t.Context(), host+"/new/app:1"); err != nil {
		t.Errorf("CheckRead: %v", err)
	}
}

func TestWriteToADigest(t *testing.T) {
	host := memory(t, nil)
	r, _ := newRegistry(t, Options{})
	img := imagetest.Random(t, 1)
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Write(t.Context(), host+"/app@"+d.String(), img); err != nil {
		t.Error(err)
	}
	if err := r.Write(t.Context(), host+"/app@"+d.String(), imagetest.Random(t, 1)); err == nil {
		t.Error("an image was written under another one's digest")
	}
}
