package lifecycle

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// What is deprecated is warned of, refused, or let pass in silence.
func TestDeprecationMode(t *testing.T) {
	platforms, buildpacks := spec.DeprecatedPlatformAPIs, spec.DeprecatedBuildpackAPIs
	t.Cleanup(func() { spec.DeprecatedPlatformAPIs, spec.DeprecatedBuildpackAPIs = platforms, buildpacks })
	w := newWorld(t)
	w.write("workspace/go", "")
	w.want(0, w.run(detector))
	if out := w.stderr.String(); out != "" {
		t.Errorf("nothing is deprecated, and it says %s", out)
	}
	for _, test := range []struct {
		mode     string
		platform int // exit code for a platform API, buildpack API and flag
		member   int
		flag     int
		says     bool
	}{
		{"warn", 0, 0, spec.ExitRebase, true}, {"", 0, 0, spec.ExitRebase, true}, {"perhaps", 0, 0, spec.ExitRebase, true},
		{"error", spec.ExitPlatformAPI, spec.ExitBuildpackAPI, spec.ExitInvalidArgs, true},
		{"silent", 0, 0, spec.ExitRebase, false}, {"quiet", 0, 0, spec.ExitRebase, false},
	} {
		w.environ = []string{"CNB_DEPRECATION_MODE=" + test.mode}
		check := func(what string, want, got int) {
			t.Helper()
			if got != want || strings.Contains(w.stderr.String(), what) != test.says || strings.Contains(w.stderr.String(), "deprecated") != test.says {
				t.Errorf("mode %q: %s exits with %d, want %d: %s", test.mode, what, got, want, w.stderr.String())
			}
		}
		spec.DeprecatedPlatformAPIs = []string{"0.15"}
		check("platform API 0.15", test.platform, w.run(detector))
		spec.DeprecatedPlatformAPIs, spec.DeprecatedBuildpackAPIs = nil, []string{"0.12"}
		check("a/first@1.0.0", test.member, w.run(detector))
		check("a/first@1.0.0", test.member, w.run(builder))
		spec.DeprecatedBuildpackAPIs = nil
		check("-image", test.flag, w.run(rebaser, "-image", "127.0.0.1:1/run", "-previous-image", "IN VALID", "127.0.0.1:1/app"))
	}
}

// The version needs nothing, and is asked for anywhere among the flags.
func TestVersion(t *testing.T) {
	conform.Covers(t, 15)
	for _, phase := range Phases {
		w := newWorld(t)
		for _, run := range []struct {
			api  string
			args []string
		}{{"", []string{"-version"}}, {"0.15", []string{"--version"}}, {"0.7", []string{"-log-level", "info", "-version"}}} {
			if code := w.runAs(run.api, phase, run.args...); code != 0 || w.stdout.String() != spec.Version+"\n" || w.stderr.Len() > 0 {
				t.Errorf("%s %q: %d %q %q", phase, run.args, code, w.stdout.String(), w.stderr.String())
			}
		}
	}
}

// The level says what is shown: of warnings and errors, on stderr, all but the
// latter can go; what buildpacks say is for those who want to know.
func TestLogLevel(t *testing.T) {
	conform.Covers(t, 16)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	w.want(0, w.run(analyzer, "-run", w.path("run.toml"), host+"/app"))
	for level, want := range map[string]struct{ out, err bool }{"debug": {true, true}, "info": {true, true}, "warn": {false, true}, "error": {false, false}} {
		w.want(0, w.run(detector, "-log-level", level))
		w.want(0, w.run(restorer, "-log-level", level))
		if warned := strings.Contains(w.stderr.String(), "no cache"); warned != want.err || strings.Contains(w.stdout.String(), "no cache") {
			t.Errorf("%s: on stderr is %q, on stdout %q", level, w.stderr.String(), w.stdout.String())
		}
		w.environ = []string{"CNB_LOG_LEVEL=" + level}
		w.want(0, w.run(builder))
		w.environ = nil
		if said := strings.Contains(w.stdout.String(), "building first"); said != want.out {
			t.Errorf("%s: on stdout is %q", level, w.stdout.String())
		}
		w.want(spec.ExitExport, w.run(exporter, "-log-level", level, "-launcher", w.path("missing"), host+"/app"))
		if !strings.Contains(w.stderr.String(), "missing") || strings.Contains(w.stdout.String(), "missing") {
			t.Errorf("%s: the error: on stderr is %q, on stdout %q", level, w.stderr.String(), w.stdout.String())
		}
	}
	w.want(spec.ExitInvalidArgs, w.run(builder, "-log-level", "loud"))
}

