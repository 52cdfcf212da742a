package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/platform"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/reference"
)

// result is what a user has from one command line.
type result struct {
	code           int
	stdout, stderr string
}

// run executes one command line as Main does, with a store of its own in dir.
func run(t *testing.T, dir string, args ...string) result {
	t.Helper()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	k := &kiln{stdout: file("stdout"), stderr: file("stderr"), environ: []string{"KILN_STORE=" + dir, "HOME=/nowhere", "FROM_HERE=yes"}}
	code := k.report(k.execute(t.Context(), args))
	read := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return result{code, read(k.stdout), read(k.stderr)}
}

// Every kind of error has its code, whatever it is wrapped in.
func TestExitCode(t *testing.T) {
	for _, x := range []struct {
		name string
		err  error
		want int
	}{
		{"nothing", nil, 0},
		{"something", errors.New("x"), exitFailure},
		{"usage", usageError{errors.New("x")}, exitUsage},
		{"usage that wraps invalid input", usageError{spec.Exit(exitInvalid, errors.New("x"))}, exitUsage},
		{"invalid input", spec.Exit(spec.ExitInvalidArgs, errors.New("x")), exitInvalid},
		{"not found", image.ErrNotFound, exitNotFound},
		{"not found while exporting", spec.Exit(spec.ExitExport, image.ErrNotFound), exitNotFound},
		{"unauthorized while analyzing", spec.Exit(spec.ExitAnalyze, image.ErrUnauthorized), exitUnauthorized},
		{"unavailable", image.ErrUnavailable, exitNetwork},
		{"no such host", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "x"}}, exitNetwork},
		{"refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, exitNetwork},
		{"unreachable", syscall.ENETUNREACH, exitNetwork},
		{"a port that is taken is no matter of the network", &net.OpError{Op: "listen", Err: syscall.EADDRINUSE}, exitFailure},
		{"disk full", spec.Exit(spec.ExitExport, &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}), exitDiskFull},
		{"quota", syscall.EDQUOT, exitDiskFull},
		{"file too large", syscall.EFBIG, exitDiskFull},
		{"read-only disk", syscall.EROFS, exitInvalid},
		{"no sandbox", &sandbox.UnavailableError{}, exitSandbox},
		{"detect", spec.Exit(spec.ExitDetectFail, errors.New("x")), spec.ExitDetectFail},
		{"a buildpack", spec.Exit(spec.ExitBuildpack, errors.New("x")), spec.ExitBuildpack},
		{"a buildpack's process", spec.Exit(spec.ExitBuildpack, &sandbox.ExitError{Code: 7}), spec.ExitBuildpack},
		{"the app", childExit{&sandbox.ExitError{Code: 7}}, 7},
		{"the app, by a signal", childExit{&sandbox.ExitError{Code: -1, Signal: syscall.SIGSEGV}}, exitSignal + int(syscall.SIGSEGV)},
		{"Ctrl-C", signalled{syscall.SIGINT}, 130},
		{"Ctrl-C while exporting", fmt.Errorf("%w: %w", signalled{syscall.SIGTERM}, spec.Exit(spec.ExitExport, image.ErrNotFound)), 143},
	} {
		for _, err := range []error{x.err, fmt.Errorf("more: %w", x.err), errors.Join(x.err, errors.New("and clean-up failed")), spec.WithHint(x.err, "do this")} {
			if x.err == nil {
				err = nil
			}
			if got := exitCode(err); got != x.want {
				t.Errorf("%s: %v has code %d, want %d", x.name, err, got, x.want)
			}
		}
	}
	seen := map[int]bool{}
	for _, e := range exitCodes {
		if seen[e.code] || e.what == "" {
			t.Errorf("code %d stands twice in the table, or without a word", e.code)
		}
		seen[e.code] = true
	}
}

func TestUsage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	for _, line := range []string{
		"nonsense", "build", "build a b", "build --nonsense x", "build --path", "build --quiet --verbose x", "plan a b", "plan --path a b", "plan --plan x", "run", "inspect", "inspect --json --config x",
		"store nonsense", "base nonsense", "base create", "rm", "images x", "doctor x", "version x",
	} {
		got := run(t, dir, strings.Fields(line)...)
		if got.code != exitUsage || got.stdout != "" || !strings.HasPrefix(got.stderr, "error: ") || !strings.Contains(got.stderr, "\nhint: ") {
			t.Errorf("kiln %s: %+v", line, got)
		}
	}
	for _, line := range []string{"", "--help", "build --help", "help run", "store", "base", "version", "--version", "help exit-codes", "completion bash"} {
		if got := run(t, dir, strings.Fields(line)...); got.code != 0 || got.stdout == "" || got.stderr != "" {
			t.Errorf("kiln %s: %+v", line, got)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("asking for help made a store: %v", err)
	}
	help := run(t, dir, "help", "exit-codes").stdout
	for _, e := range exitCodes {
		if !strings.Contains(help, fmt.Sprintf("%3d  %s\n", e.code, e.what)) {
			t.Errorf("kiln help exit-codes does not tell of %d", e.code)
		}
	}
	golden(t, "testdata/help.golden", run(t, dir, "--help").stdout)
}

