package dockerfile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// InPlace is a Machine whose one root is the root of this process, which is
// root in a container of the image that is built on. It isolates nothing but
// the environment. What changed is found by looking at every file before and
// after, and what failed half-way is there to stay: then the InPlace is of no
// more use.
type InPlace struct {
	InPlaceOptions
	skip    func(rel string) bool
	applied []v1.Hash // the layers above the container's own that are in the root
	scan    *layer.Scan
	broken  error
}

// InPlaceOptions says what an InPlace works with.
type InPlaceOptions struct {
	// Base are the layers of the image that this container was made of.
	Base []v1.Hash
	// Skip are absolute directories that are no part of the image, beside /proc,
	// /sys, /dev and everything that is mounted.
	Skip []string
	// Env are variables of this host that programs see unless the image or the
	// Dockerfile sets them.
	Env []string
	// Caches is where cache mounts stay.
	Caches string
}

// NewInPlace makes an InPlace.
func NewInPlace(o InPlaceOptions) (*InPlace, error) {
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	skip := map[string]bool{"proc": true, "sys": true, "dev": true}
	for _, dir := range slices.Concat(mounts, o.Skip, []string{o.Caches}) {
		if rel := strings.TrimPrefix(path.Clean("/"+dir), "/"); rel != "" {
			skip[rel] = true
		}
	}
	return &InPlace{InPlaceOptions: o, skip: func(rel string) bool { return skip[rel] }}, nil
}

var _ Machine = (*InPlace)(nil)

// mountPoints lists what is mounted in the root of this process.
func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, unescapeOctal(fields[4]))
		}
	}
	return points, nil
}

// unescapeOctal undoes what the kernel does to blanks and backslashes: \040.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Kind implements Machine.
func (m *InPlace) Kind() string { return kind("in place", m.Skip) }

// Root implements Machine. Layers must be those of the container and then those
// that this InPlace made or has been given: there is one root.
func (m *InPlace) Root(ctx context.Context, layers []v1.Layer) (Root, error) {
	if m.broken != nil {
		return nil, fmt.Errorf("the root of this container is half changed: %w", m.broken)
	}
	want, err := diffIDs(layers)
	if err != nil {
		return nil, err
	}
	have := slices.Concat(m.Base, m.applied)
	if len(want) < len(have) || !slices.Equal(want[:len(have)], have) {
		return nil, errors.New("in place only the container's own image can be built on, and one stage after the other: build this Dockerfile with kiln instead")
	}
	for i, l := range layers[len(have):] {
		m.scan, m.broken = nil, errors.New("a layer was unpacked in part")
		if err := applyInPlace(ctx, l, want[len(have)+i]); err != nil {
			return nil, err
		}
		m.applied, m.broken = append(m.applied, want[len(have)+i]), nil
	}
	return &placeRoot{m: m}, nil
}

// look looks at the root before the first change since it was looked at last.
func (m *InPlace) look(ctx context.Context) (err error) {
	if m.scan == nil {
		if m.scan, err = layer.NewScan(ctx, "/", m.skip); err != nil {
			return fmt.Errorf("look at the root: %w", err)
		}
	}
	return nil
}

func applyInPlace(ctx context.Context, l v1.Layer, diffID v1.Hash) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return fmt.Errorf("read layer %s: %w", diffID, err)
	}
	in := &verified{r: rc, hash: sha256.New()}
	_, err = layer.ApplyOwnedPlain(ctx, "/", in, layer.Limits{}, layer.Chown)
	if cerr := in.check(diffID.Hex); cerr != nil {
		err = cerr
	}
	if err = errors.Join(err, rc.Close()); err != nil {
		return fmt.Errorf("unpack layer %s: %w", diffID, err)
	}
	return nil
}

func diffIDs(layers []v1.Layer) ([]v1.Hash, error) {
	list := make([]v1.Hash, 0, len(layers))
	for _, l := range layers {
		h, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		list = append(list, h)
	}
	return list, nil
}

// Fetch implements Machine.
func (m *InPlace) Fetch(ctx context.Context, url string, out io.Writer) error {
	return fetch(ctx, url, out)
}

// Offline implements Machine.
func (m *InPlace) Offline() bool { return false }

// placeRoot is the root for one instruction.
type placeRoot struct {
	m     *InPlace
	dirty bool // something may have been changed that is in no layer
}

// Inside implements Root.
func (r *placeRoot) Inside(ctx context.Context, op Op, in io.Reader, out io.Writer) error {
	if op.Put != nil {
		if err := r.m.look(ctx); err != nil {
			return err
		}
		r.dirty = true
	}
	_, err := task{Owners: layer.Chown, Op: op}.perform(ctx, in, out)
	return err
}

