package dockerfile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// Overlay is a Machine in a sandbox: every layer is a directory of its own, an
// instruction works in an overlay over those below, and what it leaves in the
// upper directory is its layer. Nothing of a root is read or written by this
// process: kiln's own executable does it, inside.
type Overlay struct {
	OverlayOptions
	worker *sandbox.Worker
	owners layer.Owners

	mu    sync.Mutex
	made  int               // directories so far
	trees map[string]string // diffID to the layer's directory
}

// OverlayOptions says what an Overlay works with.
type OverlayOptions struct {
	// Scratch is an empty directory for the Overlay alone, where overlay works
	// (sandbox.Report.Scratch). Only the worker can remove what comes into it.
	Scratch string
	// Executable calls Init first of all, and needs no file but itself. It is
	// copied: what it is the path of may be another program tomorrow.
	Executable string
	// Facts and Env are what programs in a root see of this host: mounts, and
	// variables that are set unless the image or the Dockerfile sets them. Facts
	// may be nil.
	Facts func(System) []sandbox.Mount
	Env   []string
	// Skip are absolute paths of a root that are no part of any image: what an
	// instruction does there is undone when it ends.
	Skip []string
	// Network is that of programs, but of those that ask for none.
	Network string
	// Caches is where cache mounts stay; "" keeps them for as long as Scratch.
	Caches string
	// Skipped hears of devices of base images that could not be made.
	Skipped func(names []string)
}

