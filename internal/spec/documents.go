// Package spec holds every document, label, exit code and version rule of the
// Cloud Native Buildpacks specifications. It turns bytes into values and back
// and touches nothing else: no file, no network, no process.
package spec

// Group is group.toml: the buildpacks (and extensions) that take part in a
// build, in order (Platform API, "group.toml").
type Group struct {
	Group           []GroupElement `toml:"group,omitempty"`
	GroupExtensions []GroupElement `toml:"group-extensions,omitempty"`
}

// GroupElement names one buildpack or extension of a group. Optional is only
// ever read from an order; group.toml does not carry it.
type GroupElement struct {
	ID        string   `toml:"id" json:"id"`
	Version   string   `toml:"version" json:"version"`
	API       string   `toml:"api,omitempty" json:"api,omitempty"`
	Homepage  string   `toml:"homepage,omitempty" json:"homepage,omitempty"`
	Optional  bool     `toml:"optional,omitempty" json:"optional,omitempty"`
	ExecEnv   []string `toml:"exec-env,omitempty" json:"exec-env,omitempty"`
	Extension bool     `toml:"-" json:"-"`
}

// Order is order.toml, and the [[order]] of a composite buildpack: the groups
// to try, first match wins.
type Order struct {
	Order           []OrderGroup `toml:"order,omitempty"`
	OrderExtensions []OrderGroup `toml:"order-extensions,omitempty"`
}

// OrderGroup is one group of an Order.
type OrderGroup struct {
	Group []GroupElement `toml:"group" json:"group"`
}

// System is system.toml: buildpacks that are put before and after every group
// (Platform API 0.15).
type System struct {
	System struct {
		Pre  SystemBuildpacks `toml:"pre"`
		Post SystemBuildpacks `toml:"post"`
	} `toml:"system"`
}

// SystemBuildpacks is one side of a System.
type SystemBuildpacks struct {
	Buildpacks []GroupElement `toml:"buildpacks"`
}

// Plan is plan.toml: what the group's members provide for each other.
type Plan struct {
	Entries []PlanEntry `toml:"entries,omitempty"`
}

// PlanEntry is one dependency of a Plan: at least one provider, at least one
// require, and all requires share one name.
type PlanEntry struct {
	Providers []PlanProvider `toml:"providers"`
	Requires  []Require      `toml:"requires"`
}

// PlanProvider names a member that provides a PlanEntry.
type PlanProvider struct {
	ID        string `toml:"id"`
	Version   string `toml:"version"`
	Extension bool   `toml:"extension,omitempty"`
}

// Require is a buildpack's wish for a dependency.
type Require struct {
	Name     string         `toml:"name"`
	Metadata map[string]any `toml:"metadata,omitempty"`
}

// Provide is a buildpack's offer of a dependency.
type Provide struct {
	Name string `toml:"name"`
}

// DetectPlan is what bin/detect writes to CNB_BUILD_PLAN_PATH: one alternative
// at the top and more in Or.
type DetectPlan struct {
	PlanSections
	Or []PlanSections `toml:"or,omitempty"`
}

// PlanSections is one alternative of a DetectPlan.
type PlanSections struct {
	Provides []Provide `toml:"provides,omitempty"`
	Requires []Require `toml:"requires,omitempty"`
}

// BuildpackPlan is the file at CNB_BP_PLAN_PATH that bin/build reads.
type BuildpackPlan struct {
	Entries []Require `toml:"entries,omitempty"`
}

// BuildTOML is build.toml, an output of bin/build.
type BuildTOML struct {
	Unmet []Provide `toml:"unmet,omitempty"`
}

// LaunchTOML is launch.toml, an output of bin/build.
type LaunchTOML struct {
	Labels    []Label   `toml:"labels,omitempty"`
	Processes []Process `toml:"processes,omitempty"`
	Slices    []Slice   `toml:"slices,omitempty"`
}

// Label is one image label.
type Label struct {
	Key   string `toml:"key"`
	Value string `toml:"value"`
}

