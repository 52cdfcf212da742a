package store

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/spec"
)

// FuzzRecords: whatever stands in one of the store's own files, what was sealed
// is read back and everything else is damage; no panic, no image, cache or layer
// of what somebody wrote by hand.
func FuzzRecords(f *testing.F) {
	for _, value := range []any{
		cacheRecord{Key: "app", Metadata: "[sbom]\nsha = 'x'\n"},
		cacheRecord{Key: "app", Layers: []v1.Descriptor{{}}},
		map[string]any{"digest": "sha256:../../x", "size": -1},
		nil, 3, "text",
	} {
		b, err := seal(value)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte("[[buildpacks]]\nkey = 'a'\n"))
		f.Add(b[:len(b)-1], []byte("{"))
	}
	f.Add([]byte(`{"sum":"","value":null}`), []byte("a = 1"))
	s, err := Open(f.Context(), f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	const file = "fuzzed"
	f.Fuzz(func(t *testing.T, b, metadata []byte) {
		var v any
		if err := unseal(b, &v); err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%q: %v", b, err)
			}
		} else if again, err := seal(json.RawMessage(mustMarshal(t, b))); err != nil || string(again) != string(b) {
			t.Errorf("%q is believed, and would be sealed as %q (%v)", b, again, err)
		}
		// As the value of a record that is as it was written.
		for _, value := range [][]byte{b, metadata} {
			if !json.Valid(value) {
				continue
			}
			sealed, err := seal(json.RawMessage(value))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.path("caches", file), sealed, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.readCache(file); err == nil {
				t.Errorf("%s is a cache of that name", value)
			}
			var d v1.Descriptor
			if json.Unmarshal(value, &d) == nil && d.Digest.Algorithm == "sha256" && len(d.Digest.Hex) != 64 {
				t.Errorf("digest %+v", d.Digest)
			}
		}
		md, err := decodeMetadata(string(metadata))
		if err != nil {
			return
		}
		label, err := spec.EncodeLabel(md)
		if err != nil {
			return // values that JSON has not
		}
		if back, err := spec.DecodeCacheMetadata(label); err != nil || len(back.Buildpacks) != len(md.Buildpacks) || !reflect.DeepEqual(back.SBOM, md.SBOM) {
			t.Errorf("%s reads back as %+v (%v)", label, back, err)
		}
	})
}

// mustMarshal is the value in a sealed document.
func mustMarshal(t *testing.T, b []byte) []byte {
	t.Helper()
	var box sealed
	if err := json.Unmarshal(b, &box); err != nil {
		t.Fatal(err)
	}
	return box.Value
}
