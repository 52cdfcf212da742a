package test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/test/filetree"
)

// file is one file of an app as it must be in the image.
type file struct {
	Type    byte
	Mode    int64
	Link    string
	Content [sha256.Size]byte
}

// strange is an app with everything in it that a Linux file system allows, and
// that somebody's code will have one day.
type strange struct {
	t    *testing.T
	dir  string
	want map[string]file
}

func (s *strange) file(name, content string, mode uint32) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Chmod(path, mode); err != nil {
		s.t.Fatal(err)
	}
	s.want[name] = file{Type: tar.TypeReg, Mode: int64(mode), Content: sha256.Sum256([]byte(content))}
}

func (s *strange) folder(name string, mode uint32) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Chmod(path, mode); err != nil {
		s.t.Fatal(err)
	}
	s.want[name] = file{Type: tar.TypeDir, Mode: int64(mode)}
}

func (s *strange) link(name, target string) {
	s.t.Helper()
	if err := os.Symlink(target, filepath.Join(s.dir, name)); err != nil {
		s.t.Fatal(err)
	}
	s.want[name] = file{Type: tar.TypeSymlink, Mode: 0o777, Link: target}
}

// deep makes n folders of that name in one another, with a file in the last.
func (s *strange) deep(name string, n int) {
	s.t.Helper()
	fd, err := unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	path := ""
	for range n {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			s.t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
		path = filepath.Join(path, name)
		s.want[path] = file{Type: tar.TypeDir, Mode: 0o755}
	}
	defer unix.Close(fd)
	f, err := unix.Openat(fd, "end", unix.O_WRONLY|unix.O_CREAT, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer unix.Close(f)
	if _, err := unix.Write(f, []byte(name)); err != nil {
		s.t.Fatal(err)
	}
	s.want[filepath.Join(path, "end")] = file{Type: tar.TypeReg, Mode: 0o644, Content: sha256.Sum256([]byte(name))}
}

func newStrange(t *testing.T) *strange {
	s := &strange{t: t, dir: t.TempDir(), want: map[string]file{}}
	unix.Umask(unix.Umask(0o022)) // what follows sets its modes by hand
	for i, name := range []string{"latin-\xe9\xff", "new\nline", strings.Repeat("a", 255), strings.Repeat("é", 127) + "z", " lead", "trail ", "-rf",
		"tab\t", `back\slash`, `quo"te'`, "*?[", "\x01\x1b[31m", "layers", "...", "a:b", "a=b", "$HOME`x`", "%s"} {
		s.file(name, fmt.Sprint(i), 0o644)
	}
	s.deep("d", 250)
	s.deep(strings.Repeat("L", 250), 18) // more than PATH_MAX
	s.link("loop1", "loop2")
	s.link("loop2", "loop1")
	s.link("self", ".")
	s.link("dangling", "nowhere")
	s.link("absolute", "/etc/passwd")
	s.link("climb", "../../../../../../../../etc/shadow")
	s.link("long", strings.Repeat("x", 4000))
	s.file("setuid", "u", 0o4755)
	s.file("setgid", "g", 0o2755)
	s.file("everybody", "e", 0o666)
	s.file("readonly", "r", 0o444)
	s.folder("empty", 0o755)
	s.folder("shared", 0o1777)
	s.folder("closed", 0o755)
	s.file("closed/f", "c", 0o400)
	if err := os.Chmod(filepath.Join(s.dir, "closed"), 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(s.dir, "closed"), 0o755) })
	s.want["closed"] = file{Type: tar.TypeDir, Mode: 0o555}

	if err := unix.Mkfifo(filepath.Join(s.dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.want["fifo"] = file{Type: tar.TypeFifo, Mode: 0o644}
	// A socket is of a process, not of an app: it is left out.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(s.dir, "socket")}); err != nil {
		t.Fatal(err)
	}
	s.file("hard1", "hard", 0o644)
	if err := os.Link(filepath.Join(s.dir, "hard1"), filepath.Join(s.dir, "hard2")); err != nil {
		t.Fatal(err)
	}
	s.want["hard2"] = s.want["hard1"]
	s.file("sparse", strings.Repeat("\x00", 5<<20)+"middle"+strings.Repeat("\x00", 3<<20), 0o644)
	if os.Getuid() == 0 { // nobody else could read them
		s.file("secret", "s", 0)
		s.folder("hidden", 0)
	}
	return s
}

