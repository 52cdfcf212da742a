package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/buildpacks"
	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

// installed is a buildpacks directory with the real binary, as a builder image
// has it.
var installed string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "kiln-buildpacks-")
	if err != nil {
		panic(err)
	}
	code := 1
	if err := install(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		installed = filepath.Join(dir, "cnb")
		code = m.Run()
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// install builds helper and binary and lays the buildpacks out.
func install(dir string) error {
	helper, binary := filepath.Join(dir, "helper"), filepath.Join(dir, "buildpacks")
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	// The helper is embedded where `make build` would have put it.
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "payload", "helper"): helper}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"-o", helper, "./helper"},
		{"-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "."},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid="}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %v: %w\n%s", args, err, out)
		}
	}
	files, err := buildpacks.Files(binary)
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, "cnb", filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if f.Link != "" {
			err = os.Symlink(f.Link, path)
		} else {
			err = os.WriteFile(path, f.Body, f.Mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// world is one app with its layers: what the lifecycle's directories are.
type world struct {
	t        *testing.T
	app      string
	layers   string
	platform string
	// user is what the user sets for the build.
	user map[string]string
	// path is PATH of the build image.
	path string
}

func newWorld(t *testing.T, files map[string]string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, app: filepath.Join(dir, "workspace"), layers: filepath.Join(dir, "layers"), platform: filepath.Join(dir, "platform"),
		user: map[string]string{}, path: "/usr/local/bin:/usr/bin:/bin"}
	for _, d := range []string{w.app, w.layers, filepath.Join(w.platform, "env")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	filetree.Write(w.t, w.app, 0o644, files)
	return w
}

// shipped finds a buildpack's directory by ID.
func shipped(t *testing.T, id string) string {
	t.Helper()
	return filepath.Join(installed, spec.EscapeID(id), "0.1.0")
}

// run starts bin/detect or bin/build with vars on top of base.
func (w *world) run(id, name string, base env.Env, vars map[string]string) (code int, output string) {
	w.t.Helper()
	all := base.Clone()
	for k, v := range w.user {
		all[k] = v
	}
	all["CNB_BUILDPACK_DIR"] = shipped(w.t, id)
	all["CNB_PLATFORM_DIR"] = w.platform
	all["CNB_TARGET_OS"], all["CNB_TARGET_ARCH"] = "linux", arch
	all["CNB_TARGET_DISTRO_NAME"], all["CNB_TARGET_DISTRO_VERSION"] = "debian", "12"
	for k, v := range vars {
		all[k] = v
	}
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(shipped(w.t, id), "bin", name))
	cmd.Dir, cmd.Env = w.app, all.List()
	started := time.Now()
	out, err := cmd.CombinedOutput()
	w.t.Logf("%s %s: %d in %v", id, name, cmd.ProcessState.ExitCode(), time.Since(started).Round(time.Millisecond))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%s %s: %v", id, name, err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// base is the environment of the build image: what of ours a build would see.
func (w *world) base() env.Env {
	e := env.FromContainer(os.Environ())
	e["PATH"] = w.path
	delete(e, "LD_LIBRARY_PATH")
	return e
}

// detect runs bin/detect and returns its plan.
func (w *world) detect(id string) (code int, output string, plan spec.DetectPlan) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "plan.toml")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		w.t.Fatal(err)
	}
	code, output = w.run(id, "detect", w.base(), map[string]string{"CNB_BUILD_PLAN_PATH": path})
	text, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if plan, err = spec.ReadDetectPlan(text, path); err != nil {
		w.t.Fatal(err)
	}
	return code, output, plan
}

// build detects and builds the group, the first alternative of each, as the
// lifecycle does it. It returns what each printed.
func (w *world) build(group ...string) (outputs map[string]string) {
	w.t.Helper()
	outputs, err := w.tryBuild(group...)
	if err != nil {
		w.t.Fatal(err)
	}
	return outputs
}

