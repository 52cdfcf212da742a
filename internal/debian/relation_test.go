package debian

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseClauses(t *testing.T) {
	got, err := parseClauses("libc6 (>= 2.36), default-mta | mail-transport-agent , perl:any (<< 5.38~) | x:amd64(=1:2-3),")
	if err != nil {
		t.Fatal(err)
	}
	want := []clause{
		{{name: "libc6", op: ">=", version: "2.36"}},
		{{name: "default-mta"}, {name: "mail-transport-agent"}},
		{{name: "perl", arch: "any", op: "<<", version: "5.38~"}, {name: "x", arch: "amd64", op: "=", version: "1:2-3"}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(relation{})); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"a b", "a (1)", "a (>= )", "a (>= 1", "a (>= 1) x", "a (!= 1)", "|", "a |", "../x", "a [amd64]", "a <!nocheck>", "a (>= 1 2)"} {
		if c, err := parseClauses(bad); err == nil {
			t.Errorf("parseClauses(%q) = %v, want an error", bad, c)
		} else if first, _, _ := strings.Cut(err.Error(), " "); first != "relation" {
			t.Errorf("parseClauses(%q): error %q does not name its operand", bad, err)
		}
	}
}

func TestRelationAccepts(t *testing.T) {
	for _, c := range []struct {
		op                   string
		below, equal, beyond bool
	}{{"<<", true, false, false}, {"<=", true, true, false}, {"=", false, true, false}, {">=", false, true, true},
		{">>", false, false, true}, {"", true, true, true}} {
		r := relation{name: "x", op: c.op, version: "2"}
		if r.accepts("1") != c.below || r.accepts("2") != c.equal || r.accepts("3") != c.beyond {
			t.Errorf("%q 2 accepts 1, 2, 3: %v %v %v", c.op, r.accepts("1"), r.accepts("2"), r.accepts("3"))
		}
	}
}

// FuzzRelations: what parses prints to something that parses to the same.
func FuzzRelations(f *testing.F) {
	f.Add("libc6 (>= 2.36), a | b:any (<< 1~)")
	f.Add("x(=1:2-3+b1),")
	f.Fuzz(func(t *testing.T, s string) {
		cs, err := parseClauses(s)
		if err != nil {
			return
		}
		for _, c := range cs {
			again, err := parseClause(c.String())
			if err != nil {
				t.Fatalf("%q printed as %q: %v", s, c, err)
			}
			if d := cmp.Diff(c, again, cmp.AllowUnexported(relation{})); d != "" {
				t.Fatal(d)
			}
		}
	})
}
