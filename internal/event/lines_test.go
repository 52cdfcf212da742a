package event

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLinesKeepsLinesWhole(t *testing.T) {
	var texts []string
	l := NewLines(Func(func(e Event) {
		o := e.(Output)
		if o.Buildpack != "a@1" || !o.Stderr {
			t.Errorf("event %+v", o)
		}
		texts = append(texts, o.Text)
	}), "a@1", true)
	for _, s := range []string{"one\ntw", "o\n", "", "thr", strings.Repeat("e", maxHeld), "\n", "end"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	l.Flush()
	l.Flush()
	want := []string{"one\n", "two\n", "thr" + strings.Repeat("e", maxHeld), "\n", "end\n"}
	if diff := cmp.Diff(want, texts); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}
