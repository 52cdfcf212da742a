package phase

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/spec"
)

// maxGroups bounds how many groups an order may expand to. Orders of the
// largest public builders expand to some hundred; a product of nested orders
// can reach numbers that no build would see the end of.
const maxGroups = 100_000

// member is a component buildpack or extension of an expanded group.
type member struct {
	bp       buildpack.Buildpack
	optional bool
}

// catalog finds buildpacks, each once, and refuses those whose API is not
// supported.
type catalog struct {
	roots buildpack.Roots
	found map[string]buildpack.Buildpack
}

func newCatalog(roots buildpack.Roots) *catalog {
	return &catalog{roots: roots, found: map[string]buildpack.Buildpack{}}
}

func (c *catalog) find(e spec.GroupElement) (buildpack.Buildpack, error) {
	key := keyOf(e.Extension, e.String())
	if b, ok := c.found[key]; ok {
		return b, nil
	}
	b, err := c.roots.Find(e)
	if err != nil {
		return b, err
	}
	if err := spec.SupportedBuildpack(b.API()); err != nil {
		return b, fmt.Errorf("%s: %w", key, err)
	}
	if b.Extension && !spec.Has(b.API(), spec.BuildpackExtensions) {
		return b, spec.Exit(spec.ExitBuildpackAPI, fmt.Errorf("%s: buildpack API %s has no image extensions", key, b.API()))
	}
	c.found[key] = b
	return b, nil
}

// keyOf tells a buildpack and an extension of one name apart.
func keyOf(extension bool, name string) string {
	if extension {
		return "extension " + name
	}
	return "buildpack " + name
}

// check finds everything that order names at its top level, so that a bad
// entry fails before any buildpack runs, and follows composites as far as they
// can be found to see that none contains itself.
func (c *catalog) check(order spec.Order) error {
	for _, groups := range [][]spec.OrderGroup{order.Order, extensionGroups(order)} {
		for _, g := range groups {
			for _, e := range g.Group {
				b, err := c.find(e)
				if err != nil {
					return err
				}
				if err := c.acyclic(b, nil, map[string]bool{}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// acyclic walks the composites below b; path is the way to it, clean are the
// composites that were walked before.
func (c *catalog) acyclic(b buildpack.Buildpack, path []string, clean map[string]bool) error {
	name := b.String()
	if i := slices.Index(path, name); i >= 0 {
		return cycleError(append(path[i:len(path):len(path)], name))
	}
	if !b.Composite() || clean[name] {
		return nil
	}
	path = append(path[:len(path):len(path)], name)
	for _, g := range b.Descriptor.Order {
		for _, e := range g.Group {
			next, err := c.find(e)
			if err != nil {
				continue // it is an error when its group's turn comes, if it does
			}
			if err := c.acyclic(next, path, clean); err != nil {
				return err
			}
		}
	}
	clean[name] = true
	return nil
}

func cycleError(path []string) error {
	return fmt.Errorf("composite buildpacks contain each other: %s", strings.Join(path, " -> "))
}

// extensionGroups is the extension order with every entry marked as the
// optional extension that it is.
func extensionGroups(order spec.Order) []spec.OrderGroup {
	var groups []spec.OrderGroup
	for _, g := range order.OrderExtensions {
		list := slices.Clone(g.Group)
		for i := range list {
			list[i].Extension, list[i].Optional = true, true
		}
		groups = append(groups, spec.OrderGroup{Group: list})
	}
	return groups
}

// expansion walks the groups that an order stands for.
type expansion struct {
	catalog *catalog
	execEnv string
	try     func(group []member) (done bool, err error)
	tried   int
}

// walk hands every group of order to x.try, in the order of the specification:
// nested orders depth-first and left to right, an earlier composite varying
// slowest, an optional composite last without it; the extension order in front
// of every group. It ends when x.try says so.
func (x *expansion) walk(ctx context.Context, order spec.Order) (done bool, err error) {
	extensions := extensionGroups(order)
	if len(extensions) == 0 {
		extensions = []spec.OrderGroup{{}}
	}
	for _, g := range order.Order {
		for _, ext := range extensions {
			if done, err := x.group(ctx, nil, slices.Concat(ext.Group, g.Group)); done || err != nil {
				return done, err
			}
		}
	}
	return false, nil
}

// group expands rest behind the members that are already chosen.
func (x *expansion) group(ctx context.Context, chosen []member, rest []spec.GroupElement) (done bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	for i, e := range rest {
		if isChosen(chosen, e) || x.execEnv != "" && !spec.InExecEnv(e.ExecEnv, x.execEnv) {
			continue
		}
		b, err := x.catalog.find(e)
		if err != nil {
			return false, err
		}
		if !b.Composite() {
			chosen = append(chosen[:len(chosen):len(chosen)], member{b, e.Optional || e.Extension})
			continue
		}
		for _, g := range b.Descriptor.Order {
			if done, err := x.group(ctx, chosen, slices.Concat(g.Group, rest[i+1:])); done || err != nil {
				return done, err
			}
		}
		if e.Optional {
			return x.group(ctx, chosen, rest[i+1:])
		}
		return false, nil
	}
	if x.tried++; x.tried > maxGroups {
		err := fmt.Errorf("the order stands for more than %d groups", maxGroups)
		return false, spec.WithHint(err, "nest fewer composite buildpacks with several groups each")
	}
	return x.try(chosen)
}

// isChosen tells whether a member with e's ID is already in: the specification
// skips the second, whatever its version.
func isChosen(chosen []member, e spec.GroupElement) bool {
	return slices.ContainsFunc(chosen, func(m member) bool {
		return m.bp.Extension == e.Extension && m.bp.Info().ID == e.ID
	})
}
