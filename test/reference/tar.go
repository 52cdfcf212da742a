// Package reference writes what the reference lifecycle 0.21 writes, and reads
// what it reads: layer tars, app images, caches, documents. It says the [R]
// lines of the requirements again, in the plainest way and with nothing but
// archive/tar, encoding/json and BurntSushi's TOML: it shares no code with the
// rooms that it is held against.
package reference

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Epoch is the time that the reference lifecycle gives to all it makes.
var Epoch = time.Date(1980, time.January, 1, 0, 0, 1, 0, time.UTC)

// Dir is a directory above a layer, with the mode and owner that it really has.
type Dir struct {
	Path     string
	Mode     fs.FileMode
	UID, GID int
}

// archive is a layer tar in the making (requirements 5.3).
type archive struct {
	testing.TB
	body     bytes.Buffer
	tw       *tar.Writer
	uid, gid int
}

func newArchive(t testing.TB, uid, gid int) *archive {
	a := &archive{TB: t, uid: uid, gid: gid}
	a.tw = tar.NewWriter(&a.body)
	return a
}

// entry writes one file under an absolute name. Sockets have no entry.
func (a *archive) entry(file, name string) {
	a.Helper()
	fi, err := os.Lstat(file)
	if err != nil {
		a.Fatal(err)
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		return
	}
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(file); err != nil {
			a.Fatal(err)
		}
	}
	hdr, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		a.Fatal(err)
	}
	hdr.Name, hdr.Uid, hdr.Gid = name, a.uid, a.gid
	var body []byte
	if fi.Mode().IsRegular() {
		if body, err = os.ReadFile(file); err != nil {
			a.Fatal(err)
		}
	}
	a.write(hdr, body)
}

func (a *archive) write(hdr *tar.Header, body []byte) {
	a.Helper()
	hdr.ModTime, hdr.Uname, hdr.Gname = Epoch, "", ""
	if err := a.tw.WriteHeader(hdr); err != nil {
		a.Fatal(err)
	}
	if _, err := a.tw.Write(body); err != nil {
		a.Fatal(err)
	}
}

func (a *archive) dirs(list []Dir) {
	a.Helper()
	for _, d := range list {
		mode := int64(d.Mode.Perm())
		if d.Mode&fs.ModeSticky != 0 {
			mode |= 0o1000
		}
		a.write(&tar.Header{Typeflag: tar.TypeDir, Name: d.Path, Mode: mode, Uid: d.UID, Gid: d.GID}, nil)
	}
}

func (a *archive) bytes() []byte {
	a.Helper()
	if err := a.tw.Close(); err != nil {
		a.Fatal(err)
	}
	return a.body.Bytes()
}

// Tree is the tar of a file or directory that is at that path in the image: in
// the order of filepath.Walk, all of one owner, after the directories above.
func Tree(t testing.TB, file, at string, above []Dir, uid, gid int) []byte {
	t.Helper()
	a := newArchive(t, uid, gid)
	a.dirs(above)
	err := filepath.Walk(file, func(path string, _ fs.FileInfo, err error) error {
		if err == nil {
			a.entry(path, at+strings.TrimPrefix(path, file))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a.bytes()
}

// Slice is the tar of an app slice: the named paths and the directories between
// them and dir, sorted by the whole path as a string. No paths are an empty tar.
func Slice(t testing.TB, dir, at string, paths []string, above []Dir, uid, gid int) []byte {
	t.Helper()
	entries := map[string]bool{}
	for _, rel := range paths {
		for ; rel != "."; rel = filepath.Dir(rel) {
			entries[at+"/"+rel] = true
		}
		entries[at] = true
	}
	a := newArchive(t, uid, gid)
	if len(entries) > 0 {
		a.dirs(above)
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		a.entry(dir+strings.TrimPrefix(name, at), name)
	}
	return a.bytes()
}

// launcherTar is the layer of the launcher.
func launcherTar(t testing.TB, launcher []byte) []byte {
	t.Helper()
	a := newArchive(t, 0, 0)
	a.dirs([]Dir{{Path: "/cnb", Mode: 0o755}, {Path: "/cnb/lifecycle", Mode: 0o755}})
	a.write(&tar.Header{Typeflag: tar.TypeReg, Name: "/cnb/lifecycle/launcher", Mode: 0o755, Size: int64(len(launcher))}, launcher)
	return a.bytes()
}

// processTar is the layer of process types.
func processTar(t testing.TB, types []string) []byte {
	t.Helper()
	a := newArchive(t, 0, 0)
	a.dirs([]Dir{{Path: "/cnb", Mode: 0o755}, {Path: "/cnb/process", Mode: 0o755}})
	for _, p := range types {
		a.write(&tar.Header{Typeflag: tar.TypeSymlink, Name: "/cnb/process/" + p, Linkname: "/cnb/lifecycle/launcher", Mode: 0o755}, nil)
	}
	return a.bytes()
}

// Above are all directories above a path, from the top, the root left out.
func Above(t testing.TB, path string) (list []Dir) {
	t.Helper()
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		hdr, err := tar.FileInfoHeader(fi, "")
		if err != nil {
			t.Fatal(err)
		}
		list = append([]Dir{{dir, fi.Mode(), hdr.Uid, hdr.Gid}}, list...)
	}
	return list
}
