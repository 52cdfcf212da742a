package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"
)

// Write stores img under ref. It asks which blobs the registry has, has it
// link those that another of its repositories has, sends the rest, then the
// manifest by its digest, reads that back, and moves the tag last. So a push
// that fails leaves the tag where it was.
//
// Blobs of an image that was read from the same repository are taken to be
// there, until the registry says of the manifest that they are not.
//
// Layers go as they are: give them compressed if the registry's users should
// not have to fetch them whole.
func (r *Registry) Write(ctx context.Context, ref string, img v1.Image) error {
	parsed, err := r.parse(ref)
	if err != nil {
		return err
	}
	p, err := newPush(ref, parsed, img)
	if err != nil {
		return fmt.Errorf("%s %s: %w", writing, ref, err)
	}
	p.c = r.client(ref, parsed.Context(), transport.PushScope, p.sources()...)
	return p.c.fail(writing, ref, p.run(ctx))
}

// CheckWrite says whether an image could be pushed to ref: it begins an upload
// and takes it back.
func (r *Registry) CheckWrite(ctx context.Context, ref string) error {
	parsed, err := r.parse(ref)
	if err != nil {
		return err
	}
	c := r.client(ref, parsed.Context(), transport.PushScope)
	location, _, err := c.begin(ctx, url.Values{})
	if err != nil {
		return c.fail(writing, ref, err)
	}
	// A registry that cannot cancel forgets it by itself.
	if resp, err := c.do(ctx, http.MethodDelete, location, nil, http.StatusNoContent, http.StatusOK, http.StatusAccepted); err == nil {
		drain(resp.Body)
	}
	return nil
}

// item is one blob to be there.
type item struct {
	desc v1.Descriptor
	open func() (io.ReadCloser, error)
	from name.Repository // where the same registry has it, or the zero value
	here bool            // an image of this repository has it
}

// push is one image on its way.
type push struct {
	c         *client
	ref       string
	tag       string // "" when ref is a digest
	raw       []byte
	mediaType string
	digest    v1.Hash
	items     []item
}

func newPush(ref string, parsed name.Reference, img v1.Image) (*push, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	mt, err := img.MediaType()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	p := &push{ref: ref, raw: raw, mediaType: string(mt), digest: hashOf(raw)}
	switch id := parsed.(type) {
	case name.Tag:
		p.tag = id.TagStr()
	case name.Digest:
		if id.DigestStr() != p.digest.String() {
			return nil, fmt.Errorf("the image has digest %s", p.digest)
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	p.items = append(p.items, item{desc: m.Config, open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(config)), nil
	}})
	seen := map[v1.Hash]bool{m.Config.Digest: true}
	for _, d := range m.Layers {
		if seen[d.Digest] || !d.MediaType.IsDistributable() {
			continue
		}
		seen[d.Digest] = true
		l, err := img.LayerByDigest(d.Digest)
		if err != nil {
			return nil, fmt.Errorf("open layer %s: %w", d.Digest, err)
		}
		it := item{desc: d, open: l.Compressed}
		if repo, ok := home(l); ok && sameRegistry(repo, parsed.Context()) {
			it.from = repo
		} else if ok {
			it.here = isAt(l, parsed.Context())
		}
		p.items = append(p.items, it)
	}
	return p, nil
}

// sources are the repositories that blobs may be mounted from.
func (p *push) sources() []name.Repository {
	var out []name.Repository
	for _, it := range p.items {
		if it.from.RepositoryStr() != "" && !slices.Contains(out, it.from) {
			out = append(out, it.from)
		}
	}
	return out
}

func (p *push) run(ctx context.Context) error {
	t := p.c.registry.retry.start()
	sent, doubt := false, false
	for {
		var err error
		if sent, err = p.store(ctx, doubt); err == nil {
			break
		}
		doubt = true
		// Debian's registry says that a blob is there while another push is
		// still writing it, and then that it is not; and a registry may collect
		// garbage between the question and the manifest.
		if !missesBlobs(err) || !t.wait(ctx, 0, p.c.notify(err)) {
			return err
		}
	}
	back, err := p.c.manifest(ctx, p.digest.String())
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(back.raw, p.raw) || string(back.mediaType) != p.mediaType {
		return fmt.Errorf("read back manifest %s: the registry has another one there", p.digest)
	}
	if p.tag == "" || !sent && p.has(ctx, p.tag) {
		return nil
	}
	return p.putManifest(ctx, p.tag)
}

