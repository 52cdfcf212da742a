package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/spec"
)

// RebaseRequest asks for images to be put on new run images.
type RebaseRequest struct {
	// Images are in the store, in files (oci:DIR:ref, oci-archive:FILE,
	// docker-archive:FILE), in the daemon (docker-daemon:NAME) or, with Publish, in
	// registries. One in the daemon goes onto a run image in the daemon.
	Images  []string
	Publish bool
	// Previous is read in the place of the only image.
	Previous string
	// RunImage is what all of them are put on; empty means the one that each
	// image names.
	RunImage string
	// Pull says where run images are looked for: see the constants.
	Pull PullPolicy
	// Force rebases what is not safe to rebase.
	Force bool
	// DryRun writes nothing and finds out what would change; Packages lets it
	// fetch layers to see which packages would.
	DryRun, Packages bool
	// Insecure lists registries that may be spoken to over plain HTTP.
	Insecure []string
	// Jobs is how many images are worked on at once.
	Jobs int
}

// PullPolicy says where a run image is looked for, in pack's words.
type PullPolicy string

// Always looks in the registry that the name says, and in the store if there is
// none of that name; names without a registry are the store's first.
// IfNotPresent looks in the store first, Never only there.
const (
	PullAlways       PullPolicy = "always"
	PullIfNotPresent PullPolicy = "if-not-present"
	PullNever        PullPolicy = "never"
)

// DefaultRebaseJobs is how many images are rebased at once: the work is waiting
// for a registry, and public ones do not like many more.
const DefaultRebaseJobs = 8

// Rebased is what became of one image: the last event about it, and the report
// that a lifecycle would have written.
type Rebased struct {
	event.Rebased
	Report spec.Report
	Err    error
}

