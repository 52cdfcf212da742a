package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/registry"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// maxLauncher bounds the launcher, in bytes. It is copied into every image;
// those in the field have 2 to 3 MB.
const maxLauncher = 64 << 20

// repository is where kiln's launcher is made.
const repository = "https://github.com/kilnbuild/kiln"

// export is the exporter.
func (h Host) export(ctx context.Context, in inputs) error {
	p, err := h.places(ctx, in)
	if err != nil {
		return err
	}
	if err := p.checkTags(in.args); err != nil {
		return err
	}
	if err := p.checkCacheName(in.cacheImage, in.args...); err != nil {
		return err
	}
	launch, err := h.openLaunchCache(ctx, in, p)
	if err != nil {
		return err
	}
	defer launch.close()
	input, err := h.input(ctx, in, p)
	if err != nil {
		return err
	}
	if r := input.Analyzed.RunImage; r != nil {
		if err := p.checkShared(in.args, input.RunTOML, r.Image); err != nil {
			return err
		}
	}
	input.Previous = launch.image(ctx, input.Previous)
	keep := p.Layers
	if keep == nil {
		scratch, err := os.MkdirTemp("", "kiln-export-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(scratch)
		s, err := store.Open(ctx, scratch)
		if err != nil {
			return err
		}
		defer s.Close()
		keep = s
	}
	if p.Exported, err = phase.Assemble(ctx, keep, input, h.Events); err != nil {
		return err
	}
	if err := h.deliver(ctx, in, p, keep, input); err != nil {
		return err
	}
	return launch.save(ctx, keep, input, p.Exported)
}

// input reads what the app image is made of.
func (h Host) input(ctx context.Context, in inputs, p *Places) (phase.Input, error) {
	var files phase.Input
	var errs [5]error
	files.Analyzed, errs[0] = h.analyzed(in)
	files.Group, errs[1] = decode(h, in.group, spec.ReadGroup)
	files.Built, errs[2] = decode(h, in.layers+"/config/metadata.toml", func(b []byte, name string) (spec.BuildMetadata, error) {
		files.BuiltTOML = b
		return spec.ReadBuildMetadata(b, name)
	})
	files.RunTOML, errs[3] = h.runImages(in)
	files.Project, errs[4] = decodeOptional(h, in.projectMetadata, spec.ReadProjectMetadata)
	if err := errors.Join(errs[:]...); err != nil {
		return files, err
	}
	if err := h.copySBOMs(in); err != nil {
		return files, err
	}
	var err error
	if files.Layers, err = h.tree(in.layers); err != nil {
		return files, err
	}
	if files.App, err = h.tree(in.app); err != nil {
		return files, err
	}
	if files.Owner, err = h.owner(in); err != nil {
		return files, err
	}
	if files.Launcher, err = h.readFile(in.launcher, maxLauncher); err != nil {
		return files, fmt.Errorf("launcher: %w", err)
	}
	files.PlatformAPI, files.ExecEnv, files.ProcessType, files.SourceDateEpoch = in.api, in.execEnv, in.processType, in.sourceDateEpoch
	files.Known, files.AppDiffID, files.Sparse = p.known, p.AppDiffID, in.layout
	files.LauncherInfo = spec.LauncherInfo{Version: spec.Version, Source: spec.LauncherSource{Git: spec.LauncherGit{Repository: repository}}}
	if files.Run, files.Previous, err = p.images(ctx, files.Analyzed); err != nil {
		return files, err
	}
	if files.Extended, err = h.extendedImage(in, files.Analyzed); err != nil || files.Extended == nil || !p.inDaemon() {
		return files, err
	}
	// The app image says what it stands on in the daemon's words.
	run := *files.Analyzed.RunImage
	run.Reference, err = image.ID(files.Run)
	files.Analyzed.RunImage = &run
	return files, err
}

// extendedImage opens what the extender made of the run image, nil if that was
// not to be extended. Foreign code ran where it was made, so no link is followed.
func (h Host) extendedImage(in inputs, a spec.Analyzed) (v1.Image, error) {
	if a.RunImage == nil || !a.RunImage.Extend || in.extended == "" {
		return nil, nil
	}
	if in.layout {
		return nil, errNoExtension
	}
	dir := in.extended + "/run"
	stack, rel, mapped := h.find(dir)
	if !mapped {
		stack, rel = layer.Stack{Upper: string(in.extended)}, "run"
	}
	entries, err := stack.ReadDir(rel)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	switch {
	case len(names) == 0:
		err := fmt.Errorf("analyzed.toml says that the run image is extended, but there is no image in %s", dir)
		return nil, spec.WithHint(err, "the extender puts it there, with -kind run")
	case len(names) > 1:
		return nil, fmt.Errorf("%s: one image belongs here, and there are %d: %s", dir, len(names), strings.Join(names, ", "))
	}
	layout, err := stack.Sub(rel + "/" + names[0])
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", dir, names[0], err)
	}
	img, err := archive.OpenStack(layout)
	if err != nil {
		return nil, fmt.Errorf("extended run image %s/%s: %w", dir, names[0], err)
	}
	return img, nil
}

