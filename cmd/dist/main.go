// Command dist makes what goes with the lifecycle's binaries, of nothing but
// them: their SBOMs, and the archive that builders are made with.
//
//	go run ./cmd/dist -version V sboms DIR
//	go run ./cmd/dist -version V archive DIR OUT
//
// DIR holds launcher and lifecycle. The first writes {launcher,lifecycle}.sbom.*
// there, the second OUT/lifecycle-<version>+linux.<arch>.tgz. The same binaries
// give the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/spec"
)

func main() {
	version := flag.String("version", spec.Version, "the lifecycle's version")
	flag.Parse()
	if err := run(*version, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

func run(version string, args []string) error {
	spec.Version = version // what lifecycle.toml says, too
	switch {
	case len(args) == 2 && args[0] == "sboms":
		return writeSBOMs(args[1], version)
	case len(args) == 3 && args[0] == "archive":
		return writeArchive(args[1], args[2], version)
	}
	return fmt.Errorf("usage: dist [-version V] sboms DIR | archive DIR OUT")
}

// programs are the two binaries; the lifecycle's other names are links to it.
var programs = []string{"launcher", "lifecycle"}

// sboms are the SBOMs of both programs, by file name.
func sboms(dir, version string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range programs {
		bom, err := bomOf(filepath.Join(dir, name), name, version)
		if err != nil {
			return nil, err
		}
		formats, err := bom.Files()
		if err != nil {
			return nil, fmt.Errorf("SBOM of %s: %w", name, err)
		}
		for extension, text := range formats {
			files[name+"."+extension] = text
		}
	}
	return files, nil
}

func writeSBOMs(dir, version string) error {
	files, err := sboms(dir, version)
	if err != nil {
		return err
	}
	for name, text := range files {
		file := filepath.Join(dir, name)
		// What is there already keeps its time: programs are made of it.
		if old, err := os.ReadFile(file); err == nil && slices.Equal(old, text) {
			continue
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
