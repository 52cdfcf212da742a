package spec

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// EscapeID is the directory name of a buildpack or extension ID, the same
// everywhere that directories are named after IDs: "/" becomes "_".
func EscapeID(id string) string { return strings.ReplaceAll(id, "/", "_") }

// reservedIDs are directories in <layers> that belong to the lifecycle.
var reservedIDs = []string{"app", "config", "generated", "sbom"}

// ValidateID checks a buildpack or extension ID: letters, digits, ".", "/" and
// "-", not reserved, and no name that means another directory (Buildpack API,
// "buildpack.toml").
func ValidateID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("an ID must not be empty")
	case !allowed(id, "./-"):
		return fmt.Errorf("%q is no valid ID: only letters, digits, '.', '/' and '-' are allowed", id)
	case EscapeID(id) == "." || EscapeID(id) == "..":
		return fmt.Errorf("%q is no valid ID: it would name another directory", id)
	case slices.ContainsFunc(reservedIDs, func(r string) bool { return strings.EqualFold(r, id) }):
		return fmt.Errorf("%q is no valid ID: the name is reserved", id)
	}
	return nil
}

// ValidatePathVersion checks only what keeps a version from naming another
// directory than its own under <buildpacks>/<id>. Builders in the field carry
// versions like "1.2.3-dev", and they shall build.
func ValidatePathVersion(version string) error {
	if version == "" || version == "." || version == ".." || strings.ContainsAny(version, "/\x00") {
		return fmt.Errorf("%q is no valid version", version)
	}
	return nil
}

// ValidateProcessType checks a process type: letters, digits, ".", "_" and "-".
// It becomes a file name, so "." and ".." are refused too.
func ValidateProcessType(name string) error {
	if name == "" || name == "." || name == ".." || !allowed(name, "._-") {
		return fmt.Errorf("%q is no valid process type: only letters, digits, '.', '_' and '-' are allowed", name)
	}
	return nil
}

// ValidateLayerName checks the name of a layer: a file name other than those
// of the documents beside it.
func ValidateLayerName(name string) error {
	switch name {
	case "build", "launch", "store":
		return fmt.Errorf("%q is no valid layer name: the name is reserved", name)
	case "", ".", "..":
		return fmt.Errorf("%q is no valid layer name", name)
	}
	if strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is no valid layer name", name)
	}
	return nil
}

// DefaultExecEnv is the execution environment where CNB_EXEC_ENV is unset.
const DefaultExecEnv = "production"

// ValidateExecEnv checks the name of an execution environment: anything that
// can be printed but "/", which is reserved, and white space (Platform API,
// "execution environment"; the RFC behind it allows less, and platforms differ).
func ValidateExecEnv(name string) error {
	bad := func(r rune) bool { return r == '/' || !unicode.IsPrint(r) || unicode.IsSpace(r) }
	if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("CNB_EXEC_ENV %q is not valid: it must not be empty or have '/', white space or control characters", name)
	}
	return nil
}

// InExecEnv reports whether something that is marked for the execution
// environments list is meant for env. An empty list and "*" mean all.
func InExecEnv(list []string, env string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, env)
}

// allowed reports whether s has only ASCII letters, digits and the bytes of extra.
func allowed(s, extra string) bool {
	for _, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && strings.IndexByte(extra, c) < 0 {
			return false
		}
	}
	return true
}
