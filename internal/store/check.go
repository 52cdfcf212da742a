package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Report is what Check looked at and what it found.
type Report struct {
	Images, Blobs, Caches, Trees int
	Bytes                        int64 // of Blobs
	Read                         int64 // bytes that were read to verify them
	Quarantined                  int   // damaged blobs in bad, found now or before
	Problems                     []Problem
}

// Problem is one thing that is wrong.
type Problem struct {
	What string // e.g. "image hello:latest", "blob sha256:..."
	Text string // what is wrong with it
	Fix  string // what to do about it
}

// Check looks for damage. Without full it reads all refs, caches, manifests and
// configs and sees that everything they need is there and of the right size;
// full also reads every blob, unpacks every layer and compares the unpacked
// trees with it. Damaged blobs are moved to the directory bad, damaged trees
// are marked to be unpacked again. If there are problems, the error wraps
// ErrDamaged.
func (s *Store) Check(ctx context.Context, full bool) (Report, error) {
	c := &checker{store: s, full: full, verified: map[string]bool{}}
	if err := c.run(ctx); err != nil {
		return c.report, fmt.Errorf("check store %s: %w", s.dir, err)
	}
	if n := len(c.report.Problems); n > 0 {
		p := c.report.Problems[0]
		return c.report, fmt.Errorf("store %s is %w: %d problems, the first: %s: %s", s.dir, ErrDamaged, n, p.What, p.Text)
	}
	if full {
		_ = os.Remove(s.path("check-needed"))
	}
	return c.report, nil
}

type checker struct {
	store *Store
	full  bool

	mu       sync.Mutex
	report   Report
	verified map[string]bool // hex of blobs that were read whole
}

func (c *checker) problem(what string, err error, fix string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Problems = append(c.report.Problems, Problem{what, err.Error(), fix})
}

const rebuild = "build or pull the image again, or remove it"

func (c *checker) run(ctx context.Context) error {
	if err := c.index(ctx); err != nil {
		return err
	}
	l, err := c.store.shared(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	for _, step := range []func(context.Context) error{c.files, c.images, c.caches, c.blobs, c.trees} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	bad, err := os.ReadDir(c.store.path("bad"))
	for _, e := range bad {
		if !strings.HasSuffix(e.Name(), ".txt") {
			c.report.Quarantined++
		}
	}
	return err
}

// index compares index.json with what refs make it. It goes first because the
// refs lock comes before the store's.
func (c *checker) index(ctx context.Context) error {
	s := c.store
	l, err := s.lock(ctx, "refs", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	if _, err := os.Lstat(s.path("refs", staleMark)); err == nil {
		return s.writeIndex(ctx) // of somebody who was killed
	}
	refs, err := s.readableRefs(ctx) // damaged ones are told by images
	if err != nil {
		return err
	}
	want, err := index(refs)
	if err != nil {
		return err
	}
	got, err := os.ReadFile(s.path("index.json"))
	if err == nil && string(got) == string(want) {
		return nil
	}
	if err == nil {
		err = errors.New("does not say what the files in refs say")
	}
	c.problem("index.json", err, "it was made again")
	return s.writeIndex(ctx)
}

// files looks at the small fixed files.
func (c *checker) files(ctx context.Context) error {
	s := c.store
	if b, err := os.ReadFile(s.path("VERSION")); err != nil || string(b) != version {
		c.problem("VERSION", fmt.Errorf("is %.40q (%w)", b, orDamaged(err)), "write "+strings.TrimSpace(version)+" into it")
	}
	if b, err := os.ReadFile(s.path("check-needed")); err == nil && !c.full {
		c.problem("the disk", fmt.Errorf("failed to take what was written: %s", strings.TrimSpace(string(b))), "kiln store check --full")
	}
	if b, err := os.ReadFile(s.path("oci-layout")); err != nil || string(b) != ociLayout {
		c.problem("oci-layout", fmt.Errorf("is %.60q (%w)", b, orDamaged(err)), "it was made again")
		return s.replace(ctx, s.path("oci-layout"), []byte(ociLayout), true)
	}
	return nil
}

func orDamaged(err error) error {
	if err != nil {
		return err
	}
	return ErrDamaged
}

// images opens every image, and with full reads all of its layers.
func (c *checker) images(ctx context.Context) error {
	s := c.store
	entries, err := os.ReadDir(s.path("refs"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == staleMark {
			continue
		}
		r, err := s.readRefFile(e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			c.problem("refs/"+e.Name(), err, rebuild)
			continue
		}
		c.report.Images++
		what := "image " + r.Name
		img, err := s.load(ctx, r)
		if err != nil {
			c.problem(what, err, rebuild)
			continue
		}
		if got := (&incoming{stored: img}).size(); got != r.Size {
			c.problem(what, fmt.Errorf("has %d bytes, its ref says %d", got, r.Size), rebuild)
		}
		if err := c.layers(ctx, what, img.layers); err != nil {
			return err
		}
	}
	return nil
}

// layers reads layers and compares them with their digest and diffID.
func (c *checker) layers(ctx context.Context, what string, layers []v1.Layer) error {
	if !c.full {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, l := range layers {
		l := l.(*storedLayer) // load makes no other
		if !c.first(l.digest.Hex + " " + l.diffID.Hex) {
			continue
		}
		group.Go(func() error {
			rc, err := l.Uncompressed()
			if err == nil {
				_, err = io.Copy(io.Discard, rc)
				err = errors.Join(err, rc.Close())
			}
			if err != nil {
				c.problem(what, err, rebuild)
			} else {
				c.read(l.digest.Hex, l.size)
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// first is true the first time for a key.
func (c *checker) first(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.verified[key] {
		return false
	}
	c.verified[key] = true
	return true
}

func (c *checker) read(hex string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified[hex] = true
	c.report.Read += n
}

func (c *checker) caches(context.Context) error {
	s := c.store
	entries, err := os.ReadDir(s.path("caches"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		r, _, err := s.readCache(e.Name())
		if err != nil {
			c.problem("caches/"+e.Name(), err, "nothing: the next build makes it again")
			continue
		}
		c.report.Caches++
		for i, d := range r.Layers {
			if !s.hasBlob(d.Digest.Hex, d.Size) {
				c.problem("cache "+r.Key, fmt.Errorf("layer %s (blob %s) is not in the store", r.DiffIDs[i], d.Digest), "nothing: the next build makes it again")
			}
		}
	}
	return nil
}

// blobs looks at every blob, whether something needs it or not.
func (c *checker) blobs(ctx context.Context) error {
	s := c.store
	entries, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // quarantined since
		}
		if err != nil {
			return err
		}
		what := "blob sha256:" + e.Name()
		if len(e.Name()) != 64 || !isHex(e.Name()) || !fi.Mode().IsRegular() {
			c.problem(what, fmt.Errorf("%w: it is not a blob but %s", ErrDamaged, fi.Mode()), "remove it")
			continue
		}
		c.report.Blobs++
		c.report.Bytes += fi.Size()
		if !c.full || !c.first(e.Name()) {
			continue
		}
		group.Go(func() error {
			rc, n, err := s.openBlob(ctx, e.Name(), -1)
			if err == nil {
				_, err = io.Copy(io.Discard, rc)
				err = errors.Join(err, rc.Close())
			}
			if err != nil {
				c.problem(what, err, rebuild)
			} else {
				c.read(e.Name(), n)
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}
