package phase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Detected is what a detection hands over to the phases after it: group.toml,
// plan.toml and analyzed.toml.
type Detected struct {
	Group    spec.Group
	Plan     spec.Plan
	Analyzed spec.Analyzed
}

// Generate lets the image extensions of the group, in order, each with its
// share of the plan, write their Dockerfiles below dirs.Generated (Platform
// API, "detector"; Image Extension Interface, "Generation"). An extension
// without bin/generate has its Dockerfiles ready: they are copied.
//
// The plan of what it returns is without the entries that extensions met;
// analyzed.toml says whether the build image is to be extended, which run image
// the last run.Dockerfile that names one chose, and whether that is to be
// extended. run are the run images that are known; another one is warned of.
//
// It stops at the first extension that fails: the error carries
// spec.ExitExtension then, ExitBuildpackAPI for one of an unsupported API, and
// ExitGenerate for everything else, such as a Dockerfile that breaks the rules.
func Generate(ctx context.Context, r sandbox.Runner, dirs Dirs, set Setting, d Detected, run spec.RunTOML, sink event.Sink) (Detected, error) {
	g := &generator{dirs: dirs, set: set, inputs: set.inputs(dirs), sink: sink, plan: newOpenPlan(d.Plan)}
	d, err := g.run(ctx, r, d, run)
	if _, coded := errors.AsType[*spec.ExitError](err); err != nil && !coded {
		err = spec.Exit(spec.ExitGenerate, err)
	}
	return d, err
}

// generator is the state of one Generate.
type generator struct {
	dirs   Dirs
	set    Setting
	inputs buildpack.Inputs
	sink   event.Sink
	plan   openPlan

	builds bool // there is a build.Dockerfile
	runs   []runDockerfile
}

func (g *generator) run(ctx context.Context, r sandbox.Runner, d Detected, known spec.RunTOML) (Detected, error) {
	catalog := newCatalog(g.dirs.roots())
	var members []buildpack.Buildpack
	for _, e := range d.Group.GroupExtensions {
		e.Extension = true
		ext, err := catalog.find(e)
		if err != nil {
			return Detected{}, err
		}
		members = append(members, ext)
	}
	if err := os.MkdirAll(g.dirs.Generated, 0o777); err != nil {
		return Detected{}, err
	}
	for _, ext := range members {
		if err := g.one(ctx, r, ext); err != nil {
			return Detected{}, err
		}
	}
	analyzed, err := g.chooseRunImage(d.Analyzed, known)
	if err != nil {
		return Detected{}, err
	}
	if spec.Has(g.set.PlatformAPI, spec.PlatformBuildImageExtend) && len(members) > 0 {
		build := spec.BuildImage{Extend: g.builds}
		if analyzed.BuildImage != nil {
			build.Reference = analyzed.BuildImage.Reference
		}
		analyzed.BuildImage = &build
	}
	return Detected{Group: d.Group, Plan: spec.Plan{Entries: g.plan}, Analyzed: analyzed}, nil
}

// one lets one extension generate and takes in what it left.
func (g *generator) one(ctx context.Context, r sandbox.Runner, ext buildpack.Buildpack) error {
	dir, done, err := g.outputDir(ext)
	if err != nil {
		return err
	}
	defer done()
	plan := g.plan.shareOf(ext)
	if ext.HasGenerate() {
		err = g.execute(ctx, r, ext, dir, plan)
	} else {
		err = copyPrepared(ctx, ext, dir)
	}
	if err != nil {
		return err
	}
	g.plan.meet(ext, nil)
	out, err := ext.ReadGenerated(dir)
	if err != nil {
		return err
	}
	for _, sentence := range out.Unused {
		warn(g.sink, "%s", sentence)
	}
	return g.take(ext, out)
}

// outputDir makes the empty directory that ext writes to: its place below
// <generated>, or, where a Dockerfile has a place of its own there, one that is
// gone when done is called.
func (g *generator) outputDir(ext buildpack.Buildpack) (dir string, done func(), err error) {
	if !spec.Has(g.set.PlatformAPI, spec.PlatformGeneratedByID) {
		dir, err = os.MkdirTemp("", "generate-")
		return dir, func() { _ = layer.Remove(dir) }, err
	}
	dir = filepath.Join(g.dirs.Generated, spec.EscapeID(ext.Info().ID))
	return dir, func() {}, makeEmpty(dir)
}

// makeEmpty makes a directory in place of whatever an earlier build left there.
func makeEmpty(dir string) error {
	if err := layer.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.MkdirAll(dir, 0o777)
}

// execute runs bin/generate and turns a failure into the error for it.
func (g *generator) execute(ctx context.Context, r sandbox.Runner, ext buildpack.Buildpack, dir string, plan spec.BuildpackPlan) error {
	name := ext.String()
	code, err := told(g.sink, name, "generate", func(stdout, stderr io.Writer) (int, error) {
		return ext.Generate(ctx, r, g.inputs, dir, plan, stdout, stderr)
	})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("generate of %s: %w", name, ctx.Err())
	case err != nil:
		return spec.Exit(spec.ExitExtension, fmt.Errorf("generate of %s: %w", name, err))
	case code != 0:
		return spec.Exit(spec.ExitExtension, fmt.Errorf("generate of %s: bin/generate exited with %d", name, code))
	}
	return nil
}

// copyPrepared copies the Dockerfiles that an extension has ready to where the
// extender looks for them.
func copyPrepared(ctx context.Context, ext buildpack.Buildpack, dir string) error {
	from, err := filepath.EvalSymlinks(ext.Prepared())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing to say about either image
	}
	if err == nil {
		err = layer.Copy(ctx, dir, layer.Stack{Upper: from})
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // files in it get other names
	}
	if err != nil {
		return fmt.Errorf("prepared Dockerfiles of %s: %w", ext, err)
	}
	return nil
}

