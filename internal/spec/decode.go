package spec

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// MaxDocument bounds every TOML document, in bytes. The largest in practice is
// analyzed.toml, which repeats what all buildpacks remembered of their layers:
// some hundred KiB. Buildpacks write most of them, and they are foreign code.
const MaxDocument = 8 << 20

// DocumentError says what is wrong with a document, and where. Line and Col
// count from 1 and are 0 where the fault is something that is missing.
type DocumentError struct {
	File      string
	Line, Col int
	Key       string // e.g. processes[1].command
	Msg       string
}

// Error is "file:line:col: key: what", without the parts that are not known.
func (e *DocumentError) Error() string {
	var s strings.Builder
	s.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&s, ":%d:%d", e.Line, e.Col)
	}
	if e.Key != "" {
		s.WriteString(": " + e.Key)
	}
	s.WriteString(": " + e.Msg)
	return s.String()
}

// document is a document that is being read: it finds the place of a fault.
type document struct {
	name  string
	bytes []byte
	json  bool // otherwise it is TOML
}

// places are where its keys are.
func (d document) places() map[string]unstable.Position {
	if d.json {
		return locateJSON(d.bytes)
	}
	return locate(d.bytes)
}

// maxKeys bounds how many keys a document of more than manyBytes may have. The
// decoder compares each key of a table with all before it: the 400,000 tables
// that fit into MaxDocument take it five minutes, 50,000 a few seconds. Smaller
// documents can hardly have as many.
const (
	maxKeys   = 50_000
	manyBytes = 256 << 10
)

// tooMuch says what is too much in a document, or nothing. Keys are counted by
// what every one has, a sign of equality or a bracket that begins a line.
func tooMuch(b []byte) string {
	if len(b) > MaxDocument {
		return fmt.Sprintf("%d bytes is more than the %d that a document may have", len(b), MaxDocument)
	}
	if len(b) > manyBytes {
		if n := bytes.Count(b, []byte("=")) + bytes.Count(b, []byte("\n[")); n > maxKeys {
			return fmt.Sprintf("about %d keys are more than the %d that a document may have", n, maxKeys)
		}
	}
	return ""
}

// unmarked is a document without the byte order mark that some editors put first.
func unmarked(b []byte) []byte { return bytes.TrimPrefix(b, []byte("\ufeff")) }

// decode reads a TOML document into v, a pointer to struct. Keys that v does
// not know are ignored: later versions of the specification may add some.
func decode(b []byte, name string, v any) (document, error) {
	b = unmarked(b)
	d := document{name: name, bytes: b}
	if msg := tooMuch(b); msg != "" {
		return d, &DocumentError{File: name, Msg: msg}
	}
	if err := toml.Unmarshal(b, v); err != nil {
		return d, d.explain(err, v)
	}
	return d, nil
}

// Decode reads a TOML document that is kiln's own into v, a pointer to struct.
// A key that v does not know is an error: whoever wrote it meant something.
func Decode(b []byte, name string, v any) error {
	d, err := decode(b, name, v)
	if err != nil {
		return err
	}
	strict := toml.NewDecoder(bytes.NewReader(d.bytes)).DisallowUnknownFields()
	err = strict.Decode(reflect.New(typeOf(v)).Interface())
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(unknown.Errors) > 0 {
		e := &unknown.Errors[0]
		line, col := e.Position()
		return &DocumentError{name, line, col, strings.Join(e.Key(), "."), "is no key of this document"}
	}
	if err != nil {
		return d.explain(err, v)
	}
	return nil
}

// explain puts a decoder's error into the user's words. The decoder speaks of
// Go types where a value has the wrong type; reading the document once more,
// without types, tells such a fault from one of syntax and finds its key.
func (d document) explain(err error, v any) error {
	var tree map[string]any
	if syntax := toml.Unmarshal(d.bytes, &tree); syntax != nil {
		return d.syntax(syntax)
	}
	if path, msg, found := mismatch(typeOf(v), tree); found {
		return d.fault(msg, path...)
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, col := e.Position()
		return &DocumentError{d.name, line, col, strings.Join(e.Key(), "."), "cannot be read as what it must be"}
	}
	return &DocumentError{File: d.name, Msg: "cannot be read as what it must be"}
}

func (d document) syntax(err error) error {
	e, ok := errors.AsType[*toml.DecodeError](err)
	if !ok {
		return &DocumentError{File: d.name, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	line, col := e.Position()
	return &DocumentError{d.name, line, col, strings.Join(e.Key(), "."), strings.TrimPrefix(e.Error(), "toml: ")}
}

// fault is an error at a path of keys (string) and indices (int). Where the
// last key is missing from the document, the place is that of its table.
func (d document) fault(msg string, path ...any) error {
	e := &DocumentError{File: d.name, Key: keyString(path), Msg: msg}
	places := d.places()
	for n := len(path); n > 0; n-- {
		if at, ok := places[keyString(path[:n])]; ok {
			e.Line, e.Col = at.Line, at.Column
			break
		}
	}
	return e
}

// faultErr is fault for the error of one of the Validate functions; nil for nil.
func (d document) faultErr(err error, path ...any) error {
	if err == nil {
		return nil
	}
	return d.fault(err.Error(), path...)
}

// keyString writes a path the way people do: processes[1].command.
func keyString(path []any) string {
	var s strings.Builder
	for _, p := range path {
		switch p := p.(type) {
		case int:
			fmt.Fprintf(&s, "[%d]", p)
		case string:
			if s.Len() > 0 {
				s.WriteByte('.')
			}
			s.WriteString(quoteKey(p))
		}
	}
	return s.String()
}

// quoteKey quotes a key unless TOML takes it bare.
func quoteKey(key string) string {
	if key != "" && allowed(key, "_-") {
		return key
	}
	return fmt.Sprintf("%q", key)
}

// first returns the first error that is not nil.
func first(errs ...error) error { return cmp.Or(errs...) }
