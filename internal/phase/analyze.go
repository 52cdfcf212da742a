package phase

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Names are the images that a build is about, as the platform named them.
type Names struct {
	// Image is what will be written, Tags more names for it.
	Image string
	Tags  []string
	// Previous is the image of the last build; "" means Image.
	Previous string
	// Run is the run image; "" means to take one of run.toml.
	Run string
	// Cache is the cache image, if there is one.
	Cache string
}

// AnalyzeSetting is what else an analysis depends on.
type AnalyzeSetting struct {
	PlatformAPI string
	// ExecEnv is CNB_EXEC_ENV; empty is the default.
	ExecEnv string
}

// Analysis is what Analyze found: analyzed.toml, and the images behind it.
type Analysis struct {
	spec.Analyzed
	Run v1.Image
	// Previous is nil when there is no previous image that can be used.
	Previous v1.Image
}

// Analyze finds out what the build starts from: the run image and its target,
// and the metadata of the previous image (Platform API, "analyzer"). It fails
// early when an image could not be written, or the run image or previous image
// not be read, as far as source is an image.AccessChecker. A missing previous
// image is no error; one that cannot be understood counts as missing, with a
// warning.
//
// The SBOM layer of the previous image is unpacked below layers, for Restore;
// nil leaves it out. Errors carry spec.ExitAnalyze.
func Analyze(ctx context.Context, source image.Source, names Names, run spec.RunTOML, set AnalyzeSetting, layers *Tree, sink event.Sink) (Analysis, error) {
	a, err := analyze(ctx, source, names, run, set, layers, sink)
	if _, coded := errors.AsType[*spec.ExitError](err); err != nil && !coded {
		err = spec.Exit(spec.ExitAnalyze, err)
	}
	return a, err
}

func analyze(ctx context.Context, source image.Source, names Names, run spec.RunTOML, set AnalyzeSetting, layers *Tree, sink event.Sink) (Analysis, error) {
	if names.Previous == "" {
		names.Previous = names.Image
	}
	if err := checkAccess(ctx, source, names); err != nil {
		return Analysis{}, err
	}
	var err error
	if names.Run == "" {
		if names.Run, err = chooseRunImage(ctx, source, run, names.Image); err != nil {
			return Analysis{}, err
		}
	}
	var a Analysis
	if a.Analyzed.RunImage, a.Run, err = openRunImage(ctx, source, names.Run); err != nil {
		return Analysis{}, err
	}
	if err := a.openPrevious(ctx, source, names.Previous, sink); err != nil {
		return Analysis{}, err
	}
	if layers != nil && a.Previous != nil && spec.Has(set.PlatformAPI, spec.PlatformSBOM) && !otherExecEnv(a.Analyzed, set.PlatformAPI, set.ExecEnv) {
		if err := restoreSBOM(ctx, a.Previous, a.Metadata, *layers); err != nil {
			if ctx.Err() != nil {
				return Analysis{}, err
			}
			warn(sink, "SBOMs of the previous image %s: %v", names.Previous, err)
		}
	}
	return a, nil
}

// CheckOneRegistry makes sure that image and tags are references to one
// registry, which an export to registries demands.
func CheckOneRegistry(image string, tags []string) error {
	first, err := name.ParseReference(image)
	if err != nil {
		return fmt.Errorf("image %q: %w", image, err)
	}
	for _, tag := range tags {
		ref, err := name.ParseReference(tag)
		if err != nil {
			return fmt.Errorf("image %q: %w", tag, err)
		}
		if ref.Context().RegistryStr() != first.Context().RegistryStr() {
			return fmt.Errorf("image %s is not in the registry of %s: all names of one export must be", tag, image)
		}
	}
	return nil
}

// Check makes sure that all names are references, and those of the app image
// in one registry, before a registry is spoken to.
func (n Names) Check() error {
	if err := CheckOneRegistry(n.Image, n.Tags); err != nil {
		return err
	}
	return n.CheckReferences()
}

