package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// describeTree prints a tree with all that a layer can say of it, a file a line.
func describeTree(dir string) (string, error) {
	h, err := openHandle(unix.AT_FDCWD, dir)
	if err != nil {
		return "", err
	}
	defer h.close()
	var b strings.Builder
	err = describeDir(h, "", &b, map[fileID]string{})
	return b.String(), err
}

func describeDir(h handle, rel string, b *strings.Builder, links map[fileID]string) error {
	list, err := statDir(h, rel)
	if err != nil {
		return err
	}
	for _, e := range list {
		st := &e.stat
		path := join(rel, e.name)
		owner, err := ownerOf(h.fd, e.name, st)
		if err != nil {
			return err
		}
		xattrs, err := xattrRecords(h.fd, e.name, st)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%q %o %v %q", path, st.Mode, owner, xattrs)
		switch typeOf(st) {
		case unix.S_IFREG:
			first, again := links[idOf(st)]
			if !again {
				links[idOf(st)] = path
			}
			fd, err := openReadable(h.fd, e.name, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), e.name)
			body, err := io.ReadAll(f)
			f.Close()
			if err != nil {
				return err
			}
			fmt.Fprintf(b, " %q =%q", body, first)
		case unix.S_IFLNK:
			link, err := readlinkat(h.fd, e.name)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, " -> %q", link)
		}
		b.WriteByte('\n')
		if isDir(st) {
			child, err := openHandle(h.fd, e.name)
			if err != nil {
				return err
			}
			err = describeDir(child, path, b, links)
			child.close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// capNetRaw is what ping has: cap_net_raw=ep, version 2.
var capNetRaw = must(hex.DecodeString("0100000200200000000000000000000000000000"))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// mutateOwned is mutate with what only root does. As owners says, files are
// given away for real or by note.
func mutateOwned(r *rand.Rand, dir string, owners Owners) {
	for range r.IntN(25) {
		path := filepath.Join(dir, randomPath(r))
		switch r.IntN(14) {
		case 0:
			_ = Remove(path)          // os.RemoveAll blocks where a FIFO leads to path
			_ = os.Mkdir(path, 0o755) // an opaque directory, where one was below
		case 1:
			_ = os.Remove(path)
		case 2:
			_ = os.Rename(path, filepath.Join(dir, randomPath(r)))
		case 3:
			_ = unix.Chmod(path, 0o4755)
		case 4:
			_ = os.MkdirAll(path, 0o755)
		case 5:
			_ = os.Symlink("new", path)
		case 6:
			_ = os.Link(path, filepath.Join(dir, randomPath(r)))
		case 7:
			_ = unix.Lsetxattr(path, "user.test", []byte{byte(r.IntN(256)), 0, '='}, 0)
		case 8:
			_ = unix.Lsetxattr(path, capXattr, capNetRaw, 0)
		case 9:
			_ = SetOwner(unix.AT_FDCWD, path, Owner{1 + r.IntN(2), r.IntN(2)}, owners)
		case 10:
			_ = unix.Mkfifo(path, 0o640)
		case 11:
			_ = Remove(path) // os.RemoveAll blocks where a FIFO leads to path
		default:
			// Without waiting for somebody to read, where path is a FIFO.
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o600)
			if err == nil {
				_, _ = f.Write([]byte{byte('A' + r.IntN(26))})
				_ = f.Close()
			}
		}
	}
}

// diffOnto applies the layer of a difference over the tree at dir.
func diffOnto(dir, upper string, lowers []string, owners Owners) error {
	var b bytes.Buffer
	n, err := WriteDiff(context.Background(), &b, upper, lowers)
	if err != nil {
		return err
	}
	if err := checkLayer(b.Bytes(), n); err != nil {
		return err
	}
	_, err = ApplyOwnedPlain(context.Background(), dir, &b, Limits{}, owners)
	return err
}

// checkLayer holds a layer to what WriteDiff promises of its form.
func checkLayer(layer []byte, n int) error {
	seen := map[string]bool{"": true}
	last := map[string]string{}
	count := 0
	for tr := tar.NewReader(bytes.NewReader(layer)); ; count++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(hdr.Name, "/")
		parent, base := split(name)
		order := base
		if strings.HasPrefix(base, whiteoutPrefix) {
			order = "\x00" + base
		}
		switch {
		case !hdr.ModTime.Equal(ModTime):
			return fmt.Errorf("%s has the time %s", name, hdr.ModTime)
		case !seen[parent]:
			return fmt.Errorf("%s comes before its directory", name)
		case seen[name]:
			return fmt.Errorf("%s twice", name)
		case order <= last[parent]:
			return fmt.Errorf("%s comes after %s", name, last[parent])
		case hdr.Uname != "" || hdr.Gname != "":
			return fmt.Errorf("%s has a user's name", name)
		case base == whiteoutOpaque:
			return fmt.Errorf("%s", name)
		case strings.HasSuffix(hdr.Name, "/") != (hdr.Typeflag == tar.TypeDir):
			return fmt.Errorf("%s is of type %c", hdr.Name, hdr.Typeflag)
		}
		seen[name] = true
		last[parent] = order
	}
	if count != n {
		return fmt.Errorf("%d entries, said to be %d", count, n)
	}
	return nil
}

