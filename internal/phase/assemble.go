package phase

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Layers keeps finished layers; the store is one. PutLayer stores what write
// writes, an uncompressed tar, and returns it as a layer. Layer finds one by
// diffID, or fails with image.ErrNotFound. Both are called concurrently.
type Layers interface {
	Layer(ctx context.Context, diffID string) (v1.Layer, error)
	PutLayer(ctx context.Context, write func(io.Writer) error) (v1.Layer, error)
}

// Input is what an app image is made of.
type Input struct {
	PlatformAPI string
	// ExecEnv is CNB_EXEC_ENV; empty is the default.
	ExecEnv string
	// Run is the run image, opened by the reference in Analyzed.
	Run v1.Image
	// Previous is the image of the last build, or nil. Layers that have not
	// changed are taken from it.
	Previous v1.Image
	// Sparse says that layers of Previous may be missing where it is: whoever
	// takes the app image has them.
	Sparse bool
	// Extended is what image extensions made of Run, or nil: the app image has
	// its config, and its layers above those of Run, of which no others are read.
	Extended v1.Image
	Analyzed spec.Analyzed
	// RunTOML names the run image's mirrors.
	RunTOML spec.RunTOML
	Group   spec.Group
	// Built is what the builder said of the image, and BuiltTOML how: the bytes of
	// its metadata.toml, which go into the image as they are, whichever lifecycle
	// wrote them. Nil means that Built is to be written.
	Built     spec.BuildMetadata
	BuiltTOML []byte

	Layers, App Tree
	// Owner is the build user: of all layers, but the launcher's.
	Owner layer.Owner
	// Known are the layers that Restore placed. Those that nobody touched since
	// are not read again.
	Known Known
	// AppDiffID is the diffID that the app layer has if nobody touched App.Upper,
	// "" if that is not known.
	AppDiffID string

	// Launcher is the executable at /cnb/lifecycle/launcher.
	Launcher     []byte
	LauncherInfo spec.LauncherInfo
	// ProcessType is the default process; "" is the one that buildpacks chose.
	ProcessType string
	Project     spec.ProjectMetadata
	// SourceDateEpoch is SOURCE_DATE_EPOCH: when the image was created, in
	// seconds since 1970. "" means layer.ModTime.
	SourceDateEpoch string
}

// Output is an app image and what was learned in making it.
type Output struct {
	Image    v1.Image
	Metadata spec.LifecycleMetadata
	// DiffIDs are the layers of Input.Layers that were made or reused, by their
	// path "<escaped id>/<layer>" or "sbom/launch".
	DiffIDs Known
	// AppDiffID is the app layer's; "" if slices divide the app.
	AppDiffID string
}

// Assemble makes the app image (Platform API, "exporter"): the run image's
// layers, those of image extensions, then launch layers, SBOMs, the app,
// launcher, config and process types; its config and labels. Layers that changed
// are written to keep, once; base layers are not read. The same input gives the
// same image.
//
// It emits an event.Layer for each layer. Errors carry spec.ExitExport.
func Assemble(ctx context.Context, keep Layers, in Input, sink event.Sink) (Output, error) {
	a, err := newAssembler(ctx, keep, in, sink)
	var out Output
	if err == nil {
		out, err = a.assemble(ctx)
	}
	if _, coded := errors.AsType[*spec.ExitError](err); err != nil && !coded {
		err = spec.Exit(spec.ExitExport, err)
	}
	return out, err
}

type assembler struct {
	Input
	keep  Layers
	sink  event.Sink
	procs []spec.Process // of Built, their types checked

	mu   sync.Mutex
	done Known
}

func newAssembler(ctx context.Context, keep Layers, in Input, sink event.Sink) (*assembler, error) {
	a := &assembler{Input: in, keep: keep, sink: sink, procs: in.Built.Processes, done: Known{}}
	if in.Run == nil || in.Analyzed.RunImage == nil || in.Analyzed.RunImage.Reference == "" {
		return nil, spec.Exit(spec.ExitInvalidArgs, errors.New("no run image: analyzed.toml has no run-image.reference"))
	}
	for _, p := range a.procs {
		if err := spec.ValidateProcessType(p.Type); err != nil {
			return nil, err
		}
	}
	return a, ctx.Err()
}