// TestStrangeApp holds the app layer against the source, file by file.
func TestStrangeApp(t *testing.T) {
	builder, run := tiny(t)
	s := newStrange(t)
	bp := buildpack(t, "test/nothing", "", "")
	layout := filepath.Join(t.TempDir(), "out")
	first := must(t, "build", "strange", "--path", s.dir, "--buildpack", bp, "--builder", builder, "--run-image", run, "--quiet")
	again := must(t, "build", "strange", "--path", s.dir, "--buildpack", bp, "--builder", builder, "--run-image", run, "--quiet", "--output", "oci:"+layout)
	if first != again {
		t.Errorf("the store has %s, the layout %s", first, again)
	}
	if diff := cmp.Diff(s.want, appLayer(t, layout)); diff != "" {
		t.Errorf("not what was in the source (-want +got):\n%.4000s", diff)
	}
	// A process in the image sees them, too, and in every tier the same.
	for _, tier := range []string{"1", "2"} {
		got := must(t, "run", "--isolation", tier, "strange", "--", "sh", "-c", "cat /workspace/latin-* /workspace/new*line /workspace/closed/f; ls /workspace | wc -l")
		if !strings.HasPrefix(got, "01c") {
			t.Errorf("tier %s: a process reads %q", tier, got)
		}
		rebuilt := must(t, "build", "strange-"+tier, "--path", s.dir, "--buildpack", bp, "--builder", builder, "--run-image", run, "--quiet", "--isolation", tier)
		if rebuilt != first {
			t.Errorf("tier %s: image %s, want %s", tier, rebuilt, first)
		}
	}
	must(t, "rm", "strange", "strange-1", "strange-2")
	nothingLeft(t, s.dir)
}

// appLayer reads what is below /workspace in the only image of a layout.
func appLayer(t *testing.T, dir string) map[string]file {
	t.Helper()
	img, err := archive.Layout{Dir: dir}.Image(t.Context(), "strange")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]file{}
	for _, l := range layers {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(rc); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			rel, ok := strings.CutPrefix(strings.TrimSuffix(h.Name, "/"), "/workspace/")
			if !ok {
				if rel, ok = strings.CutPrefix(strings.TrimSuffix(h.Name, "/"), "workspace/"); !ok {
					continue
				}
			}
			f := file{Type: h.Typeflag, Mode: h.Mode, Link: h.Linkname}
			if h.Typeflag == tar.TypeReg {
				sum := sha256.New()
				if _, err := io.Copy(sum, tr); err != nil {
					t.Fatal(err)
				}
				f.Content = [sha256.Size]byte(sum.Sum(nil))
			}
			if h.Uid != 1000 || h.Gid != 1000 || h.Uname != "" || !h.ModTime.Equal(time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)) {
				t.Errorf("%q: owner %d:%d %q, time %v", rel, h.Uid, h.Gid, h.Uname, h.ModTime)
			}
			got[rel] = f
		}
		rc.Close()
	}
	return got
}

