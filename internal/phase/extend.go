package phase

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Extension is what Extend has to know of a build.
type Extension struct {
	Kind        dockerfile.Kind
	PlatformAPI string
	Group       spec.Group
	// Generated is <generated>, where the extensions left their Dockerfiles, and
	// App the app: the build context of those that brought none.
	Generated, App layer.Stack
	// Base is what the image to extend is called.
	Base string
	// FindUser looks up the user of an image; nil asks the machine, which unpacks
	// the image for it.
	FindUser func(ctx context.Context, img v1.Image, user string) (dockerfile.User, error)
}

// Extend applies the Dockerfiles that the extensions of the group generated for
// one kind of image to base, in the order of the group, each to what the one
// before it made (Platform API, "extender"; Image Extension Interface,
// "Dockerfiles"). The result is base where there are none.
//
// A run image must not be left with root as its user, and it counts as rebasable
// only if every Dockerfile says so. Errors carry spec.ExitExtend.
func Extend(ctx context.Context, m dockerfile.Machine, cache dockerfile.Cache, base v1.Image, x Extension, sink event.Sink) (v1.Image, error) {
	e := &extending{Extension: x, cache: cache, sink: sink, rebasable: true}
	img, err := e.run(ctx, m, base)
	return img, spec.Exit(spec.ExitExtend, err)
}

type extending struct {
	Extension
	cache     dockerfile.Cache
	sink      event.Sink
	rebasable bool // so far
}

func (e *extending) run(ctx context.Context, m dockerfile.Machine, base v1.Image) (v1.Image, error) {
	img, name, applied := base, e.Base, 0
	for _, ext := range e.Group.GroupExtensions {
		body, err := e.generated(ext, e.fileOf(ext), maxGenerated)
		if errors.Is(err, fs.ErrNotExist) {
			continue // for another kind, or in vain: an .ignore in its place
		}
		if err == nil {
			img, err = e.apply(ctx, m, ext, body, img, name)
		}
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", ext, err)
		}
		digest, err := img.Digest()
		if err != nil {
			return nil, err
		}
		name = "extended@" + digest.String()
		applied++
	}
	if applied == 0 || e.Kind != dockerfile.Run {
		return img, nil
	}
	if err := e.checkUser(ctx, m, img); err != nil {
		return nil, err
	}
	return withLabel(img, spec.RebasableLabel, strconv.FormatBool(e.rebasable))
}

// maxGenerated bounds a generated file, in bytes.
const maxGenerated = dockerfile.MaxSize

// dirOf is the directory of an extension below <generated>.
func (e *extending) dirOf(ext spec.GroupElement) string {
	id := spec.EscapeID(ext.ID)
	if spec.Has(e.PlatformAPI, spec.PlatformGeneratedByID) {
		return id
	}
	return path.Join(string(e.Kind), id)
}

func (e *extending) fileOf(ext spec.GroupElement) string {
	if spec.Has(e.PlatformAPI, spec.PlatformGeneratedByID) {
		return string(e.Kind) + ".Dockerfile"
	}
	return "Dockerfile"
}

func (e *extending) generated(ext spec.GroupElement, file string, limit int64) ([]byte, error) {
	return e.Generated.ReadFile(path.Join(e.dirOf(ext), file), limit)
}

// apply carries out one Dockerfile on img, which is called name.
func (e *extending) apply(ctx context.Context, m dockerfile.Machine, ext spec.GroupElement, body []byte, img v1.Image, name string) (v1.Image, error) {
	file, err := dockerfile.Parse(body, e.fileOf(ext))
	if err != nil {
		return nil, err
	}
	if len(file.Stages) != 1 {
		return nil, fmt.Errorf("%s:%d: a second FROM instruction: only one is allowed", file.Name, file.Stages[1].Line)
	}
	args, err := e.args(ctx, m, ext, img, name)
	if err != nil {
		return nil, err
	}
	from, err := file.From(args)
	if err != nil {
		return nil, err
	}
	build, err := e.context(ext)
	if err != nil {
		return nil, err
	}
	unlabelled, err := withLabel(img, spec.RebasableLabel, "")
	if err != nil {
		return nil, err
	}
	made, err := file.Build(ctx, m, dockerfile.Options{
		Images: map[string]v1.Image{from: unlabelled}, Args: args, Context: build, Cache: e.cache,
		CreatedBy: func(instruction string) string { return CreatedByExtension(instruction, ext.ID) },
		Who:       ext.String(), Events: e.sink,
	})
	if err != nil {
		return nil, err
	}
	cf, err := made.ConfigFile()
	if err != nil {
		return nil, err
	}
	e.rebasable = e.rebasable && cf.Config.Labels[spec.RebasableLabel] == "true"
	return made, nil
}