// Slice names the app files that go to one layer of their own: globs relative
// to the app directory.
type Slice struct {
	Paths []string `toml:"paths"`
}

// Process is a way to start the image. Command[0] is the executable; the rest
// of Command is always passed; Args are defaults that a user's arguments
// replace (Buildpack API 0.9). Direct is always true from then on; before, a
// process that is not direct runs in a shell.
type Process struct {
	Type             string   `toml:"type" json:"type"`
	Command          []string `toml:"command" json:"command"`
	Args             []string `toml:"args" json:"args"`
	Direct           bool     `toml:"direct" json:"direct"`
	Default          bool     `toml:"default,omitempty" json:"-"`
	BuildpackID      string   `toml:"buildpack-id,omitempty" json:"buildpackID,omitempty"`
	WorkingDirectory string   `toml:"working-dir,omitempty" json:"working-dir,omitempty"`
	ExecEnv          []string `toml:"exec-env,omitempty" json:"exec-env,omitempty"`
}

// StoreTOML is store.toml: what a buildpack wants to find again next time.
type StoreTOML struct {
	Metadata map[string]any `toml:"metadata,omitempty" json:"metadata"`
}

// LayerTOML is <layer>.toml: what a layer is for and what its buildpack wants
// to remember of it.
type LayerTOML struct {
	Types    LayerTypes     `toml:"types,omitempty"`
	Metadata map[string]any `toml:"metadata,omitempty"`
}

// LayerTypes says who may use a layer.
type LayerTypes struct {
	Launch bool `toml:"launch" json:"launch"`
	Build  bool `toml:"build" json:"build"`
	Cache  bool `toml:"cache" json:"cache"`
}

// BuildMetadata is <layers>/config/metadata.toml: what the builder hands to
// the exporter and, inside the image, to the launcher.
type BuildMetadata struct {
	DefaultProcessType string         `toml:"buildpack-default-process-type,omitempty"`
	Buildpacks         []GroupElement `toml:"buildpacks,omitempty"`
	Extensions         []GroupElement `toml:"extensions,omitempty"`
	Processes          []Process      `toml:"processes,omitempty"`
	Slices             []Slice        `toml:"slices,omitempty"`
	Labels             []Label        `toml:"labels,omitempty"`
}

// RunTOML is run.toml: the run images a builder goes with.
type RunTOML struct {
	Images []RunImageEntry `toml:"images,omitempty"`
}

// Names are all run images and their mirrors, in order.
func (r RunTOML) Names() []string {
	var names []string
	for _, e := range r.Images {
		names = append(append(names, e.Image), e.Mirrors...)
	}
	return names
}

// RunImageEntry is one run image and its mirrors.
type RunImageEntry struct {
	Image   string   `toml:"image" json:"image"`
	Mirrors []string `toml:"mirrors,omitempty" json:"mirrors,omitempty"`
}

// Analyzed is analyzed.toml.
type Analyzed struct {
	PreviousImage *ImageReference   `toml:"image,omitempty"`
	Metadata      LifecycleMetadata `toml:"metadata,omitempty"`
	RunImage      *RunImage         `toml:"run-image,omitempty"`
	BuildImage    *BuildImage       `toml:"build-image,omitempty"`
}

// ImageReference is a digest reference, an image ID, or a layout path@digest.
type ImageReference struct {
	Reference string `toml:"reference"`
	// ExecEnv is the execution environment that the image was built for, where
	// only its label of that name says so: the reference has no key for it in
	// LifecycleMetadata. It is kiln's own key.
	ExecEnv string `toml:"exec-env,omitempty"`
}

// BuildImage is what is known of the build image where extensions take part:
// the restorer fills in its digest reference, the detector says whether it is
// to be extended (Platform API 0.13).
type BuildImage struct {
	Reference string `toml:"reference,omitempty"`
	Extend    bool   `toml:"extend"`
}

