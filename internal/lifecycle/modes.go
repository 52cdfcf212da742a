package lifecycle

import (
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/internal/spec"
)

// experimental holds a feature that may still change to what the platform says
// of such (Platform API, "Experimental Features").
func (h Host) experimental(in inputs, feature string) error {
	switch in.experimental {
	case "error":
		err := fmt.Errorf("%s are experimental in platform API %s", feature, in.api)
		return spec.Exit(spec.ExitGeneric, spec.WithHint(err, "CNB_EXPERIMENTAL_MODE=warn allows them"))
	case "silent", "quiet":
	default:
		h.warn("%s are experimental in platform API %s and may change", feature, in.api)
	}
	return nil
}

// deprecated holds what a later version will not know to what the platform says
// of such (RFC 0049). code is the exit code where that is to fail.
func (h Host) deprecated(in inputs, code int, what, instead string) error {
	switch in.deprecation {
	case "error":
		err := fmt.Errorf("%s is deprecated, and CNB_DEPRECATION_MODE is error", what)
		return spec.Exit(code, spec.WithHint(err, "%s", instead))
	case "silent", "quiet":
	default:
		h.warn("%s is deprecated: %s", what, instead)
	}
	return nil
}

// deprecatedInputs looks at what the platform said.
func (h Host) deprecatedInputs(in inputs) error {
	if spec.OneOf(in.api, spec.DeprecatedPlatformAPIs) {
		newest := spec.PlatformAPIs[len(spec.PlatformAPIs)-1]
		if err := h.deprecated(in, spec.ExitPlatformAPI, "platform API "+in.api, "the newest is "+newest); err != nil {
			return err
		}
	}
	if in.deprecatedImage != "" {
		return h.deprecated(in, spec.ExitInvalidArgs, "-image", "the flag is -run-image now")
	}
	return nil
}

// deprecatedMembers looks at the buildpacks and extensions of a group.
func (h Host) deprecatedMembers(in inputs, group spec.Group) error {
	for _, e := range slices.Concat(group.Group, group.GroupExtensions) {
		if !spec.OneOf(e.API, spec.DeprecatedBuildpackAPIs) {
			continue
		}
		newest := spec.BuildpackAPIs[len(spec.BuildpackAPIs)-1]
		if err := h.deprecated(in, spec.ExitBuildpackAPI, fmt.Sprintf("buildpack API %s of %s", e.API, e), "the newest is "+newest); err != nil {
			return err
		}
	}
	return nil
}
