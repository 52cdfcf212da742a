package debian

import (
	"context"
	"io"
	"time"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Options say how a Client reaches the archive.
type Options struct {
	// Sources are the archives to take packages from: those of the machine
	// (Sources) or of a mirror (ForMirror). Entries for other suites than the
	// one that is asked for lend their address; -updates and -security are
	// always added.
	Sources []Source
	// Keyrings are files of OpenPGP public keys (binary or armoured) that are
	// trusted instead of the Debian archive keys in this program.
	Keyrings []string
	// AllowExpired accepts a Release past its Valid-Until.
	AllowExpired bool
	// Blobs keeps downloaded .debs; nil means a temporary directory that
	// Close removes.
	Blobs Blobs
	// Events takes progress and warnings; nil drops them.
	Events event.Sink
	// Now is the clock that signatures and Valid-Until are held against; nil
	// means time.Now.
	Now func() time.Time
}

// Blobs keeps .debs by content. Both methods are called from several
// goroutines at once.
type Blobs interface {
	// Open opens the blob with this SHA-256 (lower case hex, no prefix). It
	// fails with fs.ErrNotExist (wrapped) when there is none. The reader's
	// bytes are hashed again here, so the keeper need not.
	Open(ctx context.Context, sha256 string) (io.ReadCloser, error)
	// Put keeps what r gives. r fails before its end, and never says EOF, when
	// the bytes are not those of sha256: Put must then keep nothing.
	Put(ctx context.Context, sha256 string, r io.Reader) error
}

// Request says which packages a Lock is wanted of.
type Request struct {
	Suite  string // codename or suite: bookworm, trixie, stable
	Arch   string // Debian's name: amd64, arm64
	Groups []Group
	// Exclude names packages, real or virtual, that count as present: nothing
	// is installed for a dependency on them. They are recorded in the Lock.
	Exclude []string
	// Previous is the lock of last time, or nil. An archive whose Release is
	// older than the one recorded there is refused (replay).
	Previous *Lock
}

// Group is one layer's packages: those named, and what they depend on that no
// earlier group has.
type Group struct {
	Name     string
	Packages []string
}

// Recipe says what Build makes.
type Recipe struct {
	Request
	// Lock, if not nil, is used instead of resolving Request: same packages,
	// same bytes, no index read. Its suite, arch, groups and excludes must be
	// those of the Request.
	Lock *Lock
	// User is who processes run as; its name, group and home are made.
	User User
	// KeepSetuid leaves setuid and setgid bits alone; otherwise they are cleared.
	KeepSetuid bool
	// Epoch caps every modification time (SOURCE_DATE_EPOCH); the zero time
	// means the newest Release date of the lock.
	Epoch time.Time
	// AllowMissing lists shared libraries (DT_NEEDED names) that may be missing.
	AllowMissing []string
}

// User is an account of the image.
type User struct {
	Name     string
	UID, GID int
	Home     string // absolute
}

// Result is what Build knows of the image it made.
type Result struct {
	Lock Lock
	// Distro is /etc/os-release's ID and VERSION_ID, for the image's labels.
	Distro spec.Distro
	// Created is the newest modification time in the image. It depends on the
	// packages alone, so it can be the image's creation time and leave its ID
	// reproducible.
	Created time.Time
	// Packages and Files count what went in; Bytes is the sum of file sizes.
	Packages, Files int
	Bytes           int64
	// Unemulated lists maintainer scripts that do what this package does not
	// do for them, as "package script: command".
	Unemulated []string
}

// PutLayer takes one finished layer: it calls write once with where the layer's
// uncompressed tar shall go, and must drop what it got when write fails.
// Layers come bottom first, one per Group, named like the Group.
type PutLayer func(name string, write func(io.Writer) error) error
