package phase

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/spec"
)

// objections are the reasons not to rebase, as sentences, none if it is safe
// (Platform API, "rebaser"): the image says that it cannot be rebased, the run
// image is for another target, or the app image does not name it. An app image
// that was built before there were targets is held to its stack instead.
func (s standing) objections(name string, base *v1.ConfigFile) []string {
	var list []string
	if s.config.Config.Labels[spec.RebasableLabel] == "false" {
		list = append(list, fmt.Sprintf("the app image has the label %s=false", spec.RebasableLabel))
	}
	if !spec.Has(platformAPIOf(s.config), spec.PlatformTargets) {
		return append(list, stackDiffers(s.config, base)...)
	}
	list = append(list, targetDiffers(s.config, base)...)
	if !s.knows(name) {
		known := "names no run image"
		if s.asked.Image != "" {
			known = "names only " + strings.Join(append([]string{s.asked.Image}, s.asked.Mirrors...), ", ")
		}
		list = append(list, fmt.Sprintf("the app image does not know the run image %s: it %s", name, known))
	}
	return list
}

// platformAPIOf is the version of the Platform API that an image was built with.
func platformAPIOf(cf *v1.ConfigFile) string {
	for _, kv := range cf.Config.Env {
		if api, ok := strings.CutPrefix(kv, "CNB_PLATFORM_API="); ok {
			return api
		}
	}
	return ""
}

// targetDiffers compares the targets. What one of the two leaves open fits.
func targetDiffers(app, base *v1.ConfigFile) []string {
	a, aErr := targetOfConfig(app)
	b, bErr := targetOfConfig(base)
	switch {
	case aErr != nil:
		return []string{"the app image cannot be compared: " + aErr.Error()}
	case bErr != nil:
		return []string{"the run image cannot be compared: " + bErr.Error()}
	}
	var list []string
	compare := func(what, a, b string, open bool) {
		if a != b && !(open && (a == "" || b == "")) {
			list = append(list, fmt.Sprintf("the app image is for %s %q, the run image for %q", what, a, b))
		}
	}
	compare("operating system", a.OS, b.OS, false)
	compare("architecture", a.Arch, b.Arch, false)
	compare("variant", a.Variant, b.Variant, true)
	if a.Distro != nil && b.Distro != nil {
		compare("distribution", a.Distro.Name, b.Distro.Name, true)
		compare("distribution version", a.Distro.Version, b.Distro.Version, true)
	}
	return list
}

// stackDiffers compares stacks: the same ID, and no mixin that is missing.
func stackDiffers(app, base *v1.ConfigFile) []string {
	var list []string
	if a, b := app.Config.Labels[spec.StackIDLabel], base.Config.Labels[spec.StackIDLabel]; a != b {
		list = append(list, fmt.Sprintf("the app image is for the stack %q, the run image for %q", a, b))
	}
	want, err := mixins(app)
	if err != nil {
		return append(list, "the app image: "+err.Error())
	}
	have, err := mixins(base)
	if err != nil {
		return append(list, "the run image: "+err.Error())
	}
	var missing []string
	for _, m := range want {
		if !slices.Contains(have, m) {
			missing = append(missing, m)
		}
	}
	if len(missing) > 0 {
		list = append(list, "the run image lacks the mixins "+strings.Join(missing, ", "))
	}
	return list
}

// mixins are those of an image's label. On a run image, "run:x" is x.
func mixins(cf *v1.ConfigFile) ([]string, error) {
	text := cf.Config.Labels[spec.StackMixinsLabel]
	if text == "" {
		return nil, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("label %s: %w", spec.StackMixinsLabel, err)
	}
	for i := range list {
		list[i] = strings.TrimPrefix(list[i], "run:")
	}
	return list, nil
}
