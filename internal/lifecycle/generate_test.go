package lifecycle

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// extension adds an image extension to every group. Its detect and generate are
// shell; without generate it has none.
func (w *world) extension(id, detect, generate string) {
	w.Helper()
	dir := "extensions/" + spec.EscapeID(id) + "/1.0.0/"
	w.write(dir+"extension.toml", "api = '0.12'\n[extension]\nid = '"+id+"'\nversion = '1.0.0'\nhomepage = 'https://example.com'\n")
	if detect != "" {
		w.write(dir+"bin/detect", "#!/bin/sh\nset -e\n"+detect)
	}
	if generate != "" {
		w.write(dir+"bin/generate", "#!/bin/sh\nset -e\n"+generate)
	}
	order := w.read("order.toml")
	if !strings.Contains(order, "[[order-extensions]]") {
		order += "[[order-extensions]]\n"
	}
	w.write("order.toml", order+"[[order-extensions.group]]\nid = '"+id+"'\nversion = '1.0.0'\n")
}

// newExtended is a world whose detector knows where the extensions are, after an
// analyzer that found the run image "example.com/run:1".
func newExtended(t *testing.T) *world {
	w := newWorld(t)
	w.write("workspace/go", "")
	w.write("run.toml", "[[images]]\nimage = 'example.com/run:1'\nmirrors = ['example.org/run:1']\n")
	w.environ = []string{"CNB_EXTENSIONS_DIR=" + w.path("extensions"), "CNB_RUN_PATH=" + w.path("run.toml")}
	w.write("layers/analyzed.toml", analyzedBefore)
	return w
}

const analyzedBefore = `[run-image]
image = "example.com/run:1"
reference = "example.com/run@sha256:1111111111111111111111111111111111111111111111111111111111111111"

[run-image.target]
os = "linux"
arch = "amd64"
`

func (w *world) analyzed() spec.Analyzed {
	w.Helper()
	a, err := spec.ReadAnalyzed([]byte(w.read("layers/analyzed.toml")), "analyzed.toml")
	if err != nil {
		w.Fatal(err)
	}
	return a
}

