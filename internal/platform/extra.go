package platform

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

// extras are the buildpacks that a request names: they are mounted beside the
// builder's, and their order replaces the builder's.
type extras struct {
	Order  spec.Order
	Mounts []sandbox.Mount
	// Mounted are the buildpacks of Mounts.
	Mounted []spec.GroupElement
	// Lowers are trees of buildpackage images, for the root's overlay.
	Lowers []string
}

// descriptorLimit bounds a buildpack.toml, in bytes.
const descriptorLimit = 1 << 20

// findBuildpack looks one name up: a folder or package file first, then the
// builder, then a registry. "urn:cnb:builder:" and "from=builder:" say that the
// builder is meant, "docker://" and "file://" the other two.
func (p *Platform) findBuildpack(ctx context.Context, name string, insecure []string, b builderRoot, x *extras) (spec.GroupElement, error) {
	bare := strings.TrimPrefix(strings.TrimPrefix(name, "from=builder:"), "urn:cnb:builder:")
	dir := strings.TrimPrefix(name, "file://")
	if fi, err := os.Stat(dir); err == nil && bare == name {
		if fi.IsDir() {
			return x.addDir(dir)
		}
		return p.addFile(ctx, dir, fi, x)
	}
	if strings.HasPrefix(name, "urn:cnb:registry:") {
		return spec.GroupElement{}, badInput(fmt.Errorf("buildpack %s: kiln does not look into buildpack registries yet", name), "name the image, which the registry's index has under addr")
	}
	have := buildpacksOf(b)
	if m, known, err := inBuilder(bare, have); known || bare != name {
		return m, err
	}
	if strings.ContainsAny(name, "/.:") && !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "/") {
		ref := strings.TrimPrefix(name, "docker://")
		m, err := p.addPackage(ctx, ref, x, func() (v1.Image, error) { return p.open(ctx, ref, insecure) })
		if err == nil {
			return m, nil
		}
		return m, badInput(fmt.Errorf("buildpack %s: neither a folder, nor in the builder, nor an image: %w", name, err), hintOf(have))
	}
	return spec.GroupElement{}, badInput(fmt.Errorf("buildpack %s: no such folder, and the builder has none of that id", name), hintOf(have))
}

// addFile takes a package file: a tar of an OCI layout.
func (p *Platform) addFile(ctx context.Context, file string, fi fs.FileInfo, x *extras) (spec.GroupElement, error) {
	m, err := p.addPackage(ctx, file, x, func() (v1.Image, error) {
		if !fi.Mode().IsRegular() {
			return nil, errors.New("not a regular file")
		}
		return archive.OCIArchive{Path: file}.Image(ctx, "")
	})
	if err != nil {
		err = badInput(fmt.Errorf("buildpack %s is neither a folder nor a package: %w", file, err), "name the folder with buildpack.toml in it, or a .cnb file")
	}
	return m, err
}

func (x *extras) addDir(dir string) (spec.GroupElement, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return spec.GroupElement{}, err
	}
	content, err := layer.Stack{Upper: dir}.ReadFile("buildpack.toml", descriptorLimit)
	if err != nil {
		return spec.GroupElement{}, badInput(fmt.Errorf("buildpack %s: %w", dir, err), "a buildpack is a folder with buildpack.toml, bin/detect and bin/build")
	}
	bp, err := spec.ReadBuildpack(content, filepath.Join(dir, "buildpack.toml"))
	if err != nil {
		return spec.GroupElement{}, badInput(err, "https://buildpacks.io/docs/reference/config/buildpack-config has the format")
	}
	for _, program := range []string{"detect", "build"} {
		file := filepath.Join(dir, "bin", program)
		if fi, err := os.Stat(file); err == nil && fi.Mode()&0o111 == 0 {
			return spec.GroupElement{}, badInput(fmt.Errorf("buildpack %s: %s is not executable", bp.Buildpack.ID, file), "chmod +x "+file)
		}
	}
	target := path.Join("/cnb/buildpacks", spec.EscapeID(bp.Buildpack.ID), bp.Buildpack.Version)
	x.Mounts = append(x.Mounts, sandbox.Mount{Source: dir, Target: target, ReadOnly: true})
	m := spec.GroupElement{ID: bp.Buildpack.ID, Version: bp.Buildpack.Version}
	x.Mounted = append(x.Mounted, m)
	return m, nil
}

