package dockerfile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Options say what a Dockerfile is built with.
type Options struct {
	// Images are the images that it names, by the name it has for them: see
	// File.Images.
	Images map[string]v1.Image
	// Args are the build arguments.
	Args map[string]string
	// Context is where COPY and ADD take files from. The zero value is none.
	Context layer.Stack
	// Target is the name or number of the stage to build; "" is the last one.
	Target string
	// Platform is what is built for; its zero value is linux on this machine.
	Platform v1.Platform
	// Secrets are what --mount=type=secret shows, by id.
	Secrets map[string][]byte
	// Cache keeps what instructions make.
	Cache Cache
	// Scratch is a directory for files that are fetched; "" is the system's.
	Scratch string
	// Created is the time that is noted in the image; the zero value is
	// layer.ModTime.
	Created time.Time
	// CreatedBy is what history says of a layer that an instruction made; nil
	// is the instruction itself.
	CreatedBy func(instruction string) string
	// Who names the work in events: it is shown before each line of output.
	Who    string
	Events event.Sink
}

// Build makes the image that f describes, as `docker build` would (Dockerfile
// reference, docker/dockerfile:1), with one layer for each instruction that
// changed files. Layers are normalised: the same input gives the same bytes.
// History says of RUN and ARG what the Dockerfile says, not what arguments were
// given: an argument that is another one in every build does not make another
// image of it.
//
// Not supported, and refused: Git by ssh, submodules, --mount=type=ssh,
// --security and --device. Sources in Git are fetched by this host's git. A program that fails is a *sandbox.ExitError.
func (f File) Build(ctx context.Context, m Machine, o Options) (v1.Image, error) {
	b, err := f.builder(m, o)
	if err != nil {
		return nil, err
	}
	target := len(f.Stages) - 1
	if o.Target != "" {
		var ok bool
		if target, ok = f.find(o.Target, len(f.Stages)); !ok {
			return nil, fmt.Errorf("%s: there is no stage %q", f.Name, o.Target)
		}
	}
	s, err := b.stage(ctx, target)
	if err != nil {
		return nil, err
	}
	img, err := s.image()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	return img, nil
}

// find finds a stage by name or number among the first n.
func (f *File) find(name string, n int) (int, bool) {
	if i, ok := f.stage(name, n); ok {
		return i, true
	}
	i, err := strconv.Atoi(name)
	return i, err == nil && i >= 0 && i < n
}

// scratchImage is the name of no image at all.
const scratchImage = "scratch"

// From is the image that the first stage stands on, as f names it with the given
// arguments.
func (f *File) From(args map[string]string) (string, error) {
	p := thisPlatform()
	global, err := f.globalArgs(args, platformArgs(p.OS, p.Architecture, p.Variant, ""))
	if err != nil {
		return "", err
	}
	name, err := f.expander(global)(f.Stages[0].From)
	return name, f.at(f.Stages[0].Line, err)
}

