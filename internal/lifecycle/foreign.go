package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// defaultOrder is the order of builders that bring their own.
const defaultOrder = "/cnb/order.toml"

// defaultLifecycle is where the lifecycle and its SBOMs are.
const defaultLifecycle = "/cnb/lifecycle"

// detect is the detector.
func (h Host) detect(ctx context.Context, in inputs, environ []string) error {
	runner, err := h.runner(ctx, in, environ)
	if err != nil {
		return err
	}
	analyzed, err := h.analyzed(in)
	if err != nil {
		return err
	}
	set := h.setting(in, analyzed, environ)
	decide := h.tryOrder
	if in.decided {
		decide = h.given
	}
	found, err := decide(ctx, runner, in, set)
	if err != nil {
		return err
	}
	found.Analyzed = analyzed
	if len(found.Group.GroupExtensions) > 0 {
		if found, err = h.generate(ctx, runner, in, set, found); err != nil {
			return err
		}
	}
	if err := h.deprecatedMembers(in, found.Group); err != nil {
		return err
	}
	if err := h.encode(in.group, found.Group); err != nil {
		return err
	}
	return h.encode(in.plan, found.Plan)
}

// given is the group and plan that somebody else has decided on.
func (h Host) given(_ context.Context, _ sandbox.Runner, in inputs, _ phase.Setting) (found phase.Detected, err error) {
	if found.Group, err = decode(h, in.group, spec.ReadGroup); err == nil {
		found.Plan, err = decode(h, in.plan, spec.ReadPlan)
	}
	return found, err
}

// tryOrder asks the buildpacks of the order.
func (h Host) tryOrder(ctx context.Context, runner sandbox.Runner, in inputs, set phase.Setting) (found phase.Detected, err error) {
	order, err := h.order(in)
	if err != nil {
		return found, err
	}
	if len(order.OrderExtensions) > 0 && spec.Has(in.api, spec.PlatformExtensions) && !spec.Has(in.api, spec.PlatformStableExtensions) {
		if err := h.experimental(in, "image extensions"); err != nil {
			return found, err
		}
	}
	var tried []event.GroupTried
	watched := event.Func(func(e event.Event) {
		if g, ok := e.(event.GroupTried); ok {
			tried = append(tried, g)
		}
		h.Events.Emit(e)
	})
	found.Group, found.Plan, err = phase.Detect(ctx, runner, in.dirs(), set, order, watched)
	if err != nil {
		if in.logFormat != "json" { // whoever reads that has the groups themselves
			for line := range strings.Lines(event.Explain(tried)) {
				h.Events.Emit(event.Message{Level: event.Info, Text: strings.TrimRight(line, "\n")})
			}
		}
	}
	return found, err
}

// generate lets the image extensions that take part write their Dockerfiles,
// and analyzed.toml say what becomes of the base images.
func (h Host) generate(ctx context.Context, runner sandbox.Runner, in inputs, set phase.Setting, found phase.Detected) (phase.Detected, error) {
	if in.whole {
		err := fmt.Errorf("image extension %s takes part, and the creator extends no images", found.Group.GroupExtensions[0])
		return found, spec.Exit(spec.ExitDetect, spec.WithHint(err, "run the phases one by one, with the extender"))
	}
	known, err := h.runImages(in)
	if err != nil {
		return found, spec.Exit(spec.ExitGenerate, err)
	}
	if found, err = phase.Generate(ctx, runner, in.dirs(), set, found, known, h.Events); err != nil {
		return found, err
	}
	return found, spec.Exit(spec.ExitGenerate, h.encode(in.analyzed, found.Analyzed.TOML()))
}

// order reads order.toml, and puts the system buildpacks into every group.
func (h Host) order(in inputs) (spec.Order, error) {
	from := in.order
	if from == "" {
		if from = in.layers + "/order.toml"; !h.exists(from) {
			from = defaultOrder
		}
	}
	order, err := decode(h, from, spec.ReadOrder)
	if errors.Is(err, fs.ErrNotExist) {
		return order, spec.WithHint(err, "the order of buildpacks is in <layers>/order.toml or %s, or where -order says", defaultOrder)
	}
	if err != nil || in.system == "" {
		return order, err
	}
	system, err := decodeOptional(h, in.system, spec.ReadSystem)
	return phase.WithSystem(in.api, order, system), err
}

// analyzed reads analyzed.toml, which need not be there for foreign phases.
func (h Host) analyzed(in inputs) (spec.Analyzed, error) {
	if in.analyzed == "" {
		return spec.Analyzed{}, nil
	}
	return decodeOptional(h, in.analyzed, spec.ReadAnalyzed)
}

// build is the builder.
func (h Host) build(ctx context.Context, in inputs, environ []string) error {
	runner, err := h.runner(ctx, in, environ)
	if err != nil {
		return err
	}
	group, err := decode(h, in.group, spec.ReadGroup)
	if err != nil {
		return err
	}
	plan, err := decode(h, in.plan, spec.ReadPlan)
	if err != nil {
		return err
	}
	analyzed, err := h.analyzed(in)
	if err != nil {
		return err
	}
	if err := h.deprecatedMembers(in, group); err != nil {
		return err
	}
	metadata, err := phase.Build(ctx, runner, in.dirs(), h.setting(in, analyzed, environ), group, plan, h.Events)
	if err != nil {
		return err
	}
	return h.encode(in.layers+"/config/metadata.toml", metadata.TOML(in.api))
}

// dirs are the directories that buildpacks work in. Foreign phases run where
// the buildpacks run, so they are not mapped.
func (in inputs) dirs() phase.Dirs {
	lifecycle := in.launcherSBOM
	if lifecycle == "" {
		lifecycle = defaultLifecycle // the builder has no flag for it
	}
	return phase.Dirs{
		App: string(in.app), Layers: string(in.layers), Platform: string(in.platform),
		BuildConfig: string(in.buildConfig), Buildpacks: string(in.buildpacks), Extensions: string(in.extensions), Generated: string(in.generated),
		Lifecycle: string(lifecycle),
	}
}

// setting is what else a build depends on. A run image that nobody analyzed is
// taken to be for the machine of this build.
func (h Host) setting(in inputs, analyzed spec.Analyzed, environ []string) phase.Setting {
	osRelease, _ := h.read("/etc/os-release") // an image without one has no distribution
	target := phase.TargetOf(analyzed, osRelease)
	if target.OS == "" && target.Arch == "" {
		target.OS, target.Arch = runtime.GOOS, runtime.GOARCH
	}
	return phase.Setting{PlatformAPI: in.api, ExecEnv: in.execEnv, Target: target, Env: env.FromContainer(environ)}
}
