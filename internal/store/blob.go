package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
)

// writeBack is after how many bytes the kernel is asked to begin writing, so
// that the fsync at the end has little left to do.
const writeBack = 8 << 20

// bufferSize gathers the 512-byte pieces of a tar writer.
const bufferSize = 256 << 10

// BlobWriter takes the bytes of one blob. Nothing of it is in the store before
// Commit, and nothing stays after Close without Commit.
type BlobWriter struct {
	ctx     context.Context // that of Blob: it spans all the Writes
	store   *Store
	tmp     string
	f       *os.File
	hash    hash.Hash
	buf     []byte
	size    int64 // written to f
	started int64 // of which the kernel was asked to write
	need    int64 // what size will be, 0 if not known
	err     error // of an earlier Write
}

// Blob begins a blob. The caller must Close it, after Commit too. When ctx ends,
// Write fails.
func (s *Store) Blob(ctx context.Context) (*BlobWriter, error) {
	ses, err := s.use(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin blob: %w", err)
	}
	w := &BlobWriter{ctx: ctx, store: s, tmp: ses.temp("b"), hash: sha256.New(), buf: make([]byte, 0, bufferSize)}
	if w.f, err = os.OpenFile(w.tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, s.full(fmt.Errorf("begin blob: %w", err), 0)
	}
	return w, nil
}

// Write adds bytes to the blob.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if len(w.buf)+len(p) <= cap(w.buf) {
		w.buf = append(w.buf, p...)
		return len(p), nil
	}
	if w.flush(); w.err != nil {
		return 0, w.err
	}
	if len(p) < cap(w.buf)/2 {
		w.buf = append(w.buf, p...)
		return len(p), nil
	}
	if w.put(p); w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

func (w *BlobWriter) flush() {
	if len(w.buf) > 0 {
		w.put(w.buf)
		w.buf = w.buf[:0]
	}
}

func (w *BlobWriter) put(p []byte) {
	if w.err = w.ctx.Err(); w.err != nil {
		return
	}
	w.hash.Write(p)
	n, err := w.f.Write(p)
	w.size += int64(n)
	if err != nil {
		w.err = w.store.full(fmt.Errorf("write blob: %w", err), w.need)
		return
	}
	if w.size-w.started >= writeBack {
		// Advice only: fsync is what counts.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.started, w.size-w.started, unix.SYNC_FILE_RANGE_WRITE)
		w.started = w.size
	}
}

// Commit puts the blob into the store: when it returns, the bytes are on the
// disk under their digest ("sha256:..."). If expected is not empty and not that
// digest, nothing is stored.
func (w *BlobWriter) Commit(expected string) (digest string, size int64, err error) {
	return w.commit(expected, true)
}

// commit leaves out the fsync of the directory when the caller does it later,
// for many blobs at once.
func (w *BlobWriter) commit(expected string, syncDir bool) (string, int64, error) {
	if w.flush(); w.err != nil {
		return "", 0, w.err
	}
	sum := hex.EncodeToString(w.hash.Sum(nil))
	digest := "sha256:" + sum
	if expected != "" && expected != digest {
		return "", 0, fmt.Errorf("commit blob: its %d bytes have digest %s, expected %s", w.size, digest, expected)
	}
	if err := w.place(sum, syncDir); err != nil {
		return "", 0, w.store.full(fmt.Errorf("commit blob %s: %w", digest, err), w.size)
	}
	return digest, w.size, nil
}

