package layertest

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Canary is a directory that nothing may happen to, beside one to unpack to.
type Canary struct {
	// Outside is what archives aim at: files, links, a directory of everybody's.
	Outside string
	// Cell is an empty directory to unpack to.
	Cell string
	// Secret is in one of the files, and must get nowhere.
	Secret string

	top, before string
}

// NewCanary makes one in a directory of the test's own.
func NewCanary(t testing.TB) *Canary {
	t.Helper()
	top := t.TempDir()
	c := &Canary{Outside: filepath.Join(top, "outside"), Cell: filepath.Join(top, "cell"), Secret: "canary-in-a-file-outside", top: top}
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"cell", 0o755}, {"outside", 0o755}, {"outside/dir", 0o750}, {"outside/dir/deep", 0o700}, {"outside/open", 0o777}, {"outside/shared", 0o777 | os.ModeSticky}} {
		must(t, os.Mkdir(filepath.Join(top, d.name), 0o755))
		must(t, os.Chmod(filepath.Join(top, d.name), d.mode))
	}
	for _, f := range []struct {
		name string
		mode os.FileMode
	}{{"canary", 0o600}, {"program", 0o755 | os.ModeSetuid}, {"dir/file", 0o644}, {"dir/deep/file", 0o400}, {"open/file", 0o666}, {"shared/file", 0o666}} {
		name := filepath.Join(c.Outside, f.name)
		must(t, os.WriteFile(name, []byte(c.Secret+" "+f.name), 0o600))
		must(t, os.Chmod(name, f.mode))
	}
	must(t, os.Symlink("canary", filepath.Join(c.Outside, "link")))
	must(t, os.Link(filepath.Join(c.Outside, "canary"), filepath.Join(c.Outside, "twice")))
	must(t, syscall.Mkfifo(filepath.Join(c.Outside, "fifo"), 0o600))
	if os.Geteuid() == 0 {
		must(t, os.Lchown(filepath.Join(c.Outside, "shared/file"), 1000, 1000))
		must(t, os.Lchown(filepath.Join(c.Outside, "open"), 1000, 1000))
	}
	c.before = c.describe(t)
	t.Cleanup(c.open)
	return c
}

// open lets the test's directory be removed, whatever modes are in it.
func (c *Canary) open() {
	_ = filepath.WalkDir(c.top, func(path string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(path, 0o700) // what stays closed will be told of
		}
		return nil
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Check fails the test if anything happened outside of the cell.
func (c *Canary) Check(t testing.TB) {
	t.Helper()
	if after := c.describe(t); after != c.before {
		t.Errorf("something happened outside:\nbefore\n%s\nafter\n%s", c.before, after)
	}
}

// describe is all that can be known of the canary, and the names beside it.
func (c *Canary) describe(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(c.top, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(c.top, path)
		if path == c.top || path == c.Cell {
			fmt.Fprintln(&b, rel)
			if path == c.Cell {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %o %d:%d %d names %d bytes %v %v", rel, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim, st.Ctim)
		switch {
		case fi.Mode().IsRegular():
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(body))
		case fi.Mode().Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", to)
		}
		fmt.Fprintln(&b)
		return nil
	})
	must(t, err)
	return b.String()
}
