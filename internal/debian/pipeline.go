package debian

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// How packages are fetched and unpacked ahead of the one being written. Memory is
// at most ahead*buffered plus windows; unpacking xz is what takes the time, and
// it runs on all cores while layers are written in order.
const (
	// downloads is how many .debs are fetched at once.
	downloads = 6
	// ahead is how many packages may be open at once.
	ahead = 4
	// chunkSize and chunks bound what is unpacked ahead of one package: 8 MiB.
	chunkSize = 128 << 10
	chunks    = 64
	// windows bounds the memory of all decompressors together, in bytes.
	windows = 64 << 20
)

// pipeline gives the packages of a lock in order: fetched in parallel,
// decompressed ahead.
type pipeline struct {
	done   <-chan struct{}
	cancel context.CancelFunc
	group  *errgroup.Group
	out    chan *stream
}

// stream is one package whose data archive is to be read: to its end, or the
// pipeline stopped.
type stream struct {
	LockedPackage
	control control
	data    *chunkReader
}

// start begins fetching and unpacking.
func (c *Client) start(ctx context.Context, lock Lock) (*pipeline, error) {
	blobs, err := c.keeper()
	if err != nil {
		return nil, err
	}
	ps, err := pockets(c.sources, lock.Suite)
	if err != nil {
		return nil, err
	}
	from := map[string][]Source{}
	for _, p := range ps {
		from[p.suite] = p.from
	}
	ctx, cancel := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(ctx)
	p := &pipeline{done: gctx.Done(), cancel: cancel, group: g, out: make(chan *stream, ahead-2)}
	here := make([]chan struct{}, len(lock.Packages))
	for i := range here {
		here[i] = make(chan struct{})
	}
	f := &fetcher{client: c, blobs: blobs, from: from, lock: lock, here: here,
		meter: newMeter(c.events, "debian-packages", "Debian packages", lock.Size())}
	g.Go(func() error { return f.run(gctx) })
	u := &unpacker{blobs: blobs, lock: lock, here: here, out: p.out, group: g,
		decoders: semaphore.NewWeighted(int64(max(2, runtime.GOMAXPROCS(0)))), windows: semaphore.NewWeighted(windows)}
	g.Go(func() error { return u.run(gctx) })
	return p, nil
}

// next is the next package, or nil at the end.
func (p *pipeline) next() (*stream, error) {
	select {
	case s, ok := <-p.out:
		if !ok {
			return nil, p.group.Wait()
		}
		return s, nil
	case <-p.done:
		return nil, p.group.Wait()
	}
}

// cause is the error to report when reading a stream failed with err: where that
// says only that the work was stopped, what stopped it.
func (p *pipeline) cause(err error) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	p.cancel()
	if first := p.group.Wait(); first != nil {
		return first
	}
	return err
}

// stop ends all work and waits until nothing runs any more.
func (p *pipeline) stop() {
	p.cancel()
	_ = p.group.Wait() // the first error was given by next, or the caller has its own
}

// fetcher brings the .debs of a lock to blobs.
type fetcher struct {
	client *Client
	blobs  Blobs
	from   map[string][]Source
	lock   Lock
	here   []chan struct{} // closed one by one
	meter  *meter
}

func (f *fetcher) run(ctx context.Context) error {
	defer f.meter.end()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(downloads)
	for i, p := range f.lock.Packages {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := f.fetch(ctx, p); err != nil {
				return fmt.Errorf("package %s %s: %w", p.Name, p.Version, err)
			}
			close(f.here[i])
			return nil
		})
	}
	return g.Wait()
}

func (f *fetcher) fetch(ctx context.Context, p LockedPackage) error {
	if r, err := f.blobs.Open(ctx, p.SHA256); err == nil {
		f.meter.add(p.Size)
		return r.Close()
	}
	from, ok := f.from[p.Suite]
	if !ok {
		return fmt.Errorf("suite %s of the lock is none of %s's", p.Suite, f.lock.Suite)
	}
	_, err := f.client.get(ctx, from, p.Path, func(r io.Reader) error {
		return f.blobs.Put(ctx, p.SHA256, verified(f.meter.reader(r), fileSum{sha256: p.SHA256, size: p.Size}))
	})
	if se := new(statusError); errors.As(err, &se) && se.code == http.StatusNotFound {
		return hint(err, "the archive has moved on since the package lock was made: make it anew, or name a mirror that keeps old packages")
	}
	return err
}

// unpacker opens packages in order and decompresses them in parallel.
type unpacker struct {
	blobs             Blobs
	lock              Lock
	here              []chan struct{}
	out               chan<- *stream
	group             *errgroup.Group
	decoders, windows *semaphore.Weighted
}

// run opens package after package. What a decoder needs is acquired here, in
// order, so that the package at the head always has it.
func (u *unpacker) run(ctx context.Context) error {
	defer close(u.out)
	for i, p := range u.lock.Packages {
		select {
		case <-u.here[i]:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := u.decoders.Acquire(ctx, 1); err != nil {
			return err
		}
		s, err := u.open(ctx, p)
		if err != nil {
			return fmt.Errorf("package %s %s: %w", p.Name, p.Version, err)
		}
		select {
		case u.out <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (u *unpacker) open(ctx context.Context, p LockedPackage) (*stream, error) {
	blob, err := u.blobs.Open(ctx, p.SHA256)
	if err != nil {
		return nil, err
	}
	sum := verified(blob, fileSum{sha256: p.SHA256, size: p.Size})
	d, err := openDeb(bufio.NewReaderSize(sum, 64<<10))
	if err == nil {
		err = d.control.is(p)
	}
	if err != nil {
		return nil, errors.Join(drained(sum, err), blob.Close())
	}
	window := min(max(d.window, 1), windows)
	if err := u.windows.Acquire(ctx, window); err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	ch := make(chan []byte, chunks)
	s := &stream{LockedPackage: p, control: d.control, data: &chunkReader{in: ch}}
	u.group.Go(func() error {
		defer u.decoders.Release(1)
		defer u.windows.Release(window)
		defer close(ch)
		err := decode(ctx, d, ch)
		if err == nil || ctx.Err() == nil {
			err = drained(sum, err)
		}
		s.data.err = errors.Join(err, blob.Close())
		if s.data.err != nil {
			s.data.err = fmt.Errorf("package %s %s: %w", p.Name, p.Version, s.data.err)
		}
		return s.data.err
	})
	return s, nil
}

// decode sends the data archive in chunks.
func decode(ctx context.Context, d *deb, out chan<- []byte) error {
	data, err := d.data()
	if err != nil {
		return err
	}
	defer data.Close()
	for {
		buf := chunkPool.Get().(*[chunkSize]byte)
		n := 0
		for err == nil && n < len(buf) {
			var k int
			k, err = data.Read(buf[n:])
			n += k
		}
		if n > 0 {
			select {
			case out <- buf[:n]:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
}

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunkReader reads what decode sends. After the last chunk comes decode's
// error: only then are the bytes known to be the right ones.
type chunkReader struct {
	in  <-chan []byte
	cur []byte
	buf []byte
	err error // set before in is closed
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.cur) == 0 {
		if r.buf != nil {
			chunkPool.Put((*[chunkSize]byte)(r.buf[:chunkSize]))
			r.buf = nil
		}
		b, ok := <-r.in
		if !ok {
			if r.err != nil {
				return 0, r.err
			}
			return 0, io.EOF
		}
		r.cur, r.buf = b, b
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}
