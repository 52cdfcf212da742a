package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
)

// Object is a JSON object of somebody else's that is changed key by key. What
// is not changed stays as it was written: keys that nobody here knows, their
// order, how numbers and strings are spelled. The zero Object is empty.
type Object struct {
	raw     []byte // as it was parsed; nil once it has been changed
	members []member
}

type member struct {
	name  string
	value json.RawMessage
}

// ParseObject reads one JSON object. Readers differ in what a key that stands
// there twice means, so that is an error.
func ParseObject(b []byte) (*Object, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil {
		return nil, whole(err)
	} else if open != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	o := &Object{raw: bytes.Clone(b)}
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, whole(err)
		}
		m := member{name: key.(string)} // a decoder hands out nothing else here
		if seen[m.name] {
			return nil, fmt.Errorf("the key %q stands there twice", m.name)
		}
		seen[m.name] = true
		if err := d.Decode(&m.value); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, whole(err))
		}
		o.members = append(o.members, m)
	}
	if _, err := d.Token(); err != nil {
		return nil, whole(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the JSON object")
	}
	return o, nil
}

// whole makes an error of an end that came too early.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (o *Object) find(name string) int {
	return slices.IndexFunc(o.members, func(m member) bool { return m.name == name })
}

// Names lists the keys in their order.
func (o *Object) Names() []string {
	var names []string
	for _, m := range o.members {
		names = append(names, m.name)
	}
	return names
}

// Raw is the value of a key as it is written, nil if there is none.
func (o *Object) Raw(name string) json.RawMessage {
	if i := o.find(name); i >= 0 {
		return o.members[i].value
	}
	return nil
}

// Get decodes the value of a key into v, and leaves v alone if there is none.
func (o *Object) Get(name string, v any) error {
	raw := o.Raw(name)
	if raw == nil {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Object reads the value of a key as an object of its own; no value, or null, is
// an empty one. To put a changed one back is for the caller, with Put.
func (o *Object) Object(name string) (*Object, error) {
	raw := o.Raw(name)
	if raw == nil || string(raw) == "null" {
		return &Object{}, nil
	}
	child, err := ParseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return child, nil
}

// Set gives a key a value; a new key comes last. A value that says the same as
// the old one changes nothing, however it was spelled.
func (o *Object) Set(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	o.Put(name, raw)
	return nil
}

// Put is Set for a value that is JSON already, and is kept as it is spelled.
func (o *Object) Put(name string, raw json.RawMessage) {
	i := o.find(name)
	switch {
	case i < 0:
		o.members = append(o.members, member{name, raw})
	case sameJSON(o.members[i].value, raw):
		return
	default:
		o.members[i].value = raw
	}
	o.raw = nil
}

// Delete takes a key out.
func (o *Object) Delete(name string) {
	if i := o.find(name); i >= 0 {
		o.members = slices.Delete(o.members, i, i+1)
		o.raw = nil
	}
}

// Bytes is the object as JSON: as it was parsed unless something was changed.
func (o *Object) Bytes() []byte {
	if o.raw != nil {
		return bytes.Clone(o.raw)
	}
	b := []byte{'{'}
	for i, m := range o.members {
		if i > 0 {
			b = append(b, ',')
		}
		name, _ := json.Marshal(m.name) // a string always can be
		b = append(append(append(b, name...), ':'), m.value...)
	}
	return append(b, '}')
}

// List is a JSON list of values that are kept as they are spelled.
func List(items []json.RawMessage) json.RawMessage {
	return slices.Concat([]byte{'['}, bytes.Join(raws(items), []byte{','}), []byte{']'})
}

func raws(items []json.RawMessage) [][]byte {
	list := make([][]byte, len(items))
	for i, item := range items {
		list[i] = item
	}
	return list
}

// sameJSON tells whether two values mean the same.
func sameJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var values [2]any
	for i, raw := range []json.RawMessage{a, b} {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if d.Decode(&values[i]) != nil {
			return false
		}
	}
	return reflect.DeepEqual(values[0], values[1])
}