// inBuilder finds id or id@version among the builder's buildpacks. known says
// that the builder has the id, so that it is looked for nowhere else.
func inBuilder(name string, have []spec.GroupElement) (m spec.GroupElement, known bool, err error) {
	id, version, _ := strings.Cut(name, "@")
	var versions []string
	for _, bp := range have {
		if bp.ID == id {
			versions = append(versions, bp.Version)
		}
	}
	switch {
	case len(versions) == 0:
		return m, false, badInput(fmt.Errorf("buildpack %s is not in the builder", name), hintOf(have))
	case version == "" && len(versions) > 1:
		return m, true, badInput(fmt.Errorf("buildpack %s: the builder has several versions: %s", id, strings.Join(versions, ", ")), "name one as "+id+"@"+versions[0])
	case version == "":
		version = versions[0]
	case !slices.Contains(versions, version):
		return m, true, badInput(fmt.Errorf("buildpack %s: the builder has %s", name, strings.Join(versions, ", ")), hintOf(have))
	}
	return spec.GroupElement{ID: id, Version: version}, true, nil
}

func hintOf(have []spec.GroupElement) string {
	var names []string
	for _, bp := range have {
		names = append(names, bp.ID+"@"+bp.Version)
	}
	if len(names) == 0 {
		return "the builder has no buildpacks"
	}
	return "the builder has: " + strings.Join(names, ", ")
}

// buildpacksOf lists the builder's buildpacks. Their directories have the ids
// escaped, so the ids themselves come from the descriptors; one that cannot be
// read is none that could take part.
func buildpacksOf(b builderRoot) []spec.GroupElement {
	return membersOf(b.stack(dirSystem+"/buildpacks"), "buildpack.toml", func(content []byte, file string) (spec.BuildpackInfo, error) {
		bp, err := spec.ReadBuildpack(content, file)
		return bp.Buildpack, err
	})
}

// extensionsOf lists the builder's image extensions likewise.
func extensionsOf(b builderRoot) []spec.GroupElement {
	return membersOf(b.stack(dirSystem+"/extensions"), "extension.toml", func(content []byte, file string) (spec.BuildpackInfo, error) {
		ext, err := spec.ReadExtension(content, file)
		return ext.Extension, err
	})
}

func membersOf(s layer.Stack, descriptor string, read func(content []byte, file string) (spec.BuildpackInfo, error)) []spec.GroupElement {
	var all []spec.GroupElement
	ids, err := s.ReadDir(".")
	if err != nil {
		return nil
	}
	for _, id := range ids {
		versions, err := s.ReadDir(id.Name())
		if err != nil {
			continue // a file
		}
		for _, v := range versions {
			file := path.Join(id.Name(), v.Name(), descriptor)
			content, err := s.ReadFile(file, descriptorLimit)
			if err != nil {
				continue
			}
			if info, err := read(content, file); err == nil {
				all = append(all, spec.GroupElement{ID: info.ID, Version: info.Version})
			}
		}
	}
	return all
}

