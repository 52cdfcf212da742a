package spec

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestObjectKeepsWhatItDoesNotKnow(t *testing.T) {
	const text = `{ "b" : 1.50, "a":"\u003cx>", "n": null, "o":{"z":[ 1,2 ],"k":9007199254740993} }`
	o, err := ParseObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(o.Bytes()); got != text {
		t.Errorf("unchanged: %s", got)
	}
	inner, err := o.Object("o")
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Set("k2", "<"); err != nil {
		t.Fatal(err)
	}
	o.Put("o", inner.Bytes())
	o.Delete("n")
	o.Delete("nothing")
	const want = `{"b":1.50,"a":"\u003cx>","o":{"z":[ 1,2 ],"k":9007199254740993,"k2":"\u003c"}}`
	if got := string(o.Bytes()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := strings.Join(o.Names(), " "); got != "b a o" {
		t.Errorf("keys %s", got)
	}
}

// A value that says the same changes nothing, not even white space.
func TestObjectSetTheSame(t *testing.T) {
	const text = `{ "list": [ 1, 2 ],  "text": "\u00e9" }`
	o, err := ParseObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Set("list", []int{1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := o.Set("text", "é"); err != nil {
		t.Fatal(err)
	}
	if got := string(o.Bytes()); got != text {
		t.Errorf("got %s", got)
	}
	if err := o.Set("list", []int{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if got := string(o.Bytes()); got != `{"list":[1,2,3],"text":"\u00e9"}` {
		t.Errorf("got %s", got)
	}
	if err := o.Set("bad", func() {}); err == nil {
		t.Error("a function became JSON")
	}
}

func TestObjectGet(t *testing.T) {
	o, err := ParseObject([]byte(`{"s":"x","n":null,"l":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	s := "before"
	if err := o.Get("missing", &s); err != nil || s != "before" {
		t.Errorf("%q %v", s, err)
	}
	if err := o.Get("s", &s); err != nil || s != "x" {
		t.Errorf("%q %v", s, err)
	}
	if err := o.Get("l", &s); err == nil || !strings.Contains(err.Error(), "l: ") {
		t.Errorf("a list became a string: %v", err)
	}
	for _, name := range []string{"n", "missing"} {
		if child, err := o.Object(name); err != nil || string(child.Bytes()) != "{}" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := o.Object("l"); err == nil {
		t.Error("a list became an object")
	}
}

func TestList(t *testing.T) {
	if got := string(List([]json.RawMessage{[]byte("1.0"), []byte(`"<"`)})); got != `[1.0,"<"]` {
		t.Error(got)
	}
	if got := string(List(nil)); got != "[]" {
		t.Error(got)
	}
}

func TestParseObjectRefuses(t *testing.T) {
	for _, text := range []string{
		"", "null", "[]", `"x"`, "{", `{"a"`, `{"a":`, `{"a":1`, `{"a":1,}`, `{"a" 1}`, `{"a":1} x`, `{"a":1}{}`, `{"a":1,"b":2,"a":3}`, `{a:1}`, `{"a":01}`,
	} {
		if o, err := ParseObject([]byte(text)); err == nil {
			t.Errorf("%s: %s", text, o.Bytes())
		}
	}
}

// What is read prints back to the same bytes, and whoever reads it with
// encoding/json sees the same after any change that is taken back.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{ "a" : {"b":[1,2,{}]}, "c":"\u0000" }`, `{"a":1e400,"":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseObject(b)
		if err != nil {
			return
		}
		if string(o.Bytes()) != string(b) {
			t.Fatalf("%q became %q", b, o.Bytes())
		}
		const key = "a key that nobody has"
		if err := o.Set(key, 1); err != nil {
			t.Fatal(err)
		}
		o.Delete(key)
		if !json.Valid(o.Bytes()) || !sameJSON(b, o.Bytes()) {
			t.Fatalf("%q became %q", b, o.Bytes())
		}
	})
}
