package spec

import "cmp"

// What specification and reference call differently in analyzed.toml is read
// and written under both names: phases of one build need not be of one
// lifecycle. A layer's metadata is "data" there, as in the label, and
// "metadata", as in <layer>.toml; a target's variant is "variant" and
// "arch-variant". The types below are Analyzed with both.

type rawAnalyzed struct {
	PreviousImage *ImageReference `toml:"image,omitempty"`
	Metadata      rawMetadata     `toml:"metadata,omitempty"`
	RunImage      *rawRunImage    `toml:"run-image,omitempty"`
	BuildImage    *BuildImage     `toml:"build-image,omitempty"`
}

type rawMetadata struct {
	App          []LayerSHA           `toml:"app,omitempty"`
	SBOM         *LayerSHA            `toml:"sbom,omitempty"`
	Config       LayerSHA             `toml:"config,omitempty"`
	Launcher     LayerSHA             `toml:"launcher,omitempty"`
	ProcessTypes LayerSHA             `toml:"process-types,omitempty"`
	Buildpacks   []rawBuildpackLayers `toml:"buildpacks,omitempty"`
	ExecEnv      string               `toml:"exec-env,omitempty"`
	RunImage     RunImageForRebase    `toml:"run-image,omitempty"`
	Stack        *StackForRebase      `toml:"stack,omitempty"`
}

type rawBuildpackLayers struct {
	Key     string                      `toml:"key"`
	Version string                      `toml:"version"`
	Layers  map[string]rawLayerMetadata `toml:"layers,omitempty"`
	Store   *StoreTOML                  `toml:"store,omitempty"`
}

type rawLayerMetadata struct {
	SHA      string `toml:"sha"`
	Build    bool   `toml:"build"`
	Launch   bool   `toml:"launch"`
	Cache    bool   `toml:"cache"`
	Data     any    `toml:"data,omitempty"`
	Metadata any    `toml:"metadata,omitempty"`
}

type rawRunImage struct {
	Image     string     `toml:"image,omitempty"`
	Reference string     `toml:"reference"`
	Extend    bool       `toml:"extend,omitempty"`
	Target    *rawTarget `toml:"target,omitempty"`
}

type rawTarget struct {
	Target
	ArchVariant string `toml:"arch-variant,omitempty"`
}

func (r rawTarget) target() Target {
	r.Variant = cmp.Or(r.Variant, r.ArchVariant)
	return r.Target
}

// ReadAnalyzed reads analyzed.toml.
func ReadAnalyzed(b []byte, name string) (Analyzed, error) {
	var raw rawAnalyzed
	if _, err := decode(b, name, &raw); err != nil {
		return Analyzed{}, err
	}
	m := raw.Metadata
	a := Analyzed{PreviousImage: raw.PreviousImage, BuildImage: raw.BuildImage, Metadata: LifecycleMetadata{
		App: m.App, SBOM: m.SBOM, Config: m.Config, Launcher: m.Launcher, ProcessTypes: m.ProcessTypes,
		ExecEnv: m.ExecEnv, RunImage: m.RunImage, Stack: m.Stack,
	}}
	for _, r := range m.Buildpacks {
		b := BuildpackLayers{Key: r.Key, Version: r.Version, Store: r.Store}
		for name, l := range r.Layers {
			if b.Layers == nil {
				b.Layers = map[string]LayerMetadata{}
			}
			b.Layers[name] = l.layer()
		}
		a.Metadata.Buildpacks = append(a.Metadata.Buildpacks, b)
	}
	if r := raw.RunImage; r != nil {
		a.RunImage = &RunImage{Image: r.Image, Reference: r.Reference, Extend: r.Extend}
		if r.Target != nil {
			target := r.Target.target()
			a.RunImage.Target = &target
		}
	}
	return a, nil
}

// layer is what is known of the layer. Metadata that is no table is none.
func (r rawLayerMetadata) layer() LayerMetadata {
	l := LayerMetadata{SHA: r.SHA, Build: r.Build, Launch: r.Launch, Cache: r.Cache}
	if data, ok := r.Data.(map[string]any); ok {
		l.Data = data
	} else {
		l.Data, _ = r.Metadata.(map[string]any)
	}
	return l
}

// TOML is analyzed.toml as it is written, with both names of its keys.
func (a Analyzed) TOML() any {
	m := a.Metadata
	raw := rawAnalyzed{PreviousImage: a.PreviousImage, BuildImage: a.BuildImage, Metadata: rawMetadata{
		App: m.App, SBOM: m.SBOM, Config: m.Config, Launcher: m.Launcher, ProcessTypes: m.ProcessTypes,
		ExecEnv: m.ExecEnv, RunImage: m.RunImage, Stack: m.Stack,
	}}
	for _, b := range m.Buildpacks {
		r := rawBuildpackLayers{Key: b.Key, Version: b.Version, Store: b.Store, Layers: map[string]rawLayerMetadata{}}
		for name, l := range b.Layers {
			both := rawLayerMetadata{SHA: l.SHA, Build: l.Build, Launch: l.Launch, Cache: l.Cache}
			if len(l.Data) > 0 {
				both.Data, both.Metadata = l.Data, l.Data
			}
			r.Layers[name] = both
		}
		raw.Metadata.Buildpacks = append(raw.Metadata.Buildpacks, r)
	}
	if r := a.RunImage; r != nil {
		raw.RunImage = &rawRunImage{Image: r.Image, Reference: r.Reference, Extend: r.Extend}
		if r.Target != nil {
			raw.RunImage.Target = &rawTarget{*r.Target, r.Target.Variant}
		}
	}
	return raw
}