// args are the build arguments that the platform gives, and then those that
// the extension asked for.
func (e *extending) args(ctx context.Context, m dockerfile.Machine, ext spec.GroupElement, img v1.Image, name string) (map[string]string, error) {
	user, err := e.userOf(ctx, m, img)
	if err != nil {
		return nil, err
	}
	args := map[string]string{}
	b, err := e.generated(ext, buildpack.ExtendConfig, maxGenerated)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	config, _, err := spec.ReadExtendConfig(b, buildpack.ExtendConfig)
	if err != nil {
		return nil, err
	}
	extra := config.Build
	if e.Kind == dockerfile.Run {
		extra = config.Run
	}
	for name, value := range extra.Map() {
		args[name] = value
	}
	args[dockerfile.BaseImage] = name
	args["build_id"] = newUUID()
	args["user_id"], args["group_id"] = strconv.Itoa(user.UID), strconv.Itoa(user.GID)
	return args, nil
}

// newUUID is a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// userOf finds the user of an image. Numbers need no image.
func (e *extending) userOf(ctx context.Context, m dockerfile.Machine, img v1.Image) (dockerfile.User, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return dockerfile.User{}, err
	}
	said := cf.Config.User
	if uid, gid, ok := numericUser(said); ok {
		return dockerfile.User{UID: uid, GID: gid}, nil
	}
	find := e.FindUser
	if find == nil {
		find = func(ctx context.Context, img v1.Image, user string) (dockerfile.User, error) {
			return lookInside(ctx, m, img, user)
		}
	}
	user, err := find(ctx, img, said)
	if err != nil {
		return user, fmt.Errorf("user of the image: %w", err)
	}
	return user, nil
}

// numericUser reads UID:GID; no user is root.
func numericUser(s string) (uid, gid int, ok bool) {
	if s == "" {
		return 0, 0, true
	}
	u, g, _ := strings.Cut(s, ":")
	uid, uerr := strconv.Atoi(u)
	gid, gerr := strconv.Atoi(g)
	return uid, gid, uerr == nil && gerr == nil && uid >= 0 && gid >= 0
}

func lookInside(ctx context.Context, m dockerfile.Machine, img v1.Image, user string) (found dockerfile.User, err error) {
	layers, err := img.Layers()
	if err != nil {
		return found, err
	}
	root, err := m.Root(ctx, layers)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	var answer bytes.Buffer
	if err := root.Inside(ctx, dockerfile.Op{Look: &dockerfile.Look{User: user}}, nil, &answer); err != nil {
		return found, err
	}
	var f dockerfile.Found
	err = json.Unmarshal(answer.Bytes(), &f)
	return f.User, err
}

// checkUser refuses a run image that starts apps as root.
func (e *extending) checkUser(ctx context.Context, m dockerfile.Machine, img v1.Image) error {
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(cf.Config.User, ":")
	root := name == "" || name == "root"
	if !root {
		// A name that the image does not have is not root's.
		user, err := e.userOf(ctx, m, img)
		root = err == nil && user.UID == 0
	}
	if !root {
		return nil
	}
	err = errors.New("the extended run image has root as its user")
	return spec.WithHint(err, "end the last run.Dockerfile with USER ${user_id}:${group_id}")
}

// context is where COPY and ADD take files from: the extension's own directory
// for this kind, else that for both, else the app.
func (e *extending) context(ext spec.GroupElement) (layer.Stack, error) {
	if !spec.Has(e.PlatformAPI, spec.PlatformGeneratedByID) {
		return e.App, nil
	}
	own := map[dockerfile.Kind]string{dockerfile.Build: buildpack.BuildContext, dockerfile.Run: buildpack.RunContext}[e.Kind]
	for _, name := range []string{own, buildpack.SharedContext} {
		rel := path.Join(e.dirOf(ext), name)
		if _, err := e.Generated.Lstat(rel); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return e.Generated.Sub(rel)
	}
	return e.App, nil
}

// withLabel is img with a label, or without it where value is "".
func withLabel(img v1.Image, label, value string) (v1.Image, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if cf.Config.Labels[label] == value {
		return img, nil
	}
	return image.Append(img, nil, func(cf *v1.ConfigFile) {
		if value == "" {
			delete(cf.Config.Labels, label)
			return
		}
		if cf.Config.Labels == nil {
			cf.Config.Labels = map[string]string{}
		}
		cf.Config.Labels[label] = value
	})
}
