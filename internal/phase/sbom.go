package phase

import (
	"errors"
	"fmt"
	"io"
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

// sbomFile is an SBOM and its places below <layers>/sbom.
type sbomFile struct {
	dir, file string   // the buildpack's layers directory and the name in it
	to        []string // e.g. launch/<escaped id>/<layer>/sbom.cdx.json
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

// copySBOMs makes <layers>/sbom anew. Buildpacks can write to <layers>, so
// whatever is at that name goes first, and nothing is followed out of it.
func copySBOMs(layers string, files []sbomFile) error {
	path := filepath.Join(layers, sbomDir)
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := os.Mkdir(path, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range files {
		for _, to := range f.to {
			if err := copySBOM(root, f, to); err != nil {
				return fmt.Errorf("copy %s to %s: %w", filepath.Join(f.dir, f.file), filepath.Join(path, to), err)
			}
		}
	}
	for _, kind := range []string{"launch", "build"} {
		if err := root.MkdirAll(kind, 0o777); err != nil {
			return err
		}
		if err := root.WriteFile(filepath.Join(kind, legacySBOM), []byte(legacySBOMBody), 0o666); err != nil {
			return err
		}
	}
	return nil
}

func copySBOM(root *os.Root, f sbomFile, to string) error {
	src, err := layer.Stack{Upper: f.dir}.Open(f.file)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := root.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return err
	}
	dst, err := root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	n, err := io.Copy(dst, io.LimitReader(src, maxSBOM+1))
	if n > maxSBOM {
		err = fmt.Errorf("more than %d bytes: %w", maxSBOM, fs.ErrInvalid)
	}
	return errors.Join(err, dst.Close())
}
