package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Decision is what a detection decides: who takes part, and what they provide
// for each other. Somebody may have written or changed it.
type Decision struct {
	Group Group
	Plan  Plan

	from document
}

// Fault is an error about a member of the decision's groups, with its place in
// the document. extension says which of the groups, i is the member's index.
func (d Decision) Fault(msg string, extension bool, i int) error {
	return d.from.fault(msg, d.from.groupKey(extension), i, "id")
}

// groupKey is the name of a group in the document.
func (d document) groupKey(extension bool) string {
	switch {
	case !extension:
		return "group"
	case d.json:
		return "groupExtensions"
	}
	return "group-extensions"
}

// ReadDecision reads what `kiln plan --json` prints, of which it needs group,
// groupExtensions and entries, or else TOML: group.toml, and in the same file
// what plan.toml has, if anything. The group must have a buildpack, no member
// may stand there twice, and the plan may name members only. Every error is a
// *DocumentError.
func ReadDecision(b []byte, name string) (Decision, error) {
	read := readDecisionTOML
	if b = unmarked(b); bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) {
		read = readDecisionJSON
	}
	d, err := read(b, name)
	if err != nil {
		return Decision{}, err
	}
	for i, e := range d.Plan.Entries {
		for j, p := range e.Providers {
			if !d.takesPart(p.ID, p.Version, p.Extension) {
				return Decision{}, d.from.fault(p.ID+"@"+p.Version+" is not in the group", "entries", i, "providers", j)
			}
		}
	}
	return d, nil
}

// checkGroup holds the groups to what a decision says.
func (d Decision) checkGroup() error {
	if len(d.Group.Group) == 0 {
		return d.from.fault("must have a buildpack", "group")
	}
	for _, extension := range []bool{false, true} {
		group := d.members(extension)
		for i, m := range group {
			if slices.ContainsFunc(group[:i], func(o GroupElement) bool { return o.ID == m.ID && o.Version == m.Version }) {
				return d.Fault(m.String()+" stands in the group twice", extension, i)
			}
		}
	}
	return nil
}

func (d Decision) members(extension bool) []GroupElement {
	if extension {
		return d.Group.GroupExtensions
	}
	return d.Group.Group
}

func (d Decision) takesPart(id, version string, extension bool) bool {
	return slices.ContainsFunc(d.members(extension), func(m GroupElement) bool { return m.ID == id && m.Version == version })
}

func readDecisionTOML(b []byte, name string) (Decision, error) {
	group, err := ReadGroup(b, name)
	if err != nil {
		return Decision{}, err
	}
	plan, err := ReadPlan(b, name)
	if err != nil {
		return Decision{}, err
	}
	d := Decision{group, plan, document{name: name, bytes: b}}
	return d, d.checkGroup()
}

// decisionJSON is the part of kiln plan's document that decides.
type decisionJSON struct {
	Group           []GroupElement `json:"group"`
	GroupExtensions []GroupElement `json:"groupExtensions"`
	Entries         []entryJSON    `json:"entries"`
}

type entryJSON struct {
	Name      string   `json:"name"`
	Providers []string `json:"providers"`
	Requires  []struct {
		By       string         `json:"by"`
		Metadata map[string]any `json:"metadata"`
	} `json:"requires"`
}

func readDecisionJSON(b []byte, name string) (Decision, error) {
	d := Decision{from: document{name: name, bytes: b, json: true}}
	if len(b) > MaxDocument {
		return d, &DocumentError{File: name, Msg: tooMuch(b)}
	}
	var doc decisionJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		return d, d.from.badJSON(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return d, d.from.at(dec.InputOffset(), "", "something follows the JSON object")
	}
	d.Group = Group{Group: doc.Group, GroupExtensions: doc.GroupExtensions}
	for i := range doc.GroupExtensions {
		doc.GroupExtensions[i].Extension = true
	}
	err := first(d.from.members(doc.Group, true, "group"), d.from.members(doc.GroupExtensions, true, "groupExtensions"))
	if err == nil {
		err = d.checkGroup()
	}
	for i := 0; err == nil && i < len(doc.Entries); i++ {
		err = d.addEntry(doc.Entries[i], i)
	}
	return d, err
}

