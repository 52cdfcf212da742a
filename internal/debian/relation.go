package debian

import (
	"fmt"
	"strings"
)

// relation is one alternative of a dependency: "name:arch (>= version)".
type relation struct {
	name    string
	arch    string // "", "any", "native" or an architecture
	op      string // "" or one of << <= = >= >>
	version string
}

// String is the relation as control files write it.
func (r relation) String() string {
	s := r.name
	if r.arch != "" {
		s += ":" + r.arch
	}
	if r.op != "" {
		s += " (" + r.op + " " + r.version + ")"
	}
	return s
}

// clause is a disjunction: any one of its relations will do.
type clause []relation

// String is the clause as control files write it.
func (c clause) String() string {
	parts := make([]string, len(c))
	for i, r := range c {
		parts[i] = r.String()
	}
	return strings.Join(parts, " | ")
}

// accepts says whether version satisfies the relation's constraint.
func (r relation) accepts(version string) bool {
	if r.op == "" {
		return true
	}
	c := Compare(version, r.version)
	switch r.op {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	}
	return c > 0 // ">>"
}

// acceptsProvided says whether a Provides entry satisfies the relation: where a
// version is asked for, the entry must have one (Debian policy 7.5).
func (r relation) acceptsProvided(p relation) bool {
	return r.op == "" || (p.op == "=" && r.accepts(p.version))
}

// acceptsArch says whether a package of arch, installed on a system of native
// architecture, satisfies the relation's qualifier. We install one architecture
// only, so "any" is always the native one.
func (r relation) acceptsArch(arch, native string) bool {
	switch r.arch {
	case "", "any", "native":
		return true
	}
	return r.arch == arch || (arch == "all" && r.arch == native)
}

// parseClauses reads the value of Depends, Conflicts, Provides and their like:
// clauses with commas between, relations with bars between.
func parseClauses(s string) ([]clause, error) {
	var out []clause
	for part := range strings.SplitSeq(s, ",") {
		if strings.TrimSpace(part) == "" {
			continue // a trailing comma is allowed
		}
		c, err := parseClause(part)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func parseClause(s string) (clause, error) {
	var c clause
	for alt := range strings.SplitSeq(s, "|") {
		r, err := parseRelation(alt)
		if err != nil {
			return nil, err
		}
		c = append(c, r)
	}
	return c, nil
}

func parseRelation(s string) (relation, error) {
	var r relation
	text := strings.TrimSpace(s)
	name, constraint, versioned := strings.Cut(text, "(")
	r.name, r.arch, _ = strings.Cut(strings.TrimSpace(name), ":")
	if !plainName(r.name) || (r.arch != "" && !plainName(r.arch)) {
		return r, fmt.Errorf("relation %q: not a package name", text)
	}
	if !versioned {
		return r, nil
	}
	constraint, after, ok := strings.Cut(constraint, ")")
	if !ok || strings.TrimSpace(after) != "" {
		return r, fmt.Errorf("relation %q: something after or instead of the closing parenthesis", text)
	}
	constraint = strings.TrimSpace(constraint)
	i := strings.IndexFunc(constraint, func(c rune) bool { return !strings.ContainsRune("<>=", c) })
	if i < 0 {
		return r, fmt.Errorf("relation %q: no version", text)
	}
	r.op, r.version = constraint[:i], strings.TrimSpace(constraint[i:])
	switch r.op {
	case "<":
		r.op = "<=" // dpkg's reading of the old forms
	case ">":
		r.op = ">="
	case "<<", "<=", "=", ">=", ">>":
	default:
		return r, fmt.Errorf("relation %q: unknown operator %q", text, r.op)
	}
	if r.version == "" || strings.ContainsAny(r.version, " \t\n") {
		return r, fmt.Errorf("relation %q: not one version", text)
	}
	return r, nil
}