// tree lists the files below a directory.
func (w *world) tree(dir string) (list []string) {
	w.Helper()
	err := filepath.WalkDir(w.path(dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(w.path(dir), path)
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return list
}

// Shell that writes Dockerfiles.
const (
	extends  = "ARG base_image\\nFROM ${base_image}\\n"
	runOf    = "printf '%b' '%s' > \"$CNB_OUTPUT_DIR/run.Dockerfile\"\n"
	buildOf  = "printf '%b' '%s' > \"$CNB_OUTPUT_DIR/build.Dockerfile\"\n"
	configOf = "printf '%b' '%s' > \"$CNB_OUTPUT_DIR/extend-config.toml\"\n"
)

func script(form, body string) string { return strings.Replace(form, "%s", body, 1) }

func TestGenerate(t *testing.T) {
	conform.Covers(t, 67, 71, 75, 76)
	w := newExtended(t)
	w.extension("acme/curl", "printf '[[provides]]\\nname = \"dep\"\\n' > \"$CNB_BUILD_PLAN_PATH\"\n",
		`cat "$CNB_BP_PLAN_PATH" > "$CNB_EXTENSION_DIR/plan"
env | sort > "$CNB_EXTENSION_DIR/env"
pwd > "$CNB_EXTENSION_DIR/pwd"
echo "$#" > "$CNB_EXTENSION_DIR/args"
echo generating
mkdir "$CNB_OUTPUT_DIR/context"; echo x > "$CNB_OUTPUT_DIR/context/file"
`+script(runOf, extends+"RUN true\\n")+script(buildOf, extends+"RUN true\\n")+script(configOf, `[[build.args]]\nname="a"\nvalue="b"\n`))
	w.buildpack("a/first", "#!/bin/sh\n", "#!/bin/sh\n")
	w.buildpack("second", "#!/bin/sh\nprintf '[[requires]]\\nname = \"dep\"\\n[requires.metadata]\\nversion = \"3\"\\n[[requires]]\\nname=\"own\"\\n[[provides]]\\nname=\"own\"\\n' > \"$CNB_BUILD_PLAN_PATH\"\n", "#!/bin/sh\n")
	w.write("platform/env/USERS", "x")
	w.write("build-config/env/OPERATORS", "y")
	w.environ = append(w.environ, "CNB_EXEC_ENV=test")
	w.want(0, w.run(detector))

	const ext = "extensions/acme_curl/1.0.0/"
	if diff := cmp.Diff("[[entries]]\n  name = \"dep\"\n  [entries.metadata]\n    version = \"3\"\n", w.read(ext+"plan")); diff != "" {
		t.Errorf("plan of the extension: %s", diff)
	}
	var env []string
	for _, kv := range strings.Fields(w.read(ext + "env")) {
		if name, _, _ := strings.Cut(kv, "="); !slices.Contains([]string{"_", "PWD", "OLDPWD", "SHLVL", "CNB_BP_PLAN_PATH"}, name) {
			env = append(env, kv)
		}
	}
	want := []string{
		"CNB_EXTENSION_DIR=" + w.path(strings.TrimSuffix(ext, "/")), "CNB_OUTPUT_DIR=" + w.path("layers/generated/acme_curl"), "CNB_PLATFORM_DIR=" + w.path("platform"),
		"CNB_TARGET_ARCH=amd64", "CNB_TARGET_OS=linux", "OPERATORS=y", "PATH=/usr/bin:/bin", "USERS=x",
	}
	env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "CNB_TARGET_DISTRO_") }) // of this host
	slices.Sort(env)
	if diff := cmp.Diff(want, env); diff != "" {
		t.Errorf("environment: %s", diff)
	}
	if got := strings.TrimSpace(w.read(ext + "pwd")); got != w.path("workspace") {
		t.Errorf("working directory %s", got)
	}
	if got := w.read(ext + "args"); got != "0\n" {
		t.Errorf("%s arguments", got)
	}
	if diff := cmp.Diff([]string{"acme_curl/build.Dockerfile", "acme_curl/context/file", "acme_curl/extend-config.toml", "acme_curl/run.Dockerfile"}, w.tree("layers/generated")); diff != "" {
		t.Error(diff)
	}
	wantAnalyzed := spec.Analyzed{
		RunImage: &spec.RunImage{
			Image: "example.com/run:1", Reference: "example.com/run@sha256:1111111111111111111111111111111111111111111111111111111111111111", Extend: true,
			Target: &spec.Target{OS: "linux", Arch: "amd64"},
		},
		BuildImage: &spec.BuildImage{Extend: true},
	}
	if diff := cmp.Diff(wantAnalyzed, w.analyzed()); diff != "" {
		t.Error(diff)
	}
	plan, err := spec.ReadPlan([]byte(w.read("layers/plan.toml")), "plan.toml")
	if err != nil || len(plan.Entries) != 1 || plan.Entries[0].Requires[0].Name != "own" {
		t.Errorf("plan %+v %v", plan, err)
	}
	group, err := spec.ReadGroup([]byte(w.read("layers/group.toml")), "group.toml")
	wantExt := []spec.GroupElement{{ID: "acme/curl", Version: "1.0.0", API: "0.12", Homepage: "https://example.com", Extension: true}}
	if diff := cmp.Diff(wantExt, group.GroupExtensions); err != nil || diff != "" || len(group.Group) != 2 {
		t.Error(diff, err, group)
	}
	if out := w.stdout.String(); !strings.Contains(out, "acme/curl@1.0.0") || !strings.Contains(out, "generating") {
		t.Errorf("what the extension said is missing:\n%s", out)
	}

	// The builder knows of the extension, and its buildpacks get what is left of the plan.
	w.want(0, w.run(builder))
	md, err := spec.ReadBuildMetadata([]byte(w.read("layers/config/metadata.toml")), "metadata.toml")
	if err != nil || len(md.Extensions) != 1 || md.Extensions[0].ID != "acme/curl" {
		t.Errorf("%+v %v", md, err)
	}
}