// With --json, whatever happens, each line on stdout is an event, and the last
// one says how it ended.
func TestJSONLines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	for line, code := range map[string]int{
		"build --json":                                 exitUsage,
		"build --json --nonsense x":                    exitUsage,
		"build --nonsense x --json":                    exitUsage,
		"build x --json --path /no/such/dir":           exitInvalid,
		"build x --json --output nonsense":             exitInvalid,
		"build X --json --path .":                      exitInvalid,
		"build x --json --volume nonsense":             exitInvalid,
		"build x --json --env =x":                      exitInvalid,
		"build x --json --path . --plan /no/such/file": exitInvalid,
		"base create --json Bad":                       exitInvalid,
		"base create x --json --lock /no/such/file":    exitInvalid,
		"build x --json --path . --isolation nonsense": exitInvalid,
	} {
		got := run(t, dir, strings.Fields(line)...)
		if got.code != code || !strings.HasPrefix(got.stderr, "error: ") {
			t.Errorf("kiln %s: code %d, want %d: %s", line, got.code, code, got.stderr)
		}
		var last event.Event
		err := event.Decode(strings.NewReader(got.stdout), event.Func(func(e event.Event) {
			if m, ok := e.(event.Message); ok && m.Level == event.Error {
				t.Errorf("kiln %s: %q is no event", line, m.Text)
			}
			last = e
		}))
		if err != nil {
			t.Fatal(err)
		}
		failed, ok := last.(event.Failed)
		if !ok || failed.ExitCode != code || failed.Message == "" || !strings.Contains(got.stderr, failed.Message) {
			t.Errorf("kiln %s: the last event is %+v", line, last)
		}
	}
	// Others print one document or none.
	if got := run(t, dir, "inspect", "--json", "Not/Valid"); got.stdout != "" || got.code == 0 {
		t.Errorf("%+v", got)
	}
}

func TestQuiet(t *testing.T) {
	got := run(t, filepath.Join(t.TempDir(), "store"), "build", "x", "--quiet", "--path", "/no/such/dir")
	if got.stdout != "" || got.code != exitInvalid || !strings.HasPrefix(got.stderr, "error: ") {
		t.Errorf("%+v", got)
	}
	// Warnings stay out of what a script reads.
	out, errs := pipeTo(t), pipeTo(t)
	k := &kiln{stdout: out, stderr: errs}
	sink := k.sink(sinkFlags{quiet: true})
	for _, e := range []event.Event{
		event.Message{Level: event.Warn, Text: "careful"}, event.PhaseStarted{Phase: "detector"}, event.Output{Text: "noise\n"},
		event.Layer{Name: "app", Target: "image"}, event.Isolation{Tier: "3", Detail: "weak"}, event.Built{ID: "sha256:1", Names: []string{"x"}},
	} {
		sink.Emit(e)
	}
	if got := content(t, out); got != "sha256:1\n" {
		t.Errorf("stdout has %q", got)
	}
	if got := content(t, errs); !strings.Contains(got, "careful") {
		t.Errorf("stderr has %q", got)
	}
}

