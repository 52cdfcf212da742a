package lifecycle

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Where the SBOMs of launcher and lifecycle go, below <layers>/sbom.
const (
	launcherSBOMs  = "launch/buildpacksio_lifecycle/launcher"
	lifecycleSBOMs = "build/buildpacksio_lifecycle"
)

// maxSBOM bounds the SBOM of a program, in bytes: that of one with a thousand
// dependencies has two million.
const maxSBOM = 64 << 20

// sbomExts are the formats of SBOMs, by file extension.
var sbomExts = []string{"cdx.json", "spdx.json", "syft.json"}

// copySBOMs puts the SBOMs of launcher and lifecycle where those of the
// buildpacks are (requirements 3.9). Where the lifecycle is they have its names;
// in a directory that was named every one is the launcher's. If there are none
// it only warns.
func (h Host) copySBOMs(in inputs) error {
	if !spec.Has(in.api, spec.PlatformLauncherSBOM) {
		return nil
	}
	layers, err := h.tree(in.layers)
	if err != nil {
		return err
	}
	if in.launcherSBOM != defaultLifecycle {
		return h.copyNamedSBOMs(layers, in.launcherSBOM)
	}
	for _, part := range []struct{ name, to string }{{"launcher", launcherSBOMs}, {"lifecycle", lifecycleSBOMs}} {
		missing := 0
		for _, ext := range sbomExts {
			from := in.launcherSBOM + path("/"+part.name+".sbom."+ext)
			if !h.exists(from) {
				missing++
				continue
			}
			if err := h.copySBOM(layers, from, part.to+"/sbom."+ext); err != nil {
				return fmt.Errorf("SBOM of the %s: %w", part.name, err)
			}
		}
		if missing == len(sbomExts) {
			h.warn("the %s has no SBOM in %s", part.name, in.launcherSBOM)
		}
	}
	return nil
}

func (h Host) copyNamedSBOMs(layers phase.Tree, dir path) error {
	entries, err := h.readDir(dir)
	if err != nil {
		h.warn("no SBOM of the launcher: %v", err)
		return nil
	}
	n := 0
	for _, e := range entries {
		if !slices.ContainsFunc(sbomExts, func(ext string) bool { return strings.HasSuffix(e.Name(), "sbom."+ext) }) {
			continue
		}
		if err := h.copySBOM(layers, dir+"/"+path(e.Name()), launcherSBOMs+"/"+e.Name()); err != nil {
			return fmt.Errorf("SBOM of the launcher: %w", err)
		}
		n++
	}
	if n == 0 {
		h.warn("the launcher has no SBOM in %s", dir)
	}
	return nil
}

func (h Host) copySBOM(layers phase.Tree, from path, to string) error {
	b, err := h.readFile(from, maxSBOM)
	if err != nil {
		return err
	}
	return phase.PutSBOM(layers, to, b)
}

// readDir lists a directory, sorted by name.
func (h Host) readDir(p path) ([]os.DirEntry, error) {
	if stack, rel, ok := h.find(p); ok {
		return stack.ReadDir(rel)
	}
	return os.ReadDir(string(p))
}
