package phase

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzLastWords(f *testing.F) {
	f.Add([]byte("one\ntwo\n\nthree\nfour\n"))
	f.Add([]byte("\x1b[31mred\x1b[0m\r\n\xff\xfe\n"))
	f.Add([]byte(strings.Repeat("é", 1000)))
	f.Fuzz(func(t *testing.T, output []byte) {
		words := lastWords(output)
		if !utf8.ValidString(words) {
			t.Errorf("%q is not UTF-8", words)
		}
		if len(words) > quotedBytes+len("...") {
			t.Errorf("%d bytes", len(words))
		}
		if i := strings.IndexFunc(words, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }); i >= 0 {
			t.Errorf("control character in %q", words)
		}
	})
}

func TestLastWords(t *testing.T) {
	for output, want := range map[string]string{
		"":                                "",
		" \n\t\n":                         "",
		"one":                             "one",
		"one\ntwo\n\nthree\n  four  \n\n": "two; three; four",
		"\x1b[1mbold\x1b[0m\n":            "bold",
	} {
		if got := lastWords([]byte(output)); got != want {
			t.Errorf("lastWords(%q) = %q, want %q", output, got, want)
		}
	}
}
