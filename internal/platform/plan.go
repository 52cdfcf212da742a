package platform

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kilnbuild/kiln/internal/dockerfile"
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
	dirKaniko    = "/kaniko"
)

// Step is one phase of a build as data: what is run, with what, and whether it
// runs foreign code or holds credentials. It never does both.
type Step struct {
	Phase string   `json:"phase"`
	Args  []string `json:"args"`
	Env   []string `json:"env"`
	// Mounts are the places of the build container that the step sees besides
	// the builder's own files: nothing else is mounted for it.
	Mounts []string `json:"mounts"`
	// Registries are the hosts whose credentials the step may use; none other
	// is spoken to.
	Registries []string `json:"registries,omitempty"`
	// Foreign steps run buildpacks: in a sandbox, without credentials.
	Foreign bool   `json:"foreign"`
	Network string `json:"network,omitempty"`
}

// Builder is what Plan has to know of a builder image.
type Builder struct {
	Name string
	// RunImage is the first run image of the builder. Its mirrors are left
	// alone: the image ID must not depend on where an image is sent.
	RunImage string
	// RunImages are all of them, for its image extensions to choose from.
	RunImages []string
	// Extensions tells whether its order has image extensions.
	Extensions bool
	UID, GID   int
}

// Plan turns a request into the steps that answer it. It is a pure function:
// the same request and builder give the same steps, and nothing is touched.
//
// Whether an image is to be extended is only known when the detector is done. A
// builder that has image extensions gets the steps for it anyway: they find out
// and do nothing where there is nothing to do. That of kind build ends where
// the builder begins, which is a step of its own.
func Plan(req Request, b Builder) []Step {
	env := []string{"CNB_PLATFORM_API=" + spec.PlatformAPIs[len(spec.PlatformAPIs)-1]}
	if req.ExecEnv != "" {
		env = append(env, "CNB_EXEC_ENV="+req.ExecEnv)
	}
	common := []string{"-log-level", cmp.Or(req.LogLevel, "info"), "-layers", dirLayers}
	registries := registriesOf(req, b)
	trusted := func(phase string, args ...string) Step {
		ids := []string{"-uid", strconv.Itoa(b.UID), "-gid", strconv.Itoa(b.GID)}
		return Step{Phase: phase, Args: slices.Concat(common, ids, args), Env: slices.Clone(env), Mounts: []string{dirLayers}, Registries: registries}
	}
	inside := []string{dirLayers, dirApp, dirPlatform}
	for _, v := range req.Volumes {
		if !slices.Contains(inside, v.Target) {
			inside = append(inside, v.Target)
		}
	}
	foreign := func(phase string, args ...string) Step {
		return Step{Phase: phase, Args: slices.Concat(common, args), Env: slices.Clone(env), Mounts: slices.Clone(inside),
			Foreign: true, Network: cmp.Or(req.Network, "host")}
	}

	analyze := []string{"-run-image", bareName(cmp.Or(req.RunImage, b.RunImage))}
	for _, t := range req.Tags {
		analyze = append(analyze, "-tag", t)
	}
	var skip []string
	if req.ClearCache {
		skip = []string{"-skip-layers"}
	}
	analyze = append(append(analyze, skip...), req.Image)

	detect := []string{"-app", dirApp, "-platform", dirPlatform}
	if req.NoSystem {
		detect = append(detect, "-system=")
	}

	if req.Plan != "" {
		detect = append(detect, "-decided")
	}

	// What would be in its usual place is a buildpack's.
	export := []string{"-project-metadata="}
	if req.DefaultProcess != "" {
		export = append(export, "-process-type", req.DefaultProcess)
	}
	export = append(append(export, "-app", dirApp, req.Image), req.Tags...)

	exporter := trusted("exporter", export...)
	exporter.Mounts = []string{dirLayers, dirApp}
	if req.SourceDateEpoch != "" {
		exporter.Env = append(exporter.Env, "SOURCE_DATE_EPOCH="+req.SourceDateEpoch)
	}
	steps := []Step{
		trusted("analyzer", analyze...),
		foreign("detector", detect...),
		trusted("restorer", skip...),
		foreign("builder", "-app", dirApp, "-platform", dirPlatform),
		exporter,
	}
	if !b.Extensions {
		return steps
	}
	extender := func(kind dockerfile.Kind) Step {
		s := foreign("extender", "-kind", string(kind), "-app", dirApp)
		s.Mounts = []string{dirLayers, dirApp, dirKaniko}
		return s
	}
	steps[2].Args = append(steps[2].Args, "-build-image", b.Name)
	steps[2].Mounts = append(steps[2].Mounts, dirKaniko)
	steps = slices.Insert(steps, 3, extender(dockerfile.Build))
	return slices.Insert(steps, 5, extender(dockerfile.Run))
}

// registriesOf lists the hosts that the trusted steps of a build may log in to.
func registriesOf(req Request, b Builder) []string {
	var hosts []string
	add := func(ref string) {
		if host, ok := registryOf(ref); ok && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	for _, d := range req.Outputs {
		if d.Kind == ToRegistry {
			add(req.Image)
			for _, t := range req.Tags {
				add(t)
			}
		}
	}
	runs := []string{cmp.Or(req.RunImage, b.RunImage)}
	if b.Extensions {
		runs = append(runs, b.RunImages...)
	}
	for _, run := range runs {
		if run != builtinRunImage {
			add(run)
		}
	}
	return hosts
}

// registryOf is the host that a reference, by tag or digest, leads to.
func registryOf(ref string) (string, bool) {
	if onThisHost(ref) {
		return "", false
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return "", false
	}
	return r.Context().RegistryStr(), true
}
