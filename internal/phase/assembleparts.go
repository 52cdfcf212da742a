package phase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// launchParts are the launch layers of all buildpacks, and what the label says
// of them.
func (a *assembler) launchParts(ctx context.Context, md *spec.LifecycleMetadata) ([]*part, error) {
	var parts []*part
	for _, e := range a.Group.Group {
		b := spec.BuildpackLayers{Key: e.ID, Version: e.Version, Layers: map[string]spec.LayerMetadata{}}
		dir := spec.EscapeID(e.ID)
		store, ok, err := readTOML(a.Layers, path.Join(dir, "store.toml"), spec.ReadStoreTOML)
		if err != nil {
			return nil, fmt.Errorf("buildpack %s: %w", e, err)
		}
		if ok {
			b.Store = &store
		}
		names, err := layerTOMLs(a.Layers, dir)
		if err != nil {
			return nil, fmt.Errorf("layers of %s: %w", e, err)
		}
		for _, name := range names {
			p, err := a.launchPart(ctx, e, name, b.Layers)
			if err != nil {
				return nil, fmt.Errorf("layer %s: %w", layerName(e.ID, name), err)
			}
			if p != nil {
				parts = append(parts, p)
			}
		}
		md.Buildpacks = append(md.Buildpacks, b)
	}
	return parts, nil
}

// launchPart is one layer, nil if it is not for launch. A layer without
// contents is the previous image's, under its new metadata (requirements 3.6).
func (a *assembler) launchPart(ctx context.Context, e spec.GroupElement, name string, label map[string]spec.LayerMetadata) (*part, error) {
	rel := path.Join(spec.EscapeID(e.ID), name)
	doc, _, err := readTOML(a.Layers, rel+".toml", spec.ReadLayerTOML)
	if err != nil || !doc.Types.Launch {
		return nil, err
	}
	p := &part{
		name:    layerName(e.ID, name),
		history: fmt.Sprintf("Layer: '%s', Created by buildpack: %s", name, e),
		old:     buildpackLayers(a.Analyzed.Metadata.Buildpacks, e.ID).Layers[name].SHA,
		set: func(diffID string) {
			label[name] = spec.LayerMetadata{SHA: diffID, Data: doc.Metadata, Build: doc.Types.Build, Launch: true, Cache: doc.Types.Cache}
			a.remember(rel, diffID)
		},
	}
	_, err = a.Layers.Lstat(rel)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		l, err := a.contentsOfPrevious(ctx, p.old, doc.Types)
		if err != nil {
			return nil, err
		}
		p.make = func(context.Context) (v1.Layer, int64, error) { return l, 0, nil }
		return p, nil
	}
	p.make = func(ctx context.Context) (v1.Layer, int64, error) { return a.layerAt(ctx, rel) }
	return p, nil
}

func (a *assembler) contentsOfPrevious(ctx context.Context, diffID string, types spec.LayerTypes) (v1.Layer, error) {
	if types.Cache {
		return nil, errors.New("it is a cache layer without contents")
	}
	if diffID == "" || a.Previous == nil {
		return nil, errors.New("it has no contents, and there is no previous image with this layer to take them from")
	}
	l, err := layerOf(a.Previous, diffID)
	if err != nil {
		return nil, fmt.Errorf("it has no contents, and the previous image should have them: %w", err)
	}
	if !a.Sparse && !exists(l) {
		return nil, spec.WithHint(fmt.Errorf("it has no contents, and the previous image has lost them (%s)", diffID), "build again without the previous image")
	}
	return l, ctx.Err()
}

// layerAt makes the layer at rel (as in Known) of the layers directory.
func (a *assembler) layerAt(ctx context.Context, rel string) (v1.Layer, int64, error) {
	parents, err := a.Layers.parents(path.Dir(rel), a.Owner)
	if err != nil {
		return nil, 0, err
	}
	return a.tree(ctx, a.Layers, rel, a.Known[rel], parents)
}

// sbomParts is the layer of SBOMs, if there are any.
func (a *assembler) sbomParts(_ context.Context, md *spec.LifecycleMetadata) ([]*part, error) {
	if !spec.Has(a.PlatformAPI, spec.PlatformSBOM) {
		return nil, nil
	}
	if _, err := a.Layers.Lstat(launchSBOMs); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	p := &part{
		name: "sbom", history: "Software Bill-of-Materials",
		set: func(diffID string) {
			md.SBOM = &spec.LayerSHA{SHA: diffID}
			a.remember(launchSBOMs, diffID)
		},
		make: func(ctx context.Context) (v1.Layer, int64, error) { return a.layerAt(ctx, launchSBOMs) },
	}
	if old := a.Analyzed.Metadata.SBOM; old != nil {
		p.old = old.SHA
	}
	return []*part{p}, nil
}

