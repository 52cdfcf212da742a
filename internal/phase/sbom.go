package phase

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

const (
	sbomDir = "sbom"
	// maxSBOM bounds one bill of materials, in bytes. Those of large base
	// systems in Syft's format reach some ten MB.
	maxSBOM = 256 << 20
	// legacySBOM is the file of the bill of materials of before Buildpack API
	// 0.7. Nobody fills it any more, but the reference always writes it, and
	// the layer is to be the same.
	legacySBOM     = "sbom.legacy.json"
	legacySBOMBody = "null"
)

// Modes of <layers>/sbom, whatever the umask is: they are in a layer's tar.
const (
	sbomMode    fs.FileMode = 0o644
	sbomDirMode             = fs.ModeDir | layersDirMode
)

// sbomFile is an SBOM and its places below <layers>/sbom.
type sbomFile struct {
	dir, file string   // the buildpack's layers directory and the name in it
	to        []string // e.g. launch/<escaped id>/<layer>/sbom.cdx.json
}

// open opens the SBOM, and says how many bytes it has.
func (f sbomFile) open() (*os.File, int64, error) {
	src, err := layer.Stack{Upper: f.dir}.Open(f.file)
	if err != nil {
		return nil, 0, err
	}
	fi, err := src.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("not a regular file: %w", fs.ErrInvalid)
	case fi.Size() > maxSBOM:
		err = fmt.Errorf("%d bytes, more than %d: %w", fi.Size(), maxSBOM, fs.ErrInvalid)
	default:
		return src, fi.Size(), nil
	}
	return nil, 0, errors.Join(err, src.Close())
}

// sbomFiles says where the SBOMs of a buildpack go: those about the image and
// its launch layers to launch, others to build, those of cache layers to cache
// as well (requirements 3.9).
func sbomFiles(bp buildpack.Buildpack, dir string, out buildpack.Outputs) []sbomFile {
	id := spec.EscapeID(bp.Info().ID)
	var files []sbomFile
	for _, s := range out.SBOMs {
		f := sbomFile{dir: dir, file: s.File}
		name := "sbom." + s.Ext
		if s.Subject == "launch" || s.Subject == "build" {
			f.to = []string{filepath.Join(s.Subject, id, name)}
			files = append(files, f)
			continue
		}
		var types spec.LayerTypes
		if i := slices.IndexFunc(out.Layers, func(l buildpack.Layer) bool { return l.Name == s.Subject }); i >= 0 {
			types = out.Layers[i].Types
		}
		kind := "build"
		if types.Launch {
			kind = "launch"
		}
		f.to = []string{filepath.Join(kind, id, s.Subject, name)}
		if types.Cache {
			f.to = append(f.to, filepath.Join("cache", id, s.Subject, name))
		}
		files = append(files, f)
	}
	return files
}
