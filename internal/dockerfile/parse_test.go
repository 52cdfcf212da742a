package dockerfile

import (
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

func TestParse(t *testing.T) {
	f, err := Parse([]byte("# escape=`\nARG v=1\nARG w\nFROM --platform=$P debian:$v AS Base\n\n# comment\nRUN a `\n b\nCOPY <<E /x\ntext\nE\nfrom base\nmaintainer me\n"), "D")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "stages", len(f.Stages), 2)
	first := f.Stages[0]
	want(t, "the first stage", []any{first.Name, first.From, first.Platform, first.Line, len(first.Instructions)}, []any{"base", "debian:$v", "$P", 4, 2})
	run := first.Instructions[0]
	want(t, "RUN", []any{run.Line, run.Text()}, []any{7, "RUN a  b"})
	want(t, "warnings", len(f.Warnings), 2) // the case of the stage's name, MAINTAINER
	for _, w := range f.Warnings {
		if !strings.HasPrefix(w, "D:") {
			t.Errorf("the warning %q names no line", w)
		}
	}
	images, err := f.Images(map[string]string{"v": "12"}, v1.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "images", images, []string{"debian:12"})
}

func TestChecks(t *testing.T) {
	const text = "FROM a as x\nMAINTAINER me\n"
	for directive, warnings := range map[string]int{
		"": 2, "# check=skip=all\n": 0, "# syntax=docker/dockerfile:1\n# check=skip=FromAsCasing\n": 1, "# check=skip=FromAsCasing,MaintainerDeprecated;error=true\n": 0,
	} {
		f, err := Parse([]byte(directive+text), "D")
		if err != nil || len(f.Warnings) != warnings {
			t.Errorf("%q: %q, %v; want %d warnings", directive, f.Warnings, err, warnings)
		}
	}
}

func TestImages(t *testing.T) {
	f, err := Parse([]byte("ARG base=a:1\nFROM $base AS one\nFROM scratch AS two\nCOPY --from=one x y\nCOPY --from=0 x y\nCOPY --from=three x y\nRUN --mount=type=bind,from=four,target=/x y\nRUN --mount=type=cache,from=two,target=/x y\n"+
		"FROM one\nFROM five/${TARGETARCH}"), "D")
	if err != nil {
		t.Fatal(err)
	}
	images, err := f.Images(nil, v1.Platform{OS: "linux", Architecture: "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "images", images, []string{"a:1", "five/arm64", "four", "three", "two"}) // a stage is no source of its own
	if _, err := f.Images(map[string]string{"base": strings.Repeat("x", maxValue+1)}, v1.Platform{}); err == nil {
		t.Error("no error for a value that is too long")
	}
}

// TestCommandsAreFresh: to expand an instruction changes no other reading of it.
func TestCommandsAreFresh(t *testing.T) {
	f, err := Parse([]byte("FROM a\nENV A=$B\nRUN --mount=type=cache,target=$B x\nEXPOSE 2 1"), "D")
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range f.Stages[0].Instructions {
		before, err := in.Command()
		if err != nil {
			t.Fatal(err)
		}
		changed, err := in.Command()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.expand(changed, scope{env: []string{"B=expanded"}}); err != nil {
			t.Fatal(err)
		}
		again, err := in.Command()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(before, again) {
			t.Errorf("%s is another after it was expanded once", in.Text())
		}
	}
}

// FuzzParse wants an error or a File whose instructions can be read, expanded and,
// as far as they are about the config, applied.
func FuzzParse(f *testing.F) {
	for _, x := range instructionCases {
		f.Add(x.dockerfile)
	}
	f.Add("# escape=`\n# check=skip=all\nFROM a\nRUN <<-E 3<<F\n\tE\nF\n")
	f.Add("FROM a\nENV a=${a:-${b:+c}} b=${c#d} e=${f//g/h}\nHEALTHCHECK --interval=1s NONE\nONBUILD ADD --checksum=x --keep-git-dir=true a b")
	f.Add("from a as b\nrun --mount=type=bind,from=c,source=d,target=e,rw f\nvolume [\"x\", \"y\"]\nshell [\"a\"]\nstopsignal 9\nexpose 1-2/udp")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse([]byte(text), "D")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "D:") {
				t.Errorf("the error names no file: %v", err)
			}
			return
		}
		_, _ = file.Images(nil, v1.Platform{OS: "linux"})
		for _, st := range file.Stages {
			c := newConfig(&v1.ConfigFile{Config: v1.Config{Env: []string{"A=a"}, WorkingDir: "/w"}})
			for _, in := range st.Instructions {
				command, err := in.Command()
				if err != nil {
					t.Fatalf("%s parses once and not again: %v", in.Text(), err)
				}
				if in.Line < 1 {
					t.Errorf("%s is at line %d", in.Text(), in.Line)
				}
				if file.expand(command, scope{env: c.Env}) != nil {
					continue
				}
				checkApply(t, c.clone(), command)
				_, _, _ = c.apply(command)
			}
		}
	})
}

