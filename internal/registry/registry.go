// Package registry reads and writes images in OCI registries.
//
// It speaks the distribution protocol over the transport of
// go-containerregistry, which does the token handshake. Everything between
// that and the wire is here: which hosts may be spoken to without TLS, whose
// certificates are trusted, what is tried again and for how long, and what a
// failure tells its reader.
//
// Promised: an image comes whole or not at all; bytes are checked against
// their digest while they are read; a tag moves only after everything under it
// was taken and read back. Not promised: that a push cut short leaves no blobs
// behind, which registries clean up by themselves.
package registry

import (
	"net/http"
	"runtime"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
)

// Options are what a Registry cannot find out by itself. The zero value is good.
type Options struct {
	// Auth is the value of CNB_REGISTRY_AUTH: a JSON object from registry to
	// the value of the Authorization header, "Basic x", "Bearer x" or
	// "X-Identity x". It goes before docker's and podman's configuration.
	Auth string
	// Insecure lists prefixes of references that may be reached over plain
	// HTTP, or over TLS without checking certificates.
	Insecure []string
	// Events takes progress of transfers and a message for each wait. May be nil.
	Events event.Sink
	// Platform chooses from an index. The zero value is linux and this
	// program's architecture.
	Platform v1.Platform
}

// Registry is every registry that a reference can name. It is safe for
// concurrent use and keeps connections and tokens.
type Registry struct {
	insecure []string
	events   event.Sink
	platform v1.Platform
	keychain *keychain
	retry    policy
	certDirs []string

	mu        sync.Mutex
	clients   map[string]*client           // by scheme class and scopes
	wires     map[string]http.RoundTripper // by host and whether it is insecure
	greetings map[string]greeting          // by URL and whether it is insecure
}

var (
	_ image.Source         = (*Registry)(nil)
	_ image.PlatformSource = (*Registry)(nil)
	_ image.Target         = (*Registry)(nil)
	_ image.AccessChecker  = (*Registry)(nil)
)

// New makes a Registry. It fails when o.Auth is not what it should be.
func New(o Options) (*Registry, error) {
	keychain, err := newKeychain(o.Auth)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		insecure:  o.Insecure,
		events:    o.Events,
		platform:  o.Platform,
		keychain:  keychain,
		retry:     defaultPolicy,
		certDirs:  defaultCertDirs(),
		clients:   map[string]*client{},
		wires:     map[string]http.RoundTripper{},
		greetings: map[string]greeting{},
	}
	if r.events == nil {
		r.events = event.Discard
	}
	if r.platform.OS == "" {
		r.platform.OS = "linux"
	}
	if r.platform.Architecture == "" {
		r.platform.Architecture = runtime.GOARCH
	}
	return r, nil
}
