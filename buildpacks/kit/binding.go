package kit

import (
	"errors"
	"fmt"
	"io/fs"
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
func (b Binding) SecretNames() []string { return sortedKeys(b.Secrets) }

// Bindings finds the bindings of a type (compared without regard to case), in
// order of their names: below SERVICE_BINDING_ROOT, else <platform>/bindings.
func (c *Context) Bindings(bindingType string) ([]Binding, error) {
	root := c.Getenv("SERVICE_BINDING_ROOT")
	if root == "" && c.PlatformDir != "" {
		root = filepath.Join(c.PlatformDir, "bindings")
	}
	return ReadBindings(root, bindingType)
}

// ReadBindings finds the bindings of a type below root; no root, none.
func ReadBindings(root, bindingType string) ([]Binding, error) {
	if root == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read service bindings: %w", err)
	}
	var all []Binding
	for _, e := range entries {
		b, err := readBinding(filepath.Join(root, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read service binding %s: %w", e.Name(), err)
		}
		if b.Type != "" && strings.EqualFold(b.Type, bindingType) {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b Binding) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func readBinding(dir string) (Binding, error) {
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
