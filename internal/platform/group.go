package platform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/spec"
)

// forHere keeps what is meant for the request's execution environment.
func (r Request) forHere(list []spec.ProjectBuildpack) []spec.ProjectBuildpack {
	return slices.DeleteFunc(slices.Clone(list), func(b spec.ProjectBuildpack) bool {
		return !spec.InExecEnv(b.ExecEnv, r.execEnv())
	})
}

func (r Request) execEnv() string { return cmp.Or(r.ExecEnv, spec.DefaultExecEnv) }

// findBuildpacks finds the buildpacks that the request names. A group of its own
// replaces the builder's order; pre and post go around every group, also of the
// builder's order. scratch takes the buildpacks that are scripts.
func (p *Platform) findBuildpacks(ctx context.Context, req Request, b builderRoot, scratch string) (extras, error) {
	var x extras
	find := func(list []spec.ProjectBuildpack) (found []spec.GroupElement, err error) {
		for _, e := range list {
			m, err := p.findProjectBuildpack(ctx, e, req, b, &x, scratch)
			if err != nil {
				return nil, err
			}
			found = append(found, m)
		}
		return found, nil
	}
	var group []spec.GroupElement
	for _, name := range req.Buildpacks {
		m, err := p.findBuildpack(ctx, name, req.Insecure, b, &x)
		if err != nil {
			return x, err
		}
		group = append(group, m)
	}
	own, err1 := find(req.Group)
	pre, err2 := find(req.Pre)
	post, err3 := find(req.Post)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return x, err
	}
	var err error
	switch group = append(group, own...); {
	case len(group) > 0:
		x.Order.Order = []spec.OrderGroup{{Group: group}}
	case len(pre)+len(post) > 0:
		x.Order, err = b.order()
	}
	for i, g := range x.Order.Order {
		x.Order.Order[i].Group = slices.Concat(pre, g.Group, post)
	}
	return x, err
}

// order is the builder's order.
func (b builderRoot) order() (spec.Order, error) {
	content, err := b.stack(dirSystem).ReadFile("order.toml", spec.MaxDocument)
	if err != nil {
		return spec.Order{}, fmt.Errorf("order of builder %s: %w", b.Name, err)
	}
	order, err := spec.ReadOrder(content, "/cnb/order.toml")
	if err != nil {
		return order, fmt.Errorf("builder %s: %w", b.Name, err)
	}
	return order, nil
}

// findProjectBuildpack finds an entry of a project descriptor: a script, what is
// at its uri (relative to the descriptor), or one of the builder's by its id.
func (p *Platform) findProjectBuildpack(ctx context.Context, e spec.ProjectBuildpack, req Request, b builderRoot, x *extras, scratch string) (spec.GroupElement, error) {
	switch {
	case e.Script != nil:
		return x.addScript(e, scratch)
	case e.URI != "":
		uri := e.URI
		if path := strings.TrimPrefix(uri, "file://"); !filepath.IsAbs(path) && !strings.Contains(path, "://") {
			if _, err := os.Stat(filepath.Join(req.descriptorDir(), path)); !errors.Is(err, fs.ErrNotExist) {
				uri = filepath.Join(req.descriptorDir(), path)
			}
		}
		return p.findBuildpack(ctx, uri, req.Insecure, b, x)
	}
	name := e.ID
	if e.Version != "" {
		name += "@" + e.Version
	}
	m, _, err := inBuilder(name, buildpacksOf(b))
	return m, err
}

// descriptorDir is where the project descriptor lies.
func (r Request) descriptorDir() string {
	if r.Descriptor != "" {
		return filepath.Dir(r.Descriptor)
	}
	return r.Path
}

// scriptVersion is the version of buildpacks that stand in a project descriptor:
// they have none.
const scriptVersion = "0.0.0"

// addScript makes a buildpack of a script in a project descriptor. It passes
// detection by doing nothing.
func (x *extras) addScript(e spec.ProjectBuildpack, scratch string) (spec.GroupElement, error) {
	id := cmp.Or(e.ID, fmt.Sprintf("project-script-%d", len(x.Mounts)+1))
	shell := cmp.Or(e.Script.Shell, "/bin/sh")
	if !filepath.IsAbs(shell) || strings.ContainsAny(shell, "\n\x00") {
		return spec.GroupElement{}, badInput(fmt.Errorf("project descriptor: script of %s: shell %q is not an absolute path", id, shell), "name an interpreter of the builder, such as /bin/bash")
	}
	if err := spec.SupportedBuildpack(e.Script.API); err != nil {
		return spec.GroupElement{}, badInput(fmt.Errorf("project descriptor: script of %s: %w", id, err), spec.HintOf(err))
	}
	descriptor, err := encode.TOML(spec.Buildpack{API: e.Script.API, Buildpack: spec.BuildpackInfo{ID: id, Version: scriptVersion}})
	if err != nil {
		return spec.GroupElement{}, err
	}
	dir := filepath.Join(scratch, "scripts", spec.EscapeID(id))
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return spec.GroupElement{}, err
	}
	for name, content := range map[string]string{
		"buildpack.toml": string(descriptor),
		"bin/detect":     "#!" + shell + "\n",
		"bin/build":      "#!" + shell + "\n" + e.Script.Inline + "\n",
	} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(file, []byte(content), 0o755), os.Chmod(file, 0o755)); err != nil {
			return spec.GroupElement{}, err
		}
	}
	return x.addDir(dir)
}