// addEntry takes in entry i of a document.
func (d *Decision) addEntry(e entryJSON, i int) error {
	switch {
	case e.Name == "":
		return d.from.fault("must be set", "entries", i, "name")
	case len(e.Providers) == 0:
		return d.from.fault("must have a provider", "entries", i, "providers")
	case len(e.Requires) == 0:
		return d.from.fault("must have a require", "entries", i, "requires")
	}
	entry := PlanEntry{}
	for _, p := range e.Providers {
		id, version, _ := strings.Cut(p, "@")
		entry.Providers = append(entry.Providers, PlanProvider{ID: id, Version: version, Extension: !d.takesPart(id, version, false) && d.takesPart(id, version, true)})
	}
	for j, r := range e.Requires {
		id, version, _ := strings.Cut(r.By, "@")
		if r.By != "" && !d.takesPart(id, version, false) {
			return d.from.fault(r.By+" is not in the group", "entries", i, "requires", j, "by")
		}
		metadata, ok := numbers(r.Metadata).(map[string]any)
		if !ok {
			return d.from.fault("has a number or null that a build plan cannot have", "entries", i, "requires", j, "metadata")
		}
		entry.Requires = append(entry.Requires, Require{Name: e.Name, Metadata: metadata})
	}
	d.Plan.Entries = append(d.Plan.Entries, entry)
	return nil
}

// numbers makes the numbers of JSON those of TOML: whole ones are integers. It
// returns nil for what TOML does not have.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if f, err := v.Float64(); err == nil && !math.IsInf(f, 0) {
			return f
		}
		return nil
	case map[string]any:
		for k := range v {
			if v[k] = numbers(v[k]); v[k] == nil {
				return nil
			}
		}
	case []any:
		for i := range v {
			if v[i] = numbers(v[i]); v[i] == nil {
				return nil
			}
		}
	}
	return v
}

// badJSON puts a decoder's error into the user's words.
func (d document) badJSON(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return d.at(syntax.Offset-1, "", strings.TrimPrefix(syntax.Error(), "json: "))
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return d.at(wrong.Offset-1, wrong.Field, fmt.Sprintf("cannot be %s", wrong.Value))
	}
	return d.at(int64(len(d.bytes)), "", "the JSON object has no end")
}

// at is an error at an offset in the document, in bytes.
func (d document) at(offset int64, key, msg string) error {
	p := positionAt(d.bytes, offset)
	return &DocumentError{File: d.name, Line: p.Line, Col: p.Column, Key: key, Msg: msg}
}

func positionAt(b []byte, offset int64) unstable.Position {
	before := b[:max(0, min(offset, int64(len(b))))]
	return unstable.Position{Line: bytes.Count(before, []byte("\n")) + 1, Column: len(before) - bytes.LastIndexByte(before, '\n')}
}

// locateJSON finds where each key and element of a JSON document stands, by its
// full path as keyString writes it. It stops at the first error of syntax.
func locateJSON(b []byte) map[string]unstable.Position {
	places := map[string]unstable.Position{}
	dec := json.NewDecoder(bytes.NewReader(b))
	line, start, read := 1, int64(0), int64(0) // of what is before the next token
	here := func() unstable.Position {
		for read < dec.InputOffset() || read < int64(len(b)) && bytes.IndexByte([]byte(" \t\r\n,:"), b[read]) >= 0 {
			if read++; b[read-1] == '\n' {
				line, start = line+1, read
			}
		}
		return unstable.Position{Line: line, Column: int(read-start) + 1}
	}
	var value func(path []any)
	value = func(path []any) {
		open, err := dec.Token()
		if err != nil {
			return
		}
		for i := 0; (open == json.Delim('{') || open == json.Delim('[')) && dec.More(); i++ {
			at, step := here(), any(i)
			if open == json.Delim('{') {
				key, err := dec.Token()
				if err != nil {
					return
				}
				step = key
			}
			below := append(path[:len(path):len(path)], step)
			places[keyString(below)] = at
			value(below)
		}
		if open == json.Delim('{') || open == json.Delim('[') {
			_, _ = dec.Token() // its end; one that is missing ends all above, too
		}
	}
	value(nil)
	return places
}
