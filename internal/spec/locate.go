package spec

import (
	"reflect"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"
)

// locate finds where each key of a document stands, by the key's full path as
// keyString writes it. Only documents with a fault pay for it. It stops at the
// first error of syntax.
func locate(b []byte) map[string]unstable.Position {
	l := locator{places: map[string]unstable.Position{}, tables: map[string]int{}}
	l.p.Reset(b)
	var prefix []any
	for l.p.NextExpression() {
		node := l.p.Expression()
		switch node.Kind {
		case unstable.Table:
			prefix = l.table(node.Key(), false)
		case unstable.ArrayTable:
			prefix = l.table(node.Key(), true)
		case unstable.KeyValue:
			l.keyValue(prefix, node)
		}
	}
	return l.places
}

type locator struct {
	p      unstable.Parser
	places map[string]unstable.Position
	tables map[string]int // number of [[elements]] seen of each array of tables
}

func (l *locator) record(path []any, node *unstable.Node) {
	key := keyString(path)
	if _, seen := l.places[key]; !seen && node.Raw.Length > 0 {
		l.places[key] = l.p.Shape(node.Raw).Start
	}
}

// table resolves the key of a [table] or [[table]] header: each part that is an
// array of tables means its newest element.
func (l *locator) table(key unstable.Iterator, array bool) []any {
	var path []any
	for key.Next() {
		node := key.Node()
		path = append(path, string(node.Data))
		l.record(path, node)
		name := keyString(path)
		if array && key.IsLast() {
			l.tables[name]++
		}
		if n := l.tables[name]; n > 0 {
			path = append(path, n-1)
			l.record(path, node)
		}
	}
	return path
}

func (l *locator) keyValue(prefix []any, node *unstable.Node) {
	path := append([]any(nil), prefix...)
	for key := node.Key(); key.Next(); {
		path = append(path, string(key.Node().Data))
		l.record(path, key.Node())
	}
	l.value(path, node.Value())
}

func (l *locator) value(path []any, node *unstable.Node) {
	children := node.Children()
	switch node.Kind {
	case unstable.InlineTable:
		for children.Next() {
			l.keyValue(path, children.Node())
		}
	case unstable.Array:
		for i := 0; children.Next(); {
			child := children.Node()
			if child.Kind == unstable.Comment {
				continue
			}
			element := append(path[:len(path):len(path)], i)
			l.record(element, child)
			l.value(element, child)
			i++
		}
	}
}

func typeOf(v any) reflect.Type { return reflect.TypeOf(v).Elem() }

// mismatch finds the first value of a decoded document that has another type
// than t wants there, and says so in the words of TOML.
func mismatch(t reflect.Type, v any) (path []any, msg string, found bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	wrong := func(want string) ([]any, string, bool) {
		return nil, "must be " + want + ", not " + kindOf(v), true
	}
	switch t.Kind() {
	case reflect.Struct:
		table, ok := v.(map[string]any)
		if !ok {
			return wrong("a table")
		}
		return mismatchFields(t, table)
	case reflect.Map:
		if _, ok := v.(map[string]any); !ok {
			return wrong("a table")
		}
	case reflect.Slice:
		return mismatchList(t, v)
	case reflect.String:
		if _, ok := v.(string); !ok {
			return wrong("a string")
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			return wrong("true or false")
		}
	case reflect.Int, reflect.Int64:
		if _, ok := v.(int64); !ok {
			return wrong("an integer")
		}
	}
	return nil, "", false
}

func mismatchList(t reflect.Type, v any) ([]any, string, bool) {
	list, ok := v.([]any)
	if !ok {
		want := "a list"
		if t.Elem().Kind() == reflect.Struct {
			want = "a list of tables"
		}
		return nil, "must be " + want + ", not " + kindOf(v), true
	}
	for i, element := range list {
		if path, msg, found := mismatch(t.Elem(), element); found {
			return append([]any{i}, path...), msg, true
		}
	}
	return nil, "", false
}

func mismatchFields(t reflect.Type, table map[string]any) ([]any, string, bool) {
	for _, field := range fields(t, map[string]bool{}) {
		v, ok := table[field.key]
		if !ok {
			continue
		}
		if path, msg, found := mismatch(field.t, v); found {
			return append([]any{field.key}, path...), msg, true
		}
	}
	return nil, "", false
}

type keyedField struct {
	key string
	t   reflect.Type
}

// fields lists a struct's keys; those of embedded structs come last and are
// left out where the outer struct has its own form of them.
func fields(t reflect.Type, seen map[string]bool) (all []keyedField) {
	var embedded []reflect.Type
	for i := range t.NumField() {
		field := t.Field(i)
		key, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		switch {
		case field.Anonymous:
			embedded = append(embedded, field.Type)
		case key != "-" && !seen[key]:
			seen[key] = true
			all = append(all, keyedField{key, field.Type})
		}
	}
	for _, e := range embedded {
		all = append(all, fields(e, seen)...)
	}
	return all
}

// kindOf names the TOML type of a decoded value.
func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	case time.Time:
		return "a time"
	}
	return "a date or time"
}
