package platform

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Detection is what `kiln plan` tells: what a build would do, and why. Its JSON
// is stable: fields may be added, those that are here keep their meaning
// (docs/plan.md). spec.ReadDecision reads Group, GroupExtensions and Entries.
type Detection struct {
	Builder string `json:"builder"`
	// RunImage is what the app would be put on: the one that was asked for or is
	// the builder's, unless an image extension chose another one.
	RunImage string `json:"runImage"`
	// ExtendBuild and ExtendRun say whether image extensions change the image
	// that is built in, and the one that the app is put on.
	ExtendBuild bool `json:"extendBuild"`
	ExtendRun   bool `json:"extendRun"`
	Passed      bool `json:"passed"`
	// Group and GroupExtensions are who would take part, in this order.
	Group           []spec.GroupElement `json:"group"`
	GroupExtensions []spec.GroupElement `json:"groupExtensions"`
	// Entries are the build plan: who meets what of whom.
	Entries []event.PlanEntry `json:"entries"`
	// Nearest are the groups that came nearest when none passed, nearest first.
	Nearest []event.Miss `json:"nearest"`
	// Groups are all that were tried, in order; the last one is the one that passed.
	Groups []event.GroupTried `json:"groups"`
	// Buildpacks is what every bin/detect said, each once.
	Buildpacks []event.Detected `json:"buildpacks"`
	// Phases are those that a build would go through.
	Phases []string `json:"phases"`
}

// planName stands for the name of the image that nobody makes: an image of
// kiln's own that no store has.
const planName = "kiln/plan"

// Detect finds out what Build would do with req, and does nothing of it: it
// analyzes the run image and runs bin/detect, and bin/generate of image
// extensions that take part, as a build does. What it needs of images comes to
// the store; nothing else there changes.
//
// When no group passes, the Detection says why and comes with an error, whose
// exit code is that of a build.
func (p *Platform) Detect(ctx context.Context, req Request) (d Detection, err error) {
	req.Image, req.Tags, req.Outputs, req.ClearCache = planName, nil, nil, true
	b, err := p.prepare(ctx, req, (*build).openImages)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, b.end(ctx)) }()
	told := &teller{sink: p.Events}
	b.tally.sink = told
	steps := Plan(b.req, b.root.Builder)
	detector := slices.IndexFunc(steps, func(s Step) bool { return s.Phase == "detector" })
	failed := b.carryOutAll(ctx, steps[:detector+1])
	if d, err = told.detection(); err != nil {
		return d, errors.Join(failed, err)
	}
	d.Builder, d.RunImage = b.root.Name, runImageOf(steps)
	for _, s := range steps {
		d.Phases = append(d.Phases, s.Phase)
	}
	switch code := spec.ExitCode(failed, 0); {
	case failed == nil:
	case code == spec.ExitDetectFail || code == spec.ExitDetectError:
		return d, spec.Exit(code, spec.WithHint(errors.New("no group of buildpacks fits the app"), "the plan says which group came nearest and what would make it pass; --verbose shows all that the buildpacks said"))
	default:
		return d, failed
	}
	if !d.Passed {
		return d, errors.New("the build plan is more than can be told of a detection")
	}
	return d, d.takeDocuments(layer.Stack{Upper: b.layers.Upper})
}

// runImageOf is the run image that the analyzer is asked for.
func runImageOf(steps []Step) string {
	for _, s := range steps {
		if i := slices.Index(s.Args, "-run-image"); s.Phase == "analyzer" && i >= 0 {
			return s.Args[i+1]
		}
	}
	return ""
}

// takeDocuments takes in what the detector handed over to a build.
func (d *Detection) takeDocuments(layers layer.Stack) error {
	body, err := layers.ReadFile("group.toml", spec.MaxDocument)
	if err != nil {
		return fmt.Errorf("the detector's group: %w", err)
	}
	group, err := spec.ReadGroup(body, "group.toml")
	if err != nil {
		return fmt.Errorf("the detector's group: %w", err)
	}
	d.Group = append(d.Group, group.Group...)
	d.GroupExtensions = append(d.GroupExtensions, group.GroupExtensions...)
	if body, err = layers.ReadFile("analyzed.toml", spec.MaxDocument); err != nil {
		return fmt.Errorf("what the detector says of images: %w", err)
	}
	analyzed, err := spec.ReadAnalyzed(body, "analyzed.toml")
	if err != nil {
		return fmt.Errorf("what the detector says of images: %w", err)
	}
	if run := analyzed.RunImage; run != nil {
		d.ExtendRun = run.Extend
		if len(d.GroupExtensions) > 0 && run.Image != "" {
			d.RunImage = run.Image
		}
	}
	d.ExtendBuild = analyzed.BuildImage != nil && analyzed.BuildImage.Extend
	return nil
}

// teller remembers what a detection tells, and passes everything on.
type teller struct {
	sink event.Sink

	mu    sync.Mutex
	tried []event.GroupTried
	said  []event.Detected
}

// Emit implements event.Sink.
func (t *teller) Emit(e event.Event) {
	t.mu.Lock()
	switch e := e.(type) {
	case event.GroupTried:
		t.tried = append(t.tried, e)
	case event.Detected:
		t.said = append(t.said, e)
	}
	t.mu.Unlock()
	t.sink.Emit(e)
}

// detection is what was told so far. Lists are never nil: in JSON they are there.
func (t *teller) detection() (Detection, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := Detection{
		Group: []spec.GroupElement{}, GroupExtensions: []spec.GroupElement{}, Entries: []event.PlanEntry{}, Phases: []string{},
		Nearest: []event.Miss{}, Groups: append([]event.GroupTried{}, t.tried...), Buildpacks: append([]event.Detected{}, t.said...),
	}
	d.Nearest = append(d.Nearest, event.Misses(t.tried)...)
	if n := len(t.tried); n > 0 && t.tried[n-1].Passed {
		d.Passed = true
		d.Entries = append(d.Entries, t.tried[n-1].Entries...)
	}
	return d, t.complete()
}

// complete says whether everything came through: an event over the limit of a
// line does not.
func (t *teller) complete() error {
	heard := map[string]bool{}
	for _, s := range t.said {
		heard[s.Buildpack] = true
	}
	for _, g := range t.tried {
		for _, m := range g.Group {
			if m.Result == "pass" && !heard[m.Buildpack] {
				return fmt.Errorf("%s said more than can be told of a detection", strings.TrimSpace(m.Buildpack))
			}
		}
	}
	return nil
}
