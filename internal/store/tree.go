package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer"
)

// treeMark is the file that says that a tree is complete. A tree is a cache:
// one without a valid mark is made again.
type treeMark struct {
	DiffID string `json:"diffID"`
	// Durable: everything was on the disk before the mark was. Otherwise the
	// mark holds only as long as the machine runs that it was made on, since
	// a power cut may have left any file of the tree empty.
	Durable bool   `json:"durable"`
	Boot    string `json:"boot"`
}

const markFile = "tree.json"

func (s *Store) treePath(hex string) string { return s.path("trees", hex) }

// HasTree says whether the layer of that diffID is here unpacked.
func (s *Store) HasTree(diffID string) bool {
	hex, err := hexOf(diffID)
	return err == nil && s.complete(hex)
}

func (s *Store) complete(hex string) bool {
	m, err := s.readMark(hex)
	return err == nil && s.trusted(m)
}

func (s *Store) readMark(hex string) (treeMark, error) {
	var m treeMark
	err := readSealed(filepath.Join(s.treePath(hex), markFile), &m)
	if err == nil && m.DiffID != "sha256:"+hex {
		err = fmt.Errorf("tree %s: %w: its mark is of %s", hex, ErrDamaged, m.DiffID)
	}
	return m, err
}

func (s *Store) trusted(m treeMark) bool {
	return m.Durable || (m.Boot != "" && m.Boot == s.boot())
}

// Tree returns the directory in which l is unpacked, in the form that overlayfs
// takes as a lower directory, and unpacks it if it is not: once, however many
// ask for it at the same time. The bytes are verified against l's diffID before
// the tree can be seen. Nobody may change anything in it. GC leaves it alone
// until the Store is closed.
func (s *Store) Tree(ctx context.Context, l v1.Layer) (string, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return "", fmt.Errorf("unpack layer: %w", err)
	}
	hex, err := hexOf(diffID.String())
	if err != nil {
		return "", fmt.Errorf("unpack layer: %w", err)
	}
	dir, err := s.tree(ctx, l, hex)
	if err != nil {
		return "", fmt.Errorf("unpack layer %s: %w", diffID, err)
	}
	return dir, nil
}

func (s *Store) tree(ctx context.Context, l v1.Layer, hex string) (string, error) {
	if ok, err := s.claimTree(ctx, hex); ok || err != nil {
		return filepath.Join(s.treePath(hex), "fs"), err
	}
	work, err := s.workLock(ctx, "tree", hex)
	if err != nil {
		return "", err
	}
	defer work.Unlock()
	if ok, err := s.claimTree(ctx, hex); ok || err != nil {
		return filepath.Join(s.treePath(hex), "fs"), err
	}
	ses, err := s.use(ctx)
	if err != nil {
		return "", err
	}
	tmp := ses.temp("t")
	if err := s.unpack(ctx, l, hex, tmp); err != nil {
		return "", errors.Join(s.full(err, 0), s.discard(tmp))
	}
	if err := s.placeTree(ctx, tmp, hex); err != nil {
		return "", errors.Join(err, s.discard(tmp))
	}
	return filepath.Join(s.treePath(hex), "fs"), nil
}

// claimTree holds a tree if it is there and complete.
func (s *Store) claimTree(ctx context.Context, hex string) (bool, error) {
	l, err := s.shared(ctx)
	if err != nil {
		return false, err
	}
	defer l.Unlock()
	if !s.complete(hex) {
		return false, nil
	}
	return true, s.hold(ctx, item{treeKind, hex})
}

// unpack makes the directory of a tree at tmp.
func (s *Store) unpack(ctx context.Context, l v1.Layer, want, tmp string) error {
	fs := filepath.Join(tmp, "fs")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(fs, 0o755); err != nil {
		return err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	h := sha256.New()
	in := io.TeeReader(rc, h)
	if err := layer.Apply(ctx, fs, in, layer.Limits{}); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("its bytes have digest sha256:%s", got)
	}
	// One syncfs for all files; the mark must not get to the disk before them.
	if err := syncFS(tmp); err != nil {
		return err
	}
	return s.mark(tmp, treeMark{DiffID: "sha256:" + want, Durable: true, Boot: s.boot()})
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return nil
}

func (s *Store) mark(dir string, m treeMark) error {
	b, err := seal(m)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && m.Durable {
		err = s.sync(f)
	}
	return errors.Join(err, f.Close())
}

// placeTree moves the finished directory tmp to its place and holds it.
func (s *Store) placeTree(ctx context.Context, tmp, hex string) error {
	l, err := s.shared(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	if err := s.hold(ctx, item{treeKind, hex}); err != nil {
		return err
	}
	// What is in the way is not complete: from before a power cut.
	old, err := s.toTrash(s.treePath(hex))
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, s.treePath(hex)); err != nil {
		return err
	}
	if err := s.syncDir(s.path("trees")); err != nil {
		return err
	}
	if old != "" {
		_ = removeTree(old) // whoever opens the store next goes on
	}
	return nil
}

// AdoptTree moves the directory dir, which must be on the store's file system,
// into the store as the tree of diffID. The caller vouches that it is what
// unpacking that layer would give, in overlay form, and that nothing writes to
// it any more. If the tree is there already, dir is removed. The tree counts
// until the machine is next started, then it is unpacked from its blob again:
// nothing waits for the disk here.
func (s *Store) AdoptTree(ctx context.Context, diffID, dir string) error {
	hex, err := hexOf(diffID)
	if err != nil {
		return fmt.Errorf("adopt tree %s: %w", dir, err)
	}
	if err := s.adopt(ctx, hex, dir); err != nil {
		return fmt.Errorf("adopt tree %s as %s: %w", dir, diffID, s.full(err, 0))
	}
	return nil
}

func (s *Store) adopt(ctx context.Context, hex, dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return errors.New("not a directory")
	}
	work, err := s.workLock(ctx, "tree", hex)
	if err != nil {
		return err
	}
	defer work.Unlock()
	if ok, err := s.claimTree(ctx, hex); err != nil {
		return err
	} else if ok {
		return s.discard(dir)
	}
	ses, err := s.use(ctx)
	if err != nil {
		return err
	}
	tmp := ses.temp("t")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if err := renameDir(dir, filepath.Join(tmp, "fs"), fi.Mode().Perm()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := s.mark(tmp, treeMark{DiffID: "sha256:" + hex, Boot: s.boot()}); err != nil {
		return errors.Join(err, s.discard(tmp))
	}
	if err := s.placeTree(ctx, tmp, hex); err != nil {
		return errors.Join(err, s.discard(tmp))
	}
	return nil
}

// renameDir moves a directory that its owner may not be allowed to write to:
// moving it rewrites its "..".
func renameDir(from, to string, mode os.FileMode) error {
	if mode&0o200 != 0 {
		return os.Rename(from, to)
	}
	if err := os.Chmod(from, mode|0o200); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Chmod(from, mode))
	}
	return os.Chmod(to, mode)
}
