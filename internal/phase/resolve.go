package phase

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// maxTrials bounds how many combinations of alternatives are tried for one
// group, after those that cannot succeed were left out. Buildpacks in the
// field have up to three alternatives each.
const maxTrials = 1 << 18

// maxExplained bounds how many combinations are looked at to find the one that
// came nearest to passing, to explain a failure with it.
const maxExplained = 1 << 10

// candidate is a member that passed detection, with what it offers and wants.
type candidate struct {
	spec.GroupElement
	// alternatives are what its bin/detect wrote: the top of its plan and each
	// [[or]], in order; never empty.
	alternatives []spec.PlanSections
}

func newCandidate(m member, plan spec.DetectPlan) candidate {
	c := candidate{GroupElement: m.bp.Element(), alternatives: append([]spec.PlanSections{plan.PlanSections}, plan.Or...)}
	c.Optional = m.optional
	return c
}

// droppable tells whether the candidate may leave a trial with its alternative
// alt: it is optional and has no further alternative.
func (c candidate) droppable(alt int) bool {
	return c.Optional && alt == len(c.alternatives)-1
}

// resolution is the outcome of a plan: who takes part and what they provide
// for each other, or why they could not agree.
type resolution struct {
	ok   bool
	kept []int // indices of candidates
	// choice is the alternative of each candidate.
	choice []int
	plan   spec.Plan
	// entries are plan with those who require, for people.
	entries []event.PlanEntry
	// dropped says of optional candidates that are not kept what they broke.
	dropped map[int]event.PlanProblem
	// problems are those of the required candidates, when it is not ok.
	problems []event.PlanProblem
}

// resolve finds the first combination of alternatives with which the
// candidates can work together (Buildpack API, "Build plan"; requirements
// 3.4): the first member's alternatives vary slowest. If there is none, it
// returns the combination that came nearest.
func resolve(ctx context.Context, candidates []candidate) (resolution, error) {
	useful := prune(candidates)
	trials := 0
	var found resolution
	err := combine(useful, func(choice []int) (bool, error) {
		if trials++; trials > maxTrials {
			return true, fmt.Errorf("the build plans of the group have more than %d combinations", maxTrials)
		}
		found = try(candidates, choice)
		return found.ok, ctx.Err()
	})
	if err != nil || found.ok {
		return found, err
	}
	return nearest(candidates), nil
}

// nearest is the trial with the fewest problems, the first of several.
func nearest(candidates []candidate) resolution {
	all := make([][]int, len(candidates))
	for i, c := range candidates {
		for alt := range c.alternatives {
			all[i] = append(all[i], alt)
		}
	}
	var best resolution
	trials := 0
	_ = combine(all, func(choice []int) (bool, error) {
		r := try(candidates, choice)
		if trials == 0 || len(r.problems) < len(best.problems) {
			best = r
		}
		trials++
		return trials == maxExplained, nil
	})
	return best
}

// combine calls f with one element of each list, the last list varying
// fastest, until f returns true or an error.
func combine(lists [][]int, f func(choice []int) (bool, error)) error {
	choice := make([]int, len(lists))
	at := make([]int, len(lists))
	for i, list := range lists {
		if len(list) == 0 {
			return nil
		}
		choice[i] = list[0]
	}
	for {
		if done, err := f(choice); done || err != nil {
			return err
		}
		i := len(lists) - 1
		for ; i >= 0; i-- {
			if at[i]++; at[i] < len(lists[i]) {
				break
			}
			at[i], choice[i] = 0, lists[i][0]
		}
		if i < 0 {
			return nil
		}
		choice[i] = lists[i][at[i]]
	}
}

// prune returns for each candidate the alternatives that can be part of a
// success: it leaves out those that must be kept but require what no
// alternative of an earlier candidate (or its own) provides, or provide what
// no alternative of a later one (or its own) requires. Without it, buildpacks
// with many alternatives would multiply to trials without end.
func prune(candidates []candidate) [][]int {
	useful := make([][]int, len(candidates))
	for i, c := range candidates {
		for alt := range c.alternatives {
			useful[i] = append(useful[i], alt)
		}
	}
	for changed := true; changed; {
		changed = false
		provided := map[string]int{} // name -> first candidate that provides it
		required := map[string]int{} // name -> last candidate that requires it
		for i, c := range candidates {
			for _, alt := range useful[i] {
				for _, p := range c.alternatives[alt].Provides {
					if _, ok := provided[p.Name]; !ok {
						provided[p.Name] = i
					}
				}
				for _, r := range c.alternatives[alt].Requires {
					required[r.Name] = i
				}
			}
		}
		for i, c := range candidates {
			before := len(useful[i])
			useful[i] = slices.DeleteFunc(useful[i], func(alt int) bool {
				return !c.droppable(alt) && hopeless(c.alternatives[alt], i, provided, required)
			})
			changed = changed || len(useful[i]) != before
		}
	}
	return useful
}

// hopeless tells whether candidate i with alternative s has a require or a
// provide that nobody could answer.
func hopeless(s spec.PlanSections, i int, provided, required map[string]int) bool {
	for _, r := range s.Requires {
		if first, ok := provided[r.Name]; !ok || first > i {
			return true
		}
	}
	for _, p := range s.Provides {
		if last, ok := required[p.Name]; !ok || last < i {
			return true
		}
	}
	return false
}