// TestDiffOfOverlay: the lowers and then the upper layer, each as the tar of
// what it changes, give what the kernel shows of them together.
func TestDiffOfOverlay(t *testing.T) {
	const rounds = 60
	top := scratch(t)
	for i := range rounds {
		for _, d := range []string{"low0", "low1", "low2", "upper", "work", "merged", "again"} {
			mkdirs(t, top, fmt.Sprintf("%d/%s", i, d))
		}
		for j := range 3 {
			r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			populate(t, r, filepath.Join(top, fmt.Sprint(i), fmt.Sprintf("low%d", j)))
		}
	}
	out := inNamespace(t, "diff", top, fmt.Sprint(rounds))
	views := strings.Split(out, "====\n")
	if len(views) != rounds+1 {
		t.Fatalf("%d views, want %d: %s", len(views)-1, rounds, out)
	}
	for i, view := range views[:rounds] {
		if view != "" {
			t.Errorf("round %d: kernel (-), layers (+):\n%s", i, view)
		}
	}
}

// viewDiffed compares, in a process that is root in its own user namespace.
func viewDiffed(round int) (string, error) {
	mutateOwned(rand.New(rand.NewPCG(uint64(round), 7)), "merged", Record)
	want, err := describeTree("merged")
	if err != nil {
		return "", err
	}
	below := []string{}
	for _, low := range []string{"low0", "low1", "low2"} {
		if err := diffOnto("again", low, below, Record); err != nil {
			return "", fmt.Errorf("round %d: %s: %w", round, low, err)
		}
		below = append([]string{low}, below...)
	}
	if err := diffOnto("again", "upper", below, Record); err != nil {
		return "", fmt.Errorf("round %d: upper: %w", round, err)
	}
	got, err := describeTree("again")
	return cmp.Diff(want, got), err
}

// TestScanChanges: the tree as it was, and then the layer of what changed in
// place, give the tree as it is, twice in a row.
func TestScanChanges(t *testing.T) {
	owners := Record
	if os.Geteuid() == 0 {
		owners = Chown
	}
	for i := range 25 {
		r := rand.New(rand.NewPCG(uint64(i), 3))
		top := scratch(t)
		mkdirs(t, top, "tree", "again")
		tree, again := filepath.Join(top, "tree"), filepath.Join(top, "again")
		populate(t, r, tree)
		if err := diffOnto(again, tree, nil, owners); err != nil {
			t.Fatal(err)
		}
		scan, err := NewScan(t.Context(), tree, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			mutateOwned(r, tree, owners)
			var b bytes.Buffer
			next, n, err := scan.WriteChanges(t.Context(), &b)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkLayer(b.Bytes(), n); err != nil {
				t.Fatal(err)
			}
			if _, err := ApplyOwnedPlain(t.Context(), again, &b, Limits{}, owners); err != nil {
				t.Fatal(err)
			}
			compareTrees(t, tree, again)
			scan = next
		}
		if _, n, err := scan.WriteChanges(t.Context(), io.Discard); err != nil || n != 0 {
			t.Errorf("nothing changed, and the layer has %d entries, %v", n, err)
		}
		if t.Failed() {
			t.Fatalf("round %d", i)
		}
	}
}

func compareTrees(t *testing.T, want, got string) {
	t.Helper()
	a, err := describeTree(want)
	if err != nil {
		t.Fatal(err)
	}
	b, err := describeTree(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("the tree (-), from layers (+):\n%s", diff)
	}
}