// Images lists the images that f needs to be built, as it names them with the
// given arguments: those of FROM, COPY --from and RUN --mount=from=.
func (f *File) Images(args map[string]string, platform v1.Platform) ([]string, error) {
	global, err := f.globalArgs(args, platformArgs(platform.OS, platform.Architecture, platform.Variant, ""))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	add := func(word string, before int, numbers bool, line int) error {
		name, err := f.expander(global)(word)
		if err != nil {
			return f.at(line, err)
		}
		_, isStage := f.stage(name, before)
		if numbers && !isStage {
			_, isStage = f.find(name, before)
		}
		if name != "" && name != scratchImage && !isStage {
			names[name] = true
		}
		return nil
	}
	for i, st := range f.Stages {
		if err := add(st.From, i, false, st.Line); err != nil {
			return nil, err
		}
		for _, in := range st.Instructions {
			c, err := in.Command()
			if err != nil {
				return nil, f.at(in.Line, err)
			}
			for _, from := range imagesOf(c) {
				if err := add(from, i, true, in.Line); err != nil {
					return nil, err
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// imagesOf lists what an instruction takes files from besides the context.
func imagesOf(c instructions.Command) []string {
	switch c := c.(type) {
	case *instructions.CopyCommand:
		return []string{c.From}
	case *instructions.RunCommand:
		var from []string
		for _, m := range instructions.GetMounts(c) {
			from = append(from, m.From)
		}
		return from
	}
	return nil
}

// builder is one Build under way.
type builder struct {
	f      *File
	m      Machine
	o      Options
	global variables
	ignore *patternmatcher.PatternMatcher
	stages map[int]*stage
}

func (f *File) builder(m Machine, o Options) (*builder, error) {
	if o.Created.IsZero() {
		o.Created = layer.ModTime
	}
	if o.Events == nil {
		o.Events = event.Discard
	}
	if o.Platform.OS == "" {
		o.Platform = thisPlatform()
	}
	target := cmp.Or(o.Target, f.Stages[len(f.Stages)-1].Name, "default")
	b := &builder{f: f, m: m, o: o, stages: map[int]*stage{}}
	var err error
	b.global, err = f.globalArgs(o.Args, platformArgs(o.Platform.OS, o.Platform.Architecture, o.Platform.Variant, target))
	if err != nil {
		return nil, err
	}
	b.ignore, err = readIgnore(o.Context)
	return b, err
}

// maxIgnore bounds .dockerignore, in bytes.
const maxIgnore = 1 << 20

// readIgnore reads .dockerignore.
func readIgnore(context layer.Stack) (*patternmatcher.PatternMatcher, error) {
	if context.Upper == "" && len(context.Lowers) == 0 {
		return nil, nil
	}
	const name = ".dockerignore"
	b, err := context.ReadFile(name, maxIgnore)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(strings.NewReader(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	m, err := matcher(patterns)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

// stage is a stage that is being built, or has been.
type stage struct {
	*builder
	Stage
	base    v1.Image
	layers  []v1.Layer // all, the lowest first
	added   []image.Addition
	history []v1.History // of this Dockerfile, empty layers included
	config  config
	args    []argument
	n       int // instructions so far
}

// stage builds a stage, once.
func (b *builder) stage(ctx context.Context, i int) (*stage, error) {
	if s := b.stages[i]; s != nil {
		return s, nil
	}
	s := &stage{builder: b, Stage: b.f.Stages[i]}
	if err := s.from(ctx, i); err != nil {
		return nil, b.f.at(s.Line, fmt.Errorf("FROM %s: %w", s.From, err))
	}
	if err := s.triggers(ctx); err != nil {
		return nil, b.f.at(s.Line, err)
	}
	for _, in := range s.Instructions {
		c, err := in.Command()
		if err == nil {
			err = s.carryOut(ctx, c, in.Text())
		}
		if err != nil {
			return nil, b.f.at(in.Line, fmt.Errorf("%s: %w", short(in.Text()), err))
		}
	}
	b.stages[i] = s
	return s, nil
}

// from begins the stage: on an image, on nothing, or where an earlier stage
// ended.
func (s *stage) from(ctx context.Context, i int) error {
	name, err := s.f.expander(s.global)(s.From)
	if err != nil {
		return err
	}
	if name == "" {
		return errors.New("no image is named")
	}
	if err := s.checkPlatform(); err != nil {
		return err
	}
	if j, ok := s.f.stage(name, i); ok {
		below, err := s.stage(ctx, j)
		if err != nil {
			return err
		}
		s.base, s.layers, s.added, s.history = below.base, slices.Clone(below.layers), slices.Clone(below.added), slices.Clone(below.history)
		s.config, s.args = below.config.clone(), slices.Clone(below.args)
		s.config.cmdSet = false
		return nil
	}
	if name == scratchImage {
		s.base = empty.Image
	} else if s.base = s.o.Images[name]; s.base == nil {
		return fmt.Errorf("image %s: %w", name, image.ErrNotFound)
	}
	cf, err := s.base.ConfigFile()
	if err != nil {
		return err
	}
	s.config = newConfig(cf)
	if name == scratchImage {
		s.config.WorkingDir = "/"
	}
	s.layers, err = s.base.Layers()
	return err
}

// checkPlatform refuses a stage for another platform than the one that is built
// for: its programs do not run here.
func (s *stage) checkPlatform() error {
	said, err := s.f.expander(s.global)(s.Platform)
	if said == "" || err != nil {
		return err
	}
	os, rest, _ := strings.Cut(said, "/")
	arch, _, _ := strings.Cut(rest, "/")
	if !strings.EqualFold(os, s.o.Platform.OS) || arch != "" && arch != s.o.Platform.Architecture {
		return fmt.Errorf("--platform=%s: this is built for and on %s/%s", said, s.o.Platform.OS, s.o.Platform.Architecture)
	}
	return nil
}

// triggers carries out what the image below asks for with ONBUILD.
func (s *stage) triggers(ctx context.Context) error {
	list := s.config.OnBuild
	s.config.OnBuild = nil
	for _, text := range list {
		parsed, err := Parse([]byte("FROM scratch\n"+text), "ONBUILD of "+s.From)
		if err != nil {
			return err
		}
		for _, in := range parsed.Stages[0].Instructions {
			c, err := in.Command()
			if err == nil {
				err = s.carryOut(ctx, c, in.Text())
			}
			if err != nil {
				return fmt.Errorf("ONBUILD %s: %w", short(in.Text()), err)
			}
		}
	}
	return nil
}

// short is the beginning of an instruction, for people.
func short(text string) string {
	const most = 120
	text, _, more := strings.Cut(text, "\n")
	if len(text) > most {
		text, more = text[:most], true
	}
	if more {
		text += "..."
	}
	return text
}

func (s *stage) scope() scope { return scope{env: s.config.Env, args: s.args} }

// carryOut carries out one instruction.
func (s *stage) carryOut(ctx context.Context, c instructions.Command, text string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.n++
	if arg, ok := c.(*instructions.ArgCommand); ok {
		args, err := s.f.declare(arg, s.scope(), s.o.Args, s.global)
		s.args = args
		s.note(text, nil)
		return err
	}
	if err := s.f.expand(c, s.scope()); err != nil {
		return err
	}
	switch c := c.(type) {
	case *instructions.RunCommand:
		return s.run(ctx, c, text)
	case *instructions.CopyCommand:
		return s.copy(ctx, copyOf(c), text)
	case *instructions.AddCommand:
		return s.copy(ctx, addOf(c), text)
	case *instructions.WorkdirCommand:
		return s.workdir(ctx, c, text)
	case *instructions.ExposeCommand:
		if err := s.expandPorts(c); err != nil {
			return err
		}
	case *instructions.HealthCheckCommand:
		if c.Health.StartInterval > 0 {
			s.say(event.Warn, "HEALTHCHECK --start-interval is left out: OCI image configs as they are written here have no place for it")
		}
	}
	createdBy, known, err := s.config.apply(c)
	if err == nil && !known {
		err = errors.New("this instruction is not supported")
	}
	s.note(createdBy, nil)
	return err
}

// expandPorts expands variables that may hold several ports.
func (s *stage) expandPorts(c *instructions.ExposeCommand) error {
	var ports []string
	for _, p := range c.Ports {
		if len(p) > maxWord {
			return errors.New("a word that is too long")
		}
		words, err := shell.NewLex(s.f.escape).ProcessWords(p, s.scope())
		if err != nil {
			return err
		}
		ports = append(ports, words...)
	}
	c.Ports = ports
	return nil
}

// workdir makes the working directory, if it is not there, for the user of the
// image.
func (s *stage) workdir(ctx context.Context, c *instructions.WorkdirCommand, text string) error {
	dir := s.config.workdir(c.Path)
	createdBy := "WORKDIR " + dir
	if dir == "/" {
		s.note(createdBy, nil)
		return nil
	}
	op := Put{Mkdir: true, Dest: dir, Chown: s.config.User}
	return s.change(ctx, text, createdBy, struct{ Workdir Put }{op}, func(ctx context.Context, r Root) error {
		return r.Inside(ctx, Op{Put: &op}, nil, nil)
	})
}

// note adds to the history, and to the layers if there is a new one.
func (s *stage) note(createdBy string, l v1.Layer) {
	if l != nil && s.o.CreatedBy != nil {
		createdBy = s.o.CreatedBy(createdBy)
	}
	h := v1.History{Created: v1.Time{Time: s.o.Created}, CreatedBy: createdBy, EmptyLayer: l == nil}
	s.history = append(s.history, h)
	if l == nil {
		return
	}
	s.layers = append(s.layers, l)
	s.added = append(s.added, image.Addition{Layer: l, History: h})
}

// change carries out an instruction that may change files, unless what it makes
// is known: instruction is all that this depends on, besides the files.
func (s *stage) change(ctx context.Context, text, createdBy string, instruction any, do func(context.Context, Root) error) error {
	key, err := cacheKey(s.m.Kind(), s.layers, instruction)
	if err != nil {
		return err
	}
	l, hit, err := s.o.Cache.Get(ctx, key)
	if err != nil {
		s.say(event.Warn, "%v; %s is executed again", err, short(text))
	}
	if hit {
		s.say(event.Info, "%s%s (cached)", s.progress(), short(text))
		s.note(createdBy, l)
		return nil
	}
	s.say(event.Info, "%s%s", s.progress(), short(text))
	if l, err = s.execute(ctx, do); err != nil {
		return err
	}
	if err := s.o.Cache.Put(ctx, key, l); err != nil {
		s.say(event.Warn, "what %s made is not remembered: %v", short(text), err)
	}
	s.note(createdBy, l)
	return nil
}

func (s *stage) execute(ctx context.Context, do func(context.Context, Root) error) (l v1.Layer, err error) {
	r, err := s.m.Root(ctx, s.layers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := do(ctx, r); err != nil {
		return nil, err
	}
	return r.Commit(ctx, s.o.Cache)
}

func (s *stage) progress() string {
	if len(s.f.Stages) == 1 {
		return fmt.Sprintf("[%d/%d] ", s.n, len(s.Instructions))
	}
	return fmt.Sprintf("[%s %d/%d] ", cmp.Or(s.Name, s.From), s.n, len(s.Instructions))
}

func (s *stage) say(level event.Level, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.o.Who != "" {
		text = s.o.Who + ": " + text
	}
	s.o.Events.Emit(event.Message{Level: level, Text: text})
}

// image is what the stage has become.
func (s *stage) image() (v1.Image, error) {
	base, err := s.base.ConfigFile()
	if err != nil {
		return nil, err
	}
	told := 0
	for _, h := range base.History {
		if !h.EmptyLayer {
			told++
		}
	}
	fits := told == len(base.RootFS.DiffIDs)
	return image.Append(s.base, s.added, func(cf *v1.ConfigFile) {
		cf.Config, cf.Author = *s.config.Config.DeepCopy(), s.config.author
		cf.Created = v1.Time{Time: s.o.Created}
		cf.OS, cf.Architecture = cmp.Or(cf.OS, s.o.Platform.OS), cmp.Or(cf.Architecture, s.o.Platform.Architecture)
		if fits {
			cf.History = slices.Concat(base.History, s.history)
		}
	})
}
