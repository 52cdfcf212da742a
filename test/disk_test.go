package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/test/filetree"
)

// inNamespace runs a shell script where it may mount, and where nothing of that
// is seen outside or stays.
func inNamespace(t *testing.T, script string, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"--user", "--map-root-user", "--mount", "--propagation", "private",
		"sh", "-ec", script, "sh"}, args...)...)
	cmd.Env = append(hostEnv(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+t.TempDir())
	return end(t, cmd)
}

// TestFullDisk builds with too little room for the builder, for the copy of the
// source, and for the layer: each time it says so, nothing half-written stays,
// and with more room the same command works.
func TestFullDisk(t *testing.T) {
	builder, run := tiny(t)
	source := filetree.New(t, map[string]string{"f": "x"})
	// Bytes that no file system can store in less.
	noise := filepath.Join(source, "noise")
	if out, err := exec.Command("dd", "if=/dev/urandom", "of="+noise, "bs=1M", "count=64", "status=none").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bp := buildpack(t, "test/nothing", "", "")
	disk := t.TempDir()
	r := inNamespace(t, `
disk=$1; shift
mount -t tmpfs -o size=600m disk "$disk"
mkdir -m 700 "$disk/store"
export KILN_STORE="$disk/store"
for size in 16 40 125 220; do
	rm -f "$disk/ballast"
	fallocate -l $((600 - size))m "$disk/ballast"
	code=0
	"$@" 2>&1 || code=$?
	echo "== $size: exit $code, scratch $(ls "$disk/store/tmp" | wc -l), $(kiln images -q | wc -l) images"
done
rm "$disk/ballast"
"$@"
kiln store check
mount -o remount,bind,ro "$disk"
code=0
"$@" 2>&1 || code=$?
echo "== read-only: exit $code"
`, disk, "kiln", "build", "full", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run, "--quiet")
	if r.code != 0 {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	steps := strings.Split(r.out, "\n== ")
	seen := map[string]bool{}
	for i, size := range []string{"16", "40", "125", "220"} {
		if want := size + ": exit 7, scratch 0, 0 images"; !strings.HasPrefix(steps[i+1], want) {
			t.Errorf("want %q, got:\n%s\n%s", want, steps[i], steps[i+1])
		}
		_, said, _ := strings.Cut(steps[i], "error: ")
		if !strings.Contains(said, "no space left on device") || !strings.Contains(said, disk) || !strings.Contains(said, "\nhint: ") {
			t.Errorf("%s: it does not say what is full and what to do:\n%s", size, steps[i])
		}
		for _, what := range []string{"unpack", "source", "export"} {
			seen[what] = seen[what] || strings.Contains(said, what)
		}
	}
	if len(seen) != 3 || !seen["unpack"] || !seen["source"] || !seen["export"] {
		t.Errorf("not every kind of write failed: %v\n%s", seen, r.out)
	}
	if !strings.Contains(r.out, "\n2 images, ") {
		t.Errorf("the store is not whole:\n%s", r.out)
	}
	if last := steps[len(steps)-1]; !strings.HasPrefix(last, "read-only: exit 3") || !strings.Contains(r.out, "read-only file system") {
		t.Errorf("on a read-only disk:\n%s", r.out)
	}
}

// TestFileSizeLimit runs into a limit of the shell instead of the disk's.
func TestFileSizeLimit(t *testing.T) {
	source := filetree.New(t, map[string]string{"big": strings.Repeat("x", 3<<20)})
	bp := buildpack(t, "test/nothing", "", "")
	must(t, "build", "limited", "--path", source, "--buildpack", bp, "--quiet")
	before := must(t, "images", "--quiet")
	if err := os.WriteFile(filepath.Join(source, "big"), []byte(strings.Repeat("y", 3<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := kilnCommand(t.Context(), t, "build", "limited", "--path", source, "--buildpack", bp, "--quiet")
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf("ulimit -f %d; exec \"$@\"", 2<<10), "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	refuses(t, cmd, 7, "file too large")
	if after := must(t, "images", "--quiet"); after != before {
		t.Errorf("images were\n%s\nand are\n%s", before, after)
	}
	nothingLeft(t, source)
	must(t, "build", "limited", "--path", source, "--buildpack", bp, "--quiet")
	must(t, "rm", "limited")
}

// TestFullDiskExtends builds with too little room for what an image extension
// makes of the builder.
func TestFullDiskExtends(t *testing.T) {
	builder, run := tiny(t)
	source := filetree.New(t, map[string]string{"f": "x"})
	if out, err := exec.Command("dd", "if=/dev/urandom", "of="+filepath.Join(source, "noise"), "bs=1M", "count=64", "status=none").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	builder = extended(t, builder, "printf 'ARG base_image\\nFROM ${base_image}\\nCOPY noise /noise\\n' > $CNB_OUTPUT_DIR/build.Dockerfile\n")
	disk := t.TempDir()
	r := inNamespace(t, `
disk=$1; shift
mount -t tmpfs -o size=600m disk "$disk"
mkdir -m 700 "$disk/store"
export KILN_STORE="$disk/store"
fallocate -l 340m "$disk/ballast"
code=0
"$@" 2>&1 || code=$?
echo "== exit $code, scratch $(ls "$disk/store/tmp" | wc -l), $(kiln images -q | wc -l) images"
rm "$disk/ballast"
"$@"
kiln store check
`, disk, "kiln", "build", "full", "--path", source, "--builder", builder, "--run-image", run)
	if r.code != 0 {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	said, _, _ := strings.Cut(r.out, "== exit 7, scratch 0, 0 images\n")
	for _, want := range []string{"build.Dockerfile:3: COPY noise /noise: ", "no space left on device", "error: disk of store " + disk + "/store is full", "\nhint: free some space there"} {
		if !strings.Contains(said, want) {
			t.Errorf("there is no %q in\n%s", want, r.out)
		}
	}
}
