package kit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/internal/spec"
)

// call is one run of a buildpack in directories of its own.
type call struct {
	t   *testing.T
	dir string
	env map[string]string
}

func newCall(t *testing.T) *call {
	t.Helper()
	c := &call{t: t, dir: t.TempDir()}
	for _, d := range []string{"app", "bp", "layers", "platform/env"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.put("bp/buildpack.toml", "api = \"0.10\"\n[buildpack]\nid = \"a/b\"\nversion = \"1.2.3\"\n[metadata]\nanswer = 42\n[[targets]]\nos = \"linux\"\n")
	c.put("plan.toml", "")
	c.env = map[string]string{
		"CNB_BUILDPACK_DIR": filepath.Join(c.dir, "bp"), "CNB_PLATFORM_DIR": filepath.Join(c.dir, "platform"),
		"CNB_LAYERS_DIR": filepath.Join(c.dir, "layers"), "CNB_BP_PLAN_PATH": filepath.Join(c.dir, "plan.toml"),
		"CNB_BUILD_PLAN_PATH": filepath.Join(c.dir, "detected.toml"), "CNB_TARGET_OS": "linux", "CNB_TARGET_ARCH": "amd64",
	}
	return c
}

func (c *call) put(name, body string) {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *call) get(name string) string {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

func (c *call) run(name string, bp kit.Buildpack) (int, string) {
	c.t.Helper()
	var env []string
	for k, v := range c.env {
		env = append(env, k+"="+v)
	}
	var out bytes.Buffer
	code := kit.Run(c.t.Context(), bp, kit.Invocation{
		Args: []string{"/cnb/buildpacks/a_b/1.2.3/bin/" + name}, Env: env, Dir: filepath.Join(c.dir, "app"), Stdout: &out,
	})
	return code, out.String()
}

func (c *call) build(f func(b *kit.Build) error) (int, string) {
	return c.run("build", kit.Buildpack{Build: func(_ context.Context, b *kit.Build) error { return f(b) }})
}

func TestDetectWritesAlternatives(t *testing.T) {
	c := newCall(t)
	code, out := c.run("detect", kit.Buildpack{Detect: func(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
		if d.ID != "a/b" || d.Version != "1.2.3" || d.Metadata["answer"] != int64(42) || d.Target.String() != "linux/amd64" || d.ExecEnv != "production" {
			t.Errorf("context %+v", d.Context)
		}
		return kit.Plans(
			kit.Plan{Provides: []string{"x"}, Requires: []kit.Require{{Name: "y", Version: "1.*", Source: "file", Build: true, Metadata: map[string]any{"k": "v"}}}},
			kit.Plan{Requires: []kit.Require{{Name: "z", Launch: true}}},
		), nil
	}})
	if code != 0 || out != "" {
		t.Fatalf("exit %d, %q", code, out)
	}
	got, err := spec.ReadDetectPlan([]byte(c.get("detected.toml")), "plan")
	if err != nil {
		t.Fatal(err)
	}
	want := spec.DetectPlan{
		PlanSections: spec.PlanSections{
			Provides: []spec.Provide{{Name: "x"}},
			Requires: []spec.Require{{Name: "y", Metadata: map[string]any{"version": "1.*", "version-source": "file", "build": true, "k": "v"}}},
		},
		Or: []spec.PlanSections{{Requires: []spec.Require{{Name: "z", Metadata: map[string]any{"launch": true}}}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestExitCodes(t *testing.T) {
	detect := func(err error) kit.Buildpack {
		return kit.Buildpack{Detect: func(context.Context, *kit.Detection) ([]kit.Plan, error) { return nil, err }}
	}
	tests := map[string]struct {
		bp   kit.Buildpack
		name string
		drop string
		code int
		out  string
	}{
		"passes":          {bp: detect(nil), name: "detect"},
		"fails":           {bp: detect(kit.Fail("no %s", "motd")), name: "detect", code: 100, out: "no motd\n"},
		"fails, wrapped":  {bp: detect(fmt.Errorf("x: %w", kit.Fail("no motd"))), name: "detect", code: 100, out: "no motd\n"},
		"errs":            {bp: detect(errors.New("disk")), name: "detect", code: 1, out: "ERROR: disk\n"},
		"errs with hint":  {bp: detect(kit.Hint(errors.New("disk"), "buy one")), name: "detect", code: 1, out: "ERROR: disk\nhint: buy one\n"},
		"other name":      {bp: detect(nil), name: "test", code: 1, out: "called as \"test\""},
		"no Detect":       {name: "detect", code: 1, out: "no Detect"},
		"no Build":        {name: "build", code: 1, out: "no Build"},
		"no buildpack":    {bp: detect(nil), name: "detect", drop: "CNB_BUILDPACK_DIR", code: 1, out: "CNB_BUILDPACK_DIR is not set"},
		"no plan path":    {bp: detect(nil), name: "detect", drop: "CNB_BUILD_PLAN_PATH", code: 1, out: "CNB_BUILD_PLAN_PATH is not set"},
		"Fail in a build": {bp: kit.Buildpack{Build: func(context.Context, *kit.Build) error { return kit.Fail("no") }}, name: "build", code: 1, out: "ERROR: no\n"},
		"no layers":       {bp: kit.Buildpack{Build: func(context.Context, *kit.Build) error { return nil }}, name: "build", drop: "CNB_LAYERS_DIR", code: 1, out: "CNB_LAYERS_DIR"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newCall(t)
			delete(c.env, tt.drop)
			code, out := c.run(tt.name, tt.bp)
			if code != tt.code || !strings.Contains(out, tt.out) || tt.out == "" && out != "" {
				t.Errorf("exit %d, %q; want %d, %q", code, out, tt.code, tt.out)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	c := newCall(t)
	c.put("platform/env/FROM_FILE", "a file\n")
	c.env["GIVEN"], c.env["YES"], c.env["ODD"] = "value", "True", "maybe"
	code, out := c.build(func(b *kit.Build) error {
		if b.Getenv("GIVEN") != "value" || b.Getenv("FROM_FILE") != "a file\n" || b.Getenv("NONE") != "" || b.Getenv("../env/GIVEN") != "" {
			t.Error("Getenv does not find what is there, or finds what is not")
		}
		if yes, err := b.Bool("YES"); !yes || err != nil {
			t.Errorf("Bool: %v, %v", yes, err)
		}
		_, err := b.Bool("ODD")
		return err
	})
	if code != 1 || !strings.Contains(out, `ODD="maybe" is neither true nor false`) {
		t.Errorf("exit %d, %q", code, out)
	}
}

func TestLayerIsMadeThenReused(t *testing.T) {
	c := newCall(t)
	made := 0
	build := func(key string) {
		t.Helper()
		code, out := c.build(func(b *kit.Build) error {
			l, err := b.Layer("one")
			if err != nil {
				return err
			}
			l.Build, l.Cache, l.Launch = true, true, true
			if l.Reuse(b.Key(key)) {
				if l.Metadata["note"] != "hello" {
					t.Errorf("metadata of a reused layer: %v", l.Metadata)
				}
				return nil
			}
			made++
			if err := l.Reset(); err != nil {
				return err
			}
			l.Metadata["note"] = "hello"
			l.Env.Override("A", "1")
			l.Env.Prepend("B", "2", ":")
			l.BuildEnv.Default("C", "3")
			l.LaunchEnv.Append("D", "4", "")
			l.ProcessEnv("web").Override("E", "5")
			l.BOM = &kit.BOM{Subject: "one", Packages: []kit.Package{{Type: "pypi", Name: "x", Version: "1"}}}
			return l.ExecD("run", strings.NewReader("#!/bin/sh\n"))
		})
		if code != 0 {
			t.Fatalf("exit %d: %s", code, out)
		}
	}
	build("k1")
	for name, want := range map[string]string{
		"env/A.override": "1", "env/B.prepend": "2", "env/B.delim": ":", "env.build/C.default": "3",
		"env.launch/D.append": "4", "env.launch/D.delim": "absent", "env.launch/web/E.override": "5", "exec.d/run": "#!/bin/sh\n",
	} {
		if got := c.get("layers/one/" + name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if info, err := os.Stat(filepath.Join(c.dir, "layers/one/exec.d/run")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("exec.d/run: %v %v", info, err)
	}
	l, err := spec.ReadLayerTOML([]byte(c.get("layers/one.toml")), "one.toml")
	if err != nil || l.Types != (spec.LayerTypes{Launch: true, Build: true, Cache: true}) || l.Metadata["note"] != "hello" {
		t.Errorf("one.toml: %+v, %v", l, err)
	}

	// Untouched when reused, whatever lies in it.
	c.put("layers/one/mark", "m")
	build("k1")
	if made != 1 || c.get("layers/one/mark") != "m" {
		t.Errorf("made %d times, mark %q: a layer with the same key is left alone", made, c.get("layers/one/mark"))
	}
	build("k2")
	if made != 2 || c.get("layers/one/mark") != "absent" {
		t.Errorf("made %d times, mark %q: a layer with another key is made anew", made, c.get("layers/one/mark"))
	}
	// Metadata without contents is not good for a layer that is needed now.
	if err := os.RemoveAll(filepath.Join(c.dir, "layers/one")); err != nil {
		t.Fatal(err)
	}
	build("k2")
	if made != 3 {
		t.Errorf("made %d times: contents that are gone are made anew", made)
	}
	// Another version of the buildpack trusts nothing of this one's.
	c.put("bp/buildpack.toml", strings.Replace(c.get("bp/buildpack.toml"), "1.2.3", "1.2.4", 1))
	build("k2")
	if made != 4 {
		t.Errorf("made %d times: the buildpack's version is part of the key", made)
	}
}

func TestLaunchLayerIsReusedWithoutContents(t *testing.T) {
	c := newCall(t)
	reused := false
	step := func(b *kit.Build) error {
		l, err := b.Layer("l")
		if err != nil {
			return err
		}
		l.Launch = true
		if reused = l.Reuse(b.Key("same")); reused {
			return nil
		}
		return l.Reset()
	}
	c.build(step)
	if err := os.RemoveAll(filepath.Join(c.dir, "layers/l")); err != nil {
		t.Fatal(err)
	}
	c.build(step)
	if !reused || c.get("layers/l/anything") != "absent" || !strings.Contains(c.get("layers/l.toml"), "launch = true") {
		t.Errorf("reused %v, %s", reused, c.get("layers/l.toml"))
	}
	if _, err := os.Lstat(filepath.Join(c.dir, "layers/l")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a directory came into being: the exporter would take it for new contents")
	}
}

func TestBuildWritesDocuments(t *testing.T) {
	c := newCall(t)
	c.put("plan.toml", "[[entries]]\nname = \"x\"\n[entries.metadata]\nversion = \"1\"\nversion-source = \"b\"\nbuild = true\n"+
		"[[entries]]\nname = \"x\"\n[entries.metadata]\nversion = \"2\"\nversion-source = \"a\"\nlaunch = true\n[[entries]]\nname = \"y\"\n")
	c.put("layers/store.toml", "[metadata]\nseen = 1\n")
	code, out := c.build(func(b *kit.Build) error {
		w := b.Wanted("x")
		if v, source := w.Version("a", "b"); v != "2" || source != "a" || !w.Build || !w.Launch {
			t.Errorf("wanted %+v: version %s by %s", w, v, source)
		}
		if v, _ := w.Version(); v != "1" {
			t.Errorf("without priority the first counts, not %s", v)
		}
		if b.Store["seen"] != int64(1) {
			t.Errorf("store %v", b.Store)
		}
		b.Store["seen"] = 2
		b.AddProcess(kit.Process{Type: "web", Command: []string{"a"}, Default: true})
		b.AddProcess(kit.Process{Type: "job", Command: []string{"b", "c"}, Args: []string{"d"}, Default: true, WorkingDir: "/w"})
		b.AddProcess(kit.Process{Type: "web", Command: []string{"e"}})
		b.AddLabel("k", "old")
		b.AddLabel("k", "new")
		b.AddSlice("*.css", "img/*")
		b.Unmet("y")
		b.LaunchBOM(kit.BOM{Subject: "s"})
		b.Log.Info("Hello\n%s", "world")
		b.Log.Debug("hidden")
		return nil
	})
	if code != 0 || out != "Hello\nworld\n" {
		t.Fatalf("exit %d, %q", code, out)
	}
	launch, err := spec.ReadLaunchTOML([]byte(c.get("layers/launch.toml")), "launch.toml", "0.10")
	if err != nil {
		t.Fatal(err)
	}
	want := spec.LaunchTOML{
		Labels: []spec.Label{{Key: "k", Value: "new"}},
		Processes: []spec.Process{
			{Type: "job", Command: []string{"b", "c"}, Args: []string{"d"}, Default: true, WorkingDirectory: "/w", Direct: true},
			{Type: "web", Command: []string{"e"}, Direct: true},
		},
		Slices: []spec.Slice{{Paths: []string{"*.css", "img/*"}}},
	}
	if d := cmp.Diff(want, launch); d != "" {
		t.Error(d)
	}
	if s := c.get("layers/store.toml"); !strings.Contains(s, "seen = 2") {
		t.Error(s)
	}
	if s := c.get("layers/build.toml"); !strings.Contains(s, "y") {
		t.Error(s)
	}
	if c.get("layers/launch.sbom.cdx.json") == "absent" || c.get("layers/build.sbom.cdx.json") != "absent" {
		t.Error("bill of materials of launch is missing, or one of build is there")
	}
	// The next build has nothing to say: old documents go.
	c.build(func(b *kit.Build) error { clear(b.Store); return nil })
	if c.get("layers/launch.toml") != "absent" || c.get("layers/store.toml") != "absent" {
		t.Error("documents of the build before are left")
	}
}

func TestReservedAndStrangeNames(t *testing.T) {
	c := newCall(t)
	for _, name := range []string{"launch", "../x", ""} {
		if code, _ := c.build(func(b *kit.Build) error { _, err := b.Layer(name); return err }); code != 1 {
			t.Errorf("layer %q is accepted", name)
		}
	}
	for _, name := range []string{"A.B", "../A", ""} {
		code, out := c.build(func(b *kit.Build) error {
			l, err := b.Layer("l")
			if err != nil {
				return err
			}
			l.Env.Override(name, "v")
			return l.Reset()
		})
		if code != 1 || !strings.Contains(out, "environment variable") {
			t.Errorf("variable %q is accepted: %s", name, out)
		}
	}
}

func TestDebugLevel(t *testing.T) {
	for level, want := range map[string]string{"debug": "  deep\n", "DEBUG": "  deep\n", "info": "", "": ""} {
		c := newCall(t)
		c.env["BP_LOG_LEVEL"] = level
		_, out := c.build(func(b *kit.Build) error { b.Log.Debug("deep"); return nil })
		if out != want {
			t.Errorf("BP_LOG_LEVEL=%q: %q", level, out)
		}
	}
}

func TestBOMIsTheSameInAnyOrder(t *testing.T) {
	a := kit.Package{Type: "pypi", Name: "a", Version: "1", License: "MIT", SHA256: strings.Repeat("0", 64), Location: "lib/a"}
	b := kit.Package{Type: "deb", Namespace: "debian", Name: "b", Version: "1:2+c", LicenseText: "see file", Qualifiers: map[string]string{"arch": "amd64"}}
	x, y := kit.BOM{Subject: "s", Packages: []kit.Package{a, b}}, kit.BOM{Subject: "s", Packages: []kit.Package{b, a, a}}
	for name, encode := range map[string]func(kit.BOM) ([]byte, error){"cdx": kit.BOM.CycloneDX, "spdx": kit.BOM.SPDX, "syft": kit.BOM.Syft} {
		one, err := encode(x)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		two, err := encode(y)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(one, two) {
			t.Errorf("%s: order or repetition of packages changes the document", name)
		}
		var doc map[string]any
		if err := json.Unmarshal(one, &doc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range []string{"pkg:pypi/a@1", "pkg:deb/debian/b@1:2%2Bc?arch=amd64", "MIT"} {
			if !strings.Contains(string(one), want) {
				t.Errorf("%s lacks %s:\n%s", name, want, one)
			}
		}
		other, err := encode(kit.BOM{Subject: "s", Packages: []kit.Package{a}})
		if err != nil || bytes.Equal(one, other) {
			t.Errorf("%s: a package less makes no difference (%v)", name, err)
		}
	}
}

func TestHashFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "1")
	write("d/b", "2")
	seen := map[string]string{}
	check := func(what string) {
		t.Helper()
		h, err := kit.HashFiles(dir, "a", "d", "none")
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[h]; ok {
			t.Errorf("%s makes no difference to %s", what, before)
		}
		seen[h] = what
	}
	check("the start")
	write("a", "2")
	check("other contents")
	write("d/c", "")
	check("a new file")
	write("none", "")
	check("a file that was absent")
	if err := os.Symlink("b", filepath.Join(dir, "d/link")); err != nil {
		t.Fatal(err)
	}
	check("a link")
	one, _ := kit.HashFiles(dir, "a", "d")
	two, _ := kit.HashFiles(dir, "a", "d")
	if one != two {
		t.Error("the same files have two hashes")
	}
}

func TestResetRemovesReadOnlyDirectories(t *testing.T) {
	c := newCall(t)
	code, out := c.build(func(b *kit.Build) error {
		l, err := b.Layer("l")
		if err != nil {
			return err
		}
		deep := filepath.Join(l.Path, "a", "b")
		if err := os.MkdirAll(deep, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(deep, "f"), nil, 0o444); err != nil {
			return err
		}
		for _, d := range []string{deep, filepath.Dir(deep)} {
			if err := os.Chmod(d, 0o500); err != nil {
				return err
			}
		}
		return l.Reset()
	})
	if code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if entries, err := os.ReadDir(filepath.Join(c.dir, "layers/l")); err != nil || len(entries) > 0 {
		t.Errorf("left: %v %v", entries, err)
	}
}

// Names of Go modules have slashes: a package URL has them in its namespace.
func TestGolangPURL(t *testing.T) {
	for name, want := range map[string]string{
		"github.com/pelletier/go-toml/v2": "pkg:golang/github.com/pelletier/go-toml/v2@v1",
		"golang.org/x/sys":                "pkg:golang/golang.org/x/sys@v1",
		"stdlib":                          "pkg:golang/stdlib@v1",
	} {
		if got := (kit.Package{Type: "golang", Name: name, Version: "v1"}).PURL(); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
