package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// PlatformAPIs and BuildpackAPIs are the versions of the Platform and
// Buildpack API that kiln speaks, oldest first.
var (
	PlatformAPIs  = []string{"0.7", "0.8", "0.9", "0.10", "0.11", "0.12", "0.13", "0.14", "0.15"}
	BuildpackAPIs = []string{"0.7", "0.8", "0.9", "0.10", "0.11", "0.12"}
)

// DeprecatedPlatformAPIs and DeprecatedBuildpackAPIs are those of them that a
// later kiln will not speak. There are none now.
var DeprecatedPlatformAPIs, DeprecatedBuildpackAPIs []string

// Feature is something that came (or went) with a version of an API. Those
// named Platform... are asked of a Platform API version, those named
// Buildpack... of a Buildpack API version. Has is the only version check of
// the project.
type Feature int

// Features of the Platform API.
const (
	PlatformSBOM                Feature = iota // SBOM layer and its key in the lifecycle label
	PlatformSourceDateEpoch                    // SOURCE_DATE_EPOCH decides "created"
	PlatformSBOMTree                           // <layers>/sbom/{launch,build}/<bpid>
	PlatformSkipLayersAnalyze                  // analyzer -skip-layers and -launch-cache
	PlatformProcessWorkingDir                  // working-dir of processes
	PlatformCommandList                        // command is a list; args are defaults that a user replaces
	PlatformExtensions                         // image extensions; below it they do not exist
	PlatformStableExtensions                   // ... and are no longer experimental
	PlatformStoreAlways                        // -skip-restore and -skip-layers still restore store.toml
	PlatformBuildConfig                        // operator's environment in <build-config>
	PlatformLauncherSBOM                       // SBOMs of launcher and lifecycle
	PlatformBuildLabelAPI                      // api in the build metadata label
	PlatformRebasePrevious                     // rebaser -previous-image
	PlatformTargets                            // targets instead of stacks and mixins; run.toml instead of stack.toml
	PlatformRunImageExtension                  // extender -kind run
	PlatformForceRebase                        // rebaser -force and its checks
	PlatformLayout                             // OCI layout (experimental)
	PlatformHistory                            // history of the base image is kept, one entry per layer
	PlatformInsecureRegistry                   // -insecure-registry
	PlatformParallelExport                     // exporter -parallel
	PlatformGeneratedByID                      // <generated>/<extension>/<kind>.Dockerfile and contexts
	PlatformBuildImageExtend                   // build-image.extend in analyzed.toml
	PlatformKeepCacheImage                     // the previous cache image is not deleted
	PlatformRestoreRunImage                    // restorer resolves the run image to a digest; -run
	PlatformRestoreWithoutImage                // launch+cache layers come back even if the app image lacks them
	PlatformExecEnv                            // execution environments
	PlatformSystemBuildpacks                   // system.toml
	PlatformStackTOML                          // stack.toml and -stack; gone with targets

	BuildpackEnvInputs  // inputs by CNB_ variables (arguments are still passed)
	BuildpackWorkingDir // working-dir of processes
	BuildpackOverridableArgs
	BuildpackCommandList // command is a list and there is no key "direct"
	BuildpackExtensions  // extensions exist
	BuildpackTargets     // targets, CNB_TARGET_*
	BuildpackExecEnv     // exec-env, CNB_EXEC_ENV
)

// span is the versions that have a feature: from since, up to but without until.
type span struct{ since, until string }

var features = map[Feature]span{
	PlatformSBOM:                {since: "0.8"},
	PlatformSourceDateEpoch:     {since: "0.9"},
	PlatformSBOMTree:            {since: "0.9"},
	PlatformSkipLayersAnalyze:   {since: "0.9"},
	PlatformProcessWorkingDir:   {since: "0.9"},
	PlatformCommandList:         {since: "0.10"},
	PlatformExtensions:          {since: "0.10"},
	PlatformStableExtensions:    {since: "0.13"},
	PlatformStoreAlways:         {since: "0.10"},
	PlatformBuildConfig:         {since: "0.11"},
	PlatformLauncherSBOM:        {since: "0.11"},
	PlatformBuildLabelAPI:       {since: "0.11"},
	PlatformRebasePrevious:      {since: "0.11"},
	PlatformTargets:             {since: "0.12"},
	PlatformRunImageExtension:   {since: "0.12"},
	PlatformForceRebase:         {since: "0.12"},
	PlatformLayout:              {since: "0.12"},
	PlatformHistory:             {since: "0.12"},
	PlatformInsecureRegistry:    {since: "0.13"},
	PlatformParallelExport:      {since: "0.13"},
	PlatformGeneratedByID:       {since: "0.13"},
	PlatformBuildImageExtend:    {since: "0.13"},
	PlatformKeepCacheImage:      {since: "0.13"},
	PlatformRestoreRunImage:     {since: "0.14"},
	PlatformRestoreWithoutImage: {since: "0.14"},
	PlatformExecEnv:             {since: "0.15"},
	PlatformSystemBuildpacks:    {since: "0.15"},
	PlatformStackTOML:           {until: "0.12"},

	BuildpackEnvInputs:       {since: "0.8"},
	BuildpackWorkingDir:      {since: "0.8"},
	BuildpackOverridableArgs: {since: "0.9"},
	BuildpackCommandList:     {since: "0.9"},
	BuildpackExtensions:      {since: "0.9"},
	BuildpackTargets:         {since: "0.10"},
	BuildpackExecEnv:         {since: "0.12"},
}

