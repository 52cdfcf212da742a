package launch_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/test/conform"
)

// launcher is the real binary, built as the project ships it.
var launcher string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kiln-launcher-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	launcher = filepath.Join(dir, "launcher")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", launcher, "github.com/kilnbuild/kiln/cmd/launcher")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the launcher: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// image is a directory that looks like an app image to the launcher.
type image struct {
	testing.TB
	dir string
	env []string
}

const newMetadata = `
[[buildpacks]]
id = "a/first"
version = "1.0.0"
api = "0.10"
[[buildpacks]]
id = "second"
version = "1.0.0"
api = "0.12"
[[buildpacks]]
id = "old"
version = "1.0.0"
api = "0.8"
`

func newImage(t testing.TB, processes string) image {
	im := image{t, t.TempDir(), nil}
	im.write("layers/config/metadata.toml", newMetadata+processes, 0o644)
	im.write("workspace/app.txt", "app", 0o644)
	im.env = []string{
		"CNB_PLATFORM_API=0.15", "CNB_APP_DIR=" + im.path("workspace"), "CNB_LAYERS_DIR=" + im.path("layers"),
		"PATH=/cnb/process:/usr/bin:/cnb/lifecycle:/bin:/cnb/process/",
	}
	return im
}

func (im image) path(name string) string { return filepath.Join(im.dir, name) }

func (im image) write(name, body string, mode os.FileMode) {
	im.Helper()
	path := im.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		im.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), mode); err != nil {
		im.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		im.Fatal(err)
	}
}

// command starts the launcher under the name of a process, or its own.
func (im image) command(process string, args ...string) *exec.Cmd {
	cmd := exec.Command(launcher, args...)
	if process != "" {
		cmd.Args[0] = "/cnb/process/" + process
	}
	cmd.Env = im.env
	cmd.Dir = im.dir
	return cmd
}

// run returns what the process printed, and its exit code.
func (im image) run(process string, args ...string) (stdout, stderr string, code int) {
	im.Helper()
	var out, errs bytes.Buffer
	cmd := im.command(process, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			im.Fatal(err)
		}
		return out.String(), errs.String(), exit.ExitCode()
	}
	return out.String(), errs.String(), 0
}

func (im image) want(stdout string, process string, args ...string) {
	im.Helper()
	got, stderr, code := im.run(process, args...)
	if diff := cmp.Diff(stdout, got); diff != "" || code != 0 {
		im.Errorf("launch %q %q: exit %d\n%s%s", process, args, code, diff, stderr)
	}
}

func (im image) wantFailure(code int, stderr string, process string, args ...string) {
	im.Helper()
	stdout, got, gotCode := im.run(process, args...)
	got = strings.ReplaceAll(got, im.dir, "")
	if diff := cmp.Diff(stderr, got); diff != "" || gotCode != code || stdout != "" {
		im.Errorf("launch %q %q: exit %d, want %d\n%s%s", process, args, gotCode, code, diff, stdout)
	}
}

func TestBinary(t *testing.T) {
	info, err := os.Stat(launcher)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 3<<20 {
		t.Errorf("the launcher has %d bytes; every image carries it", info.Size())
	}
	deps, err := exec.Command("go", "list", "-deps", "github.com/kilnbuild/kiln/cmd/launcher").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"net", "net/http", "crypto/tls", "os/user", "github.com/google/go-containerregistry/pkg/v1"} {
		if strings.Contains("\n"+string(deps), "\n"+bad+"\n") {
			t.Errorf("the launcher imports %s", bad)
		}
	}
	if !strings.Contains(string(deps), "kiln/internal/launch\n") {
		t.Errorf("dependencies not found in %q", deps)
	}
}

// BenchmarkStart launches true: what is over true's own time is the launcher's.
func BenchmarkStart(b *testing.B) {
	im := newImage(b, "[[processes]]\ntype='web'\ncommand=['/bin/true']\nbuildpack-id='second'\n")
	for b.Loop() {
		if _, stderr, code := im.run("web"); code != 0 {
			b.Fatal(code, stderr)
		}
	}
}

