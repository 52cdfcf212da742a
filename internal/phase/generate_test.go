package phase

import (
	"fmt"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// The run image that Dockerfiles choose is the one that applying them one after
// the other, each as the specification says, would end with.
func TestSelectRunImageEqualsModel(t *testing.T) {
	conform.Covers(t, 70, 71)
	rapid.Check(t, func(r *rapid.T) {
		before := spec.Analyzed{RunImage: &spec.RunImage{Image: "before", Reference: "before@sha256:1", Target: &spec.Target{OS: "linux"}}}
		var list []runDockerfile
		image, extended, effective := "before", false, 0 // what the model arrives at; effective is the first that counts
		for i := range rapid.IntRange(0, 6).Draw(r, "extensions") {
			f := runDockerfile{extension: fmt.Sprint(i), Checked: dockerfile.Checked{
				From: rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(r, "FROM"), Extends: rapid.Bool().Draw(r, "instructions")}}
			list = append(list, f)
			if f.From != "" {
				image, extended, effective = f.From, f.Extends, i
			} else {
				extended = true
			}
		}
		got, ignored, err := selectRunImage(before, list)
		if err != nil {
			r.Fatal(err)
		}
		want := spec.RunImage{Image: image, Reference: image, Extend: extended}
		if image == "before" {
			want = *before.RunImage
			want.Extend = extended
		}
		if diff := cmp.Diff(&want, got.RunImage); diff != "" || ignored != effective {
			r.Fatalf("%d ignored, want %d: %s", ignored, effective, diff)
		}
		if before.RunImage.Extend || before.RunImage.Image != "before" {
			r.Fatal("what was handed in is changed")
		}
	})
}

// Whatever a Dockerfile and a detection come to, the documents that say so are
// read again as they were meant.
func FuzzGeneratedDocuments(f *testing.F) {
	f.Add([]byte("FROM example.com/run:1\nRUN true\n"), "acme/curl", "1.2.3", "https://example.com")
	f.Add([]byte("ARG base_image\nFROM ${base_image}\n"), "a", "1", "it's \"quoted\"\n\\")
	f.Add([]byte("FROM example.com/run@sha256:1111111111111111111111111111111111111111111111111111111111111111\n"), "a", "1", "\x00\u2028é")
	f.Fuzz(func(t *testing.T, body []byte, id, version, homepage string) {
		checked, err := dockerfile.Check(body, "run.Dockerfile", dockerfile.Run, nil)
		if err != nil || spec.ValidateID(id) != nil || spec.ValidatePathVersion(version) != nil || !utf8.ValidString(version+homepage) {
			return // they come from documents, which have no other text
		}
		before := spec.Analyzed{RunImage: &spec.RunImage{Image: "before", Reference: "before@sha256:1"}, BuildImage: &spec.BuildImage{Extend: true}}
		a, _, err := selectRunImage(before, []runDockerfile{{extension: id, Checked: checked}})
		if err != nil {
			t.Fatal(err)
		}
		again(t, a, spec.ReadAnalyzed)
		member := spec.GroupElement{ID: id, Version: version, API: "0.12", Homepage: homepage, Extension: true}
		again(t, spec.Group{GroupExtensions: []spec.GroupElement{member}}, spec.ReadGroup)
		again(t, spec.Plan{Entries: []spec.PlanEntry{{
			Providers: []spec.PlanProvider{{ID: id, Version: version, Extension: true}},
			Requires:  []spec.Require{{Name: homepage, Metadata: map[string]any{homepage: homepage}}},
		}}}, spec.ReadPlan)
	})
}

// again makes sure that v is what comes of writing it and reading that. Text
// that no TOML document can hold cannot be written.
func again[T any](t *testing.T, v T, read func([]byte, string) (T, error)) {
	t.Helper()
	b, err := encode.TOML(v)
	if err != nil {
		return
	}
	got, err := read(b, "document")
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if diff := cmp.Diff(v, got); diff != "" {
		t.Fatalf("%s\n%s", diff, b)
	}
}