func pipeTo(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEnvironment(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	k := &kiln{environ: []string{"HERE=old", "HERE=here", "UNUSED=x"}}
	long := strings.Repeat("y", 100_000)
	first := file("first", "# comment\n\nA=file\n  B = spaced \nHERE\nMISSING\nEQ=a=b\nLONG="+long+"\nQUOTED=\"q\"\r\n")
	second := file("second", "A=second file")
	got, err := k.environment([]string{"B=flag", "C=", "HERE=given", "C=again", "LATE=a\nb"}, []string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"A": "second file", "B": "flag", "B ": " spaced", "C": "again", "HERE": "given", "EQ": "a=b", "LONG": long, "QUOTED": `"q"`, "LATE": "a\nb"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := k.environment([]string{"HERE", "MISSING"}, nil); err != nil || !cmp.Equal(got, map[string]string{"HERE": "here"}) {
		t.Errorf("taken from here: %v, %v", got, err)
	}
	for _, x := range []struct {
		given, files []string
		say          string
	}{
		{[]string{"=x"}, nil, `"=x"`}, {[]string{""}, nil, `""`}, {[]string{"A=\x00"}, nil, "is not a variable"},
		{nil, []string{file("bad", "A=1\n=x\n")}, "bad:2"}, {nil, []string{"/no/such/file"}, "/no/such/file"}, {nil, []string{dir}, dir},
	} {
		_, err := k.environment(x.given, x.files)
		if err == nil || exitCode(err) != exitInvalid || !strings.Contains(err.Error(), x.say) || spec.HintOf(err) == "" {
			t.Errorf("%+v: %v", x, err)
		}
	}
}

func TestAgoAndShortID(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "just now", 0: "just now", 59 * time.Second: "just now", time.Minute: "1 min ago", 59 * time.Minute: "59 min ago",
		time.Hour: "1 h ago", 47 * time.Hour: "47 h ago", 48 * time.Hour: "2 days ago", 1000 * time.Hour: "41 days ago",
	} {
		if got := ago(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
	for id, want := range map[string]string{"sha256:0123456789abcdef": "0123456789ab", "0123": "0123", "": "", "sha256:": ""} {
		if got := shortID(id); got != want {
			t.Errorf("%q is %q, want %q", id, got, want)
		}
	}
}

// withImages makes a store with an app image as a lifecycle leaves it, and one
// of kiln's own.
func withImages(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	st, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	when := v1.Time{Time: time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)}
	l, err := st.PutLayer(t.Context(), func(w io.Writer) error {
		return layer.WriteFiles(w, []layer.File{{Path: "/workspace", Mode: fs.ModeDir | 0o755}, {Path: "/workspace/app.py", Mode: 0o644, Body: []byte("print(1)\n")}})
	})
	if err != nil {
		t.Fatal(err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := image.Append(base, []image.Addition{{Layer: l, History: v1.History{CreatedBy: "Application Layer", Created: when}}}, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture, cf.Created = "linux", "amd64", when
		cf.Config = v1.Config{
			User: "1000:1000", WorkingDir: "/workspace", Env: []string{"PATH=/cnb/process:/bin", "CNB_APP_DIR=/workspace"}, Entrypoint: []string{"/cnb/process/web"},
			Labels: map[string]string{
				spec.LifecycleMetadataLabel: `{"app":[{"sha":"sha256:1"}],"config":{"sha":""},"launcher":{"sha":""},"process-types":{"sha":""},"buildpacks":[],"runImage":{"topLayer":"sha256:2","reference":"kiln/run@sha256:3","image":"kiln/run:bookworm"}}`,
				spec.BuildMetadataLabel:     `{"processes":[{"type":"web","command":["python"],"args":["app.py"],"direct":true,"working-dir":"/workspace","buildpackID":"kiln/python-start"}],"buildpacks":[{"id":"kiln/python-start","version":"0.1.0"}],"launcher":{"version":"","source":{"git":{"repository":"","commit":""}}},"buildpack-default-process-type":"web"}`,
			},
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hello", "registry.example/me/hello:v1", "kiln/run:bookworm"} {
		if err := st.Write(t.Context(), name, img); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// An image that the reference lifecycle made is shown as one of ours.
func TestInspectTheReferences(t *testing.T) {
	dir := t.TempDir()
	st, err := store.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	app := reference.App{Run: reference.Run(t, nil, map[string]string{"/base": "1"}), Image: "registry.example/run:1", Reference: "registry.example/run@sha256:1"}.Make(t)
	err = errors.Join(st.Write(t.Context(), "oci", app), st.Write(t.Context(), "docker", imagetest.AsDocker(t, app)), st.Close())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"oci", "docker"} {
		text, doc := run(t, dir, "inspect", name), run(t, dir, "inspect", "--json", name)
		for _, want := range []string{"acme/a", "1.0.0", "registry.example/run:1", "web", "/workspace/app.txt", "dep"} {
			if !strings.Contains(text.stdout, want) || !strings.Contains(doc.stdout, want) {
				t.Errorf("%s: %q is not shown:\n%s%s", name, want, text.stdout, text.stderr)
			}
		}
	}
}

// Programs read these: a change of a shape is a change for them.
func TestShapes(t *testing.T) {
	dir := withImages(t)
	var refs []map[string]any
	images := run(t, dir, "images", "--json")
	if err := json.Unmarshal([]byte(images.stdout), &refs); err != nil || images.code != 0 {
		t.Fatalf("%+v: %v", images, err)
	}
	for _, r := range refs {
		if _, err := time.Parse(time.RFC3339, fmt.Sprint(r["updated"])); err != nil {
			t.Error(err)
		}
		r["updated"] = "(now)"
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(refs); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/images.golden", b.String())

	text := run(t, dir, "inspect", "hello")
	golden(t, "testdata/inspect.golden", "$ kiln inspect hello\n"+text.stdout+"\n$ kiln inspect --json hello\n"+run(t, dir, "inspect", "--json", "hello").stdout+
		"\n$ kiln inspect --config hello\n"+run(t, dir, "inspect", "--config", "hello").stdout+"\n$ kiln inspect --manifest hello\n"+run(t, dir, "inspect", "--manifest", "hello").stdout)
	var info platform.ImageInfo
	if err := json.Unmarshal([]byte(run(t, dir, "inspect", "--json", "hello").stdout), &info); err != nil || info.ID != refs[0]["imageID"] {
		t.Errorf("inspect and images do not agree: %v, %v (%v)", info.ID, refs[0]["imageID"], err)
	}
	// By short ID, as it stands in the list.
	if got := run(t, dir, "inspect", shortID(info.ID)); got.code != 0 || !strings.Contains(got.stdout, info.ID) {
		t.Errorf("%+v", got)
	}
}

func TestImages(t *testing.T) {
	dir := withImages(t)
	list := run(t, dir, "images").stdout
	lines := strings.Split(strings.TrimSpace(list), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "NAME") || !strings.Contains(list, "hello:latest") || !strings.Contains(list, "just now") || strings.Contains(list, "kiln/") {
		t.Errorf("%s", list)
	}
	if all := run(t, dir, "images", "--all").stdout; !strings.Contains(all, "kiln/run:bookworm") {
		t.Errorf("%s", all)
	}
	if ids := run(t, dir, "images", "-q").stdout; strings.Count(ids, "sha256:") != 2 || strings.Contains(ids, "hello") {
		t.Errorf("%s", ids)
	}
	if got := run(t, filepath.Join(t.TempDir(), "store"), "images", "--json"); got.stdout != "[]\n" {
		t.Errorf("an empty store is %q", got.stdout)
	}
	if got := run(t, dir, "rm", "hello", "not-there"); got.code != exitNotFound || got.stdout != "removed hello\n" || !strings.Contains(got.stderr, "not-there") {
		t.Errorf("%+v", got)
	}
	if list := run(t, dir, "images").stdout; strings.Contains(list, "hello:latest") || !strings.Contains(list, "registry.example/me/hello:v1") {
		t.Errorf("after rm: %s", list)
	}
}

func TestCompletion(t *testing.T) {
	dir := withImages(t)
	for line, want := range map[string]string{
		"run |":               "hello\nregistry.example/me/hello:v1\n",
		"run h|":              "hello\n",
		"inspect |":           "hello\nregistry.example/me/hello:v1\n",
		"rm hello |":          "registry.example/me/hello:v1\n",
		"build --network |":   "host\nnone\n",
		"build --isolation |": "1\n1s\n2\n3\n",
		"plan --network |":    "host\nnone\n",
		"plan --isolation |":  "1\n1s\n2\n3\n",
		"run --network |":     "host\nnone\n",
		"run --isolation |":   "1\n1s\n2\n3\n",
		"inspect hello |":     "",
	} {
		words := strings.Fields(strings.ReplaceAll(line, " |", " \x00"))
		for i, w := range words {
			words[i] = strings.Trim(strings.TrimSuffix(w, "|"), "\x00")
		}
		got := run(t, dir, append([]string{"__complete"}, words...)...).stdout
		if offered, _, _ := strings.Cut(got, ":"+string(got[strings.LastIndexByte(got, ':')+1:])); offered != want {
			t.Errorf("%s: %q, want %q", line, offered, want)
		}
	}
	none := filepath.Join(t.TempDir(), "store")
	if got := run(t, none, "__complete", "run", ""); strings.HasPrefix(got.stdout, "hello") {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Tab made a store: %v", err)
	}
}

func TestStoreDir(t *testing.T) {
	for _, x := range []struct {
		args    []string
		environ []string
		want    string
	}{
		{[]string{"--store", "/flag"}, []string{"KILN_STORE=/env", "HOME=/h"}, "/flag\n"},
		{nil, []string{"KILN_STORE=/env", "XDG_DATA_HOME=/data", "HOME=/h"}, "/env\n"},
		{nil, []string{"XDG_DATA_HOME=/data", "HOME=/h"}, "/data/kiln\n"},
		{nil, []string{"HOME=/h"}, "/h/.local/share/kiln\n"},
		{nil, []string{"KILN_STORE=", "XDG_DATA_HOME=", "HOME=/h"}, "/h/.local/share/kiln\n"},
	} {
		k := &kiln{stdout: pipeTo(t), stderr: pipeTo(t), environ: x.environ}
		if err := k.execute(t.Context(), append([]string{"store", "path"}, x.args...)); err != nil || content(t, k.stdout) != x.want {
			t.Errorf("%+v: %q, %v", x, content(t, k.stdout), err)
		}
	}
	k := &kiln{stdout: pipeTo(t), stderr: pipeTo(t)}
	if err := k.execute(t.Context(), []string{"store", "path"}); exitCode(err) != exitInvalid {
		t.Errorf("without a home: %v", err)
	}
}