// RunImage is what is known of the run image.
type RunImage struct {
	Image     string  `toml:"image,omitempty"`
	Reference string  `toml:"reference"`
	Extend    bool    `toml:"extend,omitempty"`
	Target    *Target `toml:"target,omitempty"`
}

// Target is an operating system, architecture and distribution that an image
// has or that a buildpack supports. Empty means "any".
type Target struct {
	// ID is what analyzed.toml has of the label io.buildpacks.base.id: the
	// reference's key, which no specification knows.
	ID      string  `toml:"id,omitempty" json:"-"`
	OS      string  `toml:"os" json:"os"`
	Arch    string  `toml:"arch" json:"arch"`
	Variant string  `toml:"variant,omitempty" json:"variant,omitempty"`
	Distro  *Distro `toml:"distro,omitempty" json:"-"`
	// Distros is only read from buildpack.toml; an image has one Distro.
	Distros []Distro `toml:"distros,omitempty" json:"distros,omitempty"`
}

// Distro is a distribution by name and version, as in /etc/os-release.
type Distro struct {
	Name    string `toml:"name" json:"name"`
	Version string `toml:"version" json:"version"`
}

// ProjectMetadata is project-metadata.toml and its label.
type ProjectMetadata struct {
	Source *ProjectSource `toml:"source,omitempty" json:"source,omitempty"`
}

// ProjectSource says where the app's source came from.
type ProjectSource struct {
	Type     string         `toml:"type,omitempty" json:"type,omitempty"`
	Version  map[string]any `toml:"version,omitempty" json:"version,omitempty"`
	Metadata map[string]any `toml:"metadata,omitempty" json:"metadata,omitempty"`
}

// Report is report.toml: what the exporter or rebaser wrote.
type Report struct {
	Image ReportImage `toml:"image"`
}

// ReportImage is the image of a Report. Digest and ManifestSize (bytes) are
// set for a registry or layout, ImageID for a daemon.
type ReportImage struct {
	Tags         []string `toml:"tags,omitempty" json:"tags,omitempty"`
	ImageID      string   `toml:"image-id,omitempty" json:"image-id,omitempty"`
	Digest       string   `toml:"digest,omitempty" json:"digest,omitempty"`
	ManifestSize int64    `toml:"manifest-size,omitzero" json:"manifest-size,omitempty"`
}

// Buildpack is buildpack.toml or extension.toml.
type Buildpack struct {
	API       string         `toml:"api"`
	Buildpack BuildpackInfo  `toml:"buildpack"`
	Extension BuildpackInfo  `toml:"extension"`
	Order     []OrderGroup   `toml:"order,omitempty"`
	Targets   []Target       `toml:"targets,omitempty"`
	Stacks    []Stack        `toml:"stacks,omitempty"`
	Metadata  map[string]any `toml:"metadata,omitempty"`
}

// BuildpackInfo is the [buildpack] or [extension] table.
type BuildpackInfo struct {
	ID          string    `toml:"id"`
	Name        string    `toml:"name,omitempty"`
	Version     string    `toml:"version"`
	Homepage    string    `toml:"homepage,omitempty"`
	ClearEnv    bool      `toml:"clear-env,omitempty"`
	Description string    `toml:"description,omitempty"`
	Keywords    []string  `toml:"keywords,omitempty"`
	Licenses    []License `toml:"licenses,omitempty"`
	SBOMFormats []string  `toml:"sbom-formats,omitempty"`
	// ExecEnv is read from both spellings: exec-env = ["test"] and
	// [[buildpack.exec-env]] name = "test".
	ExecEnv []string `toml:"-"`
}

// License is a licence by SPDX type or by address.
type License struct {
	Type string `toml:"type" json:"type"`
	URI  string `toml:"uri" json:"uri"`
}

// Stack is the deprecated form of a Target.
type Stack struct {
	ID     string   `toml:"id" json:"id"`
	Mixins []string `toml:"mixins,omitempty" json:"mixins,omitempty"`
}
