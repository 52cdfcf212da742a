package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/phase"
	"github.com/kilnbuild/kiln/internal/spec"
)

// plan says what is other in img than in app. No layer is read, unless packages
// are wanted.
func (r *rebaser) plan(ctx context.Context, app, img v1.Image, base *newBase, out *Rebased) error {
	digest, err := app.Digest()
	if err != nil {
		return err
	}
	out.RunImage, out.Reference, out.Before = base.Name, base.Reference, digest.String()
	id, err := img.ConfigName()
	if err != nil {
		return err
	}
	out.ID = id.String()
	n, err := phase.BaseLayers(app)
	if err != nil {
		return err
	}
	before, err := layersOf(app, n)
	if err != nil {
		return err
	}
	after, err := layersOf(base.Image, -1)
	if err != nil {
		return err
	}
	out.Removed, out.Added = without(before, after), without(after, before)
	if out.Labels, err = labelChanges(app, img); err != nil {
		return err
	}
	if !r.req.DryRun || len(out.Removed)+len(out.Added) == 0 {
		return nil
	}
	out.Packages, err = r.packageChanges(ctx, app, n, base)
	if why, ok := errors.AsType[noPackages](err); ok {
		out.NoPackages, err = string(why), nil
	}
	return err
}

// layersOf lists the lowest n layers of an image, all for -1.
func layersOf(img v1.Image, n int) ([]event.RebaseLayer, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(cf.RootFS.DiffIDs) {
		return nil, fmt.Errorf("manifest has %d layers, config %d", len(m.Layers), len(cf.RootFS.DiffIDs))
	}
	if n < 0 {
		n = len(m.Layers)
	}
	var list []event.RebaseLayer
	for i := range n {
		list = append(list, event.RebaseLayer{DiffID: cf.RootFS.DiffIDs[i].String(), Size: m.Layers[i].Size})
	}
	return list, nil
}

// without is the layers of list that other does not have.
func without(list, other []event.RebaseLayer) []event.RebaseLayer {
	return slices.DeleteFunc(slices.Clone(list), func(l event.RebaseLayer) bool {
		return slices.ContainsFunc(other, func(o event.RebaseLayer) bool { return o.DiffID == l.DiffID })
	})
}

// labelChanges compares labels, the lifecycle's value by value.
func labelChanges(app, img v1.Image) ([]event.Change, error) {
	var sides [2]map[string]string
	for i, side := range []v1.Image{app, img} {
		cf, err := side.ConfigFile()
		if err != nil {
			return nil, err
		}
		sides[i] = maps.Clone(cf.Config.Labels)
		if sides[i] == nil {
			sides[i] = map[string]string{}
		}
		var label any
		if json.Unmarshal([]byte(sides[i][spec.LifecycleMetadataLabel]), &label) == nil {
			delete(sides[i], spec.LifecycleMetadataLabel)
			flatten(sides[i], spec.LifecycleMetadataLabel+": ", label)
		}
	}
	return changesOf(sides[0], sides[1]), nil
}

// flatten gives every value of a JSON document a name.
func flatten(into map[string]string, name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if !strings.HasSuffix(name, ": ") {
			name += "."
		}
		for key, element := range v {
			flatten(into, name+key, element)
		}
	case []any:
		for i, element := range v {
			flatten(into, fmt.Sprintf("%s[%d]", name, i), element)
		}
	default:
		into[name] = fmt.Sprint(v)
	}
}

// changesOf lists what is not the same, by name.
func changesOf(before, after map[string]string) []event.Change {
	var list []event.Change
	names := slices.Sorted(maps.Keys(before))
	for name := range after {
		if _, ok := before[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if before[name] != after[name] {
			list = append(list, event.Change{Name: name, Old: before[name], New: after[name]})
		}
	}
	return list
}
