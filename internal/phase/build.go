package phase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Build runs bin/build of every buildpack of group in order, each with its
// share of plan and with the environment that the build layers of those before
// it make, and merges what they say of the image (Platform API, "builder";
// Buildpack API, "Build").
//
// Below dirs.Layers it creates <id>/ for each buildpack, renames layer
// directories that are for nothing to <layer>.ignore, and makes sbom/ hold the
// bills of materials of this build and nothing else; one that is there already
// is not written again. What is left for others to write is the returned value,
// as config/metadata.toml. What prints goes to sink as event.Output.
//
// It stops at the first buildpack that fails: the error carries
// spec.ExitBuildpack then, ExitBuildpackAPI for one of an unsupported API, and
// otherwise ExitBuild. A half-done <layers> is not cleaned up.
func Build(ctx context.Context, r sandbox.Runner, dirs Dirs, set Setting, group spec.Group, plan spec.Plan, sink event.Sink) (spec.BuildMetadata, error) {
	b := &build{dirs: dirs, inputs: set.inputs(dirs), sink: sink, plan: newOpenPlan(plan)}
	b.inputs.Env = set.Env.Clone()
	md, err := b.run(ctx, r, group)
	if _, coded := errors.AsType[*spec.ExitError](err); err != nil && !coded {
		err = spec.Exit(spec.ExitBuild, err)
	}
	return md, err
}

// build is the state of one Build.
type build struct {
	dirs   Dirs
	inputs buildpack.Inputs // its Env grows with every buildpack
	sink   event.Sink
	plan   openPlan

	processes processes
	sboms     []sbomFile
	metadata  spec.BuildMetadata
}

func (b *build) run(ctx context.Context, r sandbox.Runner, group spec.Group) (spec.BuildMetadata, error) {
	catalog := newCatalog(b.dirs.roots())
	var members []buildpack.Buildpack
	for _, e := range group.Group {
		e.Extension = false
		bp, err := catalog.find(e)
		if err != nil {
			return spec.BuildMetadata{}, err
		}
		members = append(members, bp)
	}
	if err := b.inputs.Check(); err != nil {
		return spec.BuildMetadata{}, err
	}
	for _, bp := range members {
		if err := b.one(ctx, r, bp); err != nil {
			return spec.BuildMetadata{}, err
		}
		b.metadata.Buildpacks = append(b.metadata.Buildpacks, bp.Element())
	}
	if err := syncSBOMs(b.dirs, b.sboms); err != nil {
		return spec.BuildMetadata{}, fmt.Errorf("SBOMs: %w", err)
	}
	b.metadata.Extensions = group.GroupExtensions
	b.metadata.Processes, b.metadata.DefaultProcessType = b.processes.merged()
	return b.metadata, nil
}

// one builds one buildpack and takes in what it left.
func (b *build) one(ctx context.Context, r sandbox.Runner, bp buildpack.Buildpack) error {
	dir, err := b.layersOf(bp)
	if err != nil {
		return err
	}
	plan := b.plan.shareOf(bp)
	if err := b.execute(ctx, r, bp, dir, plan); err != nil {
		return err
	}
	out, err := bp.ReadOutputs(dir, plan)
	if err != nil {
		return spec.Exit(spec.ExitBuild, err)
	}
	b.plan.meet(bp, out.Unmet)
	b.metadata.Labels = append(b.metadata.Labels, out.Launch.Labels...)
	b.metadata.Slices = append(b.metadata.Slices, out.Launch.Slices...)
	for _, warning := range b.processes.add(bp, out.Launch.Processes) {
		b.sink.Emit(event.Message{Level: event.Warn, Text: warning})
	}
	b.sboms = append(b.sboms, sbomFiles(bp, dir, out)...)
	for _, l := range out.Layers {
		if err := b.settle(ctx, dir, l); err != nil {
			return fmt.Errorf("layer %s of %s: %w", l.Name, bp, err)
		}
	}
	return nil
}

