package event

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/events.md")

const manualHead = "# Events as JSON\n\n<!-- Made by go test ./internal/event -update from the types themselves. -->\n\n" +
	"With `--json`, `kiln build`, `kiln base create` and `kiln rebase` print nothing on standard output but one JSON\n" +
	"object a line:\n\n" +
	`    {"time":"2026-01-02T15:04:05.000Z","kind":"output","event":{"buildpack":"kiln/pip@1.0.0","text":"Installing pip\n"}}` + "\n\n" +
	"The last line is of kind `built` (`image-written` for a base image; a rebase has a `rebased` for each image), or\n" +
	"`error` when the command failed; the same is then said on standard error, and the exit code is the one in the\n" +
	"event. Times are nanoseconds, sizes bytes; a field that is empty may be left out. Kinds and fields may be added;\n" +
	"those that are here keep their meaning.\n\n" +
	"| kind | fields |\n|---|---|\n"

// docs/events.md has every kind with all its fields.
func TestDocs(t *testing.T) {
	all := []Event{
		PhaseStarted{}, PhaseFinished{}, Message{}, Detected{}, GroupTried{}, BuildpackStarted{}, Output{}, BuildpackFinished{},
		Isolation{}, Progress{}, Layer{}, ImageWritten{}, Built{}, Rebased{}, Failed{},
	}
	var b strings.Builder
	b.WriteString(manualHead)
	seen := map[string]bool{}
	for _, e := range all {
		seen[e.Kind()] = true
		fmt.Fprintf(&b, "| `%s` | %s |\n", e.Kind(), fields(reflect.TypeOf(e)))
	}
	for kind := range decoders {
		if !seen[kind] {
			t.Errorf("the manual has no kind %s", kind)
		}
	}
	const file = "../../docs/events.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: go test ./internal/event -update makes it", err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s is stale; if the change is meant, run go test ./internal/event -update\n%s", file, diff)
	}
}

// fields lists the JSON names of a struct's fields, with those of structs in it.
func fields(t reflect.Type) string {
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
			name += " (each: " + fields(f.Type.Elem()) + ")"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
