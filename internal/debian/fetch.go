package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/spec"
)

// How hard a download is tried.
const (
	attempts = 4
	// backoff is the pause after the first failure; it doubles.
	backoff = 300 * time.Millisecond
	// longestWait bounds what a server's Retry-After can ask for.
	longestWait = 20 * time.Second
	// stall is how long a connection may give nothing before it is given up.
	stall = 30 * time.Second
)

// statusError is an answer that is not 200.
type statusError struct {
	url    string
	code   int
	status string
	wait   time.Duration
}

// Error implements error.
func (e *statusError) Error() string { return "get " + e.url + ": " + e.status }

// httpClient returns the client for a proxy setting of apt's.
func (c *Client) httpClient(proxy string) (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.http[proxy]; h != nil {
		return h, nil
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		ResponseHeaderTimeout: stall,
		TLSHandshakeTimeout:   stall,
		MaxIdleConnsPerHost:   downloads,
		IdleConnTimeout:       stall,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // a Packages.gz shall stay one
	}
	switch proxy {
	case "":
	case "DIRECT":
		t.Proxy = nil
	default:
		u, err := url.Parse(proxy)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("apt.conf: proxy %q is not an address", proxy)
		}
		t.Proxy = http.ProxyURL(u)
	}
	t.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	h := &http.Client{Transport: t}
	c.http[proxy] = h
	return h, nil
}

// get hands the file at path below one of the sources to use: the first source
// that has it, each tried again after failures that may pass. use may therefore
// be called more than once; its errors count as the source's. get returns the
// source that was good.
func (c *Client) get(ctx context.Context, from []Source, path string, use func(io.Reader) error) (Source, error) {
	var failed []error
	for _, s := range from {
		err := c.getFrom(ctx, s, path, use)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
		failed = append(failed, err)
	}
	return Source{}, unreached(errors.Join(failed...))
}

// unreached says what to do about a mirror that cannot be reached.
func unreached(err error) error {
	if ue := new(url.Error); !errors.As(err, &ue) || spec.HintOf(err) != "" {
		return err
	}
	// The resolver keeps the words of what it met, and not the error.
	if strings.Contains(err.Error(), syscall.ENETUNREACH.Error()) {
		return hint(err, "there is no network here: with --network none only what an earlier build has cached can be had")
	}
	return hint(err, "check the network and the address of the Debian mirror; --mirror URL names another one")
}

func (c *Client) getFrom(ctx context.Context, s Source, path string, use func(io.Reader) error) error {
	pause := c.pause
	for i := 1; ; i++ {
		err := c.getOnce(ctx, s, path, use)
		if err == nil || i == attempts || !temporary(err) {
			return err
		}
		wait := pause
		if se := new(statusError); errors.As(err, &se) && se.wait > 0 {
			wait = min(se.wait, longestWait)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		pause *= 2
	}
}

// temporary is true for errors that may be gone at the next try: those of the
// network and of a busy server, not those of the content.
func temporary(err error) bool {
	if se := new(statusError); errors.As(err, &se) {
		return se.code == http.StatusTooManyRequests || se.code == http.StatusRequestTimeout || se.code >= 500
	}
	if ue := new(url.Error); errors.As(err, &ue) {
		return true
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errStalled) || errors.Is(err, errBody)
}

var (
	errStalled = fmt.Errorf("no data for %s", stall)
	errBody    = errors.New("connection broke")
)

func (c *Client) getOnce(ctx context.Context, s Source, path string, use func(io.Reader) error) error {
	h, err := c.httpClient(s.Proxy)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URI+"/"+path, nil)
	if err != nil {
		return fmt.Errorf("address of archive: %w", err)
	}
	req.Header.Set("User-Agent", "kiln")
	name := req.URL.Redacted()
	resp, err := h.Do(req)
	if err != nil {
		return err // *url.Error names method and redacted address
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return &statusError{url: name, code: resp.StatusCode, status: resp.Status, wait: time.Duration(seconds) * time.Second}
	}
	timer := time.AfterFunc(stall, func() { cancel(errStalled) })
	defer timer.Stop()
	if err := use(&bodyReader{ctx: ctx, r: resp.Body, timer: timer}); err != nil {
		return fmt.Errorf("get %s: %w", name, err)
	}
	return nil
}

// bodyReader winds the stall timer up at each read and marks errors of the
// connection, so that they can be told from those of the content.
type bodyReader struct {
	ctx   context.Context
	r     io.Reader
	timer *time.Timer
}

// Read implements io.Reader.
func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.timer.Reset(stall)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case b.ctx.Err() != nil:
		return n, context.Cause(b.ctx)
	}
	return n, fmt.Errorf("%w: %w", errBody, err)
}
