package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Bounds of what a daemon may answer, in bytes. Labels are the bulk of it, and
// those of an app image have hundreds of kilobytes at most.
const (
	maxAnswer = 64 << 20
	maxError  = 64 << 10
)

// newTransport dials the daemon whatever the URL says.
func newTransport(host string, secure *tls.Config) (t *http.Transport, scheme string, err error) {
	kind, address, _ := strings.Cut(host, "://")
	t = &http.Transport{
		DisableCompression: true, // the wire is short
		TLSClientConfig:    secure,
	}
	scheme = "http"
	network := "unix"
	switch {
	case kind == "unix" && address != "":
	case (kind == "tcp" || kind == "http" || kind == "https") && address != "":
		network, address = "tcp", strings.TrimSuffix(address, "/")
		if secure != nil || kind == "https" {
			scheme = "https"
		}
	case kind == "ssh":
		return nil, "", spec.WithHint(fmt.Errorf("docker host %q: kiln does not start ssh", host), "forward the socket: ssh -NL /tmp/docker.sock:/var/run/docker.sock %s; then unix:///tmp/docker.sock", address)
	default:
		return nil, "", spec.WithHint(fmt.Errorf("docker host %q: not an address", host), "write it as unix:///var/run/docker.sock or tcp://host:2375")
	}
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
	}
	return t, scheme, nil
}

// ClientTLS reads the files that the docker command has in DOCKER_CERT_PATH:
// ca.pem, cert.pem and key.pem. Without verify any server will do.
func ClientTLS(dir string, verify bool) (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: !verify}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err == nil {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s: no certificate in it", filepath.Join(dir, "ca.pem"))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err == nil {
		c.Certificates = []tls.Certificate{pair}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return c, nil
}

// noRedirect: a daemon that sends its clients elsewhere is none.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// refused is an answer that is an error.
type refused struct {
	status  int
	message string
}

func (r *refused) Error() string { return fmt.Sprintf("%s (%d)", r.message, r.status) }

// Unwrap names the kind of it.
func (r *refused) Unwrap() error {
	switch {
	case r.status == http.StatusNotFound:
		return image.ErrNotFound
	case r.status == http.StatusUnauthorized, r.status == http.StatusForbidden:
		return image.ErrUnauthorized
	case r.status >= 500:
		return image.ErrUnavailable
	}
	return nil
}

// request sends one request to the API; op says what it is for. The caller
// reads the answer to its end and closes it.
func (d *Daemon) request(ctx context.Context, op, method, to string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, fmt.Errorf("docker daemon at %s: %s: %w", d.host, op, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-tar")
	}
	resp, err := d.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which nobody typed
		}
		return nil, fmt.Errorf("docker daemon at %s: %s: %w", d.host, op, d.unreachable(ctx, err))
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return nil, fmt.Errorf("docker daemon at %s: %s: %w", d.host, op, err)
	}
	return nil, fmt.Errorf("docker daemon at %s: %s: %w", d.host, op, refusal(resp.StatusCode, b))
}

// refusal is the error that a daemon's answer with an error status is.
func refusal(status int, answer []byte) *refused {
	var said struct{ Message string }
	if json.Unmarshal(answer, &said) != nil || said.Message == "" {
		said.Message = http.StatusText(status)
	}
	return &refused{status, clip(said.Message)}
}

// unreachable marks errors of the way there, and says what may help.
func (d *Daemon) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "dial" {
		return err
	}
	err = fmt.Errorf("%w: %w", image.ErrUnavailable, err)
	switch {
	case errors.Is(err, syscall.EACCES):
		return spec.WithHint(err, "only the socket's owner and group may use it: usually root and the group docker")
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return spec.WithHint(err, "start the daemon, or name its address: DOCKER_HOST=unix:///path/of/docker.sock; for podman, `podman system service` listens on one")
	}
	return err
}

// get asks for a small answer and reads it into v, unless v is nil.
func (d *Daemon) get(ctx context.Context, op, path string, v any) (*http.Response, error) {
	return d.small(ctx, op, http.MethodGet, d.base+path, v)
}

func (d *Daemon) small(ctx context.Context, op, method, to string, v any) (*http.Response, error) {
	late := fmt.Errorf("%w: no answer in %v", image.ErrUnavailable, d.quick)
	ctx, cancel := context.WithTimeoutCause(ctx, d.quick, late)
	defer cancel()
	resp, err := d.request(ctx, op, method, to, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && len(b) > maxAnswer:
		err = fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	case err == nil && v != nil:
		err = json.NewDecoder(bytes.NewReader(b)).Decode(v)
	}
	if err != nil {
		return nil, fmt.Errorf("docker daemon at %s: %s: %w", d.host, op, err)
	}
	return resp, nil
}

// clip makes a line of bounded length of what a daemon says.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	const most = 1000 // bytes: podman's errors list every format that it knows
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strings.TrimSpace(s)
}

// watch is ctx for a transfer: it ends when nothing was moved for a while.
func (d *Daemon) watch(ctx context.Context) (watched context.Context, moved func(), stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(d.stall, func() {
		cancel(fmt.Errorf("%w: nothing was moved for %v", image.ErrUnavailable, d.stall))
	})
	return watched, func() { timer.Reset(d.stall) }, func() { timer.Stop(); cancel(nil) }
}

// moving tells of each read.
type moving struct {
	r     io.Reader
	moved func()
}

func (m moving) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.moved()
	return n, err
}
