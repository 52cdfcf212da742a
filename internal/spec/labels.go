package spec

// Labels that the specifications and their de-facto contract name.
const (
	LifecycleMetadataLabel = "io.buildpacks.lifecycle.metadata"
	BuildMetadataLabel     = "io.buildpacks.build.metadata"
	ProjectMetadataLabel   = "io.buildpacks.project.metadata"
	RebasableLabel         = "io.buildpacks.rebasable"
	ExecEnvLabel           = "io.buildpacks.exec-env"
	StackIDLabel           = "io.buildpacks.stack.id"
	StackMixinsLabel       = "io.buildpacks.stack.mixins"
	BaseIDLabel            = "io.buildpacks.base.id"
	BaseMaintainerLabel    = "io.buildpacks.base.maintainer"
	BaseHomepageLabel      = "io.buildpacks.base.homepage"
	BaseReleasedLabel      = "io.buildpacks.base.released"
	BaseDescriptionLabel   = "io.buildpacks.base.description"
	BaseMetadataLabel      = "io.buildpacks.base.metadata"
	BaseDistroNameLabel    = "io.buildpacks.base.distro.name"
	BaseDistroVersionLabel = "io.buildpacks.base.distro.version"
	BuilderMetadataLabel   = "io.buildpacks.builder.metadata"
	BuildpackOrderLabel    = "io.buildpacks.buildpack.order"
	OrderExtensionsLabel   = "io.buildpacks.buildpack.order-extensions"
	BuildpackLayersLabel   = "io.buildpacks.buildpack.layers"
	LifecycleVersionLabel  = "io.buildpacks.lifecycle.version"
	LifecycleAPIsLabel     = "io.buildpacks.lifecycle.apis"
	CacheMetadataLabel     = "io.buildpacks.lifecycle.cache.metadata"
	BuildpackageLabel      = "io.buildpacks.buildpackage.metadata"
)

// BaseLabels and StackLabels begin the labels that describe a base image, and
// that the app image on it has too.
const (
	BaseLabels  = "io.buildpacks.base."
	StackLabels = "io.buildpacks.stack."
)

// LifecycleMetadata is the label io.buildpacks.lifecycle.metadata: the diffIDs
// of the layers that the exporter made and what their buildpacks said of them.
// Its JSON is compact, keys in the order below.
type LifecycleMetadata struct {
	App          []LayerSHA        `json:"app" toml:"app,omitempty"`
	SBOM         *LayerSHA         `json:"sbom,omitempty" toml:"sbom,omitempty"`
	Config       LayerSHA          `json:"config" toml:"config,omitempty"`
	Launcher     LayerSHA          `json:"launcher" toml:"launcher,omitempty"`
	ProcessTypes LayerSHA          `json:"process-types" toml:"process-types,omitempty"`
	Buildpacks   []BuildpackLayers `json:"buildpacks" toml:"buildpacks,omitempty"`
	ExecEnv      string            `json:"exec-env,omitempty" toml:"exec-env,omitempty"`
	RunImage     RunImageForRebase `json:"runImage" toml:"run-image,omitempty"`
	Stack        *StackForRebase   `json:"stack,omitempty" toml:"stack,omitempty"`
}

// LayerSHA is a layer's diffID: "sha256:" and the digest of the uncompressed tar.
type LayerSHA struct {
	SHA string `json:"sha" toml:"sha"`
}

// BuildpackLayers is what one buildpack left in an image or a cache.
type BuildpackLayers struct {
	Key     string                   `json:"key" toml:"key"`
	Version string                   `json:"version" toml:"version"`
	Layers  map[string]LayerMetadata `json:"layers" toml:"layers,omitempty"`
	Store   *StoreTOML               `json:"store,omitempty" toml:"store,omitempty"`
}

// LayerMetadata is one layer of BuildpackLayers.
type LayerMetadata struct {
	SHA    string         `json:"sha" toml:"sha"`
	Data   map[string]any `json:"data" toml:"data,omitempty"`
	Build  bool           `json:"build" toml:"build"`
	Launch bool           `json:"launch" toml:"launch"`
	Cache  bool           `json:"cache" toml:"cache"`
}

// RunImageForRebase is the base that an app image stands on.
type RunImageForRebase struct {
	TopLayer  string   `json:"topLayer" toml:"top-layer"`
	Reference string   `json:"reference" toml:"reference"`
	Image     string   `json:"image,omitempty" toml:"image,omitempty"`
	Mirrors   []string `json:"mirrors,omitempty" toml:"mirrors,omitempty"`
}

// StackForRebase is the deprecated twin of RunImageForRebase.
type StackForRebase struct {
	RunImage RunImageEntry `json:"runImage" toml:"run-image"`
}

// CacheMetadata describes a cache: label of a cache image, file of a volume cache.
type CacheMetadata struct {
	SBOM       LayerSHA          `json:"sbom"`
	Buildpacks []BuildpackLayers `json:"buildpacks"`
}

// BuildLabel is the label io.buildpacks.build.metadata.
type BuildLabel struct {
	Processes          []Process      `json:"processes"`
	Buildpacks         []GroupElement `json:"buildpacks"`
	Extensions         []GroupElement `json:"extensions,omitempty"`
	Launcher           LauncherInfo   `json:"launcher"`
	DefaultProcessType string         `json:"buildpack-default-process-type,omitempty"`
}

// LauncherInfo says which launcher is in an image.
type LauncherInfo struct {
	Version string         `json:"version"`
	Source  LauncherSource `json:"source"`
}

// LauncherSource is where the launcher was built from.
type LauncherSource struct {
	Git LauncherGit `json:"git"`
}

// LauncherGit is a repository and a commit.
type LauncherGit struct {
	Repository string `json:"repository"`
	Commit     string `json:"commit"`
}