// An extension without bin/generate has its Dockerfiles ready, one without
// bin/detect its plan; the extender finds both where all others are.
func TestGeneratePrepared(t *testing.T) {
	conform.Covers(t, 65)
	w := newExtended(t)
	w.extension("ready", "", "")
	w.write("extensions/ready/1.0.0/detect/plan.toml", "[[provides]]\nname = 'dep'\n")
	w.write("extensions/ready/1.0.0/generate/build.Dockerfile", "ARG base_image\nFROM ${base_image}\nCOPY a /a\n")
	w.write("extensions/ready/1.0.0/generate/context.build/a", "content")
	w.extension("nothing", "", "")
	for _, mode := range []fs.FileMode{0o555, 0o755} { // of a builder's files nobody needs more than to read them
		if err := os.Chmod(w.path("extensions/ready/1.0.0/generate"), mode); err != nil {
			t.Fatal(err)
		}
		w.want(0, w.run(detector)) // the second finds what the first left
		if diff := cmp.Diff([]string{"ready/build.Dockerfile", "ready/context.build/a"}, w.tree("layers/generated")); diff != "" {
			t.Error(diff)
		}
	}
	if plan := w.read("layers/plan.toml"); plan != "" {
		t.Errorf("what is provided in detect/plan.toml is not met: %s", plan)
	}
	if got := w.read("layers/generated/ready/context.build/a"); got != "content" {
		t.Error(got)
	}
	a := w.analyzed()
	if a.RunImage.Extend || a.RunImage.Target == nil || !a.BuildImage.Extend {
		t.Errorf("%+v %+v", a.RunImage, a.BuildImage)
	}

	// A prepared run.Dockerfile that somebody overrules gets its other name too.
	w.write("extensions/ready/1.0.0/generate/run.Dockerfile", "FROM example.org/run:1\n")
	if err := os.Chmod(w.path("extensions/ready/1.0.0/generate"), 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(w.path("extensions/ready/1.0.0/generate"), 0o755) })
	w.extension("last", "", script(runOf, "FROM example.com/run:1"))
	w.want(0, w.run(detector))
	if diff := cmp.Diff([]string{"last/run.Dockerfile", "ready/build.Dockerfile", "ready/context.build/a", "ready/run.Dockerfile.ignore"}, w.tree("layers/generated")); diff != "" {
		t.Error(diff)
	}
}

func TestRunImageSelection(t *testing.T) {
	conform.Covers(t, 70, 71, 72)
	extend, nothing := extends+"RUN true\\n", extends
	type result struct {
		Image     string // "" is the one before
		Extend    bool
		Generated string // below <generated>, of those that are still applied
		Ignored   string
		Warning   string
	}
	for _, tt := range []struct {
		name string
		runs []string // the run.Dockerfile of each extension; "" is none
		want result
	}{
		{"no run.Dockerfile", []string{"", ""}, result{}},
		{"all extend", []string{extend, nothing}, result{Extend: true, Generated: "e0 e1"}},
		{"nothing but FROM still extends", []string{nothing}, result{Extend: true, Generated: "e0"}},
		{"switch", []string{"FROM example.org/run:1"}, result{Image: "example.org/run:1", Generated: "e0"}},
		{"switch, then extend", []string{"FROM example.org/run:1", extend}, result{Image: "example.org/run:1", Extend: true, Generated: "e0 e1"}},
		{"switch, then nothing but FROM", []string{"FROM example.org/run:1", nothing}, result{Image: "example.org/run:1", Extend: true, Generated: "e0 e1"}},
		{"switch, then an extension without run.Dockerfile", []string{"FROM example.org/run:1", ""}, result{Image: "example.org/run:1", Generated: "e0"}},
		{"extend, then switch", []string{extend, "FROM example.org/run:1"}, result{Image: "example.org/run:1", Generated: "e1", Ignored: "e0"}},
		{"switch and extend in one", []string{"FROM example.org/run:1\\nRUN true"}, result{Image: "example.org/run:1", Extend: true, Generated: "e0"}},
		{"the last switch wins", []string{"FROM a", extend, "FROM example.com/run:1", extend, ""}, result{Image: "example.com/run:1", Extend: true, Generated: "e2 e3", Ignored: "e0 e1"}},
		{"an unknown image", []string{"FROM example.net/other"}, result{Image: "example.net/other", Generated: "e0", Warning: "run image example.net/other is not in run.toml"}},
		{"an unknown image that is overruled", []string{"FROM example.net/other", "FROM example.com/run:1"}, result{Image: "example.com/run:1", Generated: "e1", Ignored: "e0"}},
		{"a known image by digest", []string{"FROM example.com/run:1@sha256:2222222222222222222222222222222222222222222222222222222222222222"},
			result{Image: "example.com/run:1@sha256:2222222222222222222222222222222222222222222222222222222222222222", Generated: "e0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, api := range []string{"0.12", "0.13", "0.15"} {
				w := newExtended(t)
				w.environ = append(w.environ, "CNB_EXPERIMENTAL_MODE=silent")
				for i, body := range tt.runs {
					generate := "true\n"
					if body != "" {
						generate = script(runOf, body)
					}
					w.extension(fmt.Sprintf("e%d", i), "", generate)
				}
				w.want(0, w.runAs(api, detector))
				a := w.analyzed()
				want := spec.RunImage{Image: tt.want.Image, Reference: tt.want.Image, Extend: tt.want.Extend}
				if want.Image == "" {
					before, err := spec.ReadAnalyzed([]byte(analyzedBefore), "analyzed.toml")
					if err != nil {
						t.Fatal(err)
					}
					want = *before.RunImage
					want.Extend = tt.want.Extend
				}
				if diff := cmp.Diff(&want, a.RunImage); diff != "" {
					t.Errorf("%s: %s", api, diff)
				}
				var applied, ignored []string
				for _, file := range w.tree("layers/generated") {
					switch ext := strings.Trim(filepath.Dir(strings.TrimPrefix(file, "run/")), "/"); {
					case strings.HasSuffix(file, "Dockerfile"):
						applied = append(applied, ext)
					case strings.HasSuffix(file, "Dockerfile.ignore"):
						ignored = append(ignored, ext)
					}
				}
				got := result{Image: tt.want.Image, Extend: tt.want.Extend, Generated: strings.Join(applied, " "), Ignored: strings.Join(ignored, " "), Warning: tt.want.Warning}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%s: %s", api, diff)
				}
				if warned := w.stderr.String(); tt.want.Warning == "" && warned != "" || !strings.Contains(warned, tt.want.Warning) {
					t.Errorf("%s: warnings %q, want %q", api, warned, tt.want.Warning)
				}
			}
		})
	}
}

