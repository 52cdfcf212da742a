package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
)

// Reader reads the entries of a layer that anybody may have written, an
// uncompressed tar, within limits and for as long as its context lives.
type Reader struct {
	in     *bufio.Reader
	tar    *tar.Reader
	raw    *source
	limits Limits

	entries, bytes int64
}

// NewReader makes a Reader of r.
func NewReader(ctx context.Context, r io.Reader, limits Limits) *Reader {
	raw := &source{ctx: ctx, r: r, left: headStart}
	in := bufio.NewReaderSize(raw, copyBuffer)
	return &Reader{in: in, tar: tar.NewReader(in), raw: raw, limits: limits.withDefaults()}
}

// Next goes to the next entry. After the last one it reads what follows the
// archive, so that a caller who hashes the stream sees all of it, and returns
// io.EOF. What exceeds the limits is an error that wraps ErrLimit. Global headers,
// which name no file, are passed over.
func (r *Reader) Next() (*tar.Header, error) {
	for {
		if err := r.raw.ctx.Err(); err != nil {
			return nil, err
		}
		hdr, err := r.tar.Next()
		if err == io.EOF {
			return nil, r.drain()
		}
		if err != nil {
			return nil, fmt.Errorf("after %d entries: %w", r.entries, err)
		}
		if err := r.count(hdr.Name); err != nil {
			return nil, err
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		return hdr, r.admit(hdr)
	}
}

// count counts one entry more.
func (r *Reader) count(name string) error {
	if r.entries++; r.entries > r.limits.Entries {
		return limitError(name, "entries", r.limits.Entries)
	}
	r.raw.left += perEntry
	return nil
}

func (r *Reader) admit(hdr *tar.Header) error {
	if len(hdr.Name) > r.limits.Path {
		return limitError(hdr.Name, "bytes in the name", int64(r.limits.Path))
	}
	size := max(hdr.Size, 0)
	if size > r.limits.Bytes-r.bytes { // of a sparse file there is less in the tar
		return limitError(hdr.Name, "bytes", r.limits.Bytes)
	}
	r.bytes += size
	r.raw.left += size
	return nil
}

// Read reads the content of the entry.
func (r *Reader) Read(p []byte) (int, error) { return r.tar.Read(p) }

// drain reads to the end of the stream. Then it returns io.EOF.
func (r *Reader) drain() error {
	r.raw.left = r.limits.Bytes - r.bytes
	n, err := io.Copy(io.Discard, r.in)
	if err != nil {
		return fmt.Errorf("after the end of the archive: %w", err)
	}
	if n > r.limits.Bytes-r.bytes {
		return limitError("end of archive", "bytes", r.limits.Bytes)
	}
	return io.EOF
}

const (
	// headStart is what a stream may have before its first entry, in bytes, and
	// perEntry what each entry may have besides its content, on average: the
	// longest name and the longest link have 4 kB each. Without a bound a tar
	// reader reads headers for as long as no entry follows them.
	headStart = 8 << 20
	perEntry  = 16 << 10
)

// source is the stream. It ends in an error when more was read than it should
// have.
type source struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		return 0, fmt.Errorf("headers, or what follows the archive, have no end: %w", ErrLimit)
	}
	return n, err
}
