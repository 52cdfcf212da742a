package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

// Write puts img into the daemon under ref, a name with a tag. Layers that the
// daemon has at their place are not sent; a daemon that then does not take the
// image gets all of it. What it has afterwards is made sure of: its ID, or where
// the daemon has IDs of its own, the layers; the bytes of layers it has checked
// itself.
func (d *Daemon) Write(ctx context.Context, ref string, img v1.Image) error {
	if err := d.write(ctx, ref, img); err != nil {
		return fmt.Errorf("write image %s to the docker daemon: %w", ref, err)
	}
	return nil
}

func (d *Daemon) write(ctx context.Context, ref string, img v1.Image) error {
	tag, err := tagOf(ref)
	if err != nil {
		return err
	}
	p, err := newParcel(img, tag)
	if err != nil {
		return err
	}
	in, err := d.lookup(ctx, p.id.String())
	if err == nil {
		if err := d.tag(ctx, in.ID, tag); err != nil {
			return err
		}
		return d.arrived(ctx, p, true)
	}
	if !errors.Is(err, image.ErrNotFound) {
		return err
	}
	defer p.close()
	if err := d.leaveOut(ctx, p); err != nil {
		return err
	}
	if p.left() > 0 {
		if err = d.send(ctx, p); err == nil {
			err = d.arrived(ctx, p, false)
		}
		if err == nil || ctx.Err() != nil || !isAnswer(err) {
			return err
		}
		p.takeAll()
	}
	if err := d.send(ctx, p); err != nil {
		return err
	}
	return d.arrived(ctx, p, true)
}

func tagOf(ref string) (string, error) {
	tag, err := name.NewTag(ref)
	if err == nil && imageID.MatchString(ref) {
		err = errors.New("it is an image ID")
	}
	if err != nil {
		return "", fmt.Errorf("invalid image name: %w", err)
	}
	return fullName(tag.Name())
}

// tag gives an image that is there one more name.
func (d *Daemon) tag(ctx context.Context, id, tag string) error {
	at := strings.LastIndexByte(tag, ':')
	query := url.Values{"repo": {tag[:at]}, "tag": {tag[at+1:]}}
	_, err := d.small(ctx, "tag image "+tag, http.MethodPost, d.base+"/images/"+id+"/tag?"+query.Encode(), nil)
	return err
}

// otherImage is an image that came out as another than what was sent.
type otherImage struct{ id string }

func (o *otherImage) Error() string { return "the daemon made another image of it: " + o.id }
func (o *otherImage) Unwrap() error { return image.ErrInvalid }

// isAnswer tells what the daemon itself said of an image from other failures.
func isAnswer(err error) bool {
	_, refusal := errors.AsType[*refused](err)
	_, other := errors.AsType[*otherImage](err)
	return refusal || other
}

// arrived makes sure of what the daemon has. whole says that all layers were sent.
func (d *Daemon) arrived(ctx context.Context, p *parcel, whole bool) error {
	in, err := d.lookup(ctx, p.id.String())
	switch {
	case err == nil:
		if err = d.named(ctx, p, in); err != nil {
			return err
		}
	case errors.Is(err, image.ErrNotFound):
		if in, err = d.renamed(ctx, p, whole); err != nil {
			return err
		}
	default:
		return err
	}
	if !slices.Equal(in.RootFS.Layers, p.config.RootFS.DiffIDs) {
		return &otherImage{in.ID}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.configs[in.ID] = p.raw
	return nil
}

// named sees to it that p's image, which is there, has its name: somebody else
// may have given that to another meanwhile, and the last one wins.
func (d *Daemon) named(ctx context.Context, p *parcel, in inspected) error {
	now, err := d.lookup(ctx, p.tag)
	if err == nil && now.ID != in.ID || errors.Is(err, image.ErrNotFound) {
		return d.tag(ctx, in.ID, p.tag)
	}
	return err
}

// renamed is p's image in a daemon that gives images IDs of its own.
func (d *Daemon) renamed(ctx context.Context, p *parcel, whole bool) (inspected, error) {
	in, err := d.lookup(ctx, p.tag)
	if errors.Is(err, image.ErrNotFound) {
		return in, &otherImage{"none"}
	}
	if err != nil {
		return in, err
	}
	renames, err := d.renamesImages(ctx)
	if err == nil && (!renames || !whole || !sameConfig(in, p.config)) {
		err = &otherImage{in.ID}
	}
	return in, err
}

// renamesImages says whether the daemon's images are in containerd's store, which
// makes manifests and names images by them. It needs every layer.
func (d *Daemon) renamesImages(ctx context.Context) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked {
		return d.renames, nil
	}
	var info struct{ DriverStatus [][2]string }
	if _, err := d.get(ctx, "info", "/info", &info); err != nil {
		return false, err
	}
	d.asked, d.renames = true, slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
	return d.renames, nil
}

