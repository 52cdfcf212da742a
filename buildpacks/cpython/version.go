package cpython

import (
	"fmt"
	"strconv"
	"strings"
)

// constraint is a version, a wildcard, or comparisons that must all hold, in
// the ways that Python's and buildpacks' files write them: "3.11", "3.11.*",
// "3.x", ">=3.9,<3.13", "~=3.11", "~3.11", "^3.9", "==3.11.2", "!=3.10.*".
type constraint []clause

type clause struct {
	op   string
	want []int
	wild bool
}

func parseConstraint(text string) (constraint, error) {
	var c constraint
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		part = strings.TrimSpace(part)
		rest := strings.TrimLeft(part, "<>=!~^")
		cl := clause{op: part[:len(part)-len(rest)]}
		switch cl.op {
		case "", "=", "==", "===", "!=", "<", "<=", ">", ">=", "~", "~=", "^":
		default:
			return nil, fmt.Errorf("%q is no version constraint", part)
		}
		fields := strings.Split(strings.TrimPrefix(strings.TrimSpace(rest), "v"), ".")
		for _, f := range fields {
			if f == "*" || f == "x" || f == "X" {
				cl.wild = true
				break
			}
			n, err := strconv.Atoi(f)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("%q is no version constraint", part)
			}
			cl.want = append(cl.want, n)
		}
		c = append(c, cl)
	}
	if len(c) == 0 {
		return nil, fmt.Errorf("%q is no version constraint", text)
	}
	return c, nil
}

// allows reports whether version satisfies all clauses. Parts that the version
// does not have (3.11 for a 3.11.2 that is not known yet) are no obstacle.
func (c constraint) allows(version string) bool {
	var have []int
	for _, f := range strings.Split(version, ".") {
		digits := strings.TrimRightFunc(f, func(r rune) bool { return r < '0' || r > '9' })
		n, err := strconv.Atoi(digits)
		if err != nil {
			return false
		}
		have = append(have, n)
	}
	for _, cl := range c {
		if !cl.allows(have) {
			return false
		}
	}
	return true
}

func (cl clause) allows(have []int) bool {
	// A version that is not whole yet can be anything below its known parts.
	open := len(have) < len(cl.want)
	n := min(len(have), len(cl.want))
	order := compare(have[:n], cl.want[:n])
	switch cl.op {
	case "", "=", "==", "===":
		// Without an operator 3.11 means 3.11.*, as everybody expects.
		return order == 0
	case "!=":
		return order != 0 || open
	case "<":
		return order < 0 || order == 0 && open
	case "<=":
		return order < 0 || order == 0 && (open || len(have) == n || zero(have[n:]) || cl.wild)
	case ">":
		return order > 0 || order == 0 && (open || !cl.wild && len(have) > n && !zero(have[n:]))
	case ">=":
		return order >= 0
	case "~", "~=", "^":
		return order >= 0 && compare(have[:min(len(have), cl.fixed())], cl.want[:min(len(have), cl.fixed())]) == 0
	}
	return false
}

// fixed is how many leading parts must be equal: ~=3.11 and ^3.11 fix the 3,
// ~3.11 and ~=3.11.2 fix 3.11.
func (cl clause) fixed() int {
	switch {
	case cl.op == "^" || len(cl.want) < 2:
		return min(1, len(cl.want))
	case cl.op == "~":
		return 2
	default:
		return len(cl.want) - 1
	}
}

func compare(a, b []int) int {
	for i := range a {
		switch {
		case a[i] < b[i]:
			return -1
		case a[i] > b[i]:
			return 1
		}
	}
	return 0
}

func zero(list []int) bool {
	for _, n := range list {
		if n != 0 {
			return false
		}
	}
	return true
}
