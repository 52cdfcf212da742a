package lifecycle

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The golden file is the lifecycle's documented interface: a change of it is a
// change for users.
func TestGolden(t *testing.T) {
	var b strings.Builder
	b.WriteString(markdown())
	for _, api := range []string{"0.7", spec.PlatformAPIs[len(spec.PlatformAPIs)-1]} {
		for _, phase := range Phases {
			b.WriteString("\n" + usage(phase, api))
		}
	}
	golden := filepath.Join("testdata", "interface.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatalf("%v: go test ./internal/lifecycle -update makes it", err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("the interface has changed; if that is meant, run go test ./internal/lifecycle -update\n%s", diff)
	}
}

// Each row can be set, and no version of the Platform API has a flag twice.
func TestTable(t *testing.T) {
	for _, api := range spec.PlatformAPIs {
		for _, phase := range Phases {
			seen := map[string]bool{}
			for _, r := range table {
				if !r.in(phase, api) {
					continue
				}
				for _, name := range []string{r.Flag, r.Env} {
					if name != "" && seen[name] {
						t.Errorf("%s has %s twice at %s", phase, name, api)
					}
					seen[name] = true
				}
			}
		}
	}
	for _, r := range table {
		in := inputs{}
		switch to := r.to(&in).(type) {
		case *path, *string, *bool, *int, *[]string:
		default:
			if r.Flag != "-kaniko-cache-ttl" {
				t.Errorf("%s %s is a %T", r.Flag, r.Env, to)
			}
		}
		if r.Flag == "" && r.Env == "" || r.Help == "" || len(r.Phases) == 0 {
			t.Errorf("row %+v says too little", r)
		}
		for _, p := range r.Phases {
			if !slices.Contains(Phases, p) {
				t.Errorf("%s: no phase %q", r.Flag, p)
			}
		}
		for _, p := range r.Phases {
			if strings.Contains(r.Default, "<layers>") && !slices.ContainsFunc(table, func(l Row) bool { return l.Env == "CNB_LAYERS_DIR" && slices.Contains(l.Phases, p) }) {
				t.Errorf("%s: default needs the layers, and %s has none", r.Flag, p)
			}
		}
	}
}

func mustParse(t *testing.T, phase, api string, args, environ []string) inputs {
	t.Helper()
	in, err := parse(phase, api, args, environ)
	if err != nil {
		t.Fatalf("%s %q %q: %v", phase, args, environ, err)
	}
	return in
}

func TestPrecedence(t *testing.T) {
	conform.Covers(t, 3, 4)
	in := mustParse(t, exporter, "0.15", []string{"img"}, nil)
	if in.layers != "/layers" || in.app != "/workspace" || in.logLevel != "info" || in.uid != -1 || in.analyzed != "/layers/analyzed.toml" {
		t.Errorf("defaults: %+v", in)
	}
	environ := []string{"CNB_LAYERS_DIR=/env", "CNB_USER_ID=7", "CNB_USE_DAEMON=true", "CNB_INSECURE_REGISTRIES=a, b", "CNB_LOG_LEVEL=debug", "CNB_APP_DIR="}
	in = mustParse(t, exporter, "0.15", []string{"img"}, environ)
	if in.layers != "/env" || in.uid != 7 || !in.daemon || !slices.Equal(in.insecure, []string{"a", "b"}) || in.logLevel != "debug" || in.app != "/workspace" {
		t.Errorf("environment: %+v", in)
	}
	// Files below <layers> follow it (checklist 4).
	for _, p := range []path{in.analyzed, in.group, in.extended, in.report, in.projectMetadata} {
		if !strings.HasPrefix(string(p), "/env/") {
			t.Errorf("%s does not follow <layers>", p)
		}
	}
	in = mustParse(t, exporter, "0.15", []string{"-layers", "/flag", "-uid=8", "-daemon=false", "-insecure-registry", "c", "--insecure-registry=d", "-analyzed", "/x", "img", "img2"}, environ)
	if in.layers != "/flag" || in.uid != 8 || in.daemon || !slices.Equal(in.insecure, []string{"c", "d"}) || in.analyzed != "/x" || in.group != "/flag/group.toml" {
		t.Errorf("flags: %+v", in)
	}
	if !slices.Equal(in.args, []string{"img", "img2"}) {
		t.Errorf("arguments: %q", in.args)
	}
}

