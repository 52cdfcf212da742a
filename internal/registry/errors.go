package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

var (
	// ErrCorrupt says that a registry, or something on the way to it, handed
	// out bytes that do not have the digest they were asked for by.
	ErrCorrupt = fmt.Errorf("%w: bytes do not match their digest", image.ErrInvalid)

	errStalled  = errors.New("no byte arrived for a minute")
	errCutShort = errors.New("the connection ended before the last byte")
)

// side is which end of a copy an error is about.
type side string

const (
	reading  side = "read image"
	writing  side = "write image"
	deleting side = "delete image"
)

// fail names the reference, the host and what went wrong, in words and without
// secrets: URLs are left out since storage signs them with keys. It wraps
// image.ErrNotFound, image.ErrUnauthorized and image.ErrUnavailable where they
// apply and adds a hint where there is something to do.
func (c *client) fail(s side, ref string, err error) error {
	if err == nil {
		return nil
	}
	host := c.repo.RegistryStr()
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s %s: %w", s, ref, &redacted{text: cause(err), err: err})
	}
	// A TLS server on loopback answers the plain HTTP that is tried next, too;
	// its certificate is the reason.
	_, cert := errors.AsType[*tls.CertificateVerificationError](err)
	if te, ok := errors.AsType[*transport.Error](err); ok && !cert {
		return c.failStatus(s, ref, te)
	}
	said := &redacted{text: c.hide(cause(err)), err: err}
	if unreachable(err) {
		said.also = image.ErrUnavailable
	}
	wrapped := fmt.Errorf("%s %s: %s: %w", s, ref, host, said)
	if h := hint(host, err); h != "" {
		return spec.WithHint(wrapped, "%s", h)
	}
	return wrapped
}

// unreachable says whether err is about the way to a registry, or about an
// answer that broke off.
func unreachable(err error) bool {
	if errors.Is(err, errLocal) || errors.Is(err, ErrCorrupt) {
		return false
	}
	_, request := errors.AsType[*url.Error](err)
	_, network := errors.AsType[net.Error](err)
	return request || network || temporary(err)
}

// redacted shows text for err, which is also that sentinel if it is not nil.
type redacted struct {
	text string
	err  error
	also error
}

func (r *redacted) Error() string        { return r.text }
func (r *redacted) Unwrap() error        { return r.err }
func (r *redacted) Is(target error) bool { return r.also != nil && target == r.also }

// failStatus is fail for a registry that answered.
func (c *client) failStatus(s side, ref string, te *transport.Error) error {
	host := c.repo.RegistryStr()
	said := c.hide(fmt.Sprintf("%s answered %s", host, status(te)))
	text := func(sentinel error) error {
		if sentinel == nil {
			r := &redacted{text: said, err: te}
			if temporaryStatus(te.StatusCode) || te.StatusCode >= http.StatusInternalServerError {
				r.also = image.ErrUnavailable
			}
			return fmt.Errorf("%s %s: %w", s, ref, r)
		}
		return fmt.Errorf("%s %s: %w: %w", s, ref, sentinel, &redacted{text: said, err: te})
	}
	switch code := te.StatusCode; {
	case code == http.StatusUnauthorized && c.anonymous.Load():
		return spec.WithHint(text(image.ErrUnauthorized),
			"log in with `docker login %s` (podman login and skopeo login do as well), set DOCKER_CONFIG to the directory of a config.json that has credentials for %s, or set CNB_REGISTRY_AUTH; many registries answer so too when there is no such repository", host, host)
	case code == http.StatusUnauthorized:
		return spec.WithHint(text(image.ErrUnauthorized),
			"the credentials for %s were not accepted: log in again with `docker login %s`", host, host)
	case code == http.StatusForbidden && s == writing:
		return spec.WithHint(text(image.ErrUnauthorized), "the account may not write to %s: check its permissions, or log in as another with `docker login %s`", c.repo.Name(), host)
	case code == http.StatusForbidden:
		return spec.WithHint(text(image.ErrUnauthorized), "the account may not read %s: check its permissions, or log in as another with `docker login %s`", c.repo.Name(), host)
	case code == http.StatusNotFound && s == writing:
		return spec.WithHint(text(image.ErrNotFound), "this registry may want the repository %s to be made before something is pushed to it", c.repo.Name())
	case code == http.StatusNotFound:
		return spec.WithHint(text(image.ErrNotFound), "check the name and the tag")
	case code == http.StatusTooManyRequests:
		return spec.WithHint(text(nil), "%s limits how often it may be asked: wait, or log in with `docker login %s` for a higher limit", host, host)
	case code == http.StatusRequestEntityTooLarge:
		return spec.WithHint(text(nil), "a proxy before %s limits the size of uploads (nginx: client_max_body_size)", host)
	case code >= 500:
		return spec.WithHint(text(nil), "the registry, or a proxy before it, is in trouble: try again later")
	}
	return text(nil)
}