const processes = `
[[processes]]
type = "web"
command = ["printf", "%s|"]
args = ["default", "args"]
buildpack-id = "second"
[[processes]]
type = "dotted.type"
command = ["printf", "dotted"]
buildpack-id = "a/first"
[[processes]]
type = "old"
command = ["printf"]
args = ["%s|", "a"]
direct = true
buildpack-id = "old"
[[processes]]
type = "pwd"
command = ["pwd"]
working-dir = "/usr"
buildpack-id = "second"
[[processes]]
type = "shell"
command = "printf '%s|' \"$GREETING\" $0"
buildpack-id = "old"
[[processes]]
type = "shell-args"
command = "printf"
args = ["%s|", "$GREETING"]
working-dir = "/usr"
buildpack-id = "old"
[[processes]]
type = "test-only"
command = ["printf", "test"]
buildpack-id = "second"
exec-env = ["test", "development"]
[[processes]]
type = "everywhere"
command = ["printf", "everywhere"]
buildpack-id = "second"
exec-env = ["*"]
`

func TestProcesses(t *testing.T) {
	conform.Covers(t, 180, 181, 182)
	im := newImage(t, processes)
	im.env = append(im.env, "GREETING=hello   world")
	im.want("default|args|", "web")
	im.want("mine|", "web", "mine")
	im.want("a b|*|$HOME|", "web", "a b", "*", "$HOME")
	im.want("dotted", "dotted.type")
	im.want("a|b|", "old", "b") // Buildpack API 0.8: appended
	im.want("/usr\n", "pwd")
	im.want("hello   world|bash|", "shell")
	im.want("hello   world|hello   world|a  b|", "shell-args", "$GREETING", "a  b")
}

func TestPlatformWithoutOverridableArgs(t *testing.T) {
	conform.Covers(t, 181)
	im := newImage(t, `
[[processes]]
type = "web"
command = "printf"
args = ["%s|", "a"]
direct = true
buildpack-id = "second"
`)
	im.env[0] = "CNB_PLATFORM_API=0.9"
	im.want("a|b|", "web", "b")
}

func TestCommands(t *testing.T) {
	conform.Covers(t, 183)
	im := newImage(t, processes)
	im.env = append(im.env, "GREETING=hello   world")
	im.want("$GREETING|a b|", "", "--", "printf", "%s|", "$GREETING", "a b")
	im.want(im.path("workspace")+"\n", "", "--", "pwd")
	im.want("hello   world|a  b|*|", "", "printf", "%s|", "$GREETING", "a  b", "*")
	im.want("hello   world/"+"bash", "", `printf "%s/%s" "$GREETING" $0`)
	im.want("", "", "--", "/bin/true")
	im.want("app", "", "--", "cat", "./app.txt")
	im.want("--|", "", "--", "printf", "%s|", "--")
	im.want("unknown", "no-such-process", "printf unknown")

	im.write("workspace/bin/tool", "#!/bin/sh\necho \"tool $0 $1\"\n", 0o755)
	im.want("tool "+im.path("workspace/bin/tool")+" x\n", "", "--", "bin/tool", "x")
}

func TestWorkingDirectory(t *testing.T) {
	conform.Covers(t, 189)
	im := newImage(t, `
[[processes]]
type = "relative"
command = ["./tool"]
working-dir = "sub"
buildpack-id = "second"
[[processes]]
type = "app"
command = ["bin/tool"]
working-dir = "/usr"
buildpack-id = "second"
[[processes]]
type = "missing"
command = ["pwd"]
working-dir = "/no/such"
buildpack-id = "second"
[[processes]]
type = "default"
command = ["pwd"]
buildpack-id = "second"
`)
	im.want(im.path("workspace")+"\n", "default")
	im.write("workspace/sub/tool", "#!/bin/sh\npwd\n", 0o755)
	im.write("workspace/bin/tool", "#!/bin/sh\npwd\n", 0o755)
	im.want(im.path("workspace/sub")+"\n", "relative")
	im.want("/usr\n", "app")
	im.wantFailure(82, "launcher: enter the working directory: chdir /no/such: no such file or directory\n", "missing")
}

