package phase

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// chooseRunImage picks the run image for an app image: of the first entry of
// run.toml and its mirrors, one in the app image's registry that can be read,
// else the first that can be read (Platform API, "Run Image Resolution").
// Without an image.AccessChecker, or with one candidate only, everything counts
// as readable.
func chooseRunImage(ctx context.Context, source image.Source, run spec.RunTOML, app string) (string, error) {
	if len(run.Images) == 0 || run.Images[0].Image == "" {
		return "", spec.WithHint(errors.New("no run image: run.toml names none"), "name one with -run-image, or in run.toml under [[images]]")
	}
	all := append([]string{run.Images[0].Image}, run.Images[0].Mirrors...)
	ordered := append(inRegistryOf(all, app, true), inRegistryOf(all, app, false)...)
	checker, ok := source.(image.AccessChecker)
	if !ok || len(ordered) == 1 {
		return ordered[0], nil
	}
	var reasons []error
	for _, ref := range ordered {
		err := checker.CheckRead(ctx, ref)
		if err == nil {
			return ref, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", ref, err))
	}
	return "", fmt.Errorf("no run image can be read: %w", errors.Join(reasons...))
}

// inRegistryOf keeps those references that are, or are not, in app's registry.
func inRegistryOf(refs []string, app string, want bool) []string {
	var kept []string
	for _, ref := range refs {
		if (registryOf(ref) == registryOf(app)) == want {
			kept = append(kept, ref)
		}
	}
	return kept
}

func registryOf(ref string) string {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return ""
	}
	return parsed.Context().RegistryStr()
}

