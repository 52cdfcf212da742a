package phase

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// NewBase is a run image that apps are to be put on.
type NewBase struct {
	Image v1.Image
	// Name is what people call it; Reference says which image that is now: a
	// digest reference, or the image ID in a daemon.
	Name, Reference string
}

// RunImageFor says which run image app asks to be rebased onto: that of its
// label's runImage, else of stack.runImage, or a mirror; one in the registry of
// target if it can be read (Platform API, "Run Image Resolution"). Errors carry
// spec.ExitRebase.
func RunImageFor(ctx context.Context, source image.Source, app v1.Image, target string) (string, error) {
	s, err := standsOn(app)
	if err != nil {
		return "", spec.Exit(spec.ExitRebase, err)
	}
	if s.asked.Image == "" {
		err := errors.New("no run image: the app image's label names none")
		return "", spec.Exit(spec.ExitRebase, spec.WithHint(err, "name one with -run-image (kiln rebase: --run-image)"))
	}
	ref, err := chooseRunImage(ctx, source, spec.RunTOML{Images: []spec.RunImageEntry{s.asked}}, target)
	return ref, spec.Exit(spec.ExitRebase, err)
}

// OpenNewBase opens a run image for the platform that app is for. Errors carry
// spec.ExitRebase.
func OpenNewBase(ctx context.Context, source image.Source, app v1.Image, ref string) (NewBase, error) {
	fail := func(err error) (NewBase, error) {
		return NewBase{}, spec.Exit(spec.ExitRebase, fmt.Errorf("run image %s: %w", ref, err))
	}
	cf, err := app.ConfigFile()
	if err != nil {
		return NewBase{}, spec.Exit(spec.ExitRebase, err)
	}
	img, err := openFor(ctx, source, ref, v1.Platform{OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant})
	if err != nil {
		return fail(err)
	}
	reference, err := image.Pin(source, ref, img)
	if err != nil {
		return fail(err)
	}
	return NewBase{Image: img, Name: ref, Reference: reference}, nil
}

// openFor opens ref for a platform. A variant that ref does not have is left to
// the checks of a rebase, which know when it matters.
func openFor(ctx context.Context, source image.Source, ref string, want v1.Platform) (v1.Image, error) {
	chooser, ok := source.(image.PlatformSource)
	if !ok || want.OS == "" || want.Architecture == "" {
		return source.Image(ctx, ref)
	}
	img, err := chooser.ImageFor(ctx, ref, want)
	if want.Variant != "" && errors.Is(err, image.ErrNotFound) {
		want.Variant = ""
		return chooser.ImageFor(ctx, ref, want)
	}
	return img, err
}

// BaseLayers counts the layers of an app image that are its run image's: those
// that Rebase replaces. Errors carry spec.ExitRebase.
func BaseLayers(app v1.Image) (int, error) {
	s, err := standsOn(app)
	if err != nil {
		return 0, spec.Exit(spec.ExitRebase, err)
	}
	n, err := s.baseLayers()
	return n, spec.Exit(spec.ExitRebase, err)
}

// Rebase puts an app image on another run image (Platform API, "rebaser"):
// layers up to the recorded top layer are replaced, the label says so, and the
// io.buildpacks.base.* and io.buildpacks.stack.* labels become the new run
// image's; all else stays. What would be unsafe is an error, or, with force, a
// warning. No layer is read. Errors carry spec.ExitRebase.
func Rebase(app v1.Image, base NewBase, force bool, sink event.Sink) (v1.Image, error) {
	img, err := rebase(app, base, force, sink)
	return img, spec.Exit(spec.ExitRebase, err)
}

func rebase(app v1.Image, base NewBase, force bool, sink event.Sink) (v1.Image, error) {
	s, err := standsOn(app)
	if err != nil {
		return nil, err
	}
	below, err := base.Image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("run image %s: %w", base.Name, err)
	}
	if len(below.RootFS.DiffIDs) == 0 {
		return nil, fmt.Errorf("run image %s has no layers", base.Name)
	}
	against := s.objections(base.Name, below)
	if len(against) > 0 && !force {
		return nil, spec.WithHint(fmt.Errorf("it is not safe to rebase: %s", strings.Join(against, "; ")),
			"if you know that the app runs there, use -force (kiln rebase: --force)")
	}
	for _, text := range against {
		warn(sink, "forced: %s", text)
	}
	label, err := s.relabelled(base, below, force)
	if err != nil {
		return nil, err
	}
	n, err := s.baseLayers()
	if err != nil {
		return nil, err
	}
	return image.Rebase(app, base.Image, n, func(labels map[string]string) {
		maps.DeleteFunc(labels, func(key, _ string) bool { return ofBase(key) })
		for key, value := range below.Config.Labels {
			if ofBase(key) {
				labels[key] = value
			}
		}
		labels[spec.LifecycleMetadataLabel] = label
	})
}

// ofBase says whether a label describes the run image.
func ofBase(label string) bool {
	return strings.HasPrefix(label, spec.BaseLabels) || strings.HasPrefix(label, spec.StackLabels)
}

// standing is what an app image says that it stands on.
type standing struct {
	config *v1.ConfigFile
	// label is the lifecycle's, run its runImage: both as somebody wrote them.
	label, run *spec.Object
	topLayer   string
	asked      spec.RunImageEntry
}

