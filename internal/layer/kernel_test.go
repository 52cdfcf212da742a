package layer

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestStackEqualsKernel compares the merged view with a real overlay mount,
// after a run of random changes made through it. The mount lives in a process
// of its own, in a user namespace.
func TestStackEqualsKernel(t *testing.T) {
	const rounds = 40
	top := scratch(t)
	for i := range rounds {
		for _, d := range []string{"low0", "low1", "low2", "upper", "work", "merged"} {
			mkdirs(t, top, fmt.Sprintf("%d/%s", i, d))
		}
		for j := range 3 {
			r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			populate(t, r, filepath.Join(top, fmt.Sprint(i), fmt.Sprintf("low%d", j)))
		}
	}
	out := inNamespace(t, "overlay", top, fmt.Sprint(rounds))
	views := strings.Split(out, "====\n")
	if len(views) != rounds+1 {
		t.Fatalf("%d views, want %d: %s", len(views)-1, rounds, out)
	}
	touched := 0
	for i := range rounds {
		dir := filepath.Join(top, fmt.Sprint(i))
		s := Stack{Upper: filepath.Join(dir, "upper"), Lowers: []string{
			filepath.Join(dir, "low2"), filepath.Join(dir, "low1"), filepath.Join(dir, "low0"),
		}}
		if diff := cmp.Diff(views[i], renderStack(t, s)); diff != "" {
			t.Errorf("round %d: kernel (-), Stack (+):\n%s", i, diff)
		}
		touched += checkTouched(t, s)
	}
	if touched == 0 {
		t.Error("no round changed anything")
	}
}

// checkTouched: what is not touched looks as it does without the upper layer.
func checkTouched(t *testing.T, s Stack) (touched int) {
	t.Helper()
	below := Stack{Lowers: s.Lowers}
	for _, name := range []string{"a", "b", "c", "a/a", "a/b", "b/a", "b/c", "c/c", "nothing"} {
		was, err := s.Touched(name)
		if err != nil {
			t.Errorf("Touched(%s): %v", name, err)
		}
		if was {
			touched++
		} else if diff := cmp.Diff(renderAt(t, below, name), renderAt(t, s, name)); diff != "" {
			t.Errorf("%s is not touched but differs:\n%s", name, diff)
		}
	}
	return touched
}

func renderAt(t *testing.T, s Stack, rel string) string {
	fi, err := s.Lstat(rel)
	if err != nil {
		return "absent"
	}
	var b strings.Builder
	if err := renderFile(s, rel, fi, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func renderStack(t *testing.T, s Stack) string {
	t.Helper()
	return strings.TrimPrefix(renderAt(t, s, "."), "\".\" drwxr-xr-x\n")
}

func renderFile(s Stack, rel string, fi fs.FileInfo, b *strings.Builder) error {
	switch fi.Mode().Type() {
	case fs.ModeDir:
		fmt.Fprintf(b, "%q %v\n", rel, fi.Mode())
		list, err := s.ReadDir(rel)
		if err != nil {
			return err
		}
		for _, e := range list {
			fi, err := e.Info()
			if err == nil {
				err = renderFile(s, filepath.Join(rel, e.Name()), fi, b)
			}
			if err != nil {
				return err
			}
		}
		return nil
	case fs.ModeSymlink:
		link, err := s.Readlink(rel)
		fmt.Fprintf(b, "%q -> %q\n", rel, link)
		return err
	}
	body, err := s.ReadFile(rel, 1<<20)
	fmt.Fprintf(b, "%q %v %q\n", rel, fi.Mode(), body)
	return err
}

var smallNames = []string{"a", "b", "c"}

func randomPath(r *rand.Rand) string {
	path := smallNames[r.IntN(3)]
	for r.IntN(2) == 0 {
		path += "/" + smallNames[r.IntN(3)]
	}
	return path
}

// populate makes a random tree; what does not work out does not matter.
func populate(t testing.TB, r *rand.Rand, dir string) {
	t.Helper()
	for range 12 {
		path := filepath.Join(dir, randomPath(r))
		switch r.IntN(5) {
		case 0:
			_ = os.Symlink("b/"+smallNames[r.IntN(3)], path)
		case 1, 2:
			_ = os.MkdirAll(path, []fs.FileMode{0o755, 0o700, 0o711}[r.IntN(3)])
		default:
			_ = os.MkdirAll(filepath.Dir(path), 0o755)
			_ = os.WriteFile(path, []byte{byte('0' + r.IntN(10))}, 0o644)
		}
	}
}

func mutate(r *rand.Rand, dir string) {
	for range r.IntN(15) {
		path := filepath.Join(dir, randomPath(r))
		switch r.IntN(7) {
		case 0:
			_ = os.RemoveAll(path)
		case 1:
			_ = os.Remove(path)
		case 2:
			_ = os.Rename(path, filepath.Join(dir, randomPath(r)))
		case 3:
			_ = os.Chmod(path, 0o750)
		case 4:
			_ = os.MkdirAll(path, 0o755)
		case 5:
			_ = os.Symlink("new", path)
		default:
			_ = os.WriteFile(path, []byte("changed"), 0o600)
		}
	}
}

// inNamespace runs this test binary as its own user and mount namespace and
// returns what it printed.
func inNamespace(t *testing.T, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "KILN_LAYER_TEST_CHILD=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child in a user namespace: %v\n%s", err, stderr.String())
	}
	return string(out)
}

func TestMain(m *testing.M) {
	if os.Getenv("KILN_LAYER_TEST_CHILD") != "" {
		if err := childMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childMain is a process with a user and mount namespace of its own: it mounts
// the overlay of each round, changes things through it, and says what it sees.
func childMain(args []string) error {
	var rounds int
	if _, err := fmt.Sscan(args[2], &rounds); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	views := map[string]func(round int) (string, error){"overlay": viewMutated, "diff": viewDiffed}
	for i := range rounds {
		if err := os.Chdir(filepath.Join(args[1], fmt.Sprint(i))); err != nil {
			return err
		}
		err := unix.Mount("overlay", "merged", "overlay", 0, "userxattr,lowerdir=low2:low1:low0,upperdir=upper,workdir=work")
		if err != nil {
			return fmt.Errorf("mount overlay: %w", err)
		}
		view, err := views[args[0]](i)
		if err != nil {
			return err
		}
		fmt.Print(view, "====\n")
		if err := unix.Unmount("merged", 0); err != nil {
			return err
		}
	}
	return nil
}

func viewMutated(round int) (string, error) {
	mutate(rand.New(rand.NewPCG(uint64(round), 99)), "merged")
	var b strings.Builder
	s := Stack{Upper: "merged"}
	fi, err := s.Lstat(".")
	if err == nil {
		err = renderFile(s, ".", fi, &b)
	}
	return strings.TrimPrefix(b.String(), "\".\" drwxr-xr-x\n"), err
}
