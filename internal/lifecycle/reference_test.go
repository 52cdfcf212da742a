package lifecycle

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

// shared is a build whose images and caches pass between our lifecycle and the
// reference's: layers of every kind with files of every kind, slices, SBOMs,
// labels, and a run image under Docker's media types or OCI's.
type shared struct {
	*world
	host    string
	run     v1.Image
	created time.Time     // by SOURCE_DATE_EPOCH, if that is set
	uploads *atomic.Int64 // blobs that were sent to the registry
}

func newShared(t *testing.T, run v1.Image) shared {
	s := shared{world: newWorld(t), run: run, uploads: new(atomic.Int64)}
	registry := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			s.uploads.Add(1)
		}
		registry.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	push(t, s.host+"/run:1", run)
	s.app(s.host)
	s.buildpack("second", "#!/bin/sh\necho \"[[requires]]\nname = 'dep'\n[requires.metadata]\nwhen = 2026-01-02\nn = 1.5\n\" > \"$CNB_BUILD_PLAN_PATH\"\n", `#!/bin/sh
umask 022
cd "$CNB_LAYERS_DIR"
for f in kept/file kept.toml both/bin/tool both.toml plain.toml store.toml both.sbom.cdx.json plain.sbom.cdx.json; do test -e $f && echo restored $f; done
grep -s answer both.toml store.toml
mkdir -p kept both/bin both/a both/a-b both/empty plain "both/$(printf 'ünï %0180d' 1)"
echo kept > kept/file
echo both > both/bin/tool; chmod 4755 both/bin/tool
ln -f both/bin/tool both/bin/hard; ln -sf ../bin/tool both/a/link; ln -sfn /no/where both/dangling
echo x > both/a/x; echo y > both/a-b/y; echo z > both/a.b; echo not > both/not.wh.iteout
truncate -s 70000 both/sparse; chmod 600 both/sparse; chmod 1777 both/empty
test -e both/fifo || mkfifo both/fifo
touch -d '2001-02-03 04:05:06.789' both/a/x
echo '{"bomFormat":"CycloneDX","specVersion":"1.5"}' > both.sbom.cdx.json
cp both.sbom.cdx.json plain.sbom.cdx.json
echo plain > plain/file
printf '[types]\ncache = true\n[metadata]\n' > kept.toml
printf '[types]\nlaunch = true\ncache = true\n[metadata]\nanswer = 42\nhtml = "<&>"\nf = 1e3\n[[metadata.list]]\na = [1, 2]\n' > both.toml
printf '[types]\nlaunch = true\n' > plain.toml
printf '[metadata]\nanswer = "store"\n' > store.toml
printf '[[labels]]\nkey = "com.example"\nvalue = "\\"<é>"\n[[processes]]\ntype = "web"\ncommand = ["run", "it"]\nargs = ["a"]\ndefault = true\nworking-dir = "/w"\n[[processes]]\ntype = "a.b"\ncommand = ["other"]\nexec-env = ["test"]\n[[slices]]\npaths = ["static*", "a/b"]\n[[slices]]\npaths = ["nothing*"]\n' > launch.toml
`)
	s.write("buildpacks/second/1.0.0/buildpack.toml", "api = '0.12'\n[buildpack]\nid = 'second'\nversion = '1.0.0'\nhomepage = 'https://example.com'\nsbom-formats = ['application/vnd.cyclonedx+json']\n")
	for _, name := range []string{"static/x", "static-y", "a/b/c", "a/b.txt", "a-b", "go"} {
		s.write("workspace/"+name, name)
	}
	return s
}

// theirs is what the reference's exporter makes of the directories that the last
// build left.
func (s shared) theirs(api string) reference.Exported {
	s.Helper()
	analyzed, err := spec.ReadAnalyzed([]byte(s.read("layers/analyzed.toml")), "analyzed.toml")
	if err != nil {
		s.Fatal(err)
	}
	return reference.Build{
		Layers: s.path("layers"), App: s.path("workspace"), UID: os.Getuid(), GID: os.Getuid(), PlatformAPI: api,
		Run: s.run, RunName: s.host + "/run:1", RunReference: analyzed.RunImage.Reference, Launcher: []byte(s.read("launcher")), Created: s.created,
	}.Export(s.T)
}

