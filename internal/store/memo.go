package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// memo is one small fact.
type memo struct {
	Kind  string `json:"kind"`
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// kinds of memos that the store itself writes.
const (
	diffIDMemo = "diffid" // blob digest -> diffID, found by unpacking the blob
	blobMemo   = "blob"   // diffID -> descriptor of a compressed blob with these contents
	gzipMemo   = "gzip"   // diffID -> descriptor of the blob that Compressed made
	madeMemo   = "made"   // what a layer was made of -> its diffID, or nothing
)

var kindPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Remember keeps a small value under kind (lower-case word) and key (any
// string) until GC finds it old. It is not made durable: it is for what can be
// found out again.
func (s *Store) Remember(ctx context.Context, kind, key string, value []byte) error {
	if !kindPattern.MatchString(kind) {
		return fmt.Errorf("remember %q: not a kind", kind)
	}
	b, err := seal(memo{kind, key, value})
	if err != nil {
		return fmt.Errorf("remember %s: %w", kind, err)
	}
	path := s.memoPath(kind, key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return s.full(fmt.Errorf("remember %s: %w", kind, err), 0)
	}
	if err := s.replace(ctx, path, b, false); err != nil {
		return fmt.Errorf("remember %s: %w", kind, err)
	}
	return nil
}

// Recall returns what was remembered. Anything that is wrong is a miss.
func (s *Store) Recall(kind, key string) ([]byte, bool) {
	if !kindPattern.MatchString(kind) {
		return nil, false
	}
	var m memo
	if err := readSealed(s.memoPath(kind, key), &m); err != nil || m.Kind != kind || m.Key != key {
		return nil, false
	}
	return m.Value, true
}

func (s *Store) memoPath(kind, key string) string {
	return s.path("memo", kind, digestOf([]byte(key))[len("sha256:"):])
}
