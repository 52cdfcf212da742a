package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
)

// DirBlobs keeps .debs as files of one directory, named by their SHA-256. The
// directory must exist. Nothing is ever removed from it here.
type DirBlobs string

var _ Blobs = DirBlobs("")

// Open implements Blobs.
func (d DirBlobs) Open(_ context.Context, sha256 string) (io.ReadCloser, error) {
	return os.Open(d.path(sha256))
}

// Put implements Blobs: a temporary file, then one rename.
func (d DirBlobs) Put(_ context.Context, sha256 string, r io.Reader) error {
	f, err := os.CreateTemp(string(d), ".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), d.path(sha256))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (d DirBlobs) path(sha256 string) string { return filepath.Join(string(d), sha256+".deb") }

// verifiedReader gives the bytes of r and, in place of the end, an error when
// they were not those of the sum: too many, too few or others.
type verifiedReader struct {
	r    io.Reader
	want fileSum
	n    int64
	hash hash.Hash
}

// errMismatch says that bytes are not what their hash promises.
var errMismatch = errors.New("content is not what the archive's index says")

func verified(r io.Reader, want fileSum) *verifiedReader {
	return &verifiedReader{r: r, want: want, hash: sha256.New()}
}

// Read implements io.Reader.
func (v *verifiedReader) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	if v.n += int64(n); v.n > v.want.size {
		return 0, fmt.Errorf("%w: longer than %d bytes", errMismatch, v.want.size)
	}
	if errors.Is(err, io.EOF) {
		if v.n < v.want.size {
			return n, fmt.Errorf("%d of %d bytes: %w", v.n, v.want.size, io.ErrUnexpectedEOF)
		}
		if got := hex.EncodeToString(v.hash.Sum(nil)); got != v.want.sha256 {
			return n, fmt.Errorf("%w: sha256 %s, not %s", errMismatch, got, v.want.sha256)
		}
	}
	return n, err
}
