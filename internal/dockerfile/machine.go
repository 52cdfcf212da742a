package dockerfile

import (
	"context"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Machine is where instructions are carried out.
type Machine interface {
	// Kind is part of what a layer is remembered by: machines of one kind make
	// the same bytes of the same instruction.
	Kind() string
	// Root gives the file system that layers make, the lowest first, for one
	// instruction. The caller closes it.
	Root(ctx context.Context, layers []v1.Layer) (Root, error)
	// Fetch copies what is at a URL to out, over the network that programs have.
	Fetch(ctx context.Context, url string, out io.Writer) error
	// Offline tells that programs have no network.
	Offline() bool
}

// kind is a Kind of machine that leaves something out.
func kind(name string, skip []string) string {
	return strings.Join(append([]string{name}, slices.Sorted(slices.Values(skip))...), " -")
}

// Root is a file system for one instruction to work in.
type Root interface {
	// Inside carries out op with the file system as its own root, as root.
	Inside(ctx context.Context, op Op, in io.Reader, out io.Writer) error
	// Run runs a program to its end. It fails with a *sandbox.ExitError when
	// the program did.
	Run(ctx context.Context, p Process) error
	// Commit puts what has changed since Root into a layer, which is nil if
	// nothing has, and makes it part of what Root gives from then on.
	Commit(ctx context.Context, to Layers) (v1.Layer, error)
	// Close gives up what was not committed.
	Close() error
}

// Layers takes finished layers: write writes an uncompressed tar.
type Layers interface {
	PutLayer(ctx context.Context, write func(io.Writer) error) (v1.Layer, error)
}

// Process is a program of a RUN instruction.
type Process struct {
	Args []string
	Env  []string // NAME=value; the machine adds what it knows of its host
	Dir  string
	User User
	// NoNetwork leaves the program without any.
	NoNetwork      bool
	System         System // of the root
	Mounts         []Mount
	Stdout, Stderr io.Writer
}

// Mount shows something at Target while a program runs. Nothing of it, and no
// mount point that had to be made, gets into the layer. Exactly one of Files,
// Cache and Tmpfs says what.
type Mount struct {
	Target string
	// Files writes a tar of the file or directory to show: its first entry is
	// named "." (a directory, whose content follows) or anything else (a file).
	Files func(ctx context.Context, w io.Writer) error
	// Cache is the id of a directory that stays from one build to the next. It
	// begins as what Files writes, if that is there too, else empty. Sharing says
	// who may use it meanwhile: others too ("shared" or ""), others only after this
	// program ("locked"), or others one of their own ("private").
	Cache, Sharing string
	Tmpfs          bool
	Size           int64 // of a Tmpfs at most, in bytes; 0 is half of the memory
	// ReadOnly keeps the program from writing there. What it writes elsewhere
	// than to a cache is gone with it in any case.
	ReadOnly bool
}

// Op is something to do in a root's files. Exactly one field is set.
type Op struct {
	// Look finds a user of the root, and writes a Found as JSON.
	Look *Look
	// Put unpacks the tar of writeSources.
	Put *Put
	// Take writes the tar of writeSources from files of the root.
	Take *Sources
}

// Look asks for a user: NAME|UID[:GROUP|GID], "" for root.
type Look struct{ User string }

// Found is the answer to a Look.
type Found struct {
	User   User
	System System
}

// System is what of a root the host may go by that shows programs what they
// need of it. All of it is what the root says of itself.
type System struct {
	// Apt tells that it has apt, and a directory for apt's configuration;
	// AptSources, that it says where packages come from.
	Apt, AptSources bool
	// Distro and Codename are ID and VERSION_CODENAME of its os-release.
	Distro, Codename string
}
