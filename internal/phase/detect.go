package phase

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Results of a member in event.GroupTried.
const (
	resultPass    = "pass"
	resultFail    = "fail"
	resultError   = "error"
	resultSkipped = "skipped"
)

// Detect finds the first group of order whose buildpacks say that they can
// build the app and agree on a build plan (Platform API, "detector"; Buildpack
// API, "Detection"). The members of a group are asked in parallel, and every
// buildpack at most once. The order should have gone through WithSystem.
//
// Each group that was tried is told to sink as an event.GroupTried. What the
// buildpacks print is a debug message, and an event.Output as well for those
// that failed in an unexpected way, or for all when no group passes.
//
// An error carries spec.ExitDetectFail when no group passed, ExitDetectError
// when moreover a buildpack failed otherwise than by exit code 100,
// ExitBuildpackAPI for a buildpack of an unsupported API, else ExitDetect.
// Whether this process may run foreign code as root is the caller's decision.
func Detect(ctx context.Context, r sandbox.Runner, dirs Dirs, set Setting, order spec.Order, sink event.Sink) (spec.Group, spec.Plan, error) {
	group, plan, err := detect(ctx, r, dirs, set, order, sink)
	if _, coded := errors.AsType[*spec.ExitError](err); err != nil && !coded {
		err = spec.Exit(spec.ExitDetect, err)
	}
	return group, plan, err
}

func detect(ctx context.Context, r sandbox.Runner, dirs Dirs, set Setting, order spec.Order, sink event.Sink) (spec.Group, spec.Plan, error) {
	if !spec.Has(set.PlatformAPI, spec.PlatformExtensions) {
		order.OrderExtensions = nil
	}
	c := newCatalog(dirs.roots())
	if err := c.check(order); err != nil {
		return spec.Group{}, spec.Plan{}, err
	}
	if err := set.inputs(dirs).Check(); err != nil {
		return spec.Group{}, spec.Plan{}, err
	}
	d := &detector{inputs: set.inputs(dirs), set: set, sink: sink, done: map[string]buildpack.Detection{}}
	x := expansion{catalog: c, execEnv: set.execEnv(), try: func(g []member) (bool, error) { return d.try(ctx, r, g) }}
	passed, err := x.walk(ctx, order)
	if err != nil {
		return spec.Group{}, spec.Plan{}, err
	}
	if !passed {
		return spec.Group{}, spec.Plan{}, d.noGroup(x.tried)
	}
	return d.group, d.plan, nil
}

// detector is the state of one Detect: what is known of each buildpack.
type detector struct {
	inputs buildpack.Inputs
	set    Setting
	sink   event.Sink

	done    map[string]buildpack.Detection
	silent  []event.Output // output of proper passes and fails, in order
	errored bool

	group spec.Group
	plan  spec.Plan
}

// verdict is what became of one member of a group.
type verdict struct {
	member
	result, reason string
	plan           spec.DetectPlan
	alternative    int // the one of several that won, from 1
}

// try asks the members of one group and lets those that passed resolve their
// plan. It reports whether the group is the one.
func (d *detector) try(ctx context.Context, r sandbox.Runner, group []member) (bool, error) {
	if err := d.ask(ctx, r, group); err != nil {
		return false, err
	}
	verdicts := make([]verdict, len(group))
	for i, m := range group {
		verdicts[i] = d.judge(m)
	}
	tried := event.GroupTried{}
	if viable(verdicts) {
		plan, indices, err := resolveVerdicts(ctx, verdicts)
		if err != nil {
			return false, err
		}
		d.take(&tried, verdicts, plan, indices)
	}
	for _, v := range verdicts {
		tried.Group = append(tried.Group, event.MemberResult{
			Buildpack: v.bp.String(), Optional: v.optional, Result: v.result, Reason: v.reason,
			Extension: v.bp.Extension, Alternative: v.alternative,
		})
	}
	d.sink.Emit(tried)
	return tried.Passed, nil
}

// viable tells whether nobody who has to pass did not, and a buildpack did.
func viable(verdicts []verdict) bool {
	passed := false
	for _, v := range verdicts {
		if !v.optional && (v.result == resultFail || v.result == resultError) {
			return false
		}
		passed = passed || v.result == resultPass && !v.bp.Extension
	}
	return passed
}

