// Package encode writes the documents of package spec as TOML. It is a room
// of its own so that the launcher, which only reads, does not carry an encoder.
package encode

import (
	"fmt"

	"github.com/BurntSushi/toml"
)

// TOML writes a document, a struct or a map with string keys, as the
// reference lifecycle does, byte for byte: metadata.toml is in a layer of every
// app image, and one that says the same has to be the same layer, whoever wrote
// it; buildpacks in shell grep the others. Hence the reference's encoder, and
// not that of the library that package spec reads with.
//
// Fields come in the order of the type, map keys sorted, plain values before
// tables. What is nil is left out; an empty list is not, unless its tag says
// omitempty. A nil in a list, which TOML does not have, is an error.
func TOML(v any) ([]byte, error) {
	b, err := toml.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write TOML: %w", err)
	}
	return b, nil
}
