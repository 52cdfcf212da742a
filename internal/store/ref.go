package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Ref is a name and the image that it means now.
type Ref struct {
	Name           string          `json:"name"`           // as Name writes it
	ManifestDigest string          `json:"manifestDigest"` // sha256:...
	ManifestSize   int64           `json:"manifestSize"`   // bytes
	MediaType      types.MediaType `json:"mediaType"`      // of the manifest
	ImageID        string          `json:"imageID"`        // sha256:..., the config's digest
	Size           int64           `json:"size"`           // bytes of manifest, config and layers as they are stored
	Created        time.Time       `json:"created"`        // by the image's own config
	Updated        time.Time       `json:"updated"`        // when the name was last written
}

// component is a part of a repository's name, as registries have it. The parser
// lets more through.
var component = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)

// Name is the form in which the store keeps a reference, the one that docker
// shows: hello:latest for hello, docker.io/hello or index.docker.io/library/hello:latest.
func Name(ref string) (string, error) {
	invalid := func(format string, args ...any) error {
		err := fmt.Errorf("image name %q: "+format, append([]any{ref}, args...)...)
		return spec.Exit(spec.ExitInvalidArgs, spec.WithHint(err, "a name looks like my-app, my-app:1.2 or registry.example.com/team/my-app"))
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return "", invalid("not a valid reference")
	}
	for _, part := range strings.Split(r.Context().RepositoryStr(), "/") {
		if !component.MatchString(part) {
			return "", invalid("%q is not a part of a name", part)
		}
	}
	if d, ok := r.(name.Digest); ok {
		if _, err := hexOf(d.DigestStr()); err != nil {
			return "", invalid("%w", err)
		}
	}
	sep := ":"
	if _, ok := r.(name.Digest); ok {
		sep = "@"
	}
	for _, prefix := range []string{"index.docker.io/library/", "index.docker.io/"} {
		short, ok := strings.CutPrefix(r.Context().Name(), prefix)
		if !ok {
			continue
		}
		short += sep + r.Identifier()
		// Short only if it still means the same: a.b/c would name a host.
		if again, err := name.ParseReference(short); err == nil && again.Name() == r.Name() {
			return short, nil
		}
	}
	return r.Name(), nil
}

// maxFileName keeps names of ref files below the 255 bytes of most file systems.
const maxFileName = 200

// fileName makes a file name of any string, one to one.
func fileName(s string) string {
	// Upper-case escapes of lower-case names stay apart from everything else;
	// '.' first would hide the file.
	e := strings.ReplaceAll(url.PathEscape(s), ":", "%3A")
	if strings.HasPrefix(e, ".") {
		e = "%2E" + e[1:]
	}
	if len(e) <= maxFileName {
		return e
	}
	return e[:maxFileName-65] + "+" + digestOf([]byte(s))[len("sha256:"):]
}

func (s *Store) refPath(name string) string { return s.path("refs", fileName(name)+".json") }

// staleMark in refs says that index.json may be behind. It is made before refs
// change and removed after index.json has changed, so that whoever comes after
// a crash knows.
const staleMark = ".stale"

// Refs lists all names, sorted. It returns what it could read even with an error.
func (s *Store) Refs(ctx context.Context) ([]Ref, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.path("refs"))
	if err != nil {
		return nil, fmt.Errorf("list images of store: %w", err)
	}
	var refs []Ref
	var errs refErrors
	for _, e := range entries {
		if e.Name() == staleMark {
			continue
		}
		r, err := s.readRefFile(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted since
		case err != nil:
			errs = append(errs, err)
		default:
			refs = append(refs, r)
		}
	}
	slices.SortFunc(refs, func(a, b Ref) int { return cmp.Compare(a.Name, b.Name) })
	if len(errs) > 0 {
		return refs, fmt.Errorf("list images of store: %w", errs)
	}
	return refs, nil
}

// refErrors are the refs that could not be read.
type refErrors []error

func (e refErrors) Error() string   { return errors.Join(e...).Error() }
func (e refErrors) Unwrap() []error { return e }

// readableRefs lists the refs without those that are damaged, of which Check
// and GC speak. One that merely could not be read now is an error: to leave it
// out would be to lose it.
func (s *Store) readableRefs(ctx context.Context) ([]Ref, error) {
	refs, err := s.Refs(ctx)
	if errs, ok := errors.AsType[refErrors](err); ok {
		for _, e := range errs {
			if !errors.Is(e, ErrDamaged) {
				return nil, err
			}
		}
		return refs, nil
	}
	return refs, err
}

func (s *Store) readRefFile(file string) (Ref, error) {
	var r Ref
	if err := readSealed(s.path("refs", file), &r); err != nil {
		return r, err
	}
	if fileName(r.Name)+".json" != file {
		return r, fmt.Errorf("refs/%s: %w: it is of %s", file, ErrDamaged, r.Name)
	}
	_, err := hexOf(r.ManifestDigest)
	if _, err2 := hexOf(r.ImageID); err != nil || err2 != nil {
		return r, fmt.Errorf("refs/%s: %w: %w", file, ErrDamaged, errors.Join(err, err2))
	}
	return r, nil
}

// minPrefix is the fewest hex digits that may stand for an image ID.
const minPrefix = 6