// part is one layer of the app image to be.
type part struct {
	name    string // for people
	history string // created_by
	// old is the diffID that the previous image had for it, "" if none.
	old string
	// unlabelled parts are not in the label: whether the previous image has them
	// only its layers tell.
	unlabelled bool
	// make returns the layer and how many bytes of its tree were read for it.
	make func(ctx context.Context) (v1.Layer, int64, error)
	// set is told the diffID, in the order of parts.
	set func(diffID string)

	layer   v1.Layer
	read    int64
	elapsed time.Duration
}

func (a *assembler) assemble(ctx context.Context) (Output, error) {
	md := spec.LifecycleMetadata{}
	var parts []*part
	for _, collect := range []func(context.Context, *spec.LifecycleMetadata) ([]*part, error){
		a.extensionParts, a.launchParts, a.sbomParts, a.appParts, a.launcherParts,
	} {
		more, err := collect(ctx, &md)
		if err != nil {
			return Output{}, err
		}
		parts = append(parts, more...)
	}
	if err := a.makeAll(ctx, parts); err != nil {
		return Output{}, err
	}
	additions, err := a.finish(ctx, parts)
	if err != nil {
		return Output{}, err
	}
	img, err := a.image(&md, additions)
	if err != nil {
		return Output{}, err
	}
	out := Output{Image: img, Metadata: md, DiffIDs: a.done}
	if len(a.Built.Slices) == 0 && len(md.App) == 1 {
		out.AppDiffID = md.App[0].SHA
	}
	return out, nil
}

// makeAll makes the layers, as many at a time as there are processors: making
// one is reading and hashing.
func (a *assembler) makeAll(ctx context.Context, parts []*part) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range parts {
		group.Go(func() error {
			start := time.Now()
			var err error
			if p.layer, p.read, err = p.make(gctx); err != nil {
				return fmt.Errorf("layer %s: %w", p.name, err)
			}
			p.elapsed = time.Since(start)
			return nil
		})
	}
	return group.Wait()
}

// finish tells everybody the diffIDs and takes layers that the previous image
// has, too, from there: it is where they are going.
func (a *assembler) finish(ctx context.Context, parts []*part) ([]image.Addition, error) {
	var additions []image.Addition
	for _, p := range parts {
		h, err := p.layer.DiffID()
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", p.name, err)
		}
		diffID := h.String()
		p.set(diffID)
		a.sink.Emit(event.Layer{Name: p.name, Action: a.action(p, diffID), Target: "image", DiffID: diffID, Read: p.read, Elapsed: p.elapsed})
		l := p.layer
		if old := a.previousLayer(ctx, l, diffID); old != nil {
			l = old
		}
		additions = append(additions, image.Addition{Layer: l, History: v1.History{CreatedBy: p.history}})
	}
	return additions, nil
}

// action is what people are told of a part.
func (a *assembler) action(p *part, diffID string) string {
	if p.unlabelled && a.Previous != nil {
		if _, err := layerOf(a.Previous, diffID); err == nil {
			return "reused"
		}
	}
	switch p.old {
	case "":
		return "new"
	case diffID:
		return "reused"
	}
	return "rebuilt"
}

// previousLayer is the layer of that diffID in the previous image, if it is
// really there and has another form than made: the same bytes are no gain.
func (a *assembler) previousLayer(ctx context.Context, made v1.Layer, diffID string) v1.Layer {
	if a.Previous == nil || ctx.Err() != nil {
		return nil
	}
	l, err := layerOf(a.Previous, diffID)
	if err != nil || sameBlob(l, made) || !exists(l) {
		return nil
	}
	return l
}

func sameBlob(a, b v1.Layer) bool {
	x, errX := a.Digest()
	y, errY := b.Digest()
	return errX == nil && errY == nil && x == y
}

