package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// Platform is one host's kiln: its store, what it carries, and how it reaches
// registries.
type Platform struct {
	Store   *store.Store
	Payload Payload
	Host    HostFacts
	// Arch is Go's and OCI's name of the architecture that images are for.
	Arch string
	// Registry opens registries; insecure lists hosts for plain HTTP.
	Registry func(insecure []string) (*registry.Registry, error)
	// Daemon connects to the Docker or podman daemon, the first time that it is
	// called.
	Daemon func(context.Context) (*daemon.Daemon, error)
	// Executable is a path of the running kiln, for the sandbox's re-exec.
	Executable string
	Events     event.Sink

	hashing sync.Once
	carried string // digest of Payload
}

// normalTime is the creation time of what kiln makes of itself.
var normalTime = time.Date(1980, time.January, 1, 0, 0, 1, 0, time.UTC)

// payloadDigest names what this kiln carries, hashed once: it is 20 MB.
func (p *Platform) payloadDigest() string {
	p.hashing.Do(func() { p.carried = p.Payload.digest() })
	return p.carried
}

func (p *Platform) info(format string, args ...any) {
	p.Events.Emit(event.Message{Level: event.Info, Text: fmt.Sprintf(format, args...)})
}

func (p *Platform) warn(format string, args ...any) {
	p.Events.Emit(event.Message{Level: event.Warn, Text: fmt.Sprintf(format, args...)})
}

// waiting tells people what a lock is waited for, and who holds it.
func (p *Platform) waiting(what string) func(holder string) {
	return func(holder string) {
		if holder != "" {
			what += " (" + holder + ")"
		}
		p.info("waiting for another kiln that is working on %s", what)
	}
}

// open finds an image by the name that a person gave: oci:DIR, oci-archive:FILE,
// docker-archive:FILE, docker-daemon:NAME, an image of the store, or one in a registry, which is
// then kept in the store.
func (p *Platform) open(ctx context.Context, ref string, insecure []string) (v1.Image, error) {
	if place, inner, ok := archive.Parse(ref); ok {
		return place.Image(ctx, inner)
	}
	if name, ok := inDaemon(ref); ok {
		return p.fromDaemon(ctx, name)
	}
	img, err := p.Store.Image(ctx, ref)
	if err == nil || !errors.Is(err, image.ErrNotFound) {
		return img, err
	}
	reg, err := p.Registry(insecure)
	if err != nil {
		return nil, err
	}
	remote, err := reg.Image(ctx, ref)
	if errors.Is(err, image.ErrNotFound) {
		return nil, spec.WithHint(nowhere{ref}, "kiln images lists the store; oci:DIR, oci-archive:FILE, docker-archive:FILE and docker-daemon:NAME are read too")
	}
	if err != nil {
		return nil, fmt.Errorf("image %s is not in the store: %w", ref, err)
	}
	p.info("pulling %s", ref)
	if err := p.Store.Write(ctx, ref, remote); err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	return p.Store.Image(ctx, ref)
}

// nowhere is an image that is in no place where it was looked for.
type nowhere struct{ ref string }

func (n nowhere) Error() string {
	return fmt.Sprintf("image %s is neither in the store nor in its registry", n.ref)
}
func (n nowhere) Unwrap() error { return image.ErrNotFound }

// fits refuses an image of another machine: nothing can be run from it here.
func (p *Platform) fits(what string, cf *v1.ConfigFile) error {
	system, arch := cmp.Or(cf.OS, "linux"), cmp.Or(cf.Architecture, p.Arch)
	if system == "linux" && arch == p.Arch {
		return nil
	}
	return badInput(fmt.Errorf("%s is for %s/%s, and this machine is linux/%s", what, system, arch, p.Arch), "name one for linux/"+p.Arch)
}

