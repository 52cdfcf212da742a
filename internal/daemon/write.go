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
		return d.arrived(ctx, p, 0)
	}
	if !errors.Is(err, image.ErrNotFound) {
		return err
	}
	defer p.close()
	known, err := d.known(ctx, p)
	if err != nil {
		return err
	}
	if known > 0 {
		if err = d.send(ctx, p, known); err == nil {
			err = d.arrived(ctx, p, known)
		}
		if err == nil || ctx.Err() != nil || !isAnswer(err) {
			return err
		}
	}
	if err := d.send(ctx, p, 0); err != nil {
		return err
	}
	return d.arrived(ctx, p, 0)
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

// arrived makes sure of what the daemon has, after so many layers were left out.
func (d *Daemon) arrived(ctx context.Context, p *parcel, without int) error {
	in, err := d.lookup(ctx, p.id.String())
	switch {
	case err == nil:
		if err = d.named(ctx, p, in); err != nil {
			return err
		}
	case errors.Is(err, image.ErrNotFound):
		if in, err = d.renamed(ctx, p, without); err != nil {
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
func (d *Daemon) renamed(ctx context.Context, p *parcel, without int) (inspected, error) {
	in, err := d.lookup(ctx, p.tag)
	if errors.Is(err, image.ErrNotFound) {
		return in, &otherImage{"none"}
	}
	if err == nil {
		err = d.askForRenames(ctx)
	}
	if err == nil && (!d.renames || without > 0 || !sameConfig(in, p.config)) {
		err = &otherImage{in.ID}
	}
	return in, err
}

// askForRenames finds out whether the daemon's images are in containerd's store,
// which makes manifests and names images by them. It needs every layer.
func (d *Daemon) askForRenames(ctx context.Context) error {
	var info struct{ DriverStatus [][2]string }
	_, err := d.get(ctx, "info", "/info", &info)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.renames = slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
	return err
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

// known is how many of p's first layers the daemon has, one on the other, as far
// as it is worth to find out: images that were looked at, the one that has the
// name now, and those that lifecycles made with the same layers.
func (d *Daemon) known(ctx context.Context, p *parcel) (int, error) {
	if _, err := d.lookup(ctx, p.tag); err != nil && !errors.Is(err, image.ErrNotFound) {
		return 0, err
	}
	n := d.common(p)
	const little = 4 << 20 // bytes that are sent while one would ask
	if n > 0 || p.size() < little {
		return n, nil
	}
	ids, err := d.related(ctx, p)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if _, err := d.lookup(ctx, id); err != nil && !errors.Is(err, image.ErrNotFound) {
			return 0, err
		}
	}
	return d.common(p), nil
}

// common is the longest row of first layers that p has in common with an image.
func (d *Daemon) common(p *parcel) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.renames {
		return 0
	}
	most := 0
	for _, chain := range d.chains {
		n := 0
		for n < len(chain) && n < len(p.parts) && chain[n] == p.config.RootFS.DiffIDs[n] {
			n++
		}
		most = max(most, n)
	}
	return most
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

// send has the daemon load p without its first layers, and reads what it says.
func (d *Daemon) send(ctx context.Context, p *parcel, without int) error {
	if err := p.prepare(ctx, without); err != nil {
		return err
	}
	ctx, moved, stop := d.watch(ctx)
	defer stop()
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := p.writeTo(ctx, pw, without)
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
	answers := json.NewDecoder(io.LimitReader(moving{resp.Body, moved}, maxAnswer))
	for {
		var said struct{ Error string }
		switch err := answers.Decode(&said); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("docker daemon at %s: load image: read what it says: %w", d.host, err)
		case said.Error != "":
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // the connection can be used again
			return fmt.Errorf("docker daemon at %s: load image: %w", d.host, &refused{http.StatusOK, clip(said.Error)})
		}
	}
}
