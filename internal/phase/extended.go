package phase

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// extensionParts are the layers that image extensions put on the run image:
// those of the extended image that are above it (requirements 4.3). They are
// written anew, so that they do not depend on when they were made.
func (a *assembler) extensionParts(_ context.Context, _ *spec.LifecycleMetadata) ([]*part, error) {
	if a.Extended == nil {
		return nil, nil
	}
	above, err := above(a.Run, a.Extended)
	if err != nil {
		return nil, fmt.Errorf("extended run image: %w", err)
	}
	var parts []*part
	for i, l := range above {
		parts = append(parts, &part{
			name: fmt.Sprintf("extension %d", i+1), history: l.createdBy, unlabelled: true,
			set: func(string) {},
			make: func(ctx context.Context) (v1.Layer, int64, error) {
				return a.normalized(ctx, l.Layer)
			},
		})
	}
	return parts, nil
}

// layerAbove is a layer of an extended image and what its history says of it.
type layerAbove struct {
	v1.Layer
	createdBy string
}

// above lists the layers of extended that are above those of base.
func above(base, extended v1.Image) ([]layerAbove, error) {
	below, err := base.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("run image: %w", err)
	}
	config, err := extended.ConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := extended.Layers()
	if err != nil {
		return nil, err
	}
	n := len(below.RootFS.DiffIDs)
	if n > len(layers) || len(layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("it has %d layers, and the run image already %d: it extends another image", len(layers), n)
	}
	for i, diffID := range below.RootFS.DiffIDs {
		if config.RootFS.DiffIDs[i] != diffID {
			return nil, fmt.Errorf("its layer %d is %s, that of the run image is %s: it extends another image", i+1, config.RootFS.DiffIDs[i], diffID)
		}
	}
	if config.OS != below.OS || config.Architecture != below.Architecture {
		return nil, fmt.Errorf("it is for %s/%s, the run image for %s/%s", config.OS, config.Architecture, below.OS, below.Architecture)
	}
	said := history(config.History, v1.Time{}, true)
	var list []layerAbove
	for i, l := range layers[n:] {
		one := layerAbove{Layer: l}
		if len(said) == len(layers) {
			one.createdBy = said[n+i].CreatedBy
		}
		list = append(list, one)
	}
	return list, nil
}

// normalized keeps a layer that somebody else wrote in the form that ours have.
func (a *assembler) normalized(ctx context.Context, l v1.Layer) (v1.Layer, int64, error) {
	want, err := l.DiffID()
	if err != nil {
		return nil, 0, err
	}
	var read int64
	made, err := a.keep.PutLayer(ctx, func(w io.Writer) error {
		rc, err := l.Uncompressed()
		if err != nil {
			return err
		}
		defer rc.Close()
		sum := sha256.New()
		counted := &countingWriter{w: sum}
		if err := layer.Normalize(ctx, w, io.TeeReader(rc, counted), layer.Limits{}); err != nil {
			return err
		}
		if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != want.String() {
			return fmt.Errorf("it is damaged: its bytes have digest %s, not %s", got, want)
		}
		read = counted.n
		return nil
	})
	return made, read, err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// extendedConfig is the config of the extended image, nil if there is none.
func (a *assembler) extendedConfig() (*v1.ConfigFile, error) {
	if a.Extended == nil {
		return nil, nil
	}
	config, err := a.Extended.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("extended run image: %w", err)
	}
	return config.DeepCopy(), nil
}

// CreatedByExtension is what the history of an image says of a layer that a
// Dockerfile's instruction made: the extender writes it, the exporter keeps it.
func CreatedByExtension(instruction, extension string) string {
	return fmt.Sprintf("Layer: '%s', Created by extension: %s", strings.TrimSpace(instruction), extension)
}
