package phase

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// cand reads a candidate from words: "+x" provides, "-x" requires, "|" starts
// the next alternative. A name that ends in "?" is optional, one that starts
// with "ext" an extension.
func cand(text string) candidate {
	words := strings.Fields(text)
	id, optional := strings.CutSuffix(words[0], "?")
	c := candidate{GroupElement: spec.GroupElement{ID: id, Version: "1", Optional: optional, Extension: strings.HasPrefix(id, "ext")}}
	var s spec.PlanSections
	for _, w := range words[1:] {
		switch w[0] {
		case '+':
			s.Provides = append(s.Provides, spec.Provide{Name: w[1:]})
		case '-':
			s.Requires = append(s.Requires, spec.Require{Name: w[1:]})
		case '|':
			c.alternatives = append(c.alternatives, s)
			s = spec.PlanSections{}
		}
	}
	c.alternatives = append(c.alternatives, s)
	return c
}

// show writes a resolution as text: who is kept, and the plan as
// name:providers:number of requires, or the problems.
func show(cands []candidate, r resolution) string {
	if !r.ok {
		var why []string
		for _, p := range r.problems {
			why = append(why, p.String())
		}
		return "failed: " + strings.Join(why, "; ")
	}
	var kept []string
	for _, i := range r.kept {
		kept = append(kept, cands[i].ID)
	}
	out := strings.Join(kept, " ")
	for _, e := range r.plan.Entries {
		var providers []string
		for _, p := range e.Providers {
			providers = append(providers, p.ID)
		}
		name := ""
		for _, r := range e.Requires {
			name = r.Name
		}
		out += fmt.Sprintf(" / %s:%s:%d", name, strings.Join(providers, ","), len(e.Requires))
	}
	return out
}

