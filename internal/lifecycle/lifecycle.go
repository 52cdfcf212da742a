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
	"os"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/sandbox"
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
	return "", nil, fmt.Errorf("which phase? usage: lifecycle %s [flags] ...", strings.Join(Phases, "|"))
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
	api := lookup(environ, "CNB_PLATFORM_API")
	if err := spec.SupportedPlatform(api); err != nil {
		return host.complain(phase, err)
	}
	in, err := parse(phase, api, args, environ)
	if errors.Is(err, errHelp) {
		fmt.Fprint(host.stdout(), usage(phase, api))
		return spec.ExitOK
	}
	if err != nil {
		return host.complain(phase, err)
	}
	host.Events = host.sink(in)
	if err := host.run(ctx, in, environ); err != nil {
		for _, e := range messages(err) {
			host.Events.Emit(e)
		}
		return spec.ExitCode(err, exitCodes[phase])
	}
	return spec.ExitOK
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
	case detector:
		return h.detect(ctx, in, environ)
	case builder:
		return h.build(ctx, in, environ)
	}
	return fmt.Errorf("kiln has no %s yet", in.phase)
}

func (h Host) create(ctx context.Context, in inputs, environ []string) error {
	return h.phase(ctx, in, environ)
}

func lookup(environ []string, name string) string {
	for _, nv := range environ {
		if value, ok := strings.CutPrefix(nv, name+"="); ok {
			return value
		}
	}
	return ""
}

// messages is an error as events: what went wrong and, if known, what to do.
func messages(err error) []event.Event {
	all := []event.Event{event.Message{Level: event.Error, Text: err.Error()}}
	if hint := spec.HintOf(err); hint != "" {
		all = append(all, event.Message{Level: event.Error, Text: "hint: " + hint})
	}
	return all
}

// complain is for errors before there is a sink.
func (h Host) complain(phase string, err error) int {
	fmt.Fprintf(h.stderr(), "%s: error: %v\n", phase, err)
	if hint := spec.HintOf(err); hint != "" {
		fmt.Fprintf(h.stderr(), "%s: hint: %s\n", phase, hint)
	}
	return spec.ExitCode(err, spec.ExitGeneric)
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

// runner is what runs buildpacks. In this process's own root they would have
// all that it has, so it must not be root; the reference refuses too.
func (h Host) runner() (sandbox.Runner, error) {
	if h.Runner != nil {
		return h.Runner, nil
	}
	if os.Geteuid() == 0 {
		err := errors.New("refusing to run buildpacks as root")
		return nil, spec.Exit(spec.ExitGeneric, spec.WithHint(err, "start this phase as the build image's user, CNB_USER_ID"))
	}
	return sandbox.InPlace{}, nil
}
