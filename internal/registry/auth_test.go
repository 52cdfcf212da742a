package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

const secret = "s3cr3t-passw0rd"

// guarded wants Basic credentials.
func guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); !ok || user != "me" || pass != secret {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			answer(401)(w, r, nil)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func basic() string { return base64.StdEncoding.EncodeToString([]byte("me:" + secret)) }

func registryAuth(t *testing.T, host, header string) string {
	t.Helper()
	b, err := json.Marshal(map[string]string{host: header})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCredentials: from each place that has some, and none.
func TestCredentials(t *testing.T) {
	conform.Covers(t, 8, 9)
	host := memory(t, guarded)
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, basic())
	write := func(t *testing.T, path, body string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), mode)); err != nil {
			t.Fatal(err)
		}
	}
	for name, prepare := range map[string]func(t *testing.T, dir string) Options{
		"CNB_REGISTRY_AUTH": func(t *testing.T, _ string) Options {
			return Options{Auth: registryAuth(t, host, "Basic "+basic())}
		},
		"CNB_REGISTRY_AUTH as URL": func(t *testing.T, _ string) Options {
			return Options{Auth: registryAuth(t, "http://"+host+"/v1/", "basic "+basic())}
		},
		"docker config": func(t *testing.T, dir string) Options {
			write(t, filepath.Join(dir, "config.json"), config, 0o600)
			return Options{}
		},
		"podman auth.json": func(t *testing.T, dir string) Options {
			write(t, filepath.Join(dir, "run", "containers", "auth.json"), config, 0o600)
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "run"))
			return Options{}
		},
		"credential helper": func(t *testing.T, dir string) Options {
			write(t, filepath.Join(dir, "config.json"), fmt.Sprintf(`{"credHelpers":{%q:"kilntest"}}`, host), 0o600)
			write(t, filepath.Join(dir, "docker-credential-kilntest"), "#!/bin/sh\ncat >/dev/null\necho '{\"Username\":\"me\",\"Secret\":\""+secret+"\"}'\n", 0o755)
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			return Options{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("DOCKER_CONFIG", dir)
			r, _ := newRegistry(t, prepare(t, dir))
			if err := r.Write(t.Context(), host+"/app:1", imagetest.Random(t, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		r, _ := newRegistry(t, Options{})
		err := r.CheckRead(t.Context(), host+"/app:1")
		if !errors.Is(err, image.ErrUnauthorized) || !strings.Contains(spec.HintOf(err), "docker login "+host) {
			t.Errorf("without credentials: %v, hint %q", err, spec.HintOf(err))
		}
	})
	t.Run("wrong", func(t *testing.T) {
		wrong := base64.StdEncoding.EncodeToString([]byte("me:wr0ng-secret"))
		var seen events
		r, _ := newRegistry(t, Options{Auth: registryAuth(t, host, "Basic "+wrong), Events: &seen})
		err := r.CheckWrite(t.Context(), host+"/app:1")
		if !errors.Is(err, image.ErrUnauthorized) || !strings.Contains(spec.HintOf(err), "not accepted") {
			t.Errorf("with wrong credentials: %v, hint %q", err, spec.HintOf(err))
		}
		if all := fmt.Sprint(err, spec.HintOf(err), seen.messages()); strings.Contains(all, wrong) || strings.Contains(all, "wr0ng") {
			t.Errorf("the secret shows: %s", all)
		}
	})
}

func TestMalformedAuthIsNotShown(t *testing.T) {
	conform.Covers(t, 8)
	for _, auth := range []string{
		`{"host": "Basic ` + secret, `["` + secret + `"]`, `{"host":"` + secret + `"}`, `{"host":"Basic !` + secret + `"}`,
		`{"host":"Digest ` + secret + `"}`, `{"host":7}`, `{"host":"Bearer "}`,
	} {
		_, err := New(Options{Auth: auth})
		if err == nil {
			t.Errorf("%s was taken", auth)
			continue
		}
		if strings.Contains(err.Error()+spec.HintOf(err), secret) {
			t.Errorf("the secret shows: %v", err)
		}
	}
	if _, err := New(Options{Auth: `{"a":"Basic ` + basic() + `","b":"Bearer x","c":"X-Identity y"}`}); err != nil {
		t.Error(err)
	}
	r, _ := newRegistry(t, Options{})
	if _, err := r.Image(t.Context(), "https://me:"+secret+"@host/app"); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a URL with a password gives %v", err)
	}
}

// tokens is a registry behind a token server whose tokens are good for a few
// requests each.
func tokens(t *testing.T, uses int) (host string, given func() int) {
	var mu sync.Mutex
	left := map[string]int{}
	n := 0
	host = memory(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if r.URL.Path == "/token" {
				if _, pass, _ := r.BasicAuth(); pass != secret {
					answer(401)(w, r, nil)
					return
				}
				n++
				tok := fmt.Sprintf("token-%d", n)
				left[tok] = uses
				fmt.Fprintf(w, `{"token":%q}`, tok)
				return
			}
			tok := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if left[tok] <= 0 {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:app:pull,push"`, r.Host))
				answer(401)(w, r, nil)
				return
			}
			left[tok]--
			h.ServeHTTP(w, r)
		})
	})
	return host, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// TestTokenExpires on every second request, uploads with bodies included.