// startWorker makes the user namespace that foreign steps run in. A tier that
// the user pinned is given or refused.
func (p *Platform) startWorker(ctx context.Context, tier string, uid, gid int, scratch string) (*sandbox.Worker, sandbox.Report, error) {
	w, report, err := sandbox.Start(ctx, sandbox.Options{
		Tier: sandbox.Tier(tier), UID: uid, GID: gid, Executable: p.Executable,
		Copy: func(ctx context.Context, dst string, o sandbox.Overlay) error {
			return layer.Copy(ctx, dst, layer.Stack{Upper: o.Upper, Lowers: o.Lowers})
		},
		Scratch: []string{scratch},
	})
	if err != nil {
		return nil, report, err
	}
	detail := ""
	if report.Tier != sandbox.Tier1 && tier == "" {
		detail = weaker(report)
	}
	for _, warning := range report.Warnings {
		p.warn("%s", warning)
	}
	p.Events.Emit(event.Isolation{Tier: string(report.Tier), Detail: detail})
	return w, report, nil
}

// weaker says what this host's sandbox is, and why it is no better.
func weaker(r sandbox.Report) string {
	text := strings.TrimPrefix(r.Detail, "tier "+string(r.Tier)+": ")
	for _, f := range r.Findings {
		text += "; " + f.String()
	}
	return text + "; kiln doctor says what would help"
}

// ImageInfo is what `kiln inspect` tells of an image.
type ImageInfo struct {
	Name    string                 `json:"name"`
	ID      string                 `json:"id"`
	Digest  string                 `json:"digest"`
	Size    int64                  `json:"size"`
	Created time.Time              `json:"created"`
	Config  *v1.ConfigFile         `json:"config"`
	Layers  []LayerInfo            `json:"layers"`
	Base    spec.RunImageForRebase `json:"base"`
	Build   *spec.BuildLabel       `json:"build,omitempty"`
}

// LayerInfo is one layer of an ImageInfo. Size is what the layer takes where
// the image is, in bytes.
type LayerInfo struct {
	DiffID    string `json:"diffID"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	CreatedBy string `json:"createdBy,omitempty"`
}

// Inspect reads an image without unpacking it. One in a daemon has no digest,
// for the daemon keeps no manifest.
func (p *Platform) Inspect(ctx context.Context, ref string, insecure []string) (ImageInfo, error) {
	var img v1.Image
	var err error
	name, there := inDaemon(ref)
	if there {
		var d daemonPlace
		if d, err = p.described(ctx); err == nil {
			img, err = d.Image(ctx, name)
		}
	} else {
		img, err = p.open(ctx, ref, insecure)
	}
	if err != nil {
		return ImageInfo{}, err
	}
	info, err := describe(img)
	if err != nil {
		return ImageInfo{}, fmt.Errorf("inspect %s: %w", ref, err)
	}
	if info.Name = ref; there {
		info.Digest = ""
	}
	return info, nil
}

func describe(img v1.Image) (ImageInfo, error) {
	var info ImageInfo
	cf, err := img.ConfigFile()
	if err != nil {
		return info, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return info, err
	}
	digest, err := img.Digest()
	if err != nil {
		return info, err
	}
	info = ImageInfo{ID: manifest.Config.Digest.String(), Digest: digest.String(), Created: cf.Created.Time, Config: cf, Size: manifest.Config.Size}
	var history []v1.History
	for _, h := range cf.History {
		if !h.EmptyLayer {
			history = append(history, h)
		}
	}
	for i, l := range manifest.Layers {
		li := LayerInfo{Digest: l.Digest.String(), Size: l.Size}
		if i < len(cf.RootFS.DiffIDs) {
			li.DiffID = cf.RootFS.DiffIDs[i].String()
		}
		if len(history) == len(manifest.Layers) {
			li.CreatedBy = history[i].CreatedBy
		}
		info.Size += l.Size
		info.Layers = append(info.Layers, li)
	}
	if m, err := spec.DecodeLifecycleMetadata(cf.Config.Labels[spec.LifecycleMetadataLabel]); err == nil {
		info.Base = m.RunImage
	}
	if b, err := spec.DecodeBuildLabel(cf.Config.Labels[spec.BuildMetadataLabel]); err == nil {
		info.Build = &b
	}
	return info, nil
}
