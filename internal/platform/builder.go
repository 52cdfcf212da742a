package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// builderRoot is a builder image made ready to run: its layers as trees.
type builderRoot struct {
	Builder
	// Image is the builder as it came.
	Image v1.Image
	// Lowers are the trees of the root file system, topmost first.
	Lowers []string
	// Env is the image's environment.
	Env []string
}

// stack is one directory of the builder as trusted code reads it. One that is
// not there has nothing in it.
func (b builderRoot) stack(dir string) layer.Stack {
	s, err := layer.Stack{Lowers: b.Lowers}.Sub(strings.TrimPrefix(dir, "/"))
	if err != nil {
		return layer.Stack{}
	}
	return s
}

// openBuilder opens the builder and unpacks its layers, each once for ever.
// kiln's own lifecycle lies over the builder's.
func (p *Platform) openBuilder(ctx context.Context, req Request) (builderRoot, error) {
	name, img, err := p.builderImage(ctx, req)
	if err != nil {
		return builderRoot{}, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return builderRoot{}, fmt.Errorf("read builder %s: %w", name, err)
	}
	if err := p.fits("builder "+name, cf); err != nil {
		return builderRoot{}, err
	}
	b, err := describeBuilder(name, cf)
	if err != nil {
		return builderRoot{}, err
	}
	lifecycle, err := p.lifecycle(ctx)
	if err != nil {
		return builderRoot{}, err
	}
	layers, err := img.Layers()
	if err != nil {
		return builderRoot{}, fmt.Errorf("read builder %s: %w", name, err)
	}
	lowers, err := p.trees(ctx, append(layers, lifecycle))
	if err != nil {
		return builderRoot{}, fmt.Errorf("unpack builder %s: %w", name, err)
	}
	root := builderRoot{Builder: b, Image: img, Lowers: lowers, Env: cf.Config.Env}
	if err := root.setHome(); err != nil {
		return builderRoot{}, err
	}
	if b.RunImage == "" {
		if err := root.readRunTOML(); err != nil {
			return builderRoot{}, err
		}
	}
	root.readExtensions()
	return root, nil
}

func (p *Platform) builderImage(ctx context.Context, req Request) (string, v1.Image, error) {
	if req.Builder == "" || req.Builder == builtinBuilder {
		img, err := p.builtin(ctx, req.Mirror)
		return builtinBuilder, img, err
	}
	img, err := p.open(ctx, req.Builder, req.Insecure)
	if err != nil {
		return "", nil, fmt.Errorf("builder: %w", err)
	}
	return req.Builder, img, nil
}

// trees unpacks layers (bottom first) and returns their trees, topmost first.
func (p *Platform) trees(ctx context.Context, layers []v1.Layer) ([]string, error) {
	var dirs []string
	for _, l := range slices.Backward(layers) {
		dir, err := p.Store.Tree(ctx, l)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
		// The kernel ignores an opaque mark on a lower's root, so what such a
		// layer hides is left out here.
		if opaque, err := layer.Opaque(dir); err != nil {
			return nil, err
		} else if opaque {
			break
		}
	}
	return dedupe(dirs), nil
}

// dedupe drops all but the topmost of equal trees: an image may hold one layer
// twice, and overlay refuses that.
func dedupe(dirs []string) []string {
	seen := map[string]bool{}
	out := dirs[:0]
	for _, d := range dirs {
		if !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	return out
}

// describeBuilder reads what a builder says of itself (requirements of a build
// image and the label io.buildpacks.builder.metadata).
func describeBuilder(name string, cf *v1.ConfigFile) (Builder, error) {
	b := Builder{Name: name}
	env := map[string]string{}
	for _, kv := range cf.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	for _, x := range []struct {
		name string
		to   *int
	}{{"CNB_USER_ID", &b.UID}, {"CNB_GROUP_ID", &b.GID}} {
		n, err := strconv.ParseInt(env[x.name], 10, 31)
		if env[x.name] == "" {
			return b, badInput(fmt.Errorf("%s is not a builder: its environment has no %s", name, x.name), "name a builder image with --builder, or leave the flag out for the built-in one")
		}
		if err != nil || n < 0 {
			return b, badInput(fmt.Errorf("builder %s: %s=%s is not a number", name, x.name, env[x.name]), "the builder is broken: ask its author")
		}
		if n == 0 && x.to == &b.UID {
			return b, badInput(fmt.Errorf("builder %s: %s is 0: buildpacks must not run as root", name, x.name), "the builder is broken: ask its author")
		}
		*x.to = int(n)
	}
	var m struct {
		Images []spec.RunImageEntry `json:"images"`
		Stack  struct {
			RunImage spec.RunImageEntry `json:"runImage"`
		} `json:"stack"`
	}
	if label := cf.Config.Labels[spec.BuilderMetadataLabel]; label != "" {
		if err := json.Unmarshal([]byte(label), &m); err != nil {
			return b, badInput(fmt.Errorf("builder %s: label %s: %w", name, spec.BuilderMetadataLabel, err), "the builder is broken: ask its author")
		}
	}
	if len(m.Images) == 0 && m.Stack.RunImage.Image != "" {
		m.Images = []spec.RunImageEntry{m.Stack.RunImage}
	}
	var order []spec.OrderGroup
	if label := cf.Config.Labels[spec.OrderExtensionsLabel]; label != "" {
		if err := json.Unmarshal([]byte(label), &order); err != nil {
			return b, badInput(fmt.Errorf("builder %s: label %s: %w", name, spec.OrderExtensionsLabel, err), "the builder is broken: ask its author")
		}
	}
	b.Extensions = len(order) > 0
	return b, b.setRunImages(m.Images)
}

// setRunImages takes in the run images that a builder names. It cannot name
// files or images of this host.
func (b *Builder) setRunImages(entries []spec.RunImageEntry) error {
	for _, e := range entries {
		if onThisHost(e.Image) {
			return badInput(fmt.Errorf("builder %s: its run image %s is one of this host", b.Name, e.Image), "the builder is broken: ask its author")
		}
		b.RunImages = append(b.RunImages, e.Image)
	}
	if len(b.RunImages) > 0 {
		b.RunImage = b.RunImages[0]
	}
	return nil
}

// setHome gives the build user its HOME, as a container engine does: it is the
// one variable that buildpacks may count on beside the path variables.
func (b *builderRoot) setHome() error {
	for _, kv := range b.Env {
		if strings.HasPrefix(kv, "HOME=") {
			return nil
		}
	}
	u, err := dockerfile.FindUser(layer.Stack{Lowers: b.Lowers}, fmt.Sprintf("%d:%d", b.UID, b.GID))
	if err != nil {
		return fmt.Errorf("builder %s: %w", b.Name, err)
	}
	b.Env = append(b.Env[:len(b.Env):len(b.Env)], "HOME="+u.Home)
	return nil
}

// readRunTOML takes the run image from /cnb/run.toml when no label has it.
func (b *builderRoot) readRunTOML() error {
	const limit = 1 << 20
	content, err := b.stack(dirSystem).ReadFile("run.toml", limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("builder %s: %w", b.Name, err)
	}
	run, err := spec.ReadRunTOML(content, "/cnb/run.toml")
	if err != nil {
		return fmt.Errorf("builder %s: %w", b.Name, err)
	}
	return b.setRunImages(run.Images)
}

// readExtensions looks for image extensions in the builder's order itself, for a
// label of it is only a custom. What is wrong with it the detector says, if it
// comes to that.
func (b *builderRoot) readExtensions() {
	if order, err := b.order(); err == nil && len(order.OrderExtensions) > 0 {
		b.Extensions = true
	}
}
