package spec

// LifecycleDescriptor is lifecycle.toml: what a packed lifecycle can do
// (Distribution, "Lifecycle"; requirements 6.5).
type LifecycleDescriptor struct {
	APIs      LifecycleAPIs `toml:"apis"`
	API       LegacyAPIs    `toml:"api"`
	Lifecycle LifecycleInfo `toml:"lifecycle"`
}

// LifecycleAPIs are the versions of both APIs that a lifecycle speaks.
type LifecycleAPIs struct {
	Buildpack APIVersions `toml:"buildpack" json:"buildpack"`
	Platform  APIVersions `toml:"platform" json:"platform"`
}

// APIVersions are versions of one API. Those that are deprecated are supported.
type APIVersions struct {
	Deprecated []string `toml:"deprecated" json:"deprecated"`
	Supported  []string `toml:"supported" json:"supported"`
}

// LegacyAPIs is the form from before there were several: the lowest versions.
type LegacyAPIs struct {
	Buildpack string `toml:"buildpack" json:"buildpack"`
	Platform  string `toml:"platform" json:"platform"`
}

// LifecycleInfo is the [lifecycle] table.
type LifecycleInfo struct {
	Version     string   `toml:"version"`
	SBOMFormats []string `toml:"sbom-formats,omitempty"`
}

// OwnLifecycle describes this lifecycle.
func OwnLifecycle() LifecycleDescriptor {
	return LifecycleDescriptor{
		APIs: LifecycleAPIs{
			Buildpack: APIVersions{Deprecated: filled(DeprecatedBuildpackAPIs), Supported: BuildpackAPIs},
			Platform:  APIVersions{Deprecated: filled(DeprecatedPlatformAPIs), Supported: PlatformAPIs},
		},
		API:       LegacyAPIs{Buildpack: BuildpackAPIs[0], Platform: PlatformAPIs[0]},
		Lifecycle: LifecycleInfo{Version: Version, SBOMFormats: []string{"application/vnd.cyclonedx+json", "application/spdx+json", "application/vnd.syft+json"}},
	}
}

// ReadLifecycle reads lifecycle.toml, in either form. In the legacy one the one
// version of each API is what is supported.
func ReadLifecycle(b []byte, name string) (LifecycleDescriptor, error) {
	var l LifecycleDescriptor
	d, err := decode(b, name, &l)
	if err == nil {
		err = first(d.versions(&l.APIs.Buildpack, l.API.Buildpack, "buildpack"), d.versions(&l.APIs.Platform, l.API.Platform, "platform"))
	}
	if err != nil {
		return LifecycleDescriptor{}, err
	}
	return l, nil
}

func (d document) versions(v *APIVersions, legacy, api string) error {
	if len(v.Supported) == 0 && legacy != "" {
		v.Supported = []string{legacy}
	}
	if len(v.Supported) == 0 {
		return d.fault("must be set", "apis", api, "supported")
	}
	for _, list := range []struct {
		key      string
		versions []string
	}{{"supported", v.Supported}, {"deprecated", v.Deprecated}} {
		for i, s := range list.versions {
			if _, err := parseAPI(s); err != nil {
				return d.faultErr(err, "apis", api, list.key, i)
			}
		}
	}
	for i, s := range v.Deprecated {
		if !OneOf(s, v.Supported) {
			return d.fault("is deprecated, and not supported", "apis", api, "deprecated", i)
		}
	}
	return nil
}

// HighestCommon is the highest version that is in both lists: what a platform
// sets CNB_PLATFORM_API to. It is false if there is none.
func HighestCommon(a, b []string) (string, bool) {
	var best apiVersion
	found := ""
	for _, s := range a {
		if v, err := parseAPI(s); err == nil && OneOf(s, b) && (found == "" || v.compare(best) > 0) {
			best, found = v, s
		}
	}
	return found, found != ""
}
