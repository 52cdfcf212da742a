package dockerfile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
)

func thisPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// origin is a tree that instructions take files from.
type origin struct {
	// take writes files of it as writeSources does.
	take func(ctx context.Context, w io.Writer, s Sources) error
	// layers is what the tree is made of; of the build context only its bytes tell.
	layers []v1.Hash
	owned  bool
}

// origin finds what an instruction names as the place that it takes files
// from: "" is the build context.
func (s *stage) origin(ctx context.Context, from string) (origin, error) {
	if from == "" {
		return s.contextOrigin()
	}
	name, err := s.f.expander(s.global)(from)
	if err != nil {
		return origin{}, err
	}
	layers, err := s.layersOf(ctx, name)
	if err != nil {
		return origin{}, err
	}
	ids, err := diffIDs(layers)
	return origin{layers: ids, owned: true, take: func(ctx context.Context, w io.Writer, src Sources) (err error) {
		r, err := s.m.Root(ctx, layers)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return r.Inside(ctx, Op{Take: &src}, nil, w)
	}}, err
}

func (s *stage) contextOrigin() (origin, error) {
	if s.o.Context.Upper == "" && len(s.o.Context.Lowers) == 0 {
		return origin{}, errors.New("there is no build context to take files from")
	}
	return origin{take: func(ctx context.Context, w io.Writer, src Sources) error {
		return writeSources(ctx, w, s.o.Context, s.ignore, src)
	}}, nil
}

// layersOf are the layers of an earlier stage, by name or number, or of an image.
func (s *stage) layersOf(ctx context.Context, name string) ([]v1.Layer, error) {
	if i, ok := s.f.find(name, s.index()); ok {
		other, err := s.stage(ctx, i)
		if err != nil {
			return nil, err
		}
		return other.layers, nil
	}
	if name == scratchImage {
		return nil, nil
	}
	img := s.o.Images[name]
	if img == nil {
		return nil, fmt.Errorf("no earlier stage and no image %s: %w", name, image.ErrNotFound)
	}
	return img.Layers()
}

// index is the stage's number.
func (s *stage) index() int {
	for i := range s.f.Stages {
		if s.f.Stages[i].Line == s.Line {
			return i
		}
	}
	return 0
}

// part is a set of sources, and the digest of all that they depend on.
type part struct {
	digest string
	write  func(ctx context.Context, w io.Writer) error
	fixed  bool // digest is the one of the bytes that write writes
	unpack bool
}

// part names the sources src of o. Those of the build context are read once
// for it; what is written later must be the same.
func (o origin) part(ctx context.Context, src Sources) (part, error) {
	src.Owned = o.owned
	p := part{write: func(ctx context.Context, w io.Writer) error { return o.take(ctx, w, src) }}
	hash := sha256.New()
	if !o.owned {
		p.fixed = true
		if err := o.take(ctx, hash, src); err != nil {
			return p, err
		}
	} else if err := json.NewEncoder(hash).Encode(struct {
		Layers  []v1.Hash
		Sources Sources
	}{o.layers, src}); err != nil {
		return p, err
	}
	p.digest = hex.EncodeToString(hash.Sum(nil))
	return p, nil
}

// feed has the part unpacked in a root. When it returns, what wrote the part has
// ended too.
func (p part) feed(ctx context.Context, r Root, op Put) error {
	op.Unpack = p.unpack
	pr, pipe := io.Pipe()
	writing, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe.CloseWithError(p.write(writing, pipe))
	}()
	in := &verified{r: pr, hash: sha256.New()}
	err := r.Inside(ctx, Op{Put: &op}, in, nil)
	stop()
	pr.Close()
	<-done
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err != nil && !errors.Is(in.err, io.EOF) {
		return in.err
	}
	if err == nil && p.fixed && hex.EncodeToString(in.hash.Sum(nil)) != p.digest {
		return fmt.Errorf("the build context %w", layer.ErrChanged)
	}
	return err
}
