package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/event"
)

// Client fetches from Debian archives. It is safe for concurrent use.
type Client struct {
	sources      []Source
	keys         openpgp.EntityList
	allowExpired bool
	events       event.Sink
	now          func() time.Time
	pause        time.Duration // after the first failure of a download

	mu    sync.Mutex
	http  map[string]*http.Client // by proxy
	blobs Blobs
	temp  string // made for blobs, to be removed
}

// NewClient checks the options and reads the keyrings. Nothing is fetched yet.
func NewClient(opts Options) (*Client, error) {
	if len(opts.Sources) == 0 {
		return nil, errors.New("no Debian archive given")
	}
	keys, err := readKeyring(opts.Keyrings)
	if err != nil {
		return nil, err
	}
	c := &Client{sources: slices.Clone(opts.Sources), keys: keys, allowExpired: opts.AllowExpired,
		blobs: opts.Blobs, events: opts.Events, now: opts.Now, pause: backoff, http: map[string]*http.Client{}}
	if c.events == nil {
		c.events = event.Discard
	}
	if c.now == nil {
		c.now = time.Now
	}
	return c, nil
}

// Close ends idle connections and removes the temporary directory, if any.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.http {
		h.CloseIdleConnections()
	}
	if c.temp == "" {
		return nil
	}
	err := os.RemoveAll(c.temp)
	c.temp, c.blobs = "", nil
	return err
}

// keeper is where .debs go: the caller's, or a directory made at first use.
func (c *Client) keeper() (Blobs, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blobs == nil {
		dir, err := os.MkdirTemp("", "kiln-debs-*")
		if err != nil {
			return nil, fmt.Errorf("make a place for downloads: %w", err)
		}
		c.temp, c.blobs = dir, DirBlobs(dir)
	}
	return c.blobs, nil
}

// Resolve reads the archive's indexes and chooses the packages of req. It fails,
// naming the chain of dependencies, on what cannot be satisfied, and on
// packages that conflict.
func (c *Client) Resolve(ctx context.Context, req Request) (Lock, error) {
	if !plainName(req.Suite) || !plainName(req.Arch) {
		return Lock{}, fmt.Errorf("suite %q, architecture %q: not plain names", req.Suite, req.Arch)
	}
	x, releases, err := c.readIndex(ctx, req)
	if err != nil {
		return Lock{}, err
	}
	lock := Lock{Version: lockVersion, Suite: req.Suite, Arch: req.Arch, Exclude: req.Exclude, Releases: releases}
	for _, g := range req.Groups {
		lock.Groups = append(lock.Groups, LockedGroup{Name: g.Name, Want: g.Packages})
	}
	if lock.Packages, err = resolve(ctx, x, req.Groups, req.Exclude); err != nil {
		return Lock{}, fmt.Errorf("resolve packages of %s/%s: %w", req.Suite, req.Arch, err)
	}
	if err := lock.check(); err != nil {
		return Lock{}, fmt.Errorf("resolve packages of %s/%s: %w", req.Suite, req.Arch, err)
	}
	return lock, nil
}