// TestDiffIsMinimal: what a step only passed through, or took back, leaves no
// entry; a changed mode of a directory does.
func TestDiffIsMinimal(t *testing.T) {
	top := scratch(t)
	mkdirs(t, top, "low/etc/apt", "low/gone", "low/var", "upper/etc/apt", "upper/var", "upper/none", "upper/gone")
	low, upper := filepath.Join(top, "low"), filepath.Join(top, "upper")
	write := func(path, body string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(low, "gone/a"), "a")
	write(filepath.Join(low, "gone/b"), "b")
	write(filepath.Join(upper, "gone/b"), "B")
	for _, name := range []string{"etc/never", "gone/never"} {
		if err := unix.Mknod(filepath.Join(upper, name), unix.S_IFCHR, 0); err != nil {
			t.Fatal(err)
		}
	}
	h, err := openHandle(unix.AT_FDCWD, filepath.Join(upper, "gone"))
	if err != nil {
		t.Fatal(err)
	}
	if err := setOpaque(h.fd, ""); err != nil {
		t.Fatal(err)
	}
	h.close()
	if err := os.Chmod(filepath.Join(upper, "var"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(upper, "socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := WriteDiff(t.Context(), &b, upper, []string{low}); err != nil {
		t.Fatal(err)
	}
	want := []string{"gone/ 755", "gone/.wh.a 0", "gone/b 644", "none/ 755", "var/ 711"}
	if diff := cmp.Diff(want, namesOf(t, b.Bytes())); diff != "" {
		t.Errorf("entries: want (-), got (+):\n%s", diff)
	}
}

func namesOf(t *testing.T, layer []byte) (list []string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fmt.Sprintf("%s %o", hdr.Name, hdr.Mode))
	}
}

