package image

import (
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Pinner is what a Source may also offer: a reference that means img for ever,
// where ref may mean another image tomorrow.
type Pinner interface {
	Pin(ref string, img v1.Image) (string, error)
}

// Pin is what source has for ref, which means img now: what a Pinner says, else
// DigestReference.
func Pin(source Source, ref string, img v1.Image) (string, error) {
	if p, ok := source.(Pinner); ok {
		return p.Pin(ref, img)
	}
	return DigestReference(ref, img)
}

// DigestReference is ref's repository with img's digest.
func DigestReference(ref string, img v1.Image) (string, error) {
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return ref + "@" + digest.String(), nil // a name that is none of a registry
	}
	return parsed.Context().Digest(digest.String()).Name(), nil
}
