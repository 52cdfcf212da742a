package reference

import (
	"bytes"
	"os"
	"testing"

	"github.com/BurntSushi/toml"
)

// The documents by which phases hand over, with the keys that the reference has
// for them and no others.
type (
	// Group is group.toml.
	Group struct {
		Group           []Member `toml:"group"`
		GroupExtensions []Member `toml:"group-extensions,omitempty"`
	}
	// Member is a buildpack or extension that takes part.
	Member struct {
		ID       string `toml:"id" json:"id"`
		Version  string `toml:"version" json:"version"`
		API      string `toml:"api,omitempty" json:"-"`
		Homepage string `toml:"homepage,omitempty" json:"homepage,omitempty"`
	}
	// Plan is plan.toml.
	Plan struct {
		Entries []struct {
			Providers []struct {
				ID        string `toml:"id"`
				Version   string `toml:"version"`
				Extension bool   `toml:"extension,omitempty"`
			} `toml:"providers"`
			Requires []struct {
				Name     string         `toml:"name"`
				Metadata map[string]any `toml:"metadata,omitempty"`
			} `toml:"requires"`
		} `toml:"entries"`
	}
	// Metadata is <layers>/config/metadata.toml.
	Metadata struct {
		DefaultProcess string    `toml:"buildpack-default-process-type,omitempty"`
		Buildpacks     []Member  `toml:"buildpacks"`
		Extensions     []Member  `toml:"extensions,omitempty"`
		Processes      []Process `toml:"processes"`
		Slices         []struct {
			Paths []string `toml:"paths"`
		} `toml:"slices,omitempty"`
		Labels []struct {
			Key   string `toml:"key"`
			Value string `toml:"value"`
		} `toml:"labels,omitempty"`
	}
	// Process is a process type, in metadata.toml and in the label.
	Process struct {
		Type        string   `toml:"type" json:"type"`
		Command     []string `toml:"command" json:"command"`
		Args        []string `toml:"args" json:"args"`
		Direct      bool     `toml:"direct" json:"direct"`
		BuildpackID string   `toml:"buildpack-id" json:"buildpackID"`
		WorkingDir  string   `toml:"working-dir,omitempty" json:"working-dir,omitempty"`
		ExecEnv     []string `toml:"exec-env,omitempty" json:"exec-env,omitempty"`
	}
	// Report is report.toml.
	Report struct {
		Image struct {
			Tags         []string `toml:"tags"`
			ImageID      string   `toml:"image-id,omitempty"`
			Digest       string   `toml:"digest,omitempty"`
			ManifestSize int64    `toml:"manifest-size,omitzero"`
		} `toml:"image"`
	}
	// Analyzed is analyzed.toml: see Label.Table for what is in Metadata.
	Analyzed struct {
		Image    *Reference     `toml:"image,omitempty"`
		Metadata map[string]any `toml:"metadata,omitempty"`
		RunImage *RunImage      `toml:"run-image,omitempty"`
	}
	// Reference is an image.
	Reference struct {
		Reference string `toml:"reference"`
	}
	// RunImage is the run image in analyzed.toml.
	RunImage struct {
		Reference string  `toml:"reference"`
		Image     string  `toml:"image,omitempty"`
		Extend    bool    `toml:"extend,omitempty"`
		Target    *Target `toml:"target,omitempty"`
	}
	// Target is what a run image is for.
	Target struct {
		ID          string `toml:"id,omitempty"`
		OS          string `toml:"os"`
		Arch        string `toml:"arch"`
		ArchVariant string `toml:"arch-variant,omitempty"`
		Distro      *struct {
			Name    string `toml:"name"`
			Version string `toml:"version"`
		} `toml:"distro,omitempty"`
	}
	// LayerTOML is <layer>.toml.
	LayerTOML struct {
		Types struct {
			Launch bool `toml:"launch"`
			Build  bool `toml:"build"`
			Cache  bool `toml:"cache"`
		} `toml:"types"`
		Metadata map[string]any `toml:"metadata"`
	}
)

// Table is the label as analyzed.toml has it, where the metadata of a layer is
// "metadata" and not "data".
func (l Label) Table() map[string]any {
	sha := func(s SHA) any { return map[string]any{"sha": s.SHA} }
	var app, buildpacks []any
	for _, s := range l.App {
		app = append(app, sha(s))
	}
	for _, b := range l.Buildpacks {
		layers := map[string]any{}
		for name, l := range b.Layers {
			layers[name] = map[string]any{"sha": l.SHA, "metadata": l.Data, "build": l.Build, "launch": l.Launch, "cache": l.Cache}
		}
		table := map[string]any{"key": b.Key, "version": b.Version, "layers": layers}
		if b.Store != nil {
			table["store"] = map[string]any{"metadata": b.Store.Metadata}
		}
		buildpacks = append(buildpacks, table)
	}
	run := map[string]any{"top-layer": l.RunImage.TopLayer, "reference": l.RunImage.Reference, "image": l.RunImage.Image}
	all := map[string]any{
		"app": app, "buildpacks": buildpacks, "config": sha(l.Config), "launcher": sha(l.Launcher), "process-types": sha(l.ProcessTypes),
		"run-image": run, "stack": map[string]any{"run-image": map[string]any{"image": l.RunImage.Image}},
	}
	if l.SBOM != nil {
		all["sbom"] = sha(*l.SBOM)
	}
	return all
}

// TOML is a document as the reference writes it.
func TOML(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Read reads a document; unknown are the keys of it that the reference does not
// have.
func Read[T any](t testing.TB, file string) (v T, unknown []string) {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	md, err := toml.Decode(string(body), &v)
	if err != nil {
		t.Fatalf("%s: %v\n%s", file, err, body)
	}
	for _, key := range md.Undecoded() {
		unknown = append(unknown, key.String())
	}
	return v, unknown
}

// Same reads a document strictly and makes sure that the reference would have
// written its bytes.
func Same[T any](t testing.TB, file string) T {
	t.Helper()
	v, unknown := Read[T](t, file)
	if len(unknown) > 0 {
		t.Errorf("%s has the keys %q, which the reference has not", file, unknown)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := TOML(t, v); !bytes.Equal(want, got) {
		t.Errorf("%s: the reference writes\n%s\nnot\n%s", file, want, got)
	}
	return v
}
