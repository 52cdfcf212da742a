package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// policy says what is tried again, when, and until when.
type policy struct {
	attempts int           // how often in all
	base     time.Duration // the first wait; each is twice the one before, up to most
	most     time.Duration
	// maxRetryAfter is the longest wait that a registry may ask for. One that
	// asks for more is taken to have refused: nobody watches a build sleep for
	// an hour.
	maxRetryAfter time.Duration
	deadline      time.Duration                              // for all attempts at one thing
	sleep         func(context.Context, time.Duration) error // replaced in tests
}

// defaultPolicy waits for about ten seconds in all, unless the registry asks
// for more: long enough for a registry that restarts, short enough for a typo.
var defaultPolicy = policy{
	attempts:      6,
	base:          300 * time.Millisecond,
	most:          10 * time.Second,
	maxRetryAfter: time.Minute,
	deadline:      3 * time.Minute,
	sleep:         sleep,
}

// refusal is an answer that was not wanted, with the wait it asked for.
type refusal struct {
	error
	after time.Duration
}

func (r *refusal) Unwrap() error { return r.error }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// tries counts the attempts at one thing.
type tries struct {
	policy
	started time.Time
	n       int
}

func (p policy) start() *tries { return &tries{policy: p, started: time.Now(), n: 1} }

// wait sleeps before the next attempt and returns true, or returns false when
// there should be none. after is what the registry asked for, or 0; notify is
// told before it sleeps.
func (t *tries) wait(ctx context.Context, after time.Duration, notify func(wait time.Duration, n, of int)) bool {
	if t.n >= t.attempts || after > t.maxRetryAfter || ctx.Err() != nil {
		return false
	}
	d := min(t.base<<(t.n-1), t.most)
	// Half of it by chance, so that many builds do not come back as one.
	d = d/2 + rand.N(d/2+1)
	d = max(d, after)
	if time.Since(t.started)+d > t.deadline {
		return false
	}
	t.n++
	notify(d, t.n, t.attempts)
	return t.sleep(ctx, d) == nil
}

// retryAfter reads the header of that name: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if s, err := strconv.ParseInt(v, 10, 64); err == nil {
		// A number that overflows is a long time, not a negative one.
		return time.Duration(min(max(s, 0), int64(24*time.Hour/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

// temporaryStatus says whether a registry that answers so may do better soon.
func temporaryStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// temporary says whether err is one that trying again may cure.
func temporary(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, errPlainHTTP) {
		return false
	}
	if te, ok := errors.AsType[*transport.Error](err); ok {
		return temporaryStatus(te.StatusCode)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsTemporary || dns.IsTimeout
	}
	for _, e := range []error{io.ErrUnexpectedEOF, io.EOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, net.ErrClosed, errStalled, errCutShort} {
		if errors.Is(err, e) {
			return true
		}
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return true
	}
	// net/http has no value for these two.
	s := err.Error()
	return strings.Contains(s, "server closed idle connection") || strings.Contains(s, "http2: server sent GOAWAY")
}

// onceOnly marks the context of requests that must not be repeated as they
// are: an upload session is spent after its first failure, so the whole upload
// starts again, one floor up.
type onceOnly struct{}

// retrier is the http.RoundTripper that repeats what may be repeated.
type retrier struct {
	inner  http.RoundTripper
	policy policy
	plain  bool // plain HTTP is tried too where HTTPS fails
	notify func(text string)
}

// RoundTrip implements http.RoundTripper. When nothing helps it returns the
// last answer, so that the caller can say what it was.
func (r *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	once := ctx.Value(onceOnly{}) != nil || (req.Body != nil && req.Body != http.NoBody && req.GetBody == nil)
	t := r.policy.start()
	// The handshake tries both schemes side by side; what refuses the connection
	// for the one refuses it for the other, and one of them waiting is enough.
	ping := req.URL.Scheme == "https" && req.URL.Path == "/v2/" && (r.plain || isLoopback(req.URL.Hostname()))
	for {
		again, err := freshBody(req)
		if err != nil {
			return nil, err
		}
		resp, err := r.inner.RoundTrip(again)
		why, after := "", time.Duration(0)
		switch {
		case err != nil && ping && errors.Is(err, syscall.ECONNREFUSED):
		case err != nil && ctx.Err() == nil && temporary(err):
			why = cause(err)
		case err == nil && temporaryStatus(resp.StatusCode):
			why = fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
			after = retryAfter(resp.Header, time.Now())
		}
		if why == "" || once || !t.wait(ctx, after, func(d time.Duration, n, of int) {
			if resp != nil {
				drain(resp.Body)
				resp = nil
			}
			r.notify(waiting(req.URL.Host, why, d, n, of))
		}) {
			if resp == nil && err == nil {
				err = context.Cause(ctx) // cancelled while it waited
			}
			return resp, err
		}
	}
}

func waiting(host, why string, d time.Duration, n, of int) string {
	return fmt.Sprintf("%s: %s; trying again in %s (attempt %d of %d)", host, why, d.Round(100*time.Millisecond), n, of)
}

// freshBody returns req with its body from the start. The token transport
// above sends a request a second time after a 401 with its body spent; GetBody
// makes that right.
func freshBody(req *http.Request) (*http.Request, error) {
	if req.GetBody == nil || req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	req.Body.Close()
	again := req.Clone(req.Context())
	again.Body = body
	return again, nil
}

// drain lets the connection be used again, if what is left is small.
func drain(rc io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, rc, 64<<10)
	rc.Close()
}
