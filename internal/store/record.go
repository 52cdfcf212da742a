package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer"
)

// sealed is a small JSON document together with its digest, so that damage is
// found out. refs, caches, memos and the markers of trees are kept like this.
type sealed struct {
	Sum   string          `json:"sum"`
	Value json.RawMessage `json:"value"`
}

func seal(v any) ([]byte, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(sealed{Sum: digestOf(value), Value: value})
	return append(b, '\n'), err
}

// unseal fails with ErrDamaged unless every byte is as it was sealed.
func unseal(b []byte, v any) error {
	var box sealed
	if err := json.Unmarshal(b, &box); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if digestOf(box.Value) != box.Sum {
		return fmt.Errorf("%w: it does not have the digest it says", ErrDamaged)
	}
	// The envelope is not under the digest: it must be what seal makes.
	if again, err := json.Marshal(box); err != nil || !bytes.Equal(append(again, '\n'), b) {
		return fmt.Errorf("%w: its envelope was changed", ErrDamaged)
	}
	if err := json.Unmarshal(box.Value, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// maxSealed bounds a sealed document, in bytes. The largest is a cache's: what
// buildpacks remember, who may write documents of 8 MiB.
const maxSealed = 64 << 20

// errNoFile says that something else is where a file should be.
var errNoFile = errors.New("it is no regular file")

// openFile opens a regular file, and waits for and follows nothing else. The
// FileInfo is there with errNoFile, too.
func openFile(path string) (*os.File, fs.FileInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fi, &fs.PathError{Op: "open", Path: path, Err: errNoFile}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	if fi, err = f.Stat(); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, fi, nil
}

func readSealed(path string, v any) error {
	f, _, err := openFile(path)
	if errors.Is(err, errNoFile) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSealed+1))
	if err != nil {
		return err
	}
	if len(b) > maxSealed {
		return fmt.Errorf("%s: %w: more than %d bytes", path, ErrDamaged, maxSealed)
	}
	if err := unseal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// replace puts data at path by one rename. With durable set, it is on the disk
// before and after.
func (s *Store) replace(ctx context.Context, path string, data []byte, durable bool) error {
	ses, err := s.use(ctx)
	if err != nil {
		return err
	}
	tmp := ses.temp("f")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return s.full(err, 0)
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = s.sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if fi, statErr := os.Lstat(path); err != nil && statErr == nil && fi.IsDir() {
		// No program of ours made that.
		if err = layer.Remove(path); err == nil {
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		_ = os.Remove(tmp)
		return s.full(err, int64(len(data)))
	}
	if durable {
		return s.syncDir(filepath.Dir(path))
	}
	return nil
}

// sync is fsync. If it fails the kernel may already have dropped the pages, and
// a second fsync would succeed over the hole: there is no second one, and the
// store is marked as one to be checked.
func (s *Store) sync(f *os.File) error {
	if err := f.Sync(); err != nil {
		_ = os.WriteFile(s.path("check-needed"), []byte(err.Error()+"\n"), 0o600)
		return err
	}
	return nil
}

func (s *Store) syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(s.sync(f), f.Close())
}
