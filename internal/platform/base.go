package platform

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
)

// lockLabel carries the digest of the lock file that a base image was made from.
const lockLabel = "io.kiln.base.lock"

// BaseRequest asks for a base image made of Debian packages.
type BaseRequest struct {
	// Name the image gets in the store.
	Name   string
	Recipe debian.Recipe
	// Mirror is a Debian mirror; empty means apt's.
	Mirror string
	// Build makes a build image, which says whom buildpacks run as; otherwise
	// it is a run image.
	Build       bool
	Description string
	// Keyrings and AllowExpired are debian.Options'.
	Keyrings     []string
	AllowExpired bool
}

// builtinBases are the two images that the built-in builder stands on.
func (p *Platform) builtinBases(mirror string) []BaseRequest {
	return []BaseRequest{
		{Name: builtinRunImage, Recipe: debian.RunImage(builtinSuite, p.Arch), Mirror: mirror, Description: "kiln's run image: Debian " + builtinSuite + ", C libraries, a shell, no package manager"},
		{Name: builtinBuild, Recipe: debian.BuildImage(builtinSuite, p.Arch), Mirror: mirror, Build: true, Description: "kiln's build image: Debian " + builtinSuite + " with compilers and tools"},
	}
}

// BaseFor is the request for a base image of the user's own: the built-in run
// or build image and more packages.
func (p *Platform) BaseFor(name, suite string, build bool, packages, exclude []string) BaseRequest {
	recipe := debian.RunImage(suite, p.Arch)
	if build {
		recipe = debian.BuildImage(suite, p.Arch)
	}
	if len(packages) > 0 {
		recipe.Groups = append(recipe.Groups, debian.Group{Name: "packages", Packages: packages})
	}
	// What is asked for by name is wanted, also where the built-in image goes without.
	recipe.Exclude = slices.DeleteFunc(slices.Clone(recipe.Exclude), func(p string) bool { return slices.Contains(packages, p) })
	recipe.Exclude = append(recipe.Exclude, exclude...)
	return BaseRequest{Name: name, Recipe: recipe, Build: build, Description: "made by kiln base create from Debian " + suite}
}

// WithLock is r with the packages of a lock: suite, groups and excludes are what
// they were when it was made.
func (r BaseRequest) WithLock(lock debian.Lock) BaseRequest {
	r.Recipe.Lock = &lock
	r.Recipe.Suite, r.Recipe.Exclude = lock.Suite, lock.Exclude
	r.Recipe.Groups = nil
	for _, g := range lock.Groups {
		r.Recipe.Groups = append(r.Recipe.Groups, debian.Group{Name: g.Name, Packages: g.Want})
	}
	r.Description = "made by kiln base create from Debian " + lock.Suite
	return r
}

// UpdateBases makes the built-in base images anew from what the mirror has now,
// security updates included. The next build uses them.
func (p *Platform) UpdateBases(ctx context.Context, mirror string) error {
	unlock, err := p.Store.Cache("kiln/builtin").Lock(ctx, p.waiting("the built-in builder"))
	if err != nil {
		return err
	}
	defer unlock()
	for _, base := range p.builtinBases(mirror) {
		img, lock, err := p.CreateBase(ctx, base)
		if err != nil {
			return err
		}
		id, err := image.ID(img)
		if err != nil {
			return err
		}
		p.info("%s %s, %d packages", base.Name, id, len(lock.Packages))
	}
	return nil
}

// CreateBase makes a base image from Debian packages and puts it in the store.
// The same lock gives the same image ID anywhere.
func (p *Platform) CreateBase(ctx context.Context, req BaseRequest) (v1.Image, debian.Lock, error) {
	fail := func(err error) (v1.Image, debian.Lock, error) {
		return nil, debian.Lock{}, fmt.Errorf("create base image %s: %w", req.Name, err)
	}
	name, err := ParseImageName(req.Name)
	if err != nil {
		return fail(err)
	}
	sources, err := debianSources(req.Mirror, req.Recipe.Suite)
	if err != nil {
		return fail(err)
	}
	client, err := debian.NewClient(debian.Options{Sources: sources, Events: p.Events, Blobs: debBlobs{p.Store}, Keyrings: req.Keyrings, AllowExpired: req.AllowExpired})
	if err != nil {
		return fail(err)
	}
	defer client.Close()

	var layers []image.Addition
	result, err := client.Build(ctx, req.Recipe, func(name string, write func(io.Writer) error) error {
		l, err := p.Store.PutLayer(ctx, write)
		if err != nil {
			return err
		}
		layers = append(layers, image.Addition{Layer: l, History: v1.History{CreatedBy: "kiln base: " + name}})
		return nil
	})
	if err != nil {
		return fail(err)
	}
	lock, err := result.Lock.MarshalText()
	if err != nil {
		return fail(err)
	}
	img, err := image.Append(emptyImage(), layers, func(cf *v1.ConfigFile) {
		p.baseConfig(cf, req, name, result, lock)
	})
	if err != nil {
		return fail(err)
	}
	if err := p.Store.Write(ctx, name.Short, img); err != nil {
		return fail(err)
	}
	return img, result.Lock, nil
}

