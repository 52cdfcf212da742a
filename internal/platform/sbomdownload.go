package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// sbomLimits bound an SBOM layer. An SBOM of a large distribution has some ten
// MB, in three formats for each layer of a buildpack.
var sbomLimits = layer.Limits{Entries: 50_000, Bytes: 1 << 30}

// DownloadSBOM writes the SBOMs of an app image below dir, in the tree that they
// have in the image: layers/sbom/launch/<buildpack>/... Only that layer of the
// image is read; with remote it comes from the registry, whatever the store has.
// It returns the files, slash-separated and relative to dir, in order. None is
// there before all are known to be whole.
func (p *Platform) DownloadSBOM(ctx context.Context, ref string, remote bool, insecure []string, dir string) ([]string, error) {
	img, err := p.openThere(ctx, ref, remote, insecure)
	if err != nil {
		return nil, err
	}
	fail := func(err error) ([]string, error) { return nil, fmt.Errorf("SBOM of %s: %w", ref, err) }
	l, within, err := sbomLayer(img)
	if err != nil {
		return fail(err)
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return fail(err)
	}
	defer rc.Close()
	files, err := writeSBOMs(ctx, dir, rc, within)
	if err != nil {
		return fail(err)
	}
	return files, nil
}

// openThere opens an image where it is: nothing of it is brought into the store.
func (p *Platform) openThere(ctx context.Context, ref string, remote bool, insecure []string) (v1.Image, error) {
	if remote && onThisHost(ref) {
		return nil, badInput(fmt.Errorf("%s is on this host, and --remote is for registries", ref), "leave --remote off")
	}
	if place, inner, ok := archive.Parse(ref); ok {
		return place.Image(ctx, inner)
	}
	if name, ok := inDaemon(ref); ok {
		d, err := p.described(ctx)
		if err != nil {
			return nil, err
		}
		return d.Image(ctx, name)
	}
	if !remote {
		img, err := p.Store.Image(ctx, ref)
		if err == nil || !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	reg, err := p.Registry(insecure)
	if err != nil {
		return nil, err
	}
	img, err := reg.Image(ctx, ref)
	if errors.Is(err, image.ErrNotFound) && !remote {
		return nil, spec.WithHint(nowhere{ref}, "kiln images lists the store; oci:DIR, oci-archive:FILE, docker-archive:FILE and docker-daemon:NAME are read too")
	}
	return img, err
}

// sbomLayer finds the layer with SBOMs, and the directory that they are in.
func sbomLayer(img v1.Image) (l v1.Layer, within string, err error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, "", err
	}
	none := func(format string, args ...any) (v1.Layer, string, error) {
		return nil, "", badInput(fmt.Errorf(format, args...), "images that a lifecycle has built have one if their buildpacks or the launcher describe themselves")
	}
	var label struct{ SHA string }
	text := cf.Config.Labels[spec.LifecycleMetadataLabel]
	if text == "" {
		return none("the image has no label %s", spec.LifecycleMetadataLabel)
	}
	o, err := spec.ParseObject([]byte(text))
	if err == nil {
		err = o.Get("sbom", &label)
	}
	if err != nil {
		return none("label %s: %w", spec.LifecycleMetadataLabel, err)
	}
	if label.SHA == "" {
		return none("the image has no SBOM layer")
	}
	diffID, err := v1.NewHash(label.SHA)
	if err != nil {
		return none("label %s: %w", spec.LifecycleMetadataLabel, err)
	}
	if !slices.Contains(cf.RootFS.DiffIDs, diffID) {
		return none("the image lacks the SBOM layer %s that its label names", diffID)
	}
	within = dirLayers
	for _, kv := range cf.Config.Env {
		if dir, ok := strings.CutPrefix(kv, "CNB_LAYERS_DIR="); ok && dir != "" {
			within = path.Clean("/" + dir)
		}
	}
	l, err = img.LayerByDiffID(diffID)
	return l, within + "/sbom", err
}

// writeSBOMs writes the regular files of a tar that are below within, and
// nothing else of it. They appear when the tar has been read to its end, which
// checks it.
func writeSBOMs(ctx context.Context, dir string, r io.Reader, within string) ([]string, error) {
	fail := func(err error) ([]string, error) {
		return nil, spec.Exit(spec.ExitInvalidArgs, spec.WithHint(err, "name a directory of yours with --output-dir"))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	scratch, err := os.MkdirTemp(dir, ".kiln-sbom-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(scratch)
	aside, err := os.OpenRoot(scratch)
	if err != nil {
		return fail(err)
	}
	defer aside.Close()
	files, err := layer.Extract(ctx, aside, r, within, sbomLimits)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, badInput(fmt.Errorf("its layer has no file in %s", within), "nothing describes what is in this image")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	for _, f := range files {
		err := root.MkdirAll(path.Dir(f), 0o755)
		if err == nil {
			err = root.Rename(filepath.Base(scratch)+"/"+f, f)
		}
		if err != nil {
			return fail(err)
		}
	}
	return files, nil
}