func TestResolve(t *testing.T) {
	tests := []struct {
		name, want string
		cands      []string
		covers     []int
	}{
		{"nothing to agree on", "a b", []string{"a", "b"}, nil},
		{"provide then require", "a b / x:a:1", []string{"a +x", "b -x"}, []int{42}},
		{"own provide serves own require", "a / x:a:1", []string{"a +x -x"}, []int{45}},
		{"many providers and requirers", "a b c d / x:a,b:2", []string{"a +x", "b +x", "c -x", "d -x"}, []int{42}},
		{"unmet require", "failed: a@1 requires x, which no buildpack of the group provides", []string{"a -x"}, []int{43}},
		{"unused provide", "failed: a@1 provides x, which no buildpack of the group requires", []string{"a +x"}, []int{44}},
		{"provide after the require", "failed: a@1 requires x, which only b@1 provides, and that comes after it; b@1 provides x, which only a@1 requires, and that comes before it",
			[]string{"a -x", "b +x"}, []int{43}},
		{"provide after the last require is unused", "failed: c@1 provides x, which only b@1 requires, and that comes before it",
			[]string{"a +x", "b -x", "c +x"}, []int{46}},
		{"optional with unmet require is dropped", "b", []string{"a? -x", "b"}, []int{43}},
		{"optional with unused provide is dropped", "b", []string{"a? +x", "b"}, []int{44}},
		{"dropping goes on until stable", "d", []string{"a? +x", "b? -x +y", "c? -y +z", "d"}, []int{43}},
		{"a dropped provider fails a required member", "failed: b@1 requires x, which no buildpack of the group provides",
			[]string{"a? +x +y", "b -x"}, nil},
		{"first alternative", "a b / x:a:1", []string{"a +x | +y", "b -x"}, []int{47}},
		{"second alternative", "a b / y:a:1", []string{"a +x | +y", "b -y"}, []int{47}},
		{"last member varies fastest", "a b / x:a:1", []string{"a +x | +y", "b -y | -x"}, []int{47}},
		{"an alternative without anything", "a b", []string{"a +x | ", "b"}, nil},
		{"optional fails as required before its last alternative", "a b / y:a:1", []string{"a? +x | +y", "b -y"}, []int{48}},
		{"optional is dropped after its last alternative", "b", []string{"a? +x | +y", "b"}, []int{48}},
		{"unused extension is dropped", "a", []string{"ext +x", "a"}, nil},
		{"used extension is kept", "ext a / x:ext:1", []string{"ext +x", "a -x"}, nil},
		{"extensions alone are no group", "failed: ", []string{"ext"}, []int{35}},
		{"everybody dropped is no group", "failed: ", []string{"a? -x"}, nil},
		{"the nearest combination is explained", "failed: b@1 requires z, which no buildpack of the group provides",
			[]string{"a +w +v | +x", "b -x -z"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conform.Covers(t, tt.covers...)
			var cands []candidate
			for _, c := range tt.cands {
				c := cand(c)
				c.Optional = c.Optional || c.Extension
				cands = append(cands, c)
			}
			r, err := resolve(context.Background(), cands)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(cands, r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestResolveSaysWhyAnOptionalMemberWasDropped(t *testing.T) {
	r, err := resolve(context.Background(), []candidate{cand("a? -x"), cand("b")})
	if err != nil {
		t.Fatal(err)
	}
	p, ok := r.dropped[0]
	if want := "a@1 requires x, which no buildpack of the group provides"; !ok || p.String() != want {
		t.Errorf("dropped[0] = %q, want %q", p, want)
	}
}

// Twenty buildpacks with four alternatives each make a million million
// combinations; what cannot succeed has to go before they are multiplied.
func TestResolveManyAlternatives(t *testing.T) {
	var cands []candidate
	for i := range 20 {
		cands = append(cands, cand(fmt.Sprintf("b%d +n%d | +m%d | +o%d | +p%d", i, i, i, i, i)))
	}
	last := "last"
	for i := range 20 {
		last += fmt.Sprintf(" -p%d", i)
	}
	cands = append(cands, cand(last))
	r, err := resolve(context.Background(), cands)
	if err != nil {
		t.Fatal(err)
	}
	if !r.ok || len(r.kept) != 21 {
		t.Errorf("got %s", show(cands, r))
	}
}

func TestResolveGivesUpOnEndlessCombinations(t *testing.T) {
	// No single alternative is hopeless, yet no combination works.
	var cands []candidate
	for i := range 12 {
		cands = append(cands, cand(fmt.Sprintf("b%d +x%d -x%d | +y%d -y%d | | ", i, i, i, i, i)))
	}
	cands = append(cands, cand("p +q | +r"), cand("z -q -r"))
	if _, err := resolve(context.Background(), cands); err == nil || !strings.Contains(err.Error(), "combinations") {
		t.Errorf("got error %v, want one about too many combinations", err)
	}
}

// oracle is the definition, by brute force: for each combination of
// alternatives in order, the largest set of candidates in which nobody has a
// problem. The first combination whose set has all that may not be dropped,
// and a buildpack, is the answer.
func oracle(cands []candidate) (kept []int, entries map[string]string, ok bool) {
	choice := make([]int, len(cands))
	var try func(i int) bool
	try = func(i int) bool {
		if i < len(cands) {
			for choice[i] = 0; choice[i] < len(cands[i].alternatives); choice[i]++ {
				if try(i + 1) {
					return true
				}
			}
			return false
		}
		best := -1
		for set := range 1 << len(cands) {
			if valid(cands, choice, set) && (best < 0 || ones(set) > ones(best)) {
				best = set
			}
		}
		if best < 0 {
			return false
		}
		buildpacks := 0
		for i, c := range cands {
			in := best>>i&1 == 1
			if !in && !(c.Optional && choice[i] == len(c.alternatives)-1) {
				return false
			}
			if in && !c.Extension {
				buildpacks++
			}
		}
		if buildpacks == 0 {
			return false
		}
		kept, entries = nil, planOf(cands, choice, best)
		for i := range cands {
			if best>>i&1 == 1 {
				kept = append(kept, i)
			}
		}
		return true
	}
	ok = try(0)
	return kept, entries, ok
}

func ones(set int) (n int) {
	for ; set > 0; set &= set - 1 {
		n++
	}
	return n
}

func provides(c candidate, alt int, name string) bool {
	return slices.Contains(c.alternatives[alt].Provides, spec.Provide{Name: name})
}

func requires(c candidate, alt int, name string) bool {
	return slices.ContainsFunc(c.alternatives[alt].Requires, func(r spec.Require) bool { return r.Name == name })
}

func valid(cands []candidate, choice []int, set int) bool {
	for i, c := range cands {
		if set>>i&1 == 0 {
			continue
		}
		for _, r := range c.alternatives[choice[i]].Requires {
			met := false
			for j := 0; j <= i; j++ {
				met = met || set>>j&1 == 1 && provides(cands[j], choice[j], r.Name)
			}
			if !met {
				return false
			}
		}
		for _, p := range c.alternatives[choice[i]].Provides {
			used := false
			for j := i; j < len(cands); j++ {
				used = used || set>>j&1 == 1 && requires(cands[j], choice[j], p.Name)
			}
			if !used {
				return false
			}
		}
	}
	return true
}

func planOf(cands []candidate, choice []int, set int) map[string]string {
	providers, wanted := map[string][]string{}, map[string]int{}
	for i, c := range cands {
		if set>>i&1 == 0 {
			continue
		}
		seen := map[string]bool{}
		for _, p := range c.alternatives[choice[i]].Provides {
			if !seen[p.Name] {
				providers[p.Name] = append(providers[p.Name], c.ID)
			}
			seen[p.Name] = true
		}
		for _, r := range c.alternatives[choice[i]].Requires {
			wanted[r.Name]++
		}
	}
	out := map[string]string{}
	for name, n := range wanted {
		out[name] = fmt.Sprintf("%s:%d", strings.Join(providers[name], ","), n)
	}
	return out
}

// trials is the text of the specification, sentence by sentence: a trial for
// each selection of alternatives, left to right and depth first. In a trial the
// first member whose provide or require is in vain fails it when the member is
// required, or is excluded with all that it provides and requires when it is
// optional; then the trial begins anew. A member with alternatives is optional
// for its last one only. It returns who is left, nil when every trial fails.
func trials(cands []candidate, selected []int) []int {
	if len(selected) < len(cands) {
		for alt := range cands[len(selected)].alternatives {
			if kept := trials(cands, append(selected[:len(selected):len(selected)], alt)); kept != nil {
				return kept
			}
		}
		return nil
	}
	var kept []int
	for i := range cands {
		kept = append(kept, i)
	}
	for {
		vain := slices.IndexFunc(kept, func(i int) bool { return inVain(cands, selected, kept, i) })
		if vain < 0 {
			break
		}
		i := kept[vain]
		if c := cands[i]; !c.Extension && !c.Optional || selected[i] < len(c.alternatives)-1 {
			return nil
		}
		kept = slices.Delete(kept, vain, vain+1)
	}
	if !slices.ContainsFunc(kept, func(i int) bool { return !cands[i].Extension }) {
		return nil
	}
	return kept
}

// inVain tells whether member i provides what neither it nor a later member
// requires, or requires what neither it nor an earlier one provides.
func inVain(cands []candidate, selected, kept []int, i int) bool {
	for _, p := range cands[i].alternatives[selected[i]].Provides {
		if !slices.ContainsFunc(kept, func(j int) bool { return j >= i && requires(cands[j], selected[j], p.Name) }) {
			return true
		}
	}
	for _, r := range cands[i].alternatives[selected[i]].Requires {
		if !slices.ContainsFunc(kept, func(j int) bool { return j <= i && provides(cands[j], selected[j], r.Name) }) {
			return true
		}
	}
	return false
}

func TestResolveEqualsBruteForce(t *testing.T) {
	conform.Covers(t, 42, 43, 44, 45, 46, 47, 48)
	agreed, failed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		cands := rapid.SliceOfN(rapid.Custom(drawCandidate), 1, 5).Draw(t, "candidates")
		for i := range cands {
			cands[i].ID = fmt.Sprintf("%s%d", cands[i].ID, i)
		}
		r, err := resolve(context.Background(), cands)
		if err != nil {
			t.Fatal(err)
		}
		kept, entries, ok := oracle(cands)
		if r.ok != ok {
			t.Fatalf("resolve says %v, brute force says %v", r.ok, ok)
		}
		if text := trials(cands, nil); !slices.Equal(text, kept) {
			t.Fatalf("by the text of the specification %v are left, by brute force %v", text, kept)
		}
		if !ok {
			failed++
			return
		}
		agreed++
		if diff := cmp.Diff(kept, r.kept); diff != "" {
			t.Errorf("kept (-brute force +resolve):\n%s", diff)
		}
		got := map[string]string{}
		for _, e := range r.plan.Entries {
			var ids []string
			for _, p := range e.Providers {
				ids = append(ids, p.ID)
			}
			got[e.Requires[0].Name] = fmt.Sprintf("%s:%d", strings.Join(ids, ","), len(e.Requires))
		}
		if diff := cmp.Diff(entries, got); diff != "" {
			t.Errorf("plan (-brute force +resolve):\n%s", diff)
		}
	})
	if agreed == 0 || failed == 0 {
		t.Errorf("%d resolved, %d failed: the property saw only one side", agreed, failed)
	}
}

func drawCandidate(t *rapid.T) candidate {
	names := rapid.SampledFrom([]string{"x", "y", "z"})
	var c candidate
	c.ID, c.Version, c.Optional = "b", "1", rapid.Bool().Draw(t, "optional")
	if rapid.IntRange(0, 5).Draw(t, "kind") == 0 {
		c.ID, c.Extension, c.Optional = "ext", true, true
	}
	for range rapid.IntRange(1, 3).Draw(t, "alternatives") {
		var s spec.PlanSections
		for _, name := range rapid.SliceOfN(names, 0, 2).Draw(t, "provides") {
			s.Provides = append(s.Provides, spec.Provide{Name: name})
		}
		if !c.Extension {
			for _, name := range rapid.SliceOfN(names, 0, 2).Draw(t, "requires") {
				s.Requires = append(s.Requires, spec.Require{Name: name})
			}
		}
		c.alternatives = append(c.alternatives, s)
	}
	return c
}

func TestPruneKeepsOrder(t *testing.T) {
	useful := prune([]candidate{cand("a +n | +x | | +x"), cand("b -x")})
	if want := [][]int{{1, 2, 3}, {0}}; !cmp.Equal(useful, want) {
		t.Errorf("got %v, want %v", useful, want)
	}
	for _, list := range useful {
		if !sort.IntsAreSorted(list) {
			t.Errorf("%v is out of order", list)
		}
	}
}
