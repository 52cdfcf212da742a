// Command buildpacks is all the buildpacks that kiln ships, in one static file.
// bin/detect and bin/build of each are links to it; the buildpack.toml beside
// them says which one it is to be.
package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/buildpacks/cacertificates"
	"github.com/kilnbuild/kiln/buildpacks/cpython"
	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/buildpacks/pip"
	"github.com/kilnbuild/kiln/buildpacks/pipinstall"
	"github.com/kilnbuild/kiln/buildpacks/procfile"
	"github.com/kilnbuild/kiln/buildpacks/pythonstart"
	"github.com/kilnbuild/kiln/internal/spec"
)

// payload holds the helper, once `make build` has put it there.
//
//go:embed payload
var payload embed.FS

func main() {
	bp, err := choose(os.Getenv("CNB_BUILDPACK_DIR"))
	if err != nil {
		fmt.Printf("ERROR: %v\n", err)
		os.Exit(1)
	}
	kit.Main(bp)
}

// choose finds the buildpack whose description lies in dir.
func choose(dir string) (kit.Buildpack, error) {
	if dir == "" {
		return kit.Buildpack{}, errors.New("CNB_BUILDPACK_DIR is not set: this program is run by a lifecycle, as bin/detect or bin/build of a buildpack")
	}
	path := filepath.Join(dir, "buildpack.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		return kit.Buildpack{}, err
	}
	described, err := spec.ReadBuildpack(text, path)
	if err != nil {
		return kit.Buildpack{}, err
	}
	switch id := described.Buildpack.ID; id {
	case "kiln/ca-certificates":
		return cacertificates.New(helper), nil
	case "kiln/cpython":
		return cpython.New(), nil
	case "kiln/pip":
		return pip.New(), nil
	case "kiln/pip-install":
		return pipinstall.New(), nil
	case "kiln/python-start":
		return pythonstart.New(helper), nil
	case "kiln/procfile":
		return procfile.New(), nil
	default:
		return kit.Buildpack{}, fmt.Errorf("%s: %q is none of the buildpacks in this program", path, id)
	}
}

// helper is the exec.d program.
func helper() ([]byte, error) {
	b, err := payload.ReadFile("payload/helper")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this program was built without its helper: build it with make")
	}
	return b, err
}