func layerOf(img v1.Image, diffID string) (v1.Layer, error) {
	h, err := v1.NewHash(diffID)
	if err != nil {
		return nil, err
	}
	return img.LayerByDiffID(h)
}

// exists asks a layer that can tell whether its blob is where it should be.
func exists(l v1.Layer) bool {
	there, err := partial.Exists(l)
	return err == nil && there
}

// tree makes the layer of what is at rel in t. A tar that exists already is
// taken when diffID is known, nobody touched rel, and what the tar says of the
// directories above is still so. Nothing of the tree is read then.
func (a *assembler) tree(ctx context.Context, t Tree, rel, diffID string, parents []layer.Parent) (v1.Layer, int64, error) {
	if l, err := a.untouched(ctx, t, rel, diffID, parents); l != nil || err != nil {
		return l, 0, err
	}
	var read int64
	l, err := a.keep.PutLayer(ctx, func(w io.Writer) (err error) {
		read, err = layer.WriteTree(ctx, w, t.Stack, rel, path.Join(t.Path, rel), parents, a.Owner)
		return err
	})
	return l, read, err
}

func (a *assembler) untouched(ctx context.Context, t Tree, rel, diffID string, parents []layer.Parent) (v1.Layer, error) {
	if diffID == "" {
		return nil, nil
	}
	if touched, err := t.Touched(rel); touched || err != nil {
		return nil, err
	}
	l, err := a.keep.Layer(ctx, diffID)
	if err != nil {
		return nil, ctx.Err()
	}
	fi, err := t.Lstat(rel)
	if err != nil || !fi.IsDir() {
		return nil, nil
	}
	head, err := tarHead(append(slices.Clip(parents), layer.Parent{Path: path.Join(t.Path, rel), Mode: fi.Mode(), Owner: a.Owner}))
	if err != nil || !beginsWith(l, head) {
		return nil, ctx.Err()
	}
	return l, nil
}

// tarHead is how a layer tar begins that starts with these directories.
func tarHead(dirs []layer.Parent) ([]byte, error) {
	var files []layer.File
	for _, d := range dirs {
		files = append(files, layer.File{Path: d.Path, Mode: d.Mode | fs.ModeDir, Owner: d.Owner})
	}
	var b bytes.Buffer
	if err := layer.WriteFiles(&b, files); err != nil {
		return nil, err
	}
	const trailer = 1024 // two blocks that end a tar
	return b.Bytes()[:b.Len()-trailer], nil
}

func beginsWith(l v1.Layer, head []byte) bool {
	rc, err := l.Uncompressed()
	if err != nil {
		return false
	}
	defer rc.Close()
	got := make([]byte, len(head))
	_, err = io.ReadFull(rc, got)
	return err == nil && bytes.Equal(got, head)
}

// put keeps a layer that is made of memory. Its bytes are made once to know
// which they are, and once more only if they are not there already.
func (a *assembler) put(ctx context.Context, write func(io.Writer) error) (v1.Layer, error) {
	sum := sha256.New()
	if err := write(sum); err != nil {
		return nil, err
	}
	l, err := a.keep.Layer(ctx, "sha256:"+hex.EncodeToString(sum.Sum(nil)))
	if errors.Is(err, image.ErrNotFound) {
		return a.keep.PutLayer(ctx, write)
	}
	return l, err
}

func (a *assembler) remember(rel, diffID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done[rel] = diffID
}

// layerName is how events call a buildpack's layer.
func layerName(id, name string) string { return id + ":" + name }

// readTOML reads one document of the layers directory; false if it is not there.
func readTOML[T any](t Tree, rel string, decode func([]byte, string) (T, error)) (T, bool, error) {
	var none T
	body, err := t.ReadFile(rel, spec.MaxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return none, false, nil
	}
	if err != nil {
		return none, false, err
	}
	v, err := decode(body, path.Join(t.Path, rel))
	return v, err == nil, err
}

// layerTOMLs lists the layers that have a <layer>.toml in dir, by name.
func layerTOMLs(t Tree, dir string) ([]string, error) {
	entries, err := t.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if ok && !e.IsDir() && spec.ValidateLayerName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
