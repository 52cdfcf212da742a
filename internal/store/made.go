package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

// RememberMade keeps which layer a step of a build made of all that key stands
// for, nil for none. The layer is in the store; GC leaves it there until it
// finds the memo old, that is, for a season after it was last asked for.
func (s *Store) RememberMade(ctx context.Context, key string, l v1.Layer) error {
	if l == nil {
		return s.Remember(ctx, madeMemo, key, nil)
	}
	diffID, err := l.DiffID()
	if err != nil {
		return fmt.Errorf("remember a layer: %w", err)
	}
	return s.Remember(ctx, madeMemo, key, []byte(diffID.String()))
}

// Made returns what RememberMade was told. The layer has been read to its end.
// What is damaged is not there, and err says so.
func (s *Store) Made(ctx context.Context, key string) (l v1.Layer, there bool, err error) {
	diffID, ok := s.Recall(madeMemo, key)
	if !ok {
		return nil, false, nil
	}
	if len(diffID) > 0 {
		l, err = s.Layer(ctx, string(diffID))
		if errors.Is(err, image.ErrNotFound) {
			return nil, false, nil
		}
		if err == nil {
			err = readAll(ctx, l)
		}
		if err != nil {
			return nil, false, fmt.Errorf("layer %s: %w", diffID, err)
		}
	}
	return l, true, s.Remember(ctx, madeMemo, key, diffID) // young again
}

// readAll reads a layer to its end, where it is known whether it is whole.
func readAll(ctx context.Context, l v1.Layer) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for err == nil && ctx.Err() == nil {
		_, err = rc.Read(buf)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, ctx.Err(), rc.Close())
}

// keepMade keeps the layers that memos speak of which are not old yet.
func (s *Store) keepMade(keep map[item]bool) error {
	entries, err := os.ReadDir(s.path("memo", madeMemo))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		var m memo
		fi, err := e.Info()
		if err != nil || time.Since(fi.ModTime()) >= memoAge || readSealed(s.path("memo", madeMemo, e.Name()), &m) != nil {
			continue
		}
		diffID, err := v1.NewHash(string(m.Value))
		if err != nil {
			continue // nothing was made
		}
		if d, err := s.findLayer(diffID.String()); err == nil {
			s.keepLayer(keep, d.Digest, diffID)
		}
	}
	return nil
}
