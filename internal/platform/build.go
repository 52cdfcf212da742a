package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Build makes the image that req asks for: it makes everything ready, plans,
// and carries the plan out. What it returns was also told as the last event.
//
// On any failure, also when ctx ends, no process, mount or scratch directory
// stays, and every name still means what it meant before.
func (p *Platform) Build(ctx context.Context, req Request) (built event.Built, err error) {
	began := time.Now()
	if err := req.checkImages(); err != nil {
		return event.Built{}, err
	}
	b, err := p.prepare(ctx, req, (*build).openPlaces)
	if err != nil {
		return event.Built{}, err
	}
	defer func() { err = errors.Join(err, b.end(ctx)) }()
	if err := b.carryOutAll(ctx, Plan(b.req, b.root.Builder)); err != nil {
		return event.Built{}, err
	}
	if err := b.keep(context.WithoutCancel(ctx)); err != nil {
		p.warn("the next build will do more than it must: %v", err)
	}
	b.summarise()
	b.built.Elapsed = time.Since(began)
	p.Events.Emit(b.built)
	return b.built, nil
}

// carryOutAll carries out steps one after the other, and says so.
func (b *build) carryOutAll(ctx context.Context, steps []Step) error {
	for _, step := range steps {
		start := time.Now()
		b.Events.Emit(event.PhaseStarted{Phase: step.Phase})
		err := b.carryOut(ctx, step)
		took := time.Since(start)
		done := event.PhaseFinished{Phase: step.Phase, Elapsed: took}
		if err != nil {
			done.Err = err.Error()
			b.Events.Emit(done)
			return err
		}
		b.Events.Emit(done)
		b.built.Phases = append(b.built.Phases, event.PhaseTime{Phase: step.Phase, Elapsed: took})
	}
	return nil
}

// end puts everything back, also when ctx has ended.
func (b *build) end(ctx context.Context) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return b.close(clean)
}

// cleanupTime bounds what happens after a build was cancelled: long enough to
// delete a large scratch tree, short enough for a person at Ctrl-C.
const cleanupTime = 30 * time.Second

// build is one build under way: everything its steps need, and what must be
// put back afterwards.
type build struct {
	*Platform
	req       Request
	root      builderRoot
	app       app
	scratch   string
	layers    sandbox.Overlay
	work      sandbox.Overlay          // /workspace
	kaniko    sandbox.Overlay          // /kaniko, of which only Upper counts
	facts     []sandbox.Mount          // this host's, for every foreign step
	inside    map[string]sandbox.Mount // what a step may name, by place
	worker    *sandbox.Worker
	copies    bool           // overlay is not to be had
	decided   *spec.Decision // nil where a detection decides
	extending *extending     // nil as long as no image is to be extended
	places    *lifecycle.Places
	to        *destinations
	restored  lowers
	tally     *tally
	built     event.Built
	undo      []func(context.Context) error
}

func (b *build) close(ctx context.Context) error {
	var errs []error
	for _, undo := range slices.Backward(b.undo) {
		errs = append(errs, undo(ctx))
	}
	return errors.Join(errs...)
}

// prepare checks the request and opens all that the build needs, cheap and
// likely mistakes first. What it needs of images besides the builder, open opens.
func (p *Platform) prepare(ctx context.Context, req Request, open func(*build, context.Context) error) (b *build, err error) {
	// Events pass a tally on their way, for the summary.
	b = &build{Platform: p}
	b.tally = &tally{sink: p.Events}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(context.WithoutCancel(ctx)))
		}
	}()
	if err := checkSource(req.Path); err != nil {
		return b, err
	}
	if _, err := ownPlace(req.Path, p.Store.Dir()); err != nil {
		return b, err
	}
	project, err := readProject(req)
	if err != nil {
		return b, err
	}
	for _, e := range projectWarnings(project) {
		p.Events.Emit(e)
	}
	b.req = req.withProject(project)
	if err := b.checkSettings(); err != nil {
		return b, err
	}
	if b.decided, err = readDecision(b.req.Plan); err != nil {
		return b, err
	}
	if b.root, err = p.openBuilder(ctx, b.req); err != nil {
		return b, err
	}
	if b.req.RunImage == "" && b.root.RunImage == "" {
		return b, badInput(fmt.Errorf("builder %s names no run image", b.root.Name), "name one with --run-image")
	}
	if err := open(b, ctx); err != nil {
		return b, err
	}
	if err := b.layOut(ctx, selectionOf(project)); err != nil {
		return b, err
	}
	b.places.AppDiffID = b.app.DiffID
	worker, report, err := p.startWorker(ctx, b.req.Isolation, b.root.UID, b.root.GID, b.scratch)
	if err != nil {
		return b, err
	}
	b.worker, b.copies, b.built.Isolation = worker, report.Copies, string(report.Tier)
	b.undo = append(b.undo, func(context.Context) error { return b.worker.Close() })
	return b, nil
}