// TestUnreadableApp names what cannot be read, and is fine for root, who can.
func TestUnreadableApp(t *testing.T) {
	bp := buildpack(t, "test/nothing", "", "")
	source := filetree.New(t, map[string]string{"ok": "x", "sub/secret": "y"})
	build := []string{"build", "unreadable", "--path", source, "--buildpack", bp, "--quiet"}
	for _, path := range []string{"sub/secret", "sub"} {
		full := filepath.Join(source, path)
		fi, err := os.Stat(full)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(full, 0); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			must(t, build...)
		} else {
			refuses(t, kilnCommand(t.Context(), t, build...), 3, source, path, "permission denied")
		}
		if err := os.Chmod(full, fi.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	must(t, build...)
	must(t, "rm", "unreadable")
}

// TestForeignApp builds what belongs to somebody else and cannot be written to.
func TestForeignApp(t *testing.T) {
	source := "/usr/share/base-files" // Debian's, read-only, root's
	if os.Getuid() == 0 {
		source = filetree.New(t, map[string]string{"f": "x"})
		for _, path := range []string{filepath.Join(source, "f"), source} {
			if err := errors.Join(os.Chown(path, 12345, 12345), os.Chmod(path, 0o555)); err != nil {
				t.Fatal(err)
			}
		}
	}
	bp := buildpack(t, "test/nothing", "", "test -O . && echo x >>new")
	must(t, "build", "foreign", "--path", source, "--buildpack", bp, "--quiet")
	if got := must(t, "run", "foreign", "--", "sh", "-c", "cat new; echo $(stat -c %u .)"); got != "x\n1000" {
		t.Errorf("in the image: %q", got)
	}
	must(t, "rm", "foreign")
}

// TestLinkedApp takes a link to the app for the app.
func TestLinkedApp(t *testing.T) {
	bp := buildpack(t, "test/nothing", "", "")
	source := filetree.New(t, map[string]string{"f": "x"})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(source, link); err != nil {
		t.Fatal(err)
	}
	a := must(t, "build", "linked", "--path", source, "--buildpack", bp, "--quiet")
	if b := must(t, "build", "linked", "--path", link, "--buildpack", bp, "--quiet"); a != b {
		t.Errorf("%s through the link, %s without", b, a)
	}
	must(t, "rm", "linked")
}

// TestStoreInApp leaves kiln's own store out of an app that it lies in.
func TestStoreInApp(t *testing.T) {
	builder, run := tiny(t)
	bp := buildpack(t, "test/nothing", "", "")
	source := filetree.New(t, map[string]string{"f": "x"})
	own := filepath.Join(source, ".kiln")
	t.Cleanup(func() { removeAll(filepath.Join(own, "x")) })
	args := []string{"build", "own", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run}
	var ids []string
	for range 2 {
		r := end(t, withStore(t.Context(), t, own, args...))
		if r.code != 0 || !strings.Contains(r.out, ".kiln is kiln's own store: it is left out of the app") {
			t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
		}
		_, id, _ := strings.Cut(r.out, "image   ")
		ids = append(ids, strings.Fields(id)[0])
	}
	if ids[0] != ids[1] {
		t.Errorf("images differ: %v", ids)
	}
	if r := end(t, withStore(t.Context(), t, own, "run", "own", "--", "ls", "-A", "/workspace")); r.out != "f\n" {
		t.Errorf("in the image: %q %s", r.out, r.err)
	}
	args[3] = filepath.Join(own, "blobs")
	refuses(t, withStore(t.Context(), t, own, args...), 3, "is in kiln's own store")
}

// TestAppThatChanges refuses to export what nobody had at any one moment.
func TestAppThatChanges(t *testing.T) {
	bp := buildpack(t, "test/nothing", "", "")
	source := filetree.New(t, map[string]string{"log": "x"})
	if err := os.WriteFile(filepath.Join(source, "a"), bytes.Repeat([]byte("a"), 32<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	started, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		f, err := os.OpenFile(filepath.Join(source, "log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return
		}
		defer f.Close()
		f.WriteString("first\n")
		close(started)
		for ctx.Err() == nil {
			f.WriteString("line\n")
			time.Sleep(100 * time.Microsecond)
		}
	}()
	<-started
	args := []string{"build", "changing", "--path", source, "--buildpack", bp, "--quiet"}
	refuses(t, kilnCommand(t.Context(), t, args...), 1, source, "changed while")
	stop()
	<-stopped
	must(t, args...)
	must(t, "rm", "changing")
}

// TestDeletedFolder is for those who stand in a folder that is gone.
func TestDeletedFolder(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(gone, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `cd "$1"; rmdir "$1"; shift; exec "$@"`
	bp := buildpack(t, "test/nothing", "", "")
	cmd := kilnCommand(t.Context(), t, "build", "gone", "--buildpack", bp)
	cmd.Args = append([]string{"sh", "-c", script, "sh", gone}, append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path = "/bin/sh"
	refuses(t, cmd, 3, "does not exist any more")
	if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
