package phase

import (
	"bytes"
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
	return withUnpacked(ctx, l, layers, func(a *aside) error {
		to := filepath.Join(layers.Upper, sbomDir)
		if err := layer.Remove(to); err != nil {
			return err
		}
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		return a.moveOut(layers.inImage(launchSBOMs), launchSBOMs)
	})
}

// The layers of SBOMs, as Known has them.
const (
	launchSBOMs = sbomDir + "/launch"
	cacheSBOMs  = sbomDir + "/cache"
)

// restoreSBOMs puts the SBOMs of restored layers beside them: those of the
// cache, then those of the previous image.
func (r *restorer) restoreSBOMs(ctx context.Context, md spec.LifecycleMetadata, cached spec.CacheMetadata) error {
	if r.cache != nil && cached.SBOM.SHA != "" {
		l, err := r.cache.Layer(ctx, cached.SBOM.SHA)
		if err == nil {
			err = r.restoreSBOMLayer(ctx, cacheSBOMs, cached.SBOM.SHA, l)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			warn(r.sink, "the SBOMs of cached layers are not restored: %v", err)
		}
	}
	err := r.restoreImageSBOMs(ctx, md)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		warn(r.sink, "the SBOMs of the previous image are not restored: %v", err)
	}
	return nil
}

// restoreImageSBOMs takes the SBOMs of the previous image from it or, where
// Analyze left them, from the layers directory.
func (r *restorer) restoreImageSBOMs(ctx context.Context, md spec.LifecycleMetadata) error {
	if r.set.PlaceSBOM == nil {
		return r.copySBOMs(layer.Stack{Upper: r.layers.Upper}, launchSBOMs)
	}
	if r.set.Previous == nil || md.SBOM == nil || md.SBOM.SHA == "" || !spec.Has(r.set.PlatformAPI, spec.PlatformSBOM) {
		return nil
	}
	l, err := layerOf(r.set.Previous, md.SBOM.SHA)
	if err != nil {
		return err
	}
	return r.restoreSBOMLayer(ctx, launchSBOMs, md.SBOM.SHA, l)
}

// restoreSBOMLayer copies the SBOMs of restored layers out of a layer, which it
// puts in place if the host wants that. If not it is only unpacked aside.
func (r *restorer) restoreSBOMLayer(ctx context.Context, rel, diffID string, l v1.Layer) error {
	if r.set.PlaceSBOM != nil {
		if view, err := r.set.PlaceSBOM(ctx, rel, l); err == nil {
			r.known[rel] = diffID
			return r.copySBOMs(view, rel)
		}
	}
	return withUnpacked(ctx, l, r.layers, func(a *aside) error {
		return r.copySBOMs(a.view(), r.layers.inImage(rel))
	})
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
// What PlaceSBOM placed is elsewhere, and Build sees to it.
func (r *restorer) dropSBOMs() error {
	return layer.Remove(filepath.Join(r.layers.Upper, sbomDir))
}

// PutSBOM writes an SBOM that is not a buildpack's, such as the launcher's, at
// rel below <layers>/sbom, for Assemble and for the platform to find. Its mode
// does not depend on the umask, since it is in a layer's tar.
func PutSBOM(layers Tree, rel string, body []byte) error {
	file := path.Join(sbomDir, rel)
	if fi, err := layers.Lstat(file); err == nil && fi.Mode() == sbomMode {
		// Written again it would be the same, and the layer would count as touched.
		if there, err := layers.ReadFile(file, maxSBOM); err == nil && bytes.Equal(there, body) {
			return nil
		}
	}
	root, err := os.OpenRoot(layers.Upper)
	if err != nil {
		return err
	}
	defer root.Close()
	for i, c := range file {
		if c != '/' {
			continue
		}
		err := root.Mkdir(file[:i], layersDirMode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = root.Chmod(file[:i], layersDirMode)
		}
		if err != nil {
			return fmt.Errorf("SBOM %s: %w", rel, err)
		}
	}
	// Buildpacks can have put something there: it goes, it is not written through.
	if err := root.RemoveAll(file); err != nil {
		return fmt.Errorf("SBOM %s: %w", rel, err)
	}
	if err := root.WriteFile(file, body, sbomMode); err != nil {
		return fmt.Errorf("SBOM %s: %w", rel, err)
	}
	return root.Chmod(file, sbomMode)
}
