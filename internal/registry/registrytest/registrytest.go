// Package registrytest starts Debian's docker-registry for a test, with a
// record of what it was asked.
package registrytest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
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
	"syscall"
	"testing"
	"time"
)

// User and Password are who may use a registry with Auth.
const (
	User     = "canary-user"
	Password = "canary-password"
	// htpasswd has the hash of Password.
	htpasswd = User + ":$2a$04$Jab0xnNxPul6MKiDeqgKquRxVPLhuzSfo0SJvJ7GytmCCn.FgG.f.\n"
)

// Header is the Authorization header of User.
func Header() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(User+":"+Password))
}

// AuthJSON is a CNB_REGISTRY_AUTH for the registry at host.
func AuthJSON(host string) string {
	b, err := json.Marshal(map[string]string{host: Header()})
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}

// Options say how a registry differs from the simplest.
type Options struct {
	Auth   bool // only User may use it
	Delete bool // manifests may be deleted
}

// Registry is a registry that runs until the test ends.
type Registry struct {
	Host string // address and port, on loopback

	mu       sync.Mutex
	requests []string
	hook     func(*http.Request)
}

// Hook has f called for each request before it is answered; nil ends that.
func (r *Registry) Hook(f func(*http.Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = f
}

// Start starts one.
func Start(t testing.TB, o Options) *Registry {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatal("docker-registry is not installed: apt-get install docker-registry")
	}
	dir := t.TempDir()
	behind := "127.0.0.1:" + freePort(t)
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: %t}}\nhttp: {addr: %q}\n", dir, o.Delete, behind)
	if o.Auth {
		write(t, filepath.Join(dir, "htpasswd"), htpasswd)
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir)
	}
	write(t, filepath.Join(dir, "config.yml"), config)
	cmd := exec.Command(bin, "serve", filepath.Join(dir, "config.yml"))
	// It takes REGISTRY_AUTH_FILE, which is podman's, for its own.
	cmd.Env = []string{"HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 200 {
		if resp, err := http.Get("http://" + behind + "/v2/"); err == nil {
			resp.Body.Close()
			return record(t, behind)
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not answer on %s:\n%s", behind, out.String())
	return nil
}

// record puts a proxy before the registry that remembers requests.
func record(t testing.TB, behind string) *Registry {
	r := &Registry{}
	to := &url.URL{Scheme: "http", Host: behind}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(to)
		p.Out.Host = p.In.Host // Locations name the proxy
	}, ModifyResponse: func(resp *http.Response) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.requests = append(r.requests, fmt.Sprintf("%s %s %d", resp.Request.Method, resp.Request.URL.RequestURI(), resp.StatusCode))
		return nil
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		hook := r.hook
		r.mu.Unlock()
		if hook != nil {
			hook(q)
		}
		proxy.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.Host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// Requests are "METHOD path?query status" of what was asked since the last
// call, in the order of the answers.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.requests
	r.requests = nil
	return list
}

// Uploads are those of list that brought bytes of a blob.
func Uploads(list []string) []string {
	var up []string
	for _, q := range list {
		if strings.Contains(q, "/blobs/uploads/") && (strings.HasPrefix(q, "PUT ") || strings.HasPrefix(q, "PATCH ")) {
			up = append(up, q)
		}
	}
	return up
}

// Mounts are those of list that had a blob linked.
func Mounts(list []string) []string {
	var got []string
	for _, q := range list {
		if strings.Contains(q, "mount=") && strings.HasSuffix(q, " 201") {
			got = append(got, q)
		}
	}
	return got
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func write(t testing.TB, file, body string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
}