// Rebase puts images on new run images, many at once. One that fails does not
// keep the others from it. The results are in the order of the request, as far
// as they came before ctx ended; the error is that of the only image, or sums
// up those of many and carries spec.ExitRebase.
func (p *Platform) Rebase(ctx context.Context, req RebaseRequest) ([]Rebased, error) {
	req.Images = dedupe(req.Images)
	if err := req.check(); err != nil {
		return nil, err
	}
	r := &rebaser{Platform: p, req: req, bases: map[baseKey]func() (*newBase, error){}, readable: map[string]func() error{}}
	r.registry = sync.OnceValues(func() (*registry.Registry, error) { return p.Registry(req.Insecure) })
	results := make([]Rebased, len(req.Images))
	next := make(chan int)
	var workers sync.WaitGroup
	var count sync.Mutex
	done := 0
	for range min(req.Jobs, len(req.Images)) {
		workers.Go(func() {
			for i := range next {
				results[i] = r.one(ctx, req.Images[i])
				if results[i].Err != nil && ctx.Err() != nil {
					results[i] = Rebased{} // it was told to stop: that says nothing of the image
					continue
				}
				p.Events.Emit(results[i].Rebased)
				count.Lock()
				done++
				if n := len(req.Images); n > 1 {
					p.Events.Emit(event.Progress{ID: "rebase", Text: "rebasing", Done: int64(done), Total: int64(n), Unit: "items", End: done == n})
				}
				count.Unlock()
			}
		})
	}
	for i := range results {
		select {
		case next <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	workers.Wait()
	results = slices.DeleteFunc(results, func(r Rebased) bool { return r.Result == "" })
	if err := ctx.Err(); err != nil {
		return results, fmt.Errorf("stopped after %d of %d images: %w", done, len(req.Images), err)
	}
	return results, summary(results)
}

// summary is the error of the only image, or one that names all that failed
// and is nothing more than a failed rebase.
func summary(results []Rebased) error {
	if len(results) == 1 {
		return results[0].Err
	}
	var b strings.Builder
	failed, hint := 0, ""
	for _, r := range results {
		if r.Err == nil {
			continue
		}
		failed++
		if hint == "" {
			hint = spec.HintOf(r.Err)
		}
		const shown = 100 // more are in the events
		if failed <= shown {
			fmt.Fprintf(&b, "\n%s: %v", r.Name, r.Err)
		} else if failed == shown+1 {
			b.WriteString("\n...")
		}
	}
	if failed == 0 {
		return nil
	}
	err := fmt.Errorf("%d of %d images were not rebased:%s", failed, len(results), b.String())
	if hint != "" {
		err = spec.WithHint(err, "%s", hint)
	}
	return spec.Exit(spec.ExitRebase, err)
}

// check says what is wrong with a request.
func (req *RebaseRequest) check() error {
	if len(req.Images) == 0 {
		return badInput(errors.New("no image to rebase"), "name one: kiln rebase my-app")
	}
	if req.Previous != "" && len(req.Images) > 1 {
		return badInput(fmt.Errorf("--previous-image is for one image, not for %d", len(req.Images)), "leave it off: each image is read from where it is written to")
	}
	if req.Jobs < 1 {
		return badInput(fmt.Errorf("%d jobs", req.Jobs), "one image at a time is --jobs 1")
	}
	switch req.Pull {
	case PullAlways, PullIfNotPresent, PullNever:
	default:
		return badInput(fmt.Errorf("pull policy %q is not known", req.Pull), "use always, if-not-present or never")
	}
	for _, name := range req.Images {
		here := onThisHost(name)
		if here && req.Publish {
			return badInput(fmt.Errorf("--publish is for images in a registry, and %s is on this host", name), "leave --publish off")
		}
		if _, _, file := archive.Parse(name); file {
			continue
		}
		if _, err := ParseImageName(bareName(name)); err != nil {
			return err
		}
	}
	return nil
}

// imageAt is an image's name and the place that it is in.
type imageAt struct {
	place place
	kind  DestinationKind
	ref   string // in the place
}

func (r *rebaser) at(ctx context.Context, name string) (imageAt, error) {
	if file, ref, ok := archive.Parse(name); ok {
		kind, _, _ := strings.Cut(name, ":")
		ref, err := nameInFile(ctx, DestinationKind(kind), file, name, ref)
		return imageAt{file, DestinationKind(kind), ref}, err
	}
	if bare, ok := inDaemon(name); ok {
		d, err := r.described(ctx)
		return imageAt{d, ToDaemon, bare}, err
	}
	if !r.req.Publish {
		return imageAt{r.Store, ToStore, name}, nil
	}
	reg, err := r.registry()
	return imageAt{reg, ToRegistry, name}, err
}

// nameInFile is the name that an image in a file or folder has there, by which
// it is replaced. An archive is written anew, so nothing else may be in it.
func nameInFile(ctx context.Context, kind DestinationKind, file archive.Place, typed, ref string) (string, error) {
	names, err := file.Names(ctx)
	if err != nil {
		return "", err
	}
	if kind != ToLayout && len(names) > 1 {
		return "", badInput(fmt.Errorf("%s holds %d images, and all but one would be lost", typed, len(names)), "take them apart first, with skopeo copy say")
	}
	if ref == "" && len(names) != 1 {
		return "", badInput(fmt.Errorf("%s holds %d images", typed, len(names)), "say which one after another colon")
	}
	if ref != "" && kind == ToLayout {
		return ref, nil
	}
	if len(names) == 1 && len(names[0]) > 1 {
		return "", badInput(fmt.Errorf("%s holds an image of several names, and all but one would be lost", typed), "take them apart first, with skopeo copy say")
	}
	if ref == "" && len(names[0]) == 1 {
		ref = names[0][0]
	}
	return ref, nil
}

// rebaser is one call of Rebase. What all images need is found once.
type rebaser struct {
	*Platform
	req      RebaseRequest
	registry func() (*registry.Registry, error)

	mu       sync.Mutex
	bases    map[baseKey]func() (*newBase, error)
	readable map[string]func() error
	layers   layerPackages
}

// one rebases one image.
func (r *rebaser) one(ctx context.Context, name string) Rebased {
	began := time.Now()
	out := Rebased{Rebased: event.Rebased{Name: name}}
	if out.Err = r.rebase(ctx, name, &out); out.Err != nil {
		out.Result, out.Error = "failed", out.Err.Error()
		out.Err = spec.Exit(spec.ExitCode(out.Err, spec.ExitRebase), out.Err)
	}
	out.Elapsed = time.Since(began)
	return out
}

func (r *rebaser) rebase(ctx context.Context, name string, out *Rebased) error {
	to, err := r.at(ctx, name)
	if err != nil {
		return err
	}
	from := to
	if r.req.Previous != "" {
		if from, err = r.at(ctx, r.req.Previous); err != nil {
			return err
		}
		if from.kind != to.kind {
			return badInput(fmt.Errorf("previous image %s and image %s are in places of different kinds", r.req.Previous, name), "name both in the store, both in a registry, or both as files of one kind")
		}
	}
	app, err := r.openApp(ctx, from)
	if err != nil {
		return err
	}
	base, err := r.baseOf(ctx, app, to)
	if err != nil {
		return err
	}
	sink := event.Func(func(e event.Event) {
		if m, ok := e.(event.Message); ok {
			m.Text = name + ": " + m.Text
			e = m
		}
		r.Events.Emit(e)
	})
	img, err := phase.Rebase(app, base.NewBase, r.req.Force, sink)
	if err != nil {
		return err
	}
	if err := r.plan(ctx, app, img, base, out); err != nil {
		return err
	}
	if from.kind == ToDaemon {
		if out.Before, err = image.ID(app); err != nil {
			return err // it has no digest
		}
	}
	switch same := sameID(app, img) == nil && from == to; {
	case same:
		out.Result, out.After = "unchanged", out.Before
		return reportOf(app, to, name, &out.Report)
	case r.req.DryRun:
		out.Result = "planned"
		return nil
	}
	if err := r.write(ctx, to, app, base, out); err != nil {
		return err
	}
	out.Report.Image.Tags = []string{name}
	return nil
}

// openApp opens an image that can be replaced by another one.
func (r *rebaser) openApp(ctx context.Context, at imageAt) (v1.Image, error) {
	img, err := at.place.Image(ctx, at.ref)
	if errors.Is(err, image.ErrNotFound) && at.kind == ToStore {
		return nil, spec.WithHint(err, "kiln images lists the store; with --publish images are rebased in their registry")
	}
	if err != nil {
		return nil, err
	}
	if c, ok := img.(image.Chosen); ok && c.FromIndex() {
		err := fmt.Errorf("%s is an index of several images, and one would take its place", at.ref)
		return nil, badInput(err, "rebase each of them by a name of its own, then make the index again")
	}
	return img, nil
}

// reportOf is report.toml of an image that is as it should be already.
func reportOf(img v1.Image, at imageAt, ref string, report *spec.Report) error {
	if at.kind == ToDaemon {
		id, err := image.ID(img)
		report.Image = spec.ReportImage{Tags: []string{ref}, ImageID: id}
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	size, err := img.Size()
	if err != nil {
		return err
	}
	report.Image = spec.ReportImage{Tags: []string{ref}, Digest: digest.String(), ManifestSize: size}
	return nil
}

// write brings the rebased image where it belongs, base layers in the form that
// the place wants and from where they are nearest.
func (r *rebaser) write(ctx context.Context, to imageAt, app v1.Image, base *newBase, out *Rebased) error {
	near, done, err := base.near(ctx, to)
	if err != nil {
		return err
	}
	defer done(nil)
	// Said already, of the same documents.
	img, err := phase.Rebase(app, near, r.req.Force, event.Discard)
	if err != nil {
		return err
	}
	var trusted image.Known
	switch to.kind {
	case ToStore, ToRegistry:
		trusted, err = image.KnownFrom(app, near.Image)
	case ToLayout:
		trusted, err = image.KnownFrom(app)
	case ToDaemon:
		trusted = newOutput(to.place, Destination{Kind: ToDaemon}).vouches
	}
	if err != nil {
		return err
	}
	out.Report, err = phase.Export(ctx, to.place, []string{to.ref}, img, trusted, to.kind == ToDaemon, event.Discard)
	if err != nil {
		return spec.Exit(spec.ExitRebase, err)
	}
	out.Result, out.After = "rebased", cmp.Or(out.Report.Image.Digest, out.Report.Image.ImageID)
	done(func() (v1.Image, error) { return to.place.Image(ctx, to.ref) })
	return nil
}