// Before Platform API 0.13 each Dockerfile has a directory of its own.
func TestGeneratedLayoutOfOldPlatforms(t *testing.T) {
	conform.Covers(t, 76)
	w := newExtended(t)
	w.environ = append(w.environ, "CNB_EXPERIMENTAL_MODE=silent")
	w.extension("a/b", "", script(runOf, "FROM example.org/run:1\\n")+script(buildOf, extends)+script(configOf, `[[build.args]]\nname="a"\nvalue="b"\n`)+"mkdir $CNB_OUTPUT_DIR/context\n")
	w.extension("c", "", script(runOf, "FROM example.com/run:1\\n"))
	for _, api := range []string{"0.10", "0.11", "0.12"} {
		w.write("layers/generated/run/a_b/stale", "")
		w.want(0, w.runAs(api, detector))
		want := []string{"build/a_b/Dockerfile", "build/a_b/extend-config.toml", "run/a_b/Dockerfile.ignore", "run/a_b/extend-config.toml", "run/c/Dockerfile"}
		if diff := cmp.Diff(want, w.tree("layers/generated")); diff != "" {
			t.Error(api, diff)
		}
		if a := w.analyzed(); a.RunImage.Reference != "example.com/run:1" || a.BuildImage != nil {
			t.Errorf("%s: %+v", api, a)
		}
		if !strings.Contains(w.stderr.String(), "context of a/b@1.0.0 is not used: platform API "+api) {
			t.Error(api, w.stderr.String())
		}
	}
	// Extending the run image came with 0.12.
	w.extension("d", "", script(runOf, extends+"RUN true\\n"))
	w.want(0, w.runAs("0.12", detector))
	w.want(spec.ExitGenerate, w.runAs("0.11", detector))
	if !strings.Contains(w.stderr.String(), "run.Dockerfile of d@1.0.0 extends the run image, which platform API 0.11 cannot") {
		t.Error(w.stderr.String())
	}
}