// baseConfig is the config of a base image: user, environment and labels as
// the specification asks of build and run images.
func (p *Platform) baseConfig(cf *v1.ConfigFile, req BaseRequest, name ImageName, result debian.Result, lock []byte) {
	cf.OS, cf.Architecture = "linux", p.Arch
	cf.Created = v1.Time{Time: result.Created}
	for i := range cf.History {
		cf.History[i].Created = cf.Created
	}
	u := req.Recipe.User
	cf.Config.User = fmt.Sprintf("%d:%d", u.UID, u.GID)
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	sum := sha256.Sum256(lock)
	id, _, _ := strings.Cut(name.Short, ":")
	cf.Config.Labels = map[string]string{
		spec.BaseIDLabel:            "io.kiln." + strings.ReplaceAll(id, "/", "."),
		spec.BaseMaintainerLabel:    "kiln",
		spec.BaseDescriptionLabel:   req.Description,
		spec.BaseReleasedLabel:      result.Created.UTC().Format("2006-01-02"),
		spec.BaseDistroNameLabel:    result.Distro.Name,
		spec.BaseDistroVersionLabel: result.Distro.Version,
		lockLabel:                   "sha256:" + hex.EncodeToString(sum[:]),
	}
	if req.Build {
		cf.Config.Env = append(cf.Config.Env, fmt.Sprintf("CNB_USER_ID=%d", u.UID), fmt.Sprintf("CNB_GROUP_ID=%d", u.GID))
		return
	}
	cf.Config.Labels[spec.RebasableLabel] = "true"
}

// debianSources are the mirror that the user named, or the machine's own.
func debianSources(mirror, suite string) ([]debian.Source, error) {
	if mirror != "" {
		u, err := url.Parse(mirror)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file" {
			return nil, badInput(fmt.Errorf("mirror %q is no URL of a Debian mirror", mirror), "for example --mirror http://mirror.example.com/debian")
		}
		return debian.ForMirror(mirror, suite), nil
	}
	sources, err := debian.Sources("/")
	if err != nil {
		return nil, err
	}
	if len(sources) == 0 {
		return nil, spec.WithHint(errors.New("apt's configuration names no Debian mirror"), "name one with --mirror URL")
	}
	return sources, nil
}

// ReadLock reads a lock file.
func ReadLock(file string) (debian.Lock, error) {
	f, err := os.Open(file)
	if err != nil {
		return debian.Lock{}, badInput(fmt.Errorf("lock: %w", err), "kiln base create --write-lock makes one")
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, spec.MaxDocument+1))
	if err != nil {
		return debian.Lock{}, fmt.Errorf("lock: %w", err)
	}
	return debian.ReadLock(b, file)
}

// WriteLock writes a lock file, whole or not at all.
func WriteLock(file string, lock debian.Lock) error {
	b, err := lock.MarshalText()
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".lock-*")
	if err != nil {
		return fmt.Errorf("write lock: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write lock %s: %w", file, err)
	}
	return os.Rename(tmp.Name(), file)
}

// debBlobs keeps .debs in the store, where they are until the next gc.
type debBlobs struct{ store *store.Store }

// Open implements debian.Blobs.
func (b debBlobs) Open(ctx context.Context, sum string) (io.ReadCloser, error) {
	r, _, err := b.store.OpenBlob(ctx, "sha256:"+sum)
	if errors.Is(err, image.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return r, err
}

// Put implements debian.Blobs.
func (b debBlobs) Put(ctx context.Context, sum string, r io.Reader) error {
	w, err := b.store.Blob(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	_, _, err = w.Commit("sha256:" + sum)
	return err
}