func TestFailures(t *testing.T) {
	conform.Covers(t, 1, 2, 184)
	im := newImage(t, processes)
	im.wantFailure(82, `launcher: nothing to start: "launcher" is no process of this image, and there is no command
launcher: hint: the image has /cnb/process/web, /cnb/process/dotted.type, /cnb/process/old, /cnb/process/pwd, /cnb/process/shell, /cnb/process/shell-args, /cnb/process/everywhere; or give a command: launcher -- <command> [args...]
`, "")
	im.wantFailure(82, `launcher: start nonsense: not found on PATH
launcher: hint: PATH is "/usr/bin:/bin"
`, "", "--", "nonsense")
	im.wantFailure(82, "launcher: start ./nonsense: no such file\n", "", "--", "./nonsense")
	im.wantFailure(82, "launcher: start .: not found on PATH\nlauncher: hint: PATH is \"/usr/bin:/bin\"\n", "", "--", ".")
	im.wantFailure(82, "launcher: start ./: is a directory\n", "", "--", "./")

	im.write("workspace/plain", "x", 0o644)
	im.wantFailure(82, "launcher: start ./plain: not executable (mode 0644): permission denied\nlauncher: hint: chmod +x ./plain\n", "", "--", "./plain")
	im.write("workspace/lost", "#!/no/such/python -u\n", 0o755)
	im.wantFailure(82, "launcher: start /workspace/lost: its interpreter /no/such/python is not in the image: no such file or directory\n", "", "--", "./lost")
	im.write("workspace/dos", "#!/bin/sh\r\n", 0o755)
	im.wantFailure(82, "launcher: start /workspace/dos: it has Windows line endings: no such file or directory\n", "", "--", "./dos")
	im.write("workspace/none", "echo\n", 0o755)
	im.wantFailure(82, "launcher: start /workspace/none: it is neither a program nor a script that begins with #!: exec format error\n", "", "--", "./none")

	api := im.env[0]
	im.env[0] = "X=y"
	im.wantFailure(11, "launcher: CNB_PLATFORM_API is not set\nlauncher: hint: set it to one of 0.7, 0.8, 0.9, 0.10, 0.11, 0.12, 0.13, 0.14, 0.15\n", "web")
	im.env[0] = "CNB_PLATFORM_API=9.9"
	im.wantFailure(11, "launcher: platform API \"9.9\": not supported\nlauncher: hint: CNB_PLATFORM_API can be one of 0.7, 0.8, 0.9, 0.10, 0.11, 0.12, 0.13, 0.14, 0.15\n", "web")
	im.env[0] = api

	im.write("layers/config/metadata.toml", "[[processes]]\ntype=3\n", 0o644)
	im.wantFailure(82, "launcher: read the image's processes: /layers/config/metadata.toml:2:1: processes[0].type: must be a string, not an integer\n", "web")
	im.write("layers/config/metadata.toml", "[[buildpacks]]\nid='a'\nversion='1'\napi='7.0'\n", 0o644)
	im.wantFailure(12, "launcher: buildpack a@1: buildpack API \"7.0\": not supported\nlauncher: hint: kiln runs buildpacks of API 0.7, 0.8, 0.9, 0.10, 0.11, 0.12\n", "web")
	if err := os.Remove(im.path("layers/config/metadata.toml")); err != nil {
		t.Fatal(err)
	}
	im.wantFailure(82, "launcher: read the image's processes: open /layers/config/metadata.toml: no such file or directory\n", "web")
}

func TestExecEnv(t *testing.T) {
	conform.Covers(t, 191)
	im := newImage(t, processes)
	im.want("everywhere", "everywhere")
	im.wantFailure(82, `launcher: process "test-only" is not meant for the execution environment "production"
launcher: hint: it is for test, development; set CNB_EXEC_ENV to start it
`, "test-only")
	im.env = append(im.env, "CNB_EXEC_ENV=test")
	im.want("test", "test-only")
	im.want("test", "", "--", "sh", "-c", `printf "$CNB_EXEC_ENV"`) // stays visible
	im.env[len(im.env)-1] = "CNB_EXEC_ENV=other"
	im.env[0] = "CNB_PLATFORM_API=0.14" // no filter yet
	im.want("test", "test-only")
}

