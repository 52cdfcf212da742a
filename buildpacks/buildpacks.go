// Package buildpacks lists the buildpacks that kiln ships: their descriptions,
// their default order, and how they lie in a builder image. The programs are
// one binary, cmd/buildpacks, which finds out from its buildpack.toml which of
// them it is to be; this package holds none of their code.
package buildpacks

import (
	"embed"
	"fmt"
	"io/fs"
	"path"

	"github.com/kilnbuild/kiln/internal/spec"
)

//go:embed order.toml cacertificates/buildpack.toml cpython/buildpack.toml pip/buildpack.toml
//go:embed pipinstall/buildpack.toml pythonstart/buildpack.toml procfile/buildpack.toml
var files embed.FS

// Shipped is one buildpack that kiln ships.
type Shipped struct {
	spec.Buildpack
	// TOML is its buildpack.toml.
	TOML []byte
}

// Dir is where the buildpack belongs below a buildpacks directory:
// "kiln_cpython/0.1.0".
func (s Shipped) Dir() string {
	return path.Join(spec.EscapeID(s.Buildpack.Buildpack.ID), s.Buildpack.Buildpack.Version)
}

// All lists the buildpacks, sorted by the names of their folders here.
func All() ([]Shipped, error) {
	names, err := fs.Glob(files, "*/buildpack.toml")
	if err != nil {
		return nil, err
	}
	var all []Shipped
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		bp, err := spec.ReadBuildpack(text, "buildpacks/"+name)
		if err != nil {
			return nil, err
		}
		all = append(all, Shipped{bp, text})
	}
	return all, nil
}

// OrderTOML is the order.toml of a builder that has them all.
func OrderTOML() ([]byte, error) { return files.ReadFile("order.toml") }

// Order is OrderTOML, read.
func Order() (spec.Order, error) {
	text, err := OrderTOML()
	if err != nil {
		return spec.Order{}, err
	}
	return spec.ReadOrder(text, "buildpacks/order.toml")
}

// File is one file or symbolic link of the layout: a path relative to the
// buildpacks directory, slash separated. Directories are left to the writer.
type File struct {
	Path string
	Mode fs.FileMode
	Link string // target of a symbolic link, or ""
	Body []byte
}

// Files is all that belongs into a buildpacks directory (/cnb/buildpacks):
// each buildpack's description, and its bin/detect and bin/build as links to
// binary, the path of cmd/buildpacks in the image.
func Files(binary string) ([]File, error) {
	all, err := All()
	if err != nil {
		return nil, fmt.Errorf("list the shipped buildpacks: %w", err)
	}
	var list []File
	for _, s := range all {
		list = append(list,
			File{Path: s.Dir() + "/bin/build", Mode: fs.ModeSymlink | 0o777, Link: binary},
			File{Path: s.Dir() + "/bin/detect", Mode: fs.ModeSymlink | 0o777, Link: binary},
			File{Path: s.Dir() + "/buildpack.toml", Mode: 0o644, Body: s.TOML})
	}
	return list, nil
}