// resolveVerdicts resolves the plan of those that passed; indices leads from
// their candidates back to the verdicts.
func resolveVerdicts(ctx context.Context, verdicts []verdict) (r resolution, indices []int, err error) {
	var candidates []candidate
	for i, v := range verdicts {
		if v.result == resultPass {
			candidates = append(candidates, newCandidate(v.member, v.plan))
			indices = append(indices, i)
		}
	}
	r, err = resolve(ctx, candidates)
	return r, indices, err
}

// take records a resolution: the group and plan if it is one, the reasons of
// those who had to go, and the problems.
func (d *detector) take(tried *event.GroupTried, verdicts []verdict, r resolution, indices []int) {
	for i, problem := range r.dropped {
		v := &verdicts[indices[i]]
		v.result, v.reason = resultSkipped, problem.String()
	}
	tried.Passed = r.ok
	if !r.ok {
		tried.Problems = r.problems
		for i := range indices { // nobody is left when only droppable ones had problems
			if problem, ok := r.dropped[i]; ok && len(r.problems) == 0 {
				tried.Problems = append(tried.Problems, problem)
			}
		}
		var why []string
		for _, p := range tried.Problems {
			why = append(why, p.String())
		}
		if tried.Plan = strings.Join(why, "; "); tried.Plan == "" {
			tried.Plan = "the build plan leaves no buildpack in the group"
		}
		return
	}
	d.plan, tried.Entries = r.plan, r.entries
	for _, i := range r.kept {
		if v := &verdicts[indices[i]]; len(v.plan.Or) > 0 {
			v.alternative = r.choice[i] + 1
		}
		m := verdicts[indices[i]].member
		if m.bp.Extension {
			d.group.GroupExtensions = append(d.group.GroupExtensions, m.bp.Element())
		} else {
			d.group.Group = append(d.group.Group, m.bp.Element())
		}
	}
}

// ask runs bin/detect of those members that have not been asked before.
func (d *detector) ask(ctx context.Context, r sandbox.Runner, group []member) error {
	var fresh []buildpack.Buildpack
	for _, m := range group {
		key := keyOf(m.bp.Extension, m.bp.String())
		if _, ok := d.done[key]; ok || d.outside(m) != "" || d.mismatch(m) != "" {
			continue
		}
		fresh = append(fresh, m.bp)
	}
	results := make([]buildpack.Detection, len(fresh))
	var all errgroup.Group
	all.SetLimit(max(4, runtime.NumCPU())) // detects mostly wait for a shell to start
	for i, b := range fresh {
		all.Go(func() error {
			d.sink.Emit(event.BuildpackStarted{Buildpack: b.String(), Op: "detect"})
			start := time.Now()
			results[i] = b.Detect(ctx, r, d.inputs)
			d.sink.Emit(event.BuildpackFinished{Buildpack: b.String(), Op: "detect", ExitCode: results[i].Code, Elapsed: time.Since(start)})
			return nil
		})
	}
	_ = all.Wait() // no function fails
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, b := range fresh {
		d.record(b, results[i])
	}
	return nil
}

// record keeps a result and passes on what the buildpack printed.
func (d *detector) record(b buildpack.Buildpack, result buildpack.Detection) {
	d.done[keyOf(b.Extension, b.String())] = result
	d.sink.Emit(detected(b, result))
	out := event.Output{Buildpack: b.String(), Text: string(result.Output)}
	if len(result.Output) > 0 && !strings.HasSuffix(out.Text, "\n") {
		out.Text += "\n"
	}
	if result.Errored() {
		if out.Text != "" {
			d.sink.Emit(out)
		}
		return
	}
	if out.Text == "" {
		return
	}
	d.silent = append(d.silent, out)
	for line := range strings.Lines(out.Text) {
		d.sink.Emit(event.Message{Level: event.Debug, Text: b.String() + ": " + strings.TrimRight(line, "\r\n")})
	}
}

// maxToldNames bounds the names of dependencies that are told of one buildpack,
// in bytes: events are lines of bounded length.
const maxToldNames = 128 << 10