// checkApply holds apply to what it promises.
func checkApply(t *testing.T, c config, command instructions.Command) {
	t.Helper()
	before := c.clone()
	given := c.Config // what others may hold
	createdBy, known, err := c.apply(command)
	if err != nil || !known {
		return
	}
	if createdBy == "" {
		t.Errorf("%T says nothing", command)
	}
	for _, kv := range c.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			t.Errorf("the environment has %q", kv)
		}
	}
	for port := range c.ExposedPorts {
		if len(c.ExposedPorts) > 1000 {
			break // for speed alone
		}
		if _, err := parsePorts(port); err != nil {
			t.Errorf("the port %q is exposed", port)
		}
	}
	if !reflect.DeepEqual(before.Config.Env, given.Env) || !reflect.DeepEqual(before.Config.Labels, given.Labels) {
		t.Errorf("%T changes what it was given", command)
	}
}

func TestParseMode(t *testing.T) {
	for _, x := range []struct {
		change    string
		mode      int64
		dir       bool
		wantMode  int64
		wantError bool
	}{
		{change: "", mode: 0o640, wantMode: 0o640},
		{change: "755", mode: 0o4640, wantMode: 0o755},
		{change: "0", mode: 0o777, wantMode: 0},
		{change: "7777", mode: 0, wantMode: 0o7777},
		{change: "u+x", mode: 0o644, wantMode: 0o744},
		{change: "+x", mode: 0o644, wantMode: 0o755},
		{change: "go-rwx", mode: 0o755, wantMode: 0o700},
		{change: "a=r", mode: 0o4755, wantMode: 0o444},
		{change: "u=rwX,go=rX", mode: 0o600, wantMode: 0o644},
		{change: "u=rwX,go=rX", mode: 0o700, wantMode: 0o755},
		{change: "u=rwX,go=rX", mode: 0o600, dir: true, wantMode: 0o755},
		{change: "g=u", mode: 0o750, wantMode: 0o770},
		{change: "o=g-w", mode: 0o760, wantMode: 0o764},
		{change: "u+s,g+s,o+t", mode: 0o755, wantMode: 0o7755},
		{change: "u-s", mode: 0o6755, wantMode: 0o2755},
		{change: "a=rx", mode: 0o2755, dir: true, wantMode: 0o2555},
		{change: "u=", mode: 0o755, wantMode: 0o055},
		{change: "8", wantError: true},
		{change: "10000", wantError: true},
		{change: "u", wantError: true},
		{change: "u+x,", wantError: true},
		{change: "x+u", wantError: true},
		{change: "u+xy", wantError: true},
	} {
		m, err := parseMode(x.change)
		if (err != nil) != x.wantError {
			t.Errorf("%q: error %v", x.change, err)
		}
		if got := m.apply(x.mode, x.dir); err == nil && got != x.wantMode {
			t.Errorf("%q makes %o of %o, want %o", x.change, got, x.mode, x.wantMode)
		}
	}
}