func standsOn(app v1.Image) (s standing, err error) {
	if s.config, err = app.ConfigFile(); err != nil {
		return s, err
	}
	text := s.config.Config.Labels[spec.LifecycleMetadataLabel]
	if text == "" {
		return s, spec.WithHint(fmt.Errorf("the app image has no label %s", spec.LifecycleMetadataLabel), "only images that a lifecycle has built can be rebased")
	}
	fail := func(err error) (standing, error) {
		return s, fmt.Errorf("label %s: %w", spec.LifecycleMetadataLabel, err)
	}
	if s.label, err = spec.ParseObject([]byte(text)); err != nil {
		return fail(err)
	}
	if s.run, err = s.label.Object("runImage"); err != nil {
		return fail(err)
	}
	if err := s.run.Get("topLayer", &s.topLayer); err != nil {
		return fail(fmt.Errorf("runImage: %w", err))
	}
	if s.asked, err = entryIn(s.run); err != nil {
		return fail(fmt.Errorf("runImage: %w", err))
	}
	if s.asked.Image != "" {
		return s, nil
	}
	stack, err := s.label.Object("stack")
	if err != nil {
		return fail(err)
	}
	old, err := stack.Object("runImage")
	if err != nil {
		return fail(fmt.Errorf("stack: %w", err))
	}
	if s.asked, err = entryIn(old); err != nil {
		return fail(fmt.Errorf("stack.runImage: %w", err))
	}
	return s, nil
}

// entryIn reads the names of a run image.
func entryIn(o *spec.Object) (e spec.RunImageEntry, err error) {
	if err := errors.Join(o.Get("image", &e.Image), o.Get("mirrors", &e.Mirrors)); err != nil {
		return e, err
	}
	if e.Image == "" && len(e.Mirrors) > 0 {
		e.Image, e.Mirrors = e.Mirrors[0], e.Mirrors[1:]
	}
	return e, nil
}

// knows says whether the app image names that run image.
func (s standing) knows(name string) bool {
	return entryOf(spec.RunTOML{Images: []spec.RunImageEntry{s.asked}}, name) != nil
}

// relabelled is the lifecycle's label for the new run image.
func (s standing) relabelled(base NewBase, below *v1.ConfigFile, force bool) (string, error) {
	top := below.RootFS.DiffIDs[len(below.RootFS.DiffIDs)-1].String()
	if err := errors.Join(s.run.Set("topLayer", top), s.run.Set("reference", base.Reference)); err != nil {
		return "", err
	}
	if force && !s.knows(base.Name) {
		if err := s.run.Set("image", base.Name); err != nil {
			return "", err
		}
		s.run.Delete("mirrors")
		if err := s.restack(base.Name); err != nil {
			return "", fmt.Errorf("label %s: stack: %w", spec.LifecycleMetadataLabel, err)
		}
	}
	s.label.Put("runImage", s.run.Bytes())
	return string(s.label.Bytes()), nil
}

// restack keeps the deprecated twin, where there is one, saying the same.
func (s standing) restack(name string) error {
	if s.label.Raw("stack") == nil {
		return nil
	}
	stack, err := s.label.Object("stack")
	if err != nil {
		return err
	}
	run, err := stack.Object("runImage")
	if err != nil {
		return err
	}
	if err := run.Set("image", name); err != nil {
		return err
	}
	run.Delete("mirrors")
	stack.Put("runImage", run.Bytes())
	s.label.Put("stack", stack.Bytes())
	return nil
}

// baseLayers counts the layers up to and including the top layer. A run image
// may have it more than once (an empty one, say), and so may an app: then it is
// the last one below those that the label lists as the app's own, if those are
// where they should be. Otherwise it is the first, which takes nothing from the
// app.
func (s standing) baseLayers() (int, error) {
	diffIDs := s.config.RootFS.DiffIDs
	var found []int
	for i, h := range diffIDs {
		if h.String() == s.topLayer {
			found = append(found, i+1)
		}
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("the app image has no layer %q, which its label says is the top layer of its run image", s.topLayer)
	}
	if len(found) == 1 {
		return found[0], nil
	}
	own := s.ownLayers()
	rest := len(diffIDs) - len(own)
	if len(own) == 0 || rest < 0 {
		return found[0], nil
	}
	var above []string
	for _, h := range diffIDs[rest:] {
		above = append(above, h.String())
	}
	slices.Sort(own)
	slices.Sort(above)
	if !slices.Equal(own, above) {
		return found[0], nil
	}
	last := found[0]
	for _, n := range found {
		if n <= rest {
			last = n
		}
	}
	return last, nil
}

// ownLayers are the diffIDs that the label lists as the app's own. A part that
// cannot be understood lists none.
func (s standing) ownLayers() (own []string) {
	type layer struct {
		SHA string `json:"sha"`
	}
	var label struct {
		App        []layer
		Buildpacks []struct{ Layers map[string]layer }
		Others     [4]layer
	}
	if s.label.Get("app", &label.App) != nil || s.label.Get("buildpacks", &label.Buildpacks) != nil {
		return nil
	}
	for i, key := range []string{"sbom", "config", "launcher", "process-types"} {
		if s.label.Get(key, &label.Others[i]) != nil {
			return nil
		}
	}
	layers := append(label.App, label.Others[:]...)
	for _, b := range label.Buildpacks {
		layers = slices.AppendSeq(layers, maps.Values(b.Layers))
	}
	for _, l := range layers {
		if l.SHA != "" {
			own = append(own, l.SHA)
		}
	}
	return own
}
