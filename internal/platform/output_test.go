package platform

import (
	"context"
	"errors"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
)

// shelf is a place that has before until something is written, and after then.
type shelf struct {
	before, after v1.Image
	written       bool
}

func (s *shelf) Image(context.Context, string) (v1.Image, error) {
	if s.written {
		return s.after, nil
	}
	if s.before == nil {
		return nil, image.ErrNotFound
	}
	return s.before, nil
}

func (s *shelf) Write(context.Context, string, v1.Image) error {
	s.written = true
	return nil
}

// What came of a write is read back and validated; only blobs that the place
// had before, and keeps, are not read again.
func TestDeliverValidates(t *testing.T) {
	base := imagetest.Random(t, 2)
	body := imagetest.Tar(t, 1000)
	img := imagetest.With(t, base, imagetest.Layer(t, body))
	damaged := imagetest.With(t, base, imagetest.Broken{Tar: body, After: 100})
	if imagetest.ID(t, damaged) != imagetest.ID(t, img) {
		t.Fatal("the damaged image has another ID")
	}
	for _, tc := range []struct {
		name  string
		kind  DestinationKind
		place *shelf
		is    error // nil means that it goes well
	}{
		{"whole", ToLayout, &shelf{after: img}, nil},
		{"another image", ToLayout, &shelf{after: base}, image.ErrInvalid},
		{"damaged", ToLayout, &shelf{after: damaged}, image.ErrInvalid},
		{"damaged beside what was there", ToLayout, &shelf{before: base, after: damaged}, image.ErrInvalid},
		{"known from before", ToLayout, &shelf{before: img, after: damaged}, nil},
		{"an archive keeps nothing", ToOCIArchive, &shelf{before: img, after: damaged}, image.ErrInvalid},
		{"an archive keeps nothing", ToDockerArchive, &shelf{before: img, after: damaged}, image.ErrInvalid},
	} {
		t.Run(string(tc.kind)+" "+tc.name, func(t *testing.T) {
			o := newOutput(tc.place, Destination{Kind: tc.kind, Path: "x"})
			err := o.deliver(t.Context(), &destinations{}, "app", img)
			if !errors.Is(err, tc.is) {
				t.Errorf("error %v, want %v", err, tc.is)
			}
		})
	}
}
