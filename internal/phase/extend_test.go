package phase

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/dockerfile/dockerfiletest"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestMain(m *testing.M) { os.Exit(dockerfiletest.Main(m)) }

// extension is what is there for an Extend: files of <generated> and of the app.
type extensionWorld struct {
	*testing.T
	machine *dockerfile.Overlay
	cache   dockerfile.Cache
	base    v1.Image
	x       Extension
	events
}

func newExtension(t *testing.T, m *dockerfile.Overlay, kind dockerfile.Kind, config v1.Config, generated map[string]string, ids ...string) *extensionWorld {
	t.Helper()
	cache, err := dockerfile.OpenDirectory(t.TempDir(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w := &extensionWorld{T: t, machine: m, cache: cache, base: dockerfiletest.Base(t, config)}
	w.x = Extension{Kind: kind, PlatformAPI: "0.15", Base: "example.com/base@sha256:1", Generated: layer.Stack{Upper: filetree.New(t, generated)},
		App: layer.Stack{Upper: filetree.New(t, map[string]string{"file": "app", "app": "app"})}}
	for _, id := range ids {
		w.x.Group.GroupExtensions = append(w.x.Group.GroupExtensions, spec.GroupElement{ID: id, Version: "1.0.0"})
	}
	return w
}

func (w *extensionWorld) try() (v1.Image, error) {
	w.Helper()
	return Extend(w.Context(), w.machine, w.cache, w.base, w.x, w)
}

func (w *extensionWorld) extend() v1.Image {
	w.Helper()
	img, err := w.try()
	if err != nil {
		w.Fatal(err)
	}
	return img
}

// files are the regular files of the layers above the base.
func (w *extensionWorld) files(img v1.Image) map[string]string {
	w.Helper()
	layers, err := img.Layers()
	if err != nil {
		w.Fatal(err)
	}
	files := map[string]string{}
	for _, l := range layers[1:] {
		rc, err := l.Uncompressed()
		if err != nil {
			w.Fatal(err)
		}
		for tr := tar.NewReader(rc); ; {
			hdr, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				w.Fatal(err)
			}
			if body, err := io.ReadAll(tr); hdr.Typeflag == tar.TypeReg && err == nil {
				files[hdr.Name] = string(body)
			}
		}
		rc.Close()
	}
	return files
}

func (w *extensionWorld) config(img v1.Image) v1.ConfigFile {
	w.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		w.Fatal(err)
	}
	return *cf
}

const extendsBase = "ARG base_image\nFROM ${base_image}\n"