// printenv prints variables of the launched process, one a line.
func (im image) printenv(process string, names ...string) string {
	im.Helper()
	args := []string{"-c", `for n in "$@"; do if [ -n "${!n+x}" ]; then printf '%s=%s\n' "$n" "${!n}"; fi; done`, "bash"}
	if process == "" {
		args = append([]string{"--", "bash"}, args...)
	}
	out, stderr, code := im.run(process, append(args, names...)...)
	if code != 0 {
		im.Fatal(code, stderr)
	}
	return strings.ReplaceAll(out, im.dir, "")
}

func TestEnvironment(t *testing.T) {
	conform.Covers(t, 187, 188, 192)
	im := newImage(t, "[[processes]]\ntype='web'\ncommand=['bash']\nbuildpack-id='second'\n")
	for _, dir := range []string{"a_first/one/bin", "a_first/two/bin", "a_first/two/lib", "second/x/bin", "second/x/include", "second/x/pkgconfig", "not-in-group/y/bin"} {
		if err := os.MkdirAll(im.path("layers/"+dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	im.write("layers/a_first/one.toml", "", 0o644)
	im.write("layers/a_first/one/env/A", "1", 0o644)
	im.write("layers/a_first/one/env/B", "from env", 0o644)
	im.write("layers/a_first/one/env.launch/B", "from env.launch", 0o644)
	im.write("layers/a_first/one/env.launch/C", "from env.launch", 0o644)
	im.write("layers/a_first/one/env.launch/web/C", "from web", 0o644)
	im.write("layers/a_first/one/env.build/A", "from env.build", 0o644)
	im.write("layers/a_first/two/env/A.append", "2", 0o644)
	im.write("layers/second/x/env/A.prepend", "3\n", 0o644)
	im.write("layers/second/x/env/A.delim", ", ", 0o644)
	im.write("layers/second/x/env/USER_SET.override", "theirs", 0o644)
	im.write("layers/second/x/env/USER_DEFAULT.default", "theirs", 0o644)
	im.write("layers/second/x/env.launch/PATH.prepend", "/opt", 0o644)
	im.write("layers/second/x/env.launch/PATH.delim", ":", 0o644)
	// The paths of a buildpack's layers come first, then what their files say.
	im.write("layers/second/a/env/LD_LIBRARY_PATH.prepend", "/first:", 0o644)
	im.write("layers/second/a/lib/so", "", 0o644)
	im.write("layers/second/b/lib/so", "", 0o644)
	im.env = append(im.env, "USER_SET=mine", "USER_DEFAULT=mine", "CNB_PROCESS_TYPE=x", "CNB_DEPRECATION_MODE=quiet", "CNB_OTHER=kept")

	names := []string{"PATH", "LD_LIBRARY_PATH", "CPATH", "PKG_CONFIG_PATH", "LIBRARY_PATH", "A", "B", "C", "USER_SET", "USER_DEFAULT",
		"CNB_APP_DIR", "CNB_LAYERS_DIR", "CNB_PROCESS_TYPE", "CNB_PLATFORM_API", "CNB_DEPRECATION_MODE", "CNB_OTHER"}
	want := `PATH=/opt:/layers/second/x/bin:/layers/a_first/two/bin:/layers/a_first/one/bin:/usr/bin:/bin
LD_LIBRARY_PATH=/first:/layers/second/b/lib:/layers/second/a/lib:/layers/a_first/two/lib
A=3
, 12
B=from env.launch
C=from web
USER_SET=theirs
USER_DEFAULT=mine
CNB_OTHER=kept
`
	if diff := cmp.Diff(want, im.printenv("web", names...)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("C=from env.launch\n", im.printenv("", "C")); diff != "" {
		t.Error(diff)
	}
	if _, stderr, _ := im.run("web", "-c", ":"); !strings.Contains(stderr, "warning: CNB_PROCESS_TYPE") {
		t.Errorf("no warning of CNB_PROCESS_TYPE: %q", stderr)
	}
}

func TestExecD(t *testing.T) {
	conform.Covers(t, 185, 186)
	im := newImage(t, "[[processes]]\ntype='web'\ncommand=['bash']\nbuildpack-id='second'\n")
	record := func(name string) string {
		return "#!/bin/bash\necho \"ORDER = \\\"$ORDER " + name + "\\\"\" >&3\n"
	}
	im.write("layers/second/l/exec.d/a", record("second-l-a"), 0o755)
	im.write("layers/a_first/z/exec.d/a", record("first-z-a"), 0o755)
	im.write("layers/a_first/y/exec.d/b", record("first-y-b"), 0o755)
	im.write("layers/a_first/y/exec.d/a", record("first-y-a"), 0o755)
	im.write("layers/a_first/y/exec.d/web/a", record("first-y-web-a"), 0o755)
	im.write("layers/a_first/y/exec.d/other/a", record("never"), 0o755)
	im.write("layers/second/l/exec.d/b", `#!/bin/bash
printf 'CWD = "%s"\nSAW = "%s"\nPROFILE = "exec.d"\n' "$PWD" "$A" >&3
`, 0o755)
	im.write("layers/second/m/env/A", "env", 0o644)
	want := "ORDER= first-y-a first-y-b first-y-web-a first-z-a second-l-a\nCWD=/workspace\nSAW=env\n"
	if diff := cmp.Diff(want, im.printenv("web", "ORDER", "CWD", "SAW")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("ORDER= first-y-a first-y-b first-z-a second-l-a\n", im.printenv("", "ORDER")); diff != "" {
		t.Error(diff)
	}
	// exec.d comes before the profile scripts, which see its variables.
	im.write("layers/second/l/profile.d/p", "export PROFILE=\"$PROFILE profile.d\"\n", 0o644)
	im.want("exec.d profile.d", "", `printf "$PROFILE"`)

	im.write("layers/second/l/exec.d/c", "#!/bin/bash\necho sorry >&2\nexit 7\n", 0o755)
	im.wantFailure(82, "sorry\nlauncher: /layers/second/l/exec.d/c: exit status 7\n", "web", "-c", "echo started")
	im.write("layers/second/l/exec.d/c", "#!/bin/bash\necho 'X = 3' >&3\n", 0o755)
	im.wantFailure(82, "launcher: output of /layers/second/l/exec.d/c:1:1: X: must be a string, not an integer\n", "web", "-c", "echo started")
	im.write("layers/second/l/exec.d/c", "#!/bin/bash\necho 'X' >&3\n", 0o755)
	im.wantFailure(82, "launcher: output of /layers/second/l/exec.d/c:1:2: expected '=' after key\n", "web", "-c", "echo started")
	im.write("layers/second/l/exec.d/c", "", 0o644)
	im.wantFailure(82, "launcher: /layers/second/l/exec.d/c: not executable (mode 0644): permission denied\nlauncher: hint: chmod +x /layers/second/l/exec.d/c\n", "web", "-c", "echo started")
	im.write("layers/second/l/exec.d/c", "#!/bin/bash\nexec head -c 5000000 /dev/zero >&3\n", 0o755)
	im.wantFailure(82, "launcher: /layers/second/l/exec.d/c: wrote more than 4194304 bytes to file descriptor 3\n", "web", "-c", "echo started")
}

// A program may start a daemon that keeps file descriptor 3. The launch must
// neither hang nor lose what was written.
func TestExecDLeavesDaemon(t *testing.T) {
	im := newImage(t, "[[processes]]\ntype='web'\ncommand=['bash']\nbuildpack-id='second'\n")
	im.write("layers/second/l/exec.d/a", "#!/bin/bash\nsleep 30 </dev/null >/dev/null 2>&1 &\nprintf 'X = \"set\"\\nPID = \"%s\"\\n' $! >&3\n", 0o755)
	began := time.Now()
	out := im.printenv("web", "X", "PID")
	var pid int
	if _, err := fmt.Sscanf(out, "X=set\nPID=%d\n", &pid); err != nil || pid < 2 {
		t.Fatalf("%q: %v", out, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the daemon did not survive: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("waited %v for the daemon", took)
	}
}

func TestProfileScripts(t *testing.T) {
	conform.Covers(t, 186)
	im := newImage(t, processes)
	record := func(name string) string { return "export ORDER=\"$ORDER " + name + "\"\n" }
	im.write("layers/second/l/profile.d/a", record("second-l-a"), 0o644)
	im.write("layers/a_first/z/profile.d/it's $here", record("first-z"), 0o644)
	im.write("layers/a_first/y/profile.d/a", record("first-y-a")+"cd /\n", 0o644)
	im.write("layers/a_first/y/profile.d/shell/a", record("first-y-shell"), 0o644)
	im.write("workspace/.profile", record(".profile")+"GREETING='not exported'\n", 0o644)
	im.want(" first-y-a first-z second-l-a .profile|"+im.path("workspace")+"|", "", "printf", "%s|", "$ORDER", "$PWD")
	im.want("|", "", "--", "bash", "-c", `printf "%s|" "$ORDER"`) // direct: no scripts
	im.want("not exported|", "", "printf", "%s|", "$GREETING")
	im.env = append(im.env, "GREETING=x")
	im.write("workspace/.profile", "GREETING=$ORDER\n", 0o644)
	im.want(" first-y-a first-y-shell first-z second-l-a|bash|", "shell")
}

// What a shell would wait for, or read for ever, ends the launch.
func TestPipesForFiles(t *testing.T) {
	pipe := func(im image, name string) {
		t.Helper()
		im.write(name, "", 0o644)
		if err := errors.Join(os.Remove(im.path(name)), syscall.Mkfifo(im.path(name), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for name, process := range map[string]string{
		"layers/second/l/profile.d/p": "shell", "layers/second/l/profile.d/shell/p": "shell", "workspace/.profile": "shell",
		"layers/second/l/exec.d/p": "web", "layers/config/metadata.toml": "web",
	} {
		im := newImage(t, processes)
		pipe(im, name)
		stdout, stderr, code := im.run(process)
		if code != 82 || stdout != "" || !strings.Contains(stderr, name+": not a regular file") {
			t.Errorf("%s: exit %d, %q, %s", name, code, stdout, stderr)
		}
	}
	im := newImage(t, processes)
	pipe(im, "workspace/program")
	im.wantFailure(82, "launcher: start ./program: is not a regular file\n", "", "--", "./program")
	im = newImage(t, processes)
	pipe(im, "layers/second/l/env/A")
	im.wantFailure(82, "launcher: environment of layer /layers/second/l: /layers/second/l/env/A: a variable must be a regular file, not p---------\n", "web")
}

// A bash on the layers' PATH is taken before that of the base image.
func TestShellOnPath(t *testing.T) {
	im := newImage(t, processes)
	im.write("layers/second/tools/bin/bash", "#!/bin/sh\nprintf '%s ' own \"$1\" \"$3\" \"$4\" \"$5\"\n", 0o755)
	im.want("own -c "+launcher+" echo x ", "", "echo", "x")
}

// The process takes the launcher's place: same PID, its signals, its exit code.
func TestReplacesItself(t *testing.T) {
	conform.Covers(t, 190)
	im := newImage(t, "[[processes]]\ntype='web'\ncommand=['bash','-c']\nargs=['echo $$; trap \"exit 42\" TERM; echo ready; while :; do sleep 0.02; done']\nbuildpack-id='second'\n")
	for _, args := range [][]string{nil, {"sh-form"}} {
		process := "web"
		cmdArgs := args
		if args != nil {
			process = ""
			cmdArgs = []string{`echo $$; trap "exit 42" TERM; echo ready; while :; do sleep 0.02; done`}
		}
		cmd := im.command(process, cmdArgs...)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		var pid int
		var ready string
		if _, err := fmt.Fscan(r, &pid, &ready); err != nil {
			t.Error(err)
		}
		if pid != cmd.Process.Pid || ready != "ready" {
			t.Errorf("%v: process %d, launcher %d", args, pid, cmd.Process.Pid)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		err = cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 42 {
			t.Errorf("%v: %v, want exit code 42", args, err)
		}
		r.Close()
	}
	im.wantExit(3, "--", "sh", "-c", "exit 3")
	im.wantExit(5, "exit 5")
}

func (im image) wantExit(code int, args ...string) {
	im.Helper()
	if _, stderr, got := im.run("", args...); got != code {
		im.Errorf("%q: exit code %d, want %d: %s", args, got, code, stderr)
	}
}

// What the launcher inherits, the process inherits: ignored signals and limits.
func TestLeavesProcessAttributes(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	im := newImage(t, processes)
	direct, err := exec.Command("sh", "-c", "ulimit -n; grep SigIgn /proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	im.want(string(direct), "", "--", "sh", "-c", "ulimit -n; grep SigIgn /proc/self/status")
}