// under builds by a version of the Platform API.
func (s shared) under(api string, more ...string) string {
	s.Helper()
	if err := os.RemoveAll(s.path("layers")); err != nil {
		s.Fatal(err)
	}
	s.mkdir("layers")
	var said strings.Builder
	for _, argv := range s.phases(s.host, more...) {
		s.want(0, s.runAs(api, argv[0], argv[1:]...))
		said.WriteString(s.stdout.String())
	}
	return said.String()
}

// sharedRuns are run images of both kinds.
func sharedRuns(t *testing.T) map[string]v1.Image {
	oci := reference.Run(t, func(cf *v1.ConfigFile) {
		cf.Config.Cmd, cf.Config.Entrypoint, cf.Author, cf.Variant, cf.OSVersion = []string{"sh"}, []string{"init"}, "somebody", "v3", "1.2"
		cf.Config.Env = append(cf.Config.Env, "OF_BASE=1")
		cf.Config.Labels = map[string]string{spec.BaseDistroNameLabel: "debian", spec.BaseDistroVersionLabel: "12", spec.RebasableLabel: "true", spec.BaseIDLabel: "com.example.base"}
	}, map[string]string{"/etc/base": "1"}, map[string]string{"/usr/base": "2"})
	cf, err := oci.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.History = nil
	plain, err := mutate.ConfigFile(oci, cf)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]v1.Image{"OCI": oci, "Docker": imagetest.AsDocker(t, oci), "no history": plain}
}

// layersOf are the diffIDs of an image, its media types and what its history says.
func layersOf(t *testing.T, img v1.Image) (ids, kinds []string, history []v1.History) {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range cf.RootFS.DiffIDs {
		ids = append(ids, id.String())
	}
	for _, d := range append([]v1.Descriptor{{MediaType: m.MediaType}, m.Config}, m.Layers...) {
		kinds = append(kinds, string(d.MediaType))
	}
	return ids, kinds, cf.History
}

// TestBytesOfTheReference: from the same directories our exporter makes the
// layers, config, labels and caches that the reference's makes.
func TestBytesOfTheReference(t *testing.T) {
	conform.Covers(t, 128, 129, 130, 135, 137, 138, 139, 140, 141, 142, 147, 150, 151, 161, 163)
	runs := sharedRuns(t)
	for kind, api := range map[string]string{"OCI": "0.14", "Docker": "0.15", "no history": "0.15"} {
		t.Run(kind, func(t *testing.T) { bytesOfTheReference(t, newShared(t, runs[kind]), api) })
	}
}