// sameConfig compares what decides how the image runs and is rebuilt.
func sameConfig(in inspected, c *v1.ConfigFile) bool {
	type compared struct {
		Env, Entrypoint, Cmd []string
		User, WorkingDir     string
		Labels               map[string]string
	}
	of := func(c *v1.Config) string {
		b, _ := json.Marshal(compared{c.Env, c.Entrypoint, c.Cmd, c.User, c.WorkingDir, c.Labels}) // strings always can
		return string(b)
	}
	return of(in.Config) == of(&c.Config)
}

// leaveOut marks the layers that the daemon has, as far as it is worth to find
// out: of images that were looked at, the one that has the name now, and those
// that lifecycles made with the same layers.
func (d *Daemon) leaveOut(ctx context.Context, p *parcel) error {
	if _, err := d.lookup(ctx, p.tag); err != nil && !errors.Is(err, image.ErrNotFound) {
		return err
	}
	d.mark(p)
	const little = 4 << 20 // bytes that are sent while one would ask
	if p.left() > 0 || p.size() < little {
		return nil
	}
	ids, err := d.related(ctx, p)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := d.lookup(ctx, id); err != nil && !errors.Is(err, image.ErrNotFound) {
			return err
		}
	}
	d.mark(p)
	return nil
}

// mark leaves out what is known to be there. Docker has a layer on those that
// were below it, so it must be the same row of first layers; podman has each by
// itself.
func (d *Daemon) mark(p *parcel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.renames {
		return
	}
	for _, chain := range d.chains {
		for i, part := range p.parts {
			if d.libpod != "" {
				part.out = part.out || slices.Contains(chain, part.diffID)
			} else if i < len(chain) && chain[i] == part.diffID {
				part.out = true
			} else {
				break
			}
		}
	}
}

// lifecycleLabel is where lifecycles write down an image's layers.
const lifecycleLabel = "io.buildpacks.lifecycle.metadata"

// related lists images whose labels speak of one of p's layers.
func (d *Daemon) related(ctx context.Context, p *parcel) ([]string, error) {
	var list []struct {
		ID     string `json:"Id"`
		Labels map[string]string
	}
	query := url.Values{"filters": {`{"label":["` + lifecycleLabel + `"]}`}}
	if _, err := d.get(ctx, "list images", "/images/json?"+query.Encode(), &list); err != nil {
		return nil, err
	}
	var ids []string
	for _, l := range list {
		speaks := func(diffID v1.Hash) bool { return strings.Contains(l.Labels[lifecycleLabel], diffID.String()) }
		const enough = 8
		if len(ids) < enough && imageID.MatchString(l.ID) && slices.ContainsFunc(p.config.RootFS.DiffIDs, speaks) {
			ids = append(ids, l.ID)
		}
	}
	return ids, nil
}

// send has the daemon load p without what is left out, and reads what it says.
func (d *Daemon) send(ctx context.Context, p *parcel) error {
	if err := p.prepare(ctx); err != nil {
		return err
	}
	ctx, moved, stop := d.watch(ctx)
	defer stop()
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := p.writeTo(ctx, pw)
		written <- err
		pw.CloseWithError(err)
	}()
	err := d.load(ctx, moving{pr, moved}, moved)
	pr.CloseWithError(errNotRead)
	switch own := <-written; {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case own != nil && !errors.Is(own, errNotRead):
		return own
	}
	return err
}

// errNotRead is what the writer sees when the daemon answers before the end.
var errNotRead = errors.New("the daemon reads no further")

func (d *Daemon) load(ctx context.Context, body io.Reader, moved func()) error {
	resp, err := d.request(ctx, "load image", http.MethodPost, d.base+"/images/load?quiet=1", body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = loadAnswer(io.LimitReader(moving{resp.Body, moved}, maxAnswer))
	if err != nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // the connection can be used again
		return fmt.Errorf("docker daemon at %s: load image: %w", d.host, err)
	}
	return nil
}

// loadAnswer reads what a daemon says while it loads: a document a line, one of
// them the error if there is one.
func loadAnswer(r io.Reader) error {
	for answers := json.NewDecoder(r); ; {
		var said struct{ Error string }
		switch err := answers.Decode(&said); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read what it says: %w", err)
		case said.Error != "":
			return &refused{http.StatusOK, clip(said.Error)}
		}
	}
}
