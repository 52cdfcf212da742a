package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// copied is whether an upper has been filled already. Its lock is held while that is done.
type copied struct {
	sync.Mutex
	done bool
}

// materialise replaces the overlays of spec by directories, where that must be.
func (w *Worker) materialise(ctx context.Context, spec Spec) (Spec, error) {
	if !w.report.Copies {
		return spec, nil
	}
	var err error
	if spec.Root, err = w.copyOnce(ctx, spec.Root); err != nil {
		return spec, err
	}
	spec.Mounts = append([]Mount(nil), spec.Mounts...)
	for i, m := range spec.Mounts {
		if m.Overlay == nil {
			continue
		}
		o, err := w.copyOnce(ctx, *m.Overlay)
		if err != nil {
			return spec, err
		}
		spec.Mounts[i].Overlay = &o
	}
	return spec, nil
}

// copyOnce fills o.Upper with the merged view, by a copy in o.Work and two renames.
func (w *Worker) copyOnce(ctx context.Context, o Overlay) (Overlay, error) {
	if len(o.Lowers) == 0 {
		return o, nil
	}
	if o.Upper == "" {
		return o, errors.New("without overlay a merged directory needs an upper directory to be copied to")
	}
	upper := w.copyOf(o.Upper)
	upper.Lock()
	defer upper.Unlock()
	if !upper.done {
		if err := w.copy(ctx, o); err != nil {
			return o, fmt.Errorf("copy the layers into %s: %w", o.Upper, err)
		}
		upper.done = true
	}
	return Overlay{Upper: o.Upper}, nil
}

func (w *Worker) copyOf(upper string) *copied {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.copied[upper]
	if c == nil {
		c = &copied{}
		w.copied[upper] = c
	}
	return c
}

func (w *Worker) copy(ctx context.Context, o Overlay) error {
	merged, old := filepath.Join(o.Work, "merged"), filepath.Join(o.Work, "old")
	for _, dir := range []string{merged, old} {
		if err := w.Remove(ctx, dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{o.Upper, merged} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := w.options.Copy(ctx, merged, o); err != nil {
		return err
	}
	if err := os.Rename(o.Upper, old); err != nil {
		return err
	}
	if err := os.Rename(merged, o.Upper); err != nil {
		return err
	}
	return w.Remove(ctx, old)
}
