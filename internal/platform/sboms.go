package platform

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
)

// memoSBOM says of an SBOM layer that it was made here.
const memoSBOM = "sbom"

// placeSBOM is a phase.PlaceSBOM. A layer that nobody touches goes into the next
// image as it is, and a previous image can come from anywhere: so only layers
// that were made here are placed.
func (b *build) placeSBOM(ctx context.Context, rel string, l v1.Layer) (layer.Stack, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return layer.Stack{}, err
	}
	if _, ours := b.Store.Recall(memoSBOM, diffID.String()); !ours {
		return layer.Stack{}, fmt.Errorf("SBOM layer %s was not made here", diffID)
	}
	if err := b.placeLayer(ctx, rel, l); err != nil {
		return layer.Stack{}, err
	}
	return layer.Stack{Lowers: []string{b.restored.dirs[rel]}}, nil
}

// keepSBOMs remembers which SBOM layers were made here.
func (b *build) keepSBOMs(ctx context.Context, made map[string]string) error {
	var errs []error
	for _, rel := range []string{"sbom/cache", "sbom/launch"} {
		diffID, ok := made[rel]
		if !ok {
			continue
		}
		if _, known := b.Store.Recall(memoSBOM, diffID); !known {
			errs = append(errs, b.Store.Remember(ctx, memoSBOM, diffID, nil))
		}
	}
	return errors.Join(errs...)
}
