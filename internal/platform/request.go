// Package platform turns a request for an image into steps of the lifecycle
// and carries them out: trusted steps in this process, foreign ones (they run
// buildpacks) in a sandbox.
package platform

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// Request is what a person asks for when they type `kiln build`. It is plain
// values: nothing in it has been opened or checked against the disk.
type Request struct {
	// Image is the name the image gets; Tags are more names for it.
	Image string
	Tags  []string
	// Path is the app's source directory.
	Path string
	// Builder is a builder image; empty means the built-in one.
	Builder string
	// RunImage overrides the builder's run image.
	RunImage string
	// Buildpacks replaces the builder's order by one group: directories, IDs in
	// the builder (id or id@version), or buildpackage images.
	Buildpacks []string
	// Group is used like Buildpacks, Pre and Post are put before and after every
	// group: they come from the project descriptor.
	Group, Pre, Post []spec.ProjectBuildpack
	// Plan is a file with the group and plan to build with, as
	// spec.ReadDecision reads it; empty means that a detection decides.
	Plan string
	// NoSystem leaves out the builder's system buildpacks.
	NoSystem bool
	// ExecEnv is the execution environment; empty means production.
	ExecEnv string
	// Env is what the user wants buildpacks to see; it becomes files in
	// <platform>/env.
	Env map[string]string
	// DefaultProcess is the process type that the entrypoint starts.
	DefaultProcess string
	Volumes        []Volume
	// Network of the foreign steps: host or none.
	Network    string
	ClearCache bool
	// Outputs is where the image goes; empty means the store.
	Outputs []Destination
	// Descriptor is the path of project.toml; empty means the one in Path, if any.
	Descriptor string
	// Insecure lists registries that may be spoken to over plain HTTP.
	Insecure []string
	// Isolation pins the sandbox tier; empty takes the best there is.
	Isolation string
	// SourceDateEpoch is the image's creation time in seconds; empty means the
	// spec's constant.
	SourceDateEpoch string
	// LogLevel of buildpacks and lifecycle: debug or info.
	LogLevel string
	// Mirror is a Debian mirror for the built-in builder; empty means apt's.
	Mirror string
}

// Volume is a host directory or file that the foreign steps see.
type Volume struct {
	Source, Target string
	ReadOnly       bool
}

// ParseVolume reads pack's form: source:target[:ro|rw]. Read-only is the default.
func ParseVolume(s string) (Volume, error) {
	parts := strings.Split(s, ":")
	v := Volume{ReadOnly: true}
	if len(parts) < 2 || len(parts) > 3 {
		return v, badInput(fmt.Errorf("volume %q: want source:target[:ro|rw]", s), "for example --volume \"$PWD/settings:/platform/bindings/settings\"")
	}
	v.Source, v.Target = parts[0], parts[1]
	if !strings.HasPrefix(v.Source, "/") || !strings.HasPrefix(v.Target, "/") {
		return v, badInput(fmt.Errorf("volume %q: both paths must be absolute", s), "write it as \"$PWD/dir:/target\"")
	}
	v.Target = path.Clean(v.Target)
	if ownedByBuild(v.Target) {
		return v, badInput(fmt.Errorf("volume %q: %s belongs to the build", s, v.Target), "mount it somewhere else, for example below /volumes")
	}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
		case "rw":
			v.ReadOnly = false
		default:
			return v, badInput(fmt.Errorf("volume %q: unknown option %q", s, parts[2]), "options are ro (default) and rw")
		}
	}
	return v, nil
}

// ownedByBuild says whether a place of the build container must not be covered:
// what the lifecycle works in, and what the sandbox provides. Below the app and
// the platform directory (bindings) there is room.
func ownedByBuild(target string) bool {
	if slices.Contains([]string{"/", dirApp, dirPlatform}, target) {
		return true
	}
	return slices.ContainsFunc([]string{dirLayers, dirSystem, dirKaniko, dirPlatform + "/env", "/proc", "/dev", "/sys"}, func(own string) bool {
		return target == own || strings.HasPrefix(target, own+"/")
	})
}

// DestinationKind says what sort of place an image goes to.
type DestinationKind string

// The places that kiln writes images to.
const (
	ToStore         DestinationKind = "store"
	ToRegistry      DestinationKind = "registry"
	ToLayout        DestinationKind = "oci"
	ToOCIArchive    DestinationKind = "oci-archive"
	ToDockerArchive DestinationKind = "docker-archive"
	ToDaemon        DestinationKind = "docker-daemon"
)

// Destination is one place for the image. Path is empty for the store, a
// registry and the daemon.
type Destination struct {
	Kind DestinationKind
	Path string
}

// ParseDestination reads the form of --output: oci:DIR, oci-archive:FILE,
// docker-archive:FILE or docker-daemon.
func ParseDestination(s string) (Destination, error) {
	kind, path, ok := strings.Cut(s, ":")
	switch k := DestinationKind(kind); k {
	case ToLayout, ToOCIArchive, ToDockerArchive:
		if !ok || path == "" {
			return Destination{}, badInput(fmt.Errorf("output %q names no path", s), fmt.Sprintf("write it as %s:PATH", kind))
		}
		return Destination{Kind: k, Path: path}, nil
	case ToDaemon:
		if ok {
			return Destination{}, badInput(fmt.Errorf("output %q names the image", s), "it gets the name that is built, and those of --tag: write --output docker-daemon")
		}
		return Destination{Kind: k}, nil
	}
	return Destination{}, badInput(fmt.Errorf("output %q is of no known kind", s), "use oci:DIR, oci-archive:FILE, docker-archive:FILE or docker-daemon; --publish sends to a registry")
}

// ImageName is a checked image name in the two forms that people and
// registries use.
type ImageName struct {
	// Short is the name as docker would show it: hello:latest.
	Short string
	// Full is the same with registry and namespace: index.docker.io/library/hello:latest.
	Full string
	// Registry is the host that Full begins with.
	Registry string
}

// ParseImageName checks a name that an image is to get: a tag, never a digest.
func ParseImageName(s string) (ImageName, error) {
	tag, err := name.NewTag(s, name.WeakValidation)
	var short string
	if err == nil {
		short, err = store.Name(tag.Name())
	}
	// The parser takes the dots of a path like ./my-app for a host.
	if err != nil || strings.HasPrefix(s, ".") {
		hint := "a name looks like my-app, my-app:1.2 or registry.example.com/team/my-app"
		if strings.Contains(s, "@") {
			hint = "a new image gets a name and a tag; its digest is only known when it is built"
		}
		if lower := strings.ToLower(s); lower != s {
			if _, err := ParseImageName(lower); err == nil {
				hint = fmt.Sprintf("names are lower case: did you mean %q?", lower)
			}
		}
		return ImageName{}, badInput(fmt.Errorf("image name %q: not a valid reference", s), hint)
	}
	return ImageName{Short: short, Full: tag.Name(), Registry: tag.RegistryStr()}, nil
}

// badInput marks an error as the caller's to mend.
func badInput(err error, hint string) error {
	return spec.Exit(spec.ExitInvalidArgs, spec.WithHint(err, "%s", hint))
}
