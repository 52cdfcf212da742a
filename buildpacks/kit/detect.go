package kit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Detection is what Detect knows.
type Detection struct{ Context }

// Plan is one alternative of what a buildpack provides and requires.
type Plan struct {
	Provides []string
	Requires []Require
}

// Plans lists alternatives, the preferred one first.
func Plans(p ...Plan) []Plan { return p }

// Require is a wish for something that this or an earlier buildpack provides.
// The fields below Name are conventions of the metadata that providers read.
type Require struct {
	Name string
	// Version is a version or a constraint; Source says who asks for it, as the
	// user would look for it: "BP_CPYTHON_VERSION", "pyproject.toml".
	Version, Source string
	// Build and Launch say where it is needed.
	Build, Launch bool
	// Metadata is anything else; its keys win over those of the fields.
	Metadata map[string]any
}

func (r Require) spec() spec.Require {
	m := map[string]any{}
	set := func(key string, v any, ok bool) {
		if ok {
			m[key] = v
		}
	}
	set("version", r.Version, r.Version != "")
	set("version-source", r.Source, r.Source != "")
	set("build", true, r.Build)
	set("launch", true, r.Launch)
	maps.Copy(m, r.Metadata)
	if len(m) == 0 {
		m = nil
	}
	return spec.Require{Name: r.Name, Metadata: m}
}

func (p Plan) sections() spec.PlanSections {
	var s spec.PlanSections
	for _, name := range p.Provides {
		s.Provides = append(s.Provides, spec.Provide{Name: name})
	}
	for _, r := range p.Requires {
		s.Requires = append(s.Requires, r.spec())
	}
	return s
}

func runDetect(ctx context.Context, bp Buildpack, c Context) error {
	if bp.Detect == nil {
		return errors.New("this buildpack has no Detect")
	}
	plans, err := bp.Detect(ctx, &Detection{c})
	if err != nil {
		return err
	}
	path := c.env["CNB_BUILD_PLAN_PATH"]
	if path == "" {
		return errors.New("CNB_BUILD_PLAN_PATH is not set: this program is run by a lifecycle (Buildpack API 0.8 or later)")
	}
	var doc spec.DetectPlan
	for i, p := range plans {
		if i == 0 {
			doc.PlanSections = p.sections()
		} else {
			doc.Or = append(doc.Or, p.sections())
		}
	}
	b, err := encode.TOML(doc)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("write the build plan: %w", err)
	}
	return nil
}

// Entry is what one later buildpack, or this one, requires of this one.
type Entry struct {
	Name            string
	Version, Source string
	Build, Launch   bool
	Metadata        map[string]any
}

func readEntries(path string) ([]Entry, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the buildpack plan: %w", err)
	}
	plan, err := spec.ReadBuildpackPlan(b, path)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, r := range plan.Entries {
		text := func(key string) string { s, _ := r.Metadata[key].(string); return s }
		flag := func(key string) bool { v, _ := r.Metadata[key].(bool); return v }
		entries = append(entries, Entry{
			Name: r.Name, Version: text("version"), Source: text("version-source"),
			Build: flag("build"), Launch: flag("launch"), Metadata: r.Metadata,
		})
	}
	return entries, nil
}

// Wanted is what the entries of one name add up to.
type Wanted struct {
	Entries       []Entry
	Build, Launch bool
}

// Wanted collects the entries called name. Any of them asking for build or
// launch is enough.
func (b *Build) Wanted(name string) Wanted {
	var w Wanted
	for _, e := range b.Entries {
		if e.Name == name {
			w.Entries = append(w.Entries, e)
			w.Build = w.Build || e.Build
			w.Launch = w.Launch || e.Launch
		}
	}
	return w
}

// Version is the version that counts among the entries, and who asked for it.
// Sources named in priority win, first over last; then the first entry that
// names a version. Both are "" when none does.
func (w Wanted) Version(priority ...string) (version, source string) {
	best, rank := Entry{}, len(priority)+1
	for _, e := range w.Entries {
		if e.Version == "" {
			continue
		}
		r := slices.Index(priority, e.Source)
		if r < 0 {
			r = len(priority)
		}
		if r < rank {
			best, rank = e, r
		}
	}
	return best.Version, best.Source
}
