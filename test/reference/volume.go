package reference

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// CacheMetadata is what a cache says of itself, in the reference's words.
type CacheMetadata struct {
	SBOM       SHA         `json:"sbom"`
	Buildpacks []Buildpack `json:"buildpacks"`
}

// SHA is a layer.
type SHA struct {
	SHA string `json:"sha"`
}

// Buildpack is what a label has of one.
type Buildpack struct {
	Key     string           `json:"key"`
	Version string           `json:"version"`
	Layers  map[string]Layer `json:"layers"`
	Store   *Store           `json:"store,omitempty"`
}

// Layer is what a label has of a buildpack's layer.
type Layer struct {
	SHA    string         `json:"sha"`
	Data   map[string]any `json:"data"`
	Build  bool           `json:"build"`
	Launch bool           `json:"launch"`
	Cache  bool           `json:"cache"`
}

// Store is store.toml in a label.
type Store struct {
	Metadata map[string]any `json:"metadata"`
}

// IDs are the diffIDs that the metadata speaks of.
func (m CacheMetadata) IDs() (ids []string) {
	for _, b := range m.Buildpacks {
		for _, name := range slices.Sorted(maps.Keys(b.Layers)) {
			ids = append(ids, b.Layers[name].SHA)
		}
	}
	if m.SBOM.SHA != "" {
		ids = append(ids, m.SBOM.SHA)
	}
	return ids
}

// String is the metadata as JSON, without buildpacks that have no layer in the
// cache: whether they are named nobody has written down.
func (m CacheMetadata) String() string {
	m.Buildpacks = slices.DeleteFunc(slices.Clone(m.Buildpacks), func(b Buildpack) bool { return len(b.Layers) == 0 })
	b, err := json.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Volume is what the reference does with the directory of a volume cache
// (requirements 5.8): it knows three names, makes the next cache of links,
// renames twice, and locks nothing.
type Volume struct{ Dir string }

// Path is a path in the directory.
func (v Volume) Path(elem ...string) string {
	return filepath.Join(append([]string{v.Dir}, elem...)...)
}

const cacheMetadata = "io.buildpacks.lifecycle.cache.metadata"

// Open is how a lifecycle begins.
func (v Volume) Open(t testing.TB) {
	t.Helper()
	err := errors.Join(os.RemoveAll(v.Path("staging")), os.RemoveAll(v.Path("committed-backup")),
		os.MkdirAll(v.Path("staging"), 0o777), os.MkdirAll(v.Path("committed"), 0o777))
	if err != nil {
		t.Fatal(err)
	}
}

// Load reads everything strictly.
func (v Volume) Load(t testing.TB) CacheMetadata {
	t.Helper()
	v.Open(t)
	text, err := os.ReadFile(v.Path("committed", cacheMetadata))
	if err != nil {
		t.Fatal(err)
	}
	md := readCacheMetadata(t, string(text))
	distinct := map[string]bool{}
	for _, id := range md.IDs() {
		distinct[id] = true
		body, err := os.ReadFile(v.Path("committed", id+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(body); id != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("%s has other bytes", id)
		}
	}
	entries, err := os.ReadDir(v.Path("committed"))
	if err != nil || len(entries) != len(distinct)+1 {
		t.Errorf("committed/ has %d entries for %d layers %v", len(entries), len(distinct), err)
	}
	return md
}

func readCacheMetadata(t testing.TB, text string) (md CacheMetadata) {
	t.Helper()
	strict(t, text, &md)
	if !strings.HasPrefix(text, `{"sbom":{"sha":"`) || strings.Contains(text, "\n") {
		t.Errorf("not the shared form: %s", text)
	}
	return md
}

// strict reads JSON of which every key is known.
func strict(t testing.TB, text string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// Save makes a cache of the layers, by diffID, that are there or given.
func (v Volume) Save(t testing.TB, metadata []byte, ids []string, tar func(id string) ([]byte, error)) {
	t.Helper()
	v.Open(t)
	for _, id := range ids {
		if os.Link(v.Path("committed", id+".tar"), v.Path("staging", id+".tar")) == nil {
			continue
		}
		body, err := tar(id)
		if err == nil {
			err = os.WriteFile(v.Path("staging", id+".tar"), body, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.WriteFile(v.Path("staging", cacheMetadata), metadata, 0o666),
		os.Rename(v.Path("committed"), v.Path("committed-backup")), os.Rename(v.Path("staging"), v.Path("committed")),
		os.RemoveAll(v.Path("committed-backup")))
	if err != nil {
		t.Fatal(err)
	}
}
