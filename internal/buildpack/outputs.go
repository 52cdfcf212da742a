package buildpack

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Outputs are what one bin/build said in files.
type Outputs struct {
	Launch spec.LaunchTOML
	// Unmet are the names of the plan that it leaves to later buildpacks.
	Unmet []string
	// Layers are its layers in ascending order of name.
	Layers []Layer
	// SBOMs are its bills of materials in ascending order of file name.
	SBOMs []SBOM
}

// Layer is one <layer>.toml and whether there is a directory beside it.
type Layer struct {
	Name  string
	Types spec.LayerTypes
	// Dir tells whether anything is at <layer>/: a launch layer may be without,
	// to keep that of the previous image.
	Dir bool
}

// SBOM is one bill of materials: File is its name in the buildpack's layers
// directory; Subject is "launch", "build" or the name of a layer; Ext is its
// format: cdx.json, spdx.json or syft.json.
type SBOM struct {
	File, Subject, Ext string
}

// sbomTypes are the media types behind the extensions (Buildpack API, "SBOM").
var sbomTypes = map[string]string{
	"cdx.json":  "application/vnd.cyclonedx+json",
	"spdx.json": "application/spdx+json",
	"syft.json": "application/vnd.syft+json",
}

// sbomMark is between the subject and the extension in the name of an SBOM.
const sbomMark = ".sbom."

// ReadOutputs reads what bin/build of b left in layersDir. plan is what it was
// given: build.toml may only speak of that. An error means that the buildpack
// broke the contract.
func (b Buildpack) ReadOutputs(layersDir string, plan spec.BuildpackPlan) (Outputs, error) {
	dir := layer.Stack{Upper: layersDir}
	entries, err := dir.ReadDir(".")
	if err != nil {
		return Outputs{}, fmt.Errorf("layers of %s: %w", b, err)
	}
	var out Outputs
	if out.Launch, err = b.readLaunch(dir); err != nil {
		return Outputs{}, err
	}
	if out.Unmet, err = b.readUnmet(dir, plan); err != nil {
		return Outputs{}, err
	}
	if _, err := document(b, dir, "store.toml", spec.ReadStoreTOML); err != nil {
		return Outputs{}, err
	}
	for _, e := range entries {
		if subject, ext, ok := cutLast(e.Name(), sbomMark); ok && !e.IsDir() {
			s, err := b.checkSBOM(SBOM{File: e.Name(), Subject: subject, Ext: ext}, e)
			if err != nil {
				return Outputs{}, err
			}
			out.SBOMs = append(out.SBOMs, s)
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if !ok || e.IsDir() || name == "launch" || name == "build" || name == "store" {
			continue
		}
		l, err := b.readLayer(dir, name)
		if err != nil {
			return Outputs{}, err
		}
		out.Layers = append(out.Layers, l)
	}
	// File order is that of "<layer>.toml", where "a-b.toml" sorts before "a.toml".
	slices.SortFunc(out.Layers, func(x, y Layer) int { return strings.Compare(x.Name, y.Name) })
	return out, nil
}

// document reads and decodes one file; the zero value if it does not exist.
func document[T any](b Buildpack, dir layer.Stack, file string, decode func([]byte, string) (T, error)) (T, error) {
	var none T
	body, err := dir.ReadFile(file, spec.MaxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("%s of %s: %w", file, b, err)
	}
	v, err := decode(body, filepath.Join(dir.Upper, file))
	if err != nil {
		return none, fmt.Errorf("%s: %w", b, err) // err names the file
	}
	return v, nil
}

func (b Buildpack) readLaunch(dir layer.Stack) (spec.LaunchTOML, error) {
	return document(b, dir, "launch.toml", func(body []byte, name string) (spec.LaunchTOML, error) {
		return spec.ReadLaunchTOML(body, name, b.API())
	})
}

func (b Buildpack) readUnmet(dir layer.Stack, plan spec.BuildpackPlan) ([]string, error) {
	build, err := document(b, dir, "build.toml", spec.ReadBuildTOML)
	if err != nil {
		return nil, err
	}
	var unmet []string
	for _, u := range build.Unmet {
		if !slices.ContainsFunc(plan.Entries, func(r spec.Require) bool { return r.Name == u.Name }) {
			return nil, fmt.Errorf("build.toml of %s: unmet %q is not in the plan that it was given", b, u.Name)
		}
		unmet = append(unmet, u.Name)
	}
	return unmet, nil
}

func (b Buildpack) readLayer(dir layer.Stack, name string) (Layer, error) {
	if err := spec.ValidateLayerName(name); err != nil {
		return Layer{}, fmt.Errorf("layers of %s: %w", b, err)
	}
	doc, err := document(b, dir, name+".toml", spec.ReadLayerTOML)
	if err != nil {
		return Layer{}, err
	}
	_, err = dir.Lstat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Layer{}, fmt.Errorf("layer %s of %s: %w", name, b, err)
	}
	return Layer{Name: name, Types: doc.Types, Dir: err == nil}, nil
}

// checkSBOM holds an SBOM against the rules: a known extension whose media
// type the buildpack declared, in a regular file.
func (b Buildpack) checkSBOM(s SBOM, e fs.DirEntry) (SBOM, error) {
	media, ok := sbomTypes[s.Ext]
	if !ok {
		return s, fmt.Errorf("SBOM %s of %s: unknown extension %q", s.File, b, s.Ext)
	}
	declared := slices.ContainsFunc(b.Info().SBOMFormats, func(f string) bool {
		f, _, _ = strings.Cut(f, ";") // a version parameter may follow
		return strings.TrimSpace(f) == media
	})
	if !declared {
		err := fmt.Errorf("SBOM %s of %s: its buildpack.toml does not declare %s", s.File, b, media)
		return s, spec.WithHint(err, "add %q to sbom-formats", media)
	}
	if !e.Type().IsRegular() {
		return s, fmt.Errorf("SBOM %s of %s: not a regular file", s.File, b)
	}
	return s, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i <= 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
