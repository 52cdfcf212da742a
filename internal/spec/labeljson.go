package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// EncodeLabel writes a label's value: compact JSON, keys in the order of the
// type, map keys sorted, so that the same value always gives the same image.
func EncodeLabel(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("write label: %w", err)
	}
	return string(b), nil
}

// EncodeBuildLabel writes the label io.buildpacks.build.metadata for a version
// of the Platform API: before 0.10 a command is a string; before 0.11 members
// have no api and processes do not name their buildpack.
func EncodeBuildLabel(l BuildLabel, platformAPI string) (string, error) {
	if !Has(platformAPI, PlatformBuildLabelAPI) {
		l.Buildpacks, l.Extensions = withoutAPI(l.Buildpacks), withoutAPI(l.Extensions)
	}
	if Has(platformAPI, PlatformCommandList) {
		return EncodeLabel(l)
	}
	type process struct {
		Type             string   `json:"type"`
		Command          string   `json:"command"`
		Args             []string `json:"args"`
		Direct           bool     `json:"direct"`
		BuildpackID      string   `json:"buildpackID,omitempty"`
		WorkingDirectory string   `json:"working-dir,omitempty"`
	}
	type plain BuildLabel // without MarshalJSON
	old := struct {
		Processes []process `json:"processes"`
		plain
	}{Processes: []process{}, plain: plain(l.filled())}
	for _, p := range l.Processes {
		p = p.shifted()
		old.Processes = append(old.Processes, process{p.Type, p.Command[0], filled(p.Args), p.Direct, p.BuildpackID, p.WorkingDirectory})
	}
	return EncodeLabel(old)
}

func withoutAPI(members []GroupElement) []GroupElement {
	members = slices.Clone(members)
	for i := range members {
		members[i].API = ""
	}
	return members
}

// filled makes of no list an empty one: readers of labels do not expect null.
func filled[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (l BuildLabel) filled() BuildLabel {
	l.Processes, l.Buildpacks = filled(l.Processes), filled(l.Buildpacks)
	return l
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (l BuildLabel) MarshalJSON() ([]byte, error) {
	type plain BuildLabel
	return json.Marshal(plain(l.filled()))
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (p Process) MarshalJSON() ([]byte, error) {
	type plain Process
	p.Command, p.Args = filled(p.Command), filled(p.Args)
	return json.Marshal(plain(p))
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (m LifecycleMetadata) MarshalJSON() ([]byte, error) {
	type plain LifecycleMetadata
	m.App, m.Buildpacks = filled(m.App), filled(m.Buildpacks)
	return json.Marshal(plain(m))
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (m CacheMetadata) MarshalJSON() ([]byte, error) {
	type plain CacheMetadata
	m.Buildpacks = filled(m.Buildpacks)
	return json.Marshal(plain(m))
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (b BuildpackLayers) MarshalJSON() ([]byte, error) {
	type plain BuildpackLayers
	if b.Layers == nil {
		b.Layers = map[string]LayerMetadata{}
	}
	return json.Marshal(plain(b))
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (l LayerMetadata) MarshalJSON() ([]byte, error) {
	type plain LayerMetadata
	if l.Data == nil {
		l.Data = map[string]any{}
	}
	return json.Marshal(plain(l))
}

// MarshalJSON writes [] and {} where there is nothing, never null.
func (s StoreTOML) MarshalJSON() ([]byte, error) {
	type plain StoreTOML
	if s.Metadata == nil {
		s.Metadata = map[string]any{}
	}
	return json.Marshal(plain(s))
}

// UnmarshalJSON reads a layer's metadata if it is an object. Anything else is
// none, and no reason to throw away all that the label says of other layers.
func (l *LayerMetadata) UnmarshalJSON(b []byte) error {
	type plain LayerMetadata
	raw := struct {
		*plain
		Data any `json:"data"`
	}{plain: (*plain)(l)}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&raw); err != nil {
		return err
	}
	l.Data, _ = raw.Data.(map[string]any)
	return nil
}

// DecodeLifecycleMetadata reads the label io.buildpacks.lifecycle.metadata.
// Whole numbers in what buildpacks remembered stay whole numbers.
func DecodeLifecycleMetadata(s string) (LifecycleMetadata, error) {
	var m LifecycleMetadata
	if err := decodeLabel(s, LifecycleMetadataLabel, &m); err != nil {
		return LifecycleMetadata{}, err
	}
	return m, restoreNumbers(m.Buildpacks)
}

// DecodeCacheMetadata reads the metadata of a cache.
func DecodeCacheMetadata(s string) (CacheMetadata, error) {
	var m CacheMetadata
	if err := decodeLabel(s, CacheMetadataLabel, &m); err != nil {
		return CacheMetadata{}, err
	}
	return m, restoreNumbers(m.Buildpacks)
}

// DecodeBuildLabel reads the label io.buildpacks.build.metadata of any version
// of the Platform API.
func DecodeBuildLabel(s string) (BuildLabel, error) {
	type process struct {
		Process
		Command any `json:"command"`
	}
	var raw struct {
		BuildLabel
		Processes []process `json:"processes"`
	}
	if err := decodeLabel(s, BuildMetadataLabel, &raw); err != nil {
		return BuildLabel{}, err
	}
	l := raw.BuildLabel
	l.Processes = nil
	for i, r := range raw.Processes {
		command, _, err := document{name: "label " + BuildMetadataLabel}.command(r.Command, "processes", i, "command")
		if err != nil {
			return BuildLabel{}, err
		}
		r.Process.Command = command
		l.Processes = append(l.Processes, r.Process)
	}
	return l, nil
}

func decodeLabel(s, label string, v any) error {
	if len(s) > MaxDocument {
		return fmt.Errorf("label %s: %d bytes is more than the %d that a document may have", label, len(s), MaxDocument)
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("label %s: %w", label, err)
	}
	if d.More() {
		return fmt.Errorf("label %s: more than one JSON value", label)
	}
	return nil
}

// restoreNumbers turns the numbers of decoded JSON into those of TOML, and
// leaves out null, which TOML does not have.
func restoreNumbers(buildpacks []BuildpackLayers) error {
	for i := range buildpacks {
		for name, l := range buildpacks[i].Layers {
			l.Data, _ = plainValue(l.Data).(map[string]any)
			buildpacks[i].Layers[name] = l
		}
		if store := buildpacks[i].Store; store != nil {
			store.Metadata, _ = plainValue(store.Metadata).(map[string]any)
		}
	}
	return nil
}

func plainValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, element := range v {
			if element = plainValue(element); element == nil {
				delete(v, key)
				continue
			}
			v[key] = element
		}
	case []any:
		for i := range v {
			v[i] = plainValue(v[i])
		}
		return slices.DeleteFunc(v, func(e any) bool { return e == nil })
	case json.Number:
		if n, err := v.Int64(); err == nil && v != "-0" {
			return n
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
		return v.String()
	}
	return v
}

// storable checks that metadata can go into a label: JSON has no infinity.
func (d document) storable(v any, path ...any) error {
	path = path[:len(path):len(path)]
	switch v := v.(type) {
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) {
			return d.fault("cannot be kept: it must be a finite number", path...)
		}
	case time.Time:
		if y := v.Year(); y < 0 || y > 9999 {
			return d.fault("cannot be kept: its year must be between 0 and 9999", path...)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if err := d.storable(v[key], append(path, key)...); err != nil {
				return err
			}
		}
	case []any:
		for i, element := range v {
			if err := d.storable(element, append(path, i)...); err != nil {
				return err
			}
		}
	}
	return nil
}