func TestExperimentalExtensions(t *testing.T) {
	conform.Covers(t, 14)
	w := newExtended(t)
	w.extension("ext", "", "true\n")
	for _, tt := range []struct {
		api, mode string
		code      int
		warns     bool
	}{
		{"0.12", "", spec.ExitGeneric, false},
		{"0.12", "error", spec.ExitGeneric, false},
		{"0.10", "error", spec.ExitGeneric, false},
		{"0.12", "warn", 0, true},
		{"0.12", "silent", 0, false},
		{"0.12", "quiet", 0, false},
		{"0.12", "what", 0, true},
		{"0.13", "", 0, false},
		{"0.13", "error", 0, false},
		{"0.9", "", 0, false}, // there are no extensions
	} {
		w.environ = append(newExtended(t).environ[:0:0], "CNB_EXTENSIONS_DIR="+w.path("extensions"), "CNB_RUN_PATH="+w.path("run.toml"))
		if tt.mode != "" {
			w.environ = append(w.environ, "CNB_EXPERIMENTAL_MODE="+tt.mode)
		}
		if code := w.runAs(tt.api, detector); code != tt.code {
			t.Errorf("%s %q: exit code %d, want %d\n%s", tt.api, tt.mode, code, tt.code, w.stderr.String())
		}
		if warned := strings.Contains(w.stderr.String(), "experimental"); warned != (tt.warns || tt.code != 0) {
			t.Errorf("%s %q: %s", tt.api, tt.mode, w.stderr.String())
		}
	}
}

