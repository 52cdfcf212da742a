package platform

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Names of what is built in, as they stand in the store.
const (
	builtinSuite     = "bookworm"
	builtinRunImage  = "kiln/run:" + builtinSuite
	builtinBuild     = "kiln/build:" + builtinSuite
	builtinBuilder   = "kiln/builder:" + builtinSuite
	builtinLifecycle = "kiln/lifecycle:latest"

	// baseUser is who the build and the app run as: the id that the talk's
	// images, and most of the field's, have.
	baseUser = 1000

	payloadLabel = "io.kiln.payload"
)

// Payload is what the kiln binary carries: static programs and the descriptors
// of the shipped buildpacks.
type Payload struct {
	Launcher, Lifecycle, Buildpacks []byte
	// SBOMs are those of launcher and lifecycle, by file name.
	SBOMs map[string][]byte
	// Shipped are the buildpacks that Buildpacks serves.
	Shipped []Shipped
	// Order is the built-in builder's order.toml.
	Order []byte
	// Version of the lifecycle.
	Version string
}

// Shipped is one buildpack of the Payload.
type Shipped struct {
	ID, Version string
	Descriptor  []byte // buildpack.toml
}

// payloadFormat changes with the files that are laid out around the payload.
const payloadFormat = "5"

// digest names the payload: a builder made from another one is made again.
func (p Payload) digest() string {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(payloadFormat), p.Launcher, p.Lifecycle, p.Buildpacks, p.Order} {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	for _, name := range slices.Sorted(maps.Keys(p.SBOMs)) {
		fmt.Fprintf(h, "%s:%d:", name, len(p.SBOMs[name]))
		h.Write(p.SBOMs[name])
	}
	for _, s := range p.Shipped {
		fmt.Fprintf(h, "%s@%s:%d:", s.ID, s.Version, len(s.Descriptor))
		h.Write(s.Descriptor)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// check says what is missing in a kiln that was built without make.
func (p Payload) check() error {
	if len(p.Launcher) == 0 || len(p.Lifecycle) == 0 || len(p.Buildpacks) == 0 || len(p.SBOMs) == 0 {
		return spec.WithHint(errors.New("this kiln carries no launcher, lifecycle and buildpacks"), "it was built by go build alone: build it with `make build`")
	}
	return nil
}

// phases are the commands that the lifecycle binary answers to by name.
var phases = []string{"analyzer", "builder", "creator", "detector", "exporter", "extender", "rebaser", "restorer"}

// lifecycleFiles is the content of /cnb/lifecycle.
func (p Payload) lifecycleFiles() []layer.File {
	files := []layer.File{dirFile("/cnb", 0), dirFile(dirLifecycle, 0),
		// Opaque: nothing of a builder's own lifecycle shines through, its SBOMs
		// neither, which would describe another launcher than the image has.
		{Path: dirLifecycle + "/.wh..wh..opq", Mode: 0o644},
		{Path: dirLifecycle + "/launcher", Mode: 0o755, Body: p.Launcher},
		{Path: dirLifecycle + "/lifecycle", Mode: 0o755, Body: p.Lifecycle},
	}
	for _, name := range slices.Sorted(maps.Keys(p.SBOMs)) {
		files = append(files, layer.File{Path: dirLifecycle + "/" + name, Mode: 0o644, Body: p.SBOMs[name]})
	}
	for _, name := range phases {
		files = append(files, linkFile(dirLifecycle+"/"+name, "lifecycle"))
	}
	return files
}

// builderFiles is what a builder has beyond its build image and the lifecycle.
func (p Payload) builderFiles() []layer.File {
	files := []layer.File{
		dirFile("/cnb", 0), dirFile("/cnb/buildpacks", 0), dirFile("/cnb/build-config", 0), dirFile("/cnb/build-config/env", 0),
		{Path: "/cnb/buildpacks/kiln", Mode: 0o755, Body: p.Buildpacks},
		// Our run image has the C libraries that CPython needs, so its layer
		// leaves them out and a rebase renews them.
		{Path: "/cnb/build-config/env/BP_CPYTHON_SYSTEM_LIBRARIES", Mode: 0o644, Body: []byte("true")},
	}
	for _, s := range p.Shipped {
		id := path.Join("/cnb/buildpacks", spec.EscapeID(s.ID))
		dir := path.Join(id, s.Version)
		files = append(files, dirFile(id, 0), dirFile(dir, 0), dirFile(dir+"/bin", 0),
			linkFile(dir+"/bin/build", "../../../kiln"), linkFile(dir+"/bin/detect", "../../../kiln"),
			layer.File{Path: dir + "/buildpack.toml", Mode: 0o644, Body: s.Descriptor})
	}
	return append(files,
		layer.File{Path: "/cnb/order.toml", Mode: 0o644, Body: p.Order},
		layer.File{Path: "/cnb/run.toml", Mode: 0o644, Body: []byte("[[images]]\nimage = \"" + builtinRunImage + "\"\n")},
		// Platform APIs before 0.12 know it by this name.
		layer.File{Path: "/cnb/stack.toml", Mode: 0o644, Body: []byte("[run-image]\nimage = \"" + builtinRunImage + "\"\n")},
		dirFile("/layers", baseUser), dirFile("/platform", 0), dirFile("/platform/env", 0), dirFile("/workspace", baseUser),
	)
}

// lifecycle returns the layer that holds /cnb/lifecycle, and keeps it in the
// store under a name of its own.
func (p *Platform) lifecycle(ctx context.Context) (v1.Layer, error) {
	return p.payloadLayer(ctx, builtinLifecycle, "lifecycle", p.Payload.lifecycleFiles)
}

// payloadLayer returns the one layer of the image ref, which it makes again
// when it was made from another payload.
func (p *Platform) payloadLayer(ctx context.Context, ref, kind string, files func() []layer.File) (v1.Layer, error) {
	want := p.payloadDigest() + "-" + kind
	if img, err := p.Store.Image(ctx, ref); err == nil {
		if cf, err := img.ConfigFile(); err == nil && cf.Config.Labels[payloadLabel] == want {
			if layers, err := img.Layers(); err == nil && len(layers) == 1 {
				return layers[0], nil
			}
		}
	}
	l, err := p.Store.PutLayer(ctx, func(w io.Writer) error { return layer.WriteFiles(w, files()) })
	if err != nil {
		return nil, fmt.Errorf("keep kiln's own %s: %w", kind, err)
	}
	img, err := image.Append(emptyImage(), []image.Addition{{Layer: l, History: v1.History{CreatedBy: "kiln " + kind}}}, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture = "linux", p.Arch
		cf.Created = v1.Time{Time: normalTime}
		cf.Config.Labels = map[string]string{payloadLabel: want}
	})
	if err != nil {
		return nil, err
	}
	return l, p.Store.Write(ctx, ref, img)
}

// emptyImage is an OCI image of nothing.
func emptyImage() v1.Image {
	return mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
}

func dirFile(name string, owner int) layer.File {
	return layer.File{Path: name, Mode: fs.ModeDir | 0o755, Owner: layer.Owner{UID: owner, GID: owner}}
}

func linkFile(name, target string) layer.File {
	return layer.File{Path: name, Mode: fs.ModeSymlink | 0o777, Link: target}
}

// builtin returns the built-in builder, which it makes when it is not there or
// was made by another kiln. The first time that takes a while: both base
// images come from Debian packages.
func (p *Platform) builtin(ctx context.Context, mirror string) (v1.Image, error) {
	if err := p.Payload.check(); err != nil {
		return nil, err
	}
	unlock, err := p.Store.Cache("kiln/builtin").Lock(ctx, p.waiting("the built-in builder"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, base := range p.builtinBases(mirror) {
		if _, err := p.Store.Image(ctx, base.Name); err == nil {
			continue
		} else if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
		p.info("making base image %s from Debian packages, once", base.Name)
		if _, _, err := p.CreateBase(ctx, base); err != nil {
			return nil, err
		}
	}
	build, err := p.Store.Image(ctx, builtinBuild)
	if err != nil {
		return nil, err
	}
	return p.builtinBuilder(ctx, build)
}

// builtinBuilder puts lifecycle, buildpacks and order on the build image.
func (p *Platform) builtinBuilder(ctx context.Context, build v1.Image) (v1.Image, error) {
	id, err := build.ConfigName()
	if err != nil {
		return nil, err
	}
	want := p.payloadDigest() + "-" + id.Hex
	if img, err := p.Store.Image(ctx, builtinBuilder); err == nil {
		if cf, err := img.ConfigFile(); err == nil && cf.Config.Labels[payloadLabel] == want {
			return img, nil
		}
	}
	lifecycle, err := p.lifecycle(ctx)
	if err != nil {
		return nil, err
	}
	rest, err := p.Store.PutLayer(ctx, func(w io.Writer) error { return layer.WriteFiles(w, p.Payload.builderFiles()) })
	if err != nil {
		return nil, fmt.Errorf("keep the shipped buildpacks: %w", err)
	}
	metadata, err := p.builderMetadata()
	if err != nil {
		return nil, err
	}
	labels := map[string]string{spec.BuilderMetadataLabel: metadata, spec.LifecycleVersionLabel: p.Payload.Version, payloadLabel: want}
	if labels[spec.BuildpackOrderLabel], err = orderLabel(p.Payload.Order); err != nil {
		return nil, err
	}
	if labels[spec.BuildpackLayersLabel], err = p.Payload.layersLabel(rest); err != nil {
		return nil, err
	}
	if labels[spec.LifecycleAPIsLabel], err = spec.EncodeLabel(spec.OwnLifecycle().APIs); err != nil {
		return nil, err
	}
	img, err := image.Append(build, []image.Addition{
		{Layer: lifecycle, History: v1.History{CreatedBy: "kiln lifecycle"}},
		{Layer: rest, History: v1.History{CreatedBy: "kiln buildpacks and order"}},
	}, func(cf *v1.ConfigFile) {
		cf.Config.WorkingDir = dirLayers
		if cf.Config.Labels == nil {
			cf.Config.Labels = map[string]string{}
		}
		maps.Copy(cf.Config.Labels, labels)
	})
	if err != nil {
		return nil, fmt.Errorf("make builder %s: %w", builtinBuilder, err)
	}
	if err := p.Store.Write(ctx, builtinBuilder, img); err != nil {
		return nil, err
	}
	return img, nil
}

// builderMetadata is the label io.buildpacks.builder.metadata as pack reads it.
func (p *Platform) builderMetadata() (string, error) {
	type buildpack struct {
		ID      string `json:"id"`
		Version string `json:"version"`
	}
	var m struct {
		Description string      `json:"description"`
		Buildpacks  []buildpack `json:"buildpacks"`
		Extensions  []buildpack `json:"extensions"`
		Stack       struct {
			RunImage spec.RunImageEntry `json:"runImage"`
		} `json:"stack"`
		Images    []spec.RunImageEntry `json:"images"`
		Lifecycle struct {
			Version string             `json:"version"`
			API     spec.LegacyAPIs    `json:"api"`
			APIs    spec.LifecycleAPIs `json:"apis"`
		} `json:"lifecycle"`
		CreatedBy struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"createdBy"`
	}
	m.Description = "kiln's built-in builder: Debian " + builtinSuite + " and the shipped buildpacks"
	for _, s := range p.Payload.Shipped {
		m.Buildpacks = append(m.Buildpacks, buildpack{s.ID, s.Version})
	}
	m.Stack.RunImage.Image = builtinRunImage
	m.Images = []spec.RunImageEntry{{Image: builtinRunImage}}
	m.Lifecycle.Version = p.Payload.Version
	m.Lifecycle.API, m.Lifecycle.APIs = spec.OwnLifecycle().API, spec.OwnLifecycle().APIs
	m.Extensions = []buildpack{}
	m.CreatedBy.Name, m.CreatedBy.Version = "kiln", p.Payload.Version
	return spec.EncodeLabel(m)
}

// layersLabel is the label io.buildpacks.buildpack.layers: what each buildpack
// is, and the layer that holds them all.
func (p Payload) layersLabel(l v1.Layer) (string, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return "", err
	}
	type buildpack struct {
		API      string            `json:"api"`
		Order    []spec.OrderGroup `json:"order,omitempty"`
		DiffID   string            `json:"layerDiffID"`
		Homepage string            `json:"homepage,omitempty"`
		Name     string            `json:"name,omitempty"`
	}
	all := map[string]map[string]buildpack{}
	for _, s := range p.Shipped {
		bp, err := spec.ReadBuildpack(s.Descriptor, "buildpack.toml of "+s.ID)
		if err != nil {
			return "", err
		}
		if all[s.ID] == nil {
			all[s.ID] = map[string]buildpack{}
		}
		all[s.ID][s.Version] = buildpack{bp.API, bp.Order, diffID.String(), bp.Buildpack.Homepage, bp.Buildpack.Name}
	}
	return spec.EncodeLabel(all)
}

// orderLabel is order.toml as the label io.buildpacks.buildpack.order.
func orderLabel(order []byte) (string, error) {
	o, err := spec.ReadOrder(order, "order.toml")
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o.Order); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}