// store brings the blobs there and the manifest under its digest. Nothing is
// sent when all of it is there.
func (p *push) store(ctx context.Context, doubt bool) (sent bool, err error) {
	missing, err := p.missing(ctx, doubt)
	if err != nil {
		return false, err
	}
	if len(missing) == 0 && p.has(ctx, p.digest.String()) {
		return false, nil
	}
	if err := p.upload(ctx, missing); err != nil {
		return true, err
	}
	return true, p.putManifest(ctx, p.digest.String())
}

// has says whether the manifest is there under that tag or digest already. A
// registry that does not say so is sent it.
func (p *push) has(ctx context.Context, id string) bool {
	h, err := p.c.head(ctx, id)
	return err == nil && h == p.digest
}

// missesBlobs says whether a manifest was refused for blobs that are not there.
func missesBlobs(err error) bool {
	te, ok := errors.AsType[*transport.Error](err)
	return ok && slices.ContainsFunc(te.Errors, func(d transport.Diagnostic) bool {
		return d.Code == transport.ManifestBlobUnknownErrorCode || d.Code == transport.BlobUnknownErrorCode
	})
}

// missing finds out which blobs are not there. It asks for the config first: if
// that is new, so is the image, and to have a blob linked is as quick as to ask
// for it. In doubt it asks for everything.
func (p *push) missing(ctx context.Context, doubt bool) ([]item, error) {
	config, rest := p.items[0], p.items[1:]
	there, err := p.c.has(ctx, config.desc)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var out []item
	if !there {
		out = append(out, config)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * jobs) // small requests
	for _, it := range rest {
		switch {
		case doubt:
		case it.here:
			continue
		case !there && it.from.RepositoryStr() != "":
			mu.Lock()
			out = append(out, it)
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			there, err := p.c.has(ctx, it.desc)
			if err != nil || there {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, it)
			return nil
		})
	}
	err = group.Wait()
	return out, err
}