// sample is a value for an input of the table, as text, and another.
func sample(t *testing.T, r Row) (one, two string) {
	t.Helper()
	switch r.to(&inputs{}).(type) {
	case *bool:
		return "true", "false"
	case *int:
		return "41", "42"
	case *time.Duration:
		return "1h0m0s", "2h0m0s"
	case *path:
		return "/one", "/two"
	}
	switch r.Env {
	case "CNB_EXTEND_KIND":
		return "run", "build"
	case "CNB_LOG_LEVEL":
		return "debug", "warn"
	}
	if r.Flag == "-log-format" {
		return "json", "text"
	}
	return "one", "two"
}

// text is the value of an input.
func text(r Row, in inputs) string {
	v := reflect.ValueOf(r.to(&in)).Elem()
	if list, ok := v.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.Interface())
}

// operands are what a phase needs besides flags.
func operands(phase string) []string {
	switch phase {
	case analyzer, exporter, creator, rebaser:
		return []string{"img"}
	}
	return nil
}

// Of every input of every phase and version: the flag goes before the variable,
// which goes before the default; what is below <layers> follows it; relative
// paths are made absolute.
func TestEveryInput(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	each := func(t *testing.T, f func(t *testing.T, phase, api string, r Row, with func(environ []string, args ...string) string)) {
		for _, api := range spec.PlatformAPIs {
			for _, phase := range Phases {
				for _, r := range table {
					if !r.in(phase, api) {
						continue
					}
					f(t, phase, api, r, func(environ []string, args ...string) string {
						t.Helper()
						if r.Flag == "-layout" { // is nothing without a directory
							environ = append(environ, "CNB_LAYOUT_DIR=/layout")
						}
						return text(r, mustParse(t, phase, api, append(args, operands(phase)...), environ))
					})
				}
			}
		}
	}
	t.Run("flag, variable, default", func(t *testing.T) {
		conform.Covers(t, 3)
		each(t, func(t *testing.T, phase, api string, r Row, with func([]string, ...string) string) {
			one, two := sample(t, r)
			env, flag := []string{r.Env + "=" + one}, r.Flag+"="+two
			if r.Env != "" {
				if got := with(env); got != one {
					t.Errorf("%s at %s: %s makes %q", phase, api, env, got)
				}
			} else if got := with(nil, r.Flag+"="+one); got != one {
				t.Errorf("%s at %s: %s makes %q", phase, api, one, got)
			}
			if r.Flag != "" {
				if got := with(env, flag); got != two {
					t.Errorf("%s at %s: %s and %s make %q", phase, api, env, flag, got)
				}
			}
			if strings.HasPrefix(r.Default, "/") {
				if got := with(nil); got != r.Default {
					t.Errorf("%s at %s: %s is %q by default", phase, api, r.Flag, got)
				}
			}
		})
	})
	t.Run("below <layers>", func(t *testing.T) {
		conform.Covers(t, 4)
		below := map[string][]string{}
		each(t, func(t *testing.T, phase, api string, r Row, with func([]string, ...string) string) {
			rest, ok := strings.CutPrefix(r.Default, "<layers>")
			if !ok {
				return
			}
			if api == spec.PlatformAPIs[len(spec.PlatformAPIs)-1] {
				below[rest] = append(below[rest], phase)
			}
			ways := []string{with([]string{"CNB_LAYERS_DIR=/other"})}
			if phase != rebaser { // it has the variable only
				ways = append(ways, with(nil, "-layers", "/other"))
			}
			for _, got := range ways {
				if got != "/other"+rest {
					t.Errorf("%s at %s: %s is %s", phase, api, r.Flag, got)
				}
			}
		})
		want := map[string][]string{
			"/analyzed.toml":         {analyzer, detector, restorer, extender, builder, exporter, creator},
			"/group.toml":            {detector, restorer, extender, builder, exporter, creator},
			"/plan.toml":             {detector, extender, builder, creator},
			"/generated":             {detector, restorer, extender},
			"/extended":              {extender, exporter},
			"/report.toml":           {exporter, creator, rebaser},
			"/project-metadata.toml": {exporter, creator},
		}
		for rest, phases := range want {
			for _, phase := range phases {
				if !slices.Contains(below[rest], phase) {
					t.Errorf("%s is not in <layers> by default for the %s", rest, phase)
				}
			}
		}
	})
	t.Run("relative", func(t *testing.T) {
		conform.Covers(t, 5)
		each(t, func(t *testing.T, phase, api string, r Row, with func([]string, ...string) string) {
			if _, ok := r.to(&inputs{}).(*path); !ok {
				return
			}
			got := ""
			if r.Flag != "" {
				got = with(nil, r.Flag, "a/../rel")
			} else {
				got = with([]string{r.Env + "=a/../rel"})
			}
			if got != here+"/rel" {
				t.Errorf("%s at %s: %s%s is %s", phase, api, r.Flag, r.Env, got)
			}
		})
	})
}