// checkImages holds every name of the image against the rules of references, and
// looks at where it is to go.
func (r Request) checkImages() error {
	for _, n := range append([]string{r.Image}, r.Tags...) {
		name, err := ParseImageName(n)
		if err != nil {
			return err
		}
		if strings.HasPrefix(name.Short, "kiln/") {
			return badInput(fmt.Errorf("image name %q: names that begin with kiln/ are kiln's own", n), "choose another name")
		}
	}
	for _, o := range r.Outputs {
		if err := o.check(); err != nil {
			return err
		}
		if o.Kind == ToRegistry {
			if err := phase.CheckOneRegistry(r.Image, r.Tags); err != nil {
				return badInput(err, "publish to each registry by a build of its own: the second has nothing to do but send")
			}
		}
	}
	return nil
}

// checkSettings looks at what else the request says.
func (b *build) checkSettings() error {
	if err := checkEnv(b.req.Env); err != nil {
		return err
	}
	if err := spec.ValidateExecEnv(b.req.execEnv()); err != nil {
		return badInput(err, "write it as --exec-env test")
	}
	return checkSandbox(b.req.Network, b.req.Isolation, b.req.Volumes)
}

// checkInputs refuses an output that would overwrite what the build is made
// from: a builder or run image of the same name.
func (b *build) checkInputs() error {
	inputs := map[string]string{}
	for what, ref := range map[string]string{"builder": b.root.Name, "run image": cmp.Or(b.req.RunImage, b.root.RunImage)} {
		if n, err := ParseImageName(bareName(ref)); err == nil {
			inputs[n.Full] = what
		}
	}
	names := slices.Clone(b.req.Buildpacks)
	for _, e := range slices.Concat(b.req.Group, b.req.Pre, b.req.Post) {
		names = append(names, e.URI)
	}
	for _, bp := range names {
		if n, err := ParseImageName(strings.TrimPrefix(bareName(bp), "docker://")); err == nil {
			inputs[n.Full] = "buildpack"
		}
	}
	for _, n := range append([]string{b.req.Image}, b.req.Tags...) {
		name, err := ParseImageName(n)
		if err != nil {
			return err
		}
		if what, clash := inputs[name.Full]; clash {
			return badInput(fmt.Errorf("image name %q is also the name of the %s: the build would overwrite it", n, what), "choose another name for the image")
		}
	}
	return b.checkFiles()
}

// checkFiles refuses an output file or folder that an input is read from.
func (b *build) checkFiles() error {
	for what, ref := range map[string]string{"builder": b.req.Builder, "run image": b.req.RunImage} {
		if _, _, ok := archive.Parse(ref); !ok {
			continue
		}
		_, rest, _ := strings.Cut(ref, ":")
		path, _, _ := strings.Cut(rest, ":")
		for _, o := range b.req.Outputs {
			if o.Path != "" && samePath(o.Path, path) {
				return badInput(fmt.Errorf("output %s:%s is also where the %s is: the build would overwrite it", o.Kind, o.Path, what), "choose another place for the image")
			}
		}
	}
	return nil
}

