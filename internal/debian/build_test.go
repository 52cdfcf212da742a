package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/spec"
)

// a small system: files in old and new places, links, documentation, a user's
// program with setuid.
func smallSystem(a *archive) {
	base := simple("base-files", "12.4", "", "usr/lib/os-release")
	base.bodies["./usr/lib/os-release"] = "ID=debian\nVERSION_ID=\"12\"\n"
	base.files[0].Size = int64(len(base.bodies["./usr/lib/os-release"]))
	base.dir("var/run", 0o755)
	base.dir("tmp", 0o1777)
	a.add("bookworm", base)

	lib := simple("libx1", "1.0", "", "lib/x86_64-linux-gnu/libx.so.1.0", "usr/share/doc/libx1/copyright", "usr/share/doc/libx1/README",
		"usr/share/man/man1/x.1.gz", "usr/share/locale/de/x.mo")
	lib.link(tar.TypeSymlink, "lib/x86_64-linux-gnu/libx.so.1", "libx.so.1.0")
	lib.link(tar.TypeSymlink, "usr/lib/libx.so", "/lib/x86_64-linux-gnu/libx.so.1")
	lib.link(tar.TypeSymlink, "lib/libx-up.so", "../usr/lib/libx.so")
	a.add("bookworm", lib)

	tool := simple("tool", "1:2.0-1", "Depends: libx1 (>= 1), base-files\n", "bin/tool")
	tool.files[0].Mode = 0o4755
	tool.link(tar.TypeLink, "bin/tool2", "./bin/tool")
	tool.scripts = map[string]string{"postinst": "#!/bin/sh\n# adduser in a comment\nadduser --system tool\n"}
	tool.ext = ".zst"
	a.add("bookworm", tool)

	certs := simple("ca-certificates", "20250419", "Architecture-is: x\n", "usr/share/ca-certificates/mozilla/B.crt", "usr/share/ca-certificates/mozilla/A.crt")
	certs.ext = ".gz"
	a.add("bookworm", certs)
}

func TestBuild(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	l, res, err := a.build("tool", "ca-certificates")
	if err != nil {
		t.Fatal(err)
	}
	h, body := l.entries(t, 0)
	for name, target := range map[string]string{
		"bin": "usr/bin", "lib": "usr/lib", "sbin": "usr/sbin",
		"usr/lib/x86_64-linux-gnu/libx.so.1": "libx.so.1.0",
		"usr/lib/libx.so":                    "/lib/x86_64-linux-gnu/libx.so.1",
		"usr/lib/libx-up.so":                 "libx.so",
		"usr/lib/ssl/cert.pem":               "/etc/ssl/certs/ca-certificates.crt",
		"var/run":                            "/run",
	} {
		if h[name] == nil || h[name].Typeflag != tar.TypeSymlink || h[name].Linkname != target {
			t.Errorf("%s: got %+v, want a link to %s", name, h[name], target)
		}
	}
	for name, mode := range map[string]int64{"usr/bin/tool": 0o755, "tmp/": 0o1777, "home/cnb/": 0o755, "run/": 0o755, "root/": 0o700} {
		if h[name] == nil || h[name].Mode != mode {
			t.Errorf("%s: got %+v, want mode %o", name, h[name], mode)
		}
	}
	if got := h["usr/bin/tool2"]; got == nil || got.Typeflag != tar.TypeLink || got.Linkname != "usr/bin/tool" {
		t.Errorf("hard link: %+v", got)
	}
	if got := h["home/cnb/"]; got.Uid != 1000 || got.Gid != 1000 {
		t.Errorf("home: %+v", got)
	}
	for _, gone := range []string{"usr/share/doc/libx1/README", "usr/share/man/man1/x.1.gz", "usr/share/locale/de/x.mo", "bin/", "lib/", "var/run/"} {
		if h[gone] != nil {
			t.Errorf("%s should not be there", gone)
		}
	}
	if got, want := body["etc/ssl/certs/ca-certificates.crt"], "usr/share/ca-certificates/mozilla/A.crt of ca-certificates\nusr/share/ca-certificates/mozilla/B.crt of ca-certificates\n"; got != want {
		t.Errorf("CA bundle: %q", got)
	}
	if got := body["etc/passwd"]; !strings.Contains(got, "cnb:*:1000:1000:cnb:/home/cnb:") || !strings.HasPrefix(got, "root:*:0:0:") {
		t.Errorf("passwd: %q", got)
	}
	if got, want := body["var/lib/dpkg/status.d/libx1.md5sums"], []string{"  lib/x86_64-linux-gnu/libx.so.1.0\n", "copyright\n"}; !strings.Contains(got, want[0]) ||
		!strings.Contains(got, want[1]) || strings.Contains(got, "README") {
		t.Errorf("md5sums: %q", got)
	}
	if got, want := strings.Count(body["var/lib/dpkg/status"], "\nStatus: install ok installed\nVersion: "), 4; got != want {
		t.Errorf("dpkg status has %d packages, want %d:\n%s", got, want, body["var/lib/dpkg/status"])
	}
	if d := cmp.Diff(spec.Distro{Name: "debian", Version: "12"}, res.Distro); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"tool postinst: adduser"}, res.Unemulated); d != "" {
		t.Error(d)
	}
	if want := testDate.AddDate(0, 0, -1); !res.Created.Equal(want) || res.Packages != 4 {
		t.Errorf("result: created %s, want %s; %d packages", res.Created, want, res.Packages)
	}
}

