package registry

import (
	"errors"
	"net/http"
)

// greeter remembers how registries answer GET /v2/. The handshake asks that for
// every repository and permission, and the answer is the host's.
type greeter struct {
	registry *Registry
	insecure string
	inner    http.RoundTripper
}

// greeting is an answer to GET /v2/, or that the host does not speak TLS.
type greeting struct {
	status int
	header http.Header
	err    error
}

// RoundTrip implements http.RoundTripper.
func (g greeter) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || req.URL.Path != "/v2/" || req.URL.RawQuery != "" || req.Header.Get("Authorization") != "" {
		return g.inner.RoundTrip(req)
	}
	key := g.insecure + " " + req.URL.Scheme + "://" + req.URL.Host
	r := g.registry
	r.mu.Lock()
	known, ok := r.greetings[key]
	r.mu.Unlock()
	if ok {
		return known.response(req)
	}
	resp, err := g.inner.RoundTrip(req)
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		known = greeting{err: err}
	case err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized):
		known = greeting{status: resp.StatusCode, header: resp.Header.Clone()}
	default:
		return resp, err
	}
	r.mu.Lock()
	r.greetings[key] = known
	r.mu.Unlock()
	return resp, err
}

func (g greeting) response(req *http.Request) (*http.Response, error) {
	if g.err != nil {
		return nil, g.err
	}
	header := g.header.Clone()
	header.Del("Content-Length")
	return &http.Response{
		StatusCode: g.status, Status: http.StatusText(g.status), Header: header, Body: http.NoBody,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
	}, nil
}
