package event

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// clock is a Text's time in tests: it moves when told.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func render(style Style, steps ...any) string {
	var b bytes.Buffer
	c := &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	text := NewText(&b, style)
	text.now = c.now
	for _, s := range steps {
		switch s := s.(type) {
		case time.Duration:
			c.t = c.t.Add(s)
		case Event:
			text.Emit(s)
		}
	}
	return b.String()
}

func TestTextVoice(t *testing.T) {
	got := render(Style{},
		PhaseStarted{Phase: "detector"},
		GroupTried{Passed: true, Group: []MemberResult{{Buildpack: "a@1", Result: "pass"}, {Buildpack: "b@1", Result: "fail"}}},
		PhaseStarted{Phase: "builder"},
		BuildpackStarted{Buildpack: "a@1", Op: "build"},
		Output{Buildpack: "a@1", Text: "one\ntw"},
		Output{Buildpack: "a@1", Text: "o\nopen end"},
		BuildpackFinished{Buildpack: "a@1", Op: "build"},
		PhaseStarted{Phase: "exporter"},
		Layer{Name: "a:x", Action: "reused", Target: "image"},
		Layer{Name: "a:x", Action: "new", Target: "cache"},
		Message{Level: Warn, Text: "no cache"},
		Message{Level: Debug, Text: "hidden"},
	)
	want := `Detect
  1 of 2 buildpacks take part
    a@1
Build
  a@1
    one
    two
    open end
Export
  reused  a:x
  warning: no cache
`
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTextQuietShowsOnlyTrouble(t *testing.T) {
	got := render(Style{Quiet: true}, PhaseStarted{Phase: "x"}, Output{Buildpack: "a", Text: "noise\n"},
		Message{Level: Info, Text: "noise"}, Progress{ID: "p", Text: "noise"}, Message{Level: Error, Text: "trouble"})
	if got != "  error: trouble\n" {
		t.Errorf("got %q", got)
	}
}

func TestProgressInALogIsRare(t *testing.T) {
	steps := []any{}
	for i := range int64(100) {
		steps = append(steps, Progress{ID: "p", Text: "pull", Done: i * 1e6, Total: 100e6, Unit: "bytes"}, 100*time.Millisecond)
	}
	steps = append(steps, Progress{ID: "p", Text: "pull", Done: 100e6, Total: 100e6, Unit: "bytes", End: true})
	got := render(Style{}, steps...)
	want := "  pull: 20% of 100 MB, 10.0 MB/s, 8.0 s left\n  pull: 70% of 100 MB, 10.0 MB/s, 3.0 s left\n  pull: 100 MB in 10.0 s\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLiveLineIsErasedBeforeText(t *testing.T) {
	got := render(Style{Live: true}, Progress{ID: "p", Text: "pull", Done: 1, Total: 2, Unit: "items"}, Message{Level: Info, Text: "hi"})
	if want := "\r\x1b[K  pull: 50% of 2 items\r\x1b[K  hi\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCleanLetsNoEscapeThrough(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext":           "plain\ttext",
		"\x1b[31mred\x1b[0m":    "red",
		"\x1b]0;title\x07after": "after",
		"\x1b]8;;x\x1b\\link":   "link",
		"a\rb\x00c\x7f":         "abc",
		"naïve ✓":               "naïve ✓",
		"cut \x1b[":             "cut ",
		"\x1b(Bcharset":         "charset",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		out := Clean(string(rapid.SliceOf(rapid.Byte()).Draw(t, "in")))
		if strings.ContainsFunc(out, isControl) {
			t.Fatalf("control character in %q", out)
		}
	})
}

func TestBuiltIsTheLastWord(t *testing.T) {
	b := Built{Names: []string{"hello:latest"}, ID: "sha256:ab", Size: 58_140_000, Reused: 9, New: 1, Elapsed: 1200 * time.Millisecond,
		Phases: []PhaseTime{{"detector", 40 * time.Millisecond}, {"builder", time.Second}}}
	want := "Built hello:latest\n  image   sha256:ab\n  size    58.1 MB\n  layers  9 reused, 1 new\n  time    1.2 s (detect 40 ms, build 1.0 s)\n"
	if d := cmp.Diff(want, render(Style{}, b)); d != "" {
		t.Error(d)
	}
	if got := render(Style{Quiet: true}, b); got != "sha256:ab\n" {
		t.Errorf("quiet: %q", got)
	}
}

func TestBytesAndSeconds(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 58_140_000: "58.1 MB", 999_600_000: "1.0 GB", 124_011_190: "124 MB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{12 * time.Millisecond: "12 ms", 1300 * time.Millisecond: "1.3 s", 125 * time.Second: "2m05s"} {
		if got := Seconds(d); got != want {
			t.Errorf("Seconds(%v) = %q, want %q", d, got, want)
		}
	}
}
