package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kilnbuild/kiln/internal/event"
)

var (
	// errPlainHTTP: the request would have left without TLS.
	errPlainHTTP = errors.New("plain HTTP is refused for this host")
	// errDowngrade: a redirect led from TLS to plain HTTP.
	errDowngrade = errors.New("redirected from HTTPS to plain HTTP")
)

const (
	dialTimeout = 30 * time.Second
	// A registry that moves a big blob to its object storage answers late.
	responseTimeout = 3 * time.Minute
	// maxIdle is how many connections to a host are kept: several images may be
	// on their way at once, each with a few requests.
	maxIdle = 32
	// Registries redirect once, to their storage; some of those once more.
	maxRedirects = 5
)

// wire is the last http.RoundTripper before the network. It chooses the
// connections by host, so that a certificate trusted for one host is not
// trusted for the next one a redirect leads to, and it lets nothing leave
// without TLS but to loopback and to hosts that were said to be insecure.
type wire struct {
	registry *Registry
	insecure string // host[:port], or "" for none
}

// RoundTrip implements http.RoundTripper.
func (w wire) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Host
	insecure := w.insecure != "" && host == w.insecure || w.registry.listed(host)
	if req.URL.Scheme != "https" && !insecure && !isLoopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("%s: %w", host, errPlainHTTP)
	}
	t, err := w.registry.connections(host, insecure)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(req)
}

// chain is what a client of a registry sends its requests through, but for the
// token handshake.
func (r *Registry) chain(insecure string) http.RoundTripper {
	return &retrier{inner: wire{r, insecure}, policy: r.retry, plain: insecure != "", notify: func(text string) {
		r.events.Emit(event.Message{Level: event.Warn, Text: text})
	}}
}

// connections returns the pool for host.
func (r *Registry) connections(host string, insecure bool) (http.RoundTripper, error) {
	key := fmt.Sprintf("%s %t", host, insecure)
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.wires[key]; ok {
		return t, nil
	}
	cfg, err := tlsConfig(host, r.certDirs)
	if err != nil {
		return nil, err
	}
	cfg.InsecureSkipVerify = insecure
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       cfg,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: responseTimeout,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   maxIdle,
		ForceAttemptHTTP2:     true,
		// A blob is bytes; what a server compresses on its own is not them.
		DisableCompression: true,
	}
	r.wires[key] = t
	return t, nil
}

// Close drops idle connections. A Registry can be used again afterwards.
func (r *Registry) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.wires {
		if c, ok := t.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}

// isLoopback says whether a host name or address never leaves this machine.
func isLoopback(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap().IsLoopback()
}

// isInsecure says whether the operator listed ref: an entry is a prefix of the
// reference as typed or as docker completes it. An entry without a slash must
// be a whole host, with or without its port, so that "reg.example" does not
// open reg.example.org.
func isInsecure(prefixes []string, ref string, repo name.Repository) bool {
	for _, p := range prefixes {
		p = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(p), "http://"), "https://")
		for _, s := range []string{ref, repo.Name()} {
			if p == "" || !strings.HasPrefix(s, p) {
				continue
			}
			if strings.Contains(p, "/") || len(s) == len(p) || strings.ContainsRune("/:", rune(s[len(p)])) {
				return true
			}
		}
	}
	return false
}

// listed says whether the operator listed a whole host, with or without its port.
func (r *Registry) listed(host string) bool {
	return slices.ContainsFunc(r.insecure, func(p string) bool { return p == host || p == hostname(host) })
}

// defaultCertDirs are where docker and podman look for the certificates of a
// registry: <dir>/<host[:port]>/*.crt, and *.cert with *.key for the client.
func defaultCertDirs() []string {
	var dirs []string
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs,
			filepath.Join(home, ".docker/certs.d"),
			filepath.Join(home, ".config/docker/certs.d"),
			filepath.Join(home, ".config/containers/certs.d"))
	}
	return append(dirs, "/etc/docker/certs.d", "/etc/containers/certs.d")
}

// tlsConfig trusts the system (and SSL_CERT_FILE, SSL_CERT_DIR) and what the
// operator put into certs.d for that host.
func tlsConfig(host string, dirs []string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, dir := range dirs {
		dir = filepath.Join(dir, host)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read certificates of %s: %w", host, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch filepath.Ext(path) {
			case ".crt":
				err = trust(cfg, path)
			case ".cert":
				var pair tls.Certificate
				pair, err = tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
				cfg.Certificates = append(cfg.Certificates, pair)
			}
			if err != nil {
				return nil, fmt.Errorf("read certificate %s: %w", path, err)
			}
		}
	}
	return cfg, nil
}

func trust(cfg *tls.Config, path string) error {
	pem, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if cfg.RootCAs == nil {
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			return err
		}
	}
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return errors.New("no PEM certificate in it")
	}
	return nil
}
