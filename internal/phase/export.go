package phase

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Export writes an app image under every name and makes sure of it: if target
// is also an image.Source, each image is read back from where it went and
// validated whole, except for blobs that trusted vouches for. With daemon the
// report has an image ID instead of a digest.
//
// A name that fails does not keep the others from being written. The report
// then lists only those that worked, and the error, which carries
// spec.ExitExport, says what became of the rest.
func Export(ctx context.Context, target image.Target, refs []string, img v1.Image, trusted image.Known, daemon bool, sink event.Sink) (spec.Report, error) {
	want, err := image.ID(img)
	if err != nil {
		return spec.Report{}, spec.Exit(spec.ExitExport, err)
	}
	e := &exporter{target: target, img: img, id: want, trusted: trusted, sink: sink}
	var report spec.Report
	var failures []error
	for _, ref := range distinctInOrder(refs) {
		if err := e.write(ctx, ref); err != nil {
			failures = append(failures, fmt.Errorf("export image %s: %w", ref, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		report.Image.Tags = append(report.Image.Tags, ref)
	}
	if len(report.Image.Tags) > 0 {
		if daemon {
			report.Image.ImageID = want
		} else {
			report.Image.Digest, report.Image.ManifestSize = e.digest, e.manifestSize
		}
	}
	return report, spec.Exit(spec.ExitExport, errors.Join(failures...))
}

func distinctInOrder(list []string) []string {
	var kept []string
	seen := map[string]bool{}
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			kept = append(kept, s)
		}
	}
	return kept
}

type exporter struct {
	target  image.Target
	img     v1.Image
	id      string
	trusted image.Known
	sink    event.Sink

	// digest is the manifest's that was validated last, in this target.
	digest       string
	manifestSize int64
	size         int64
}

func (e *exporter) write(ctx context.Context, ref string) error {
	if err := e.target.Write(ctx, ref, e.img); err != nil {
		return err
	}
	written := e.img
	source, ok := e.target.(image.Source)
	if ok {
		var err error
		if written, err = source.Image(ctx, ref); errors.Is(err, image.ErrNotFound) {
			return fmt.Errorf("read it back: somebody has removed it already: %w", err)
		} else if err != nil {
			return fmt.Errorf("read it back: %w", err)
		}
	}
	if err := e.verify(ctx, written, ok); err != nil {
		return err
	}
	e.sink.Emit(event.ImageWritten{Name: ref, ID: e.id, Digest: e.digest, Size: e.size})
	return nil
}

// verify checks what was written. A manifest that was validated already, under
// another name in the same place, is not read twice.
func (e *exporter) verify(ctx context.Context, written v1.Image, readBack bool) error {
	id, err := image.ID(written)
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	if id != e.id {
		return fmt.Errorf("read it back: %w: it has the image ID %s, not %s", image.ErrInvalid, id, e.id)
	}
	digest, err := written.Digest()
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	if digest.String() == e.digest {
		return nil
	}
	if readBack {
		if err := image.Validate(ctx, written, e.trusted); err != nil {
			return fmt.Errorf("read it back: %w", err)
		}
	}
	manifest, err := written.Manifest()
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	raw, err := written.RawManifest()
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	e.digest, e.manifestSize, e.size = digest.String(), int64(len(raw)), manifest.Config.Size
	for _, l := range manifest.Layers {
		e.size += l.Size
	}
	return nil
}
