package event

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestJSONRoundTrip(t *testing.T) {
	want := []Event{
		PhaseStarted{Phase: "detect"},
		Output{Buildpack: "a/b@1", Text: "<html> & more\n"},
		Detected{Buildpack: "a@1", ExitCode: 100, Output: "no go.mod\n", Alternatives: []Alternative{{Provides: []string{"go"}}, {Requires: []string{"make"}}}},
		GroupTried{Group: []MemberResult{{Buildpack: "a@1", Result: "fail", Reason: "no go.mod"}}},
		Layer{Name: "a/b:x", Action: "new", Target: "image", DiffID: "sha256:1", Read: 7, Elapsed: time.Second},
		Progress{ID: "x", Text: "pull", Done: 1, Total: 2, Unit: "bytes"},
		ImageWritten{Name: "hello", ID: "sha256:2", Size: 3},
		PhaseFinished{Phase: "detect", Elapsed: time.Millisecond, Err: "no"},
		Message{Level: Warn, Text: "careful"},
		BuildpackStarted{Buildpack: "a@1", Op: "build"},
		BuildpackFinished{Buildpack: "a@1", Op: "build", ExitCode: 3},
		Built{Names: []string{"hello"}, ID: "sha256:2", Size: 9, Reused: 1, New: 2, Isolation: "1", Phases: []PhaseTime{{Phase: "build", Elapsed: 5}}, Elapsed: 6},
		Isolation{Tier: "1"},
		Rebased{Name: "hello", Result: "planned", Removed: []RebaseLayer{{DiffID: "sha256:1", Size: 4}}, Labels: []Change{{Name: "a", Old: "b"}}},
		Failed{Message: "no", Hint: "try again", ExitCode: 3},
	}
	if len(want) != len(decoders) {
		t.Fatalf("the test covers %d kinds, the package has %d", len(want), len(decoders))
	}
	var b bytes.Buffer
	s := NewJSON(&b)
	for _, e := range want {
		s.Emit(e)
	}
	var got []Event
	if err := Decode(&b, Func(func(e Event) { got = append(got, e) })); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestDecodeKeepsWhatIsNoEvent(t *testing.T) {
	in := "panic: boom\n{\"kind\":\"never-heard\",\"event\":{}}\n" + strings.Repeat("x", maxLine+10) + "\nlast"
	var got []string
	if err := Decode(strings.NewReader(in), Func(func(e Event) { got = append(got, e.(Message).Text) })); err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got[0] != "panic: boom" || len(got[2]) != maxLine || got[3] != "last" {
		t.Errorf("got %d messages, first %.40q, last %.40q", len(got), got[0], got[len(got)-1])
	}
}

func TestDecodeNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
		if err := Decode(bytes.NewReader(in), Discard); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever a process in a sandbox writes: no panic, an event for each line that
// has something, and what is an event is written and read the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("{\"kind\":\"message\",\"event\":{\"level\":\"warn\",\"text\":\"x\"}}\n"))
	f.Add([]byte("{\"kind\":\"output\",\"event\":{\"buildpack\":\"a@1\",\"text\":\"\\u001b[31m\"}}\r\npanic: x\n\n"))
	f.Add([]byte("{\"kind\":\"group-tried\",\"event\":{\"group\":[{\"result\":\"pass\"}]}}"))
	f.Add([]byte("{\"kind\":\"message\",\"event\":null}\n{\"kind\":\"none\"}\n\xff"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var events []Event
		collect := func(to *[]Event) Sink { return Func(func(e Event) { *to = append(*to, e) }) }
		if err := Decode(bytes.NewReader(stream), collect(&events)); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for line := range bytes.Lines(stream) {
			if len(bytes.TrimRight(line, "\r\n")) > 0 {
				lines++
			}
		}
		if len(events) != lines {
			t.Errorf("%d events of %d lines", len(events), lines)
		}
		round := func(events []Event) (again []Event) {
			var b bytes.Buffer
			sink := NewJSON(&b)
			for _, e := range events {
				sink.Emit(e)
			}
			if err := Decode(&b, collect(&again)); err != nil {
				t.Fatal(err)
			}
			return again
		}
		once := round(events) // what is no UTF-8 becomes some
		if len(once) != len(events) {
			t.Errorf("%d events become %d", len(events), len(once))
		}
		if diff := cmp.Diff(once, round(once), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	})
}
