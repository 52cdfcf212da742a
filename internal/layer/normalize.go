package layer

import (
	"archive/tar"
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
	in, out := NewReader(ctx, r, limits), tar.NewWriter(w)
	buf := make([]byte, copyBuffer)
	for {
		hdr, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if err := normalize(out, hdr, in, buf); err != nil {
			return entryError(hdr.Name, err)
		}
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

func normalize(out *tar.Writer, hdr *tar.Header, body io.Reader, buf []byte) error {
	hdr.ModTime, hdr.AccessTime, hdr.ChangeTime = ModTime, time.Time{}, time.Time{}
	hdr.Format = tar.FormatUnknown // the plainest that has room for it
	if hdr.Typeflag == tar.TypeGNUSparse {
		hdr.Typeflag = tar.TypeReg
	}
	if err := out.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := io.CopyBuffer(out, body, buf)
	return err
}