// detected tells what a bin/detect said.
func detected(b buildpack.Buildpack, result buildpack.Detection) event.Detected {
	told := event.Detected{Buildpack: b.String(), Extension: b.Extension, ExitCode: result.Code,
		Output: event.CleanLines(strings.ToValidUTF8(string(result.Output), "?"))}
	if result.Err != nil {
		told.Err = result.Err.Error()
	}
	room := maxToldNames
	if !result.Passed() {
		return told
	}
	for _, s := range append([]spec.PlanSections{result.Plan.PlanSections}, result.Plan.Or...) {
		var a event.Alternative
		for _, p := range s.Provides {
			if room -= len(p.Name) + 4; room > 0 {
				a.Provides = append(a.Provides, p.Name)
			}
		}
		for _, r := range s.Requires {
			if room -= len(r.Name) + 4; room > 0 {
				a.Requires = append(a.Requires, r.Name)
			}
		}
		if room -= 4; room > 0 {
			told.Alternatives = append(told.Alternatives, a)
		}
	}
	return told
}

// judge says what became of a member in the group at hand.
func (d *detector) judge(m member) verdict {
	v := verdict{member: m}
	if why := d.outside(m); why != "" {
		v.result, v.reason = resultSkipped, why
		return v
	}
	if why := d.mismatch(m); why != "" {
		v.result, v.reason = resultError, why
		d.errored = true
		return v
	}
	result := d.done[keyOf(m.bp.Extension, m.bp.String())]
	switch {
	case result.Passed():
		v.result, v.plan = resultPass, result.Plan
	case result.Errored():
		v.result, v.reason = resultError, errorReason(result)
		d.errored = true
	default:
		v.result, v.reason = resultFail, lastWords(result.Output)
		if v.reason == "" {
			v.reason = "it gave no reason (bin/detect exited with 100 and printed nothing)"
		}
	}
	return v
}

// outside says why a member does not count in this execution environment.
func (d *detector) outside(m member) string {
	env := d.set.execEnv()
	if env == "" || m.bp.RunsIn(env) {
		return ""
	}
	return fmt.Sprintf("it is for the execution environment %s, not %s", strings.Join(m.bp.Info().ExecEnv, " or "), env)
}

// mismatch says why a member that must take part cannot build for the target.
// An optional one is asked anyway, as the reference does.
func (d *detector) mismatch(m member) string {
	if m.optional || !spec.Has(d.set.PlatformAPI, spec.PlatformTargets) || m.bp.Supports(d.set.Target) {
		return ""
	}
	return "it does not support the target " + targetName(d.set.Target)
}

// targetName is a target in one word: linux/amd64 ubuntu@22.04.
func targetName(t spec.Target) string {
	name := t.OS + "/" + t.Arch
	if t.Variant != "" {
		name += "/" + t.Variant
	}
	if t.Distro != nil && t.Distro.Name != "" {
		name += " " + t.Distro.Name + "@" + t.Distro.Version
	}
	return name
}

// errorReason is what to say of a detection that went wrong.
func errorReason(r buildpack.Detection) string {
	if r.Err != nil {
		return r.Err.Error()
	}
	reason := fmt.Sprintf("bin/detect exited with %d", r.Code)
	if words := lastWords(r.Output); words != "" {
		reason += ": " + words
	}
	return reason
}

// Limits of what is quoted from a buildpack's output: enough for a sentence or
// two, little enough to read a list of them.
const (
	quotedLines = 3
	quotedBytes = 400
)

// lastWords are the last lines with text that a buildpack printed.
func lastWords(output []byte) string {
	var lines []string
	for _, line := range slices.Backward(bytes.Split(output, []byte("\n"))) {
		text := strings.TrimSpace(event.Clean(strings.ToValidUTF8(string(line), "?")))
		if text == "" {
			continue
		}
		if lines = append(lines, text); len(lines) == quotedLines {
			break
		}
	}
	slices.Reverse(lines)
	words := strings.Join(lines, "; ")
	if len(words) > quotedBytes {
		words = "..." + strings.ToValidUTF8(words[len(words)-quotedBytes:], "")
	}
	return words
}

// noGroup is the error for when no group passed; it shows what the buildpacks
// had said until then in silence.
func (d *detector) noGroup(tried int) error {
	for _, out := range d.silent {
		d.sink.Emit(out)
	}
	if d.errored {
		err := fmt.Errorf("no group of buildpacks passed detection (%d tried), and at least one buildpack failed in an unexpected way", tried)
		return spec.Exit(spec.ExitDetectError, err)
	}
	return spec.Exit(spec.ExitDetectFail, fmt.Errorf("no group of buildpacks passed detection (%d tried)", tried))
}