// take checks the Dockerfiles and puts them where the extender looks for them.
func (g *generator) take(ext buildpack.Buildpack, out buildpack.Generated) error {
	if out.Build != nil {
		if _, err := g.check(ext, dockerfile.Build, out.Build, out.Args.Build); err != nil {
			return err
		}
		if err := g.place(ext, dockerfile.Build, out.Build, out.Config); err != nil {
			return err
		}
		g.builds = true
	}
	if out.Run != nil {
		checked, err := g.check(ext, dockerfile.Run, out.Run, out.Args.Run)
		if err != nil {
			return err
		}
		if err := g.place(ext, dockerfile.Run, out.Run, out.Config); err != nil {
			return err
		}
		g.runs = append(g.runs, runDockerfile{extension: ext.String(), path: g.placeOf(ext, dockerfile.Run), Checked: checked})
	}
	if len(out.Contexts) > 0 && !spec.Has(g.set.PlatformAPI, spec.PlatformGeneratedByID) {
		warn(g.sink, "%s of %s is not used: platform API %s knows no contexts but the app", out.Contexts[0], ext, g.set.PlatformAPI)
	}
	return nil
}

func (g *generator) check(ext buildpack.Buildpack, kind dockerfile.Kind, body []byte, args spec.ExtendArgs) (dockerfile.Checked, error) {
	checked, err := dockerfile.Check(body, fmt.Sprintf("%s.Dockerfile of %s", kind, ext), kind, args.Map())
	for _, sentence := range checked.Warnings {
		warn(g.sink, "%s", sentence)
	}
	if err == nil && kind == dockerfile.Run && checked.Extends && !spec.Has(g.set.PlatformAPI, spec.PlatformRunImageExtension) {
		err = fmt.Errorf("run.Dockerfile of %s extends the run image, which platform API %s cannot: it can only name another one, by FROM alone", ext, g.set.PlatformAPI)
	}
	return checked, err
}

// placeOf is where the extender looks for a Dockerfile.
func (g *generator) placeOf(ext buildpack.Buildpack, kind dockerfile.Kind) string {
	id := spec.EscapeID(ext.Info().ID)
	if spec.Has(g.set.PlatformAPI, spec.PlatformGeneratedByID) {
		return filepath.Join(g.dirs.Generated, id, string(kind)+".Dockerfile")
	}
	return filepath.Join(g.dirs.Generated, string(kind), id, "Dockerfile")
}

// place writes a Dockerfile and its arguments to where they are looked for,
// unless the extension did so itself.
func (g *generator) place(ext buildpack.Buildpack, kind dockerfile.Kind, body, config []byte) error {
	if spec.Has(g.set.PlatformAPI, spec.PlatformGeneratedByID) {
		return nil
	}
	file := g.placeOf(ext, kind)
	if err := makeEmpty(filepath.Dir(file)); err != nil {
		return err
	}
	if config != nil {
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), buildpack.ExtendConfig), config, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(file, body, 0o644)
}

// runDockerfile is a run.Dockerfile that keeps the rules.
type runDockerfile struct {
	extension string // id@version
	path      string
	dockerfile.Checked
}

// chooseRunImage finds out which run image the run.Dockerfiles ask for. Those
// before the one that decides get another name, so that nobody applies them.
func (g *generator) chooseRunImage(a spec.Analyzed, known spec.RunTOML) (spec.Analyzed, error) {
	a, ignored, err := selectRunImage(a, g.runs)
	if err != nil {
		return a, err
	}
	for _, f := range g.runs[:ignored] {
		aside := f.path + ".ignore"
		if err := layer.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
		if err := os.Rename(f.path, aside); err != nil {
			return a, err
		}
		info(g.sink, "run.Dockerfile of %s is ignored: %s chooses another run image", f.extension, g.runs[ignored].extension)
	}
	if len(g.runs) > 0 && g.runs[ignored].From != "" {
		info(g.sink, "run image %s, chosen by %s", a.RunImage.Image, g.runs[ignored].extension)
		if spec.Has(g.set.PlatformAPI, spec.PlatformTargets) && entryOf(known, a.RunImage.Image) == nil {
			warn(g.sink, "run image %s is not in run.toml", a.RunImage.Image)
		}
	}
	return a, nil
}

// selectRunImage is the run image that run.Dockerfiles, in the order of the
// group, lead to: the one that the last to name another names. ignored is how
// many are before that one and have no effect (Platform API, "detector").
func selectRunImage(a spec.Analyzed, list []runDockerfile) (_ spec.Analyzed, ignored int, err error) {
	if len(list) == 0 {
		return a, 0, nil
	}
	for i, f := range slices.Backward(list) {
		if f.From == "" {
			continue
		}
		extend := f.Extends || i < len(list)-1
		// What is known of the old one is not so of the new one; the restorer
		// finds it out.
		a.RunImage = &spec.RunImage{Image: f.From, Reference: f.From, Extend: extend}
		return a, i, nil
	}
	if a.RunImage == nil || a.RunImage.Reference == "" {
		err := fmt.Errorf("run.Dockerfile of %s extends the run image, and analyzed.toml does not say which that is", list[0].extension)
		return a, 0, spec.WithHint(err, "the analyzer runs before the detector")
	}
	extended := *a.RunImage
	extended.Extend = true
	a.RunImage = &extended
	return a, 0, nil
}