func TestRelativePaths(t *testing.T) {
	conform.Covers(t, 5)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	in := mustParse(t, detector, "0.15", []string{"-layers", "l", "-app", "./a/../b"}, []string{"CNB_PLATFORM_DIR=p"})
	if in.layers != path(here+"/l") || in.app != path(here+"/b") || in.platform != path(here+"/p") || in.group != path(here+"/l/group.toml") || in.order != "" {
		t.Errorf("%+v", in)
	}
}

func TestVersions(t *testing.T) {
	conform.Covers(t, 6, 12, 13, 127)
	rejected := func(phase, api string, args ...string) {
		t.Helper()
		_, err := parse(phase, api, args, nil)
		if spec.ExitCode(err, 0) != spec.ExitUsage || spec.HintOf(err) == "" {
			t.Errorf("%s %q at %s: %v", phase, args, api, err)
		}
	}
	accepted := func(phase, api string, args ...string) {
		t.Helper()
		mustParse(t, phase, api, args, nil)
	}
	rejected(analyzer, "0.12", "-insecure-registry", "x", "img")
	accepted(analyzer, "0.13", "-insecure-registry", "x", "img")
	rejected(restorer, "0.13", "-run", "x")
	accepted(restorer, "0.14", "-run", "x")
	rejected(detector, "0.14", "-system", "x")
	accepted(detector, "0.15", "-system", "x")
	accepted(analyzer, "0.11", "-stack", "x", "img")
	rejected(analyzer, "0.12", "-stack", "x", "img")
	rejected(builder, "0.11", "-analyzed", "x")
	rejected(exporter, "0.15", "-run-image", "x", "img")
	rejected(detector, "0.15", "-nonsense")
	rejected(builder, "0.15", "-layers")
	rejected(exporter, "0.15", "-uid", "x", "img")
	rejected(exporter, "0.15", "-uid", "-1", "img")
	rejected(exporter, "0.15", "-daemon=perhaps", "img")

	// Variables of other versions are not looked at.
	if in := mustParse(t, builder, "0.14", nil, []string{"CNB_EXEC_ENV=test"}); in.execEnv != "" {
		t.Errorf("CNB_EXEC_ENV at 0.14: %q", in.execEnv)
	}
	if in := mustParse(t, builder, "0.15", nil, []string{"CNB_EXEC_ENV=test"}); in.execEnv != "test" {
		t.Errorf("CNB_EXEC_ENV at 0.15: %q", in.execEnv)
	}
	if in := mustParse(t, builder, "0.15", nil, nil); in.execEnv != "production" {
		t.Errorf("default of CNB_EXEC_ENV: %q", in.execEnv)
	}
}

