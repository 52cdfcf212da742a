package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// extending is where the Dockerfiles of a build's image extensions are carried
// out: in a sandbox of their own, for they need a root who can be anybody.
type extending struct {
	machine dockerfile.Machine
	cache   dockerfile.Cache
}

// extend carries out the Dockerfiles for one kind of image. It does so from
// this process, in which nothing of them runs; no registry is spoken to, since
// by now foreign code has had a say in which image is to be extended.
func (b *build) extend(ctx context.Context, step Step) error {
	b.to.hosts = step.Registries
	x := &lifecycle.Extender{
		Build: b.root.Image, FindUser: b.userOf,
		Machine: func(ctx context.Context) (dockerfile.Machine, dockerfile.Cache, error) {
			if b.extending == nil {
				if err := b.startExtending(ctx, step.Network); err != nil {
					return nil, nil, err
				}
			}
			return b.extending.machine, b.extending.cache, nil
		},
	}
	err := lifecycle.Do(ctx, step.Phase, step.Args, step.Env, lifecycle.Host{
		Events: b.tally, Dirs: b.dirs(step), Places: b.places, Extender: x,
	})
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("disk of store %s is full: %w", b.Store.Dir(), err)
	}
	if err != nil || x.Extended == nil {
		return err
	}
	return b.buildOn(ctx, x.Extended)
}

// startExtending starts the best sandbox for steps that run as root. What they
// make belongs to many users: only its worker can remove it.
func (b *build) startExtending(ctx context.Context, network string) error {
	tier := sandbox.BestRoot
	if b.req.Isolation == string(sandbox.Tier1S) {
		tier = sandbox.Tier1S
	}
	worker, report, err := sandbox.Start(ctx, sandbox.Options{Tier: tier, Executable: b.Executable, Scratch: []string{b.scratch}})
	if err != nil {
		return spec.Exit(spec.ExitExtend, fmt.Errorf("extend images: %w", err))
	}
	scratch := filepath.Join(b.scratch, "extend")
	b.undo = append(b.undo, func(ctx context.Context) error {
		return errors.Join(worker.Remove(ctx, scratch), worker.Close())
	})
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	how := report.Detail
	if report.Tier != sandbox.Tier1S {
		how = weaker(report)
	}
	b.info("image extensions run as root in a sandbox: %s", how)
	facts, err := b.rootFacts()
	if err != nil {
		return err
	}
	machine, err := dockerfile.NewOverlay(worker, report, dockerfile.OverlayOptions{
		Scratch: scratch, Executable: b.Executable, Network: network,
		Facts: facts.mounts, Env: append(b.Host.proxyEnv(), facts.env...),
		Skip:    []string{dirLayers, dirApp, dirPlatform, dirKaniko},
		Skipped: func(names []string) { b.warn("devices of a base image are not made here: %v", names) },
	})
	if err != nil {
		return err
	}
	b.extending = &extending{machine, instructions{b.Store, b.req.ClearCache}}
	return nil
}

// instructions is a dockerfile.Cache in the store.
type instructions struct {
	*store.Store
	forget bool // what was made before
}

// Get implements dockerfile.Cache.
func (i instructions) Get(ctx context.Context, key string) (v1.Layer, bool, error) {
	if i.forget {
		return nil, false, nil
	}
	return i.Made(ctx, key)
}

// Put implements dockerfile.Cache.
func (i instructions) Put(ctx context.Context, key string, l v1.Layer) error {
	return i.RememberMade(ctx, key, l)
}

// userOf looks up a user in an image, in trees that the build needs anyway or
// that the next one finds.
func (b *build) userOf(ctx context.Context, img v1.Image, user string) (dockerfile.User, error) {
	layers, err := img.Layers()
	if err != nil {
		return dockerfile.User{}, err
	}
	lowers, err := b.trees(ctx, layers)
	if err != nil {
		return dockerfile.User{}, err
	}
	return dockerfile.FindUser(layer.Stack{Lowers: lowers}, user)
}

// buildOn puts what the build image has become in the place of the builder:
// below kiln's lifecycle, which is not an extension's to replace.
func (b *build) buildOn(ctx context.Context, img v1.Image) error {
	before, err := b.root.Image.Layers()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	trees, err := b.trees(ctx, layers[len(before):])
	if err != nil {
		return fmt.Errorf("unpack the extended build image: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	b.root.Lowers = dedupe(slices.Insert(slices.Clone(b.root.Lowers), 1, trees...))
	b.root.Env = cf.Config.Env
	return b.root.setHome()
}

// bases is where the restorer finds the images that are to be extended.
type bases struct {
	image.Source
	build builderRoot
}

// Image implements image.Source. The builder is the one that this build runs
// on, even if its name means another one by now.
func (s bases) Image(ctx context.Context, ref string) (v1.Image, error) {
	if ref == s.build.Name {
		return s.build.Image, nil
	}
	return s.Source.Image(ctx, ref)
}
