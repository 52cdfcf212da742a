// Package archive reads and writes images as files that other tools
// understand: an OCI layout directory, the same as a tar file, and the tar file
// of `docker save`.
//
// The same image gives the same bytes, on any day and any machine. A reader
// never sees half of one: everything is written under another name, flushed to
// disk, and renamed.
package archive

import (
	"context"
	"strings"

	"github.com/kilnbuild/kiln/internal/image"
)

var (
	_ image.Source = Layout{}
	_ image.Target = Layout{}
	_ image.Source = OCIArchive{}
	_ image.Target = OCIArchive{}
	_ image.Source = DockerArchive{}
	_ image.Target = DockerArchive{}
)

// Layout is an OCI layout directory. As a Target it makes the directory if
// need be and adds to what is there; an image of the same reference is
// replaced. As a Source it opens the image of that reference, or the only one
// there is when the reference is "".
type Layout struct{ Dir string }

// OCIArchive is an OCI layout in a tar file. It holds one image; writing
// replaces the file.
type OCIArchive struct{ Path string }

// DockerArchive is the tar file that `docker load`, `podman load` and skopeo
// read: layers are uncompressed. It holds one image; writing replaces the file.
type DockerArchive struct{ Path string }

// Place is one of Layout, OCIArchive and DockerArchive.
type Place interface {
	image.Source
	image.Target
	Names(context.Context) ([][]string, error)
}

// Parse reads the names that skopeo uses for files: oci:DIR[:ref],
// oci-archive:FILE[:ref], docker-archive:FILE[:ref]. The path ends at the first
// colon. ok is false when s is none of these.
func Parse(s string) (place Place, ref string, ok bool) {
	kind, rest, found := strings.Cut(s, ":")
	if !found {
		return nil, "", false
	}
	path, ref, _ := strings.Cut(rest, ":")
	if path == "" {
		return nil, "", false
	}
	switch kind {
	case "oci":
		return Layout{Dir: path}, ref, true
	case "oci-archive":
		return OCIArchive{Path: path}, ref, true
	case "docker-archive":
		return DockerArchive{Path: path}, ref, true
	}
	return nil, "", false
}
