package debian

import "github.com/kilnbuild/kiln/internal/spec"

// hint adds what the user can do about an error.
func hint(err error, how string) error { return spec.WithHint(err, "%s", how) }
