package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/spec"
)

const (
	// jobs is how many blobs move at once: more than a few gains nothing on
	// one line and meets the limits of public registries.
	jobs = 4
	// maxManifest and maxConfig bound what is read into memory, in bytes. The
	// distribution spec has registries take manifests of up to 4 MiB.
	maxManifest = 4 << 20
	maxConfig   = 16 << 20
)

// client talks to one repository with one set of permissions.
type client struct {
	registry  *Registry
	repo      name.Repository
	insecure  string      // the repository's host if it may do without TLS
	anonymous atomic.Bool // no credentials were found for it

	mu     sync.Mutex // held during the handshake
	http   *http.Client
	scopes []string

	secretsMu sync.Mutex
	secrets   []string // what hide takes out of texts
}

// parse reads ref, which may be short ("ubuntu"), as docker does.
func (r *Registry) parse(ref string) (name.Reference, error) {
	var opts []name.Option
	if i := strings.Index(ref, "://"); i >= 0 {
		// It may have a password in it.
		return nil, spec.WithHint(fmt.Errorf("invalid image reference %q: it is a URL", redactUser(ref)), "leave off %s", ref[:i+3])
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("invalid image reference %q: %w", ref, err)
	}
	if isInsecure(r.insecure, ref, parsed.Context()) || isLoopback(hostname(parsed.Context().RegistryStr())) {
		opts = append(opts, name.Insecure)
	}
	return name.ParseReference(ref, opts...)
}

func hostname(hostport string) string { return (&url.URL{Host: hostport}).Hostname() }

// redactUser hides the password of somebody who typed a URL.
func redactUser(ref string) string {
	if i, j := strings.Index(ref, "://"), strings.LastIndex(ref, "@"); i >= 0 && j > i {
		return ref[:i+3] + "..." + ref[j:]
	}
	return ref
}

// client returns the one for that repository and actions ("pull" or
// "push,pull"), which may also pull from the repositories in from.
func (r *Registry) client(ref string, repo name.Repository, action string, from ...name.Repository) *client {
	scopes := []string{repo.Scope(action)}
	for _, f := range from {
		if s := f.Scope(transport.PullScope); !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	c := &client{registry: r, repo: repo}
	if isInsecure(r.insecure, ref, repo) {
		c.insecure = repo.RegistryStr()
	}
	// A scope does not name the host, and insecure may hold for one reference only.
	key := fmt.Sprintf("%s %q %q", repo.RegistryStr(), scopes, c.insecure)
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.clients[key]; ok {
		return old
	}
	r.clients[key] = c
	c.scopes = scopes
	return c
}

// connect does the handshake, once; a failed one is done again by the next request.
func (c *client) connect(ctx context.Context) (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil {
		return c.http, nil
	}
	auth, err := authn.Resolve(ctx, c.registry.keychain, c.repo)
	if err != nil {
		return nil, fmt.Errorf("look up credentials: %w", err)
	}
	c.anonymous.Store(auth == authn.Anonymous)
	c.keepSecret(auth)
	chain := greeter{c.registry, c.insecure, c.registry.chain(c.insecure)}
	tr, err := transport.NewWithContext(ctx, c.repo.Registry, auth, transport.NewUserAgent(chain, "kiln"), c.scopes)
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{Transport: tr, CheckRedirect: c.checkRedirect}
	return c.http, nil
}

// checkRedirect follows a few redirects, never out of TLS. Credentials do not
// travel: the transport adds them to requests for the registry's host alone.
func (c *client) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("redirected more than %d times", maxRedirects)
	}
	host := req.URL.Host
	if host == c.repo.RegistryStr() {
		return nil // the transport gives the URL the registry's scheme
	}
	if req.URL.Scheme == "http" && req.Response != nil && req.Response.TLS != nil && !c.registry.listed(host) {
		return fmt.Errorf("%s: %w", host, errDowngrade)
	}
	return nil
}

// do sends a request for path under /v2/<repository>/, or for an absolute URL
// that the registry gave, and fails with a *transport.Error unless the answer
// is one of want. The caller closes the body.
func (c *client) do(ctx context.Context, method, where string, change func(*http.Request), want ...int) (*http.Response, error) {
	hc, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(where, "://") {
		// The transport puts http here if that is what the registry speaks.
		where = fmt.Sprintf("https://%s/v2/%s/%s", c.repo.RegistryStr(), c.repo.RepositoryStr(), where)
	}
	req, err := http.NewRequestWithContext(ctx, method, where, nil)
	if err != nil {
		return nil, err
	}
	if change != nil {
		change(req)
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, want...); err != nil {
		resp.Body.Close()
		return nil, &refusal{err, retryAfter(resp.Header, time.Now())}
	}
	return resp, nil
}

// accepted are the manifests that can be an image, or lead to one.
var accepted = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	string(types.OCIImageIndex), string(types.DockerManifestList),
}, ", ")

// manifest is one as the registry handed it out, checked against its digest.
type manifest struct {
	raw       []byte
	mediaType types.MediaType
	digest    v1.Hash
}

// manifest reads the one of that tag or digest. Bytes that are not those of
// the digest are thrown away and asked for once more.
func (c *client) manifest(ctx context.Context, id string) (manifest, error) {
	var m manifest
	err := c.again(ctx, func() (err error) {
		m, err = c.manifestOnce(ctx, id)
		return err
	})
	return m, err
}

func (c *client) manifestOnce(ctx context.Context, id string) (manifest, error) {
	resp, err := c.do(ctx, http.MethodGet, "manifests/"+id, func(r *http.Request) {
		r.Header.Set("Accept", accepted)
	}, http.StatusOK)
	if err != nil {
		return manifest{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return manifest{}, cutShort(err)
	}
	if len(raw) > maxManifest {
		return manifest{}, fmt.Errorf("manifest %s is larger than %d bytes", id, maxManifest)
	}
	m := manifest{raw: raw, digest: hashOf(raw), mediaType: mediaTypeOf(resp.Header.Get("Content-Type"), raw)}
	for _, said := range []string{id, resp.Header.Get("Docker-Content-Digest")} {
		if h, err := v1.NewHash(said); err == nil && h != m.digest {
			return manifest{}, fmt.Errorf("manifest %s: %w: got %s", h, ErrCorrupt, m.digest)
		}
	}
	return m, nil
}

// again runs f, and a few times more if it failed for a passing reason that
// the transport below could not see: a body that ends early, or bytes that do
// not match their digest (those only once more).
func (c *client) again(ctx context.Context, f func() error) error {
	t := c.registry.retry.start()
	for corrupt := 0; ; {
		err := f()
		switch {
		case errors.Is(err, ErrCorrupt):
			if corrupt++; corrupt > 1 {
				return err
			}
		case !errors.Is(err, errCutShort) && !errors.Is(err, errStalled):
			return err
		}
		if !t.wait(ctx, 0, c.notify(err)) {
			return err
		}
	}
}

// cutShort marks a failure to read a body to its end as one to try again.
func cutShort(err error) error {
	if temporary(err) {
		return fmt.Errorf("%w (%s)", errCutShort, cause(err))
	}
	return err
}
