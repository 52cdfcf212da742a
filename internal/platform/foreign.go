package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// foreign runs a phase that runs buildpacks: the lifecycle binary in the
// sandbox. Its events come back as JSON lines.
func (b *build) foreign(ctx context.Context, step Step) error {
	root, err := newOverlay(b.scratch, "root-"+step.Phase, b.root.Lowers)
	if err != nil {
		return err
	}
	for _, again := range []sandbox.Overlay{b.layers, b.work} {
		if err := resetWork(again.Work); err != nil {
			return err
		}
	}
	mounts, err := b.mounts(step)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	decoded := make(chan error, 1)
	sink := &watcher{sink: b.tally}
	go func() { decoded <- event.Decode(r, sink) }()
	argv := append([]string{dirLifecycle + "/" + step.Phase, "-log-format", "json"}, step.Args...)
	err = b.worker.In(sandbox.Spec{Root: root, Mounts: mounts, UID: b.root.UID, GID: b.root.GID, Network: step.Network}).Run(ctx, sandbox.Command{
		Path: argv[0], Args: argv, Env: slices.Concat(b.root.Env, b.Host.proxyEnv(), step.Env), Dir: dirApp, Stdout: w, Stderr: w,
	})
	w.Close()
	if b.copies {
		// They were copied into the upper directories. What shone through them
		// still would bring back what the step has removed.
		b.layers.Lowers, b.work.Lowers = nil, nil
	}
	decodeErr := <-decoded
	if err != nil {
		return b.explain(step, err, sink)
	}
	return decodeErr
}

// resetWork empties an overlay's work directory between two mounts of it.
func resetWork(dir string) error {
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}

// watcher passes events on and remembers what an explanation needs.
type watcher struct {
	sink   event.Sink
	groups []event.GroupTried
	last   string // what the phase said was wrong
	said   string // what the buildpack said was wrong
	hint   string // and what it said would help
}

// Emit implements event.Sink.
func (w *watcher) Emit(e event.Event) {
	switch e := e.(type) {
	case event.GroupTried:
		w.groups = append(w.groups, e)
	case event.PhaseStarted, event.PhaseFinished:
		return // the platform times its steps itself
	case event.BuildpackStarted:
		w.said, w.hint = "", ""
	case event.Output:
		for line := range strings.Lines(e.Text) {
			if why, ok := strings.CutPrefix(strings.TrimSpace(line), "ERROR: "); ok {
				w.said, w.hint = why, ""
			}
			if hint, ok := strings.CutPrefix(strings.TrimSpace(line), "hint: "); ok && w.said != "" {
				w.hint = hint
			}
		}
	case event.Message:
		if e.Level == event.Error {
			w.last = e.Text
			return
		}
	}
	w.sink.Emit(e)
}

// explain turns the exit of a foreign phase into an error that says why.
func (b *build) explain(step Step, err error, w *watcher) error {
	var exit *sandbox.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", strings.ToLower(event.Title(step.Phase)), err)
	}
	why := cmp.Or(w.last, exit.Error())
	if exit.Code == spec.ExitDetectFail || exit.Code == spec.ExitDetectError {
		why = "no group of buildpacks fits the app"
		if text := event.Explain(w.groups); text != "" {
			why += "\n" + text
		}
		return spec.Exit(exit.Code, spec.WithHint(errors.New(why), "kiln build --verbose shows all that the buildpacks said"))
	}
	if (exit.Code == spec.ExitBuildpack || exit.Code == spec.ExitExtension) && w.said != "" {
		return spec.Exit(exit.Code, spec.WithHint(errors.New(why+": "+w.said), "%s", w.hint))
	}
	code := exit.Code
	if exit.Signal != 0 {
		code = 128 + int(exit.Signal)
	}
	return spec.Exit(code, errors.New(why))
}