// TestBuildFromLock: from the lock file the same bytes come again, without an
// index, in another process's client, and out of the blobs without a network.
func TestBuildFromLock(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	first, res, err := a.build("tool", "ca-certificates")
	if err != nil {
		t.Fatal(err)
	}
	text, err := res.Lock.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	lock, err := ReadLock(text, "test.lock")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(res.Lock, lock); d != "" {
		t.Errorf("lock changed on the way through its file:\n%s", d)
	}
	for name := range a.files {
		if strings.Contains(name, "/dists/") {
			delete(a.files, name)
		}
	}
	blobs := DirBlobs(t.TempDir())
	again := func(blobs Blobs) *layers {
		l := &layers{}
		_, err := a.client(func(o *Options) { o.Blobs = blobs }).Build(context.Background(),
			Recipe{Request: request("tool", "ca-certificates"), User: CNB, Lock: &lock}, l.put)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	second := again(blobs)
	clear(a.files)
	third := again(blobs)
	if !bytes.Equal(first.tars[0], second.tars[0]) || !bytes.Equal(first.tars[0], third.tars[0]) {
		t.Error("the same lock gave other bytes")
	}
	_, err = a.client().Build(context.Background(), Recipe{Request: request("tool"), User: CNB, Lock: &lock}, (&layers{}).put)
	if err == nil || !strings.Contains(err.Error(), "other packages") {
		t.Errorf("a lock for other packages: %v", err)
	}
	_, err = a.client().Build(context.Background(), Recipe{Request: lockRequest(lock), User: CNB, Lock: &lock}, (&layers{}).put)
	if err == nil || !strings.Contains(spec.HintOf(err), "moved on") {
		t.Errorf("a lock whose packages are gone: %v (hint %q)", err, spec.HintOf(err))
	}
}

func lockRequest(l Lock) Request { return request(l.Groups[0].Want...) }

// TestBlobsAreVerified: a blob that rotted after it was stored never gets into an image.
func TestBlobsAreVerified(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	dir := t.TempDir()
	c := a.client(func(o *Options) { o.Blobs = DirBlobs(dir) })
	r := Recipe{Request: request("tool"), User: CNB}
	res, err := c.Build(context.Background(), r, (&layers{}).put)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Lock.Packages {
		name := DirBlobs(dir).path(p.SHA256)
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{len(good) / 3, len(good) - 1} {
			bad := bytes.Clone(good)
			bad[at] ^= 1
			if err := os.WriteFile(name, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			_, err = c.Build(context.Background(), r, (&layers{}).put)
			if err == nil || !strings.Contains(err.Error(), p.Name) || !strings.Contains(err.Error(), "sha256") {
				t.Errorf("%s damaged at %d: %v", p.Name, at, err)
			}
		}
		if err := os.WriteFile(name, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBuildGroupsAreLayers(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	l := &layers{}
	r := Recipe{Request: Request{Suite: "bookworm", Arch: "amd64", Groups: []Group{
		{Name: "one", Packages: []string{"libx1", "ca-certificates"}}, {Name: "two", Packages: []string{"tool"}}}}, User: CNB}
	res, err := a.client().Build(context.Background(), r, l.put)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"one", "two"}, l.names); d != "" {
		t.Error(d)
	}
	var got []string
	for _, p := range res.Lock.Packages {
		got = append(got, p.Group+" "+p.Name)
	}
	if d := cmp.Diff([]string{"one ca-certificates", "one libx1", "two base-files", "two tool"}, got); d != "" {
		t.Error(d)
	}
	one, _ := l.entries(t, 0)
	two, _ := l.entries(t, 1)
	if one["etc/ssl/certs/ca-certificates.crt"] == nil || two["etc/ssl/certs/ca-certificates.crt"] != nil {
		t.Error("the CA bundle belongs to the layer of the certificates")
	}
	if one["etc/passwd"] != nil || two["etc/passwd"] == nil || two["usr/bin/tool"] == nil || one["lib"] == nil || two["lib"] != nil {
		t.Error("files are in the wrong layer")
	}
}

// TestLayerStaysWhenOnlyTheArchiveMoves: a new Release date changes no layer
// whose packages are the same.
func TestLayerStaysWhenOnlyTheArchiveMoves(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	before, _, err := a.build("tool")
	if err != nil {
		t.Fatal(err)
	}
	a.date = testDate.Add(30 * time.Minute)
	a.publish()
	after, _, err := a.build("tool")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before.tars[0], after.tars[0]) {
		t.Error("layer changed with the date of the archive")
	}
	epoch := testDate.AddDate(-1, 0, 0)
	l := &layers{}
	if _, err := a.client().Build(context.Background(), Recipe{Request: request("tool"), User: CNB, Epoch: epoch}, l.put); err != nil {
		t.Fatal(err)
	}
	h, _ := l.entries(t, 0)
	for name, e := range h {
		if e.ModTime.After(epoch) {
			t.Errorf("%s: modified %s, after the epoch", name, e.ModTime)
		}
	}
}

func TestFileConflicts(t *testing.T) {
	for _, c := range []struct {
		name   string
		a, b   string // fields
		err    string
		winner string
	}{
		{"neither replaces", "", "", "usr/bin/same is in package a too", ""},
		{"b replaces a", "", "Replaces: a (<< 2)\n", "", "b"},
		{"a replaces b", "Replaces: b\n", "", "", "a"},
		{"b replaces another version", "", "Replaces: a (<< 1)\n", "usr/bin/same is in package a too", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArchive(t)
			a.add("bookworm", simple("a", "1.0", c.a, "usr/bin/same"))
			a.add("bookworm", simple("b", "1.0", c.b, "bin/same"))
			a.publish()
			l, _, err := a.build("a", "b")
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, body := l.entries(t, 0); !strings.HasSuffix(body["usr/bin/same"], "of "+c.winner+"\n") {
				t.Errorf("got %q, want that of %s", body["usr/bin/same"], c.winner)
			}
		})
	}
}

func TestHostileMembers(t *testing.T) {
	for _, c := range []struct {
		name string
		add  func(*testDeb)
		err  string
	}{
		{"dots", func(d *testDeb) { d.text("../etc/x", 0o644, "") }, "leads out of the root"},
		{"dots inside", func(d *testDeb) { d.text("usr/../../x", 0o644, "") }, "leads out of the root"},
		{"device", func(d *testDeb) { d.link(tar.TypeChar, "dev/x", "") }, "has no place in a package"},
		{"fifo", func(d *testDeb) { d.link(tar.TypeFifo, "x", "") }, "has no place in a package"},
		{"hard link out", func(d *testDeb) { d.link(tar.TypeLink, "x", "../../etc/passwd") }, "leads out of the root"},
		{"hard link to what is not there", func(d *testDeb) { d.link(tar.TypeLink, "x", "etc/passwd") }, "hard link to etc/passwd"},
		{"below a file", func(d *testDeb) { d.text("f", 0o644, ""); d.text("f/g", 0o644, "") }, "is no directory"},
		{"twice", func(d *testDeb) { d.text("f", 0o644, ""); d.text("f", 0o644, "") }, "neither replaces"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArchive(t)
			d := simple("evil", "1", "")
			c.add(&d)
			a.add("bookworm", d)
			a.publish()
			_, _, err := a.build("evil")
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "evil") {
				t.Errorf("build: got %v, want %q", err, c.err)
			}
		})
	}
}