// appParts is the app: one layer, or the slices and what they leave.
func (a *assembler) appParts(ctx context.Context, md *spec.LifecycleMetadata) ([]*part, error) {
	if len(a.Built.Slices) == 0 {
		return []*part{a.appPart(md, 0, "app", "Application Layer", func(ctx context.Context) (v1.Layer, int64, error) {
			return a.tree(ctx, a.App, ".", a.AppDiffID, a.App.Above)
		})}, nil
	}
	slices, err := sliceApp(ctx, a.App, a.Built.Slices)
	if err != nil {
		return nil, err
	}
	var parts []*part
	for i, paths := range slices {
		label := fmt.Sprintf("Application Slice: %d", i+1)
		parts = append(parts, a.appPart(md, i, fmt.Sprintf("app slice %d", i+1), label, func(ctx context.Context) (v1.Layer, int64, error) {
			var read int64
			l, err := a.keep.PutLayer(ctx, func(w io.Writer) (err error) {
				read, err = layer.WriteSlice(ctx, w, a.App.Stack, a.App.Path, paths, a.App.Above, a.Owner)
				return err
			})
			return l, read, err
		}))
	}
	return parts, nil
}

func (a *assembler) appPart(md *spec.LifecycleMetadata, i int, name, history string, makeLayer func(context.Context) (v1.Layer, int64, error)) *part {
	p := &part{
		name: name, history: history, make: makeLayer,
		set: func(diffID string) { md.App = append(md.App, spec.LayerSHA{SHA: diffID}) },
	}
	if old := a.Analyzed.Metadata.App; i < len(old) {
		p.old = old[i].SHA
	}
	return p
}

// Where the launcher is in every app image.
const (
	cnbDir       = "/cnb"
	lifecycleDir = "/cnb/lifecycle"
	launcherPath = "/cnb/lifecycle/launcher"
	processDir   = "/cnb/process"
)

// launcherParts are the launcher, its config, and the process types.
func (a *assembler) launcherParts(_ context.Context, md *spec.LifecycleMetadata) ([]*part, error) {
	config, err := a.configFiles()
	if err != nil {
		return nil, err
	}
	old := a.Analyzed.Metadata
	dir := func(path string) layer.File { return layer.File{Path: path, Mode: fs.ModeDir | 0o755} }
	parts := []*part{
		a.filesPart("launcher", "Buildpacks Application Launcher", old.Launcher, &md.Launcher, []layer.File{
			dir(cnbDir), dir(lifecycleDir), {Path: launcherPath, Mode: 0o755, Body: a.Launcher},
		}),
		a.filesPart("config", "Buildpacks Launcher Config", old.Config, &md.Config, config),
	}
	if len(a.procs) > 0 {
		files := []layer.File{dir(cnbDir), dir(processDir)}
		for _, p := range a.procs {
			files = append(files, layer.File{Path: path.Join(processDir, p.Type), Mode: 0o755, Link: launcherPath})
		}
		parts = append(parts, a.filesPart("process-types", "Buildpacks Process Types", old.ProcessTypes, &md.ProcessTypes, files))
	}
	return parts, nil
}

func (a *assembler) filesPart(name, history string, old spec.LayerSHA, set *spec.LayerSHA, files []layer.File) *part {
	return &part{
		name: name, history: history, old: old.SHA,
		set: func(diffID string) { set.SHA = diffID },
		make: func(ctx context.Context) (v1.Layer, int64, error) {
			l, err := a.put(ctx, func(w io.Writer) error { return layer.WriteFiles(w, files) })
			return l, 0, err
		},
	}
}

// configFiles is <layers>/config with the one file that the launcher reads:
// nothing that a buildpack put beside it gets into the image.
func (a *assembler) configFiles() ([]layer.File, error) {
	parents, err := a.Layers.parents(".", a.Owner)
	if err != nil {
		return nil, err
	}
	body := a.BuiltTOML
	if body == nil {
		if body, err = encode.TOML(a.Built.TOML(a.PlatformAPI)); err != nil {
			return nil, err
		}
	}
	var files []layer.File
	for _, p := range parents {
		files = append(files, layer.File{Path: p.Path, Mode: p.Mode, Owner: p.Owner})
	}
	dir := path.Join(a.Layers.Path, "config")
	return append(files,
		layer.File{Path: dir, Mode: fs.ModeDir | 0o755, Owner: a.Owner},
		layer.File{Path: path.Join(dir, "metadata.toml"), Mode: 0o644, Owner: a.Owner, Body: body}), nil
}
