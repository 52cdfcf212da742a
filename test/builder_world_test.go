package test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	storepkg "github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/filetree"
)

// world is where real builders build: Debian's docker-registry with a builder
// and its run image in it, and podman, which takes both from there.
type world struct {
	site
	podman podmanHome
	// runtime are podman's arguments for the one that this host bears: crun
	// refuses hosts with both kinds of cgroups, runc wants to make some.
	runtime []string
	dir     string // places of builds lie below it
	cas     string // the CA bundle of this host
	// user is what users of this host tell buildpacks: where packages come from.
	user map[string]string
}

// The images of the world in its registry. The small builder stands on kiln's
// own run image: for what builds once more somewhere else.
const (
	worldRun     = "world/run:1"
	worldBuilder = "world/builder:1"
	smallBuilder = "world/small:1"
)

// scenario is one file of testdata/builders: an app, buildpacks, and an order
// that a builder gets with them.
type scenario struct {
	name  string
	files map[string]string
}

func readScenario(t *testing.T, name string) scenario {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("testdata", "builders", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	s := scenario{name: name, files: map[string]string{}}
	for _, f := range archive.Files {
		s.files[f.Name] = string(f.Data)
	}
	if s.files["order.toml"] == "" || len(s.below("app")) == 0 {
		t.Fatalf("scenario %s has no order or no app", name)
	}
	return s
}

// below are the files in a folder of the scenario.
func (s scenario) below(dir string) map[string]string {
	files := map[string]string{}
	for name, content := range s.files {
		if rel, ok := strings.CutPrefix(name, dir+"/"); ok {
			files[rel] = content
		}
	}
	return files
}

// newWorld makes base images, builders and a registry that has them.
func newWorld(t *testing.T, scenarios []scenario) *world {
	t.Helper()
	addr, stop, err := startRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	w := &world{site: site{addr: addr, store: sharedStore(t)}, dir: t.TempDir(), cas: caBundle(t), user: registrySettings(t)}
	if w.podman, err = newPodman(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.podman.close)
	w.makeBases(t)
	st, err := storepkg.Open(t.Context(), sharedStore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	run, build, small := stored(t, st, "world/run:1"), stored(t, st, "world/build:1"), stored(t, st, "kiln/run:bookworm")
	w.push(t, worldRun, run)
	w.push(t, worldBuilder, w.builder(t, st, build, scenarios))
	w.push(t, smallBuilder, w.builder(t, st, withUnshare(t, st, small, build), scenarios))
	w.findRuntime(t)
	return w
}

func (w *world) findRuntime(t *testing.T) {
	t.Helper()
	image, errs := w.inPodman(t, worldBuilder), []error(nil)
	for _, w.runtime = range [][]string{{"--runtime", "runc"}, {"--runtime", "crun", "--cgroups=disabled"}} {
		args := slices.Concat([]string{"run", "--rm"}, w.runtime, []string{"--network", "host", "--log-driver", "none", "--ulimit", "nofile=1024:1024", "--ulimit", processes(), "--user", "0:0", image, "true"})
		_, err := w.podman.run(args...)
		if err == nil {
			return
		}
		errs = append(errs, err)
	}
	t.Fatal(errors.Join(errs...))
}

// withUnshare is a small image with the one program of a large one that
// containers of users without sub-ids begin with.
func withUnshare(t *testing.T, st *storepkg.Store, small, large v1.Image) v1.Image {
	t.Helper()
	file := layer.File{Path: "/usr/bin/unshare", Mode: 0o755}
	for _, l := range layersOf(t, large) {
		walkLayer(t, l, func(h *tar.Header, body []byte) {
			if h.Name == "usr/bin/unshare" || h.Name == file.Path {
				file.Body = body
			}
		})
	}
	if len(file.Body) == 0 {
		t.Fatal("the build image has no unshare")
	}
	img, err := image.Append(small, []image.Addition{addition(t, st, "unshare", []layer.File{file})}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// makeBases makes the base images that the store does not have: it is the one
// of all tests, and may be kept between runs.
func (w *world) makeBases(t *testing.T) {
	t.Helper()
	apt := []string{"apt", "dpkg", "diffutils", "libc-bin", "sed", "tar", "gpgv", "debian-archive-keyring", "grep", "findutils", "gawk"} // what apt-get needs
	for name, packages := range map[string][]string{
		"world/run:1":   append(apt, "openjdk-17-jre-headless", "nodejs"),
		"world/build:1": append(apt, "openjdk-17-jdk-headless", "maven", "nodejs", "npm", "util-linux"),
	} {
		if kiln(t, "inspect", name).code == 0 {
			continue
		}
		args := []string{"base", "create", name, "--quiet"}
		for _, p := range packages {
			args = append(args, "--package", p)
		}
		patiently(t, args...)
	}
	patiently(t, "build", "warm-up-builders", "--path", filetree.New(t, map[string]string{"f": "x"}), "--buildpack", buildpack(t, "test/nothing", "", ""), "--quiet")
}

// patiently runs kiln, which must succeed, for as long as the test may run:
// packages have to come, and compilers to work, on a machine that does more.
func patiently(t *testing.T, args ...string) string {
	t.Helper()
	r := end(t, kilnCommand(t.Context(), t, args...))
	if r.code != 0 {
		t.Fatalf("kiln %q: exit %d\n%s%s", args, r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

func stored(t *testing.T, st *storepkg.Store, ref string) v1.Image {
	t.Helper()
	img, err := st.Image(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (w *world) push(t *testing.T, repo string, img v1.Image) {
	t.Helper()
	if err := remote.Write(w.ref(t, repo), img); err != nil {
		t.Fatal(err)
	}
}

func (w *world) pull(t *testing.T, repo string) v1.Image {
	t.Helper()
	img, err := remote.Image(w.ref(t, repo), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// builder makes a builder of a base image, as the platforms' own commands do
// (requirements 6.4): the lifecycle, the scenarios' buildpacks, one order with
// all their groups, and labels that say the same.
func (w *world) builder(t *testing.T, st *storepkg.Store, base v1.Image, scenarios []scenario) v1.Image {
	t.Helper()
	buildpacks, order := worldBuildpacks(t, scenarios)
	runTOML := fmt.Sprintf("[[images]]\nimage = %q\n", w.addr+"/"+worldRun)
	layers := []image.Addition{
		addition(t, st, "default dirs", []layer.File{
			worldDir("/cnb", 0), worldDir("/cnb/buildpacks", 0), worldDir("/cnb/extensions", 0), worldDir("/cnb/build-config", 0), worldDir("/cnb/build-config/env", 0),
			worldDir("/layers", 1000), worldDir("/platform", 0), worldDir("/platform/env", 0), worldDir("/workspace", 1000),
		}),
		addition(t, st, "lifecycle", worldLifecycle(t)),
		addition(t, st, "buildpacks", buildpacks),
		addition(t, st, "order and run image", []layer.File{
			{Path: "/cnb/order.toml", Mode: 0o644, Body: order}, {Path: "/cnb/run.toml", Mode: 0o644, Body: []byte(runTOML)},
		}),
	}
	img, err := image.Append(base, layers, func(cf *v1.ConfigFile) {
		cf.Config.WorkingDir = "/layers"
		cf.Config.Env = append(cf.Config.Env, "CNB_USER_ID=1000", "CNB_GROUP_ID=1000")
		maps.Copy(cf.Config.Labels, w.builderLabels(t, order))
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// with is a builder with more files on top.
func (w *world) with(t *testing.T, repo string, files ...layer.File) v1.Image {
	t.Helper()
	st, err := storepkg.Open(t.Context(), sharedStore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	img, err := image.Append(w.pull(t, repo), []image.Addition{addition(t, st, "more", files)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func addition(t *testing.T, st *storepkg.Store, what string, files []layer.File) image.Addition {
	t.Helper()
	l, err := st.PutLayer(t.Context(), func(to io.Writer) error { return layer.WriteFiles(to, files) })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return image.Addition{Layer: l, History: v1.History{CreatedBy: what}}
}

func worldDir(path string, owner int) layer.File {
	return layer.File{Path: path, Mode: fs.ModeDir | 0o755, Owner: layer.Owner{UID: owner, GID: owner}}
}

// worldLifecycle is /cnb/lifecycle of a builder.
func worldLifecycle(t *testing.T) []layer.File {
	t.Helper()
	files := []layer.File{worldDir("/cnb", 0), worldDir("/cnb/lifecycle", 0)}
	for _, program := range []string{"launcher", "lifecycle"} {
		body, err := os.ReadFile(filepath.Join(bin, "..", "cmd", "kiln", "payload", program))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, layer.File{Path: "/cnb/lifecycle/" + program, Mode: 0o755, Body: body})
	}
	sboms, err := filepath.Glob(filepath.Join(bin, "..", "cmd", "kiln", "payload", "*.sbom.*.json"))
	if err != nil || len(sboms) != 6 {
		t.Fatalf("SBOMs of launcher and lifecycle: %q %v", sboms, err)
	}
	for _, file := range sboms {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, layer.File{Path: "/cnb/lifecycle/" + filepath.Base(file), Mode: 0o644, Body: body})
	}
	for _, phase := range []string{"analyzer", "builder", "creator", "detector", "exporter", "extender", "rebaser", "restorer"} {
		files = append(files, layer.File{Path: "/cnb/lifecycle/" + phase, Mode: fs.ModeSymlink | 0o777, Link: "lifecycle"})
	}
	return append(files, layer.File{Path: "/lifecycle", Mode: fs.ModeSymlink | 0o777, Link: "/cnb/lifecycle"})
}

// worldBuildpacks are the buildpacks and extensions of the scenarios, and one
// order with the groups of all: a buildpack knows its own apps.
func worldBuildpacks(t *testing.T, scenarios []scenario) (files []layer.File, order []byte) {
	t.Helper()
	for _, s := range scenarios {
		order = append(order, s.files["order.toml"]...)
		for _, descriptor := range slices.Sorted(maps.Keys(s.files)) {
			dir, file := path.Split(descriptor)
			read, at := spec.ReadBuildpack, "/cnb/buildpacks"
			switch file {
			case "buildpack.toml":
			case "extension.toml":
				read, at = spec.ReadExtension, "/cnb/extensions"
			default:
				continue
			}
			b, err := read([]byte(s.files[descriptor]), descriptor)
			if err != nil {
				t.Fatal(err)
			}
			info := b.Buildpack
			if info.ID == "" {
				info = b.Extension
			}
			files = append(files, packed(path.Join(at, spec.EscapeID(info.ID)), info.Version, s.below(path.Clean(dir)))...)
		}
	}
	return files, order
}

// packed is one buildpack where builders keep it. What is in bin can be run.
func packed(dir, version string, files map[string]string) []layer.File {
	at := path.Join(dir, version)
	list := []layer.File{worldDir(dir, 0), worldDir(at, 0)}
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for up := path.Dir(name); up != "." && !made[up]; up = path.Dir(up) {
			made[up] = true
			list = append(list, worldDir(path.Join(at, up), 0))
		}
		mode := fs.FileMode(0o644)
		if path.Base(path.Dir(name)) == "bin" {
			mode = 0o755
		}
		list = append(list, layer.File{Path: path.Join(at, name), Mode: mode, Body: []byte(files[name])})
	}
	return list
}

func (w *world) builderLabels(t *testing.T, order []byte) map[string]string {
	t.Helper()
	doc, err := spec.ReadOrder(order, "order.toml")
	if err != nil {
		t.Fatal(err)
	}
	apis := map[string]any{
		"buildpack": map[string]any{"deprecated": []string{}, "supported": spec.BuildpackAPIs},
		"platform":  map[string]any{"deprecated": []string{}, "supported": spec.PlatformAPIs},
	}
	run := map[string]any{"image": w.addr + "/" + worldRun}
	return map[string]string{
		spec.BuilderMetadataLabel: label(t, map[string]any{
			"description": "the builder of this test", "stack": map[string]any{"runImage": run}, "images": []any{run},
			"lifecycle": map[string]any{"version": spec.Version, "apis": apis},
		}),
		spec.BuildpackOrderLabel:   label(t, doc.Order),
		spec.LifecycleVersionLabel: spec.Version,
		spec.LifecycleAPIsLabel:    label(t, apis),
	}
}

func label(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// caBundle is the CA bundle of this host, private roots included.
func caBundle(t *testing.T) string {
	t.Helper()
	for _, file := range []string{os.Getenv("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"} {
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() {
			return file
		}
	}
	t.Fatal("this host has no CA bundle: apt-get install ca-certificates")
	return ""
}

// registrySettings says where Maven and npm get packages from, if this host's
// user has said so.
func registrySettings(t *testing.T) map[string]string {
	t.Helper()
	settings := map[string]string{}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(home, ".m2", "settings.xml")); err == nil {
		settings["MAVEN_SETTINGS_XML"] = string(b)
	}
	npmrc, err := os.ReadFile(filepath.Join(home, ".npmrc"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(npmrc)) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "registry" {
			settings["npm_config_registry"] = strings.TrimSpace(value)
		}
	}
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if value := os.Getenv(name); value != "" {
			settings["npm_config_registry"] = value
		}
	}
	return settings
}

// proxies are this host's proxy variables.
func proxies() []string {
	var env []string
	for _, kv := range hostEnv() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasSuffix(strings.ToLower(name), "_proxy") {
			env = append(env, kv)
		}
	}
	return env
}
