package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/test/filetree"
)

// inside is the executable of testdata/inside, static, so that it runs in any root.
var inside string

func TestMain(m *testing.M) {
	sandbox.Init()
	Init()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kiln-dockerfile-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	inside = filepath.Join(dir, "inside")
	build := exec.Command("go", "build", "-o", inside, "./testdata/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build testdata/inside:", err)
		return 1
	}
	return m.Run()
}

// node is a file of a flattened image.
type node struct {
	tar.Header
	body string
}

func (n node) String() string {
	s := fmt.Sprintf("%c %04o %d:%d", n.Typeflag, n.Mode, n.Uid, n.Gid)
	switch n.Typeflag {
	case tar.TypeReg:
		s += " " + n.body
	case tar.TypeSymlink:
		s += " -> " + n.Linkname
	case tar.TypeLink:
		s += " = " + n.Linkname
	}
	var names []string
	for name, value := range n.PAXRecords {
		if x, ok := strings.CutPrefix(name, "SCHILY.xattr."); ok {
			names = append(names, fmt.Sprintf("%s=%q", x, value))
		}
	}
	sort.Strings(names)
	return strings.Join(append([]string{s}, names...), " ")
}

// flatten is a slow and obvious reading of an image's layers: from the n-th on,
// the files that are there at the end.
func flatten(t testing.TB, layers []v1.Layer, from int) map[string]node {
	t.Helper()
	files := map[string]node{}
	for _, l := range layers[from:] {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(rc); ; {
			hdr, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := strings.Trim(hdr.Name, "/")
			dir, base := filepath.Split(name)
			if gone, ok := strings.CutPrefix(base, ".wh."); ok {
				for f := range files {
					if f == dir+gone || strings.HasPrefix(f, dir+gone+"/") {
						delete(files, f)
					}
				}
				if from > 0 {
					files[name] = node{Header: *hdr}
				}
				continue
			}
			body, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			if len(body) > 200 {
				body = []byte(fmt.Sprintf("%d bytes", len(body)))
			}
			if old, ok := files[name]; ok && old.Typeflag == tar.TypeDir && hdr.Typeflag != tar.TypeDir {
				for f := range files {
					if strings.HasPrefix(f, name+"/") {
						delete(files, f)
					}
				}
			}
			files[name] = node{*hdr, string(body)}
		}
		rc.Close()
	}
	return files
}

// listing prints files one a line.
func listing(files map[string]node) []string {
	var list []string
	for name, n := range files {
		if n.Typeflag == tar.TypeDir {
			name += "/"
		}
		list = append(list, name+" "+n.String())
	}
	sort.Strings(list)
	return list
}

// entries are files of an image: "path mode uid:gid content"; a path that ends
// in a slash is a directory, "->" before the content makes a link of it.
func layerOf(t testing.TB, entries ...string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		var hdr tar.Header
		var body string
		f := strings.SplitN(e, " ", 4)
		fmt.Sscanf(f[1], "%o", &hdr.Mode)
		fmt.Sscanf(f[2], "%d:%d", &hdr.Uid, &hdr.Gid)
		if len(f) > 3 {
			body = f[3]
		}
		hdr.Name, hdr.Typeflag = f[0], tar.TypeReg
		if to, ok := strings.CutPrefix(body, "-> "); ok {
			hdr.Typeflag, hdr.Linkname, body = tar.TypeSymlink, to, ""
		} else if strings.HasSuffix(f[0], "/") {
			hdr.Typeflag = tar.TypeDir
		} else if file, ok := strings.CutPrefix(body, "@"); ok {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			body = string(content)
		}
		hdr.Size, hdr.ModTime = int64(len(body)), layer.ModTime
		if err := tw.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return bytesLayer(b.Bytes())
}

func bytesLayer(b []byte) v1.Layer {
	sum := sha256.Sum256(b)
	return image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, int64(len(b)))
}

func imageOf(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	var add []image.Addition
	for _, l := range layers {
		add = append(add, image.Addition{Layer: l, History: v1.History{CreatedBy: "base"}})
	}
	img, err := image.Append(empty.Image, add, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture, cf.Config = "linux", "amd64", config
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// baseImage is a small system: busybox, accounts, and files of other owners.
func baseImage(t testing.TB, config v1.Config) v1.Image {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is missing: apt-get install busybox-static")
	}
	return imageOf(t, config,
		layerOf(t, "bin/ 755 0:0", "bin/busybox 755 0:0 @"+busybox, "bin/sh 777 0:0 -> busybox", "etc/ 755 0:0",
			"etc/passwd 644 0:0 root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\n",
			"etc/group 644 0:0 root:x:0:\nnode:x:1001:\nextra:x:50:node\n",
			"tmp/ 1777 0:0", "root/ 700 0:0", "home/ 755 0:0", "home/node/ 750 1000:1001"),
		layerOf(t, "srv/ 755 0:0", "srv/data 600 33:34 data", "srv/link 777 0:0 -> /etc", "srv/d/ 755 0:0", "srv/d/x 644 0:0 x"))
}

// worker starts a sandbox for root steps, and returns a place for scratch in it.
func worker(t testing.TB, tier sandbox.Tier) (*sandbox.Worker, sandbox.Report, string) {
	t.Helper()
	dir := t.TempDir()
	scratch := filepath.Join(dir, "scratch")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		t.Fatal(err)
	}
	w, report, err := sandbox.Start(context.Background(), sandbox.Options{Tier: tier, Scratch: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.Remove(context.Background(), scratch), w.Close()); err != nil {
			t.Error(err)
		}
	})
	return w, report, scratch
}

// skip is what is no part of any image.
var skip = []string{"/skipped", "/tmp/skipped/deep", "/srv/link/deep", "/missing/too"}