func (w *BlobWriter) place(sum string, syncDir bool) error {
	s := w.store
	err := w.f.Chmod(0o444)
	if err == nil {
		err = s.sync(w.f)
	}
	if err = errors.Join(err, w.f.Close()); err != nil {
		return err
	}
	l, err := s.shared(w.ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	bad, err := s.lock(w.ctx, "bad", unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer bad.Unlock()
	if err := s.hold(w.ctx, item{blobKind, sum}); err != nil {
		return err
	}
	// If the blob is there already, this one is as good, and perhaps better.
	if err := os.Rename(w.tmp, s.blobPath(sum)); err != nil {
		return err
	}
	w.tmp = ""
	if syncDir {
		return s.syncBlobs()
	}
	return nil
}

// Close gives up a blob that was not committed. It is harmless after Commit.
func (w *BlobWriter) Close() error {
	_ = w.f.Close() // a second Close is not an error worth telling
	if w.tmp == "" {
		return nil
	}
	err := os.Remove(w.tmp)
	w.tmp = ""
	if w.err == nil {
		w.err = fs.ErrClosed
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *Store) blobPath(hex string) string { return s.path("blobs", "sha256", hex) }

// syncBlobs makes the names of all blobs durable; their bytes are already.
func (s *Store) syncBlobs() error { return s.syncDir(s.path("blobs", "sha256")) }

// putBytes stores a small blob, unless these very bytes are there.
func (s *Store) putBytes(ctx context.Context, b []byte) error {
	if here, err := s.holdBytes(ctx, b); here || err != nil {
		return err
	}
	w, err := s.Blob(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, _, err = w.commit("", false)
	return err
}

func (s *Store) holdBytes(ctx context.Context, b []byte) (bool, error) {
	l, err := s.shared(ctx)
	if err != nil {
		return false, err
	}
	defer l.Unlock()
	hex := digestOf(b)[len("sha256:"):]
	if have, err := os.ReadFile(s.blobPath(hex)); err != nil || !bytes.Equal(have, b) {
		return false, nil
	}
	return true, s.hold(ctx, item{blobKind, hex})
}

// hasBlob says whether a blob of that size is there. size -1 is any. A blob of
// the wrong size is quarantined and counts as missing.
func (s *Store) hasBlob(hex string, size int64) bool {
	fi, err := os.Lstat(s.blobPath(hex))
	if err != nil {
		return false
	}
	if !fi.Mode().IsRegular() {
		_ = s.quarantine(hex, fi, errNoFile.Error())
		return false
	}
	if size >= 0 && fi.Size() != size {
		_ = s.quarantine(hex, fi, fmt.Sprintf("has %d bytes, should have %d", fi.Size(), size))
		return false
	}
	return true
}

// OpenBlob opens a blob by digest ("sha256:...") and says its size in bytes.
// The bytes are hashed while they are read: if they are not what they were,
// the last Read fails with ErrDamaged in place of io.EOF and the blob is moved
// to the directory bad. It fails with image.ErrNotFound if there is none.
func (s *Store) OpenBlob(ctx context.Context, digest string) (io.ReadCloser, int64, error) {
	hex, err := hexOf(digest)
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	return s.openBlob(ctx, hex, -1)
}

// maxBlob bounds a blob, in bytes: a layer's files may have half as much.
const maxBlob = 128 << 30

func (s *Store) openBlob(ctx context.Context, hex string, want int64) (io.ReadCloser, int64, error) {
	f, fi, err := openFile(s.blobPath(hex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob sha256:%s in store: %w", hex, image.ErrNotFound)
	}
	if errors.Is(err, errNoFile) {
		return nil, 0, s.damaged(hex, fi, err.Error())
	}
	if err != nil {
		return nil, 0, err
	}
	if fi.Size() > maxBlob {
		err = s.damaged(hex, fi, fmt.Sprintf("has %d bytes, more than any", fi.Size()))
	}
	if err == nil && want >= 0 && fi.Size() != want {
		err = s.damaged(hex, fi, fmt.Sprintf("has %d bytes, should have %d", fi.Size(), want))
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return &verifier{ctx: ctx, store: s, f: f, info: fi, hex: hex, hash: sha256.New()}, fi.Size(), nil
}

// verifier reads a blob and does not say EOF before the digest is right.
type verifier struct {
	ctx   context.Context // of the reading
	store *Store
	f     *os.File
	info  fs.FileInfo
	hex   string
	hash  hash.Hash
	err   error // what the end of the blob was
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if err := v.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := v.f.Read(p)
	v.hash.Write(p[:n])
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	v.err = io.EOF
	if got := hex.EncodeToString(v.hash.Sum(nil)); got != v.hex {
		v.err = v.store.damaged(v.hex, v.info, "its bytes have digest sha256:"+got)
	}
	return n, v.err
}

func (v *verifier) Close() error { return v.f.Close() }

// damaged quarantines a blob and makes the error that says so.
func (s *Store) damaged(hex string, fi fs.FileInfo, reason string) error {
	err := fmt.Errorf("blob sha256:%s in store %s is %w: %s", hex, s.dir, ErrDamaged, reason)
	if qerr := s.quarantine(hex, fi, reason); qerr != nil {
		return errors.Join(err, fmt.Errorf("move it out of the way: %w", qerr))
	}
	return err
}

// quarantine moves the blob that fi is of to the directory bad, with a note.
// If a good one has taken its place meanwhile, that one stays.
func (s *Store) quarantine(hex string, fi fs.FileInfo, reason string) error {
	// Bounded by the commits in progress; and it must happen even when ctx is done.
	l, err := s.lock(context.Background(), "bad", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	now, err := os.Lstat(s.blobPath(hex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !os.SameFile(now, fi) {
		return nil
	}
	to := s.path("bad", fmt.Sprintf("%s-%d", hex, time.Now().UnixNano()))
	if err := os.WriteFile(to+".txt", []byte(reason+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(s.blobPath(hex), to); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(to)), s.syncBlobs())
}

// readBlob reads a small blob whole.
func (s *Store) readBlob(ctx context.Context, digest string, limit int64) ([]byte, error) {
	rc, n, err := s.OpenBlob(ctx, digest)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	if n > limit {
		return nil, fmt.Errorf("blob %s: %d bytes are more than the %d allowed here", digest, n, limit)
	}
	return io.ReadAll(rc)
}

// hexOf is the hex part of a sha256 digest. Only what it returns may become
// part of a path.
func hexOf(digest string) (string, error) {
	const prefix = "sha256:"
	if len(digest) != len(prefix)+64 || digest[:len(prefix)] != prefix || !isHex(digest[len(prefix):]) {
		return "", fmt.Errorf("%.100q is not a sha256 digest", digest)
	}
	return digest[len(prefix):], nil
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
