//go:build tools

// Package tools pins the linters outside the module that ships.
package tools

import _ "honnef.co/go/tools/cmd/staticcheck"