func TestTokenExpires(t *testing.T) {
	host, given := tokens(t, 2)
	r, _ := newRegistry(t, Options{Auth: registryAuth(t, host, "Basic "+basic())})
	img := imagetest.With(t, imagetest.Random(t, 0), imagetest.Layer(t, imagetest.Tar(t, 1<<20)))
	if err := r.Write(t.Context(), host+"/app:1", img); err != nil {
		t.Fatal(err)
	}
	got, err := r.Image(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), got, nil); err != nil {
		t.Error(err)
	}
	if given() < 4 {
		t.Errorf("only %d tokens were needed", given())
	}
}

// TestRedirects: storage on another host gets no credentials; a few redirects
// are followed, a loop is not, and none leads out of TLS.
func TestRedirects(t *testing.T) {
	var mu sync.Mutex
	var leaked []string
	var storage *httptest.Server
	mode := "storage"
	var blobs http.Handler
	storage = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if a := r.Header.Get("Authorization"); a != "" {
			leaked = append(leaked, a)
		}
		loop := mode == "loop"
		mu.Unlock()
		if loop {
			http.Redirect(w, r, storage.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		blobs.ServeHTTP(w, r)
	}))
	t.Cleanup(storage.Close)
	host := memory(t, func(h http.Handler) http.Handler {
		blobs = h
		return guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if kind(r) == "GET blobs" {
				mu.Lock()
				to := storage.URL
				if mode == "plain" {
					to = "http://storage.example"
				}
				mu.Unlock()
				http.Redirect(w, r, to+r.URL.Path+"?X-Amz-Signature="+secret, http.StatusTemporaryRedirect)
				return
			}
			h.ServeHTTP(w, r)
		}))
	})
	r, _ := newRegistry(t, Options{Auth: registryAuth(t, host, "Basic "+basic())})
	if err := r.Write(t.Context(), host+"/app:1", imagetest.Random(t, 1)); err != nil {
		t.Fatal(err)
	}
	img, err := r.Image(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Validate(t.Context(), img, nil); err != nil {
		t.Error(err)
	}
	if len(leaked) > 0 {
		t.Errorf("another host was given %q", leaked)
	}
	for _, m := range []string{"loop", "plain"} {
		mu.Lock()
		mode = m
		mu.Unlock()
		_, err := r.Image(t.Context(), host+"/app:1")
		if err == nil {
			t.Errorf("%s: it was read", m)
			continue
		}
		if strings.Contains(err.Error()+spec.HintOf(err), secret) {
			t.Errorf("%s: the signature shows: %v", m, err)
		}
		if want := map[string]string{"loop": "redirected more than", "plain": "plain HTTP is refused"}[m]; !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", m, err, want)
		}
	}
}

// TestNoWayOutOfTLS: not even to loopback, where plain HTTP is else allowed.
func TestNoWayOutOfTLS(t *testing.T) {
	reached := false
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(plain.Close)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	r, _ := newRegistry(t, Options{Insecure: []string{host}})
	_, err := r.Image(t.Context(), host+"/app")
	if !errors.Is(err, errDowngrade) || reached {
		t.Errorf("got %v, reached the other host: %t", err, reached)
	}
	r, _ = newRegistry(t, Options{Insecure: []string{host, strings.TrimPrefix(plain.URL, "http://")}})
	if _, err := r.Image(t.Context(), host+"/app"); err == nil || errors.Is(err, errDowngrade) || !reached {
		t.Errorf("with the other host listed: %v, reached it: %t", err, reached)
	}
}

// Whatever CNB_REGISTRY_AUTH is: no panic, and an error that shows no secret; what
// was read is found under every spelling of its host.
func FuzzKeychain(f *testing.F) {
	f.Add(`{"registry.example.com":"Basic dXNlcjpwYXNzd29yZA=="}`, "registry.example.com")
	f.Add(`{"https://index.docker.io/v1/":"Bearer token","r:5000":"X-Identity id"}`, "docker.io")
	f.Add(`{"a":"Basic c2VjcmV0"}`, "a")
	f.Add(`{"a":"secretive"}`, "b")
	f.Add(`{"a":3}`, "")
	f.Add(`[`, "x")
	f.Fuzz(func(t *testing.T, auth, host string) {
		k, err := newKeychain(auth)
		if err != nil {
			var headers map[string]string
			if json.Unmarshal([]byte(auth), &headers) != nil {
				headers = map[string]string{"": auth}
			}
			for name, secret := range headers {
				said := strings.ReplaceAll(err.Error(), fmt.Sprintf("%q", name), "")
				if len(secret) > 12 && strings.Contains(said, secret) {
					t.Errorf("%q is in %v", secret, err)
				}
			}
			return
		}
		if strings.TrimSpace(auth) != "" && len(k.given) == 0 {
			var headers map[string]string
			if err := json.Unmarshal([]byte(auth), &headers); err != nil || len(headers) > 0 {
				t.Errorf("%q gives nothing", auth)
			}
		}
		if c := canonicalHost(host); canonicalHost(c) != c && !strings.Contains(c, "//") {
			t.Errorf("%q is %q, and that is %q", host, c, canonicalHost(c))
		}
	})
}