// terminal is a terminal to write to; what was written can be had from shown.
func terminal(t *testing.T) (tty *os.File, shown func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		_, _ = all.ReadFrom(master) // ends with an error when the other side is closed
		text <- all.String()
	}()
	return tty, func() string {
		tty.Close()
		select {
		case s := <-text:
			return s
		case <-time.After(10 * time.Second):
			t.Fatal("the terminal does not end")
			return ""
		}
	}
}

func TestColours(t *testing.T) {
	for _, test := range []struct {
		args    []string
		environ []string
		want    bool
	}{
		{nil, nil, true}, {[]string{"-no-color"}, nil, false}, {nil, []string{"CNB_NO_COLOR=true"}, false}, {[]string{"-no-color=false"}, []string{"CNB_NO_COLOR=true"}, true},
	} {
		w := newWorld(t)
		w.write("workspace/go", "")
		tty, shown := terminal(t)
		w.host.Stdout, w.environ = tty, test.environ
		w.want(0, w.run(detector, test.args...))
		if text := shown(); strings.Contains(text, "\x1b[") != test.want || !strings.Contains(text, "Detect") {
			t.Errorf("%q %q shows %q", test.args, test.environ, text)
		}
	}
	w := newWorld(t)
	w.write("workspace/go", "")
	w.want(0, w.run(detector))
	if strings.Contains(w.stdout.String(), "\x1b") {
		t.Error("colours in a file")
	}
}

// -skip-restore restores store.toml, and nothing else.
func TestSkipRestore(t *testing.T) {
	conform.Covers(t, 77, 167)
	host := newRegistry(t)
	w := newWorld(t)
	w.app(host)
	w.build(host)
	create := func(args ...string) string {
		t.Helper()
		if err := os.RemoveAll(w.path("layers")); err != nil {
			t.Fatal(err)
		}
		w.mkdir("layers")
		w.want(0, w.run(creator, append(args, "-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-cache-dir", w.path("cache"), "-uid", "1000", "-gid", "1000", host+"/me/app:1")...))
		return w.stdout.String()
	}
	skipped := create("-skip-restore")
	if !strings.Contains(skipped, `store.toml says [metadata]  remember = "this"`) || !strings.Contains(skipped, "kept is new") || strings.Contains(skipped, "both.toml says") {
		t.Errorf("with -skip-restore: %s", skipped)
	}
	w.environ = []string{"CNB_SKIP_RESTORE=true"}
	if out := create(); !strings.Contains(out, "kept is new") {
		t.Errorf("with the variable: %s", out)
	}
	w.environ = nil
	if out := create(); !strings.Contains(out, "kept was restored") || !strings.Contains(out, "both.toml says") {
		t.Errorf("without: %s", out)
	}
}

