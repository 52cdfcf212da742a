package debian

import (
	"errors"
	"os/exec"
	"testing"

	"pgregory.net/rapid"
)

func TestCompare(t *testing.T) {
	ascending := []string{ // each is older than the next
		"~~", "~~a", "~", "", "0a", "0a.b", "0.1~rc1", "0.1", "0.1-1~deb12u1", "0.1-1", "0.1-1+b1", "0.1-1.1",
		"0.1-2", "0.2", "0.10", "0.10a", "0.10+", "1a", "1.0", "1.0-1-1", "1:0~", "1:0", "1:0-1", "2:0",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := Compare(a, b); got != want {
				t.Errorf("Compare(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, same := range [][2]string{{"1.0", "0:1.0"}, {"1.0", "1.00"}, {"1.0-0", "1.0"}, {"1.0", "1.0-0"}, {"a01", "a1"}} {
		if got := Compare(same[0], same[1]); got != 0 {
			t.Errorf("Compare(%q, %q) = %d, want 0", same[0], same[1], got)
		}
	}
}

func versions() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		v := rapid.StringMatching(`[0-9][0-9a-cA-C.+~]{0,6}`).Draw(t, "upstream")
		if rapid.Bool().Draw(t, "has revision") {
			v += "-" + rapid.StringMatching(`[0-9a-c.+~]{1,4}`).Draw(t, "revision")
		}
		if rapid.IntRange(0, 3).Draw(t, "epoch") == 0 {
			v = rapid.StringMatching(`[0-2]:`).Draw(t, "epoch") + v
		}
		return v
	})
}

func TestCompareIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := versions().Draw(t, "a"), versions().Draw(t, "b"), versions().Draw(t, "c")
		if Compare(a, a) != 0 {
			t.Fatalf("%q differs from itself", a)
		}
		if Compare(a, b) != -Compare(b, a) {
			t.Fatalf("%q and %q: not antisymmetric", a, b)
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatalf("%q <= %q <= %q: not transitive", a, b, c)
		}
	})
}

// TestCompareLikeDpkg asks dpkg itself: one process per pair, so not too many.
func TestCompareLikeDpkg(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Fatalf("%v: install dpkg (this project is built on Debian)", err)
	}
	gen := rapid.SliceOfN(versions(), 2, 2)
	for i := range 250 {
		pair := gen.Example(i)
		for op, want := range map[string]bool{"lt": Compare(pair[0], pair[1]) < 0, "eq": Compare(pair[0], pair[1]) == 0} {
			err := exec.Command(dpkg, "--compare-versions", pair[0], op, pair[1]).Run()
			if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if (err == nil) != want {
				t.Errorf("%q %s %q: dpkg says %v, we say %v", pair[0], op, pair[1], err == nil, want)
			}
		}
	}
}