// Run implements Root.
func (r *placeRoot) Run(ctx context.Context, p Process) (err error) {
	if p.NoNetwork {
		return errors.New("--network=none: in place there is no network but the container's")
	}
	if err := r.m.look(ctx); err != nil {
		return err
	}
	r.dirty = true
	for _, m := range p.Mounts {
		undo, err := r.m.standIn(ctx, m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		defer func() { err = errors.Join(err, undo()) }()
	}
	env := slices.Clone(p.Env)
	for _, kv := range r.m.Env {
		name, _, _ := strings.Cut(kv, "=")
		if _, set := lookup(p.Env, name); !set {
			env = append(env, kv)
		}
	}
	as := &syscall.Credential{Uid: uint32(p.User.UID), Gid: uint32(p.User.GID)}
	for _, g := range p.User.Groups {
		as.Groups = append(as.Groups, uint32(g))
	}
	return sandbox.InPlace{As: as}.Run(ctx, sandbox.Command{
		Path: p.Args[0], Args: p.Args, Env: env, Dir: p.Dir, Stdout: p.Stdout, Stderr: p.Stderr,
	})
}

// Commit implements Root.
func (r *placeRoot) Commit(ctx context.Context, to Layers) (v1.Layer, error) {
	if !r.dirty {
		return nil, nil
	}
	var next *layer.Scan
	l, err := to.PutLayer(ctx, func(w io.Writer) (err error) {
		next, _, err = r.m.scan.WriteChanges(ctx, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	diffID, err := l.DiffID()
	if err != nil {
		return nil, err
	}
	r.m.scan, r.dirty = next, false
	if diffID.Hex == emptyLayer {
		return nil, nil
	}
	r.m.applied = append(r.m.applied, diffID)
	return l, nil
}

// Close implements Root.
func (r *placeRoot) Close() error {
	if r.dirty {
		r.m.broken = errors.New("an instruction failed")
	}
	return nil
}

// standIn puts what m shows in the place of its target, and returns what puts
// back what was there: to mount takes a right that containers do not have.
func (m *InPlace) standIn(ctx context.Context, what Mount) (undo func() error, err error) {
	target, err := resolveDest(path.Clean(what.Target))
	if err != nil {
		return nil, err
	}
	undo, covered, err := m.cover(target)
	if err != nil {
		return nil, err
	}
	if !covered {
		if what.Cache != "" || what.Tmpfs {
			return m.uncovered(target), nil
		}
		return nil, fmt.Errorf("in place %s, which is of the image, cannot be covered: take a directory that is not there", target)
	}
	if err := m.fill(ctx, target, what); err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// cover makes way for something at target. It cannot where the root is an
// overlay and target a directory of a layer below: those cannot be renamed.
func (m *InPlace) cover(target string) (undo func() error, covered bool, err error) {
	var undos []func() error
	undo = func() error {
		var errs []error
		for _, u := range slices.Backward(undos) {
			errs = append(errs, u())
		}
		return errors.Join(errs...)
	}
	if _, err := os.Lstat(target); err == nil {
		aside := path.Join(path.Dir(target), ".kiln-aside-"+path.Base(target))
		if err := os.Rename(target, aside); errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EBUSY) {
			return undo, false, nil
		} else if err != nil {
			return nil, false, err
		}
		undos = append(undos, func() error { return os.Rename(aside, target) })
	}
	for _, dir := range missing(path.Dir(target)) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, false, errors.Join(err, undo())
		}
		undos = append(undos, func() error {
			_ = os.Remove(dir) // stays if the program put something there
			return nil
		})
	}
	undos = append(undos, func() error { return layer.Remove(target) })
	return undo, true, nil
}

// uncovered lets a program use a directory as it is, and removes afterwards
// what is new in it: of a cache nothing stays, but nothing gets into the layer.
func (m *InPlace) uncovered(target string) (undo func() error) {
	return func() error {
		return m.scan.RemoveNew(context.Background(), strings.TrimPrefix(target, "/"))
	}
}

// missing lists the directories that lead to dir, and dir, that are not there.
func missing(dir string) []string {
	var list []string
	for ; dir != "/"; dir = path.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil {
			break
		}
		list = append(list, dir)
	}
	slices.Reverse(list)
	return list
}

func (m *InPlace) fill(ctx context.Context, target string, what Mount) error {
	switch {
	case what.Cache != "":
		dir := filepath.Join(m.Caches, fmt.Sprintf("%x", sha256.Sum256([]byte(what.Cache))))
		if _, err := os.Lstat(dir); err == nil {
			return os.Symlink(dir, target)
		}
		if err := os.MkdirAll(m.Caches, 0o755); err != nil {
			return err
		}
		if what.Files == nil {
			what.Files = emptyDirectory(0o755, layer.Owner{})
		}
		if err := layOut(ctx, dir, what.Files); err != nil {
			return err
		}
		return os.Symlink(dir, target)
	case what.Files != nil:
		return layOut(ctx, target, what.Files)
	}
	if err := os.Mkdir(target, 0o777); err != nil {
		return err
	}
	return os.Chmod(target, os.ModeSticky|0o777)
}

// layOut makes a file or directory of what a Mount's Files write.
func layOut(ctx context.Context, target string, files func(context.Context, io.Writer) error) error {
	dir := target + ".kiln-new"
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer layer.Remove(dir)
	r, pipe := io.Pipe()
	go func() { pipe.CloseWithError(files(ctx, pipe)) }()
	_, err := layer.ApplyOwnedPlain(ctx, dir, r, layer.Limits{}, layer.Chown)
	r.Close()
	if err != nil {
		return err
	}
	single := filepath.Join(dir, mountedFile)
	if fi, err := os.Lstat(single); err == nil && fi.Mode().IsRegular() {
		return os.Rename(single, target)
	}
	return os.Rename(dir, target)
}
