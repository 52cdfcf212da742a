package phase

import (
	"strings"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Dirs are the directories of a build as its buildpacks see them, all absolute.
type Dirs struct {
	App         string // CNB_APP_DIR
	Layers      string // <layers>
	Platform    string // <platform>: the user's variables in env/
	BuildConfig string // <build-config>: the operator's variables in env/
	Buildpacks  string // <buildpacks>/<escaped id>/<version>
	Extensions  string // <extensions>/<escaped id>/<version>
	Generated   string // <generated>: what image extensions leave
	// Lifecycle is where the lifecycle and the SBOMs of its own are, "" for nowhere.
	Lifecycle string
}

// Setting is what else the buildpacks of a build depend on.
type Setting struct {
	// PlatformAPI is CNB_PLATFORM_API; it must be a supported version.
	PlatformAPI string
	// ExecEnv is CNB_EXEC_ENV; empty is the default.
	ExecEnv string
	// Target is what the app image will run on: see TargetOf.
	Target spec.Target
	// Env is what buildpacks start from: see env.FromContainer.
	Env env.Env
}

// roots is where the buildpacks and extensions are.
func (d Dirs) roots() buildpack.Roots {
	return buildpack.Roots{Buildpacks: d.Buildpacks, Extensions: d.Extensions}
}

// inputs is what every executable of the phase gets.
func (s Setting) inputs(d Dirs) buildpack.Inputs {
	return buildpack.Inputs{
		App: d.App, Platform: d.Platform, BuildConfig: d.BuildConfig,
		Target: s.Target, ExecEnv: s.execEnv(), Env: s.Env,
		OperatorEnv: spec.Has(s.PlatformAPI, spec.PlatformBuildConfig),
	}
}

// execEnv is the execution environment, "" for platforms that know none.
func (s Setting) execEnv() string {
	if !spec.Has(s.PlatformAPI, spec.PlatformExecEnv) {
		return ""
	}
	if s.ExecEnv == "" {
		return spec.DefaultExecEnv
	}
	return s.ExecEnv
}

// TargetOf is the target of a build: that of the analyzed run image, with a
// distribution that is not known there taken from osRelease, the bytes of the
// build image's /etc/os-release (Platform API, "Target data").
func TargetOf(a spec.Analyzed, osRelease []byte) spec.Target {
	var t spec.Target
	if a.RunImage != nil && a.RunImage.Target != nil {
		t = *a.RunImage.Target
	}
	if t.Distro != nil && t.Distro.Name != "" {
		return t
	}
	t.Distro = nil
	var d spec.Distro
	for line := range strings.Lines(string(osRelease)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			d.Name = value
		case "VERSION_ID":
			d.Version = value
		}
	}
	if d.Name != "" {
		t.Distro = &d
	}
	return t
}

// WithSystem puts the system buildpacks before and after every group of order,
// except in groups that already have one of the same ID. Platform APIs that
// know no system buildpacks leave the order as it is (Platform API 0.15,
// "system.toml").
func WithSystem(platformAPI string, order spec.Order, system spec.System) spec.Order {
	if !spec.Has(platformAPI, spec.PlatformSystemBuildpacks) {
		return order
	}
	out := spec.Order{OrderExtensions: order.OrderExtensions}
	for _, g := range order.Order {
		absent := func(list []spec.GroupElement) (missing []spec.GroupElement) {
			for _, e := range list {
				if !hasID(g.Group, e.ID) {
					missing = append(missing, e)
				}
			}
			return missing
		}
		group := absent(system.System.Pre.Buildpacks)
		group = append(group, g.Group...)
		group = append(group, absent(system.System.Post.Buildpacks)...)
		out.Order = append(out.Order, spec.OrderGroup{Group: group})
	}
	return out
}

func hasID(list []spec.GroupElement, id string) bool {
	for _, e := range list {
		if e.ID == id {
			return true
		}
	}
	return false
}
