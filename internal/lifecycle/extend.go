package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Extender is how a host extends images elsewhere than in the build container,
// where the extender is root and the container is the image.
type Extender struct {
	// Machine opens where Dockerfiles are carried out, and what remembers them.
	// It is called once at most, and not for images that stay as they are.
	Machine func(ctx context.Context) (dockerfile.Machine, dockerfile.Cache, error)
	// Build is the build image with all its layers. The run image is opened by
	// Host.Places.
	Build v1.Image
	// FindUser looks up a user of an image; nil asks the machine.
	FindUser func(ctx context.Context, img v1.Image, user string) (dockerfile.User, error)

	// Extended is what the build image was extended to; nil if it was not. The
	// host builds on it: its phase ends where the builder would begin.
	Extended v1.Image
}

// extend is the extender.
func (h Host) extend(ctx context.Context, in inputs, environ []string) error {
	kind := dockerfile.Kind(in.kind)
	if kind == "" {
		kind = dockerfile.Build // what there was before there were kinds
	}
	if kind != dockerfile.Build && kind != dockerfile.Run {
		return spec.Exit(spec.ExitInvalidArgs, fmt.Errorf("-kind %s: must be %s or %s", kind, dockerfile.Build, dockerfile.Run))
	}
	analyzed, err := h.analyzed(in)
	if err != nil {
		return err
	}
	reference, err := h.toExtend(kind, analyzed)
	if err != nil {
		return err
	}
	if kind == dockerfile.Build {
		if err := h.mayLeaveRoot(in); err != nil {
			return err
		}
	}
	img := v1.Image(nil)
	if reference == "" {
		h.Events.Emit(event.Message{Level: event.Info, Text: fmt.Sprintf("the %s image is not to be extended", kind)})
	} else if img, err = h.extended(ctx, in, kind, reference, environ); err != nil {
		return h.explained(err)
	}
	switch {
	case kind == dockerfile.Run:
		return nil
	case h.Extender != nil:
		h.Extender.Extended = img
		return nil
	}
	return h.goOnAsBuilder(ctx, in, img, environ)
}

// toExtend is the reference of the image to extend, "" if it stays as it is.
func (h Host) toExtend(kind dockerfile.Kind, a spec.Analyzed) (string, error) {
	if kind == dockerfile.Run {
		switch {
		case a.RunImage == nil || !a.RunImage.Extend:
			return "", nil
		case a.RunImage.Reference == "":
			return "", errors.New("analyzed.toml has no reference of the run image that is to be extended")
		}
		return a.RunImage.Reference, nil
	}
	// In a container somebody wants the build that follows; whether there is
	// anything to extend, a document that knows no such field leaves open.
	if a.BuildImage != nil && !a.BuildImage.Extend && (h.Extender != nil || a.BuildImage.Reference == "") {
		return "", nil
	}
	if a.BuildImage == nil || a.BuildImage.Reference == "" {
		return "", spec.WithHint(errors.New("analyzed.toml has no reference of the build image"), "run the restorer with -build-image")
	}
	return a.BuildImage.Reference, nil
}

// extended applies the Dockerfiles of one kind. A run image goes to <extended>.
func (h Host) extended(ctx context.Context, in inputs, kind dockerfile.Kind, reference string, environ []string) (v1.Image, error) {
	group, err := decode(h, in.group, spec.ReadGroup)
	if err != nil {
		return nil, err
	}
	base, err := h.baseImage(ctx, kind, reference)
	if err != nil {
		return nil, err
	}
	machine, cache, err := h.machine(ctx, in, base, environ)
	if err != nil {
		return nil, err
	}
	x := phase.Extension{Kind: kind, PlatformAPI: in.api, Group: group, Base: reference}
	if h.Extender != nil {
		x.FindUser = h.Extender.FindUser
	}
	if x.Generated, err = h.directory(in.generated); err != nil {
		return nil, err
	}
	if x.App, err = h.directory(in.app); err != nil {
		return nil, err
	}
	img, err := phase.Extend(ctx, machine, cache, base, x, h.Events)
	if err != nil {
		return nil, err
	}
	if kind == dockerfile.Run {
		return img, h.saveExtended(ctx, in, base, img)
	}
	return img, h.become(ctx, machine, img)
}