// readIndex reads the indexes of the suite, its updates and its security fixes.
func (c *Client) readIndex(ctx context.Context, req Request) (*index, []LockedRelease, error) {
	ps, err := pockets(c.sources, req.Suite)
	if err != nil {
		return nil, nil, err
	}
	parts := make([]*index, len(ps))
	releases := make([]LockedRelease, len(ps))
	progress := newMeter(c.events, "debian-index", "Debian package lists", 0)
	defer progress.end()
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range ps {
		g.Go(func() error {
			rel, from, err := c.release(gctx, p, lastDate(req.Previous, p.suite))
			if err != nil {
				return fmt.Errorf("suite %s: %w", p.suite, err)
			}
			releases[i] = LockedRelease{Suite: p.suite, Date: rel.date}
			parts[i], err = c.packages(gctx, rel, from, p.suite, req.Arch, progress)
			if err != nil {
				return fmt.Errorf("suite %s: %w", p.suite, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for _, part := range parts[1:] {
		parts[0].merge(part)
	}
	return parts[0], releases, nil
}

func lastDate(l *Lock, suite string) time.Time {
	if l != nil {
		for _, r := range l.Releases {
			if r.Suite == suite {
				return r.Date
			}
		}
	}
	return time.Time{}
}

// release fetches and verifies the InRelease file of the first archive that has
// a good one.
func (c *Client) release(ctx context.Context, p pocket, last time.Time) (release, Source, error) {
	var rel release
	name := "dists/" + p.suite + "/InRelease"
	from, err := c.get(ctx, p.from, name, func(r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, maxInRelease+1))
		if err != nil {
			return err
		}
		if len(b) > maxInRelease {
			return fmt.Errorf("InRelease file is longer than %d bytes", maxInRelease)
		}
		now := c.now()
		text, err := openInRelease(b, c.keys, now)
		if err != nil {
			return fmt.Errorf("InRelease file: %w", err)
		}
		if rel, err = parseRelease(text); err != nil {
			return fmt.Errorf("InRelease file: %w", err)
		}
		if err := rel.check(p.suite, now, last, c.allowExpired); err != nil {
			return fmt.Errorf("InRelease file: %w", err)
		}
		return nil
	})
	if se := new(statusError); errors.As(err, &se) && se.code == http.StatusNotFound {
		err = hint(err, "kiln always reads a suite's -updates and -security too: name a mirror that has them")
	}
	return rel, from, err
}

// packages reads the suite's list of packages, and the separate one of
// architecture-independent packages where the archive has it.
func (c *Client) packages(ctx context.Context, rel release, from Source, suite, arch string, m *meter) (*index, error) {
	arches := []string{arch}
	if rel.separateAll {
		arches = append(arches, "all")
	}
	x := newIndex(arch)
	for _, component := range from.Components {
		for _, a := range arches {
			dir := component + "/binary-" + a
			name, sum := rel.pick(dir)
			if name == "" {
				if a == "all" {
					continue
				}
				return nil, fmt.Errorf("the archive has no list of packages for %s/%s", component, a)
			}
			part, err := c.packagesFile(ctx, rel, from, suite, arch, name, sum, m)
			if err != nil {
				return nil, err
			}
			x.merge(part)
		}
	}
	return x, nil
}

// pick chooses the smallest form of a Packages file that we can read.
func (rel release) pick(dir string) (string, fileSum) {
	for _, ext := range []string{".xz", ".gz", ""} {
		name := dir + "/Packages" + ext
		if sum, ok := rel.files[name]; ok {
			return name, sum
		}
	}
	return "", fileSum{}
}

func (c *Client) packagesFile(ctx context.Context, rel release, from Source, suite, arch, name string, sum fileSum, m *meter) (*index, error) {
	var x *index
	m.grow(sum.size)
	use := func(r io.Reader) error {
		x = newIndex(arch)
		v := verified(m.reader(r), sum)
		plain, err := decompress(name, v)
		if err != nil {
			return fmt.Errorf("%s: %w", name, drained(v, err))
		}
		defer plain.Close()
		if err := x.read(plain, suite); err != nil {
			return fmt.Errorf("%s: %w", name, drained(v, err))
		}
		return drained(v, nil)
	}
	paths := []string{"dists/" + suite + "/" + name}
	if rel.byHash {
		dir, _ := cutLast(name)
		paths = slices.Insert(paths, 0, "dists/"+suite+"/"+dir+"/by-hash/SHA256/"+sum.sha256)
	}
	var err error
	for _, p := range paths {
		if _, err = c.get(ctx, []Source{from}, p, use); err == nil {
			return x, nil
		}
		if se := new(statusError); !errors.As(err, &se) || se.code != http.StatusNotFound {
			break // by-hash is optional for mirrors; everything else is final
		}
	}
	return nil, err
}

// drained reads v to its end. What the hash says comes before what the content
// looked like: of bytes that are not the archive's nothing else can be said.
func drained(v *verifiedReader, err error) error {
	if _, verr := io.Copy(io.Discard, v); verr != nil {
		return verr
	}
	return err
}

func cutLast(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// meter counts bytes and says so, some times a second.
type meter struct {
	sink     event.Sink
	mu       sync.Mutex
	progress event.Progress
	said     time.Time
}

// meterPause is the time between two progress events.
const meterPause = 100 * time.Millisecond

func newMeter(sink event.Sink, id, text string, total int64) *meter {
	return &meter{sink: sink, progress: event.Progress{ID: id, Text: text, Total: total, Unit: "bytes"}}
}

func (m *meter) grow(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Total += n
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Done += n
	if now := time.Now(); now.Sub(m.said) >= meterPause {
		m.said = now
		m.sink.Emit(m.progress)
	}
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.End = true
	m.sink.Emit(m.progress)
}

// reader counts what is read of r.
func (m *meter) reader(r io.Reader) io.Reader { return &meterReader{r, m} }

type meterReader struct {
	r io.Reader
	m *meter
}

// Read implements io.Reader.
func (r *meterReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.m.add(int64(n))
	return n, err
}