// NewOverlay makes an Overlay of a worker for steps that run as root
// (sandbox.BestRoot), and of what it said of itself. The worker stays the
// caller's.
func NewOverlay(worker *sandbox.Worker, report sandbox.Report, o OverlayOptions) (*Overlay, error) {
	m := &Overlay{OverlayOptions: o, worker: worker, owners: layer.Chown, trees: map[string]string{}}
	if report.IDs == sandbox.RecordedIDs {
		m.owners = layer.Record
	}
	if m.Caches == "" {
		m.Caches = filepath.Join(o.Scratch, "caches")
	}
	// The root of tasks that work on directories. All mount points are there
	// already, for many steps share it.
	for _, dir := range []string{"self/proc", "self/dev", "self/sys", "self/tree", "self/upper"} {
		if err := os.MkdirAll(filepath.Join(o.Scratch, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(o.Scratch, "self", insidePath), nil, 0o755); err != nil {
		return nil, err
	}
	m.Executable = filepath.Join(o.Scratch, "inside")
	return m, copyFile(m.Executable, o.Executable)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// insidePath is where the executable is in a root.
const insidePath = "/.kiln-inside"

var _ Machine = (*Overlay)(nil)

// Kind implements Machine: without owners of their own symbolic links are
// other bytes.
func (m *Overlay) Kind() string {
	if m.owners == layer.Record {
		return kind("sandbox, owners noted", m.Skip)
	}
	return kind("sandbox", m.Skip)
}

// directory makes a new directory in the scratch.
func (m *Overlay) directory() (string, error) {
	m.mu.Lock()
	m.made++
	dir := filepath.Join(m.Scratch, strconv.Itoa(m.made))
	m.mu.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// Root implements Machine.
func (m *Overlay) Root(ctx context.Context, layers []v1.Layer) (Root, error) {
	var lowers []string
	for _, l := range layers {
		tree, err := m.tree(ctx, l)
		if err != nil {
			return nil, err
		}
		// The kernel refuses a directory twice. The upper one says it all.
		lowers = slices.DeleteFunc(lowers, func(dir string) bool { return dir == tree })
		lowers = append(lowers, tree)
		if opaque, err := layer.Opaque(tree); err == nil && opaque {
			lowers = lowers[len(lowers)-1:]
		}
	}
	slices.Reverse(lowers)
	dir, err := m.directory()
	if err != nil {
		return nil, err
	}
	r := &overlayRoot{m: m, dir: dir, overlay: sandbox.Overlay{
		Lowers: lowers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
	}}
	if len(lowers) == 0 {
		err = os.Mkdir(r.overlay.Upper, 0o755)
	}
	return r, err
}

// tree is the directory of a layer, which is unpacked when it is first needed.
func (m *Overlay) tree(ctx context.Context, l v1.Layer) (string, error) {
	diffID, err := l.DiffID()
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	tree, ok := m.trees[diffID.String()]
	m.mu.Unlock()
	if ok {
		return tree, nil
	}
	dir, err := m.directory()
	if err != nil {
		return "", err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return "", fmt.Errorf("read layer %s: %w", diffID, err)
	}
	in := &verified{r: rc, hash: sha256.New()}
	err = m.unpack(ctx, dir, in)
	if cerr := in.check(diffID.Hex); cerr != nil {
		err = cerr
	}
	if err = errors.Join(err, rc.Close()); err != nil {
		return "", fmt.Errorf("unpack layer %s: %w", diffID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trees[diffID.String()] = dir
	return dir, nil
}

// verified hashes what is read and remembers how it ended: the pipe to the step
// that reads it does not.
type verified struct {
	mu   sync.Mutex
	r    io.Reader
	hash hash.Hash
	err  error
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.hash.Write(p[:n])
	v.err = err
	return n, err
}

// check is nil if all was read and had the digest want.
func (v *verified) check(want string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil && !errors.Is(v.err, io.EOF) {
		return v.err
	}
	if v.err == nil {
		return nil // not read to the end: what read it failed, and says why
	}
	if got := hex.EncodeToString(v.hash.Sum(nil)); got != want {
		return fmt.Errorf("its bytes have the digest sha256:%s: %w", got, errDamaged)
	}
	return nil
}

// errDamaged says that bytes are not those that they should be.
var errDamaged = errors.New("damaged")

// unpack unpacks a layer to a directory of the scratch.
func (m *Overlay) unpack(ctx context.Context, dir string, in io.Reader) error {
	skipped, err := m.perform(ctx, m.self(sandbox.Mount{Target: "/tree", Source: dir}), task{Unpack: &unpackTask{"/tree"}}, in, nil)
	if len(skipped) > 0 && m.Skipped != nil {
		m.Skipped(skipped)
	}
	return err
}

// self is the world of tasks that work on directories.
func (m *Overlay) self(mounts ...sandbox.Mount) sandbox.Spec {
	return sandbox.Spec{Root: sandbox.Overlay{Upper: filepath.Join(m.Scratch, "self")}, Mounts: mounts, Network: sandbox.NoNetwork}
}

// maxReport bounds what a task may say of itself, in bytes.
const maxReport = 1 << 20

// perform carries out a task in a sandbox of its own.
func (m *Overlay) perform(ctx context.Context, spec sandbox.Spec, t task, in io.Reader, out io.Writer) (skipped []string, err error) {
	t.Owners = m.owners
	arg, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	spec.Mounts = append(slices.Clone(spec.Mounts), sandbox.Mount{Target: insidePath, Source: m.Executable, ReadOnly: true})
	stderr := &bounded{left: maxReport}
	err = m.worker.In(spec).Run(ctx, sandbox.Command{
		Path: insidePath, Args: []string{insideName, string(arg)}, Env: m.Env, Stdin: in, Stdout: out, Stderr: stderr,
	})
	return readReport(stderr.Bytes(), err)
}

// bounded keeps the first bytes of what is written to it.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.Buffer.Write(p[:n])
	return len(p), nil
}

func (m *Overlay) facts(s System) []sandbox.Mount {
	if m.Facts == nil {
		return nil
	}
	return m.Facts(s)
}

// overlayRoot is the Root of one instruction.
type overlayRoot struct {
	m         *Overlay
	dir       string
	overlay   sandbox.Overlay
	claim     layer.Owner
	committed bool
}

// Inside implements Root. It shows nothing of the host, whose files would cover
// those that op may be about.
func (r *overlayRoot) Inside(ctx context.Context, op Op, in io.Reader, out io.Writer) error {
	_, err := r.m.perform(ctx, sandbox.Spec{Root: r.overlay, Network: sandbox.NoNetwork}, task{Op: op}, in, out)
	return err
}

// Fetch implements Machine.
func (m *Overlay) Fetch(ctx context.Context, url string, out io.Writer) error {
	dir, err := m.directory()
	if err != nil {
		return err
	}
	spec := sandbox.Spec{Root: sandbox.Overlay{Upper: dir}, Mounts: m.facts(System{}), Network: m.Network}
	_, err = m.perform(ctx, spec, task{Fetch: url}, nil, out)
	return errors.Join(err, m.worker.Remove(context.WithoutCancel(ctx), dir))
}

// Offline implements Machine.
func (m *Overlay) Offline() bool { return m.Network == sandbox.NoNetwork }

// Run implements Root.
func (r *overlayRoot) Run(ctx context.Context, p Process) (err error) {
	var mounts []sandbox.Mount
	for _, m := range p.Mounts {
		mount, undo, err := r.m.mount(ctx, m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		defer func() { err = errors.Join(err, undo()) }()
		mounts = append(mounts, mount)
	}
	spec := sandbox.Spec{Root: r.overlay, Mounts: slices.Concat(r.m.facts(p.System), mounts), Network: r.m.Network}
	if r.m.owners == layer.Record {
		if p.System.Apt {
			spec.Mounts = append(spec.Mounts, sandbox.Mount{Target: aptConf, Source: filepath.Join(r.m.Scratch, "apt.conf"), ReadOnly: true})
			if err := os.WriteFile(filepath.Join(r.m.Scratch, "apt.conf"), []byte(aptAsRoot), 0o644); err != nil {
				return err
			}
		}
		// There is no id but 0. What the program makes is given away afterwards.
		r.claim = p.User.owner()
	} else {
		spec.UID, spec.GID = p.User.UID, p.User.GID
	}
	spec.Groups = p.User.Groups
	if p.NoNetwork {
		spec.Network = sandbox.NoNetwork
	}
	env := slices.Clone(p.Env)
	for _, kv := range r.m.Env {
		name, _, _ := strings.Cut(kv, "=")
		if _, set := lookup(p.Env, name); !set {
			env = append(env, kv)
		}
	}
	return r.m.worker.In(spec).Run(ctx, sandbox.Command{
		Path: p.Args[0], Args: p.Args, Env: env, Dir: p.Dir, Stdout: p.Stdout, Stderr: p.Stderr,
	})
}

// aptConf keeps apt from changing to its own user, which it verifies: in tier
// 1f that is only pretended.
const (
	aptConf   = "/etc/apt/apt.conf.d/00kiln-sandbox"
	aptAsRoot = "APT::Sandbox::User \"root\";\n"
)

// Commit implements Root.
func (r *overlayRoot) Commit(ctx context.Context, to Layers) (v1.Layer, error) {
	if _, err := os.Lstat(r.overlay.Upper); errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing ran in it
	}
	mounts := []sandbox.Mount{{Target: "/upper", Source: r.overlay.Upper}}
	diff := diffTask{Upper: "/upper", Claim: r.claim, Skip: r.m.Skip}
	for i, lower := range r.overlay.Lowers {
		at := fmt.Sprintf("/lower/%d", i)
		if err := os.MkdirAll(filepath.Join(r.m.Scratch, "self", at), 0o755); err != nil {
			return nil, err
		}
		mounts = append(mounts, sandbox.Mount{Target: at, Source: lower, ReadOnly: true})
		diff.Lowers = append(diff.Lowers, at)
	}
	l, err := to.PutLayer(ctx, func(w io.Writer) error {
		_, err := r.m.perform(ctx, r.m.self(mounts...), task{Diff: &diff}, nil, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	diffID, err := l.DiffID()
	if err != nil || diffID.Hex == emptyLayer {
		return nil, err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if _, have := r.m.trees[diffID.String()]; !have {
		r.m.trees[diffID.String()] = r.overlay.Upper
		r.committed = true
	}
	return l, nil
}

// emptyLayer is the digest of a tar without entries: two blocks of zeros.
const emptyLayer = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

// Close implements Root.
func (r *overlayRoot) Close() error {
	dir := r.dir
	if r.committed {
		dir = r.overlay.Work
	}
	return r.m.worker.Remove(context.Background(), dir)
}