func overlayMachine(t testing.TB, tier sandbox.Tier) *Overlay {
	t.Helper()
	w, report, scratch := worker(t, tier)
	m, err := NewOverlay(w, report, OverlayOptions{Scratch: scratch, Executable: inside, Skip: skip, Env: []string{"HTTP_PROXY=http://host.example"}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rootTiers are the tiers for root steps that this user can have.
func rootTiers() []sandbox.Tier {
	if os.Geteuid() == 0 {
		return []sandbox.Tier{sandbox.Tier1S, sandbox.Tier1F}
	}
	return []sandbox.Tier{sandbox.Tier1F}
}

// heard collects what a build says.
type heard struct {
	mu   sync.Mutex
	text []string
}

func (h *heard) Emit(e event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch e := e.(type) {
	case event.Message:
		h.text = append(h.text, string(e.Level)+": "+e.Text)
	case event.Output:
		h.text = append(h.text, e.Text)
	}
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.text, "\n")
}

// order is what a test wants built.
type order struct {
	dockerfile string
	base       v1.Image
	images     map[string]v1.Image
	context    map[string]string // path to content; "mode " before it sets one, "-> " makes a link
	args       map[string]string
	secrets    map[string][]byte
	target     string
	cache      Cache
}

func (o order) options(t testing.TB, h *heard) Options {
	t.Helper()
	images := map[string]v1.Image{"base": o.base}
	for name, img := range o.images {
		images[name] = img
	}
	if o.cache == nil {
		o.cache = openCache(t, t.TempDir())
	}
	return Options{
		Images: images, Args: o.args, Secrets: o.secrets, Target: o.target, Context: layer.Stack{Upper: filetree.New(t, o.context)},
		Cache: o.cache, Scratch: t.TempDir(), Events: h, Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
	}
}

func openCache(t testing.TB, dir string) *Directory {
	t.Helper()
	d, err := OpenDirectory(dir, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// builders build an order on every machine that there is.
func builders(t testing.TB) map[string]func(t testing.TB, o order, h *heard) (v1.Image, error) {
	t.Helper()
	all := map[string]func(t testing.TB, o order, h *heard) (v1.Image, error){}
	for i, tier := range rootTiers() {
		m := overlayMachine(t, tier)
		all[string(tier)] = func(t testing.TB, o order, h *heard) (v1.Image, error) { return buildWith(t, m, o, h) }
		if i == 0 {
			all["in place"] = func(t testing.TB, o order, h *heard) (v1.Image, error) { return buildInPlace(t, m, o, h) }
		}
	}
	return all
}

func buildWith(t testing.TB, m Machine, o order, h *heard) (v1.Image, error) {
	t.Helper()
	f, err := Parse([]byte(o.dockerfile), "Dockerfile")
	if err != nil {
		return nil, err
	}
	return f.Build(context.Background(), m, o.options(t, h))
}

// buildInPlace builds in a container made of the base image: what the extender
// finds itself in.
func buildInPlace(t testing.TB, m *Overlay, o order, h *heard) (v1.Image, error) {
	t.Helper()
	layers, err := o.base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.Root(context.Background(), layers)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root := r.(*overlayRoot)
	// Somewhere that belongs to the container, not to the image.
	kaniko, err := m.directory()
	if err != nil {
		t.Fatal(err)
	}
	path, err := layout.Write(filepath.Join(kaniko, "base"), empty.Index)
	if err == nil {
		err = path.AppendImage(o.base)
	}
	if err == nil {
		_, err = layout.Write(filepath.Join(kaniko, "image"), empty.Index)
	}
	if err != nil {
		t.Fatal(err)
	}
	request, err := json.Marshal(map[string]any{
		"Dockerfile": []byte(o.dockerfile), "Base": "/kaniko/base", "BaseName": "base", "Context": "/context", "Out": "/kaniko",
		"Args": o.args, "Secrets": o.secrets, "Target": o.target, "Skip": skip, "Env": []string{"HTTP_PROXY=http://host.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	spec := sandbox.Spec{Root: root.overlay, Mounts: []sandbox.Mount{
		{Target: "/kaniko", Source: kaniko}, {Target: "/context", Source: filetree.New(t, o.context), ReadOnly: true},
		{Target: "/inside", Source: inside, ReadOnly: true},
	}}
	var stdout, stderr bytes.Buffer
	runErr := m.worker.In(spec).Run(context.Background(), sandbox.Command{
		Path: "/inside", Args: []string{"inside"}, Env: []string{"PATH=/bin"}, Stdin: bytes.NewReader(request), Stdout: &stdout, Stderr: &stderr,
	})
	if err := event.Decode(&stdout, h); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if runErr != nil {
		return nil, fmt.Errorf("%s (%w)", strings.TrimPrefix(strings.TrimSpace(stderr.String()), "error: "), runErr)
	}
	return readLayout(t, filepath.Join(kaniko, "image"))
}

func readLayout(t testing.TB, dir string) (v1.Image, error) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	return index.Image(m.Manifests[0].Digest)
}

// added are the layers above those of base.
func added(t testing.TB, img, base v1.Image) []v1.Layer {
	t.Helper()
	all, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	below, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return all[len(below):]
}

// created lists what history says of what was built, "-" before what has no layer.
func created(t testing.TB, img v1.Image) []string {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, h := range cf.History {
		if h.CreatedBy == "base" {
			continue
		}
		prefix := ""
		if h.EmptyLayer {
			prefix = "- "
		}
		if !h.Created.Time.Equal(layer.ModTime) {
			prefix += h.Created.String() + " "
		}
		list = append(list, prefix+h.CreatedBy)
	}
	return slices.Clip(list)
}