// execute runs bin/build and turns a failure into the error for it.
func (b *build) execute(ctx context.Context, r sandbox.Runner, bp buildpack.Buildpack, dir string, plan spec.BuildpackPlan) error {
	name := bp.String()
	code, err := told(b.sink, name, "build", func(stdout, stderr io.Writer) (int, error) {
		return bp.Build(ctx, r, b.inputs, dir, plan, stdout, stderr)
	})
	switch {
	case ctx.Err() != nil:
		return spec.Exit(spec.ExitBuild, fmt.Errorf("build of %s: %w", name, ctx.Err()))
	case err != nil:
		return spec.Exit(spec.ExitBuildpack, fmt.Errorf("build of %s: %w", name, err))
	case code != 0:
		return spec.Exit(spec.ExitBuildpack, fmt.Errorf("build of %s: bin/build exited with %d", name, code))
	}
	return nil
}

// told runs an executable and tells sink of its start, its output and its end.
func told(sink event.Sink, name, op string, run func(stdout, stderr io.Writer) (int, error)) (int, error) {
	sink.Emit(event.BuildpackStarted{Buildpack: name, Op: op})
	start := time.Now()
	stdout, stderr := event.NewLines(sink, name, false), event.NewLines(sink, name, true)
	code, err := run(stdout, stderr)
	stdout.Flush()
	stderr.Flush()
	sink.Emit(event.BuildpackFinished{Buildpack: name, Op: op, ExitCode: code, Elapsed: time.Since(start)})
	return code, err
}

// layersOf makes the buildpack's directory in <layers>. An earlier buildpack
// can have put something else there, and is not to lead this one elsewhere.
func (b *build) layersOf(bp buildpack.Buildpack) (string, error) {
	dir := filepath.Join(b.dirs.Layers, spec.EscapeID(bp.Info().ID))
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is not a directory", dir)
	}
	return dir, nil
}

// settle gives a layer its due: its environment to later buildpacks if it is
// for the build, another name if it is for nothing.
func (b *build) settle(ctx context.Context, dir string, l buildpack.Layer) error {
	if !l.Dir {
		return nil
	}
	path := filepath.Join(dir, l.Name)
	if l.Types == (spec.LayerTypes{}) {
		return ignore(ctx, path, os.Rename)
	}
	if !l.Types.Build {
		return nil
	}
	return addBuildLayer(b.inputs.Env, path)
}

// addBuildLayer applies a build layer: its directories, then env, then
// env.build, all of one layer before the next.
func addBuildLayer(e env.Env, path string) error {
	if err := e.AddLayerDirs(path, false); err != nil {
		return err
	}
	if err := e.AddDir(filepath.Join(path, "env")); err != nil {
		return err
	}
	return e.AddDir(filepath.Join(path, "env.build"))
}

// ignore renames a layer directory to <layer>.ignore, so that nobody takes it
// for a layer. An overlay cannot rename a directory of its lower trees, such
// as a restored cache layer: then it is copied. rename is os.Rename.
func ignore(ctx context.Context, path string, rename func(from, to string) error) error {
	aside := path + ".ignore"
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	err := rename(path, aside)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	if err := layer.Copy(ctx, aside, layer.Stack{Upper: path}); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// openPlan is the part of the build plan that nobody has met yet.
type openPlan []spec.PlanEntry

func newOpenPlan(plan spec.Plan) openPlan { return slices.Clone(plan.Entries) }

// shareOf is what bp is to provide: every require of every open entry that
// names it as a provider.
func (p openPlan) shareOf(bp buildpack.Buildpack) spec.BuildpackPlan {
	var share spec.BuildpackPlan
	for _, entry := range p {
		if providedBy(entry, bp) {
			share.Entries = append(share.Entries, entry.Requires...)
		}
	}
	return share
}

// meet closes the entries that bp provides, but for those named in unmet,
// which stay for the next provider.
func (p *openPlan) meet(bp buildpack.Buildpack, unmet []string) {
	*p = slices.DeleteFunc(*p, func(entry spec.PlanEntry) bool {
		return providedBy(entry, bp) && !slices.Contains(unmet, entry.Requires[0].Name)
	})
}

// providedBy tells whether bp is among the providers of an entry that requires
// something.
func providedBy(entry spec.PlanEntry, bp buildpack.Buildpack) bool {
	info := bp.Info()
	return len(entry.Requires) > 0 && slices.ContainsFunc(entry.Providers, func(p spec.PlanProvider) bool {
		return p.Extension == bp.Extension && p.ID == info.ID && p.Version == info.Version
	})
}
