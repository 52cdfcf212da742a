package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
)

// maxImage bounds what a daemon can make kiln write to the disk, in bytes.
const maxImage = 256 << 30

// save transfers an image, once.
func (d *Daemon) save(ctx context.Context, in inspected) (v1.Image, error) {
	id := in.ID
	d.saving.Lock()
	defer d.saving.Unlock() // two transfers of one image are worse than one after the other
	if img := d.saved[id]; img != nil {
		return img, nil
	}
	f, err := d.download(ctx, id)
	if err != nil {
		return nil, err
	}
	// The file has no name any more: nobody else sees it, nothing is left.
	img, err := d.unpack(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err == nil {
		err = d.same(ctx, in, img)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("docker daemon at %s: save image %s: %w", d.host, id, err)
	}
	d.saved[id], d.files = img, append(d.files, f)
	return img, nil
}

// same makes sure that the daemon sent the image that was asked for: by its ID,
// or in a daemon that has IDs of its own by its layers.
func (d *Daemon) same(ctx context.Context, in inspected, img v1.Image) error {
	raw, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	got := hashOf(raw)
	if known := d.written(in.ID); got.String() == in.ID || known != nil && hashOf(known) == got {
		return nil
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	renames, err := d.renamesImages(ctx)
	if err == nil && (!renames || !slices.Equal(cf.RootFS.DiffIDs, in.RootFS.Layers)) {
		err = fmt.Errorf("%w: the config in it has digest %s", image.ErrInvalid, got)
	}
	return err
}

func (d *Daemon) download(ctx context.Context, id string) (*os.File, error) {
	f, err := os.CreateTemp("", "kiln-daemon-")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		err = d.downloadTo(ctx, id, f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d *Daemon) downloadTo(ctx context.Context, id string, f *os.File) error {
	op := "save image " + id
	ctx, moved, stop := d.watch(ctx)
	defer stop()
	resp, err := d.request(ctx, op, http.MethodGet, d.base+"/images/"+id+"/get", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(f, moving{io.LimitReader(resp.Body, maxImage+1), moved})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case n > maxImage:
		err = fmt.Errorf("it has more than %d bytes", int64(maxImage))
	}
	if err != nil {
		return fmt.Errorf("docker daemon at %s: %s: %w", d.host, op, err)
	}
	return nil
}

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}
