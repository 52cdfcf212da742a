package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Where dpkg keeps its list of packages, and where distroless images keep one
// file for each.
const (
	statusFile = "var/lib/dpkg/status"
	statusDir  = "var/lib/dpkg/status.d"
)

// Bounds of what a layer from anywhere can make us read and keep, in bytes.
const (
	maxLayerRead   = 32 << 30
	maxLayerStatus = 64 << 20
	maxLayerLists  = 50_000 // files in status.d; Debian has 60,000 packages, no image a tenth
)

// LayerPackages is what one image layer, or some on top of each other, say of
// installed packages. The zero value says nothing.
type LayerPackages struct {
	// lists are dpkg's list and the files of status.d, by path. One that is there
	// and nil was deleted.
	lists map[string][]InstalledPackage
	// hides are prefixes of paths that nothing of lower layers shines through.
	hides []string
}

// ReadLayer reads the lists of packages out of a layer, an uncompressed tar. It
// reads all of it, so that a reader that checks the bytes gets to see them.
func ReadLayer(ctx context.Context, r io.Reader) (LayerPackages, error) {
	return readLayer(ctx, r, layer.Limits{Bytes: maxLayerRead})
}

func readLayer(ctx context.Context, r io.Reader, limits layer.Limits) (LayerPackages, error) {
	l := LayerPackages{lists: map[string][]InstalledPackage{}}
	in := layer.NewReader(ctx, r, limits)
	left := int64(maxLayerStatus)
	for {
		hdr, err := in.Next()
		if err == io.EOF {
			return l, nil
		}
		if err == nil {
			err = l.entry(hdr, in, &left)
		}
		if err != nil {
			return l, err
		}
		if len(l.lists)+len(l.hides) > maxLayerLists {
			return l, fmt.Errorf("more than %d lists of packages", maxLayerLists)
		}
	}
}

func (l *LayerPackages) entry(hdr *tar.Header, r io.Reader, left *int64) error {
	name := path.Clean("/" + hdr.Name)[1:]
	dir, base := path.Split(name)
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		l.whiteout(dir, hidden)
		return nil
	}
	if hdr.Typeflag != tar.TypeReg || name != statusFile && (path.Dir(name) != statusDir || strings.HasSuffix(name, ".md5sums")) {
		return nil
	}
	if *left -= hdr.Size; *left < 0 {
		return fmt.Errorf("lists of packages of more than %d bytes", maxLayerStatus)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	list, err := Installed(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l.lists[name] = list
	return nil
}

// whiteout takes what is deleted, or, by ".wh..wh..opq", the whole directory.
func (l *LayerPackages) whiteout(dir, hidden string) {
	if hidden == ".wh..opq" {
		hidden = ""
	}
	switch gone := strings.TrimSuffix(dir+hidden, "/"); {
	case gone == statusFile, path.Dir(gone) == statusDir:
		l.lists[gone] = nil
	case gone == "":
		l.hides = append(l.hides, "")
	case strings.HasPrefix(statusDir, gone):
		l.hides = append(l.hides, gone+"/")
	}
}

// Cover puts an upper layer on top.
func (l *LayerPackages) Cover(upper LayerPackages) {
	if l.lists == nil {
		l.lists = map[string][]InstalledPackage{}
	}
	for _, prefix := range upper.hides {
		maps.DeleteFunc(l.lists, func(name string, _ []InstalledPackage) bool { return strings.HasPrefix(name, prefix) })
	}
	maps.Copy(l.lists, upper.lists)
}

// Versions is the version of each package by its name. One that is there for
// several architectures has them in its name, as dpkg writes it: libc6:i386.
func (l LayerPackages) Versions() map[string]string {
	archs := map[string]map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(l.lists)) {
		for _, p := range l.lists[name] {
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
