package main

import (
	"debug/buildinfo"
	"fmt"
	"path"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// bomOf is the bill of materials of a Go program: itself, the modules that are
// in it and the standard library, as the program says.
func bomOf(file, name, version string) (kit.BOM, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return kit.BOM{}, fmt.Errorf("%s: %w", file, err)
	}
	at := path.Join("/cnb/lifecycle", name)
	b := kit.BOM{Subject: name + " " + version}
	add := func(module, version, license string) {
		b.Packages = append(b.Packages, kit.Package{Type: "golang", Name: module, Version: version, License: license, Location: at})
	}
	add(info.Main.Path, "v"+version, "Apache-2.0")
	add("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "BSD-3-Clause")
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		add(dep.Path, dep.Version, "")
	}
	return b, nil
}