// TestDiffSaysTheSameInPlace: one change, found by an overlay's upper layer and
// by two scans, is one layer, byte for byte.
func TestDiffSaysTheSameInPlace(t *testing.T) {
	top := scratch(t)
	mkdirs(t, top, "low/etc/conf.d", "low/usr/share/doc/a", "low/opt", "tree/etc/conf.d", "tree/usr/share/doc/a", "tree/opt", "upper/usr/share", "upper/etc", "upper/opt")
	for _, f := range []string{"low/etc/passwd", "tree/etc/passwd", "low/usr/share/doc/a/x", "tree/usr/share/doc/a/x", "low/opt/old", "tree/opt/old"} {
		if err := os.WriteFile(filepath.Join(top, f), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	scan, err := NewScan(t.Context(), filepath.Join(top, "tree"), func(rel string) bool { return rel == "proc" })
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"tree", "upper"} {
		at := func(rel string) string { return filepath.Join(top, dir, rel) }
		_ = os.RemoveAll(at("usr/share/doc"))
		_ = os.Remove(at("opt/old"))
		mkdirs(t, top, dir+"/proc", dir+"/opt/new")
		for _, err := range []error{
			os.WriteFile(at("etc/passwd"), []byte("new"), 0o600), os.Chmod(at("etc/passwd"), 0o600),
			os.Link(at("etc/passwd"), at("etc/passwd-")), os.Symlink("passwd", at("etc/link")),
			unix.Setxattr(at("opt/new"), "user.note", []byte("x"), 0),
			SetOwner(unix.AT_FDCWD, at("etc/passwd"), Owner{7, 8}, Record),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"usr/share/doc", "opt/old"} {
		if err := unix.Mknod(filepath.Join(top, "upper", name), unix.S_IFCHR, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(top, "upper/proc")); err != nil {
		t.Fatal(err)
	}
	var fromUpper, fromScan bytes.Buffer
	if _, err := WriteDiff(t.Context(), &fromUpper, filepath.Join(top, "upper"), []string{filepath.Join(top, "low")}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := scan.WriteChanges(t.Context(), &fromScan); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fromUpper.Bytes(), fromScan.Bytes()) {
		t.Errorf("overlay: %q\nin place: %q", namesOf(t, fromUpper.Bytes()), namesOf(t, fromScan.Bytes()))
	}
	if len(namesOf(t, fromUpper.Bytes())) < 8 {
		t.Errorf("only %q", namesOf(t, fromUpper.Bytes()))
	}
}

// TestDiffRefusesWhiteoutNames: a file that a layer cannot say must not become
// the deletion of another.
func TestDiffRefusesWhiteoutNames(t *testing.T) {
	for _, name := range []string{".wh.passwd", ".wh.dir/x"} {
		top := scratch(t)
		mkdirs(t, top, "low", "upper", filepath.Dir("upper/"+name))
		if err := os.WriteFile(filepath.Join(top, "upper", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if n, err := WriteDiff(t.Context(), io.Discard, filepath.Join(top, "upper"), []string{filepath.Join(top, "low")}); err == nil {
			t.Errorf("%s: %d entries and no error", name, n)
		}
		scan, err := NewScan(t.Context(), filepath.Join(top, "low"), nil)
		if err != nil {
			t.Fatal(err)
		}
		scan.dir = filepath.Join(top, "upper")
		if _, n, err := scan.WriteChanges(t.Context(), io.Discard); err == nil {
			t.Errorf("%s in place: %d entries and no error", name, n)
		}
	}
}

// TestApplyOwned looks at each thing that Apply drops and ApplyOwned keeps.
func TestApplyOwned(t *testing.T) {
	header := func(name string, kind byte, mode int64, uid, gid int, records map[string]string) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Mode: mode, Uid: uid, Gid: gid, PAXRecords: records, Linkname: map[byte]string{tar.TypeSymlink: "x", tar.TypeLink: "f"}[kind]}
	}
	layer := tarOf(t,
		header("d", tar.TypeDir, 0o2775, 1, 2, map[string]string{xattrRecord + "user.a": "1", xattrRecord + capXattr: string(capNetRaw)}),
		header("f", tar.TypeReg, 0o6755, 3, 4, map[string]string{
			xattrRecord + ownerXattr: "0:0", xattrRecord + "user.overlay.opaque": "y", xattrRecord + "trusted.x": "1", xattrRecord + "user.b": "2"}),
		header("h", tar.TypeLink, 0o755, 0, 0, nil),
		header("root", tar.TypeReg, 0o600, 0, 0, nil),
		header("null", tar.TypeChar, 0o666, 0, 0, nil), // 0:0 is a whiteout on disk, and never made
		tar.Header{Name: "zero", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5},
	)
	dir := scratch(t)
	skipped, err := ApplyOwned(t.Context(), dir, bytes.NewReader(layer), Limits{}, Record)
	if err != nil {
		t.Fatal(err)
	}
	want := `"d" 42775 {1 2} map["SCHILY.xattr.user.a":"1"]
"f" 106755 {3 4} map["SCHILY.xattr.user.b":"2"] "" =""
"h" 106755 {3 4} map["SCHILY.xattr.user.b":"2"] "" ="f"
"root" 100600 {0 0} map[] "" =""
`
	got := must(describeTree(dir))
	if os.Geteuid() != 0 {
		me := fmt.Sprintf("{%d %d}", os.Geteuid(), os.Getegid())
		want = strings.Replace(want, "{0 0}", me, 1)
		for _, o := range []string{"{1 2}", "{3 4}"} { // a note counts only on what is root's: here that is nothing
			want = strings.ReplaceAll(want, o, me)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if !slices.Equal(skipped, []string{"zero"}) {
		t.Errorf("skipped %q, want zero", skipped)
	}
	note, err := lgetxattr(filepath.Join(dir, "f"), ownerXattr)
	if err != nil || string(note) != "3:4" {
		t.Errorf("the note of f is %q, %v", note, err)
	}
}

// TestApplyOwnedIDs: no owner that a file cannot have is taken for another.
func TestApplyOwnedIDs(t *testing.T) {
	for _, id := range []int{-1, 1<<32 - 1, 1 << 40} {
		layer := tarOf(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Uid: max(id, 0), Gid: id, Format: tar.FormatGNU})
		for _, owners := range []Owners{Chown, Record} {
			if _, err := ApplyOwned(t.Context(), scratch(t), bytes.NewReader(layer), Limits{}, owners); err == nil {
				t.Errorf("id %d: no error", id)
			}
		}
	}
	if _, err := ApplyOwned(t.Context(), scratch(t), bytes.NewReader(tarOf(t)), Limits{}, 0); err == nil {
		t.Error("owners 0: no error")
	}
}

func TestCapabilityVersions(t *testing.T) {
	v3 := slices.Clone(capNetRaw)
	v3[3] = 3
	v3 = append(v3, 0xa0, 0x86, 1, 0)
	if got := capabilityV2(v3); !bytes.Equal(got, capNetRaw) {
		t.Errorf("version 3 became %x, want %x", got, capNetRaw)
	}
	for _, other := range [][]byte{capNetRaw, {}, {1, 2}, make([]byte, capSize3)} {
		if got := capabilityV2(other); !bytes.Equal(got, other) {
			t.Errorf("%x became %x", other, got)
		}
	}
}

func TestScanWaits(t *testing.T) {
	dir := scratch(t)
	file := filepath.Join(dir, "f")
	for i := range 5 {
		if err := os.WriteFile(file, []byte{byte(i)}, 0o644); err != nil {
			t.Fatal(err)
		}
		scan, err := NewScan(t.Context(), dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte{byte(i + 1)}, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, n, err := scan.WriteChanges(t.Context(), io.Discard); err != nil || n != 1 {
			t.Fatalf("%d entries of one change right after the scan, %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewScan(ctx, dir, nil); err == nil {
		t.Error("a cancelled scan is no error")
	}
	if _, err := NewScan(t.Context(), filepath.Join(dir, "nothing"), nil); !os.IsNotExist(underlying(err)) {
		t.Errorf("of a missing tree: %v", err)
	}
}

func underlying(err error) error {
	if p, ok := err.(*fs.PathError); ok {
		return p.Err
	}
	return err
}
