// Package lifecycle is the command line of the Cloud Native Buildpacks
// lifecycle: it alone reads flags, environment and the files that phases hand
// over, calls one phase, and writes its files and exit code. Table is all it
// knows of its inputs.
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Command finds the phase that a command line asks for: the base name of the
// program, or the first argument of a program that is named otherwise.
func Command(argv []string) (phase string, args []string, err error) {
	if len(argv) == 0 {
		argv = []string{"lifecycle"}
	}
	name := argv[0][strings.LastIndexByte(argv[0], '/')+1:]
	if isPhase(name) {
		return name, argv[1:], nil
	}
	if len(argv) > 1 {
		if verb := argv[1]; verbs[verb] != "" || isPhase(verb) {
			return cmp.Or(verbs[verb], verb), argv[2:], nil
		}
		if isVersion(argv[1:]) {
			return "", argv[1:], nil
		}
	}
	return "", nil, fmt.Errorf("no phase named: usage: lifecycle %s [flags] [images]", strings.Join(Phases, "|"))
}

func isPhase(name string) bool {
	for _, p := range Phases {
		if p == name {
			return true
		}
	}
	return false
}

func isVersion(args []string) bool {
	return len(args) > 0 && (args[0] == "-version" || args[0] == "--version")
}

// Run carries out one phase and returns its exit code (requirements 2.0).
// CNB_PLATFORM_API is checked before anything else is looked at. The phase's
// files are complete or absent: each is written aside and renamed.
func Run(ctx context.Context, phase string, args, environ []string, host Host) int {
	if isVersion(args) {
		fmt.Fprintln(host.stdout(), spec.Version)
		return spec.ExitOK
	}
	in, err := inputsOf(phase, args, environ)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(host.stdout(), usage(phase, in.api))
		return spec.ExitOK
	case errors.Is(err, errVersion):
		fmt.Fprintln(host.stdout(), spec.Version)
		return spec.ExitOK
	}
	if err != nil {
		fmt.Fprintf(host.stderr(), "%s: error: %s\n", phase, sentence(err))
		return spec.ExitCode(err, spec.ExitGeneric)
	}
	host.Events, host.layers = host.sink(in), in.layers
	if host.Places == nil {
		host.Places = &Places{}
		defer host.Places.close()
	}
	err = host.deprecatedInputs(in)
	if err == nil && host.Own {
		environ, err = host.settle(ctx, in, environ)
	}
	if err == nil {
		err = host.run(ctx, in, environ)
	}
	if err != nil {
		host.Events.Emit(event.Message{Level: event.Error, Text: sentence(err)})
		return spec.ExitCode(err, exitCodes[phase])
	}
	return spec.ExitOK
}

// Do is Run for a host that shows errors, times phases and exits by itself:
// kiln's own process. The error carries the exit code.
func Do(ctx context.Context, phase string, args, environ []string, host Host) error {
	in, err := inputsOf(phase, args, environ)
	if err != nil {
		return err
	}
	host.Events, host.layers = host.sink(in), in.layers
	f := host.phase
	if phase == creator {
		f = host.create
	}
	if err := f(ctx, in, environ); err != nil {
		return spec.Exit(spec.ExitCode(err, exitCodes[phase]), err)
	}
	return nil
}

func inputsOf(phase string, args, environ []string) (inputs, error) {
	api := lookup(environ, "CNB_PLATFORM_API")
	if err := spec.SupportedPlatform(api); err != nil {
		return inputs{}, err
	}
	return parse(phase, api, args, environ)
}

// sentence is an error and, if it is known, what to do about it.
func sentence(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // several errors are lines
	if hint := spec.HintOf(err); hint != "" {
		return text + " (" + hint + ")"
	}
	return text
}

// exitCodes is what a phase exits with when its error does not say.
var exitCodes = map[string]int{
	analyzer: spec.ExitAnalyze, detector: spec.ExitDetect, restorer: spec.ExitRestore, extender: spec.ExitExtend,
	builder: spec.ExitBuild, exporter: spec.ExitExport, creator: spec.ExitGeneric, rebaser: spec.ExitRebase,
}

// run calls the phase between the events that frame it.
func (h Host) run(ctx context.Context, in inputs, environ []string) error {
	if in.phase == creator {
		return h.create(ctx, in, environ)
	}
	return h.frame(in.phase, func() error { return h.phase(ctx, in, environ) })
}

func (h Host) frame(phase string, f func() error) error {
	began := time.Now()
	h.Events.Emit(event.PhaseStarted{Phase: phase})
	err := f()
	done := event.PhaseFinished{Phase: phase, Elapsed: time.Since(began)}
	if err != nil {
		done.Err = err.Error()
	}
	h.Events.Emit(done)
	return err
}

func (h Host) phase(ctx context.Context, in inputs, environ []string) error {
	switch in.phase {
	case analyzer:
		return h.analyze(ctx, in)
	case detector:
		return h.detect(ctx, in, environ)
	case restorer:
		return h.restore(ctx, in)
	case extender:
		return h.extend(ctx, in, environ)
	case builder:
		return h.build(ctx, in, environ)
	case exporter:
		return h.export(ctx, in)
	case rebaser:
		return h.rebase(ctx, in)
	}
	return fmt.Errorf("kiln has no %s yet", in.phase)
}

// create is the creator: the phases of a build one after the other, with
// shared inputs. What it hands over is in the files, too.
func (h Host) create(ctx context.Context, in inputs, environ []string) error {
	if h.Places == nil {
		h.Places = &Places{}
	}
	in.skipLayers, in.whole = in.skipRestore, true
	for _, phase := range []string{analyzer, detector, restorer, builder, exporter} {
		in.phase = phase
		if phase == exporter {
			in.args = append(in.args, in.tags...)
		}
		if err := h.frame(phase, func() error { return h.phase(ctx, in, environ) }); err != nil {
			return spec.Exit(spec.ExitCode(err, exitCodes[phase]), err)
		}
		if phase == analyzer {
			_, _ = h.document(in.projectMetadata) // as it is before buildpacks run; the exporter tells what is wrong with it
		}
	}
	return nil
}

func lookup(environ []string, name string) string {
	for _, nv := range environ {
		if value, ok := strings.CutPrefix(nv, name+"="); ok {
			return value
		}
	}
	return ""
}

// sink is where the phase's events go: to the host's own sink; else to stdout,
// as text for people (warnings and errors to stderr) or as JSON lines.
func (h Host) sink(in inputs) event.Sink {
	level := levels[event.Level(in.logLevel)]
	var to event.Sink
	switch {
	case h.Events != nil:
		to = h.Events
	case in.logFormat == "json":
		to = event.NewJSON(h.stdout())
	default:
		style := event.Style{Color: !in.noColor && isTerminal(h.stdout()), Verbose: level == 0, Quiet: level > levels[event.Info]}
		out, problems := event.NewText(h.stdout(), style), event.NewText(h.stderr(), style)
		to = event.Func(func(e event.Event) {
			if m, ok := e.(event.Message); ok && levels[m.Level] >= levels[event.Warn] {
				problems.Emit(e)
				return
			}
			out.Emit(e)
		})
	}
	return event.Func(func(e event.Event) {
		if m, ok := e.(event.Message); ok && levels[m.Level] < level {
			return
		}
		to.Emit(e)
	})
}

var levels = map[event.Level]int{event.Debug: 0, event.Info: 1, event.Warn: 2, event.Error: 3}

func (h Host) warn(format string, args ...any) {
	h.Events.Emit(event.Message{Level: event.Warn, Text: fmt.Sprintf(format, args...)})
}