// find looks up what people type: name[:tag], name@digest, an image ID, or the
// beginning of one. It returns all refs of that image if it was found by ID.
func (s *Store) find(ctx context.Context, ref string) ([]Ref, error) {
	if _, err := hexOf(ref); err == nil {
		return s.findID(ctx, ref, ref)
	}
	n, err := Name(ref)
	if err != nil {
		return nil, err
	}
	r, err := s.readRefFile(fileName(n) + ".json")
	if err == nil {
		return []Ref{r}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, spec.WithHint(fmt.Errorf("%s: %w", ref, err), "build or pull it again, or remove it: kiln rm %s", ref)
	}
	if repo, digest, ok := strings.Cut(n, "@"); ok {
		return s.findDigest(ctx, ref, repo, digest)
	}
	if len(ref) >= minPrefix && len(ref) <= 64 && isHex(ref) {
		return s.findID(ctx, ref, "sha256:"+ref)
	}
	return nil, fmt.Errorf("%s in store: %w", ref, image.ErrNotFound)
}

// findDigest looks for a tag of repo that has that manifest now.
func (s *Store) findDigest(ctx context.Context, ref, repo, digest string) ([]Ref, error) {
	refs, listErr := s.Refs(ctx)
	for _, r := range refs {
		tagged, err := name.ParseReference(r.Name)
		if err != nil || r.ManifestDigest != digest {
			continue
		}
		if n, err := Name(tagged.Context().Name() + "@" + digest); err == nil && n == repo+"@"+digest {
			return []Ref{r}, nil
		}
	}
	if listErr != nil {
		return nil, listErr
	}
	return nil, fmt.Errorf("%s in store: %w", ref, image.ErrNotFound)
}

func (s *Store) findID(ctx context.Context, ref, prefix string) ([]Ref, error) {
	refs, listErr := s.Refs(ctx)
	var found []Ref
	ids := map[string]bool{}
	for _, r := range refs {
		if strings.HasPrefix(r.ImageID, prefix) || r.ManifestDigest == prefix {
			found = append(found, r)
			ids[r.ImageID] = true
		}
	}
	switch {
	case len(ids) > 1:
		return nil, spec.WithHint(fmt.Errorf("%s in store: it begins %d image IDs", ref, len(ids)), "give more digits")
	case len(ids) == 1:
		return found, nil
	case listErr != nil:
		return nil, listErr
	}
	return nil, fmt.Errorf("%s in store: %w", ref, image.ErrNotFound)
}

// Delete removes a name; given an image ID or the beginning of one, all names
// of that image. What nothing needs any more goes with the next GC. It fails
// with image.ErrNotFound.
func (s *Store) Delete(ctx context.Context, ref string) error {
	l, err := s.lock(ctx, "refs", unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("delete %s: %w", ref, err)
	}
	defer l.Unlock()
	names, err := s.namesOf(ctx, ref)
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	err = s.changeRefs(ctx, func() error {
		for _, n := range names {
			if err := os.Remove(s.refPath(n)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", ref, err)
	}
	return nil
}

func (s *Store) namesOf(ctx context.Context, ref string) ([]string, error) {
	refs, err := s.find(ctx, ref)
	if errors.Is(err, ErrDamaged) {
		// A damaged ref can be deleted by its name, and only so.
		if n, nerr := Name(ref); nerr == nil {
			if _, serr := os.Lstat(s.refPath(n)); serr == nil {
				return []string{n}, nil
			}
		}
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.Name
	}
	return names, nil
}

// setRef makes a name mean an image: from here on the image is acknowledged.
func (s *Store) setRef(ctx context.Context, r Ref) error {
	l, err := s.lock(ctx, "refs", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	b, err := seal(r)
	if err != nil {
		return err
	}
	return s.changeRefs(ctx, func() error { return s.replace(ctx, s.refPath(r.Name), b, true) })
}

// changeRefs frames a change of refs so that index.json follows it, now or
// after a crash. The caller has the refs lock.
func (s *Store) changeRefs(ctx context.Context, change func() error) error {
	mark, err := os.OpenFile(s.path("refs", staleMark), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return s.full(err, 0)
	}
	if err := mark.Close(); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	if err := s.syncDir(s.path("refs")); err != nil {
		return err
	}
	return s.writeIndex(context.WithoutCancel(ctx)) // the change has happened
}

// freshIndex makes index.json again if its last writer died before it could.
func (s *Store) freshIndex(ctx context.Context) error {
	if _, err := os.Lstat(s.path("refs", staleMark)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l, err := s.lock(ctx, "refs", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	return s.writeIndex(ctx)
}

// writeIndex makes index.json from refs. The caller has the refs lock.
func (s *Store) writeIndex(ctx context.Context) error {
	refs, err := s.readableRefs(ctx)
	if err != nil {
		return fmt.Errorf("write index.json: %w", err)
	}
	b, err := index(refs)
	if err != nil {
		return err
	}
	if err := s.replace(ctx, s.path("index.json"), b, true); err != nil {
		return fmt.Errorf("write index.json: %w", err)
	}
	err = os.Remove(s.path("refs", staleMark))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// refName is the annotation by which skopeo and others find an image in a layout.
const refName = "org.opencontainers.image.ref.name"

const emptyIndex = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`

// index is the OCI index of refs. A name with the tag latest is there without
// the tag too, since that is what people type.
func index(refs []Ref) ([]byte, error) {
	im := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for _, r := range refs {
		h, err := v1.NewHash(r.ManifestDigest)
		if err != nil {
			return nil, err
		}
		names := []string{r.Name}
		if short, ok := strings.CutSuffix(r.Name, ":latest"); ok {
			names = append(names, short)
		}
		for _, n := range names {
			im.Manifests = append(im.Manifests, v1.Descriptor{
				MediaType: r.MediaType, Size: r.ManifestSize, Digest: h,
				Annotations: map[string]string{refName: n},
			})
		}
	}
	var b bytes.Buffer
	err := json.NewEncoder(&b).Encode(im)
	return bytes.TrimSpace(b.Bytes()), err
}
