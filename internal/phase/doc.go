// Package phase holds the phases of a build: analyze, detect, restore, build
// and export, and rebase, as functions over values.
//
// A phase runs foreign code or holds credentials, never both: what takes a
// sandbox.Runner takes no image.Source or image.Target, and the other way
// round. No phase reads flags or environment variables, prints, or exits;
// that is package lifecycle. Errors that decide an exit code are a
// *spec.ExitError.
package phase