func bytesOfTheReference(t *testing.T, s shared, api string) {
	if api == "0.14" {
		s.created = time.Unix(1_700_000_000, 0).UTC()
		s.environ = []string{"SOURCE_DATE_EPOCH=1700000000"}
	}
	s.under(api)
	theirs := s.theirs(api)
	img, cf := pull(t, s.host+"/me/app:1")
	ids, kinds, history := layersOf(t, img)
	wantIDs, wantKinds, wantHistory := layersOf(t, theirs.Image)
	for what, d := range map[string]string{
		"layers": cmp.Diff(wantIDs, ids), "media types": cmp.Diff(wantKinds, kinds), "history": cmp.Diff(wantHistory, history),
	} {
		if d != "" {
			t.Errorf("%s (-theirs +ours):\n%s\n%q", what, d, theirs.By)
		}
	}
	want, err := theirs.Image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	label, execEnv := reference.ReadLabel(t, img)
	if d := cmp.Diff(theirs.Label.String(), label.String()); d != "" || (execEnv != "") != (api == "0.15") {
		t.Errorf("label (-theirs +ours): %s exec-env %q", d, execEnv)
	}
	// Where a process has no arguments one says so and the other says nothing.
	if d := cmp.Diff(reference.ReadProcesses(t, theirs.Image), reference.ReadProcesses(t, img), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("processes in the label (-theirs +ours):\n%s", d)
	}
	// The rest of the config is the same: what differs by name of a lifecycle,
	// and what was compared, is left out.
	for _, c := range []*v1.ConfigFile{want, cf} {
		c.RootFS, c.History = v1.RootFS{}, nil
		delete(c.Config.Labels, spec.BuildMetadataLabel)
		delete(c.Config.Labels, spec.LifecycleMetadataLabel)
		slices.Sort(c.Config.Env)
	}
	if d := cmp.Diff(want, cf); d != "" {
		t.Errorf("config (-theirs +ours):\n%s", d)
	}
	reference.Same[reference.Report](t, s.path("layers/report.toml"))
	if plan := reference.Same[reference.Plan](t, s.path("layers/plan.toml")); len(plan.Entries) != 1 {
		t.Errorf("%+v", plan)
	}
	analyzed, _ := reference.Read[reference.Analyzed](t, s.path("layers/analyzed.toml"))
	if r := analyzed.RunImage; r == nil || r.Image != s.host+"/run:1" || r.Target.OS != "linux" || r.Target.ID != "com.example.base" || r.Target.ArchVariant != "v3" || r.Target.Distro.Name != "debian" {
		t.Errorf("analyzed.toml: %+v", r)
	}

	volume := reference.Volume{Dir: s.path("cache")}
	if d := cmp.Diff(theirs.Cache.String(), volume.Load(t).String()); d != "" {
		t.Errorf("volume cache (-theirs +ours):\n%s", d)
	}
	s.under(api, "-cache-image", s.host+"/me/cache")
	cached, _ := pull(t, s.host+"/me/cache")
	if d := cmp.Diff(theirs.Cache.String(), reference.ReadCacheImage(t, cached).String()); d != "" {
		t.Errorf("cache image (-theirs +ours):\n%s", d)
	}
}

// TestReusesTheReferences: what the reference's lifecycle left is as good as our
// own: nothing of it is sent or written again, everything is restored.
func TestReusesTheReferences(t *testing.T) {
	conform.Covers(t, 27, 78, 80, 84, 132, 155, 161, 163)
	runs := sharedRuns(t)
	for kind, how := range map[string]string{"OCI": "volume", "Docker": "image"} {
		t.Run(how, func(t *testing.T) { reusesTheReferences(t, newShared(t, runs[kind]), how) })
	}
}

func reusesTheReferences(t *testing.T, s shared, how string) {
	s.under("0.15")
	theirs := s.theirs("0.15")
	s.repo = "they/app"
	push(t, s.host+"/they/app:1", theirs.Image)
	push(t, s.host+"/they/cache", theirs.CacheImage(t))
	theirs.SaveVolume(t, s.path("their-cache"))
	cache := []string{"-cache-dir", s.path("their-cache")}
	if how == "image" {
		cache = []string{"-cache-image", s.host + "/they/cache"}
	}
	before := inodes(t, reference.Volume{Dir: s.path("their-cache")})
	s.uploads.Store(0)
	said := s.under("0.15", cache...)
	for _, want := range []string{"kept/file", "kept.toml", "both/bin/tool", "both.toml", "plain.toml", "store.toml", "both.sbom.cdx.json", "plain.sbom.cdx.json"} {
		if !strings.Contains(said, "restored "+want+"\n") {
			t.Errorf("%s was not restored:\n%s", want, said)
		}
	}
	if !strings.Contains(said, "answer = 42") || !strings.Contains(said, `answer = "store"`) {
		t.Errorf("metadata was not restored:\n%s", said)
	}
	img, _ := pull(t, s.host+"/they/app:1")
	got, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	want, err := theirs.Image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.Layers, got.Layers); d != "" {
		t.Errorf("not all layers are reused (-theirs +ours):\n%s", d)
	}
	configs := int64(1)
	if how == "image" {
		configs++ // that of the cache
	}
	if n := s.uploads.Load(); n > configs {
		t.Errorf("%d blobs were sent, %d are new", n, configs)
	}
	if how == "image" {
		cached, _ := pull(t, s.host+"/they/cache")
		if d := cmp.Diff(theirs.Cache.String(), reference.ReadCacheImage(t, cached).String()); d != "" {
			t.Errorf("cache image (-theirs +ours):\n%s", d)
		}
		return
	}
	volume := reference.Volume{Dir: s.path("their-cache")}
	if d := cmp.Diff(theirs.Cache.String(), volume.Load(t).String()); d != "" {
		t.Errorf("volume cache (-theirs +ours):\n%s", d)
	}
	if d := cmp.Diff(before, inodes(t, volume)); d != "" {
		t.Errorf("cached layers were written again:\n%s", d)
	}
}

