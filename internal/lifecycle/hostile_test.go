package lifecycle

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/spec"
)

// input is a file that a phase reads.
type input struct {
	phase string
	file  string   // below the world's directory
	args  []string // that make the phase read it
	// follows says that the file is the builder's or the platform's, who may
	// link to another; what is in <layers> or an output of a buildpack is not.
	follows  bool
	skipsDir bool // a directory of that name is nothing
}

// hostileKinds are what can be where a file should be. Each gets a valid
// copy of the file elsewhere.
var hostileKinds = map[string]func(t *testing.T, path, valid string){
	"pipe": func(t *testing.T, path, _ string) { must(t, syscall.Mkfifo(path, 0o777)) },
	"socket": func(t *testing.T, path, _ string) {
		// The name of a socket is short: it is made elsewhere.
		dir, err := os.MkdirTemp("", "k")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		must(t, err)
		t.Cleanup(func() { l.Close() })
		must(t, os.Rename(filepath.Join(dir, "s"), path))
	},
	"device":    func(t *testing.T, path, _ string) { must(t, os.Symlink("/dev/zero", path)) },
	"terminal":  func(t *testing.T, path, _ string) { must(t, os.Symlink("/dev/ptmx", path)) },
	"directory": func(t *testing.T, path, _ string) { must(t, os.Mkdir(path, 0o755)) },
	"link out":  func(t *testing.T, path, valid string) { must(t, os.Symlink(valid, path)) },
	"loop":      func(t *testing.T, path, _ string) { must(t, os.Symlink(filepath.Base(path), path)) },
	"link to pipe": func(t *testing.T, path, valid string) {
		must(t, syscall.Mkfifo(valid+".pipe", 0o777))
		must(t, os.Symlink(valid+".pipe", path))
	},
	"endless": func(t *testing.T, path, _ string) {
		must(t, os.WriteFile(path, nil, 0o644))
		must(t, os.Truncate(path, 1<<40))
	},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is where a phase expects a file: it does not wait, it reads nothing
// that the file does not have, and it fails.
func TestHostileFiles(t *testing.T) {
	w, r := newWorld(t), newWatched(t)
	w.app(r.host)
	w.write("system.toml", "")
	w.write("project-metadata.toml", "")
	w.write("platform/env/USERS", "x")
	w.write("build-config/env/OPERATORS", "y")
	w.build(r.host)
	w.write("layers/order.toml", w.read("order.toml"))
	image := r.host + "/me/app:1"
	args := map[string][]string{}
	for _, argv := range w.phases(r.host) {
		args[argv[0]] = argv[1:]
	}
	const bp = "buildpacks/a_first/1.0.0/"
	for _, in := range []input{
		{analyzer, "run.toml", nil, true, false},
		{detector, "order.toml", nil, true, false},
		{detector, "layers/order.toml", []string{"-order="}, false, false},
		{detector, "layers/analyzed.toml", nil, false, false},
		{detector, "system.toml", []string{"-system", w.path("system.toml")}, true, false},
		{detector, bp + "buildpack.toml", nil, true, false},
		{detector, "platform/env/USERS", nil, true, true},
		{detector, "build-config/env/OPERATORS", nil, true, true},
		{restorer, "layers/group.toml", args[restorer], false, false},
		{restorer, "layers/analyzed.toml", args[restorer], false, false},
		{restorer, "run.toml", args[restorer], true, false},
		{builder, "layers/group.toml", nil, false, false},
		{builder, "layers/plan.toml", nil, false, false},
		{builder, "layers/analyzed.toml", nil, false, false},
		{builder, bp + "buildpack.toml", nil, true, false},
		{builder, "platform/env/USERS", nil, true, true},
		{builder, "build-config/env/OPERATORS", nil, true, true},
		{exporter, "layers/analyzed.toml", args[exporter], false, false},
		{exporter, "layers/group.toml", args[exporter], false, false},
		{exporter, "layers/config/metadata.toml", args[exporter], false, false},
		{exporter, "layers/second/both.toml", args[exporter], false, true}, // a layer of that name, without metadata
		{exporter, "layers/second/store.toml", args[exporter], false, false},
		{exporter, "run.toml", args[exporter], true, false},
		{exporter, "project-metadata.toml", slices.Concat([]string{"-project-metadata", w.path("project-metadata.toml")}, args[exporter]), true, false},
		{exporter, "launcher", args[exporter], true, false},
		{exporter, "launcher.sbom.cdx.json", args[exporter], true, false},
	} {
		if in.phase == analyzer {
			in.args = []string{"-run", w.path("run.toml"), image}
		}
		for kind, plant := range hostileKinds {
			t.Run(in.phase+" "+in.file+" "+kind, func(t *testing.T) {
				w.T = t
				path, aside := w.path(in.file), filepath.Join(t.TempDir(), "valid")
				must(t, os.Rename(path, aside))
				defer func() {
					must(t, os.RemoveAll(path))
					must(t, os.Rename(aside, path))
				}()
				plant(t, path, aside)
				done := inBackground(func() int { return w.run(in.phase, in.args...) })
				select {
				case code := <-done:
					fine := in.follows && kind == "link out" || in.skipsDir && kind == "directory"
					if fine != (code == 0) {
						t.Errorf("exit code %d\n%s%s", code, w.stdout.String(), w.stderr.String())
					}
					if base := strings.TrimSuffix(filepath.Base(in.file), ".toml"); !fine && !strings.Contains(w.stderr.String(), base) && !strings.Contains(w.stdout.String(), base) {
						t.Errorf("%s is not named:\n%s%s", base, w.stdout.String(), w.stderr.String())
					}
				case <-time.After(20 * time.Second):
					t.Fatal("it waits")
				}
			})
		}
	}
}

func inBackground(f func() int) chan int {
	done := make(chan int, 1)
	go func() { done <- f() }()
	return done
}

// What is in the way of a file that a phase writes is replaced or an error: it is
// not written through, and nobody is waited for.
func TestHostileOutputs(t *testing.T) {
	for kind, plant := range hostileKinds {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.write("workspace/go", "")
			valid := filepath.Join(t.TempDir(), "valid")
			must(t, os.WriteFile(valid, []byte("untouched"), 0o644))
			plant(t, w.path("layers/group.toml"), valid)
			done := inBackground(func() int { return w.run(detector) })
			select {
			case code := <-done:
				if kind == "directory" {
					w.want(spec.ExitDetect, code)
				} else {
					w.want(0, code)
					w.want(0, w.run(builder))
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it waits")
			}
			if b, err := os.ReadFile(valid); err != nil || string(b) != "untouched" {
				t.Errorf("written through: %q, %v", b, err)
			}
		})
	}
	t.Run("a pipe that cannot be replaced", func(t *testing.T) {
		dir := t.TempDir()
		must(t, syscall.Mkfifo(filepath.Join(dir, "report.toml"), 0o666))
		root, err := os.OpenRoot(dir)
		must(t, err)
		defer root.Close()
		done := inBackground(func() int {
			if overwrite(root, "report.toml", []byte("x")) == nil {
				return 0
			}
			return 1
		})
		select {
		case code := <-done:
			if code == 0 {
				t.Error("written to a pipe that nobody reads")
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it waits")
		}
	})
}
