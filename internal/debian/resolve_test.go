package debian

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func itoa(n int) string { return strconv.Itoa(n) }

// indexOf makes an index of paragraphs "name version; Field: value; ...".
func indexOf(t *testing.T, suites map[string][]string) *index {
	t.Helper()
	x := newIndex("amd64")
	for _, suite := range []string{"bookworm", "bookworm-security"} {
		var text strings.Builder
		for _, p := range suites[suite] {
			fields := strings.Split(p, "; ")
			name, version, _ := strings.Cut(fields[0], " ")
			fmt.Fprintf(&text, "Package: %s\nVersion: %s\nArchitecture: amd64\n", name, version)
			for _, f := range fields[1:] {
				text.WriteString(f + "\n")
			}
			fmt.Fprintf(&text, "Description: %s\n long\nFilename: pool/%s.deb\nSize: 10\nSHA256: %s\n\n", name, name, strings.Repeat("ab", 32))
		}
		part := newIndex("amd64")
		if err := part.read(strings.NewReader(text.String()), suite); err != nil {
			t.Fatal(err)
		}
		x.merge(part)
	}
	return x
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		name              string
		bookworm, updates []string
		want, exclude     []string
		got               string // names and versions in unpacking order
		err               string
	}{
		{name: "closure", bookworm: []string{"a 1; Depends: b", "b 1; Pre-Depends: c", "c 1", "d 1"}, want: []string{"a"}, got: "a=1 b=1 c=1"},
		{name: "newest wins", bookworm: []string{"a 1"}, updates: []string{"a 1.1"}, want: []string{"a"}, got: "a=1.1"},
		{name: "an older one where only that will do", bookworm: []string{"a 1", "b 1; Depends: a (= 1)"}, updates: []string{"a 2"}, want: []string{"b"}, got: "a=1 b=1"},
		{name: "too old", bookworm: []string{"a 1; Depends: b", "b 1; Depends: c (>= 2)", "c 1"}, want: []string{"a"},
			err: "package a -> b depends on c (>= 2): the archive has c 1"},
		{name: "not there", bookworm: []string{"a 1; Depends: b | c", "b 1; Depends: nothing"}, want: []string{"a"},
			err: "package a -> b depends on nothing: the archive has no nothing"},
		{name: "wanted but not there", want: []string{"a"}, err: "package a, wanted by g: cannot be had"},
		{name: "chosen in another version", bookworm: []string{"a 1", "b 1; Depends: a (= 1)"}, updates: []string{"a 2"}, want: []string{"a", "b"},
			err: "depends on a (= 1): a 2 is chosen already (a)"},
		{name: "first alternative", bookworm: []string{"a 1; Depends: x | y", "x 1", "y 1"}, want: []string{"a"}, got: "a=1 x=1"},
		{name: "chosen alternative", bookworm: []string{"a 1; Depends: x | y", "x 1", "y 1"}, want: []string{"a", "y"}, got: "a=1 y=1"},
		{name: "second alternative when the first is not there", bookworm: []string{"a 1; Depends: x (>= 2) | y", "x 1", "y 1"}, want: []string{"a"}, got: "a=1 y=1"},
		{name: "virtual, by priority", bookworm: []string{"a 1; Depends: v", "m 1; Provides: v; Priority: required", "b 1; Provides: v; Priority: optional"}, want: []string{"a"}, got: "a=1 m=1"},
		{name: "virtual, by name", bookworm: []string{"a 1; Depends: v", "m 1; Provides: v", "b 1; Provides: v"}, want: []string{"a"}, got: "a=1 b=1"},
		{name: "virtual, chosen", bookworm: []string{"a 1; Depends: v", "m 1; Provides: v, w", "b 1; Provides: v"}, want: []string{"a", "m"}, got: "a=1 m=1"},
		{name: "virtual, wanted", bookworm: []string{"m 1; Provides: libold (= 1)"}, want: []string{"libold"}, got: "m=1"},
		{name: "versioned virtual", bookworm: []string{"a 1; Depends: v (>= 2)", "b 1; Provides: v", "c 1; Provides: v (= 1)", "d 1; Provides: v (= 2)"}, want: []string{"a"}, got: "a=1 d=1"},
		{name: "excluded", bookworm: []string{"a 1; Depends: debconf (>= 0.5) | debconf-2.0, c", "debconf 1; Provides: debconf-2.0", "cdebconf 1; Provides: debconf-2.0", "c 1; Depends: debconf-2.0"},
			want: []string{"a"}, exclude: []string{"debconf"}, got: "a=1 c=1"},
		{name: "excluded and wanted", bookworm: []string{"a 1"}, want: []string{"a"}, exclude: []string{"a"}, err: "excluded too"},
		{name: "conflict", bookworm: []string{"a 1; Depends: b", "b 1", "c 1; Conflicts: b (<< 2)"}, want: []string{"a", "c"}, err: "package c (c) conflicts with or breaks b (<< 2), but b 1 is needed (a -> b)"},
		{name: "breaks another version", bookworm: []string{"b 3", "c 1; Breaks: b (<< 2)"}, want: []string{"b", "c"}, got: "b=3 c=1"},
		{name: "conflicts with its own virtual", bookworm: []string{"b 1; Provides: v; Conflicts: v"}, want: []string{"b"}, got: "b=1"},
		{name: "two that exclude each other", bookworm: []string{"b 1; Provides: v; Conflicts: v", "c 1; Provides: v"}, want: []string{"b", "c"}, err: "conflicts with or breaks v, but c 1"},
		{name: "qualifiers", bookworm: []string{"a 1; Depends: p:any (>= 1), q:amd64", "p 1", "q 1"}, want: []string{"a"}, got: "a=1 p=1 q=1"},
		{name: "another architecture", bookworm: []string{"a 1; Depends: p:i386", "p 1"}, want: []string{"a"}, err: "p:i386"},
		{name: "who replaces comes first", bookworm: []string{"a 1", "z 1; Replaces: a (<< 2)"}, want: []string{"a", "z"}, got: "z=1 a=1"},
		{name: "cycle", bookworm: []string{"a 1; Depends: b", "b 1; Depends: a"}, want: []string{"a"}, got: "a=1 b=1"},
		{name: "alternatives in the request", bookworm: []string{"y 1"}, want: []string{"y (>= 1)"}, got: "y=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := indexOf(t, map[string][]string{"bookworm": c.bookworm, "bookworm-security": c.updates})
			ps, err := resolve(context.Background(), x, []Group{{Name: "g", Packages: c.want}}, c.exclude)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range ps {
				got = append(got, p.Name+"="+p.Version)
			}
			if d := cmp.Diff(c.got, strings.Join(got, " ")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestIndexRefusesNonsense(t *testing.T) {
	for name, text := range map[string]string{
		"no name":      "Version: 1\nArchitecture: amd64\n",
		"no field":     "Package: x\nwhat is this\n",
		"continuation": " x\n",
		"long":         "Package: x\nDepends: " + strings.Repeat("a, ", maxParagraph) + "\n",
	} {
		if err := newIndex("amd64").read(strings.NewReader(text), "s"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	x := newIndex("amd64")
	text := "Package: i\nArchitecture: i386\n\n\n\nPackage: x\nArchitecture: amd64\nDescription: " + strings.Repeat("long ", 40000) + "\nSize: nine\n"
	if err := x.read(strings.NewReader(text), "s"); err != nil {
		t.Fatal(err)
	}
	if len(x.byName) != 1 || len(x.byName["x"][0].text) > 100 {
		t.Errorf("kept %d names, %d bytes of x", len(x.byName), len(x.byName["x"][0].text))
	}
	if _, err := x.packages("x"); err == nil || !strings.Contains(err.Error(), "package x") {
		t.Errorf("a size that is none: %v", err)
	}
}
