package registry

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
)

// proxyTo stands before a registry, so that what passes can be counted or spoilt.
func proxyTo(t *testing.T, host string, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: host})
			r.Out.Host = r.In.Host // the registry makes locations of it
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	srv := httptest.NewServer(wrap(p))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func emptyIndex(*testing.T) v1.ImageIndex { return empty.Index }
