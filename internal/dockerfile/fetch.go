package dockerfile

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

// isURL tells whether a source of ADD is a file of the web.
func isURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

// urlName is the name of the file that a URL leads to.
func urlName(source string) string {
	u, err := url.Parse(source)
	if err != nil {
		return ""
	}
	if base := path.Base(u.Path); base != "." && base != "/" {
		return base
	}
	return ""
}

// Patience with a server, and what it may send at most, in bytes.
const (
	dialTime  = 30 * time.Second
	quietTime = 60 * time.Second
	maxFetch  = 64 << 30
)

// fetch copies what is at source to out.
func fetch(ctx context.Context, source string, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(quietTime, func() { cancel(fmt.Errorf("nothing came for %s", quietTime)) })
	defer quiet.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSHandshakeTimeout = dialTime
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return causeOf(ctx, fmt.Errorf("fetch: %w", err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch %s: the server says %s", source, resp.Status)
	}
	n, err := io.Copy(out, io.LimitReader(&watched{resp.Body, quiet}, maxFetch+1))
	if err == nil && n > maxFetch {
		err = fmt.Errorf("more than %d bytes", int64(maxFetch))
	}
	if err != nil {
		return causeOf(ctx, fmt.Errorf("fetch %s: %w", source, err))
	}
	return nil
}

// causeOf adds why ctx ended to an error.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w (%w)", err, cause)
	}
	return err
}

// watched puts off a timer with every read.
type watched struct {
	r     io.Reader
	quiet *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.quiet.Reset(quietTime)
	}
	return n, err
}