// images opens what analyzed.toml speaks of, unless an earlier phase has. A
// previous image that is gone meanwhile is none.
func (p *Places) images(ctx context.Context, analyzed spec.Analyzed) (run, previous v1.Image, err error) {
	if r := analyzed.RunImage; r != nil && r.Reference != "" {
		if run, err = p.openRun(ctx, *r); err != nil {
			return nil, nil, fmt.Errorf("run image: %w", err)
		}
	}
	if r := analyzed.PreviousImage; r != nil && r.Reference != "" {
		previous, err = p.open(ctx, p.previous, r.Reference)
		if err != nil && !errors.Is(err, image.ErrNotFound) {
			return nil, nil, fmt.Errorf("previous image: %w", err)
		}
	}
	return run, previous, nil
}

// openRun opens the run image. For one that was extended analyzed.toml has the
// registry's digest, which a daemon that has the image need not know.
func (p *Places) openRun(ctx context.Context, r spec.RunImage) (v1.Image, error) {
	run, err := p.open(ctx, p.run, r.Reference)
	if r.Extend && p.inDaemon() && r.Image != "" && errors.Is(err, image.ErrNotFound) {
		return p.Source.Image(ctx, r.Image)
	}
	return run, err
}

func (p *Places) open(ctx context.Context, known opened, reference string) (v1.Image, error) {
	if known.reference == reference && known.image != nil {
		return known.image, nil
	}
	return p.Source.Image(ctx, reference)
}

// owner is who the files of an image belong to: the build user.
func (h Host) owner(in inputs) (layer.Owner, error) {
	if in.uid >= 0 && in.gid >= 0 {
		return layer.Owner{UID: in.uid, GID: in.gid}, nil
	}
	if h.Dirs != nil {
		return layer.Owner{}, spec.Exit(spec.ExitInvalidArgs, errors.New("the build user is not known: -uid and -gid must be set"))
	}
	return layer.Owner{UID: os.Getuid(), GID: os.Getgid()}, nil
}

// deliver writes the image, the report and the cache. The image goes first: it
// is what the user waits for.
func (h Host) deliver(ctx context.Context, in inputs, p *Places, keep phase.Layers, input phase.Input) error {
	trusted, err := p.trusted(input)
	if err != nil {
		return err
	}
	img, err := p.sent(ctx, keep, input)
	if err != nil {
		return err
	}
	export := func(ctx context.Context) (err error) {
		p.Report, err = phase.Export(ctx, p.Target, in.args, img, trusted, in.daemon, h.Events)
		if len(p.Report.Image.Tags) > 0 {
			err = errors.Join(err, h.encode(in.report, p.Report))
		}
		return err
	}
	save := func(ctx context.Context) error { return h.saveCache(ctx, in, p, keep, input) }
	if in.parallel {
		group, gctx := errgroup.WithContext(ctx)
		group.Go(func() error { return export(gctx) })
		group.Go(func() error { return save(gctx) })
		return group.Wait()
	}
	if err := export(ctx); err != nil {
		return err
	}
	return save(ctx)
}

// sent is the image as it is sent: to a registry or a layout the new layers go
// compressed, those of the run image as they are. It has Docker's media types if
// the run image has, except in a layout, where other tools would not see it, and
// in a host's own place, which may be one.
func (p *Places) sent(ctx context.Context, keep phase.Layers, input phase.Input) (v1.Image, error) {
	img := p.Exported.Image
	switch p.Target.(type) {
	case *registry.Registry:
	case daemon.Described:
		return img, nil
	case archive.LayoutDir:
		var err error
		if img, err = image.AsOCI(img); err != nil {
			return nil, err
		}
	default:
		return image.AsOCI(img)
	}
	return image.MapLayers(img, func(l v1.Layer) (v1.Layer, error) {
		diffID, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		if _, err := input.Run.LayerByDiffID(diffID); err == nil {
			return l, nil
		}
		mine, err := keep.Layer(ctx, diffID.String())
		if errors.Is(err, image.ErrNotFound) {
			return l, nil
		}
		if err != nil {
			return nil, err
		}
		if digest, err := l.Digest(); err != nil || digest != diffID {
			return l, err // the previous image has it compressed
		}
		return compressed(ctx, keep, mine)
	})
}

// compressed is a layer as registries expect it, if keep can make that.
func compressed(ctx context.Context, keep phase.Layers, l v1.Layer) (v1.Layer, error) {
	if c, ok := keep.(interface {
		Compressed(context.Context, v1.Layer) (v1.Layer, error)
	}); ok {
		return c.Compressed(ctx, l)
	}
	return l, nil
}

// trusted are the blobs that need not be read again after the export.
func (p *Places) trusted(input phase.Input) (image.Known, error) {
	if p.Trusted != nil {
		return p.Trusted, nil
	}
	bases := []v1.Image{input.Run}
	if input.Previous != nil {
		bases = append(bases, input.Previous)
	}
	return p.knows(bases...)
}
