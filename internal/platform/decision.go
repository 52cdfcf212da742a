package platform

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// readDecision reads the file that says which buildpacks take part; nil if none
// does. Nobody waits for a pipe.
func readDecision(file string) (*spec.Decision, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, badInput(fmt.Errorf("plan: %w", err), "kiln plan --json > FILE makes one")
	}
	content, err := readRegular(f)
	if err != nil {
		return nil, badInput(fmt.Errorf("plan: %w", err), "kiln plan --json > FILE makes one")
	}
	d, err := spec.ReadDecision(content, file)
	if err != nil {
		return nil, badInput(fmt.Errorf("plan: %w", err), "it is what kiln plan --json prints, or a group.toml with the entries of its plan.toml")
	}
	return &d, nil
}

// decide puts what is decided where the detector looks for it: the order to
// try, or the group and plan that are given.
func (b *build) decide(x extras) error {
	layers := layer.Stack{Upper: b.layers.Upper}
	if b.decided == nil {
		return x.writeOrder(layers)
	}
	if err := b.checkDecision(x); err != nil {
		return err
	}
	b.info("the buildpacks are those of %s: nothing is detected", b.req.Plan)
	return errors.Join(writeDocument(layers, "group.toml", b.decided.Group), writeDocument(layers, "plan.toml", b.decided.Plan))
}

// checkDecision looks for every member that was decided on.
func (b *build) checkDecision(x extras) error {
	for _, g := range []struct {
		what      string
		extension bool
		members   []spec.GroupElement
		have      []spec.GroupElement
	}{
		{"buildpack", false, b.decided.Group.Group, slices.Concat(buildpacksOf(b.root), x.Mounted)},
		{"image extension", true, b.decided.Group.GroupExtensions, extensionsOf(b.root)},
	} {
		for i, m := range g.members {
			if !slices.ContainsFunc(g.have, func(h spec.GroupElement) bool { return h.ID == m.ID && h.Version == m.Version }) {
				fault := b.decided.Fault(fmt.Sprintf("builder %s has no %s %s", b.root.Name, g.what, m), g.extension, i)
				return badInput(fmt.Errorf("plan: %w", fault), haveHint(g.what, g.have))
			}
		}
	}
	return nil
}

// haveHint is what there is to choose from.
func haveHint(what string, have []spec.GroupElement) string {
	if len(have) == 0 {
		return "the builder has no " + what
	}
	return hintOf(have)
}

func writeDocument(layers layer.Stack, name string, v any) error {
	body, err := encode.TOML(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(layers.Upper, name), body, 0o644)
}