// has says whether the repository has a blob, of the right size as far as it tells.
func (c *client) has(ctx context.Context, desc v1.Descriptor) (bool, error) {
	resp, err := c.do(ctx, http.MethodHead, "blobs/"+desc.Digest.String(), nil, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK && (resp.ContentLength < 0 || resp.ContentLength == desc.Size), nil
}

// there is has of a registry that has just failed: only its yes is one.
func (c *client) there(ctx context.Context, desc v1.Descriptor) bool {
	there, err := c.has(ctx, desc)
	return err == nil && there
}

func (p *push) upload(ctx context.Context, items []item) error {
	var total int64
	for _, it := range items {
		total += it.desc.Size
	}
	progress := newTransfer(p.c.registry.events, "push "+p.ref, "pushing "+p.ref, total)
	defer progress.end()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(jobs)
	for _, it := range items {
		group.Go(func() error {
			if err := p.c.send(ctx, it, progress); err != nil {
				return fmt.Errorf("blob %s: %w", it.desc.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// send brings one blob there: by mount, or by upload, which begins anew when
// it fails for a passing reason.
func (c *client) send(ctx context.Context, it item, progress *transfer) error {
	t := c.registry.retry.start()
	for refused := 0; ; {
		err := c.sendOnce(ctx, it, progress)
		if err == nil {
			return nil
		}
		te, answered := errors.AsType[*transport.Error](err)
		switch {
		case errors.Is(err, errLocal):
			return err
		case answered && spentUpload(te):
			// Bytes that went bad on the way, or a session that is gone. Debian's
			// registry also says so of a blob that another push is writing.
			if refused++; refused > 3 {
				return err
			}
		case !temporary(err):
			return err
		}
		var after time.Duration
		if r, ok := errors.AsType[*refusal](err); ok {
			after = r.after
		}
		if !t.wait(ctx, after, c.notify(err)) {
			return err
		}
		if refused > 0 && c.there(ctx, it.desc) {
			progress.add(it.desc.Size)
			return nil
		}
	}
}

// spentUpload says whether a new upload of the same bytes may be taken.
func spentUpload(te *transport.Error) bool {
	switch te.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		return true
	case http.StatusNotFound, http.StatusBadRequest:
		return slices.ContainsFunc(te.Errors, func(d transport.Diagnostic) bool {
			return d.Code == transport.BlobUploadUnknownErrorCode || d.Code == transport.BlobUploadInvalidErrorCode ||
				d.Code == transport.DigestInvalidErrorCode || d.Code == transport.SizeInvalidErrorCode
		})
	}
	return false
}

// errLocal marks a failure to read the bytes to send.
var errLocal = errors.New("read what is to be sent")

func (c *client) sendOnce(ctx context.Context, it item, progress *transfer) error {
	if it.from.RepositoryStr() != "" {
		location, mounted, err := c.begin(ctx, url.Values{"mount": {it.desc.Digest.String()}, "from": {it.from.RepositoryStr()}})
		switch {
		case mounted:
			progress.add(it.desc.Size)
			return nil
		case ctx.Err() != nil:
			return err
		}
		// Not linked: nobody has asked yet whether it is there anyway.
		if there, err := c.has(ctx, it.desc); err != nil || there {
			return err
		}
		if err == nil {
			return c.put(ctx, location, it, progress)
		}
		// Not allowed to see the other repository: an upload will do.
	}
	location, _, err := c.begin(ctx, url.Values{})
	if err != nil {
		return err
	}
	return c.put(ctx, location, it, progress)
}

// begin asks for an upload and returns where to send it. mounted means that
// there is nothing to send.
func (c *client) begin(ctx context.Context, query url.Values) (location string, mounted bool, err error) {
	resp, err := c.do(ctx, http.MethodPost, "blobs/uploads/?"+query.Encode(), nil, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return "", false, err
	}
	drain(resp.Body)
	if resp.StatusCode == http.StatusCreated {
		return "", query.Has("mount"), nil
	}
	u, err := resp.Location()
	if err != nil {
		return "", false, fmt.Errorf("begin upload: %w", err)
	}
	return u.String(), false, nil
}

// put sends the bytes in one request.
func (c *client) put(ctx context.Context, location string, it item, progress *transfer) error {
	u, err := url.Parse(location)
	if err != nil || location == "" {
		return fmt.Errorf("begin upload: the registry gave no place to send to")
	}
	q := u.Query()
	q.Set("digest", it.desc.Digest.String())
	u.RawQuery = q.Encode()

	var mu sync.Mutex
	var bodies []*upload
	open := func() (io.ReadCloser, error) {
		rc, err := it.open()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errLocal, err)
		}
		b := &upload{ReadCloser: rc, desc: it.desc, sum: sha256.New(), progress: progress}
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, b)
		return b, nil
	}
	body, err := open()
	if err != nil {
		return err
	}
	resp, err := c.do(context.WithValue(ctx, onceOnly{}, true), http.MethodPut, u.String(), func(r *http.Request) {
		r.Body, r.GetBody, r.ContentLength = body, open, it.desc.Size
		if it.desc.Size == 0 {
			r.Body = http.NoBody
		}
		r.Header.Set("Content-Type", "application/octet-stream")
	}, http.StatusCreated, http.StatusNoContent)
	mu.Lock()
	defer mu.Unlock()
	for i, b := range bodies {
		if i < len(bodies)-1 || err != nil {
			progress.add(-b.sent()) // was sent for nothing
		}
		if lost := b.failure(); err != nil && lost != nil {
			err = fmt.Errorf("%w: %w", errLocal, lost)
		}
	}
	if err != nil {
		return err
	}
	drain(resp.Body)
	if h, err := v1.NewHash(resp.Header.Get("Docker-Content-Digest")); err == nil && h != it.desc.Digest {
		return fmt.Errorf("the registry took it as %s", h)
	}
	return nil
}

// putManifest stores the manifest under a tag or its digest. It is small, so
// the transport repeats it by itself.
func (p *push) putManifest(ctx context.Context, id string) error {
	resp, err := p.c.do(ctx, http.MethodPut, "manifests/"+id, func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(p.raw)), int64(len(p.raw))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p.raw)), nil }
		r.Header.Set("Content-Type", p.mediaType)
	}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return fmt.Errorf("put manifest: %w", err)
	}
	drain(resp.Body)
	if h, err := v1.NewHash(resp.Header.Get("Docker-Content-Digest")); err == nil && h != p.digest {
		return fmt.Errorf("put manifest %s: the registry took it as %s", p.digest, h)
	}
	return nil
}
