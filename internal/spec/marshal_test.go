package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"
)

func TestMarshalWritesDoubleQuotes(t *testing.T) {
	got, err := Marshal(map[string]any{"key": "1", "it's": `a "b" \c`, "list": []any{"x", `'`}, "sub": map[string]any{"a b": "tab\t"}})
	if err != nil {
		t.Fatal(err)
	}
	want := `"it's" = "a \"b\" \\c"
key = "1"
list = ["x", "'"]

[sub]
"a b" = "tab\t"
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
}

// TestMarshalReadsBack: whatever the strings are, what is written reads back as
// it was, and no literal string is left.
func TestMarshalReadsBack(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.SampledFrom([]rune(`'"\ ab=[]#.`+"\n\t")), 0, 12, -1))
	rapid.Check(t, func(t *rapid.T) {
		m := map[string]any{}
		for k, v := range rapid.MapOfN(text, text, 0, 5).Draw(t, "strings") {
			m[strings.ToValidUTF8(k, "?")] = strings.ToValidUTF8(v, "?")
		}
		doc := map[string]any{"metadata": m, "list": []any{strings.ToValidUTF8(text.Draw(t, "item"), "?")}}
		b, err := Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := toml.Unmarshal(b, &got); err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		if len(m) == 0 {
			delete(doc, "metadata")
			delete(got, "metadata")
		}
		if d := cmp.Diff(doc, got); d != "" {
			t.Fatalf("%s\n%s", d, b)
		}
	})
}