// baseImage opens the image that the restorer saved.
func (h Host) baseImage(ctx context.Context, kind dockerfile.Kind, reference string) (v1.Image, error) {
	switch {
	case h.Extender != nil && kind == dockerfile.Build:
		return h.Extender.Build, nil
	case h.Extender != nil:
		return h.Places.open(ctx, h.Places.run, reference)
	}
	_, digest, ok := strings.Cut(reference, "@")
	if _, err := v1.NewHash(digest); !ok || err != nil {
		return nil, fmt.Errorf("%s: not a reference by digest, which the restorer would have made of it", reference)
	}
	img, err := archive.Layout{Dir: filepath.Join(string(h.kaniko()), "cache", "base", digest)}.Image(ctx, "")
	if err != nil {
		return nil, spec.WithHint(err, "run the restorer first, with the same %s", kanikoDir)
	}
	return img, nil
}

// kaniko is where restorer and extender meet.
func (h Host) kaniko() path {
	if stack, rel, ok := h.find(kanikoDir); ok {
		return path(filepath.Join(stack.Upper, rel))
	}
	return kanikoDir
}

// machine is where the Dockerfiles are carried out: on this host's own, or in
// this container, which is the image.
func (h Host) machine(ctx context.Context, in inputs, base v1.Image, environ []string) (dockerfile.Machine, dockerfile.Cache, error) {
	if h.Extender != nil {
		return h.Extender.Machine(ctx)
	}
	if os.Geteuid() != 0 {
		return nil, nil, spec.WithHint(errors.New("only root can extend the image of this container"), "start the extender as root, in a container of the image that is to be extended")
	}
	cf, err := base.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	kaniko := string(h.kaniko())
	machine, err := dockerfile.NewInPlace(dockerfile.InPlaceOptions{
		Base: cf.RootFS.DiffIDs, Skip: []string{string(in.app), string(in.layers), string(in.platform), string(in.generated), string(in.extended), kaniko},
		Env: proxiesOf(environ), Caches: filepath.Join(kaniko, "cache", "mounts"),
	})
	if err != nil {
		return nil, nil, err
	}
	cache, err := dockerfile.OpenDirectory(filepath.Join(kaniko, "cache", "layers"), in.kanikoTTL)
	return machine, cache, err
}

// proxiesOf are the variables that programs need to reach anything.
func proxiesOf(environ []string) []string {
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if name = strings.ToLower(name); name == "http_proxy" || name == "https_proxy" || name == "no_proxy" {
			env = append(env, kv)
		}
	}
	return env
}

// directory is a directory of the build container that may be missing.
func (h Host) directory(p path) (layer.Stack, error) {
	stack, rel, ok := h.find(p)
	if !ok {
		return layer.Stack{Upper: string(p)}, nil
	}
	if rel == "." {
		return stack, nil
	}
	return stack.Sub(rel)
}

// saveExtended leaves the extended run image for the exporter: its manifest, its
// config and the layers that are new. Whatever was there goes, and with it any
// link that foreign code left in its place.
func (h Host) saveExtended(ctx context.Context, in inputs, base, img v1.Image) error {
	dir := string(in.extended)
	if stack, rel, ok := h.find(in.extended); ok {
		dir = filepath.Join(stack.Upper, rel)
	}
	if err := layer.Remove(dir); err != nil {
		return err
	}
	below, err := base.Layers()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o755); err != nil {
		return err
	}
	if err := (archive.Layout{Dir: filepath.Join(dir, "run", digest.String())}).WriteSparse(ctx, img, len(layers)-len(below)); err != nil {
		return err
	}
	if !h.Own || os.Geteuid() != 0 || in.uid < 0 || in.gid < 0 {
		return nil
	}
	// Who exports may want to remove it, but need not be somebody here.
	if err := give(in.extended, in.uid, in.gid); !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// become sees to it that this container is what img says, also where all of it
