package lifecycle

import (
	"io"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// Host is what a phase may touch beyond its flags, environment and files. The
// zero Host is a plain container: directories are where the flags say, images
// are in a registry, buildpacks run in place.
//
// kiln's own process carries out the trusted phases (analyze, restore, export)
// with a Host that maps /layers and /workspace to the overlay directories of
// the build's sandbox and puts the store behind every image place, so that
// the same code serves both and no byte moves between phases.
type Host struct {
	Stdout, Stderr io.Writer
	// Events takes what happens; nil renders to Stdout in the -log-format.
	Events event.Sink
	// Runner runs buildpacks; nil is sandbox.InPlace.
	Runner sandbox.Runner
	// Dirs maps an absolute directory of the build container ("/layers",
	// "/workspace", "/cnb/lifecycle", "/platform") to where it is on this host.
	// The longest match counts; a directory that is not listed is itself. Reads
	// go through the Stack, writes to its Upper.
	Dirs map[string]layer.Stack
	// Places opens the image source and target, the cache and the layer store
	// for a phase's inputs; nil means registry, layout and volume cache as the
	// flags say. One value lives through all phases of a build, so what Restore
	// learned (which layers are in place, under which diffID) Export may use.
	// (The type is up to the lifecycle's author: keep it small.)
}
