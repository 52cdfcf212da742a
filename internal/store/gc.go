package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Freed is what GC removed.
type Freed struct {
	Blobs int
	Bytes int64 // of Blobs
	Trees int
	Memos int
	// Left is what this user cannot remove of the trash: it holds files of a
	// sub-uid. It harms nothing but the space that it takes.
	Left []string
}

const (
	// memoAge is how long a memo is kept that does not speak of a blob, or that
	// keeps it. An app that was not built for a season can be looked at again.
	memoAge = 90 * 24 * time.Hour
	// badAge is how long damaged blobs are kept for whoever wants to look.
	badAge = 30 * 24 * time.Hour
)

// GC removes every blob and tree that no image, no cache and no living process
// needs, and waits for nobody but those who are changing something this very
// moment. It refuses to run over a ref or manifest that it cannot read, since
// it could not tell what that needs.
func (s *Store) GC(ctx context.Context) (Freed, error) {
	freed, err := s.gc(ctx)
	if err == nil {
		freed.Left, err = s.emptyTrash()
	}
	if err != nil {
		return freed, fmt.Errorf("collect garbage in store %s: %w", s.dir, err)
	}
	return freed, nil
}

func (s *Store) gc(ctx context.Context) (Freed, error) {
	l, err := s.lock(ctx, "store", unix.LOCK_EX)
	if err != nil {
		return Freed{}, err
	}
	defer l.Unlock()
	needed, err := s.needed(ctx)
	if err != nil {
		return Freed{}, err
	}
	var freed Freed
	if err := s.sweepBlobs(ctx, needed, &freed); err != nil {
		return freed, err
	}
	if err := s.sweepTrees(ctx, needed, &freed); err != nil {
		return freed, err
	}
	if err := s.sweepMemos(ctx, &freed); err != nil {
		return freed, err
	}
	return freed, s.sweepBad()
}

// needed is everything that must stay.
func (s *Store) needed(ctx context.Context) (map[item]bool, error) {
	keep, err := s.liveItems(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.keepMade(keep); err != nil {
		return nil, err
	}
	refs, err := s.Refs(ctx)
	if err != nil {
		return nil, spec.WithHint(err, "`kiln store check` says what is wrong; remove or rebuild the image it names first")
	}
	for _, r := range refs {
		if err := s.keepImage(ctx, keep, r); err != nil {
			return nil, spec.WithHint(fmt.Errorf("image %s: %w", r.Name, err), "rebuild it or remove it first: kiln rm %s", r.Name)
		}
	}
	entries, err := os.ReadDir(s.path("caches"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		r, _, err := s.readCache(e.Name())
		if errors.Is(err, ErrDamaged) {
			continue // a miss for the next build, so nothing needs its layers
		}
		if err != nil {
			return nil, err
		}
		for i, d := range r.Layers {
			s.keepLayer(keep, d.Digest, r.DiffIDs[i])
		}
	}
	return keep, nil
}

func (s *Store) keepImage(ctx context.Context, keep map[item]bool, r Ref) error {
	raw, err := s.readBlob(ctx, r.ManifestDigest, maxManifest)
	if err != nil {
		return broken("manifest", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	keep[item{blobKind, r.ManifestDigest[len("sha256:"):]}] = true
	keep[item{blobKind, m.Config.Digest.Hex}] = true
	for _, d := range m.Layers {
		keep[item{blobKind, d.Digest.Hex}] = true
	}
	// The config tells which trees it is good to keep. If it is damaged, its
	// trees can be made again.
	rawConfig, err := s.readBlob(ctx, m.Config.Digest.String(), maxConfig)
	if err != nil {
		if errors.Is(err, ErrDamaged) || errors.Is(err, image.ErrNotFound) {
			return nil
		}
		return err
	}
	cf, err := v1.ParseConfigFile(bytes.NewReader(rawConfig))
	if err != nil || len(cf.RootFS.DiffIDs) != len(m.Layers) {
		return nil
	}
	for i, d := range m.Layers {
		s.keepLayer(keep, d.Digest, cf.RootFS.DiffIDs[i])
	}
	return nil
}

// keepLayer keeps a layer's blob, its tree, and its gzip twin.
func (s *Store) keepLayer(keep map[item]bool, digest, diffID v1.Hash) {
	keep[item{blobKind, digest.Hex}] = true
	keep[item{treeKind, diffID.Hex}] = true
	if d, ok := s.recallBlob(gzipMemo, diffID.String()); ok && digest == diffID {
		keep[item{blobKind, d.Digest.Hex}] = true
	}
}

func (s *Store) sweepBlobs(ctx context.Context, keep map[item]bool, freed *Freed) error {
	entries, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep[item{blobKind, e.Name()}] {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if err := os.Remove(s.blobPath(e.Name())); err != nil {
			return err
		}
		freed.Blobs++
		freed.Bytes += fi.Size()
	}
	return nil
}

func (s *Store) sweepTrees(ctx context.Context, keep map[item]bool, freed *Freed) error {
	entries, err := os.ReadDir(s.path("trees"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep[item{treeKind, e.Name()}] {
			continue
		}
		if _, err := s.toTrash(s.treePath(e.Name())); err != nil {
			return err
		}
		freed.Trees++
	}
	return nil
}

func (s *Store) sweepMemos(ctx context.Context, freed *Freed) error {
	kinds, err := os.ReadDir(s.path("memo"))
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		entries, err := os.ReadDir(s.path("memo", kind.Name()))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			path := s.path("memo", kind.Name(), e.Name())
			if fi, err := e.Info(); err != nil || s.memoUseful(kind.Name(), path, fi.ModTime()) {
				continue
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			freed.Memos++
		}
	}
	return nil
}

func (s *Store) memoUseful(kind, path string, written time.Time) bool {
	var m memo
	if err := readSealed(path, &m); err != nil {
		return false
	}
	switch kind {
	case diffIDMemo:
		hex, err := hexOf(m.Key)
		return err == nil && s.hasBlob(hex, -1)
	case blobMemo, gzipMemo:
		var d v1.Descriptor
		return json.Unmarshal(m.Value, &d) == nil && s.hasBlob(d.Digest.Hex, -1)
	}
	return time.Since(written) < memoAge
}

func (s *Store) sweepBad() error {
	entries, err := os.ReadDir(s.path("bad"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || time.Since(fi.ModTime()) < badAge {
			continue
		}
		if err := os.Remove(s.path("bad", e.Name())); err != nil {
			return err
		}
	}
	return nil
}
