package registry

import (
	"context"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Likely returns l with the word that the repository of ref may have it, too:
// when it is pushed to another repository of that registry, the registry is
// asked to link it before it is sent. A ref that cannot be read is no word.
func (r *Registry) Likely(ref string, l v1.Layer) v1.Layer {
	parsed, err := r.parse(ref)
	if err != nil {
		return l
	}
	return &likely{l, parsed.Context()}
}

type likely struct {
	v1.Layer
	repo name.Repository
}

// Unwrap returns the layer that was given to Likely.
func (l *likely) Unwrap() v1.Layer { return l.Layer }

// home is the repository that has a layer, or may have; others wrap it, when
// its media type has to change for example.
func home(l v1.Layer) (name.Repository, bool) {
	for {
		switch t := l.(type) {
		case *layer:
			return t.img.c.repo, true
		case *likely:
			return t.repo, true
		case interface{ Unwrap() v1.Layer }:
			l = t.Unwrap()
		default:
			return name.Repository{}, false
		}
	}
}

// isAt says whether a layer was read from that repository, so that it is there.
func isAt(l v1.Layer, repo name.Repository) bool {
	for {
		switch t := l.(type) {
		case *layer:
			return t.img.c.repo.Name() == repo.Name()
		case interface{ Unwrap() v1.Layer }:
			l = t.Unwrap()
		default:
			return false
		}
	}
}

// Delete removes the manifest that ref, a digest reference, names. Tags that
// point to it go with it. Many registries do not allow it.
func (r *Registry) Delete(ctx context.Context, ref string) error {
	parsed, err := r.parse(ref)
	if err != nil {
		return err
	}
	c := r.client(ref, parsed.Context(), transport.DeleteScope)
	resp, err := c.do(ctx, http.MethodDelete, "manifests/"+parsed.Identifier(), nil, http.StatusAccepted, http.StatusOK, http.StatusNoContent)
	if err != nil {
		return c.fail(deleting, ref, err)
	}
	drain(resp.Body)
	return nil
}
