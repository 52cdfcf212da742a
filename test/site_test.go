package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

// site is a place to build at without the weight of Python: Debian's
// docker-registry with a small builder and its run image in it, an app and a
// buildpack.
type site struct {
	addr         string // the registry itself
	source, pack string
	store        string // that of most builds here; it has never seen the built-in builder
}

const (
	siteRun     = "base/run:1"
	siteBuilder = "base/builder:1"
	// siteBuild is what the site's buildpack does: a layer that is kept, one
	// that is made anew, and a process.
	siteBuild = `mkdir -p "$CNB_LAYERS_DIR/kept" "$CNB_LAYERS_DIR/fresh"
cp app.txt "$CNB_LAYERS_DIR/kept/"; cp app.txt "$CNB_LAYERS_DIR/fresh/"
printf '[types]\nlaunch=true\ncache=true\n' > "$CNB_LAYERS_DIR/kept.toml"
printf '[types]\nlaunch=true\n' > "$CNB_LAYERS_DIR/fresh.toml"
printf '[[processes]]\ntype="web"\ncommand=["cat","app.txt"]\ndefault=true\n' > "$CNB_LAYERS_DIR/launch.toml"`
)

func newSite(t *testing.T) site {
	t.Helper()
	addr, stop, err := startRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	s := site{addr: addr, source: filetree.New(t, map[string]string{"app.txt": "the app\n", "deep/er/file": "x"}), pack: buildpack(t, "test/site", "", siteBuild), store: t.TempDir()}
	// kiln's own run image, from the store by way of skopeo, is run image and,
	// with a builder's labels, builder.
	if out, err := kilnCommand(t.Context(), t, "build", "site", "--path", s.source, "--buildpack", s.pack).CombinedOutput(); err != nil {
		t.Fatalf("build with the built-in builder: %v\n%s", err, out)
	}
	skopeo(t, "copy", "--dest-compress-level=1", "--dest-tls-verify=false", "oci:"+sharedStore(t)+":kiln/run:bookworm", "docker://"+addr+"/"+siteRun)
	s.putBuilder(t, siteBuilder, s.addr)
	return s
}

// putBuilder pushes a builder that is the run image with a builder's config,
// which says that the run image is in the registry at host.
func (s site) putBuilder(t *testing.T, repo, host string) {
	t.Helper()
	run, err := remote.Image(s.ref(t, siteRun))
	if err != nil {
		t.Fatal(err)
	}
	cf, err := run.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Config.Env = append(cf.Config.Env, "CNB_USER_ID=1000", "CNB_GROUP_ID=1000")
	label, err := json.Marshal(map[string]any{"images": []map[string]string{{"image": host + "/" + siteRun}}})
	if err != nil {
		t.Fatal(err)
	}
	cf.Config.Labels[spec.BuilderMetadataLabel] = string(label)
	builder, err := mutate.ConfigFile(run, cf)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(s.ref(t, repo), builder); err != nil {
		t.Fatal(err)
	}
}

func (s site) ref(t *testing.T, repo string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s.addr + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// digest is what a tag points at, "" for nothing.
func (s site) digest(t *testing.T, repo string) string {
	t.Helper()
	desc, err := remote.Head(s.ref(t, repo))
	if err != nil {
		return ""
	}
	return desc.Digest.String()
}

// copy copies an image within the registry.
func (s site) copy(t *testing.T, from, to string) {
	t.Helper()
	img, err := remote.Image(s.ref(t, from))
	if err == nil {
		err = remote.Write(s.ref(t, to), img)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// id is the ID of an image in the registry.
func (s site) id(t *testing.T, repo string) string {
	t.Helper()
	img, err := remote.Image(s.ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	return imageID(t, img)
}

// layers are the digests of an image's layers.
func (s site) layers(t *testing.T, repo string) []string {
	t.Helper()
	img, err := remote.Image(s.ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, l := range m.Layers {
		list = append(list, l.Digest.String())
	}
	return list
}

// configDigest is the image ID that a config has.
func configDigest(config string) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(config)))
}

func imageID(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("skopeo", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ran is what came of one kiln.
type ran struct {
	stdout, stderr string
	code           int
}

func (r ran) String() string { return r.stdout + r.stderr }

// id is what --quiet prints.
func (r ran) id() string { return strings.TrimSpace(r.stdout) }

// runKiln runs kiln with a store, without this host's proxies, which know
// nothing of the test's registries.
func runKiln(ctx context.Context, t *testing.T, store string, env []string, args ...string) ran {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "kiln"), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "KILN_STORE=" + store, "HOME=" + t.TempDir()}, env...)
	return runCommand(t, cmd)
}

func runCommand(t *testing.T, cmd *exec.Cmd) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return ran{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok fails the test unless kiln ended well.
func (r ran) ok(t *testing.T) ran {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s", r.code, r)
	}
	return r
}

// proxy stands before the registry, counts, and spoils what it is told to.
type proxy struct {
	addr string // as loopback
	port string

	mu    sync.Mutex
	seen  []string // method and path of every request
	rules []*rule
}

// rule spoils requests: the first times that method and a part of the path fit.
type rule struct {
	method, path string
	times        int
	do           func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func (s site) proxy(t *testing.T, rules ...*rule) *proxy {
	t.Helper()
	back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.addr})
	back.ErrorLog = log.New(io.Discard, "", 0) // clients that go away are no news
	// The registry makes URLs of the Host that it was asked by: the proxy's.
	p := &proxy{rules: rules}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if do := p.note(r); do != nil {
			do(w, r, back)
			return
		}
		back.ServeHTTP(w, r)
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	_, p.port, _ = net.SplitHostPort(l.Addr().String())
	p.addr = "127.0.0.1:" + p.port
	return p
}

func (p *proxy) note(r *http.Request) func(http.ResponseWriter, *http.Request, http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, r.Method+" "+r.URL.Path)
	for _, rule := range p.rules {
		if rule.times != 0 && (rule.method == "" || rule.method == r.Method) && strings.Contains(r.URL.Path, rule.path) {
			rule.times--
			return rule.do
		}
	}
	return nil
}

// take returns the requests since the last take.
func (p *proxy) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

// answers answers with a status, headers in pairs, and a message that repeats
// what the client sent to say who it is, as a thoughtless server would.
func answers(code int, header ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"errors":[{"code":"UNKNOWN","message":"scripted, you sent %s"}]}`, r.Header.Get("Authorization"))
	}
}

// spoils flips a bit in the middle of a good answer.
func spoils(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	b := rec.Body.Bytes()
	if len(b) > 0 {
		b[len(b)/2] ^= 0x10
	}
	w.Write(b)
}

// resets breaks the connection.
func resets(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

// delays answers later.
func delays(d time.Duration) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(d)
		next.ServeHTTP(w, r)
	}
}
