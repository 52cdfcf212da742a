package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"time"
)

// Normalize copies a layer that somebody else wrote, an uncompressed tar, from r
// to w with the times of all entries set to ModTime, so that the same content
// has the same bytes on any day. Entries keep their order, names, owners, modes,
// links, devices, xattrs and whiteouts; holes are filled. It reads r to its end,
// so that a caller who hashes r sees all of it. What exceeds limits is an error
// that wraps ErrLimit.
func Normalize(ctx context.Context, w io.Writer, r io.Reader, limits Limits) error {
	n := &normalizer{ctx: ctx, out: tar.NewWriter(w), limits: limits.withDefaults(), buf: make([]byte, copyBuffer)}
	in := bufio.NewReaderSize(r, copyBuffer)
	if err := n.run(tar.NewReader(in)); err != nil {
		return err
	}
	if err := n.out.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return drain(ctx, in, n.buf, n.bytes, n.limits)
}

// normalizer is the state of one Normalize.
type normalizer struct {
	ctx            context.Context
	out            *tar.Writer
	limits         Limits
	entries, bytes int64
	buf            []byte
}

func (n *normalizer) run(in *tar.Reader) error {
	for {
		hdr, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read layer after %d entries: %w", n.entries, err)
		}
		if n.entries++; n.entries > n.limits.Entries {
			return limitError(hdr.Name, "entries", n.limits.Entries)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue // of no meaning to the reader either
		}
		if hdr.Size > n.limits.Bytes-n.bytes {
			return limitError(hdr.Name, "bytes", n.limits.Bytes)
		}
		n.bytes += hdr.Size
		if err := n.copy(hdr, in); err != nil {
			return entryError(hdr.Name, err)
		}
	}
}

func (n *normalizer) copy(hdr *tar.Header, body io.Reader) error {
	hdr.ModTime, hdr.AccessTime, hdr.ChangeTime = ModTime, time.Time{}, time.Time{}
	hdr.Format = tar.FormatUnknown // the plainest that has room for it
	if hdr.Typeflag == tar.TypeGNUSparse {
		hdr.Typeflag = tar.TypeReg
	}
	if err := n.out.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := io.CopyBuffer(n.out, contextReader{n.ctx, body}, n.buf)
	return err
}

// contextReader ends reading when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