// Has reports whether version api of the Platform or Buildpack API has the
// feature. A version that cannot be read has none: check it first, with
// SupportedPlatform or SupportedBuildpack.
func Has(api string, feature Feature) bool {
	s, ok := features[feature]
	return ok && InRange(api, s.since, s.until)
}

// InRange reports whether since <= api < until; an empty bound is open. It is
// for tables of versions, such as the lifecycle's flags; code asks Has.
func InRange(api, since, until string) bool {
	v, err := parseAPI(api)
	if err != nil {
		return false
	}
	if since != "" {
		if s, err := parseAPI(since); err != nil || v.compare(s) < 0 {
			return false
		}
	}
	if until != "" {
		if u, err := parseAPI(until); err != nil || v.compare(u) >= 0 {
			return false
		}
	}
	return true
}

// SupportedPlatform fails with ExitPlatformAPI unless kiln speaks version api
// of the Platform API. An empty api, that is, CNB_PLATFORM_API unset, fails too.
func SupportedPlatform(api string) error {
	if strings.TrimSpace(api) == "" {
		err := fmt.Errorf("CNB_PLATFORM_API is not set")
		return Exit(ExitPlatformAPI, WithHint(err, "set it to one of %s", strings.Join(PlatformAPIs, ", ")))
	}
	if err := supported(api, PlatformAPIs); err != nil {
		return Exit(ExitPlatformAPI, WithHint(fmt.Errorf("platform API %q: %w", api, err),
			"CNB_PLATFORM_API can be one of %s", strings.Join(PlatformAPIs, ", ")))
	}
	return nil
}

// SupportedBuildpack fails with ExitBuildpackAPI unless kiln speaks version
// api of the Buildpack API.
func SupportedBuildpack(api string) error {
	if err := supported(api, BuildpackAPIs); err != nil {
		return Exit(ExitBuildpackAPI, WithHint(fmt.Errorf("buildpack API %q: %w", api, err),
			"kiln runs buildpacks of API %s", strings.Join(BuildpackAPIs, ", ")))
	}
	return nil
}

func supported(api string, apis []string) error {
	if _, err := parseAPI(api); err != nil {
		return err
	}
	if !OneOf(api, apis) {
		return fmt.Errorf("not supported")
	}
	return nil
}

// OneOf says whether a version of an API is in a list, however it is spelled.
func OneOf(api string, apis []string) bool {
	v, err := parseAPI(api)
	return err == nil && slices.ContainsFunc(apis, func(s string) bool {
		known, err := parseAPI(s)
		return err == nil && known == v
	})
}

// apiVersion is <major>.<minor>.
type apiVersion struct{ major, minor uint64 }

func (a apiVersion) compare(b apiVersion) int {
	return cmp.Or(cmp.Compare(a.major, b.major), cmp.Compare(a.minor, b.minor))
}

// parseAPI reads <major>.<minor> or <major>, the latter meaning <major>.0. A
// leading "v" is tolerated, as the reference does.
func parseAPI(s string) (apiVersion, error) {
	major, minor, dotted := strings.Cut(strings.TrimPrefix(s, "v"), ".")
	if !dotted {
		minor = "0"
	}
	var v apiVersion
	var err1, err2 error
	v.major, err1 = strconv.ParseUint(major, 10, 64)
	v.minor, err2 = strconv.ParseUint(minor, 10, 64)
	if err1 != nil || err2 != nil {
		return apiVersion{}, fmt.Errorf("not a version of the form <major>.<minor>")
	}
	return v, nil
}
