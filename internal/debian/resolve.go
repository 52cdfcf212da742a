package debian

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// resolver chooses packages: no search, no heuristics that could choose otherwise
// tomorrow. Of a name the newest version that is allowed; of alternatives the
// first that is chosen already, else the first that exists; of the providers of
// a virtual package the one with the highest priority, then the first by name.
type resolver struct {
	index    *index
	excluded map[string]bool
	chosen   map[string]*node
	provided map[string][]*node // by virtual name
	queue    []*node
}

// node is a chosen package.
type node struct {
	*pkg
	parent *node  // who first wanted it; nil when the request did
	clause clause // in what words
	needs  []*node
}

// chain names the way from the request to n: "a -> b -> c".
func (n *node) chain() string {
	if n == nil {
		return ""
	}
	names := []string{}
	for ; n != nil; n = n.parent {
		names = append(names, n.name)
	}
	slices.Reverse(names)
	return strings.Join(names, " -> ")
}

// resolve returns the lock's packages for the groups, in unpacking order.
func resolve(ctx context.Context, x *index, groups []Group, exclude []string) ([]LockedPackage, error) {
	r := &resolver{index: x, excluded: map[string]bool{}, chosen: map[string]*node{}, provided: map[string][]*node{}}
	if err := r.exclude(exclude); err != nil {
		return nil, err
	}
	roots := make([][]*node, len(groups))
	for _, virtual := range []bool{false, true} { // real names first: they may provide the virtual ones
		for i, g := range groups {
			for _, want := range g.Packages {
				n, err := r.want(want, virtual)
				if err != nil {
					return nil, fmt.Errorf("package %s, wanted by %s: %w", want, g.Name, err)
				}
				if n != nil {
					roots[i] = append(roots[i], n)
				}
			}
		}
	}
	for len(r.queue) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := r.queue[0]
		r.queue = r.queue[1:]
		if err := r.expand(n); err != nil {
			return nil, err
		}
	}
	if err := r.conflicts(); err != nil {
		return nil, err
	}
	var out []LockedPackage
	taken := map[*node]bool{}
	for i, g := range groups {
		for _, n := range unpackOrder(closure(roots[i], taken)) {
			out = append(out, LockedPackage{Name: n.name, Version: n.version, Arch: n.arch, Group: g.Name,
				Suite: n.suite, Path: n.path, Size: n.size, SHA256: n.sha256})
		}
	}
	return out, nil
}

// exclude notes what counts as present: the names, and what they provide.
func (r *resolver) exclude(names []string) error {
	for _, name := range names {
		r.excluded[name] = true
		ps, err := r.index.packages(name)
		if err != nil {
			return err
		}
		if len(ps) == 0 {
			continue
		}
		for _, v := range ps[0].provides {
			r.excluded[v.name] = true
		}
	}
	return nil
}

// want chooses what the request names: a clause in the words of control files.
// Unless virtual is true, it does so only where a package of that name exists.
func (r *resolver) want(text string, virtual bool) (*node, error) {
	c, err := parseClause(text)
	if err != nil {
		return nil, err
	}
	for _, rel := range c {
		if r.excluded[rel.name] {
			return nil, fmt.Errorf("it is excluded too")
		}
	}
	if real := len(r.index.byName[c[0].name]) > 0; real == virtual {
		return nil, nil
	}
	return r.satisfy(nil, c)
}

// expand satisfies all dependencies of n.
func (r *resolver) expand(n *node) error {
	for _, c := range n.depends {
		dep, err := r.satisfy(n, c)
		if err != nil {
			return err
		}
		if dep != nil {
			n.needs = append(n.needs, dep)
		}
	}
	return nil
}

// satisfy finds or chooses a package for the clause; nil when it is excluded.
func (r *resolver) satisfy(parent *node, c clause) (*node, error) {
	for _, rel := range c {
		if n := r.has(rel); n != nil {
			return n, nil
		}
	}
	for _, rel := range c {
		if r.excluded[rel.name] {
			return nil, nil
		}
	}
	for _, find := range []func(relation) (*pkg, error){r.real, r.provider} {
		for _, rel := range c {
			p, err := find(rel)
			if err != nil {
				return nil, err
			}
			if p != nil {
				return r.choose(&node{pkg: p, parent: parent, clause: c}), nil
			}
		}
	}
	return nil, r.unsatisfied(parent, c)
}

// has returns a chosen package that satisfies rel already: of that name, else a
// provider.
func (r *resolver) has(rel relation) *node {
	if all := r.having(rel); len(all) > 0 {
		return all[0]
	}
	return nil
}