// TestLinkedDirectory: what one package puts below another's link to a directory
// goes where the link leads, as with dpkg.
func TestLinkedDirectory(t *testing.T) {
	a := newArchive(t)
	first := simple("a", "1", "", "usr/real/x")
	first.link(tar.TypeSymlink, "usr/alias", "real")
	a.add("bookworm", first)
	second := simple("b", "1", "", "usr/alias/y")
	second.dir("usr/alias", 0o755)
	a.add("bookworm", second)
	a.publish()
	l, _, err := a.build("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	h, _ := l.entries(t, 0)
	if h["usr/real/y"] == nil || h["usr/alias/y"] != nil || h["usr/alias"].Typeflag != tar.TypeSymlink {
		t.Error("y is not where the link leads")
	}
}

func TestDownloadsAreRetried(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	var failed atomic.Int32
	a.handler = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "libx1") {
			return false
		}
		switch failed.Add(1) {
		case 1:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case 2: // breaks off
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte("!<arch>"))
		default:
			return false
		}
		return true
	}
	if _, _, err := a.build("tool"); err != nil {
		t.Fatal(err)
	}
	if failed.Load() != 3 {
		t.Errorf("asked %d times, want 3", failed.Load())
	}
}

func TestSecondMirrorHelps(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	c := a.client(func(o *Options) {
		o.Sources = slices.Concat(ForMirror(a.url+"/nowhere", "bookworm"), o.Sources)
	})
	if _, err := c.Build(context.Background(), Recipe{Request: request("tool"), User: CNB}, (&layers{}).put); err != nil {
		t.Error(err)
	}
}

