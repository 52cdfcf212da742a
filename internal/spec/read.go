package spec

import "fmt"

// The Read functions turn a document's bytes into its type. name stands for
// the document in errors, usually its path. Every error of theirs is a
// *DocumentError.

// ReadGroup reads group.toml. Every member must have an id, a version and an api.
func ReadGroup(b []byte, name string) (Group, error) {
	var g Group
	d, err := decode(b, name, &g)
	if err != nil {
		return Group{}, err
	}
	if err := first(d.members(g.Group, true, "group"), d.members(g.GroupExtensions, true, "group-extensions")); err != nil {
		return Group{}, err
	}
	for i := range g.GroupExtensions {
		g.GroupExtensions[i].Extension = true
	}
	return g, nil
}

// members checks a list of buildpacks or extensions; path leads to the list.
func (d document) members(list []GroupElement, needAPI bool, path ...any) error {
	for i, m := range list {
		at := append(path[:len(path):len(path)], i)
		err := first(
			d.faultErr(ValidateID(m.ID), append(at, "id")...),
			d.faultErr(ValidatePathVersion(m.Version), append(at, "version")...))
		if err == nil && needAPI && m.API == "" {
			err = d.fault("must be set", append(at, "api")...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadOrder reads order.toml. Every entry must have an id and a version.
func ReadOrder(b []byte, name string) (Order, error) {
	var o Order
	d, err := decode(b, name, &o)
	if err != nil {
		return Order{}, err
	}
	if err := first(d.groups(o.Order, "order"), d.groups(o.OrderExtensions, "order-extensions")); err != nil {
		return Order{}, err
	}
	for _, group := range o.OrderExtensions {
		for i := range group.Group {
			group.Group[i].Extension = true
		}
	}
	return o, nil
}

func (d document) groups(groups []OrderGroup, key string) error {
	for i, g := range groups {
		if err := d.members(g.Group, false, key, i, "group"); err != nil {
			return err
		}
	}
	return nil
}

// ReadSystem reads system.toml. Every entry must have an id and a version.
func ReadSystem(b []byte, name string) (System, error) {
	var s System
	d, err := decode(b, name, &s)
	if err != nil {
		return System{}, err
	}
	err = first(
		d.members(s.System.Pre.Buildpacks, false, "system", "pre", "buildpacks"),
		d.members(s.System.Post.Buildpacks, false, "system", "post", "buildpacks"))
	if err != nil {
		return System{}, err
	}
	return s, nil
}

// ReadPlan reads plan.toml. Every entry must have a provider and a require,
// and all its requires must have one name.
func ReadPlan(b []byte, name string) (Plan, error) {
	var p Plan
	d, err := decode(b, name, &p)
	if err != nil {
		return Plan{}, err
	}
	for i, e := range p.Entries {
		for _, r := range e.Requires {
			localTimes(r.Metadata)
		}
		if len(e.Providers) == 0 {
			return Plan{}, d.fault("must have a provider", "entries", i, "providers")
		}
		if len(e.Requires) == 0 {
			return Plan{}, d.fault("must have a require", "entries", i, "requires")
		}
		for j, r := range e.Requires {
			if r.Name != e.Requires[0].Name {
				return Plan{}, d.fault(fmt.Sprintf("must be %q, like the others of this entry", e.Requires[0].Name), "entries", i, "requires", j, "name")
			}
		}
	}
	return p, nil
}

// rawPlan is a DetectPlan with the key that a require must not have.
type rawPlan struct {
	rawSections
	Or []rawSections `toml:"or"`
}

type rawSections struct {
	Provides []Provide    `toml:"provides"`
	Requires []rawRequire `toml:"requires"`
}

type rawRequire struct {
	Require
	Version any `toml:"version"`
}

// ReadDetectPlan reads what bin/detect wrote to CNB_BUILD_PLAN_PATH. Names must
// not be empty, and a require has no version of its own: since Buildpack API
// 0.3 that belongs into its metadata.
func ReadDetectPlan(b []byte, name string) (DetectPlan, error) {
	var raw rawPlan
	d, err := decode(b, name, &raw)
	if err != nil {
		return DetectPlan{}, err
	}
	var p DetectPlan
	if p.PlanSections, err = d.sections(raw.rawSections); err != nil {
		return DetectPlan{}, err
	}
	for i, or := range raw.Or {
		s, err := d.sections(or, "or", i)
		if err != nil {
			return DetectPlan{}, err
		}
		p.Or = append(p.Or, s)
	}
	return p, nil
}

func (d document) sections(raw rawSections, path ...any) (PlanSections, error) {
	s := PlanSections{Provides: raw.Provides}
	path = path[:len(path):len(path)]
	for i, p := range raw.Provides {
		if p.Name == "" {
			return s, d.fault("must not be empty", append(path, "provides", i, "name")...)
		}
	}
	for i, r := range raw.Requires {
		if r.Name == "" {
			return s, d.fault("must not be empty", append(path, "requires", i, "name")...)
		}
		if r.Version != nil {
			return s, d.fault("is not allowed here; put it into [requires.metadata]", append(path, "requires", i, "version")...)
		}
		localTimes(r.Metadata)
		s.Requires = append(s.Requires, r.Require)
	}
	return s, nil
}

// ReadBuildpackPlan reads the file at CNB_BP_PLAN_PATH.
func ReadBuildpackPlan(b []byte, name string) (BuildpackPlan, error) {
	var p BuildpackPlan
	_, err := decode(b, name, &p)
	return p, err
}

// ReadBuildTOML reads build.toml. Unmet entries must have a name.
func ReadBuildTOML(b []byte, name string) (BuildTOML, error) {
	var t BuildTOML
	d, err := decode(b, name, &t)
	if err != nil {
		return BuildTOML{}, err
	}
	for i, u := range t.Unmet {
		if u.Name == "" {
			return BuildTOML{}, d.fault("must not be empty", "unmet", i, "name")
		}
	}
	return t, nil
}

// ReadStoreTOML reads store.toml.
func ReadStoreTOML(b []byte, name string) (StoreTOML, error) {
	var s StoreTOML
	d, err := decode(b, name, &s)
	if err != nil {
		return StoreTOML{}, err
	}
	localTimes(s.Metadata)
	return s, d.storable(s.Metadata, "metadata")
}

// rawLayer is a LayerTOML with the keys of before Buildpack API 0.6, which
// have moved into [types] and would otherwise be ignored in silence.
type rawLayer struct {
	LayerTOML
	Launch any `toml:"launch"`
	Build  any `toml:"build"`
	Cache  any `toml:"cache"`
}

// ReadLayerTOML reads <layer>.toml. The keys launch, build and cache are an
// error outside of [types].
func ReadLayerTOML(b []byte, name string) (LayerTOML, error) {
	var raw rawLayer
	d, err := decode(b, name, &raw)
	if err != nil {
		return LayerTOML{}, err
	}
	for key, v := range map[string]any{"launch": raw.Launch, "build": raw.Build, "cache": raw.Cache} {
		if v != nil {
			return LayerTOML{}, d.fault("is not allowed here; put it under [types]", key)
		}
	}
	localTimes(raw.Metadata)
	return raw.LayerTOML, d.storable(raw.Metadata, "metadata")
}

// ReadRunTOML reads run.toml. Mirrors need an image.
func ReadRunTOML(b []byte, name string) (RunTOML, error) {
	var r RunTOML
	d, err := decode(b, name, &r)
	if err != nil {
		return RunTOML{}, err
	}
	for i, entry := range r.Images {
		if entry.Image == "" {
			return RunTOML{}, d.fault("must be set", "images", i, "image")
		}
	}
	return r, nil
}

// ReadStackTOML reads stack.toml, the form of run.toml before Platform API 0.12.
func ReadStackTOML(b []byte, name string) (RunTOML, error) {
	var s struct {
		RunImage RunImageEntry `toml:"run-image"`
	}
	d, err := decode(b, name, &s)
	switch {
	case err != nil:
		return RunTOML{}, err
	case s.RunImage.Image != "":
		return RunTOML{Images: []RunImageEntry{s.RunImage}}, nil
	case len(s.RunImage.Mirrors) > 0:
		return RunTOML{}, d.fault("must be set", "run-image", "image")
	}
	return RunTOML{}, nil
}

// ReadProjectMetadata reads project-metadata.toml.
func ReadProjectMetadata(b []byte, name string) (ProjectMetadata, error) {
	var p ProjectMetadata
	_, err := decode(b, name, &p)
	if p.Source != nil {
		localTimes(p.Source.Version)
		localTimes(p.Source.Metadata)
	}
	return p, err
}

// ReadReport reads report.toml.
func ReadReport(b []byte, name string) (Report, error) {
	var r Report
	_, err := decode(b, name, &r)
	return r, err
}
