package buildpack

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/env"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
)

func write(t *testing.T, path, body string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), mode); err != nil {
		t.Fatal(err)
	}
}

const minimal = "api = \"0.12\"\n[buildpack]\nid = \"acme/a\"\nversion = \"1.0.0\"\n"

func TestFind(t *testing.T) {
	entry := spec.GroupElement{ID: "acme/a", Version: "1.0.0"}
	tests := []struct {
		name  string
		entry spec.GroupElement
		body  string // of buildpack.toml; empty: none
		want  string // in the error; empty: found
	}{
		{"found", entry, minimal, ""},
		{"missing", entry, "", "buildpack acme/a@1.0.0 is not in"},
		{"garbled", entry, "[[[", "buildpack.toml"},
		{"another ID", entry, strings.Replace(minimal, "acme/a", "acme/b", 1), "calls itself acme/b@1.0.0"},
		{"another version", entry, strings.Replace(minimal, "1.0.0", "1.0.1", 1), "calls itself acme/a@1.0.1"},
		{"an ID that leads elsewhere", spec.GroupElement{ID: "..", Version: "1.0.0"}, minimal, "no valid ID"},
		{"a version that leads elsewhere", spec.GroupElement{ID: "acme/a", Version: "../acme_a/1.0.0"}, minimal, "no valid version"},
		{"extension is not in the buildpacks", spec.GroupElement{ID: "acme/a", Version: "1.0.0", Extension: true}, minimal, "extension acme/a@1.0.0 is not in"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if tt.body != "" {
				write(t, filepath.Join(root, "bp/acme_a/1.0.0/buildpack.toml"), tt.body, 0o666)
			}
			b, err := Roots{Buildpacks: filepath.Join(root, "bp"), Extensions: filepath.Join(root, "ext")}.Find(tt.entry)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != "acme/a@1.0.0" || b.API() != "0.12" || b.Composite() {
				t.Errorf("found %+v", b)
			}
		})
	}
}

func TestFindRefusesAPipe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme_a/1.0.0")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "buildpack.toml"), 0o666); err != nil {
		t.Fatal(err)
	}
	_, err := Roots{Buildpacks: filepath.Dir(filepath.Dir(dir))}.Find(spec.GroupElement{ID: "acme/a", Version: "1.0.0"})
	if err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("error %v", err)
	}
}