// addPackage takes a buildpackage image: its layers become part of the root.
func (p *Platform) addPackage(ctx context.Context, ref string, x *extras, open func() (v1.Image, error)) (spec.GroupElement, error) {
	img, err := open()
	if err != nil {
		return spec.GroupElement{}, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return spec.GroupElement{}, fmt.Errorf("read %s: %w", ref, err)
	}
	m, said, err := describePackage(ref, cf)
	if err != nil {
		return m, err
	}
	layers, err := img.Layers()
	if err != nil {
		return spec.GroupElement{}, fmt.Errorf("read %s: %w", ref, err)
	}
	lowers, err := p.trees(ctx, layers)
	if err != nil {
		return spec.GroupElement{}, fmt.Errorf("unpack %s: %w", ref, err)
	}
	have := buildpacksOf(builderRoot{Lowers: lowers})
	for _, bp := range append(said, m) {
		if !slices.ContainsFunc(have, func(h spec.GroupElement) bool { return h.ID == bp.ID && h.Version == bp.Version }) {
			return spec.GroupElement{}, fmt.Errorf("%s: its labels name %s@%s, which is not in it", ref, bp.ID, bp.Version)
		}
	}
	x.Lowers = append(x.Lowers, lowers...)
	return m, nil
}

// describePackage reads what a buildpackage says of itself: the buildpack that
// it is for, and those that are in its layers, which must be layers of it. The
// second label is pack's, and may be missing.
func describePackage(ref string, cf *v1.ConfigFile) (m spec.GroupElement, inside []spec.GroupElement, err error) {
	var entry struct {
		ID      string `json:"id"`
		Version string `json:"version"`
	}
	label := cf.Config.Labels[spec.BuildpackageLabel]
	if label == "" {
		return m, nil, fmt.Errorf("%s has no label %s", ref, spec.BuildpackageLabel)
	}
	if err := json.Unmarshal([]byte(label), &entry); err != nil || entry.ID == "" || entry.Version == "" {
		return m, nil, errors.Join(fmt.Errorf("%s: label %s names no buildpack", ref, spec.BuildpackageLabel), err)
	}
	if err := cmp.Or(spec.ValidateID(entry.ID), spec.ValidatePathVersion(entry.Version)); err != nil {
		return m, nil, fmt.Errorf("%s: label %s: %q, %q: %w", ref, spec.BuildpackageLabel, entry.ID, entry.Version, err)
	}
	var layers map[string]map[string]struct {
		DiffID string `json:"layerDiffID"`
	}
	if label := cf.Config.Labels[spec.BuildpackLayersLabel]; label != "" {
		if err := json.Unmarshal([]byte(label), &layers); err != nil {
			return m, nil, fmt.Errorf("%s: label %s: %w", ref, spec.BuildpackLayersLabel, err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(layers)) {
		for _, version := range slices.Sorted(maps.Keys(layers[id])) {
			diffID := layers[id][version].DiffID
			if !slices.ContainsFunc(cf.RootFS.DiffIDs, func(h v1.Hash) bool { return h.String() == diffID }) {
				return m, nil, fmt.Errorf("%s: label %s says that %s@%s is in layer %q, which it does not have", ref, spec.BuildpackLayersLabel, id, version, diffID)
			}
			inside = append(inside, spec.GroupElement{ID: id, Version: version})
		}
	}
	return spec.GroupElement{ID: entry.ID, Version: entry.Version}, inside, nil
}

// writeOrder puts the order where the detector looks first.
func (x extras) writeOrder(layers layer.Stack) error {
	if len(x.Order.Order) == 0 {
		return nil
	}
	b, err := encode.TOML(x.Order)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(layers.Upper, "order.toml"), b, 0o644)
}

// checkEnv refuses names that no file in <platform>/env can have.
func checkEnv(env map[string]string) error {
	for name := range env {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > 255 {
			return badInput(fmt.Errorf("environment variable %q: not a usable name", name), "write it as NAME=VALUE")
		}
	}
	return nil
}

// writeEnv lays the user's environment out as <platform>/env.
func writeEnv(dir string, env map[string]string) error {
	if err := checkEnv(env); err != nil {
		return err
	}
	envDir := filepath.Join(dir, "env")
	if err := os.MkdirAll(envDir, 0o755); err != nil {
		return err
	}
	for name, value := range env {
		if err := os.WriteFile(filepath.Join(envDir, name), []byte(value), fs.FileMode(0o644)); err != nil {
			return fmt.Errorf("environment variable %s: %w", name, err)
		}
	}
	return nil
}
