// Package binding reads service bindings (servicebinding.io): directories of secrets
// that say what they are for. It imports next to nothing, so that programs that
// run at every start of an app can use it.
package binding

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Binding is a service binding (servicebinding.io): a directory of secrets that
// says what they are for.
type Binding struct {
	Name, Type, Provider string
	// Secrets maps the name of each other entry to its path, sorted by SecretNames.
	Secrets map[string]string
}

// SecretNames lists the secrets in order.
func (b Binding) SecretNames() []string { return slices.Sorted(maps.Keys(b.Secrets)) }

// Read finds the bindings of a type below root; no root, none.
func Read(root, bindingType string) ([]Binding, error) {
	if root == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{root, err}
	}
	var all []Binding
	for _, e := range entries {
		b, err := readOne(filepath.Join(root, e.Name()))
		if err != nil {
			return nil, &Error{filepath.Join(root, e.Name()), err}
		}
		if b.Type != "" && strings.EqualFold(b.Type, bindingType) {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b Binding) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func readOne(dir string) (Binding, error) {
	b := Binding{Name: filepath.Base(dir), Secrets: map[string]string{}}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return b, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return b, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		// Kubernetes leaves ..data and the like in projected volumes; secrets are
		// links into it.
		if info, err := os.Stat(path); strings.HasPrefix(e.Name(), ".") || err != nil || !info.Mode().IsRegular() {
			continue
		}
		switch e.Name() {
		case "type", "provider":
			text, err := os.ReadFile(path)
			if err != nil {
				return b, err
			}
			if e.Name() == "type" {
				b.Type = strings.TrimSpace(string(text))
			} else {
				b.Provider = strings.TrimSpace(string(text))
			}
		default:
			b.Secrets[e.Name()] = path
		}
	}
	return b, nil
}

// Error is a failure to read bindings. (Without package fmt, which would double
// the size of the programs that read them.)
type Error struct {
	Path string
	Err  error
}

// Error names the path that could not be read.
func (e *Error) Error() string { return "read service binding " + e.Path + ": " + e.Err.Error() }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }
