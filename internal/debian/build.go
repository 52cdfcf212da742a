package debian

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Build makes a root file system as layers, bottom first, one per group, and
// hands each to put. It resolves the recipe's packages, or takes them from its
// lock, and streams them into the layers: nothing is unpacked to disk, nothing
// is run. The same lock, user and epoch give the same bytes.
//
// Paths are merged into /usr, with links in the old places. Documentation (but
// for copyright files), manuals and translations are left out. What maintainer
// scripts would have made and images need is made here: accounts, nsswitch.conf,
// the CA bundle in the forms that OpenSSL and Java read, the links of the
// alternatives system, temporary and run directories, /etc/shells, and the
// package database in the two forms that scanners and dpkg read.
//
// It fails when two packages bring the same file and neither replaces the
// other, and when a program or library needs a shared library that the image
// does not have.
func (c *Client) Build(ctx context.Context, r Recipe, put PutLayer) (Result, error) {
	lock, err := c.lockFor(ctx, r)
	if err != nil {
		return Result{}, err
	}
	epoch := r.Epoch
	if epoch.IsZero() {
		epoch = lock.Date()
	}
	p, err := c.start(ctx, lock)
	if err != nil {
		return Result{}, err
	}
	defer p.stop()
	b := &builder{recipe: r, tree: newTree(epoch, r.KeepSetuid), captured: map[string][]byte{}}
	b.result.Lock = lock
	var pending *stream // the first package of the next group, once seen
	for i, g := range r.Groups {
		err := put(g.Name, func(w io.Writer) error {
			pending, err = b.layer(ctx, i, g.Name, w, p, pending)
			return err
		})
		if err != nil {
			return Result{}, fmt.Errorf("layer %s: %w", g.Name, p.cause(err))
		}
	}
	if err := b.elf.check(b.tree, lock.Arch, r.AllowMissing); err != nil {
		return Result{}, err
	}
	for _, u := range b.result.Unemulated {
		c.events.Emit(event.Message{Level: event.Debug, Text: "maintainer script not emulated: " + u})
	}
	osr := parseOSRelease(b.captured["usr/lib/os-release"])
	b.result.Distro = spec.Distro{Name: osr["ID"], Version: osr["VERSION_ID"]}
	b.result.Created = b.tree.newest
	return b.result, nil
}

// lockFor is the recipe's lock, or a new one.
func (c *Client) lockFor(ctx context.Context, r Recipe) (Lock, error) {
	if len(r.Groups) == 0 {
		return Lock{}, errors.New("recipe without packages")
	}
	if r.Lock == nil {
		return c.Resolve(ctx, r.Request)
	}
	if err := r.Lock.check(); err != nil {
		return Lock{}, fmt.Errorf("package lock: %w", err)
	}
	return *r.Lock, r.Lock.madeFor(r.Request)
}

// builder is the state of one Build across its layers.
type builder struct {
	recipe   Recipe
	tree     *tree
	elf      elfIndex
	captured map[string][]byte // small files that others are made of
	certs    int               // how many certificates the last bundle had
	status   []string          // dpkg's paragraphs
	result   Result
}

// layer writes one group's packages and what is ours of that layer. It returns
// the package that it read too far, one of the next group.
func (b *builder) layer(ctx context.Context, index int, group string, w io.Writer, p *pipeline, s *stream) (*stream, error) {
	l := newLayerWriter(b.tree, index, w)
	var err error
	for {
		if s == nil {
			if s, err = p.next(); err != nil {
				return nil, err
			}
		}
		if s == nil || s.Group != group {
			break
		}
		if err := b.pack(ctx, l, s); err != nil {
			return nil, err
		}
		s = nil
	}
	if err := b.finish(l, index == len(b.recipe.Groups)-1); err != nil {
		return nil, err
	}
	b.result.Files += l.files
	b.result.Bytes += l.bytes
	return s, l.tw.Close()
}

// pack writes one package into the layer.
func (b *builder) pack(ctx context.Context, l *layerWriter, s *stream) error {
	b.tree.replaces[s.Name], b.tree.versions[s.Name] = s.control.replaces, s.Version
	kept := map[string]bool{}
	tr := tar.NewReader(s.data)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("package %s: data archive: %w", s.Name, err)
		}
		out, err := b.tree.place(s.Name, h)
		if err != nil {
			return fmt.Errorf("package %s: %w", s.Name, err)
		}
		if out == nil {
			continue
		}
		if err := b.file(l, s.Name, out, tr); err != nil {
			return fmt.Errorf("package %s: %w", s.Name, err)
		}
		kept[strings.TrimPrefix(h.Name, "./")] = true
	}
	if _, err := io.Copy(io.Discard, s.data); err != nil {
		return err // the end of the stream is where its hash is checked
	}
	b.result.Packages++
	b.result.Unemulated = append(b.result.Unemulated, unemulated(s.Name, s.control.scripts)...)
	return b.record(l, s, kept)
}

// file writes one member, keeping what is needed later: small files that others
// are made of, and what ELF files need.
func (b *builder) file(l *layerWriter, pkg string, h *tar.Header, body io.Reader) error {
	if h.Typeflag != tar.TypeReg {
		return l.write(pkg, h, nil)
	}
	if captures(h.Name) && h.Size <= maxCaptured {
		content, err := io.ReadAll(body)
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		b.captured[h.Name] = content
		return l.write(pkg, h, strings.NewReader(string(content)))
	}
	probe := &elfProbe{r: body, size: h.Size}
	defer probe.close()
	if err := l.write(pkg, h, probe); err != nil {
		return err
	}
	return b.elf.add(h.Name, probe)
}

// maxCaptured bounds a file that is kept in memory, in bytes.
const maxCaptured = 1 << 20

// captures is true for the files that ours are made of.
func captures(name string) bool {
	switch name {
	case "usr/lib/os-release", "usr/share/base-passwd/passwd.master", "usr/share/base-passwd/group.master":
		return true
	}
	return isCertificate(name)
}