// inodes are those of the layers of a volume cache.
func inodes(t *testing.T, v reference.Volume) map[string]uint64 {
	t.Helper()
	tars, err := filepath.Glob(v.Path("committed/*.tar"))
	if err != nil || len(tars) == 0 {
		t.Fatalf("%q %v", tars, err)
	}
	list := map[string]uint64{}
	for _, tar := range tars {
		var st unix.Stat_t
		if err := unix.Stat(tar, &st); err != nil {
			t.Fatal(err)
		}
		list[filepath.Base(tar)] = st.Ino
	}
	return list
}

// TestMixedPhases: phases of both lifecycles make one build. Documents that ours
// wrote are replaced by the reference's between any two phases.
func TestMixedPhases(t *testing.T) {
	conform.Covers(t, 19, 78, 84, 132)
	s := newShared(t, sharedRuns(t)["Docker"])
	s.under("0.15")
	theirs := s.theirs("0.15")
	s.repo = "they/app"
	push(t, s.host+"/they/app:1", theirs.Image)
	theirs.SaveVolume(t, s.path("cache"))
	if err := os.RemoveAll(s.path("layers")); err != nil {
		t.Fatal(err)
	}
	s.mkdir("layers")
	var said strings.Builder
	for _, argv := range s.phases(s.host) {
		s.want(0, s.runAs("0.15", argv[0], argv[1:]...))
		said.WriteString(s.stdout.String())
		s.rewrite(argv[0], theirs.Label)
	}
	for _, want := range []string{"restored both/bin/tool", "restored both.toml", "answer = 42", "restored plain.toml", "restored store.toml", "restored both.sbom.cdx.json"} {
		if !strings.Contains(said.String(), want+"\n") {
			t.Errorf("it does not say %q:\n%s", want, said.String())
		}
	}
	img, _ := pull(t, s.host+"/they/app:1")
	ids, _, _ := layersOf(t, img)
	want, _, _ := layersOf(t, theirs.Image)
	if d := cmp.Diff(want, ids); d != "" {
		t.Errorf("(-theirs +mixed):\n%s", d)
	}
	if label, _ := reference.ReadLabel(t, img); cmp.Diff(theirs.Label.String(), label.String()) != "" {
		t.Errorf("label (-theirs +mixed):\n%s", cmp.Diff(theirs.Label.String(), label.String()))
	}
}

// rewrite puts what the reference writes in the place of what a phase wrote.
func (s shared) rewrite(phase string, label reference.Label) {
	s.Helper()
	again := func(name string, v any) {
		s.write("layers/"+name, string(reference.TOML(s.T, v)))
	}
	switch phase {
	case analyzer:
		analyzed, _ := reference.Read[reference.Analyzed](s.T, s.path("layers/analyzed.toml"))
		analyzed.Metadata = label.Table()
		again("analyzed.toml", analyzed)
	case detector:
		again("group.toml", reference.Same[reference.Group](s.T, s.path("layers/group.toml")))
		again("plan.toml", reference.Same[reference.Plan](s.T, s.path("layers/plan.toml")))
	case builder:
		again("config/metadata.toml", reference.Same[reference.Metadata](s.T, s.path("layers/config/metadata.toml")))
		if err := os.Chmod(s.path("layers/config/metadata.toml"), 0o644); err != nil {
			s.Fatal(err)
		}
	}
}
