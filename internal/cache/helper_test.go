package cache_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/cache/cachetest"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
)

// helperEnv makes the test binary a builder of its own.
const helperEnv = "KILN_CACHE_TEST_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		if err := helper(what, os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helperCommand runs the test binary as a builder, under another command if
// one is given.
func helperCommand(t *testing.T, what string, under []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(append(under, self), args...)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), helperEnv+"="+what, "GOMAXPROCS=1")
	return cmd
}

func helper(what string, args []string) error {
	ctx := context.Background()
	v, err := cache.OpenVolume(ctx, args[0], event.Func(func(e event.Event) {
		if m, ok := e.(event.Message); ok {
			fmt.Println("warning:", m.Text)
		}
	}))
	if err != nil {
		return err
	}
	defer v.Close()
	switch what {
	case "save":
		k, err := readKept(args[1])
		if err != nil {
			return err
		}
		return v.Save(ctx, k.md, k.open)
	case "read":
		k, err := readKept(args[1])
		if err != nil {
			return err
		}
		return k.in(ctx, v)
	case "hold":
		fmt.Println("held")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	return fmt.Errorf("what is %q?", what)
}

// kept is what a cache holds, in a directory: metadata and tars.
type kept struct {
	md  spec.CacheMetadata
	dir string
}

// newKept makes one with n layers.
func newKept(t *testing.T, sizes ...int) kept {
	t.Helper()
	k := kept{dir: t.TempDir()}
	b := spec.BuildpackLayers{Key: "bp", Version: "1", Layers: map[string]spec.LayerMetadata{}}
	for i, size := range sizes {
		tar := imagetest.Tar(t, size)
		id := imagetest.Sum(tar).String()
		if err := os.WriteFile(filepath.Join(k.dir, id), tar, 0o644); err != nil {
			t.Fatal(err)
		}
		b.Layers[fmt.Sprintf("l%d", i)] = spec.LayerMetadata{SHA: id, Cache: true, Data: map[string]any{"n": "1"}}
	}
	k.md.Buildpacks = append(k.md.Buildpacks, b)
	text, err := spec.EncodeLabel(k.md)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "md.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return k
}

func readKept(dir string) (kept, error) {
	text, err := os.ReadFile(filepath.Join(dir, "md.json"))
	if err != nil {
		return kept{}, err
	}
	md, err := spec.DecodeCacheMetadata(string(text))
	return kept{md, dir}, err
}

func (k kept) open(_ context.Context, diffID string) (v1.Layer, error) {
	tar, err := os.ReadFile(filepath.Join(k.dir, diffID))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", image.ErrNotFound, err)
	}
	return imagetest.Broken{Tar: tar}, nil
}

// in says whether k is what the cache holds, whole.
func (k kept) in(ctx context.Context, v *cache.Volume) error {
	md, ok, err := v.Load(ctx)
	if err != nil || !ok {
		return fmt.Errorf("load: %t %w", ok, errors.Join(err))
	}
	got, err := json.Marshal(md)
	if err != nil {
		return err
	}
	if want, err := json.Marshal(k.md); err != nil || string(got) != string(want) {
		return fmt.Errorf("it is another: %s, not %s %w", got, want, errors.Join(err))
	}
	for name, m := range md.Buildpacks[0].Layers {
		if err := consume(ctx, v, m.SHA); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// consume reads a layer of a cache to its end.
func consume(ctx context.Context, c cachetest.Cache, diffID string) error {
	l, err := c.Layer(ctx, diffID)
	if err != nil {
		return err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, rc)
	return errors.Join(err, rc.Close())
}

func (k kept) save(t *testing.T, dir string) {
	t.Helper()
	v := volume(t, dir)
	defer v.Close()
	if err := v.Save(t.Context(), k.md, k.open); err != nil {
		t.Fatal(err)
	}
}

// mustBeIn fails unless the cache in dir is k, and nothing is beside it.
func (k kept) mustBeIn(t *testing.T, dir string) {
	t.Helper()
	v := volume(t, dir)
	defer v.Close()
	if err := k.in(t.Context(), v); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); got != "committed kiln.lock" {
		t.Errorf("in the cache directory are %s", got)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}
