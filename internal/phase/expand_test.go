package phase

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// matrix is the groups that an order stands for, by the specification's
// matrices: an entry is a matrix of one cell, a composite the rows that its
// order stands for, and an optional composite has an empty row after them. The
// rows of a group are the product of those of its entries, the first entry
// varying slowest. With an execution environment, entries for others are not
// there at all.
func matrix(composites map[string]spec.Order, order spec.Order, execEnv string) (rows [][]spec.GroupElement) {
	for _, g := range order.Order {
		product := [][]spec.GroupElement{nil}
		for _, e := range g.Group {
			if !spec.InExecEnv(e.ExecEnv, execEnv) {
				continue
			}
			of := [][]spec.GroupElement{{e}}
			if nested, ok := composites[e.String()]; ok {
				of = matrix(composites, nested, execEnv)
				if e.Optional {
					of = append(of, nil)
				}
			}
			var longer [][]spec.GroupElement
			for _, left := range product {
				for _, right := range of {
					longer = append(longer, slices.Concat(left, right))
				}
			}
			product = longer
		}
		rows = append(rows, product...)
	}
	return rows
}

// once leaves the second of two entries with one ID out.
func once(row []spec.GroupElement) (kept []spec.GroupElement) {
	for _, e := range row {
		if !slices.ContainsFunc(kept, func(k spec.GroupElement) bool { return k.ID == e.ID }) {
			kept = append(kept, e)
		}
	}
	return kept
}

func showRows(rows [][]spec.GroupElement) (lines []string) {
	for _, row := range rows {
		var words []string
		for _, e := range row {
			word := e.String()
			if e.Optional {
				word += "?"
			}
			words = append(words, word)
		}
		lines = append(lines, strings.Join(words, " "))
	}
	return lines
}

func TestExpansionEqualsMatrices(t *testing.T) {
	conform.Covers(t, 38, 39, 40)
	rapid.Check(t, func(t *rapid.T) {
		c := newCatalog(buildpack.Roots{})
		add := func(id, version string, order []spec.OrderGroup) {
			b := buildpack.Buildpack{Descriptor: spec.Buildpack{API: "0.12", Order: order}}
			b.Descriptor.Buildpack.ID, b.Descriptor.Buildpack.Version = id, version
			c.found[keyOf(false, b.String())] = b
		}
		var known []spec.GroupElement // what an order can name so far, so that nothing contains itself
		for _, id := range []string{"a", "b", "c"} {
			for _, version := range []string{"1", "2"} {
				add(id, version, nil)
				known = append(known, spec.GroupElement{ID: id, Version: version})
			}
		}
		draw := func(label string) (o spec.Order) {
			element := rapid.Custom(func(t *rapid.T) spec.GroupElement {
				e := rapid.SampledFrom(known).Draw(t, "member")
				e.Optional = rapid.Bool().Draw(t, "optional")
				e.ExecEnv = rapid.SampledFrom([][]string{nil, nil, nil, {"*"}, {"test"}, {"production", "test"}}).Draw(t, "exec-env")
				return e
			})
			for _, g := range rapid.SliceOfN(rapid.SliceOfN(element, 1, 3), 1, 3).Draw(t, label) {
				o.Order = append(o.Order, spec.OrderGroup{Group: g})
			}
			return o
		}
		composites := map[string]spec.Order{}
		for i := range rapid.IntRange(0, 3).Draw(t, "composites") {
			id := fmt.Sprintf("composite%d", i)
			o := draw(id)
			composites[id+"@1"] = o
			add(id, "1", o.Order)
			known = append(known, spec.GroupElement{ID: id, Version: "1"})
		}
		order := draw("order")

		var want [][]spec.GroupElement
		for _, row := range matrix(composites, order, "production") {
			want = append(want, once(row))
		}
		if len(want) > 5000 {
			return // two of a hundred orders; they would take most of the time
		}
		var got [][]spec.GroupElement
		x := expansion{catalog: c, execEnv: "production", try: func(g []member) (bool, error) {
			var row []spec.GroupElement
			for _, m := range g {
				row = append(row, spec.GroupElement{ID: m.bp.Info().ID, Version: m.bp.Info().Version, Optional: m.optional})
			}
			got = append(got, row)
			return false, nil
		}}
		if _, err := x.walk(t.Context(), order); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(showRows(want), showRows(got)); diff != "" {
			t.Fatalf("groups (-matrices +walk):\n%s", diff)
		}
	})
}
