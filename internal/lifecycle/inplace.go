package lifecycle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// runner is what runs buildpacks. In this process's own root they would have
// all that it has, so it must not be root; the reference refuses too.
func (h Host) runner(ctx context.Context, in inputs, environ []string) (sandbox.Runner, error) {
	if h.Runner != nil {
		return h.Runner, nil
	}
	if os.Geteuid() == 0 {
		err := errors.New("refusing to run buildpacks as root")
		return nil, spec.Exit(spec.ExitGeneric, spec.WithHint(err, "start this phase as the build image's user, CNB_USER_ID"))
	}
	p := inPlace(in, environ)
	if in.logLevel == "debug" {
		report, err := p.Probe(ctx)
		if err != nil {
			return nil, err
		}
		h.Events.Emit(event.Message{Level: event.Debug, Text: protection(report)})
	}
	return p, nil
}

// inPlace keeps from foreign code what is not its own, where the kernel can:
// what the Buildpack API gives it read-only (the directories of buildpacks and
// of the platform), the lifecycle itself, the caches of other builds, the
// files in <layers>, and the sight of credentials that are meant for us. The directories of all buildpacks in <layers> stay
// writable: installing into an interpreter that an earlier one brought is
// what real ones do.
func inPlace(in inputs, environ []string) sandbox.InPlace {
	theirs := []string{string(in.app), "/tmp"}
	for _, kv := range environ {
		if name, value, _ := strings.Cut(kv, "="); name == "HOME" || name == "TMPDIR" {
			theirs = append(theirs, value)
		}
	}
	var p sandbox.InPlace
	if !slices.Contains(theirs, string(in.layers)) {
		p.FixedEntries = []string{string(in.layers)}
	}
	theirs = append(theirs, string(in.layers))
	for _, dir := range []path{"/cnb", in.platform, in.buildpacks, in.extensions, in.buildConfig, in.cacheDir, in.launchCache, in.layoutDir} {
		holds := func(place string) bool { return within(string(dir), place) }
		if dir != "" && !slices.ContainsFunc(theirs, holds) {
			p.ReadOnly = append(p.ReadOnly, string(dir))
		}
	}
	p.Hidden = credentialFiles(environ)
	if certs := lookup(environ, "DOCKER_CERT_PATH"); certs != "" {
		p.Hidden = append(p.Hidden, certs)
	}
	return p
}

func within(dir, place string) bool {
	rel, err := filepath.Rel(dir, place)
	return err == nil && filepath.IsLocal(rel)
}

// protection is a report as a line.
func protection(r sandbox.Report) string {
	text := r.Detail
	for _, f := range r.Findings {
		text += "; " + f.String()
	}
	return text
}