func TestBuildReportsProgress(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	ended := map[string]event.Progress{}
	events := make(chan event.Event, 1000)
	c := a.client(func(o *Options) { o.Events = event.Func(func(e event.Event) { events <- e }) })
	res, err := c.Build(context.Background(), Recipe{Request: request("tool"), User: CNB}, (&layers{}).put)
	if err != nil {
		t.Fatal(err)
	}
	close(events)
	for e := range events {
		if p, ok := e.(event.Progress); ok && p.End {
			ended[p.ID] = p
		}
	}
	if p := ended["debian-packages"]; p.Done != res.Lock.Size() || p.Total != p.Done || p.Unit != "bytes" {
		t.Errorf("packages: %+v, want %d bytes", p, res.Lock.Size())
	}
	if p := ended["debian-index"]; p.Done == 0 || p.Done != p.Total {
		t.Errorf("index: %+v", p)
	}
}

func TestBuildStopsWhenCancelled(t *testing.T) {
	a := newArchive(t)
	smallSystem(a)
	a.publish()
	ctx, cancel := context.WithCancel(context.Background())
	a.handler = func(http.ResponseWriter, *http.Request) bool { cancel(); return false }
	_, err := a.client().Build(ctx, Recipe{Request: request("tool"), User: CNB}, (&layers{}).put)
	if err == nil || !strings.Contains(fmt.Sprint(err), "cancel") {
		t.Errorf("got %v, want the cancellation", err)
	}
}
