package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// fault spoils answers. It is given the request, whose body was not read yet,
// and the handler behind it.
type fault func(w http.ResponseWriter, r *http.Request, h http.Handler)

func answer(code int, header ...string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"errors":[{"code":"X","message":"scripted %d"}]}`, code)
	}
}

// reset breaks the connection without an answer.
func reset(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// spoil changes a good answer's body; the length that was promised stays.
func spoil(change func([]byte) []byte) fault {
	return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		w.Write(change(bytes.Clone(rec.Body.Bytes())))
	}
}

var (
	truncate = spoil(func(b []byte) []byte { return b[:len(b)/2] })
	flip     = spoil(func(b []byte) []byte {
		if len(b) > 0 {
			b[len(b)/2] ^= 0x10
		}
		return b
	})
	wrongDigest fault = func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("ab", 32))
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
	}
	// lieOnWay flips a bit of what is uploaded.
	lieOnWay fault = func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		b, err := io.ReadAll(r.Body)
		if err == nil && len(b) > 0 {
			b[0] ^= 1
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		h.ServeHTTP(w, r)
	}
)

// script spoils the first times requests of a kind, and counts all of them.
type script struct {
	counter
	kind  string
	times int
	fault fault
	mu    sync.Mutex
}

func (s *script) wrap(h http.Handler) http.Handler {
	return s.counter.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		now, spoilt := kind(r) == s.kind && s.times != 0, s.fault
		if now {
			s.times--
		}
		s.mu.Unlock()
		if now {
			spoilt(w, r, h)
			return
		}
		h.ServeHTTP(w, r)
	}))
}

func (s *script) set(kind string, times int, f fault) {
	s.take()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kind, s.times, s.fault = kind, times, f
}

func (s *script) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.times
}

const forever = -1

// The faults of one request that pass: everything works in the end.
func TestPassingFaults(t *testing.T) {
	faults := map[string]fault{
		"408": answer(408), "429": answer(429, "Retry-After", "2"), "500": answer(500), "502": answer(502), "503": answer(503), "504": answer(504),
		"reset": reset, "truncated": truncate, "flipped": flip, "wrong digest": wrongDigest, "lie": lieOnWay,
	}
	kinds := []string{"GET v2", "HEAD blobs", "POST uploads", "PUT uploads", "PUT manifests", "GET manifests", "HEAD manifests", "GET blobs"}
	// Some answers have no body to spoil, some bodies no digest.
	skip := func(name, kind string) bool {
		switch name {
		case "truncated", "flipped":
			return kind != "GET manifests" && kind != "GET blobs" || name == "flipped" && kind == "GET blobs"
		case "wrong digest":
			return kind != "GET manifests"
		case "lie":
			return kind != "PUT uploads"
		}
		return false
	}
	var s script
	host := memory(t, s.wrap)
	img := imagetest.With(t, imagetest.Random(t, 1), imagetest.Layer(t, imagetest.Tar(t, 300<<10)))
	ran := 0
	for fname, f := range faults {
		for _, k := range kinds {
			if skip(fname, k) {
				continue
			}
			ran++
			t.Run(fname+"/"+k, func(t *testing.T) {
				r, _ := newRegistry(t, Options{}) // a new one shakes hands anew
				// A new image each time, so that there is something to send.
				img := imagetest.With(t, img, imagetest.Layer(t, imagetest.Tar(t, 100)))
				ref := host + "/app:passing"
				s.set(k, 1, f)
				if err := r.Write(t.Context(), ref, img); err != nil {
					t.Fatalf("write: %v", err)
				}
				got, err := r.Image(t.Context(), ref)
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				if err := image.Validate(t.Context(), got, nil); err != nil {
					t.Error(err)
				}
				if imagetest.ID(t, got) != imagetest.ID(t, img) {
					t.Error("another image came back")
				}
				if err := r.CheckRead(t.Context(), ref); err != nil {
					t.Error(err)
				}
				if s.left() != 0 {
					t.Errorf("the fault never struck: no request %q", k)
				}
			})
		}
	}
	if ran < 60 {
		t.Fatalf("only %d faults ran", ran)
	}
}

// The faults that stay: a clean error that names the reference, the right
// sentinel and hint, no more requests than it should take, and the tag where
// it was.
func TestLastingFaults(t *testing.T) {
	var s script
	host := memory(t, s.wrap)
	plain, _ := newRegistry(t, Options{})
	before := imagetest.Random(t, 1)
	ref := host + "/app:lasting"
	if err := plain.Write(t.Context(), ref, before); err != nil {
		t.Fatal(err)
	}
	const all = 6 // attempts of the default policy
	for _, tc := range []struct {
		kind  string
		fault fault
		times int // requests of the kind that it takes
		is    error
		text  string
		hint  string
	}{
		{"PUT manifests", answer(401), 1, image.ErrUnauthorized, "401", "docker login " + host},
		{"PUT manifests", answer(403), 1, image.ErrUnauthorized, "403", "permissions"},
		{"PUT manifests", answer(404), 1, image.ErrNotFound, "404", "repository"},
		{"PUT manifests", answer(400), 1, nil, "scripted 400", ""},
		{"PUT manifests", answer(429), all, image.ErrUnavailable, "429", "wait"},
		{"PUT manifests", answer(500), all, image.ErrUnavailable, "500", "try again later"},
		{"PUT manifests", answer(503, "Retry-After", "7200"), 1, image.ErrUnavailable, "503", "try again later"},
		{"PUT manifests", reset, all, image.ErrUnavailable, "connection", ""},
		{"POST uploads", answer(401), 1, image.ErrUnauthorized, "401", "docker login"},
		{"POST uploads", answer(403), 1, image.ErrUnauthorized, "403", "permissions"},
		{"PUT uploads", answer(413), 1, nil, "413", "client_max_body_size"},
		{"PUT uploads", answer(500), all, image.ErrUnavailable, "500", "try again later"},
		{"PUT uploads", lieOnWay, 4, nil, "400", ""},
		{"HEAD blobs", answer(500), all, image.ErrUnavailable, "500", "try again later"},
		{"GET v2", answer(500), all, image.ErrUnavailable, "500", ""},
		{"GET v2", answer(404), 1, image.ErrNotFound, "404", ""},
		{"GET manifests", flip, 2, ErrCorrupt, "", "try again"},
		{"GET manifests", truncate, all, image.ErrUnavailable, "ended before the last byte", ""},
	} {
		t.Run(tc.kind+" "+tc.text, func(t *testing.T) {
			r, _ := newRegistry(t, Options{})
			// One blob is missing beside the config, sent one after the other
			// where counting needs it: the config alone is new.
			img := imagetest.With(t, before)
			img, err := image.Append(img, nil, func(c *v1.ConfigFile) { c.Author = t.Name() })
			if err != nil {
				t.Fatal(err)
			}
			s.set(tc.kind, forever, tc.fault)
			if tc.kind == "HEAD blobs" {
				img = imagetest.Random(t, 0)
			}
			err = r.Write(t.Context(), ref, img)
			n := s.take()
			s.set("", 0, nil)
			if err == nil {
				t.Fatal("it was written")
			}
			for _, want := range []string{"write image " + ref, tc.text} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error is %q, want %q in it", err, want)
				}
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("the error %q is not %q", err, tc.is)
			}
			for _, other := range []error{image.ErrUnauthorized, image.ErrNotFound, image.ErrUnavailable} {
				if other != tc.is && errors.Is(err, other) {
					t.Errorf("the error %q is %q", err, other)
				}
			}
			if hint := spec.HintOf(err); !strings.Contains(hint, tc.hint) {
				t.Errorf("the hint is %q, want %q in it", hint, tc.hint)
			}
			if n[tc.kind] != tc.times {
				t.Errorf("%d requests %q, want %d", n[tc.kind], tc.kind, tc.times)
			}
			got, err := plain.Image(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if imagetest.ID(t, got) != imagetest.ID(t, before) {
				t.Error("the tag moved")
			}
		})
	}
}

func TestReadingFaults(t *testing.T) {
	var s script
	host := memory(t, s.wrap)
	ref := host + "/app:1"
	plain, _ := newRegistry(t, Options{})
	if err := plain.Write(t.Context(), ref, imagetest.Random(t, 1)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind string
		f    fault
		is   error
		hint string
	}{
		{"GET manifests", answer(401), image.ErrUnauthorized, "docker login"},
		{"GET manifests", answer(403), image.ErrUnauthorized, "may not read"},
		{"GET manifests", answer(404), image.ErrNotFound, "check the name"},
		{"GET manifests", wrongDigest, ErrCorrupt, "try again"},
		{"GET blobs", answer(404), image.ErrNotFound, "check"},
		{"GET blobs", flip, ErrCorrupt, "try again"},
	} {
		r, _ := newRegistry(t, Options{})
		s.set(tc.kind, forever, tc.f)
		_, err := r.Image(t.Context(), ref)
		s.set("", 0, nil)
		if !errors.Is(err, tc.is) || !strings.Contains(spec.HintOf(err), tc.hint) || !strings.Contains(fmt.Sprint(err), ref) {
			t.Errorf("%s: got %v with hint %q; want %v that names the reference, with %q", tc.kind, err, spec.HintOf(err), tc.is, tc.hint)
		}
	}
}

// TestDownloadGoesOn: a layer whose connection breaks again and again is read
// to the end, without reading anything twice where the registry knows ranges.
func TestDownloadGoesOn(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		body := imagetest.Tar(t, 4<<20)
		img := imagetest.With(t, imagetest.Random(t, 0), imagetest.Layer(t, body))
		var mu sync.Mutex
		served, broken := int64(0), 0
		host := memory(t, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if kind(r) != "GET blobs" || !strings.HasSuffix(r.URL.Path, imagetest.Sum(body).Hex) {
					h.ServeHTTP(w, r)
					return
				}
				var from int64
				if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil && ranges {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
					w.Header().Set("Content-Length", fmt.Sprint(int64(len(body))-from))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					from = 0
					w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				}
				mu.Lock()
				broken++
				to := min(int64(broken)*700<<10, int64(len(body)))
				mu.Unlock()
				n, _ := w.Write(body[from:max(from, to)])
				mu.Lock()
				served += int64(n)
				mu.Unlock()
				if to < int64(len(body)) {
					panic(http.ErrAbortHandler)
				}
			})
		})
		r, _ := newRegistry(t, Options{})
		if err := r.Write(t.Context(), host+"/app:1", img); err != nil {
			t.Fatal(err)
		}
		got, err := r.Image(t.Context(), host+"/app:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), got, nil); err != nil {
			t.Fatalf("ranges %t: %v", ranges, err)
		}
		mu.Lock()
		if broken < 5 {
			t.Errorf("the connection broke %d times only", broken)
		}
		if ranges && served > int64(len(body))+1<<20 {
			t.Errorf("%d bytes were served for a layer of %d", served, len(body))
		}
		mu.Unlock()
	}
}

// TestBitFlipInALayer: it cannot be taken back once it was handed on, so
// reading ends in an error.
func TestBitFlipInALayer(t *testing.T) {
	var s script
	host := memory(t, s.wrap)
	r, _ := newRegistry(t, Options{})
	if err := r.Write(t.Context(), host+"/app:1", imagetest.Random(t, 1)); err != nil {
		t.Fatal(err)
	}
	img, err := r.Image(t.Context(), host+"/app:1")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	s.set("GET blobs", 1, flip)
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err = io.ReadAll(rc); !errors.Is(err, ErrCorrupt) || !errors.Is(err, image.ErrInvalid) || !strings.Contains(err.Error(), host+"/app:1") {
		t.Errorf("a flipped bit gives %v, want ErrCorrupt that names the reference", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		" 7 ":                           7 * time.Second,
		"-7":                            0,
		"soon":                          0,
		"99999999999999":                24 * time.Hour,
		"Mon, 23 Nov 2026 01:02:33 GMT": 30 * time.Second,
		"Mon, 23 Nov 2026 01:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}, now); got != want {
			t.Errorf("Retry-After %q is %s, want %s", in, got, want)
		}
	}
}

func TestWaits(t *testing.T) {
	var s script
	host := memory(t, s.wrap)
	for _, tc := range []struct {
		f        fault
		low, top time.Duration
	}{
		{answer(429, "Retry-After", "7"), 7 * time.Second, 7 * time.Second},
		{answer(503, "Retry-After", time.Now().Add(20*time.Second).UTC().Format(http.TimeFormat)), 15 * time.Second, 20 * time.Second},
		{answer(503), defaultPolicy.base / 2, defaultPolicy.base},
	} {
		var seen events
		r, waits := newRegistry(t, Options{Events: &seen})
		s.set("HEAD manifests", 1, tc.f)
		if err := r.CheckRead(t.Context(), host+"/app:1"); !errors.Is(err, image.ErrNotFound) {
			t.Fatal(err)
		}
		if len(*waits) != 1 || (*waits)[0] < tc.low || (*waits)[0] > tc.top {
			t.Errorf("waited %v, want once from %s to %s", *waits, tc.low, tc.top)
		}
		if m := seen.messages(); len(m) != 1 || !strings.Contains(m[0], host) || !strings.Contains(m[0], "trying again in") {
			t.Errorf("while waiting it said %q", m)
		}
	}
}

// TestCancelEndsTheWait at once.
func TestCancelEndsTheWait(t *testing.T) {
	host := memory(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(503, "Retry-After", "30")(w, r, nil) })
	})
	r, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := r.Write(ctx, host+"/app:1", imagetest.Random(t, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %s to stop", d)
	}
}

func TestNoNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	r, waits := newRegistry(t, Options{})
	_, err = r.Image(t.Context(), host+"/app")
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(spec.HintOf(err), "nothing listens there") {
		t.Errorf("nobody listens: %v, hint %q", err, spec.HintOf(err))
	}
	if len(*waits) != 5 {
		t.Errorf("it waited %d times, want 5", len(*waits))
	}
	_, err = r.Image(t.Context(), "registry.invalid/app")
	if err == nil || !strings.Contains(err.Error(), "registry.invalid") || spec.HintOf(err) == "" {
		t.Errorf("no such host: %v, hint %q", err, spec.HintOf(err))
	}
}

// TestPlainHTTP: TLS, but for loopback and what is listed.
func TestPlainHTTP(t *testing.T) {
	conform.Covers(t, 12)
	for _, tc := range []struct {
		ref      string
		insecure []string
		want     bool
	}{
		{"localhost:5000/app", nil, true},
		{"127.0.0.1:5000/app", nil, true},
		{"127.9.8.7/app", nil, true},
		{"[::1]:5000/app", nil, true},
		{"10.1.2.3:5000/app", nil, false},
		{"192.168.1.1:5000/app", nil, false},
		{"172.16.0.1/app", nil, false},
		{"registry.local:5000/app", nil, false},
		{"example.localhost:5000/app", nil, false},
		{"reg.example:5000/app", []string{"reg.example:5000"}, true},
		{"reg.example:5000/app", []string{"reg.example"}, true},
		{"reg.example:5000/app/x", []string{"reg.example:5000/app"}, true},
		{"reg.example:5000/other", []string{"reg.example:5000/app"}, false},
		{"reg.example.org/app", []string{"reg.example"}, false},
		{"reg.example:50001/app", []string{"reg.example:5000"}, false},
		{"reg.example/app", []string{"", " "}, false},
		{"10.1.2.3:5000/app", []string{"http://10.1.2.3:5000"}, true},
	} {
		r, _ := newRegistry(t, Options{Insecure: tc.insecure})
		var plain bool
		parsed, err := r.parse(tc.ref)
		if err != nil {
			t.Fatal(err)
		}
		c := r.client(tc.ref, parsed.Context(), "pull")
		req := httptest.NewRequest(http.MethodGet, "http://"+parsed.Context().RegistryStr()+"/v2/", nil)
		for _, insecure := range []bool{true, false} {
			r.wires[fmt.Sprintf("%s %t", req.URL.Host, insecure)] = roundTripper(func(*http.Request) (*http.Response, error) {
				plain = true
				return nil, errors.New("not sent")
			})
		}
		_, err = wire{r, c.insecure}.RoundTrip(req)
		if plain != tc.want || tc.want == errors.Is(err, errPlainHTTP) {
			t.Errorf("%s with %q: plain HTTP sent %t, want %t (%v)", tc.ref, tc.insecure, plain, tc.want, err)
		}
	}
}

// TestTLS: an unknown CA is refused with a way out, and each way out works.
func TestTLS(t *testing.T) {
	conform.Covers(t, 12)
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	memory(t, func(h http.Handler) http.Handler {
		srv.Config.Handler = h
		return h
	})
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")

	r, _ := newRegistry(t, Options{})
	err := r.Write(t.Context(), host+"/app:1", imagetest.Random(t, 1))
	if err == nil || !strings.Contains(spec.HintOf(err), "/etc/docker/certs.d/"+host+"/ca.crt") {
		t.Errorf("an unknown CA gives %v with the hint %q", err, spec.HintOf(err))
	}

	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := errors.Join(os.Mkdir(filepath.Join(dir, host), 0o755), os.WriteFile(filepath.Join(dir, host, "ca.crt"), ca, 0o644)); err != nil {
		t.Fatal(err)
	}
	r, _ = newRegistry(t, Options{})
	r.certDirs = []string{dir}
	if err := r.Write(t.Context(), host+"/app:1", imagetest.Random(t, 1)); err != nil {
		t.Errorf("with the CA in certs.d: %v", err)
	}
	r, _ = newRegistry(t, Options{Insecure: []string{host}})
	if err := r.Write(t.Context(), host+"/app:1", imagetest.Random(t, 1)); err != nil {
		t.Errorf("listed as insecure: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "ca.crt"), []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, _ = newRegistry(t, Options{})
	r.certDirs = []string{dir}
	if err := r.CheckRead(t.Context(), host+"/app:1"); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("a broken certificate file gives %v, want an error that names it", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
