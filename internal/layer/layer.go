// Package layer turns directory trees into reproducible layer tars and layer
// tars into trees. It reads the two halves of an overlay file system (what a
// build left in the upper directory, the trees below it) without mounting it,
// and it treats both the trees and the tars as written by somebody hostile:
// no path is resolved by name twice, no symlink is followed while reading, and
// nothing in a tar can touch a file outside the directory it is applied to.
package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"
)

// ModTime is the time stamp of every entry that this package writes: one
// second after the earliest time that zip files can hold (requirements 5.3).
var ModTime = time.Date(1980, time.January, 1, 0, 0, 1, 0, time.UTC)

// ErrChanged says that a tree changed while it was being read, so what was
// read of it may never have existed at any one time.
var ErrChanged = errors.New("changed while it was being read")

// ErrLimit says that a layer is larger than its Limits.
var ErrLimit = errors.New("limit exceeded")

// ErrUnsafe says that a layer tries something that no honest layer needs: to
// name a parent directory, to write through a broken link, to replace the root.
var ErrUnsafe = errors.New("unsafe entry")

// The whiteout names of the OCI image specification.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // AUFS bookkeeping, of no meaning here
)

// opaqueXattr marks a directory that hides the directories below it. It is
// the name that overlayfs uses when mounted with userxattr.
const opaqueXattr = "user.overlay.opaque"

// Owner is the numeric user and group of a tar entry.
type Owner struct{ UID, GID int }

// Parent is a directory that a layer tar names before its own tree, so that
// unpacking the layer alone gives the directories above it their real mode and
// owner. Path is absolute in the image.
type Parent struct {
	Path  string
	Mode  fs.FileMode
	Owner Owner
}

// File is one entry of a tar that is made from memory. It is a directory when
// Mode says so, a symlink to Link when Link is not empty, else a regular file.
type File struct {
	Path  string
	Mode  fs.FileMode
	Owner Owner
	Link  string
	Body  []byte
}

// Limits bounds what Apply takes from one layer. A zero field means its default.
type Limits struct {
	Entries int64 // tar entries, and directories that only lead to one; default 2,000,000
	Bytes   int64 // file contents, and bytes after the end of the archive; default 64 GiB
	Path    int   // bytes in one name; default and maximum 4095, the kernel's PATH_MAX
	Depth   int   // components in one name; default 2048
	Names   int64 // bytes in the names of all directories, which are remembered; default 128 MiB
}

// Defaults of Limits. The largest images in use (machine learning models,
// whole distributions) stay an order of magnitude below the first two.
const (
	defaultEntries = 2_000_000
	defaultBytes   = 64 << 30
	maxPath        = 4095
	maxName        = 255
	defaultDepth   = 2048
	defaultNames   = 128 << 20
)

func (l Limits) withDefaults() Limits {
	if l.Entries <= 0 {
		l.Entries = defaultEntries
	}
	if l.Bytes <= 0 {
		l.Bytes = defaultBytes
	}
	if l.Path <= 0 || l.Path > maxPath {
		l.Path = maxPath
	}
	if l.Depth <= 0 {
		l.Depth = defaultDepth
	}
	if l.Names <= 0 {
		l.Names = defaultNames
	}
	return l
}

// pathError wraps err with the operation and the path it failed on.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

func unsafeEntry(name, why string) error {
	return fmt.Errorf("layer entry %s: %s: %w", quote(name), why, ErrUnsafe)
}

func limitError(name, what string, limit int64) error {
	return fmt.Errorf("layer entry %s: more than %d %s: %w", quote(name), limit, what, ErrLimit)
}

func entryError(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("layer entry %s: %w", quote(name), err)
}

// quote shows a name from a tar: any bytes, of any length.
func quote(name string) string {
	const show = 200
	if len(name) > show {
		return strconv.Quote(name[:show]) + "..."
	}
	return strconv.Quote(name)
}
