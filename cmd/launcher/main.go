// Command launcher is the entry point of every image that kiln builds: it
// becomes one of the image's processes, or a command, with the environment
// that the buildpacks want. It is copied into every image, so it is small.
package main

import (
	"fmt"
	"os"

	"github.com/kilnbuild/kiln/internal/launch"
	"github.com/kilnbuild/kiln/internal/spec"
)

func main() {
	err := launch.Run(os.Args, os.Environ(), os.Stderr) // only returns if it failed
	fmt.Fprintf(os.Stderr, "launcher: %v\n", err)
	if hint := spec.HintOf(err); hint != "" {
		fmt.Fprintf(os.Stderr, "launcher: hint: %s\n", hint)
	}
	os.Exit(spec.ExitCode(err, spec.ExitLaunch))
}