// CheckReferences makes sure that all names are references, or IDs of images.
func (n Names) CheckReferences() error {
	for _, ref := range append([]string{n.Image}, n.Tags...) {
		if _, err := name.ParseReference(ref); err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
	}
	for what, ref := range map[string]string{"previous image": n.Previous, "run image": n.Run, "cache image": n.Cache} {
		if _, err := name.ParseReference(ref); ref != "" && err != nil {
			return fmt.Errorf("%s %q: %w", what, ref, err)
		}
	}
	return nil
}

// checkAccess asks the source, if it can tell, for everything that the build
// will read or write later, all at once.
func checkAccess(ctx context.Context, source image.Source, names Names) error {
	checker, ok := source.(image.AccessChecker)
	if !ok {
		return nil
	}
	read, write := []string{names.Previous}, append([]string{names.Image}, names.Tags...)
	if names.Run != "" {
		read = append(read, names.Run)
	}
	if names.Cache != "" {
		read, write = append(read, names.Cache), append(write, names.Cache)
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, ref := range distinct(read) {
		group.Go(func() error {
			if err := checker.CheckRead(gctx, ref); err != nil && !errors.Is(err, image.ErrNotFound) {
				return fmt.Errorf("no read access to %s: %w", ref, err)
			}
			return nil
		})
	}
	for _, ref := range distinct(write) {
		group.Go(func() error {
			if err := checker.CheckWrite(gctx, ref); err != nil {
				return fmt.Errorf("no write access to %s: %w", ref, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func distinct(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// openPrevious opens the image of the last build and reads its label.
func (a *Analysis) openPrevious(ctx context.Context, source image.Source, ref string, sink event.Sink) error {
	img, err := source.Image(ctx, ref)
	if errors.Is(err, image.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("previous image %s: %w", ref, err)
	}
	md, found, err := readPrevious(source, img, ref)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		warn(sink, "previous image %s is not used: %v", ref, err)
		return nil
	}
	a.Previous, a.Metadata, a.PreviousImage = img, md, &found
	return nil
}

func execEnvOf(s string) string {
	if s == "" {
		return spec.DefaultExecEnv
	}
	return s
}

// otherExecEnv tells whether a previous build was for another execution
// environment than this one: nothing of it is restored then.
func otherExecEnv(a spec.Analyzed, platformAPI, execEnv string) bool {
	return a.PreviousImage != nil && spec.Has(platformAPI, spec.PlatformExecEnv) && previousExecEnv(a) != execEnvOf(execEnv)
}

func previousExecEnv(a spec.Analyzed) string {
	return execEnvOf(cmp.Or(a.Metadata.ExecEnv, a.PreviousImage.ExecEnv))
}

// readPrevious reads what a previous image says of itself. An image that no
// lifecycle made has no metadata.
func readPrevious(source image.Source, img v1.Image, ref string) (spec.LifecycleMetadata, spec.ImageReference, error) {
	var found spec.ImageReference
	cf, err := img.ConfigFile()
	if err != nil {
		return spec.LifecycleMetadata{}, found, err
	}
	if found.Reference, err = image.Pin(source, ref, img); err != nil {
		return spec.LifecycleMetadata{}, found, err
	}
	label := cf.Config.Labels[spec.LifecycleMetadataLabel]
	if label == "" {
		return spec.LifecycleMetadata{}, found, nil
	}
	md, err := spec.DecodeLifecycleMetadata(label)
	if env := cf.Config.Labels[spec.ExecEnvLabel]; md.ExecEnv == "" && env != spec.DefaultExecEnv {
		found.ExecEnv = env
	}
	return md, found, err
}

func warn(sink event.Sink, format string, args ...any) {
	sink.Emit(event.Message{Level: event.Warn, Text: fmt.Sprintf(format, args...)})
}

func info(sink event.Sink, format string, args ...any) {
	sink.Emit(event.Message{Level: event.Info, Text: fmt.Sprintf(format, args...)})
}
