package phase

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// sbomExts are the formats of SBOMs, by file extension.
var sbomExts = []string{"cdx.json", "spdx.json", "syft.json"}

// restoreSBOM puts the SBOM layer of the previous image at <layers>/sbom/launch.
func restoreSBOM(ctx context.Context, previous v1.Image, md spec.LifecycleMetadata, layers Tree) error {
	if md.SBOM == nil || md.SBOM.SHA == "" {
		return nil
	}
	h, err := v1.NewHash(md.SBOM.SHA)
	if err != nil {
		return err
	}
	l, err := previous.LayerByDiffID(h)
	if err != nil {
		return err
	}
	return withUnpacked(ctx, l, layers, func(aside layer.Stack) error {
		from, err := aside.Path(layers.inImage("sbom/launch"))
		if err != nil {
			return err
		}
		to := filepath.Join(layers.Upper, sbomDir)
		if err := layer.Remove(to); err != nil {
			return err
		}
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		return move(from, filepath.Join(to, "launch"))
	})
}

// withUnpacked unpacks a layer beside the layers and shows it to use.
func withUnpacked(ctx context.Context, l v1.Layer, layers Tree, use func(layer.Stack) error) error {
	aside, err := os.MkdirTemp(layers.Upper, ".restore-*")
	if err != nil {
		return err
	}
	defer func() { _ = layer.Remove(aside) }()
	if err := unpack(ctx, l, aside); err != nil {
		return err
	}
	return use(layer.Stack{Upper: aside})
}

// restoreSBOMs puts the SBOMs of restored layers beside them: those of the
// cache, then those of the previous image, which Analyze left.
func (r *restorer) restoreSBOMs(ctx context.Context, cached spec.CacheMetadata) error {
	if r.cache != nil && cached.SBOM.SHA != "" {
		l, err := r.cache.Layer(ctx, cached.SBOM.SHA)
		if err == nil {
			err = withUnpacked(ctx, l, r.layers, func(aside layer.Stack) error {
				return r.copySBOMs(aside, r.layers.inImage("sbom/cache"))
			})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			warn(r.sink, "the SBOMs of cached layers are not restored: %v", err)
		}
	}
	if err := r.copySBOMs(layer.Stack{Upper: r.layers.Upper}, "sbom/launch"); err != nil {
		warn(r.sink, "the SBOMs of the previous image are not restored: %v", err)
	}
	return nil
}

// copySBOMs copies <from>/<id>/<layer>/sbom.<ext> to <layers>/<id>/<layer>.sbom.<ext>.
func (r *restorer) copySBOMs(src layer.Stack, from string) error {
	for _, m := range r.members {
		for _, name := range slices.Sorted(maps.Keys(m.layers)) {
			for _, ext := range sbomExts {
				body, err := src.ReadFile(path.Join(from, m.dir, name, "sbom."+ext), maxSBOM)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err == nil {
					err = r.write(m, name+".sbom."+ext, body)
				}
				if err != nil {
					return fmt.Errorf("SBOM of layer %s:%s: %w", m.id, name, err)
				}
			}
		}
	}
	return nil
}

// dropSBOMs removes <layers>/sbom, so that nothing stale gets into this build.
func (r *restorer) dropSBOMs() error {
	return layer.Remove(filepath.Join(r.layers.Upper, sbomDir))
}

// PutSBOM writes an SBOM that is not a buildpack's, such as the launcher's, at
// rel below <layers>/sbom, for Assemble and for the platform to find. Its mode
// does not depend on the umask, since it is in a layer's tar.
func PutSBOM(layers Tree, rel string, body []byte) error {
	root, err := os.OpenRoot(layers.Upper)
	if err != nil {
		return err
	}
	defer root.Close()
	file := path.Join(sbomDir, rel)
	for i, c := range file {
		if c != '/' {
			continue
		}
		err := root.Mkdir(file[:i], 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = root.Chmod(file[:i], 0o755)
		}
		if err != nil {
			return fmt.Errorf("SBOM %s: %w", rel, err)
		}
	}
	// Buildpacks can have put something there: it goes, it is not written through.
	if err := root.RemoveAll(file); err != nil {
		return fmt.Errorf("SBOM %s: %w", rel, err)
	}
	if err := root.WriteFile(file, body, 0o644); err != nil {
		return fmt.Errorf("SBOM %s: %w", rel, err)
	}
	return root.Chmod(file, 0o644)
}