// The SBOMs of launcher and lifecycle go where the specification has them. In a
// directory that was named each keeps its name. Without any there is a warning.
func TestLauncherSBOMs(t *testing.T) {
	conform.Covers(t, 154)
	host := newRegistry(t)
	for name, test := range map[string]struct {
		files  []string
		custom bool
		api    string
		want   []string
		warns  string
	}{
		"where the lifecycle is": {
			[]string{"launcher.sbom.cdx.json", "launcher.sbom.spdx.json", "launcher.sbom.syft.json", "lifecycle.sbom.cdx.json", "other.sbom.cdx.json", "launcher.sbom.txt"}, false, "0.15",
			[]string{"build/buildpacksio_lifecycle/sbom.cdx.json", "launch/buildpacksio_lifecycle/launcher/sbom.cdx.json", "launch/buildpacksio_lifecycle/launcher/sbom.spdx.json", "launch/buildpacksio_lifecycle/launcher/sbom.syft.json"}, "",
		},
		"one part has none": {[]string{"launcher.sbom.cdx.json"}, false, "0.15", []string{"launch/buildpacksio_lifecycle/launcher/sbom.cdx.json"}, "lifecycle has no SBOM"},
		"none":              {nil, false, "0.15", nil, "launcher has no SBOM"},
		"named": {
			[]string{"launcher.sbom.cdx.json", "more.sbom.syft.json", "sbom.spdx.json", "not-an-sbom.json"}, true, "0.15",
			[]string{"launch/buildpacksio_lifecycle/launcher/launcher.sbom.cdx.json", "launch/buildpacksio_lifecycle/launcher/more.sbom.syft.json", "launch/buildpacksio_lifecycle/launcher/sbom.spdx.json"}, "",
		},
		"named, none": {[]string{"README"}, true, "0.15", nil, "launcher has no SBOM"},
		"before":      {[]string{"launcher.sbom.cdx.json"}, false, "0.10", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.app(host)
			w.mkdir("sboms")
			for _, f := range test.files {
				w.write("sboms/"+f, `{"is":"`+f+`"}`)
			}
			w.host.Dirs = map[string]layer.Stack{"/cnb/lifecycle": {Upper: w.path("sboms")}}
			args := []string{"-run", w.path("run.toml"), "-launcher", w.path("launcher"), "-uid", "1000", "-gid", "1000"}
			if test.custom {
				args = append(args, "-launcher-sbom", w.path("sboms"))
			}
			if test.api == "0.10" {
				args[0] = "-stack"
				w.write("run.toml", "[run-image]\nimage = '"+host+"/run:1'\n")
			}
			w.want(0, w.runAs(test.api, creator, append(args, host+"/me/"+strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", ""))...))
			var got []string
			for _, kind := range []string{"build", "launch"} {
				names, err := filepath.Glob(w.path("layers/sbom/" + kind + "/buildpacksio_lifecycle/*"))
				more, err2 := filepath.Glob(w.path("layers/sbom/" + kind + "/buildpacksio_lifecycle/*/*"))
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				for _, f := range append(names, more...) {
					if fi, err := os.Stat(f); err == nil && fi.Mode().IsRegular() {
						got = append(got, strings.TrimPrefix(f, w.path("layers/sbom")+"/"))
					}
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if warned := strings.Contains(w.stderr.String(), " SBOM "); warned != (test.warns != "") || !strings.Contains(w.stderr.String(), test.warns) {
				t.Errorf("it warns %q", w.stderr.String())
			}
		})
	}
}

// A CNB_REGISTRY_AUTH that is none is an error, and shows nothing of itself.
func TestInvalidRegistryAuth(t *testing.T) {
	conform.Covers(t, 8)
	w := newWorld(t)
	w.write("run.toml", "[[images]]\nimage = 'registry.example/run'\n")
	for _, phase := range registries {
		args := []string{"registry.example/app"}
		if phase == restorer {
			args = nil
		}
		for _, auth := range []string{`{"registry.example": "Basic s3cret`, `["s3cret"]`, `{"registry.example": "Basic s3cret!"}`} {
			w.environ = []string{"CNB_REGISTRY_AUTH=" + auth, "CNB_RUN_PATH=" + w.path("run.toml")}
			code := w.run(phase, args...)
			if out := w.stderr.String(); code == 0 || !strings.Contains(out, "CNB_REGISTRY_AUTH") || strings.Contains(out+w.stdout.String(), "s3cret") {
				t.Errorf("%s with %s: %d %s", phase, auth, code, out)
			}
		}
	}
}

// Values in the forms that platforms write them in.
func TestForms(t *testing.T) {
	for value, want := range map[string]time.Duration{"336h": 14 * 24 * time.Hour, "90m": 90 * time.Minute, "1h30m": 90 * time.Minute} {
		if in := mustParse(t, extender, "0.15", nil, []string{"CNB_KANIKO_CACHE_TTL=" + value}); in.kanikoTTL != want {
			t.Errorf("%s is %s", value, in.kanikoTTL)
		}
	}
	for _, environ := range []string{"CNB_KANIKO_CACHE_TTL=2 weeks", "CNB_USER_ID=me", "CNB_GROUP_ID=-1"} {
		if _, err := parse(extender, "0.15", nil, []string{environ}); spec.ExitCode(err, 0) != spec.ExitInvalidArgs {
			t.Errorf("%s: %v", environ, err)
		}
	}
	for value, want := range map[string]bool{"true": true, "1": true, "T": true, "TRUE": true, "false": false, "0": false, "yes": false, "": false} {
		if in := mustParse(t, exporter, "0.15", []string{"img"}, []string{"CNB_PARALLEL_EXPORT=" + value}); in.parallel != want {
			t.Errorf("%q is %t", value, in.parallel)
		}
	}
	in := mustParse(t, analyzer, "0.15", []string{"-tag", "a", "-tag=b", "img"}, []string{"CNB_INSECURE_REGISTRIES=c,d,,e"})
	if !slices.Equal(in.tags, []string{"a", "b"}) || !slices.Equal(in.insecure, []string{"c", "d", "e"}) {
		t.Errorf("%q %q", in.tags, in.insecure)
	}
	// Arguments come after flags: what follows the first is one, too.
	if _, err := parse(analyzer, "0.15", []string{"img", "-tag", "a"}, nil); spec.ExitCode(err, 0) != spec.ExitInvalidArgs {
		t.Errorf("a flag after the image: %v", err)
	}
}
