package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// digestOf is an image's manifest digest in a registry, and those of its layers.
func digestOf(t *testing.T, ref string) string {
	t.Helper()
	img, _ := pull(t, ref)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(d, len(m.Layers))
}

// files is every file below dir with its digest.
func files(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		sum := sha256.Sum256(b)
		list = append(list, strings.TrimPrefix(path, dir)+" "+hex.EncodeToString(sum[:]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// A cache image serves five phases and the creator, and goes before -cache-dir.
func TestCacheImage(t *testing.T) {
	conform.Covers(t, 155, 163)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	image := host + "/me/cache"
	first := w.build(host, "-cache-image", image)
	if !strings.Contains(first, "kept is new") {
		t.Error(first)
	}
	if _, err := os.Stat(w.path("cache")); err == nil {
		t.Error("-cache-dir was used beside -cache-image")
	}
	_, cf := pull(t, image)
	md, err := spec.DecodeCacheMetadata(cf.Config.Labels["io.buildpacks.lifecycle.cache.metadata"])
	if err != nil || len(md.Buildpacks) != 1 || len(md.Buildpacks[0].Layers) != 2 || cf.OS != "linux" || len(cf.RootFS.DiffIDs) != 2 {
		t.Errorf("%+v %+v %v", md, cf, err)
	}
	app, cached := digestOf(t, host+"/me/app:1"), digestOf(t, image)
	second := w.build(host, "-cache-image", image)
	if !strings.Contains(second, "kept was restored") || !strings.Contains(second, "both.toml says [metadata]  n = 3") {
		t.Error(second)
	}
	if again := digestOf(t, image); again != cached {
		t.Errorf("the same cache is %s, was %s", again, cached)
	}

	// The creator takes it over, and leaves the same.
	if err := os.RemoveAll(w.path("layers")); err != nil {
		t.Fatal(err)
	}
	w.mkdir("layers")
	w.want(0, w.run(creator, "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-launcher-sbom", w.dir, "-uid", me(), "-gid", me(), "-cache-image", image, host+"/me/app:1"))
	if out := w.stdout.String(); !strings.Contains(out, "kept was restored") {
		t.Error(out)
	}
	if a, c := digestOf(t, host+"/me/app:1"), digestOf(t, image); a != app || c != cached {
		t.Errorf("creator made %s and %s, five phases %s and %s", a, c, app, cached)
	}

	// A layer that is not cached any more disappears, from either kind of cache.
	w.buildpack("second", "#!/bin/sh\necho \"[[requires]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n", "#!/bin/sh\n")
	w.build(host, "-cache-image", image)
	if _, cf := pull(t, image); strings.Contains(cf.Config.Labels["io.buildpacks.lifecycle.cache.metadata"], "kept") {
		t.Errorf("%v", cf.Config.Labels)
	}
}

// Export of image and cache at the same time gives the same bytes.
func TestParallelIsTheSame(t *testing.T) {
	conform.Covers(t, 158)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	var made [2]string
	for i, how := range []string{"CNB_PARALLEL_EXPORT=false", "CNB_PARALLEL_EXPORT=true"} {
		w.environ = []string{how}
		w.repo = fmt.Sprintf("me/app%d", i)
		image, dir := fmt.Sprintf("%s/cache%d", host, i), w.path(fmt.Sprint("cache", i))
		for _, said := range []string{"kept is new", "kept was restored"} {
			for _, cache := range [][]string{{"-cache-image", image}, {"-cache-dir", dir}} {
				if out := w.build(host, cache...); !strings.Contains(out, said) {
					t.Errorf("%s %q: want %q: %s", how, cache, said, out)
				}
				made[i] += digestOf(t, host+"/"+w.repo+":1") + " "
			}
			made[i] += digestOf(t, image) + "\n" + files(t, dir) + "\n"
		}
	}
	if diff := cmp.Diff(made[0], made[1]); diff != "" {
		t.Errorf("-parallel makes something else:\n%s", diff)
	}
}

// No failure of a cache is one of the build's.
func TestCacheFailures(t *testing.T) {
	conform.Covers(t, 157)
	host := newRegistry(t)
	closed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	t.Cleanup(closed.Close)
	nowhere := strings.TrimPrefix(closed.URL, "http://")
	w := newWorld(t)
	w.app(host)
	w.write("a-file", "")
	push(t, host+"/other:1", runImage(t))
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no access":          {[]string{"-cache-image", nowhere + "/cache"}, nowhere},
		"no such name":       {[]string{"-cache-image", host + "/Not/A/NAME"}, "Not/A/NAME"},
		"below a file":       {[]string{"-cache-dir", w.path("a-file/cache")}, "a-file"},
		"a file":             {[]string{"-cache-dir", w.path("a-file")}, "a-file"},
		"on a full disk":     {[]string{"-cache-dir", "/dev/full"}, "/dev/full"},
		"a registry's image": {[]string{"-cache-image", host + "/other:1"}, "no label"},
	} {
		if err := os.RemoveAll(w.path("layers")); err != nil {
			t.Fatal(err)
		}
		w.mkdir("layers")
		warned := ""
		for _, argv := range w.phases(host, test.args...) {
			if code := w.run(argv[0], argv[1:]...); code != 0 {
				t.Errorf("%s: %s exits with %d: %s", name, argv[0], code, w.stderr.String())
			}
			warned += w.stderr.String()
		}
		if !strings.Contains(warned, "the cache is not used") || !strings.Contains(warned, test.want) {
			t.Errorf("%s: it warns %q", name, warned)
		}
		if saved := name == "a registry's image"; strings.Contains(warned, "the cache is not saved") == saved {
			t.Errorf("%s: it warns %q", name, warned)
		}
	}
}

// A cache image never takes the place of another image of the build.
func TestCacheImageNames(t *testing.T) {
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	w.build(host)
	before, run := digestOf(t, host+"/me/app:1"), digestOf(t, host+"/run:1")
	for _, name := range []string{host + "/me/app:1", host + "/me/app:2", host + "/run:1", host + "/me/old"} {
		analyze := []string{"-run", w.path("run.toml"), "-previous-image", host + "/me/old:latest", "-tag", host + "/me/app:2", "-cache-image", name, host + "/me/app:1"}
		w.want(spec.ExitInvalidArgs, w.run(analyzer, analyze...))
		if out := w.stderr.String(); !strings.Contains(out, name) {
			t.Errorf("%s: %s", name, out)
		}
	}
	w.want(spec.ExitInvalidArgs, w.run(exporter, "-cache-image", host+"/me/app:2", "-launcher", w.path("launcher"), host+"/me/app:1", host+"/me/app:2"))
	if digestOf(t, host+"/me/app:1") != before || digestOf(t, host+"/run:1") != run {
		t.Error("an image was replaced")
	}
}

// Two builds share a cache directory: both end well, and a cache is left.
func TestTwoBuilders(t *testing.T) {
	host := newRegistry(t)
	dir := filepath.Join(t.TempDir(), "cache")
	worlds := []*world{newWorld(t), newWorld(t)}
	var group sync.WaitGroup
	for i, w := range worlds {
		w.app(host)
		w.repo = fmt.Sprint("me/two", i)
		group.Go(func() {
			for _, argv := range w.phases(host, "-cache-dir", dir) {
				if code := w.run(argv[0], argv[1:]...); code != 0 || strings.Contains(w.stderr.String(), "not saved") {
					t.Errorf("%s exits with %d: %s", argv[0], code, w.stderr.String())
				}
			}
		})
	}
	group.Wait()
	if out := worlds[0].build(host, "-cache-dir", dir); !strings.Contains(out, "kept") {
		t.Error(out)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v %v", entries, err)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		t.Error(err)
	}
}