// came from the cache.
func (h Host) become(ctx context.Context, machine dockerfile.Machine, img v1.Image) error {
	if h.Extender != nil {
		return nil
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	root, err := machine.Root(ctx, layers)
	if err != nil {
		return err
	}
	return root.Close()
}

// goOnAsBuilder ends what needs root and carries out the build, in the
// environment that the build image has now.
func (h Host) goOnAsBuilder(ctx context.Context, in inputs, img v1.Image, environ []string) error {
	if img != nil {
		cf, err := img.ConfigFile()
		if err != nil {
			return err
		}
		for _, kv := range cf.Config.Env {
			environ = withVariable(environ, kv)
		}
	}
	environ, err := h.leaveRoot(in, environ)
	if err != nil {
		return spec.Exit(spec.ExitGeneric, err)
	}
	in.phase = builder
	err = h.frame(builder, func() error { return h.phase(ctx, in, environ) })
	return spec.Exit(spec.ExitCode(err, exitCodes[builder]), err)
}

// withVariable is environ with NAME=value in the place of what NAME was.
func withVariable(environ []string, kv string) []string {
	name, _, _ := strings.Cut(kv, "=")
	environ = slices.DeleteFunc(slices.Clone(environ), func(old string) bool { return strings.HasPrefix(old, name+"=") })
	return append(environ, kv)
}

// explained says of what failed in a container without some capabilities which
// those are: programs only say that something is not permitted, if they do.
func (h Host) explained(err error) error {
	if h.Extender != nil || os.Geteuid() != 0 {
		return err
	}
	lacking := sandbox.Lacking()
	var exit *sandbox.ExitError
	if len(lacking) == 0 || !errors.As(err, &exit) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return spec.WithHint(err, "root in this container has not the capabilities %s, and to change an image may take them: start it with %s, or extend the image with kiln build, which needs none",
		strings.Join(lacking, ", "), sandbox.CapAdd(lacking))
}

// mayLeaveRoot finds out whether leaveRoot will do, before minutes are spent on
// Dockerfiles.
func (h Host) mayLeaveRoot(in inputs) error {
	if h.Extender != nil || !h.Own || os.Geteuid() != 0 || in.uid <= 0 || in.gid < 0 {
		return nil
	}
	if lacking := sandbox.Lacking("SETGID", "SETUID"); len(lacking) > 0 {
		err := fmt.Errorf("root in this container cannot become the build user %d:%d: it has not the capabilities %s", in.uid, in.gid, strings.Join(lacking, ", "))
		return spec.WithHint(err, "start the container with %s, or extend the image with kiln build, which needs none", sandbox.CapAdd(lacking))
	}
	if !idMapped("/proc/self/uid_map", in.uid) || !idMapped("/proc/self/gid_map", in.gid) {
		err := fmt.Errorf("this container has no user %d:%d, which is the build user's", in.uid, in.gid)
		return spec.WithHint(err, "give who starts the container sub-ids in /etc/subuid and /etc/subgid, or extend the image with kiln build, which needs none")
	}
	return nil
}

// idMapped says whether an id is one of this user namespace's. A file that cannot
// be read forbids nothing.
func idMapped(file string, id int) bool {
	b, err := os.ReadFile(file)
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, size int
		if n, _ := fmt.Sscan(line, &inside, &outside, &size); n == 3 && id >= inside && id-inside < size {
			return true
		}
	}
	return false
}

// leaveRoot makes this process, and <layers>, the build user's for good.
func (h Host) leaveRoot(in inputs, environ []string) ([]string, error) {
	if in.uid < 0 || in.gid < 0 {
		return nil, spec.WithHint(errors.New("the user of the build is not known"), "set -uid and -gid, or CNB_USER_ID and CNB_GROUP_ID")
	}
	if in.uid == 0 {
		return nil, spec.WithHint(errors.New("refusing to run buildpacks as root"), "-uid and CNB_USER_ID are the build image's user, who is not root")
	}
	if os.Geteuid() != 0 {
		return environ, nil
	}
	if !h.Own {
		return nil, errors.New("refusing to run buildpacks as root: this process does more than extend an image")
	}
	if err := give(in.layers, in.uid, in.gid); err != nil {
		return nil, fmt.Errorf("make %s the build user's: %w", in.layers, err)
	}
	environ = withUser(environ, in.uid)
	if err := become(in.uid, in.gid); err != nil {
		return nil, fmt.Errorf("become the build user %d:%d: %w", in.uid, in.gid, err)
	}
	return environ, nil
}