// openRunImage opens the run image and reads its target.
func openRunImage(ctx context.Context, source image.Source, ref string) (*spec.RunImage, v1.Image, error) {
	img, err := source.Image(ctx, ref)
	if err != nil {
		return nil, nil, fmt.Errorf("run image %s: %w", ref, err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, nil, fmt.Errorf("run image %s: %w", ref, err)
	}
	target, err := targetOfConfig(cf)
	if err != nil {
		return nil, nil, fmt.Errorf("run image %s: %w", ref, err)
	}
	reference, err := image.Pin(source, ref, img)
	if err != nil {
		return nil, nil, fmt.Errorf("run image %s: %w", ref, err)
	}
	return &spec.RunImage{Image: ref, Reference: reference, Target: &target}, img, nil
}

// bionicStack is the one stack ID that stands for a distribution (Platform
// API, "Target Data").
const bionicStack = "io.buildpacks.stacks.bionic"

// targetOfConfig reads the target data of a base image.
func targetOfConfig(cf *v1.ConfigFile) (spec.Target, error) {
	if cf.OS == "" {
		return spec.Target{}, errors.New("its config names no operating system")
	}
	labels := cf.Config.Labels
	t := spec.Target{ID: labels[spec.BaseIDLabel], OS: cf.OS, Arch: cf.Architecture, Variant: cf.Variant}
	distro := spec.Distro{Name: labels[spec.BaseDistroNameLabel], Version: labels[spec.BaseDistroVersionLabel]}
	switch {
	case distro.Name != "" || distro.Version != "":
		t.Distro = &distro
	case labels[spec.StackIDLabel] == bionicStack:
		t.Distro = &spec.BionicTarget().Distros[0]
	}
	return t, nil
}

// RefreshRunImage fills in what an extension cleared that chose another run
// image: its digest reference and its target (Platform API 0.12, "restorer").
// From 0.14 on, a run image that run.toml lists must be readable. One that is to
// be extended is left to SaveBases. Errors carry spec.ExitRestore.
func RefreshRunImage(ctx context.Context, source image.Source, a spec.Analyzed, run spec.RunTOML, set AnalyzeSetting) (spec.Analyzed, error) {
	if a.RunImage == nil || !spec.Has(set.PlatformAPI, spec.PlatformRunImageExtension) {
		return a, nil
	}
	ref := nameOf(*a.RunImage)
	checker, ok := source.(image.AccessChecker)
	if ok && spec.Has(set.PlatformAPI, spec.PlatformRestoreRunImage) && entryOf(run, ref) != nil {
		if err := checker.CheckRead(ctx, ref); err != nil {
			return a, spec.Exit(spec.ExitRestore, fmt.Errorf("run image %s: %w", ref, err))
		}
	}
	if hasTarget(*a.RunImage) || a.RunImage.Extend {
		return a, nil
	}
	opened, _, err := openRunImage(ctx, source, ref)
	if err != nil {
		return a, spec.Exit(spec.ExitRestore, err)
	}
	opened.Image = a.RunImage.Image
	a.RunImage = opened
	return a, nil
}

func hasTarget(r spec.RunImage) bool { return r.Target != nil && r.Target.OS != "" }

// nameOf is what a run image is called, as far as that is known.
func nameOf(r spec.RunImage) string { return cmp.Or(r.Image, r.Reference) }

// SaveBases saves, for the extender, the manifest and config of the images that
// it is to extend: buildImage, unless it is "", and the run image if a says so.
// They go to cache, <kaniko>/cache, as OCI layouts base/<digest> without layers
// (Platform API, "restorer"). source is registries, whatever the build's other
// images are in. The result has their digest references, by which the extender
// finds them, and the run image's target. Errors carry spec.ExitRestore.
func SaveBases(ctx context.Context, source image.Source, cache string, a spec.Analyzed, buildImage string, set AnalyzeSetting) (spec.Analyzed, error) {
	a, err := saveBases(ctx, source, cache, a, buildImage, set)
	return a, spec.Exit(spec.ExitRestore, err)
}

func saveBases(ctx context.Context, source image.Source, cache string, a spec.Analyzed, buildImage string, set AnalyzeSetting) (spec.Analyzed, error) {
	if buildImage != "" {
		img, err := source.Image(ctx, buildImage)
		if err != nil {
			return a, fmt.Errorf("build image %s: %w", buildImage, err)
		}
		build := spec.BuildImage{}
		if a.BuildImage != nil {
			build = *a.BuildImage
		}
		if build.Reference, err = saveBase(ctx, source, cache, buildImage, img); err != nil {
			return a, fmt.Errorf("build image %s: %w", buildImage, err)
		}
		a.BuildImage = &build
	}
	if a.RunImage == nil || !a.RunImage.Extend || !spec.Has(set.PlatformAPI, spec.PlatformRunImageExtension) {
		return a, nil
	}
	ref := a.RunImage.Reference // what the analyzer has seen, even if the name means another image by now
	if !strings.Contains(ref, "@") {
		ref = nameOf(*a.RunImage)
	}
	opened, img, err := openRunImage(ctx, source, ref)
	if err != nil {
		return a, err
	}
	if _, err := saveBase(ctx, source, cache, ref, img); err != nil {
		return a, fmt.Errorf("run image %s: %w", ref, err)
	}
	opened.Image, opened.Extend = a.RunImage.Image, true
	a.RunImage = opened
	return a, nil
}

// saveBase saves one image and returns its digest reference.
func saveBase(ctx context.Context, source image.Source, cache, ref string, img v1.Image) (string, error) {
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	if err := (archive.Layout{Dir: filepath.Join(cache, "base", digest.String())}).WriteSparse(ctx, img, 0); err != nil {
		return "", err
	}
	return image.Pin(source, ref, img)
}

// entryOf finds the entry of run.toml that has ref as image or mirror.
func entryOf(run spec.RunTOML, ref string) *spec.RunImageEntry {
	want := tagless(ref)
	for i, e := range run.Images {
		for _, candidate := range append([]string{e.Image}, e.Mirrors...) {
			if tagless(candidate) == want {
				return &run.Images[i]
			}
		}
	}
	return nil
}

// runImageEntry is what the app image says of its run image's names: the entry
// of run.toml that has it, else the first one (Platform API, "Run Image
// Resolution"); without run.toml, or if an extension may have chosen it, the
// name alone.
func runImageEntry(run spec.RunTOML, ref string, chosen bool) spec.RunImageEntry {
	if e := entryOf(run, ref); e != nil {
		return *e
	}
	if len(run.Images) > 0 && !chosen {
		return run.Images[0]
	}
	return spec.RunImageEntry{Image: ref}
}

// tagless spells a reference so that the same image has one spelling: with its
// registry and tag, without a digest.
func tagless(ref string) string {
	named, _, _ := strings.Cut(ref, "@")
	tag, err := name.NewTag(named)
	if err != nil {
		return ref
	}
	return tag.Name()
}
