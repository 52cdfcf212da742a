package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// elsewhere: on another file system, in another builder with the same
// buildpacks, and for another user, the same image is made.
func elsewhere(t *testing.T, w *world) {
	conform.Covers(t, 130, 131)
	app := readScenario(t, "hello").below("app")
	w.five(t, w.place(t, worldBuilder, "elsewhere/five", app))
	w.elsewhereByKiln(t, "elsewhere/kiln", t.TempDir(), app)
	sameImage(t, w.pull(t, "elsewhere/five"), w.pull(t, "elsewhere/kiln"))
	same := func(t *testing.T, repo, as string) {
		t.Helper()
		if got, want := w.id(t, repo), w.id(t, as); got != want {
			t.Errorf("the image is %s, want %s", got, want)
			sameImage(t, w.pull(t, repo), w.pull(t, as))
		}
	}
	t.Run("tmpfs", func(t *testing.T) {
		memory := *w
		memory.dir = tmpfs(t)
		p := memory.place(t, worldBuilder, "elsewhere/tmpfs", app)
		memory.phases(t, p, []string{"--tmpfs", "/tmp"}, fivePhases(p))
		same(t, "elsewhere/tmpfs", "elsewhere/five")
		w.elsewhereByKiln(t, "elsewhere/kiln-tmpfs", tmpfs(t), app)
		same(t, "elsewhere/kiln-tmpfs", "elsewhere/kiln")
	})
	if os.Getuid() != 0 {
		return // whoever is not root cannot be two users
	}
	t.Run("another user", func(t *testing.T) {
		podman, err := newPodman("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--inh-caps=-all")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(podman.close)
		user := *w
		user.podman, user.dir = podman, podman.dir+"/places"
		p := user.place(t, smallBuilder, "elsewhere/user", app)
		user.five(t, p)
		same(t, "elsewhere/user", "elsewhere/five")
		w.elsewhereByKiln(t, "elsewhere/kiln-user", podman.dir+"/kiln", app, podman.as...)
		same(t, "elsewhere/kiln-user", "elsewhere/kiln")
	})
}

// elsewhereByKiln builds with a store and temporary files in a folder, as
// another user if there is a command for that.
func (w *world) elsewhereByKiln(t *testing.T, repo, dir string, app map[string]string, as ...string) {
	t.Helper()
	filetree.Write(t, dir+"/source", 0o644, app)
	filetree.Write(t, dir+"/tmp", 0o644, nil)
	argv := slices.Concat(as, []string{filepath.Join(bin, "kiln"), "build", w.addr + "/" + repo, "--path", dir + "/source", "--builder", w.addr + "/" + smallBuilder, "--publish", "--quiet"})
	if len(as) > 0 {
		// The programs of this test may be where only root comes.
		program := dir + "/kiln"
		if out, err := exec.Command("cp", filepath.Join(bin, "kiln"), program).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		argv[len(as)] = program
		give(t, dir)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "KILN_STORE=" + dir + "/store", "TMPDIR=" + dir + "/tmp"}
	runCommand(t, cmd).ok(t)
	exec.Command("chmod", "-R", "u+rwX", dir).Run() // so that it can be removed
}

// tmpfs is a folder in memory.
func tmpfs(t *testing.T) string {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Fatalf("/dev/shm is no tmpfs (%v): mount one there", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "kiln-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("chmod", "-R", "u+rwX", dir).Run()
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
