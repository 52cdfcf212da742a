package test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// with writes an OCI layout with the builder and more files in it, which can be
// executed. Directories are made as they are needed.
func with(t *testing.T, builder string, files map[string]string) string {
	t.Helper()
	dir, ref, _ := strings.Cut(strings.TrimPrefix(builder, "oci:"), ":")
	img, err := archive.Layout{Dir: dir}.Image(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	var list []layer.File
	made := map[string]bool{"/": true}
	var parents func(dir string)
	parents = func(dir string) {
		if !made[dir] {
			made[dir] = true
			parents(path.Dir(dir))
			list = append(list, layer.File{Path: dir, Mode: fs.ModeDir | 0o755})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		parents(path.Dir(name))
		list = append(list, layer.File{Path: name, Mode: 0o755, Body: []byte(files[name])})
	}
	var tar bytes.Buffer
	if err := layer.WriteFiles(&tar, list); err != nil {
		t.Fatal(err)
	}
	diffID, size, err := v1.SHA256(bytes.NewReader(tar.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	l := image.NewLayer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tar.Bytes())), nil }, diffID, size)
	img, err = image.Append(img, []image.Addition{{Layer: l}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := (archive.Layout{Dir: dir}).Write(t.Context(), ref+"-more", img); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":" + ref + "-more"
}

// extended is a builder with one buildpack and an extension that generates this.
func extended(t *testing.T, builder, generate string) string {
	return with(t, builder, map[string]string{
		"/cnb/order.toml":                        "[[order]]\n[[order.group]]\nid = 'b'\nversion = '1'\n[[order-extensions]]\n[[order-extensions.group]]\nid = 'e'\nversion = '1'\n",
		"/cnb/buildpacks/b/1/buildpack.toml":     "api = '0.12'\n[buildpack]\nid = 'b'\nversion = '1'\n",
		"/cnb/buildpacks/b/1/bin/detect":         "#!/bin/sh\n",
		"/cnb/buildpacks/b/1/bin/build":          "#!/bin/sh\n",
		"/cnb/extensions/e/1/extension.toml":     "api = '0.12'\n[extension]\nid = 'e'\nversion = '1'\n",
		"/cnb/extensions/e/1/bin/generate":       "#!/bin/sh\nset -e\n" + generate,
		"/cnb/extensions/e/1/generate/README.md": "not looked at, for there is bin/generate",
	})
}

// TestExtensionChoosesRunImage builds with a builder whose extension puts
// another run image in the place of the builder's, and with extensions that ask
// for what cannot be.
func TestExtensionChoosesRunImage(t *testing.T) {
	builder, run := tiny(t)
	source := filetree.New(t, map[string]string{"f": "x"})
	name := "chosen-run"
	args := []string{"build", name, "--path", source, "--run-image", run}

	const chooses = "echo choosing; printf 'FROM kiln/run:bookworm\\n' > $CNB_OUTPUT_DIR/run.Dockerfile\n"
	out := must(t, append(args, "--builder", extended(t, builder, chooses))...)
	if !strings.Contains(out, "e@1\n    choosing\n") || !strings.Contains(out, "run image kiln/run:bookworm, chosen by e@1") {
		t.Errorf("it is not told:\n%s", out)
	}
	r := kiln(t, append(args, "--json", "--builder", extended(t, builder, chooses))...)
	var ops []string
	if err := event.Decode(strings.NewReader(r.out), event.Func(func(e event.Event) {
		if e, ok := e.(event.BuildpackStarted); ok {
			ops = append(ops, e.Op+" "+e.Buildpack)
		}
	})); err != nil || !slices.Contains(ops, "generate e@1") {
		t.Errorf("events %v, error %v", ops, err)
	}
	info := must(t, "inspect", name, "--json")
	if !strings.Contains(info, `"image": "kiln/run:bookworm"`) && !strings.Contains(info, `"image":"kiln/run:bookworm"`) {
		t.Errorf("the image does not stand on the chosen one:\n%s", info)
	}

	for _, tt := range []struct {
		generate, want string
		code           int
	}{
		{"echo 'ERROR: no such thing'; exit 3", "bin/generate exited with 3: no such thing", spec.ExitExtension},
		{"printf 'FROM a\\nFROM b\\n' > $CNB_OUTPUT_DIR/run.Dockerfile", "run.Dockerfile of e@1:2: a second FROM", spec.ExitGenerate},
		{"printf 'FROM nowhere.example/run\\n' > $CNB_OUTPUT_DIR/run.Dockerfile", "must not speak to nowhere.example", 4},
		{"printf 'ARG base_image\\nFROM ${base_image}\\nUSER root\\n' > $CNB_OUTPUT_DIR/run.Dockerfile", "root as its user", spec.ExitExtend},
		{"printf 'ARG base_image\\nFROM ${base_image}\\nUSER root\\nRUN echo no; exit 9\\n' > $CNB_OUTPUT_DIR/build.Dockerfile", "build.Dockerfile:4: RUN echo no; exit 9: exit status 9", spec.ExitExtend},
		// What foreign code writes to analyzed.toml opens no file of this host.
		{"printf 'FROM oci:x\\n' > $CNB_OUTPUT_DIR/run.Dockerfile", "only --run-image names files", spec.ExitRestore},
	} {
		r := kiln(t, append(args, "--builder", extended(t, builder, tt.generate+"\n"))...)
		if r.code != tt.code || !strings.Contains(r.err, tt.want) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s%s", tt.generate, r.code, tt.code, tt.want, r.out, r.err)
		}
	}
}

// TestRebaseExtended: what an extension has added to the run image stays in a
// rebase, which is refused unless the extension has said that it may.
func TestRebaseExtended(t *testing.T) {
	conform.Covers(t, 98, 149, 173)
	builder, run := tiny(t)
	source := filetree.New(t, map[string]string{"f": "x"})
	dir, tag, _ := strings.Cut(strings.TrimPrefix(run, "oci:"), ":")
	layout := archive.Layout{Dir: dir}
	open := func(tag string) v1.Image {
		img, err := layout.Image(t.Context(), tag)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	with(t, run, map[string]string{"/etc/newer": "newer"})
	before, newer := open(tag), open(tag+"-more")
	for label, rebasable := range map[string]bool{"": false, "LABEL io.buildpacks.rebasable=false\\n": false, "LABEL io.buildpacks.rebasable=true\\n": true} {
		const name = "extended-rebase"
		put := func(img v1.Image) {
			if err := layout.Write(t.Context(), tag, img); err != nil {
				t.Fatal(err)
			}
		}
		put(before)
		must(t, "build", name, "--path", source, "--run-image", run, "--builder", extended(t, builder,
			"printf 'ARG base_image\\nFROM ${base_image}\\nUSER root\\nRUN echo extension > /etc/extension\\n"+label+"USER 1000:1000\\n' > $CNB_OUTPUT_DIR/run.Dockerfile\n"))
		put(newer)
		r := kiln(t, "rebase", name, "--run-image", run)
		if !rebasable {
			if r.code == 0 || !strings.Contains(r.out+r.err, "the app image has the label io.buildpacks.rebasable=false") {
				t.Errorf("%q: exit code %d\n%s%s", label, r.code, r.out, r.err)
			}
			must(t, "rebase", name, "--run-image", run, "--force")
		} else if r.code != 0 {
			t.Errorf("%q: exit code %d\n%s%s", label, r.code, r.out, r.err)
		}
		if said := must(t, "run", name, "--", "sh", "-c", "for f in newer extension; do read -r x < /etc/$f || :; echo $x; done"); said != "newer\nextension" {
			t.Errorf("%q: the rebased image has %q", label, said)
		}
	}
}

// TestExtensionInterrupted presses Ctrl-C in the middle of a command of an
// extension, and kills kiln there: no process, mount or scratch is left, and
// nothing of that command is believed to be done.
func TestExtensionInterrupted(t *testing.T) {
	builder, run := tiny(t)
	builder = extended(t, builder, "cp build.Dockerfile $CNB_OUTPUT_DIR/\n")
	source := func(command string) string {
		return filetree.New(t, map[string]string{"build.Dockerfile": "ARG base_image\nFROM ${base_image}\nUSER root\nRUN echo done > /done\nRUN " + command + "\n"})
	}
	for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		word := strconv.Itoa(33_000_000 + i*1000 + os.Getpid()%1000)
		slow := source("echo half > /half; (trap : TERM; exec sleep " + word + ") & sleep " + word)
		cmd := kilnCommand(t.Context(), t, "build", "interrupted-extension", "--path", slow, "--run-image", run, "--builder", builder)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			if len(processesWith(t, word)) >= 3 { // both, and their shell
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		began := time.Now()
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s: it took %v to stop", sig, took)
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || sig == syscall.SIGINT && (exit.ExitCode() != 130 || !strings.Contains(out.String(), "stopped by")) {
			t.Errorf("%s: %v\n%s", sig, err, out.String())
		}
		if gc, err := kilnCommand(t.Context(), t, "store", "gc").CombinedOutput(); err != nil {
			t.Errorf("gc: %v\n%s", err, gc)
		}
		nothingLeft(t, word)
		// What was done before is known, and nothing else.
		r := kiln(t, "build", "interrupted-extension", "--path", source("test ! -e /half"), "--run-image", run, "--builder", builder)
		if r.code != 0 || !strings.Contains(r.out, "RUN echo done > /done (cached)") || strings.Contains(r.out, "/half (cached)") != (i > 0) {
			t.Errorf("%s: afterwards: exit code %d\n%s%s", sig, r.code, r.out, r.err)
		}
	}
}

// TestSystemBuildpacks builds with a builder that puts a buildpack before every
// group, and without that.
func TestSystemBuildpacks(t *testing.T) {
	builder, run := tiny(t)
	builder = with(t, builder, map[string]string{
		"/cnb/order.toml":                             "[[order]]\n[[order.group]]\nid = 'b'\nversion = '1'\n",
		"/cnb/system.toml":                            "[[system.pre.buildpacks]]\nid = 'everywhere'\nversion = '1'\n",
		"/cnb/buildpacks/b/1/buildpack.toml":          "api = '0.12'\n[buildpack]\nid = 'b'\nversion = '1'\n",
		"/cnb/buildpacks/b/1/bin/detect":              "#!/bin/sh\n",
		"/cnb/buildpacks/b/1/bin/build":               "#!/bin/sh\n",
		"/cnb/buildpacks/everywhere/1/bin/detect":     "#!/bin/sh\n",
		"/cnb/buildpacks/everywhere/1/bin/build":      "#!/bin/sh\necho system buildpack\n",
		"/cnb/buildpacks/everywhere/1/buildpack.toml": "api = '0.12'\n[buildpack]\nid = 'everywhere'\nversion = '1'\n",
	})
	args := []string{"build", "system", "--path", filetree.New(t, map[string]string{"f": "x"}), "--run-image", run, "--builder", builder}
	if out := must(t, args...); !strings.Contains(out, "everywhere@1\n    system buildpack\n") {
		t.Errorf("it did not run:\n%s", out)
	}
	if out := must(t, append(args, "--disable-system-buildpacks")...); strings.Contains(out, "everywhere") {
		t.Errorf("it ran:\n%s", out)
	}
}