func TestExtendAppliesInOrder(t *testing.T) {
	m := dockerfiletest.Machine(t)
	conform.Covers(t, 92, 93)
	const args = "ARG base_image\nARG build_id=0\nARG user_id\nARG group_id\nARG extra=none\nUSER root\n"
	w := newExtension(t, m, dockerfile.Build, v1.Config{User: "node", Env: []string{"PATH=/bin"}}, map[string]string{
		"b_one/build.Dockerfile":      extendsBase + args + "RUN echo one > /order; echo $base_image $user_id:$group_id $extra > /one; echo $build_id > /id1\nUSER 7:8",
		"b_one/extend-config.toml":    "[[build.args]]\nname = 'extra'\nvalue = 'given'\n[[run.args]]\nname = 'extra'\nvalue = 'wrong'\n",
		"a_two/build.Dockerfile":      extendsBase + args + "RUN echo two >> /order; echo $base_image $user_id:$group_id $extra > /two; echo $build_id > /id2\nENV SET=by-two\nUSER node",
		"other/run.Dockerfile":        extendsBase + "RUN false",
		"third/build.Dockerfile":      extendsBase + args + "RUN echo $user_id:$group_id > /three\n",
		"third/run.Dockerfile.ignore": "broken",
	}, "b/one", "a/two", "other", "third")
	img := w.extend()
	files := w.files(img)
	id := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n$`)
	for _, name := range []string{"id1", "id2"} {
		if !id.MatchString(files[name]) {
			t.Errorf("build_id %q is no UUID", files[name])
		}
	}
	if files["id1"] == files["id2"] {
		t.Error("both Dockerfiles have the same build_id")
	}
	if name := regexp.MustCompile(`extended@sha256:[0-9a-f]{64}`); name.MatchString(files["two"]) {
		files["two"] = name.ReplaceAllString(files["two"], "NEXT")
	}
	delete(files, "id1")
	delete(files, "id2")
	want := map[string]string{"order": "one\ntwo\n", "one": "example.com/base@sha256:1 1000:1001 given\n", "two": "NEXT 7:8 none\n", "three": "1000:1001\n"}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	cf := w.config(img)
	if diff := cmp.Diff([]string{"PATH=/bin", "SET=by-two"}, cf.Config.Env); diff != "" || cf.Config.User != "root" {
		t.Errorf("user %s, env %s", cf.Config.User, diff)
	}
	var created []string
	for _, h := range cf.History {
		if !h.EmptyLayer {
			created = append(created, h.CreatedBy)
		}
	}
	if len(created) != 4 || !strings.HasPrefix(created[1], "Layer: 'RUN /bin/sh -c echo one") || !strings.HasSuffix(created[3], "Created by extension: third") {
		t.Errorf("history %q", created)
	}
}

// TestExtendContexts: the kind's own context, else the shared one, else the app.
func TestExtendContexts(t *testing.T) {
	m := dockerfiletest.Machine(t)
	conform.Covers(t, 94)
	copies := extendsBase + "COPY . /got/\nUSER 1\nLABEL io.buildpacks.rebasable=true"
	for name, x := range map[string]struct {
		api   string
		files map[string]string
		want  map[string]string
	}{
		"own":     {"0.15", map[string]string{"e/run.Dockerfile": copies, "e/context.run/file": "run", "e/context.build/file": "build"}, map[string]string{"got/file": "run"}},
		"shared":  {"0.13", map[string]string{"e/run.Dockerfile": copies, "e/context/file": "shared"}, map[string]string{"got/file": "shared"}},
		"app":     {"0.15", map[string]string{"e/run.Dockerfile": copies, "e/context.build/file": "build"}, map[string]string{"got/file": "app", "got/app": "app"}},
		"old API": {"0.12", map[string]string{"run/e/Dockerfile": copies, "run/e/context/file": "shared", "e/run.Dockerfile": "wrong"}, map[string]string{"got/file": "app", "got/app": "app"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newExtension(t, m, dockerfile.Run, v1.Config{}, x.files, "e")
			w.x.PlatformAPI = x.api
			if diff := cmp.Diff(x.want, w.files(w.extend())); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

// TestExtendRunImage: who the app is started as, and whether the image can be
// rebased.
func TestExtendRunImage(t *testing.T) {
	m := dockerfiletest.Machine(t)
	conform.Covers(t, 97, 98)
	const label = "\nLABEL io.buildpacks.rebasable=true"
	for name, x := range map[string]struct {
		first, second string
		rebasable     string // "" for a failure
	}{
		"both say so":               {"USER 1:1" + label, "USER 2" + label, "true"},
		"the first does not":        {"USER 1:1", "USER 2" + label, "false"},
		"the second does not":       {"USER 1" + label, "USER 2", "false"},
		"the second says otherwise": {"USER 1" + label, "USER 2\nLABEL io.buildpacks.rebasable=false", "false"},
		"another value":             {"USER 1" + label, "USER 2\nLABEL io.buildpacks.rebasable=1", "false"},
		"a name":                    {"USER root" + label, "USER node:node" + label, "true"},
		"a name that is not there":  {"USER 1" + label, "USER nobody" + label, "true"},
		"root in between":           {"USER root" + label, "USER 1" + label, "true"},
		"root":                      {"USER 1" + label, "USER root" + label, ""},
		"root with a group":         {"USER 1" + label, "USER root:node" + label, ""},
		"0":                         {"USER 1" + label, "USER 0" + label, ""},
		"0 with a group":            {"USER 1" + label, "USER 0:1000" + label, ""},
		"00":                        {"USER 1" + label, "USER 00:1" + label, ""},
		"another name of root":      {"USER 1" + label, "USER toor" + label, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newExtension(t, m, dockerfile.Run, v1.Config{User: "node", Labels: map[string]string{spec.RebasableLabel: "true"}}, map[string]string{
				"a/run.Dockerfile": extendsBase + x.first, "b/run.Dockerfile": extendsBase + x.second}, "a", "b")
			img, err := w.try()
			if x.rebasable == "" {
				if spec.ExitCode(err, 0) != spec.ExitExtend || !strings.Contains(fmt.Sprint(err), "has root as its user") || spec.HintOf(err) == "" {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := w.config(img).Config.Labels[spec.RebasableLabel]; got != x.rebasable {
				t.Errorf("rebasable is %q, want %q", got, x.rebasable)
			}
		})
	}
	w := newExtension(t, m, dockerfile.Run, v1.Config{User: "root", Labels: map[string]string{spec.RebasableLabel: "true"}}, nil, "a")
	img := w.extend()
	if a, b := digestOf(t, img), digestOf(t, w.base); a != b {
		t.Error("without a Dockerfile it is another image")
	}
}

func digestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// TestExtendErrors: each names the extension, the file and the line.
func TestExtendErrors(t *testing.T) {
	m := dockerfiletest.Machine(t)
	for name, x := range map[string]struct{ body, err string }{
		"syntax":          {extendsBase + "FOO", "extension e@1.0.0: build.Dockerfile:3: unknown instruction: FOO"},
		"two stages":      {extendsBase + "FROM x", "extension e@1.0.0: build.Dockerfile:3: a second FROM instruction"},
		"a command":       {extendsBase + "RUN exit 3", "extension e@1.0.0: build.Dockerfile:3: RUN exit 3: exit status 3"},
		"another image":   {extendsBase + "COPY --from=debian /etc /x", "no earlier stage and no image debian"},
		"outside":         {extendsBase + "COPY ../../etc/passwd /x", "source ../../etc/passwd: not found"},
		"what is no text": {extendsBase + "RUN \x00", "build.Dockerfile:3: a NUL byte"},
	} {
		w := newExtension(t, m, dockerfile.Build, v1.Config{}, map[string]string{"e/build.Dockerfile": x.body}, "e")
		_, err := w.try()
		if err == nil || !strings.Contains(err.Error(), x.err) || spec.ExitCode(err, 0) != spec.ExitExtend {
			t.Errorf("%s: %v, want %s", name, err, x.err)
		}
		var exit *sandbox.ExitError
		if name == "a command" && !errors.As(err, &exit) {
			t.Errorf("%v does not say how the command ended", err)
		}
	}
	for name, hostile := range map[string]func(dir string) error{
		"a link to a file of the host": func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "e/build.Dockerfile")) },
		"a directory":                  func(dir string) error { return os.Mkdir(filepath.Join(dir, "e/build.Dockerfile"), 0o755) },
		"a context that is a link": func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "e/build.Dockerfile"), []byte(extendsBase+"COPY passwd /x"), 0o644), os.Symlink("/etc", filepath.Join(dir, "e/context")))
		},
	} {
		w := newExtension(t, m, dockerfile.Build, v1.Config{}, map[string]string{"e/x": ""}, "e")
		if err := hostile(w.x.Generated.Upper); err != nil {
			t.Fatal(err)
		}
		if img, err := w.try(); err == nil {
			t.Errorf("%s: no error, but %v", name, w.files(img))
		}
	}
}

// TestExtendIsCached: the second time nothing is carried out but what depends on
// the build id.
func TestExtendIsCached(t *testing.T) {
	m := dockerfiletest.Machine(t)
	w := newExtension(t, m, dockerfile.Build, v1.Config{User: "1:2"}, map[string]string{
		"a/build.Dockerfile": extendsBase + "USER root\nRUN echo a > /a\nCOPY file /f\nARG build_id=0\nRUN test -n \"$build_id\"\nRUN echo b > /b\n",
		"b/build.Dockerfile": extendsBase + "USER root\nRUN echo c > /c\n"}, "a", "b")
	w.x.FindUser = nil
	first := digestOf(t, w.extend())
	for range 2 {
		w.list = nil
		if again := digestOf(t, w.extend()); again != first {
			t.Errorf("another image: %s, %s", again, first)
		}
		cached, executed := 0, 0
		for _, e := range w.list {
			if m, ok := e.(event.Message); ok && strings.HasSuffix(m.Text, "(cached)") {
				cached++
			} else if ok {
				executed++
			}
		}
		if cached != 3 || executed != 2 {
			t.Errorf("%d cached, %d executed: %v", cached, executed, w.list)
		}
	}
}