// Every way to break the contract has its exit code and says who did what.
func TestGenerateFailures(t *testing.T) {
	conform.Covers(t, 2, 64, 66, 68, 69, 73, 74)
	for _, tt := range []struct {
		name, generate string
		code           int
		want           string
	}{
		{"exit code", "echo out of order; exit 3\n", spec.ExitExtension, "generate of ext@1.0.0: bin/generate exited with 3"},
		{"killed", "kill -9 $$\n", spec.ExitExtension, "generate of ext@1.0.0"},
		{"build.Dockerfile", script(buildOf, "FROM debian"), spec.ExitGenerate, "build.Dockerfile of ext@1.0.0: must begin with ARG base_image"},
		{"build.Dockerfile, two stages", script(buildOf, extends+"FROM x"), spec.ExitGenerate, "build.Dockerfile of ext@1.0.0:3: a second FROM"},
		{"run.Dockerfile", script(runOf, "FROM a\\nFROM b"), spec.ExitGenerate, "run.Dockerfile of ext@1.0.0:2: a second FROM instruction"},
		{"run.Dockerfile, no stage", ": > $CNB_OUTPUT_DIR/run.Dockerfile\n", spec.ExitGenerate, "run.Dockerfile of ext@1.0.0:"},
		{"run.Dockerfile, syntax", script(runOf, "FROM a\\nNONSENSE x"), spec.ExitGenerate, "run.Dockerfile of ext@1.0.0:2: unknown instruction: NONSENSE"},
		{"extend-config.toml, name", script(configOf, `[[run.args]]\nname="user_id"\nvalue="0"`), spec.ExitGenerate, `extend-config.toml of ext@1.0.0:2:1: run.args[0].name: "user_id" cannot be set`},
		{"extend-config.toml, syntax", script(configOf, `[[run.args`), spec.ExitGenerate, "extend-config.toml of ext@1.0.0:1:"},
		{"two styles of context", "cd $CNB_OUTPUT_DIR; mkdir context context.run\n", spec.ExitGenerate, "ext@1.0.0 has context and also context.run"},
		{"three", "cd $CNB_OUTPUT_DIR; mkdir context context.run context.build\n", spec.ExitGenerate, "ext@1.0.0 has context and also context.build and context.run"},
		{"context is a file", "echo > $CNB_OUTPUT_DIR/context\n", spec.ExitGenerate, "context of ext@1.0.0: not a directory"},
		{"context is a link", "ln -s / $CNB_OUTPUT_DIR/context.run\n", spec.ExitGenerate, "context.run of ext@1.0.0: not a directory"},
		{"Dockerfile is a link", "ln -s /etc/passwd $CNB_OUTPUT_DIR/run.Dockerfile\n", spec.ExitGenerate, "run.Dockerfile of ext@1.0.0: open run.Dockerfile: is a symlink"},
		{"Dockerfile is a pipe", "mkfifo $CNB_OUTPUT_DIR/build.Dockerfile\n", spec.ExitGenerate, "build.Dockerfile of ext@1.0.0"},
		{"Dockerfile is a directory", "mkdir $CNB_OUTPUT_DIR/run.Dockerfile\n", spec.ExitGenerate, "run.Dockerfile of ext@1.0.0"},
		{"Dockerfile is huge", "truncate -s 1T $CNB_OUTPUT_DIR/run.Dockerfile\n", spec.ExitGenerate, "run.Dockerfile of ext@1.0.0: read run.Dockerfile: more than 1048576 bytes"},
		{"extend-config.toml is huge", "truncate -s 1T $CNB_OUTPUT_DIR/extend-config.toml\n", spec.ExitGenerate, "extend-config.toml of ext@1.0.0: read extend-config.toml: more than"},
		{"extend-config.toml is a pipe", "mkfifo $CNB_OUTPUT_DIR/extend-config.toml\n", spec.ExitGenerate, "extend-config.toml of ext@1.0.0"},
		{"the output directory became a link", "rmdir $CNB_OUTPUT_DIR; ln -s / $CNB_OUTPUT_DIR\n", spec.ExitGenerate, "ext@1.0.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, api := range []string{"0.12", "0.15"} {
				w := newExtended(t)
				w.environ = append(w.environ, "CNB_EXPERIMENTAL_MODE=silent")
				w.extension("ext", "", tt.generate)
				w.extension("later", "", "echo > $CNB_EXTENSION_DIR/ran\n")
				w.want(tt.code, w.runAs(api, detector))
				if out := w.stderr.String(); !strings.Contains(out, tt.want) {
					t.Errorf("%s: %q is missing:\n%s", api, tt.want, out)
				}
				for _, file := range []string{"layers/group.toml", "layers/plan.toml", "extensions/later/1.0.0/ran"} {
					if _, err := os.Lstat(w.path(file)); err == nil {
						t.Errorf("%s: there is %s", api, file)
					}
				}
				if w.read("layers/analyzed.toml") != analyzedBefore {
					t.Errorf("%s: analyzed.toml was changed", api)
				}
			}
		})
	}

	fails := func(name string, code int, want string, break_ func(w *world), args ...string) {
		t.Run(name, func(t *testing.T) {
			w := newExtended(t)
			w.extension("ext", "", script(runOf, extends+"RUN true"))
			break_(w)
			w.want(code, w.run(detector, args...))
			if out := w.stderr.String() + w.stdout.String(); !strings.Contains(out, want) {
				t.Errorf("%q is missing:\n%s", want, out)
			}
		})
	}
	fails("unsupported API", spec.ExitBuildpackAPI, `extension ext@1.0.0: buildpack API "9.9": not supported`, func(w *world) {
		w.write("extensions/ext/1.0.0/extension.toml", "api = '9.9'\n[extension]\nid = 'ext'\nversion = '1.0.0'\n")
	})
	fails("API without extensions", spec.ExitBuildpackAPI, "extension ext@1.0.0: buildpack API 0.8 has no image extensions", func(w *world) {
		w.write("extensions/ext/1.0.0/extension.toml", "api = '0.8'\n[extension]\nid = 'ext'\nversion = '1.0.0'\n")
	})
	fails("no run image to extend", spec.ExitGenerate, "analyzed.toml does not say which", func(w *world) {
		if err := os.Remove(w.path("layers/analyzed.toml")); err != nil {
			t.Fatal(err)
		}
	})
	fails("broken run.toml", spec.ExitGenerate, "run.toml:1:", func(w *world) { w.write("run.toml", "[[") })
	fails("broken extension.toml", spec.ExitDetect, "extension.toml:1:", func(w *world) { w.write("extensions/ext/1.0.0/extension.toml", "[[") })
	fails("requires", 0, `build plan of extension ext@1.0.0 requires "dep", but an extension can only provide`, func(w *world) {
		w.write("extensions/ext/1.0.0/bin/detect", "#!/bin/sh\nprintf '[[requires]]\\nname = \"dep\"\\n' > $CNB_BUILD_PLAN_PATH\n")
	}, "-log-level", "debug")
	fails("<generated> cannot be made", spec.ExitGenerate, "layers/generated", func(w *world) { w.write("layers/generated", "a file") })
	fails("a pipe for analyzed.toml", spec.ExitDetect, "analyzed.toml", func(w *world) {
		if err := os.Remove(w.path("layers/analyzed.toml")); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(w.path("layers/analyzed.toml"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
}

// Discouraged instructions and keys without a meaning are only warned of.
func TestGenerateWarns(t *testing.T) {
	conform.Covers(t, 69)
	w := newExtended(t)
	w.extension("ext", "", script(runOf, extends+"EXPOSE 80\\n")+script(buildOf, extends+"CMD x\\n")+script(configOf, `[[run.arg]]\nname="a"\n`))
	w.want(0, w.run(detector))
	for _, want := range []string{
		"run.Dockerfile of ext@1.0.0:3: an extension should not use EXPOSE", "build.Dockerfile of ext@1.0.0:3: an extension should not use CMD",
		"extend-config.toml of ext@1.0.0:1:7: run.arg: is not used",
	} {
		if !strings.Contains(w.stderr.String(), want) {
			t.Errorf("%q is missing:\n%s", want, w.stderr.String())
		}
	}
}

// Extensions provide in order: what one has met, a later one is not asked for.
func TestGeneratePlanGoesToTheFirstProvider(t *testing.T) {
	w := newExtended(t)
	provides := "printf '[[provides]]\\nname = \"dep\"\\n' > \"$CNB_BUILD_PLAN_PATH\"\n"
	dump := "cp \"$CNB_BP_PLAN_PATH\" \"$CNB_EXTENSION_DIR/plan\"\n"
	w.extension("one", provides, dump)
	w.extension("two", provides, dump)
	w.extension("unused", "printf '[[provides]]\\nname = \"nobody wants it\"\\n' > \"$CNB_BUILD_PLAN_PATH\"\n", dump)
	w.want(0, w.run(detector))
	if got := w.read("extensions/one/1.0.0/plan"); !strings.Contains(got, `name = "dep"`) {
		t.Errorf("first: %q", got)
	}
	if got := w.read("extensions/two/1.0.0/plan"); strings.Contains(got, "dep") {
		t.Errorf("second: %q", got)
	}
	if _, err := os.Stat(w.path("extensions/unused/1.0.0/plan")); err == nil {
		t.Error("an extension whose provide nobody requires took part")
	}
	// The buildpack that provides the same gets nothing: it is met.
	w.buildpack("a/first", "#!/bin/sh\necho \"[[provides]]\nname = 'dep'\" > \"$CNB_BUILD_PLAN_PATH\"\n", "#!/bin/sh\ncp \"$CNB_BP_PLAN_PATH\" \"$CNB_BUILDPACK_DIR/plan\"\n")
	w.want(0, w.run(builder))
	if got := w.read("buildpacks/a_first/1.0.0/plan"); strings.Contains(got, "dep") {
		t.Errorf("buildpack: %q", got)
	}
}

func TestGroupOfExtensionsAlone(t *testing.T) {
	conform.Covers(t, 35)
	w := newExtended(t)
	w.extension("ext", "", "true\n")
	w.write("order.toml", strings.NewReplacer("id = 'second'\nversion = '1.0.0'\n", "id = 'second'\nversion = '1.0.0'\noptional = true\n",
		"id = 'a/first'\nversion = '1.0.0'\n", "id = 'a/first'\nversion = '1.0.0'\noptional = true\n").Replace(w.read("order.toml")))
	w.buildpack("a/first", "#!/bin/sh\nexit 100\n", "")
	w.buildpack("second", "#!/bin/sh\nexit 100\n", "")
	w.want(spec.ExitDetectFail, w.run(detector))
}

func TestCreatorRefusesExtensions(t *testing.T) {
	conform.Covers(t, 168)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	w.extension("ext", "test -e extend-me\n", "echo > $CNB_EXTENSION_DIR/ran\n")
	args := []string{"-run", w.path("run.toml"), "-extensions", w.path("extensions"), "-launcher", w.path("launcher"), "-uid", "1000", "-gid", "1000", host + "/me/app"}
	w.want(0, w.run(creator, args...)) // it does not take part
	w.write("workspace/extend-me", "")
	w.want(spec.ExitDetect, w.run(creator, args...))
	if !strings.Contains(w.stderr.String(), "image extension ext@1.0.0 takes part, and the creator extends no images") {
		t.Error(w.stderr.String())
	}
	if _, err := os.Stat(w.path("extensions/ext/1.0.0/ran")); err == nil {
		t.Error("the extension generated")
	}
}

// The events of a generate are those of any other operation.
func TestGenerateEvents(t *testing.T) {
	w := newExtended(t)
	w.extension("ext", "", "echo working\n")
	w.want(0, w.run(detector, "-log-format", "json"))
	var ops []string
	err := event.Decode(&w.stdout, event.Func(func(e event.Event) {
		switch e := e.(type) {
		case event.BuildpackStarted:
			ops = append(ops, "start "+e.Op+" "+e.Buildpack)
		case event.BuildpackFinished:
			ops = append(ops, fmt.Sprintf("end %s %s %d", e.Op, e.Buildpack, e.ExitCode))
		case event.Output:
			ops = append(ops, e.Buildpack+" says "+e.Text)
		}
	}))
	ops = slices.DeleteFunc(ops, func(s string) bool { return strings.Contains(s, " detect ") })
	if diff := cmp.Diff([]string{"start generate ext@1.0.0", "ext@1.0.0 says working\n", "end generate ext@1.0.0 0"}, ops); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// In place, where buildpacks may change little, an extension can still leave
// its files; and root runs no extension.
func TestGenerateInPlace(t *testing.T) {
	for _, api := range []string{"0.12", "0.15"} {
		w := newExtended(t)
		w.host.Runner = nil
		w.environ = append(w.environ, "CNB_EXPERIMENTAL_MODE=silent")
		w.extension("ext", "", script(runOf, "FROM example.org/run:1")+script(buildOf, extends)+"mkdir $CNB_OUTPUT_DIR/context.build; echo > $CNB_OUTPUT_DIR/context.build/f\n")
		if os.Geteuid() == 0 {
			w.want(spec.ExitGeneric, w.runAs(api, detector))
			continue
		}
		w.want(0, w.runAs(api, detector))
		if n := len(w.tree("layers/generated")); n != map[string]int{"0.12": 2, "0.15": 3}[api] {
			t.Errorf("%s: %d files", api, n)
		}
		if a := w.analyzed(); a.RunImage.Image != "example.org/run:1" {
			t.Errorf("%s: %+v", api, a.RunImage)
		}
	}
}

// With a group and plan that are given nobody is asked, and the extensions of
// the group generate with their share.
func TestDecided(t *testing.T) {
	w := newExtended(t)
	w.extension("acme/curl", "touch \"$CNB_EXTENSION_DIR/asked\"\n", `cat "$CNB_BP_PLAN_PATH" > "$CNB_EXTENSION_DIR/plan"
`+script(runOf, extends+"RUN true\\n"))
	w.buildpack("first", "#!/bin/sh\ntouch \"$CNB_BUILDPACK_DIR/asked\"\n", "#!/bin/sh\n")
	group := "[[group]]\n  id = \"first\"\n  version = \"1.0.0\"\n  api = \"0.12\"\n\n[[group-extensions]]\n  id = \"acme/curl\"\n  version = \"1.0.0\"\n  api = \"0.12\"\n"
	w.write("layers/group.toml", group)
	w.write("layers/plan.toml", "[[entries]]\n[[entries.providers]]\nid = 'acme/curl'\nversion = '1.0.0'\nextension = true\n[[entries.requires]]\nname = 'dep'\n")
	w.want(0, w.run(detector, "-decided"))
	if got := w.read("extensions/acme_curl/1.0.0/plan"); !strings.Contains(got, `name = "dep"`) {
		t.Errorf("the extension's share of the plan is %q", got)
	}
	for _, dir := range []string{"extensions", "buildpacks"} {
		if list := w.tree(dir); slices.ContainsFunc(list, func(f string) bool { return strings.HasSuffix(f, "/asked") }) {
			t.Errorf("bin/detect ran: %q", list)
		}
	}
	if !w.analyzed().RunImage.Extend || strings.Contains(w.read("layers/plan.toml"), "dep") {
		t.Errorf("%+v\n%s", w.analyzed(), w.read("layers/plan.toml"))
	}
	if diff := cmp.Diff(group, w.read("layers/group.toml")); diff != "" {
		t.Error(diff)
	}
	w.write("layers/group.toml", "[[group]]\nid = 'first'\n")
	w.want(spec.ExitDetect, w.run(detector, "-decided"))
}
