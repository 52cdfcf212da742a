package kit

import (
	"path/filepath"

	"github.com/kilnbuild/kiln/buildpacks/kit/binding"
)

// Binding is a service binding.
type Binding = binding.Binding

// Bindings finds the bindings of a type (compared without regard to case), in
// order of their names: below SERVICE_BINDING_ROOT, else <platform>/bindings.
func (c *Context) Bindings(bindingType string) ([]Binding, error) {
	root := c.Getenv("SERVICE_BINDING_ROOT")
	if root == "" && c.PlatformDir != "" {
		root = filepath.Join(c.PlatformDir, "bindings")
	}
	return binding.Read(root, bindingType)
}
