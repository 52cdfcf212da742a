package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
)

// analyze is the analyzer, with which a build begins.
func (h Host) analyze(ctx context.Context, in inputs) error {
	p, err := h.places(ctx, in)
	if err != nil {
		return err
	}
	p.documents = nil
	names := phase.Names{Image: in.args[0], Tags: in.tags, Previous: in.previousImage, Run: in.runImage, Cache: in.cacheImage}
	if err := p.checkNames(names); err != nil {
		return err
	}
	run, err := h.runImages(in)
	if err != nil {
		return err
	}
	if err := p.checkShared(append([]string{names.Image}, names.Tags...), run, names.Run); err != nil {
		return err
	}
	if err := p.checkCacheName(names.Cache, slices.Concat([]string{names.Image, names.Previous, names.Run}, names.Tags, run.Names())...); err != nil {
		return err
	}
	if err := h.checkCacheImage(ctx, in, p); err != nil {
		return err
	}
	launch, err := h.openLaunchCache(ctx, in, p)
	if err != nil {
		return err
	}
	defer launch.close()
	var layers *phase.Tree
	if !in.skipLayers && p.PlaceSBOM == nil {
		tree, err := h.tree(in.layers)
		if err != nil {
			return err
		}
		layers = &tree
	}
	found, err := phase.Analyze(ctx, launch.source(p.Source), names, run, phase.AnalyzeSetting{PlatformAPI: in.api, ExecEnv: in.execEnv}, layers, h.Events)
	if err != nil {
		return err
	}
	if found.RunImage != nil {
		p.run = opened{found.RunImage.Reference, plainImage(found.Run)}
	}
	if found.PreviousImage != nil {
		p.previous = opened{found.PreviousImage.Reference, plainImage(found.Previous)}
	}
	return h.encode(in.analyzed, found.Analyzed.TOML())
}

// runImages reads run.toml, or stack.toml where that is still its name. It may
// be missing where the run image has been named.
func (h Host) runImages(in inputs) (spec.RunTOML, error) {
	if in.run == "" {
		return spec.RunTOML{}, nil
	}
	read := spec.ReadRunTOML
	if spec.Has(in.api, spec.PlatformStackTOML) {
		read = spec.ReadStackTOML
	}
	return decodeOptional(h, in.run, read)
}

// restore is the restorer.
func (h Host) restore(ctx context.Context, in inputs) error {
	p, err := h.places(ctx, in)
	if err != nil {
		return err
	}
	group, err := decode(h, in.group, spec.ReadGroup)
	if err != nil {
		return err
	}
	if len(group.GroupExtensions) > 0 {
		h.forget(in.analyzed) // the detector wrote it, at its end, when nothing of theirs ran any more
	}
	analyzed, err := h.analyzed(in)
	if err != nil {
		return err
	}
	run, err := h.runImages(in)
	if err != nil {
		return err
	}
	base := phase.AnalyzeSetting{PlatformAPI: in.api, ExecEnv: in.execEnv}
	refreshed, err := phase.RefreshRunImage(ctx, p.Source, analyzed, run, base)
	if err != nil {
		return err
	}
	if refreshed, err = h.saveBases(ctx, in, p, refreshed, base); err != nil {
		return err
	}
	layers, err := h.tree(in.layers)
	if err != nil {
		return err
	}
	place := p.Place
	if place == nil {
		place = phase.Extract(layers)
	}
	set := phase.RestoreSetting{
		PlatformAPI: in.api, SkipLayers: in.skipLayers, ExecEnv: in.execEnv,
		PlaceSBOM: p.PlaceSBOM, Previous: p.previous.image,
	}
	cache, done, err := h.openCache(ctx, in, p)
	if err != nil {
		return err
	}
	defer done()
	if p.known, err = phase.Restore(ctx, cache, place, group, refreshed, layers, set, h.Events); err != nil {
		return err
	}
	return h.encode(in.analyzed, refreshed.TOML())
}

// errNoExtension is the limit of -layout.
var errNoExtension = errors.New("-layout: a run image in a layout cannot be extended; export to a registry")

// kanikoDir is what restorer and extender share, by order of the specification.
const kanikoDir path = "/kaniko"

// saveBases saves what the extender needs of the images that are to be extended.
func (h Host) saveBases(ctx context.Context, in inputs, p *Places, a spec.Analyzed, set phase.AnalyzeSetting) (spec.Analyzed, error) {
	extends := a.RunImage != nil && a.RunImage.Extend
	if in.buildImage == "" && !extends {
		return a, nil
	}
	if extends && in.layout {
		return a, errNoExtension
	}
	if _, _, mapped := h.find(kanikoDir); h.Dirs != nil && !mapped {
		return a, fmt.Errorf("this host has no place for %s", kanikoDir)
	}
	kaniko, err := h.stack(kanikoDir)
	if err != nil {
		return a, err
	}
	var bases image.Source = reopened{p}
	if p.Bases == nil {
		if bases, err = h.registry(in, p); err != nil {
			return a, err
		}
	}
	return phase.SaveBases(ctx, bases, filepath.Join(kaniko.Upper, "cache"), a, in.buildImage, set)
}

// reopened is Places.Bases, but for the run image that was opened before: what
// it is called since need not be a name that it can be opened by.
type reopened struct{ *Places }

// Image implements image.Source.
func (r reopened) Image(ctx context.Context, ref string) (v1.Image, error) {
	if ref == r.run.reference && r.run.image != nil {
		return r.run.image, nil
	}
	return r.Bases.Image(ctx, ref)
}

// Pin implements image.Pinner.
func (r reopened) Pin(ref string, img v1.Image) (string, error) {
	if ref == r.run.reference && r.run.image != nil {
		return ref, nil
	}
	return image.Pin(r.Bases, ref, img)
}

// tree is a directory of the build for the phases that read it file by file.
func (h Host) tree(p path) (phase.Tree, error) {
	stack, err := h.stack(p)
	if err != nil {
		return phase.Tree{}, err
	}
	if _, err := stack.Lstat("."); errors.Is(err, fs.ErrNotExist) {
		return phase.Tree{}, fmt.Errorf("%s: no such directory", p)
	}
	tree := phase.Tree{Stack: stack, Path: string(p), Above: h.above(p)}
	if _, _, mapped := h.find(p); !mapped {
		tree.OwnerOf = ownerOf // this is the build container: files have their real owners
	}
	return tree, nil
}

// above lists the directories that lead to p, from the top. In a container they
// are as they are; of a build elsewhere only their names are known.
func (h Host) above(p path) []layer.Parent {
	var list []layer.Parent
	for dir := filepath.Dir(string(p)); dir != "/"; dir = filepath.Dir(dir) {
		parent := layer.Parent{Path: dir, Mode: fs.ModeDir | 0o755}
		if _, _, mapped := h.find(p); !mapped {
			if fi, err := os.Stat(dir); err == nil {
				parent.Mode, parent.Owner = fi.Mode(), ownerOf(fi)
			}
		}
		list = append(list, parent)
	}
	slices.Reverse(list)
	return list
}

// ownerOf reads what package os says of a file, and what a layer.Stack does.
func ownerOf(fi fs.FileInfo) layer.Owner {
	switch st := fi.Sys().(type) {
	case *syscall.Stat_t:
		return layer.Owner{UID: int(st.Uid), GID: int(st.Gid)}
	case *unix.Stat_t:
		return layer.Owner{UID: int(st.Uid), GID: int(st.Gid)}
	}
	return layer.Owner{}
}