func TestInvalid(t *testing.T) {
	conform.Covers(t, 6, 16)
	for _, tt := range []struct {
		phase   string
		args    []string
		environ []string
		want    string
	}{
		{analyzer, nil, nil, "takes one image, not 0"},
		{analyzer, []string{"a", "b"}, nil, "takes one image, not 2"},
		{creator, []string{"a", "b"}, nil, "takes one image, not 2"},
		{exporter, nil, nil, "at least one image"},
		{detector, []string{"x"}, nil, "takes no arguments"},
		{builder, []string{"-log-level", "loud"}, nil, `log level "loud"`},
		{builder, []string{"-log-format", "xml"}, nil, `log format "xml"`},
		{builder, nil, []string{"CNB_EXEC_ENV=a/b"}, `CNB_EXEC_ENV "a/b"`},
		{restorer, nil, []string{"CNB_USER_ID=root"}, `CNB_USER_ID="root": invalid syntax`},
		{analyzer, []string{"-layout", "img"}, nil, "-layout needs -layout-dir"},
		{analyzer, []string{"-layout", "-layout-dir", "x", "-daemon", "img"}, nil, "cannot go together"},
		{extender, []string{"-kind", "both"}, nil, `-kind "both"`},
		{rebaser, []string{"-image", "a", "-run-image", "b", "img"}, nil, "give only one"},
	} {
		_, err := parse(tt.phase, "0.15", tt.args, tt.environ)
		if spec.ExitCode(err, 0) != spec.ExitInvalidArgs || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %q %q: %v, want %q", tt.phase, tt.args, tt.environ, err, tt.want)
		}
	}
	// A boolean that cannot be read is false.
	if in := mustParse(t, exporter, "0.15", []string{"img"}, []string{"CNB_USE_DAEMON=yes please"}); in.daemon {
		t.Error("daemon")
	}
}

func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		argv  []string
		phase string
		args  []string
	}{
		{[]string{"/cnb/lifecycle/detector", "-app", "x"}, detector, []string{"-app", "x"}},
		{[]string{"builder"}, builder, []string{}},
		{[]string{"./lifecycle", "detect", "-app"}, detector, []string{"-app"}},
		{[]string{"lifecycle", "analyzer"}, analyzer, []string{}},
		{[]string{"lifecycle", "-version"}, "", []string{"-version"}},
	} {
		phase, args, err := Command(tt.argv)
		if err != nil || phase != tt.phase || !slices.Equal(args, tt.args) {
			t.Errorf("%q: %q %q %v", tt.argv, phase, args, err)
		}
	}
	for _, argv := range [][]string{nil, {"lifecycle"}, {"lifecycle", "cook"}} {
		if _, _, err := Command(argv); err == nil || !strings.Contains(err.Error(), "analyzer|detector") {
			t.Errorf("%q: %v", argv, err)
		}
	}
}

// Whatever stands on the command line: no panic, and a code of those that are
// documented. What was accepted has absolute paths.
func FuzzParse(f *testing.F) {
	f.Add("detector", "0.15", "-app\x00x", "CNB_LAYERS_DIR=y")
	f.Add("analyzer", "0.12", "-tag\x00a\x00-tag=b\x00img", "CNB_USER_ID=-1\x00=")
	f.Add("exporter", "0.7", "-stack\x00/x\x00--\x00-img", "CNB_USE_DAEMON=T")
	f.Fuzz(func(t *testing.T, phase, api, args, environ string) {
		if !isPhase(phase) || spec.SupportedPlatform(api) != nil {
			return
		}
		in, err := parse(phase, api, strings.Split(args, "\x00"), strings.Split(environ, "\x00"))
		if err != nil {
			if code := spec.ExitCode(err, -1); err != errHelp && code != spec.ExitUsage && code != spec.ExitInvalidArgs {
				t.Errorf("exit code %d: %v", code, err)
			}
			return
		}
		for i, v := 0, reflect.ValueOf(in); i < v.NumField(); i++ {
			if v.Field(i).Type() == reflect.TypeFor[path]() && v.Field(i).String() != "" && !filepath.IsAbs(v.Field(i).String()) {
				t.Errorf("%s is %q", v.Type().Field(i).Name, v.Field(i).String())
			}
		}
	})
}
