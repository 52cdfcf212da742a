package lifecycle

import (
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/cache"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
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
	// Own says that the process is the phase's own: if it holds credentials it is
	// concealed, and if it is root it becomes the build user, both for good.
	Own bool
	// Events takes what happens; nil renders to Stdout in the -log-format.
	Events event.Sink
	// Runner runs buildpacks; nil is sandbox.InPlace, which refuses root.
	Runner sandbox.Runner
	// Dirs maps an absolute directory of the build container ("/layers",
	// "/workspace", "/cnb/lifecycle", "/platform") to where it is on this host.
	// The longest match counts; a directory that is not listed is itself. Reads
	// go through the Stack, writes to its Upper.
	Dirs map[string]layer.Stack
	// Places is where images and layers are; nil means registries and a volume
	// cache, as the flags say. One value serves all phases of a build.
	Places *Places
	// Extender extends images; nil is in place, as root.
	Extender *Extender

	layers path // <layers> of the phase that is carried out
}

// Cache is what an app's builds keep from one to the next.
type Cache interface {
	phase.CacheReader
	phase.CacheWriter
}

// Places is where a host keeps what trusted phases read and make. The zero
// value of a field has the meaning of a plain container.
type Places struct {
	// Source opens the run image and the previous image, Target takes the app
	// image under every name it is to have; nil are registries.
	Source image.Source
	Target image.Target
	// Bases opens the images that are to be extended; nil is registries, wherever
	// the build's other images are.
	Bases image.Source
	// Trusted knows blobs of Target that need not be read again after an export;
	// nil are those of the run image and the previous image.
	Trusted image.Known
	// Layers keeps finished layers; nil is a directory that goes with the phase.
	Layers phase.Layers
	// Cache is the app's cache; nil is that of -cache-image or -cache-dir.
	Cache Cache
	// Place puts a cached layer into <layers>; nil unpacks it there.
	Place phase.Place
	// PlaceSBOM does that for the SBOM layers of the last build, where what it
	// places stays apart from what is written; nil unpacks them and deletes them
	// before the build.
	PlaceSBOM phase.PlaceSBOM
	// AppDiffID is the diffID of the app as it was before the build, if known.
	AppDiffID string

	// Exported, Cached and Report are what the exporter made: the image with the
	// diffIDs of its layers, those of the cached layers, and report.toml.
	Exported phase.Output
	Cached   phase.Known
	Report   spec.Report

	// What one phase found out and a later one would have to find out again.
	run, previous opened
	known         phase.Known
	documents     documents

	registry   *registry.Registry
	cacheImage *cache.Image
}

// opened is an image together with the reference that analyzed.toml has for it.
type opened struct {
	reference string
	image     v1.Image
}