// having returns all chosen packages that satisfy rel.
func (r *resolver) having(rel relation) []*node {
	var out []*node
	if n := r.chosen[rel.name]; n != nil && rel.accepts(n.version) && rel.acceptsArch(n.arch, r.index.arch) {
		out = append(out, n)
	}
	for _, n := range r.provided[rel.name] {
		for _, p := range n.provides {
			if p.name == rel.name && rel.acceptsProvided(p) && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// real returns the newest package of that name that rel allows.
func (r *resolver) real(rel relation) (*pkg, error) {
	if r.chosen[rel.name] != nil {
		return nil, nil // in a version that will not do
	}
	ps, err := r.index.packages(rel.name)
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		if rel.accepts(p.version) && rel.acceptsArch(p.arch, r.index.arch) {
			return p, nil
		}
	}
	return nil, nil
}

var priorities = []string{"required", "important", "standard", "optional", "extra"}

// provider returns the package to take for a virtual one.
func (r *resolver) provider(rel relation) (*pkg, error) {
	var best *pkg
	rank := func(p *pkg) int {
		if i := slices.Index(priorities, p.priority); i >= 0 {
			return i
		}
		return len(priorities)
	}
	for _, name := range r.index.providers(rel.name) {
		if r.excluded[name] || r.chosen[name] != nil {
			continue
		}
		ps, err := r.index.packages(name)
		if err != nil {
			return nil, err
		}
		p := ps[0]
		ok := slices.ContainsFunc(p.provides, func(v relation) bool { return v.name == rel.name && rel.acceptsProvided(v) })
		if ok && (best == nil || cmp.Compare(rank(p), rank(best)) < 0) {
			best = p
		}
	}
	return best, nil
}

func (r *resolver) choose(n *node) *node {
	r.chosen[n.name] = n
	for _, v := range n.provides {
		r.provided[v.name] = append(r.provided[v.name], n)
	}
	r.queue = append(r.queue, n)
	return n
}

// unsatisfied says what was needed, by whom, and what there is instead.
func (r *resolver) unsatisfied(parent *node, c clause) error {
	var there []string
	for _, rel := range c {
		if n := r.chosen[rel.name]; n != nil {
			there = append(there, fmt.Sprintf("%s %s is chosen already (%s)", n.name, n.version, n.chain()))
			continue
		}
		ps, err := r.index.packages(rel.name)
		if err != nil {
			return err
		}
		if len(ps) > 0 {
			there = append(there, fmt.Sprintf("the archive has %s %s", rel.name, ps[0].version))
			continue
		}
		there = append(there, fmt.Sprintf("the archive has no %s", rel.name))
	}
	what := strings.Join(there, ", ")
	if parent == nil {
		return fmt.Errorf("cannot be had: %s", what)
	}
	return fmt.Errorf("package %s depends on %s: %s", parent.chain(), c, what)
}

// conflicts refuses a choice whose members exclude each other.
func (r *resolver) conflicts() error {
	names := make([]string, 0, len(r.chosen))
	for name := range r.chosen {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n := r.chosen[name]
		for _, rel := range n.conflicts {
			for _, o := range r.having(rel) {
				if o == n {
					continue // it may conflict with all others that provide what it provides
				}
				return fmt.Errorf("package %s (%s) conflicts with or breaks %s, but %s %s is needed (%s)",
					n.name, n.chain(), rel, o.name, o.version, o.chain())
			}
		}
	}
	return nil
}

// closure is roots and all they need, less what is taken; it takes them.
func closure(roots []*node, taken map[*node]bool) []*node {
	var out []*node
	todo := slices.Clone(roots)
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if taken[n] {
			continue
		}
		taken[n] = true
		out = append(out, n)
		todo = append(todo, n.needs...)
	}
	return out
}

// unpackOrder sorts by name, but whoever replaces files of another comes before
// it: so that the first to bring a path is the one that keeps it.
func unpackOrder(nodes []*node) []*node {
	slices.SortFunc(nodes, func(a, b *node) int { return cmp.Compare(a.name, b.name) })
	byName := map[string]*node{}
	for _, n := range nodes {
		byName[n.name] = n
	}
	before := map[*node][]*node{} // who must come before
	for _, n := range nodes {
		for _, rel := range n.replaces {
			if o := byName[rel.name]; o != nil && o != n && rel.accepts(o.version) {
				before[o] = append(before[o], n)
			}
		}
	}
	var out []*node
	state := map[*node]int{} // 1 on the way, 2 done
	var visit func(*node)
	visit = func(n *node) {
		if state[n] != 0 {
			return // done, or two that replace each other: by name then
		}
		state[n] = 1
		for _, b := range before[n] {
			visit(b)
		}
		state[n] = 2
		out = append(out, n)
	}
	for _, n := range nodes {
		visit(n)
	}
	return out
}
