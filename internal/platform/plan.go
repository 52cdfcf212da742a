package platform

import (
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Where things are in the build container. They are the spec's defaults, so
// that a builder which hard-codes one of them works.
const (
	dirLayers    = "/layers"
	dirApp       = "/workspace"
	dirPlatform  = "/platform"
	dirLifecycle = "/cnb/lifecycle"
	dirSystem    = "/cnb"
)

// Step is one phase of a build as data: what is run, with what, and whether it
// runs foreign code or holds credentials. It never does both.
type Step struct {
	Phase string   `json:"phase"`
	Args  []string `json:"args"`
	Env   []string `json:"env"`
	// Mounts are the directories of the build container that the step sees.
	Mounts []string `json:"mounts"`
	// Registries are the hosts whose credentials the step may use.
	Registries []string `json:"registries,omitempty"`
	// Foreign steps run buildpacks: in a sandbox, without credentials.
	Foreign bool   `json:"foreign"`
	Network string `json:"network,omitempty"`
}

// Builder is what Plan has to know of a builder image.
type Builder struct {
	Name string
	// RunImage is the first run image of the builder, Mirrors its other places.
	RunImage string
	Mirrors  []string
	UID, GID int
	// HasBuildConfig says that the builder brings operator env.
	HasBuildConfig bool
}

// Plan turns a request into the steps that answer it. It is a pure function:
// the same request and builder give the same steps, and nothing is touched.
func Plan(req Request, b Builder) []Step {
	api := "CNB_PLATFORM_API=" + spec.PlatformAPIs[len(spec.PlatformAPIs)-1]
	level := req.LogLevel
	if level == "" {
		level = "info"
	}
	common := []string{"-log-level", level, "-layers", dirLayers}
	registries := registriesOf(req, b)
	trusted := func(phase string, args ...string) Step {
		ids := []string{"-uid", strconv.Itoa(b.UID), "-gid", strconv.Itoa(b.GID)}
		return Step{Phase: phase, Args: slices.Concat(common, ids, args), Env: []string{api}, Mounts: []string{dirLayers}, Registries: registries}
	}
	foreign := func(phase string, args ...string) Step {
		return Step{Phase: phase, Args: slices.Concat(common, args), Env: []string{api},
			Mounts: []string{dirLayers, dirApp, dirPlatform}, Foreign: true, Network: networkOf(req)}
	}

	run := req.RunImage
	if run == "" {
		run = b.RunImage
	}
	analyze := []string{"-run-image", run}
	for _, t := range req.Tags {
		analyze = append(analyze, "-tag", t)
	}
	var skip []string
	if req.ClearCache {
		skip = []string{"-skip-layers"}
	}
	analyze = append(append(analyze, skip...), req.Image)

	var export []string
	if req.DefaultProcess != "" {
		export = append(export, "-process-type", req.DefaultProcess)
	}
	export = append(append(export, "-app", dirApp, req.Image), req.Tags...)

	exporter := trusted("exporter", export...)
	exporter.Mounts = []string{dirLayers, dirApp}
	if req.SourceDateEpoch != "" {
		exporter.Env = append(exporter.Env, "SOURCE_DATE_EPOCH="+req.SourceDateEpoch)
	}
	return []Step{
		trusted("analyzer", analyze...),
		foreign("detector", "-app", dirApp, "-platform", dirPlatform),
		trusted("restorer", skip...),
		foreign("builder", "-app", dirApp, "-platform", dirPlatform),
		exporter,
	}
}

func networkOf(req Request) string {
	if req.Network == "" {
		return "host"
	}
	return req.Network
}

// registriesOf lists the hosts that the trusted steps of a build may log in to.
func registriesOf(req Request, b Builder) []string {
	var hosts []string
	add := func(ref string) {
		n, err := ParseImageName(strings.SplitN(ref, "@", 2)[0])
		if err != nil {
			return
		}
		for _, h := range hosts {
			if h == n.Registry {
				return
			}
		}
		hosts = append(hosts, n.Registry)
	}
	for _, d := range req.Outputs {
		if d.Kind == ToRegistry {
			add(req.Image)
		}
	}
	if req.RunImage != "" {
		add(req.RunImage)
	} else if b.RunImage != "" && b.RunImage != builtinRunImage {
		add(b.RunImage)
	}
	return hosts
}