func samePath(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// layOut makes the directories that the steps see.
func (b *build) layOut(ctx context.Context, sel selection) error {
	run, err := b.Store.Run(ctx)
	if err != nil {
		return err
	}
	b.scratch = run.Dir
	b.undo = append(b.undo, func(context.Context) error { return run.Close() })
	extra, err := b.findBuildpacks(ctx, b.req, b.root, b.scratch)
	if err != nil {
		return err
	}
	// kiln's lifecycle stays on top: it is not a buildpack's to replace.
	b.root.Lowers = dedupe(slices.Concat(b.root.Lowers[:1], extra.Lowers, b.root.Lowers[1:]))
	if b.app, err = b.snapshot(ctx, b.req.Path, sel, b.scratch); err != nil {
		return err
	}
	if b.layers, err = newOverlay(b.scratch, "layers", nil); err != nil {
		return err
	}
	if b.work, err = newOverlay(b.scratch, "workspace", []string{b.app.Dir}); err != nil {
		return err
	}
	if b.kaniko, err = newOverlay(b.scratch, "kaniko", nil); err != nil {
		return err
	}
	if err := b.decide(extra); err != nil {
		return err
	}
	platformDir, err := b.platformDir()
	if err != nil {
		return err
	}
	b.setPlaces(platformDir, b.req.Volumes)
	facts, err := b.hostMounts()
	if err != nil {
		return err
	}
	b.facts = append(facts, extra.Mounts...)
	return nil
}

// platformDir lays out <platform>: what the user says beats what the host has.
func (b *build) platformDir() (string, error) {
	dir := filepath.Join(b.scratch, "platform")
	env := b.Host.userEnv()
	maps.Copy(env, b.req.Env)
	return dir, writeEnv(dir, env)
}

// hostMounts lays out what the foreign steps see of this host. Where Debian's
// packages come from is of use to builders that are Debian alone.
func (b *build) hostMounts() ([]sandbox.Mount, error) {
	sources, err := debianSources(b.req.Mirror, builtinSuite)
	if err != nil && b.req.Mirror != "" {
		return nil, err
	}
	system := dockerfile.SystemOf(layer.Stack{Lowers: b.root.Lowers})
	if system.Distro != "debian" {
		sources = nil
	}
	return b.Host.mounts(filepath.Join(b.scratch, "host"), sourcesOf(sources, system.Codename))
}

// setPlaces says what belongs to the places of the build container that a step
// may name.
func (b *build) setPlaces(platformDir string, volumes []Volume) {
	b.inside = map[string]sandbox.Mount{
		dirLayers:   {Target: dirLayers, Overlay: &b.layers},
		dirApp:      {Target: dirApp, Overlay: &b.work},
		dirPlatform: {Target: dirPlatform, Source: platformDir, ReadOnly: true},
		dirKaniko:   {Target: dirKaniko, Overlay: &b.kaniko},
	}
	for _, v := range volumeMounts(volumes) {
		b.inside[v.Target] = v
	}
}

// mounts is what a foreign step sees over the builder's root: this host's
// facts, the buildpacks that the request brings, and the places that the step
// names.
func (b *build) mounts(step Step) ([]sandbox.Mount, error) {
	mounts := slices.Clone(b.facts)
	for _, place := range step.Mounts {
		m, ok := b.inside[place]
		if !ok {
			return nil, fmt.Errorf("%s: nothing in this build belongs to %s", step.Phase, place)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// dirs tells a trusted step where the places that it names are on this host,
// and the builder's own files.
func (b *build) dirs(step Step) map[string]layer.Stack {
	dirs := map[string]layer.Stack{dirSystem: b.root.stack(dirSystem)}
	for _, place := range step.Mounts {
		if o := b.inside[place].Overlay; o != nil {
			dirs[place] = layer.Stack{Upper: o.Upper, Lowers: o.Lowers}
		}
	}
	return dirs
}

// carryOut runs one step: a trusted one here, a foreign one in the sandbox, and
// of the extender what is foreign.
func (b *build) carryOut(ctx context.Context, step Step) error {
	switch {
	case step.Phase == "extender":
		return b.extend(ctx, step)
	case step.Foreign:
		return b.foreign(ctx, step)
	}
	return b.trusted(ctx, step)
}
