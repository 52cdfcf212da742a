// Package daemon is the images of a Docker or podman daemon, through the part
// of the Docker Engine API that moves images: inspect, history, save, load, tag
// and list.
//
// A daemon keeps neither manifests nor layers as they were sent, and gives whole
// images only. So an image of it is known by what the daemon tells, and is
// transferred when something else is asked of it; and of an image that goes
// there only layers are sent that the daemon does not have.
//
// No credentials are ever sent to a daemon.
package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
)

var (
	_ image.Source = (*Daemon)(nil)
	_ image.Target = (*Daemon)(nil)
	_ image.Pinner = (*Daemon)(nil)
	_ image.Source = Described{}
	_ image.Target = Described{}
	_ image.Pinner = Described{}
)

// Options says which daemon, and how to speak to it.
type Options struct {
	// Host is its address in the form of DOCKER_HOST: unix:///path of a socket,
	// or tcp://host:port; "" is DefaultHost.
	Host string
	// TLS is for tcp; nil speaks plain HTTP.
	TLS *tls.Config
	// OneConnection makes do with the connection that Open makes, and keeps it
	// open: for a process that will not be allowed to make another.
	OneConnection bool
	// Unpack opens the file that `docker save` writes. It is read until the
	// Daemon is closed.
	Unpack func(ctx context.Context, file string) (v1.Image, error)

	often time.Duration // the only connection is used at least so often
}

// Daemon is the images of one daemon. It is an image.Source and image.Target of
// the same contract as others: what it says of an image is what the image has,
// byte by byte, and where the daemon does not tell that, the whole image is
// transferred to know. See Described for the place of those who do not need it.
type Daemon struct {
	host   string
	client *http.Client
	base   string // of URLs, with the version of the API
	libpod string // the same for podman's own API, "" for Docker
	unpack func(context.Context, string) (v1.Image, error)
	stop   context.CancelFunc

	// quick bounds a request that moves no layers; stall is how long one that
	// does may go without moving any: daemons unpack after they have all.
	quick, stall time.Duration

	mu      sync.Mutex
	chains  [][]v1.Hash       // diffIDs of images that are in the daemon
	configs map[string][]byte // raw configs of images that were written, by the daemon's ID
	renames bool              // the daemon's IDs are digests of manifests that it makes
	asked   bool              // renames is known

	saving sync.Mutex
	saved  map[string]v1.Image // whole images, by the daemon's ID
	files  []*os.File          // that they are in
}

// DefaultHost is where Docker's daemon listens.
const DefaultHost = "unix:///var/run/docker.sock"

const (
	// newest is the version of the Engine API that this was written for. Older
	// daemons speak their own, newer ones speak this one.
	newest = "1.51"
	// oldest is that of Docker 1.12 (2016), the first with images as they are now.
	oldest = "1.24"
)

// Open connects to a daemon and agrees with it on a version of the API. It
// fails with image.ErrUnavailable if nobody answers.
func Open(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{
		host: o.Host, unpack: o.Unpack, configs: map[string][]byte{}, saved: map[string]v1.Image{},
		quick: time.Minute, stall: 30 * time.Minute,
	}
	if d.host == "" {
		d.host = DefaultHost
	}
	transport, scheme, err := newTransport(d.host, o.TLS)
	if err != nil {
		return nil, spec.Exit(spec.ExitInvalidArgs, err)
	}
	if o.OneConnection {
		transport.MaxConnsPerHost = 1
	}
	d.client, d.base = &http.Client{Transport: transport, CheckRedirect: noRedirect}, scheme+"://docker"
	if err := d.negotiate(ctx); err != nil {
		transport.CloseIdleConnections()
		return nil, err
	}
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop = stop
	if o.OneConnection {
		go d.keepAlive(alive, cmp.Or(o.often, often))
	}
	return d, nil
}

// negotiate asks for the daemon's version. Podman has an API of its own beside
// Docker's, which tells more.
func (d *Daemon) negotiate(ctx context.Context) error {
	resp, err := d.get(ctx, "connect", "/_ping", nil)
	if err != nil {
		return err
	}
	version := resp.Header.Get("Api-Version")
	if !atLeast(version, oldest) {
		return fmt.Errorf("docker daemon at %s: it speaks version %q of the API, kiln needs %s", d.host, clip(version), oldest)
	}
	if atLeast(version, newest) {
		version = newest
	}
	if podman := resp.Header.Get("Libpod-Api-Version"); atLeast(podman, "1.0") {
		d.libpod, d.asked = d.base+"/v"+podman+"/libpod", true
	}
	d.base += "/v" + version
	return nil
}

// atLeast compares versions of the form major.minor, and more of it.
func atLeast(version, least string) bool {
	number := func(s string) (major, minor int, ok bool) {
		a, rest, _ := strings.Cut(s, ".")
		b, _, _ := strings.Cut(rest, ".")
		major, err1 := strconv.Atoi(a)
		minor, err2 := strconv.Atoi(b)
		return major, minor, err1 == nil && err2 == nil && !strings.ContainsAny(s, "/?#% ")
	}
	major, minor, ok := number(version)
	wantMajor, wantMinor, _ := number(least)
	return ok && (major > wantMajor || major == wantMajor && minor >= wantMinor)
}

// often is how often the only connection is used: podman's service closes it
// after ten seconds without, and ends.
const often = 5 * time.Second

// keepAlive uses the connection now and then.
func (d *Daemon) keepAlive(ctx context.Context, often time.Duration) {
	for tick := time.NewTicker(often); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
			// A deadline as short as the interval would end the connection of a daemon
			// that is only slow; who needs it will see an error.
			_, _ = d.get(ctx, "connect", "/_ping", nil)
		}
	}
}

// Close ends the connections, and the use of images that were transferred.
func (d *Daemon) Close() error {
	d.stop()
	d.client.CloseIdleConnections()
	d.saving.Lock()
	defer d.saving.Unlock()
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	d.files = nil
	return errors.Join(errs...)
}

// Described is the same images by what the daemon tells of them alone, for those
// who put something on an image or write it back: no layer is transferred that
// is not read. Other than with Daemon, descriptors have the sizes that layers
// take in the daemon, and a config is one that means the same where its bytes
// are not known: without the authors and fractions of a second of its history,
// and without what podman does not tell (variant, OnBuild, Shell).
type Described struct{ *Daemon }

// Image implements image.Source.
func (d Described) Image(ctx context.Context, ref string) (v1.Image, error) {
	return d.open(ctx, ref, true)
}

// Image implements image.Source. ref is a name, an image ID, or the beginning of
// one.
func (d *Daemon) Image(ctx context.Context, ref string) (v1.Image, error) {
	return d.open(ctx, ref, false)
}

func (d *Daemon) open(ctx context.Context, ref string, described bool) (v1.Image, error) {
	in, err := d.lookup(ctx, ref)
	if err == nil {
		var img *remote
		if img, err = d.remote(ctx, in, described); err == nil {
			return img, nil
		}
	}
	return nil, fmt.Errorf("image %s in the docker daemon: %w", ref, err)
}

// Pin implements image.Pinner: the daemon's ID of the image.
func (d *Daemon) Pin(_ string, img v1.Image) (string, error) {
	if r, ok := img.(*remote); ok {
		return r.in.ID, nil
	}
	return image.ID(img)
}
