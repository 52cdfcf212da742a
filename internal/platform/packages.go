package platform

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
)

// Where dpkg keeps its list of packages, and where distroless images keep one
// file for each.
const (
	dpkgStatus    = "var/lib/dpkg/status"
	dpkgStatusDir = "var/lib/dpkg/status.d"
)

// Bounds of what a layer from anywhere can make us read and keep, in bytes.
const (
	maxLayerRead   = 32 << 30
	maxDpkgStatus  = 64 << 20
	maxDpkgEntries = 50_000 // files in status.d; Debian has 60,000 packages, no image a tenth
)

// noPackages is why packages are not known, which is no failure.
type noPackages string

func (n noPackages) Error() string { return string(n) }

// packageChanges compares the packages in the lowest n layers of app with those
// of base.
func (r *rebaser) packageChanges(ctx context.Context, app v1.Image, n int, base v1.Image) ([]event.Change, error) {
	old, err := app.Layers()
	if err != nil {
		return nil, err
	}
	before, err := r.packages(ctx, old[:n])
	if err != nil {
		return nil, err
	}
	next, err := base.Layers()
	if err != nil {
		return nil, err
	}
	after, err := r.packages(ctx, next)
	if err != nil {
		return nil, err
	}
	return changesOf(before, after), nil
}

// packages are those of layers that lie on each other: version by name.
func (r *rebaser) packages(ctx context.Context, layers []v1.Layer) (map[string]string, error) {
	var all dpkgFiles
	for _, l := range layers {
		found, err := r.layers.of(ctx, l, r.readableLayer)
		if err != nil {
			return nil, err
		}
		all.cover(found)
	}
	list := all.installed()
	if len(list) == 0 {
		return nil, noPackages("there is no list of dpkg's in it")
	}
	return list, nil
}

// readableLayer is l, from the store if it is there. Others are read only if
// that was asked for.
func (r *rebaser) readableLayer(ctx context.Context, l v1.Layer) (v1.Layer, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return nil, err
	}
	here, err := r.Store.Layer(ctx, diffID.String())
	switch {
	case err == nil:
		return here, nil
	case !errors.Is(err, image.ErrNotFound):
		return nil, err
	case r.req.Packages || !r.req.Publish:
		return l, nil
	}
	return nil, noPackages("layers are not in the store; --packages reads them where they are")
}

// layerPackages keeps what layers say, so that each is read once.
type layerPackages struct {
	mu    sync.Mutex
	known map[v1.Hash]func() (dpkgFiles, error)
}

func (p *layerPackages) of(ctx context.Context, l v1.Layer, readable func(context.Context, v1.Layer) (v1.Layer, error)) (dpkgFiles, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return dpkgFiles{}, err
	}
	p.mu.Lock()
	if p.known == nil {
		p.known = map[v1.Hash]func() (dpkgFiles, error){}
	}
	read, ok := p.known[diffID]
	if !ok {
		read = sync.OnceValues(func() (dpkgFiles, error) {
			l, err := readable(ctx, l)
			if err != nil {
				return dpkgFiles{}, err
			}
			rc, err := l.Uncompressed()
			if err != nil {
				return dpkgFiles{}, fmt.Errorf("packages of layer %s: %w", diffID, err)
			}
			defer rc.Close()
			files, err := readDpkg(ctx, rc)
			if err != nil {
				return files, fmt.Errorf("packages of layer %s: %w", diffID, err)
			}
			return files, nil
		})
		p.known[diffID] = read
	}
	p.mu.Unlock()
	return read()
}

// dpkgFiles is dpkg's lists as far as a layer, or layers, have them. A list that
// is there and nil was deleted.
type dpkgFiles struct {
	// files are the list itself and those of status.d, by path.
	files map[string][]debian.InstalledPackage
	// hides are directories that nothing of lower layers shines through.
	hides []string
}

// cover puts an upper layer on top.
func (d *dpkgFiles) cover(upper dpkgFiles) {
	if d.files == nil {
		d.files = map[string][]debian.InstalledPackage{}
	}
	for _, dir := range upper.hides {
		maps.DeleteFunc(d.files, func(name string, _ []debian.InstalledPackage) bool { return strings.HasPrefix(name, dir) })
	}
	maps.Copy(d.files, upper.files)
}

// installed is the version of each package. One that is there for several
// architectures has them in its name, as dpkg writes it.
func (d dpkgFiles) installed() map[string]string {
	archs := map[string]map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		for _, p := range d.files[name] {
			if archs[p.Name] == nil {
				archs[p.Name] = map[string]string{}
			}
			archs[p.Name][p.Architecture] = p.Version
		}
	}
	list := map[string]string{}
	for name, versions := range archs {
		for arch, version := range versions {
			if len(versions) > 1 {
				list[name+":"+arch] = version
			} else {
				list[name] = version
			}
		}
	}
	return list
}

// readDpkg reads the lists out of a layer's tar, and all of the tar: what is
// below checks it.
func readDpkg(ctx context.Context, r io.Reader) (dpkgFiles, error) {
	d := dpkgFiles{files: map[string][]debian.InstalledPackage{}}
	limited := &io.LimitedReader{R: r, N: maxLayerRead}
	in := bufio.NewReaderSize(limited, 128<<10)
	tr := tar.NewReader(in)
	kept := int64(maxDpkgStatus)
	for {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return d, err
		}
		if err := d.entry(hdr, tr, &kept); err != nil {
			return d, err
		}
		if len(d.files)+len(d.hides) > maxDpkgEntries {
			return d, fmt.Errorf("more than %d lists of packages", maxDpkgEntries)
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return d, err
	}
	if limited.N <= 0 {
		return d, fmt.Errorf("more than %d bytes", int64(maxLayerRead))
	}
	return d, nil
}

func (d *dpkgFiles) entry(hdr *tar.Header, r io.Reader, left *int64) error {
	name := path.Clean("/" + hdr.Name)[1:]
	dir, base := path.Split(name)
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		if base == ".wh..wh..opq" {
			hidden = ""
		}
		switch gone := strings.TrimSuffix(dir+hidden, "/"); {
		case gone == dpkgStatus, path.Dir(gone) == dpkgStatusDir:
			d.files[gone] = nil
		case gone == "":
			d.hides = append(d.hides, "")
		case strings.HasPrefix(dpkgStatusDir, gone):
			d.hides = append(d.hides, gone+"/")
		}
		return nil
	}
	if hdr.Typeflag != tar.TypeReg || name != dpkgStatus && (path.Dir(name) != dpkgStatusDir || strings.HasSuffix(name, ".md5sums")) {
		return nil
	}
	if *left -= hdr.Size; *left < 0 {
		return fmt.Errorf("lists of packages of more than %d bytes", maxDpkgStatus)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	list, err := debian.Installed(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	d.files[name] = list
	return nil
}