// try is one trial: candidates with the alternatives of choice. Optional ones
// that break the plan are dropped, and the rest is looked at again, until
// nobody is left to drop. (Dropping someone never mends another's problem, so
// the order of dropping does not matter.)
func try(candidates []candidate, choice []int) resolution {
	r := resolution{choice: slices.Clone(choice), dropped: map[int]event.PlanProblem{}}
	for i := range candidates {
		r.kept = append(r.kept, i)
	}
	for {
		t := newTally(candidates, choice, r.kept)
		problems := t.problems()
		r.problems = nil
		before := len(r.dropped)
		for _, p := range problems {
			i := p.candidate
			if !candidates[i].droppable(choice[i]) {
				r.problems = append(r.problems, explain(candidates, choice, p))
				continue
			}
			if _, ok := r.dropped[i]; !ok {
				r.dropped[i] = explain(candidates, choice, p)
			}
		}
		if len(r.dropped) > before {
			r.kept = slices.DeleteFunc(r.kept, func(i int) bool { _, ok := r.dropped[i]; return ok })
			continue
		}
		if r.ok = len(r.problems) == 0 && anyBuildpack(candidates, r.kept); r.ok {
			r.plan, r.entries = t.plan(candidates), t.told(candidates)
		}
		return r
	}
}

// anyBuildpack tells whether one of kept is no extension: a group of
// extensions alone builds nothing.
func anyBuildpack(candidates []candidate, kept []int) bool {
	return slices.ContainsFunc(kept, func(i int) bool { return !candidates[i].Extension })
}

// tally is who provides and who requires each name, for one set of candidates.
type tally struct {
	names   []string // in order of first mention
	entries map[string]*tallyEntry
}

type tallyEntry struct {
	providers []int // whose provide a require used
	waiting   []int // whose provide no require has used so far
	requires  []spec.Require
	requirers []int // who has each of requires
	early     []int // who required it before anybody provided it
}

// broken is a require that nobody provides, or a provide that nobody requires.
type broken struct {
	candidate int
	name      string
	provide   bool
}

func newTally(candidates []candidate, choice, kept []int) tally {
	t := tally{entries: map[string]*tallyEntry{}}
	for _, i := range kept {
		s := candidates[i].alternatives[choice[i]]
		for _, p := range s.Provides {
			e := t.entry(p.Name)
			if !slices.Contains(e.waiting, i) {
				e.waiting = append(e.waiting, i)
			}
		}
		for _, r := range s.Requires {
			t.entry(r.Name).require(i, r)
		}
	}
	return t
}

func (t *tally) entry(name string) *tallyEntry {
	e, ok := t.entries[name]
	if !ok {
		e = &tallyEntry{}
		t.entries[name] = e
		t.names = append(t.names, name)
	}
	return e
}

func (e *tallyEntry) require(i int, r spec.Require) {
	e.providers = append(e.providers, e.waiting...)
	e.waiting = nil
	if len(e.providers) == 0 {
		if !slices.Contains(e.early, i) {
			e.early = append(e.early, i)
		}
		return
	}
	e.requires = append(e.requires, r)
	e.requirers = append(e.requirers, i)
}

func (t *tally) problems() []broken {
	var list []broken
	for _, name := range t.names {
		e := t.entries[name]
		for _, i := range e.early {
			list = append(list, broken{i, name, false})
		}
		for _, i := range e.waiting {
			list = append(list, broken{i, name, true})
		}
	}
	return list
}

// plan is the build plan of a tally without problems.
func (t *tally) plan(candidates []candidate) spec.Plan {
	var plan spec.Plan
	for _, name := range t.names {
		e := t.entries[name]
		entry := spec.PlanEntry{Requires: e.requires}
		for _, i := range e.providers {
			c := candidates[i]
			entry.Providers = append(entry.Providers, spec.PlanProvider{ID: c.ID, Version: c.Version, Extension: c.Extension})
		}
		plan.Entries = append(plan.Entries, entry)
	}
	return plan
}

// told is the plan of a tally without problems as an event tells it.
func (t *tally) told(candidates []candidate) []event.PlanEntry {
	var entries []event.PlanEntry
	for _, name := range t.names {
		e := t.entries[name]
		entry := event.PlanEntry{Name: name}
		for _, i := range e.providers {
			entry.Providers = append(entry.Providers, candidates[i].String())
		}
		for n, r := range e.requires {
			entry.Requires = append(entry.Requires, event.Requirement{By: candidates[e.requirers[n]].String(), Metadata: r.Metadata})
		}
		entries = append(entries, entry)
	}
	return entries
}

// explain says whose problem it is and who would have the answer but in the
// wrong place: a provider that comes too late, a requirer that comes too early.
func explain(candidates []candidate, choice []int, b broken) event.PlanProblem {
	p := event.PlanProblem{Buildpack: candidates[b.candidate].String(), Name: b.name, Unused: b.provide}
	for i, c := range candidates {
		s := c.alternatives[choice[i]]
		answers := i > b.candidate && slices.ContainsFunc(s.Provides, func(p spec.Provide) bool { return p.Name == b.name })
		if b.provide {
			answers = i < b.candidate && slices.ContainsFunc(s.Requires, func(r spec.Require) bool { return r.Name == b.name })
		}
		if answers {
			p.Misplaced = append(p.Misplaced, c.String())
		}
	}
	return p
}
