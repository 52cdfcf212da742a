package debian

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// maxParagraph bounds one package's entry in an index, in bytes. Debian's largest
// has some 60 kB.
const maxParagraph = 1 << 20

// indexFields are the fields that an index keeps: resolving and fetching need
// no more.
var indexFields = map[string]bool{
	"Package": true, "Version": true, "Architecture": true, "Essential": true, "Priority": true,
	"Depends": true, "Pre-Depends": true, "Provides": true, "Conflicts": true, "Breaks": true, "Replaces": true,
	"Filename": true, "Size": true, "SHA256": true,
}

// index is all packages of some archives. Entries stay text, in few large
// pieces of memory, until they are wanted: there are over sixty thousand, and a
// closure touches a hundred.
type index struct {
	arch    string
	byName  map[string][]entry // newest first after finish
	virtual map[string][]entry // by name that is provided
	arena   []byte
}

// entry is one package of one suite.
type entry struct {
	text  paragraph
	suite string
}

func newIndex(arch string) *index {
	return &index{arch: arch, byName: map[string][]entry{}, virtual: map[string][]entry{}}
}

// read adds the packages of a Packages file.
func (x *index) read(r io.Reader, suite string) error {
	ps := newParagraphs(bufio.NewReaderSize(r, 64<<10), maxParagraph)
	ps.keep = func(name []byte) bool { return indexFields[string(name)] }
	for {
		p, err := ps.next()
		if err != nil {
			return err
		}
		if p == nil {
			return nil
		}
		name := p.get("Package")
		if name == "" {
			return fmt.Errorf("a package without a name")
		}
		if a := p.get("Architecture"); a != x.arch && a != "all" {
			continue
		}
		e := entry{text: x.keep(p), suite: suite}
		x.byName[name] = append(x.byName[name], e)
		for v := range strings.SplitSeq(p.get("Provides"), ",") {
			if v = strings.TrimSpace(v); v != "" {
				v = v[:nameEnd(v)]
				x.virtual[v] = append(x.virtual[v], e)
			}
		}
	}
}

// nameEnd is where the package name at the start of s ends.
func nameEnd(s string) int {
	if i := strings.IndexAny(s, " \t\n(:"); i >= 0 {
		return i
	}
	return len(s)
}

// keep copies p into the arena.
func (x *index) keep(p paragraph) paragraph {
	const piece = 1 << 20
	if len(x.arena)+len(p) > cap(x.arena) {
		x.arena = make([]byte, 0, max(piece, len(p)))
	}
	start := len(x.arena)
	x.arena = append(x.arena, p...)
	return paragraph(x.arena[start:len(x.arena):len(x.arena)])
}

// merge adds the entries of other, which must not be used again.
func (x *index) merge(other *index) {
	for name, es := range other.byName {
		x.byName[name] = append(x.byName[name], es...)
	}
	for name, es := range other.virtual {
		x.virtual[name] = append(x.virtual[name], es...)
	}
}

// packages returns the versions of a name, newest first. The same version from
// two suites counts once, from the suite that was merged first.
func (x *index) packages(name string) ([]*pkg, error) {
	var out []*pkg
	for _, e := range x.byName[name] {
		p, err := e.pkg()
		if err != nil {
			return nil, fmt.Errorf("suite %s: package %s: %w", e.suite, name, err)
		}
		if !slices.ContainsFunc(out, func(o *pkg) bool { return o.version == p.version }) {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b *pkg) int { return Compare(b.version, a.version) })
	return out, nil
}

// providers returns the names of the packages that provide a virtual one.
func (x *index) providers(virtual string) []string {
	var names []string
	for _, e := range x.virtual[virtual] {
		names = append(names, e.text.get("Package"))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// pkg is an index entry taken apart.
type pkg struct {
	name, version, arch, priority, suite string
	path, sha256                         string
	size                                 int64
	essential                            bool
	depends                              []clause // Pre-Depends, then Depends
	provides, conflicts, replaces        []relation
}

func (e entry) pkg() (*pkg, error) {
	p := &pkg{
		name: e.text.get("Package"), version: e.text.get("Version"), arch: e.text.get("Architecture"),
		priority: e.text.get("Priority"), suite: e.suite,
		path: e.text.get("Filename"), sha256: e.text.get("SHA256"), essential: e.text.get("Essential") == "yes",
	}
	var err error
	if p.size, err = strconv.ParseInt(e.text.get("Size"), 10, 64); err != nil {
		return nil, fmt.Errorf("field Size: %w", err)
	}
	for _, field := range []string{"Pre-Depends", "Depends"} {
		cs, err := parseClauses(e.text.get(field))
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", field, err)
		}
		p.depends = append(p.depends, cs...)
	}
	for field, to := range map[string]*[]relation{
		"Provides": &p.provides, "Conflicts": &p.conflicts, "Breaks": &p.conflicts, "Replaces": &p.replaces,
	} {
		rs, err := parseRelations(e.text.get(field))
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", field, err)
		}
		*to = append(*to, rs...)
	}
	return p, nil
}

// parseRelations reads a list without alternatives.
func parseRelations(s string) ([]relation, error) {
	cs, err := parseClauses(s)
	if err != nil {
		return nil, err
	}
	var out []relation
	for _, c := range cs {
		if len(c) != 1 {
			return nil, fmt.Errorf("relation %q: alternatives are not allowed here", c)
		}
		out = append(out, c[0])
	}
	return out, nil
}
