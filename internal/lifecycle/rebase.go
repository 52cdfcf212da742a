package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
)

// rebase is the rebaser: the previous image, else the first of the images, on
// another run image, under every name. The report lists those that worked.
func (h Host) rebase(ctx context.Context, in inputs) error {
	p, err := h.places(ctx, in)
	if err != nil {
		return err
	}
	if err := p.checkTags(in.args); err != nil {
		return err
	}
	from := cmp.Or(in.previousImage, in.args[0])
	app, err := p.Source.Image(ctx, from)
	if err != nil {
		return fmt.Errorf("image to rebase: %w", err)
	}
	run := cmp.Or(in.runImage, in.deprecatedImage)
	if run == "" {
		if run, err = phase.RunImageFor(ctx, p.Source, app, in.args[0]); err != nil {
			return fmt.Errorf("rebase %s: %w", from, err)
		}
	}
	base, err := phase.OpenNewBase(ctx, p.Source, app, run)
	if err != nil {
		return err
	}
	h.info("%s onto %s", from, base.Reference)
	img, err := phase.Rebase(app, base, in.force, h.Events)
	if err != nil {
		return fmt.Errorf("rebase %s: %w", from, err)
	}
	trusted, err := p.knows(app, base.Image)
	if err != nil {
		return err
	}
	p.Report, err = phase.Export(ctx, p.Target, in.args, img, trusted, in.daemon, h.Events)
	if tags := p.Report.Image.Tags; len(tags) > 0 {
		h.info("wrote %s: %s", strings.Join(tags, ", "), cmp.Or(p.Report.Image.Digest, p.Report.Image.ImageID))
		err = errors.Join(err, h.encode(in.report, p.Report))
	}
	return spec.Exit(spec.ExitRebase, err)
}

func (h Host) info(format string, args ...any) {
	h.Events.Emit(event.Message{Level: event.Info, Text: fmt.Sprintf(format, args...)})
}
