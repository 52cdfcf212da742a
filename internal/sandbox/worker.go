package sandbox

import (
	"context"
	"errors"
)

// Options says what Start is to set up.
type Options struct {
	Tier     Tier // Best, or pinned: then Start refuses rather than give another
	UID, GID int  // the ids inside that are the caller's outside

	// Scratch are directories where the caller may put uppers, best first; empty means os.TempDir().
	// The first on which overlay works comes back as Report.Scratch.
	Scratch []string

	// Copy fills the empty directory dst with the merged view of o, Upper included. Only tier 2
	// needs it.
	Copy func(ctx context.Context, dst string, o Overlay) error

	// Executable is re-executed as worker and as PID 1; its main must call Init first. Empty means
	// this program. A smaller one starts steps faster.
	Executable string
}

// Report says what the host gives, why not more, and how it would.
type Report struct {
	Tier    Tier
	Detail  string // one sentence for people
	Scratch string // the directory of Options.Scratch where uppers belong
}

// Init must be the first call of main, and of TestMain: where this process is a re-executed worker
// or PID 1 of a step it never returns.
func Init() {}

// Probe finds out what the host gives by doing it in a child that then ends.
func Probe(ctx context.Context, o Options) (Report, error) {
	return Report{}, errors.ErrUnsupported
}

// Start starts a worker in a user namespace of its own.
func Start(ctx context.Context, o Options) (*Worker, Report, error) {
	return nil, Report{}, errors.ErrUnsupported
}

// Worker lives in the user namespace of one build and starts its steps.
type Worker struct{}

// In returns a Runner whose processes see only what spec says. In tier 2 the merged directories of
// spec are copied into their Upper once, before the first Run.
func (w *Worker) In(spec Spec) Runner { return InPlace{} }

// Remove deletes the tree at path, whatever owners and modes it has, as rm -rf would; a missing one
// is no error. It refuses what a running step uses.
func (w *Worker) Remove(ctx context.Context, path string) error { return errors.ErrUnsupported }

// Close ends all steps and the worker.
func (w *Worker) Close() error { return nil }