// status is the code with what the registry said about it.
func status(te *transport.Error) string {
	out := fmt.Sprintf("%d %s", te.StatusCode, http.StatusText(te.StatusCode))
	for _, d := range te.Errors {
		switch {
		case d.Message != "":
			out += ": " + printable(d.Message)
		case d.Code != "":
			out += ": " + printable(string(d.Code))
		}
	}
	return out
}

// printable makes a line of what a stranger sent.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	const most = 300 // characters; more is a page of HTML
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return strings.TrimSpace(s)
}

// credential is what an Authorization header holds; words are let through.
var credential = regexp.MustCompile(`(?i)\b(basic|bearer)\s+[a-z0-9+/._~-]*[0-9=][a-z0-9+/=._~-]*`)

// hide takes credentials out of a text: there are servers that repeat in an
// error what they were sent.
func (c *client) hide(text string) string {
	c.secretsMu.Lock()
	defer c.secretsMu.Unlock()
	for _, s := range c.secrets {
		text = strings.ReplaceAll(text, s, "[hidden]")
	}
	return credential.ReplaceAllString(text, "$1 [hidden]")
}

// keepSecret makes hide know the parts of auth that nobody should see.
func (c *client) keepSecret(auth authn.Authenticator) {
	cfg, err := auth.Authorization()
	if err != nil || cfg == nil {
		return // the handshake will fail with it
	}
	c.secretsMu.Lock()
	defer c.secretsMu.Unlock()
	c.secrets = nil
	for _, s := range []string{cfg.Auth, cfg.Password, cfg.IdentityToken, cfg.RegistryToken} {
		if len(s) > 3 { // a shorter one is in every text
			c.secrets = append(c.secrets, s)
		}
	}
}

// cause is the reason in err, without the URL of the request.
func cause(err error) string {
	if errors.Is(err, http.ErrSchemeMismatch) {
		// Plain HTTP was allowed and tried next; what came of that is the reason.
		for _, e := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.ErrUnexpectedEOF, io.EOF} {
			if errors.Is(err, e) {
				return cause(e)
			}
		}
	}
	if te, ok := errors.AsType[*transport.Error](err); ok {
		return "answered " + status(te)
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return cause(ue.Err)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("look up %s: %s", dns.Name, dns.Err)
	}
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return "it speaks plain HTTP, not HTTPS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, errCutShort):
		return errCutShort.Error()
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return errCutShort.Error()
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return "timed out: " + ne.Error()
	}
	return err.Error()
}

// hint says what to do about a failure without an answer.
func hint(host string, err error) string {
	broken := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errCutShort)
	if ue, ok := errors.AsType[*url.Error](err); ok {
		// The handshake reports TLS and then the plain HTTP that was refused;
		// the first is the reason.
		err = ue.Err
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Sprintf("its certificate is signed by an authority that this machine does not know: put the CA's certificate in /etc/docker/certs.d/%s/ca.crt, add it to the system, or name its file in SSL_CERT_FILE; `--insecure-registry %s` trusts any", host, host)
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is for another name: use the name that the certificate has"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "the certificate has expired, or this machine's clock is wrong"
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return "check the registry's name, and that this machine has a network; behind a proxy set HTTPS_PROXY"
		}
		return "check that this machine has a network and a name server"
	}
	switch {
	case broken:
		return fmt.Sprintf("%s, or a proxy on the way to it, is in trouble: try again later", host)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("if you trust the network up to it: `--insecure-registry %s`", host)
	case errors.Is(err, errPlainHTTP), errors.Is(err, errDowngrade):
		return "it wanted to go on without TLS; list a host that may with `--insecure-registry HOST`"
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens there: check the name and the port, and that the registry at %s is running", host)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "check that this machine has a network; behind a proxy set HTTPS_PROXY"
	case errors.Is(err, ErrCorrupt):
		return "nothing was kept of it: try again, and if it stays so the registry's copy, or a proxy in between, is broken"
	}
	return ""
}