// shell makes a buildpack whose bin/detect and bin/build are scripts.
func shell(t *testing.T, detect, build string) Buildpack {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "acme_a/1.0.0")
	write(t, filepath.Join(dir, "buildpack.toml"), minimal, 0o666)
	write(t, filepath.Join(dir, "bin/detect"), "#!/bin/sh\n"+detect+"\n", 0o777)
	write(t, filepath.Join(dir, "bin/build"), "#!/bin/sh\n"+build+"\n", 0o777)
	b, err := Roots{Buildpacks: filepath.Dir(filepath.Dir(dir))}.Find(spec.GroupElement{ID: "acme/a", Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func inputs(t *testing.T) Inputs {
	return Inputs{App: t.TempDir(), Platform: t.TempDir(), Env: env.Env{"PATH": "/usr/bin:/bin"}}
}

func TestDetect(t *testing.T) {
	for _, tt := range []struct {
		script          string
		code            int
		passed, errored bool
	}{
		{"exit 0", 0, true, false},
		{"exit 100", 100, false, false},
		{"exit 1", 1, false, true},
		{"kill -9 $$", -1, false, true},
	} {
		d := shell(t, "echo out; echo err >&2; "+tt.script, "").Detect(context.Background(), sandbox.InPlace{}, inputs(t))
		if d.Code != tt.code || d.Passed() != tt.passed || d.Errored() != tt.errored {
			t.Errorf("%s: code %d, passed %v, errored %v (%v)", tt.script, d.Code, d.Passed(), d.Errored(), d.Err)
		}
		if got := string(d.Output); got != "out\nerr\n" {
			t.Errorf("%s: output %q", tt.script, got)
		}
	}
}

func TestDetectLeavesNoTemporaryFiles(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	b := shell(t, `touch "$CNB_BUILD_PLAN_PATH.more"`, `touch "$CNB_BP_PLAN_PATH.more"`)
	in := inputs(t)
	if d := b.Detect(context.Background(), sandbox.InPlace{}, in); !d.Passed() {
		t.Fatalf("%+v", d)
	}
	if code, err := b.Build(context.Background(), sandbox.InPlace{}, in, t.TempDir(), spec.BuildpackPlan{}, io.Discard, io.Discard); code != 0 || err != nil {
		t.Fatalf("code %d, error %v", code, err)
	}
	left, err := filepath.Glob(filepath.Join(tmp, "detect-*"))
	more, err2 := filepath.Glob(filepath.Join(tmp, "build-*"))
	if err != nil || err2 != nil || len(left)+len(more) > 0 {
		t.Errorf("left behind: %v %v", left, more)
	}
}

func TestUserCannotReplaceTheSpecificationsVariables(t *testing.T) {
	b := shell(t, `echo "$CNB_BUILDPACK_DIR $CNB_PLATFORM_DIR"`, "")
	in := inputs(t)
	write(t, filepath.Join(in.Platform, "env/CNB_BUILDPACK_DIR"), "/evil", 0o666)
	write(t, filepath.Join(in.Platform, "env/CNB_PLATFORM_DIR"), "/evil", 0o666)
	d := b.Detect(context.Background(), sandbox.InPlace{}, in)
	if got, want := string(d.Output), b.Dir+" "+in.Platform+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReadOutputsSortsLayersByName(t *testing.T) {
	b, dir := shell(t, "", ""), t.TempDir()
	for _, name := range []string{"a-b", "a", "a.b", "B"} {
		write(t, filepath.Join(dir, name+".toml"), "[types]\ncache = true\n", 0o666)
	}
	write(t, filepath.Join(dir, "a/file"), "", 0o666)
	for _, other := range []string{"launch", "build", "store"} {
		write(t, filepath.Join(dir, other+".toml"), "", 0o666)
	}
	out, err := b.ReadOutputs(dir, spec.BuildpackPlan{})
	if err != nil {
		t.Fatal(err)
	}
	cache := spec.LayerTypes{Cache: true}
	want := []Layer{{"B", cache, false}, {"a", cache, true}, {"a-b", cache, false}, {"a.b", cache, false}}
	if diff := cmp.Diff(want, out.Layers); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReadOutputsOfNothing(t *testing.T) {
	out, err := shell(t, "", "").ReadOutputs(t.TempDir(), spec.BuildpackPlan{})
	if diff := cmp.Diff(Outputs{}, out); err != nil || diff != "" {
		t.Errorf("error %v, outputs:\n%s", err, diff)
	}
}

// What is kept of the output is a whole-line end of it, whatever the writes.
func TestTailKeepsTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tl tail
		var all bytes.Buffer
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			line := strings.Repeat("x", rapid.IntRange(0, maxDetectOutput*5/4).Draw(t, "length"))
			if rapid.Bool().Draw(t, "ends") {
				line += "\n"
			}
			all.WriteString(line)
			if n, err := tl.Write([]byte(line)); n != len(line) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		got := tl.Bytes()
		if !bytes.HasSuffix(all.Bytes(), got) {
			t.Fatal("not the end of what was written")
		}
		if all.Len() <= maxDetectOutput && len(got) != all.Len() {
			t.Fatalf("kept %d of %d bytes", len(got), all.Len())
		}
		if len(got) > maxDetectOutput {
			t.Fatalf("kept %d bytes", len(got))
		}
		start := all.Len() - len(got)
		if cut := all.Bytes()[:start]; len(cut) > 0 && cut[start-1] != '\n' && bytes.IndexByte(got, '\n') >= 0 {
			t.Fatal("starts within a line")
		}
	})
}

func TestSupportsAndRunsIn(t *testing.T) {
	linux := spec.Target{OS: "linux", Arch: "amd64"}
	none := Buildpack{Dir: t.TempDir(), Descriptor: spec.Buildpack{API: "0.12"}}
	if none.Supports(linux) {
		t.Error("a buildpack without targets and without bin/build supports linux")
	}
	write(t, filepath.Join(none.Dir, "bin/build"), "", 0o777)
	if !none.Supports(linux) {
		t.Error("a buildpack without targets but with bin/build does not support linux")
	}
	ext := Buildpack{Dir: t.TempDir(), Descriptor: spec.Buildpack{API: "0.12"}, Extension: true}
	if !ext.Supports(linux) {
		t.Error("an extension of files alone supports any target")
	}
	none.Descriptor.Buildpack.ExecEnv = []string{"test"}
	if none.RunsIn("production") || !none.RunsIn("test") {
		t.Error("exec-env does not decide")
	}
	none.Descriptor.API = "0.11"
	if !none.RunsIn("production") {
		t.Error("API 0.11 knows no exec-env")
	}
}