func (w *world) tryBuild(group ...string) (map[string]string, error) {
	w.t.Helper()
	plans := map[string]spec.DetectPlan{}
	for _, id := range group {
		code, out, plan := w.detect(id)
		if code != 0 {
			return nil, fmt.Errorf("%s: detect exits with %d: %s", id, code, out)
		}
		plans[id] = plan
	}
	outputs := map[string]string{}
	e := w.base()
	for _, id := range group {
		own := w.own(id)
		if err := os.MkdirAll(own, 0o755); err != nil {
			w.t.Fatal(err)
		}
		w.forgetTypes(own)
		var entries spec.BuildpackPlan
		for _, p := range plans[id].Provides {
			for _, other := range group {
				for _, r := range plans[other].Requires {
					if r.Name == p.Name {
						entries.Entries = append(entries.Entries, r)
					}
				}
			}
		}
		text, err := encode.TOML(entries)
		if err != nil {
			w.t.Fatal(err)
		}
		plan := filepath.Join(w.t.TempDir(), "plan.toml")
		if err := os.WriteFile(plan, text, 0o644); err != nil {
			w.t.Fatal(err)
		}
		code, out := w.run(id, "build", e, map[string]string{"CNB_LAYERS_DIR": own, "CNB_BP_PLAN_PATH": plan})
		outputs[id] = out
		if code != 0 {
			return outputs, fmt.Errorf("%s: build exits with %d: %s", id, code, out)
		}
		w.apply(own, e, false)
	}
	return outputs, nil
}

func (w *world) own(id string) string { return filepath.Join(w.layers, spec.EscapeID(id)) }

// forgetTypes is what restoring does: the types of layers are to be set anew.
func (w *world) forgetTypes(own string) {
	w.t.Helper()
	for _, file := range glob(w.t, own, "*.toml") {
		if name := filepath.Base(file); name == "launch.toml" || name == "build.toml" || name == "store.toml" {
			continue
		}
		l := w.layer(file)
		l.Types = spec.LayerTypes{}
		text, err := encode.TOML(l)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) layer(file string) spec.LayerTOML {
	w.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := spec.ReadLayerTOML(text, file)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// apply adds a buildpack's layers to the environment of a build or a launch.
func (w *world) apply(own string, e env.Env, launch bool) {
	w.t.Helper()
	for _, file := range glob(w.t, own, "*.toml") {
		name := strings.TrimSuffix(filepath.Base(file), ".toml")
		if name == "launch" || name == "build" || name == "store" {
			continue
		}
		l := w.layer(file)
		if launch && !l.Types.Launch || !launch && !l.Types.Build {
			continue
		}
		dir := filepath.Join(own, name)
		if err := e.AddLayerDirs(dir, launch); err != nil {
			w.t.Fatal(err)
		}
		dirs := []string{"env", "env.build"}
		if launch {
			dirs = []string{"env", "env.launch", "env.launch/web"}
		}
		for _, d := range dirs {
			if err := e.AddDir(filepath.Join(dir, d)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// launchEnv is the environment that the launcher gives the process web.
func (w *world) launchEnv(group ...string) env.Env {
	e := w.base()
	for _, id := range group {
		w.apply(w.own(id), e, true)
	}
	return e
}

// processes are those in a buildpack's launch.toml.
func (w *world) processes(id string) []spec.Process {
	w.t.Helper()
	path := filepath.Join(w.own(id), "launch.toml")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := spec.ReadLaunchTOML(text, path, "0.10")
	if err != nil {
		w.t.Fatal(err)
	}
	return l.Processes
}

// glob lists files, sorted.
func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// tree is a directory as "path mode size-or-target" lines with the files'
// contents, so that two of them can be compared.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			all[rel] = "link " + target
			return err
		case d.IsDir():
			all[rel] = info.Mode().String()
			return nil
		}
		body, err := os.ReadFile(path)
		all[rel] = info.Mode().String() + " " + string(body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// differences names what differs between two trees, at most a few.
func differences(a, b map[string]string) []string {
	var list []string
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			list = append(list, fmt.Sprintf("%s (%d, %d bytes)", k, len(v), len(w)))
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			list = append(list, k+" (new)")
		}
	}
	slices.Sort(list)
	return list[:min(len(list), 20)]
}

// lastLine is what the lifecycle shows as the reason of a failed detection.
func lastLine(s string) string {
	lines := bytes.Split(bytes.TrimSpace([]byte(s)), []byte("\n"))
	return string(lines[len(lines)-1])
}
