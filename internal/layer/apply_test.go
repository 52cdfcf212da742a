package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/layer/layertest"
)

// tarOf builds an archive from headers; a regular file's content is its
// PAXRecords-free body in bodies, by index, or nothing.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = h.Gname // a handy place for it
			h.Gname = ""
			h.Size = int64(len(body))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := tw.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hdrFile(name, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Gname: body}
}
func hdrDir(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}
func hdrLink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
}
func hdrHard(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}
}

// prison is a directory to unpack to, beside things that must not change.
type prison struct {
	dir, outside, before string
}

func newPrison(t testing.TB) prison {
	t.Helper()
	top := scratch(t)
	mkdirs(t, top, "cell", "outside/d")
	p := prison{dir: filepath.Join(top, "cell"), outside: filepath.Join(top, "outside")}
	if err := os.WriteFile(filepath.Join(p.outside, "canary"), []byte("sings"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.before = renderDisk(t, p.outside)
	return p
}

func (p prison) check(t testing.TB) {
	t.Helper()
	if diff := cmp.Diff(p.before, renderDisk(t, p.outside)); diff != "" {
		t.Errorf("a layer changed files outside:\n%s", diff)
	}
	names, err := os.ReadDir(filepath.Dir(p.dir))
	if err != nil || len(names) != 2 {
		t.Errorf("a layer made files outside: %v %v", names, err)
	}
}

func TestApplyRefusesHostileLayers(t *testing.T) {
	long := strings.Repeat("n", 256)
	tests := map[string]struct {
		headers []tar.Header
		err     error // nil: contained
	}{
		"parent":               {[]tar.Header{hdrFile("../outside/canary", "x")}, ErrUnsafe},
		"parent in the middle": {[]tar.Header{hdrFile("a/../../outside/canary", "x")}, ErrUnsafe},
		"parent dir":           {[]tar.Header{hdrDir("..", 0o777)}, ErrUnsafe},
		"parent link":          {[]tar.Header{hdrLink("../outside/l", "x")}, ErrUnsafe},
		"absolute":             {[]tar.Header{hdrFile("/outside/canary", "x")}, nil},
		"link out":             {[]tar.Header{hdrLink("l", "../outside"), hdrFile("l/canary", "x")}, ErrUnsafe},
		"link out to dir":      {[]tar.Header{hdrDir("outside", 0o755), hdrLink("l", "../outside"), hdrFile("l/canary", "x")}, nil},
		"absolute link out":    {[]tar.Header{hdrLink("l", "/proc/self/cwd"), hdrFile("l/x", "x")}, ErrUnsafe},
		"two hops":             {[]tar.Header{hdrDir("sub", 0o755), hdrLink("sub/up", ".."), hdrLink("sub/up/w", ".."), hdrFile("sub/up/w/pwned", "x")}, nil},
		"link on its own way":  {[]tar.Header{hdrDir("d", 0o755), hdrLink("s", "d"), hdrLink("d/t", "."), hdrFile("s/t/x", ""), hdrFile("s/t/t", ""), hdrFile("s/t/y", "")}, ErrUnsafe},
		"link loop":            {[]tar.Header{hdrLink("a", "b"), hdrLink("b", "a"), hdrFile("a/x", "x")}, unix.ELOOP},
		"self loop":            {[]tar.Header{hdrLink("a", "a"), hdrFile("a/x", "x")}, unix.ELOOP},
		"dangling parent":      {[]tar.Header{hdrLink("a", "nowhere"), hdrFile("a/b/c", "x")}, ErrUnsafe},
		"through a file":       {[]tar.Header{hdrFile("a", ""), hdrFile("a/b", "x")}, ErrUnsafe},
		"write through link":   {[]tar.Header{hdrLink("f", "../outside/canary"), hdrFile("f", "x")}, nil},
		"chmod through link":   {[]tar.Header{hdrLink("d", "../outside/d"), hdrDir("d", 0o777)}, nil},
		"hard link out":        {[]tar.Header{hdrHard("h", "../outside/canary")}, ErrUnsafe},
		"hard link absolute":   {[]tar.Header{hdrHard("h", "/etc/passwd")}, unix.ENOENT},
		"hard link by link":    {[]tar.Header{hdrLink("l", "../outside"), hdrHard("h", "l/canary")}, unix.ENOENT},
		"hard link to link":    {[]tar.Header{hdrLink("l", "../outside/canary"), hdrHard("h", "l"), hdrFile("h", "x")}, nil},
		"hard link to root":    {[]tar.Header{hdrHard("h", "/")}, ErrUnsafe},
		"hard link to dir":     {[]tar.Header{hdrDir("d", 0o755), hdrHard("h", "d")}, ErrUnsafe},
		"hard link whiteout":   {[]tar.Header{hdrFile(".wh.x", ""), hdrHard("h", "x")}, ErrUnsafe},
		"root is a link":       {[]tar.Header{hdrLink(".", "/")}, ErrUnsafe},
		"root is a link 2":     {[]tar.Header{hdrLink("./", "../outside"), hdrFile("canary", "x")}, ErrUnsafe},
		"root is a link 3":     {[]tar.Header{hdrLink("/", "../outside")}, ErrUnsafe},
		"root is a file":       {[]tar.Header{hdrFile(".", "x")}, ErrUnsafe},
		"whiteout parent":      {[]tar.Header{hdrFile(".wh...", "")}, ErrUnsafe},
		"whiteout self":        {[]tar.Header{hdrFile("a/.wh..", "")}, ErrUnsafe},
		"whiteout nothing":     {[]tar.Header{hdrFile(".wh.", "")}, ErrUnsafe},
		"whiteout traversal":   {[]tar.Header{hdrFile(".wh.../outside", "")}, ErrUnsafe},
		"whiteout by link":     {[]tar.Header{hdrLink("l", "../outside"), hdrFile("l/.wh.canary", "")}, ErrUnsafe},
		"opaque by link":       {[]tar.Header{hdrLink("l", "../outside"), hdrFile("l/.wh..wh..opq", "")}, ErrUnsafe},
		"below a whiteout":     {[]tar.Header{hdrFile(".wh.d/x", "")}, ErrUnsafe},
		"long name":            {[]tar.Header{hdrFile(long, "")}, ErrLimit},
		"long path":            {[]tar.Header{hdrFile(strings.Repeat("dir/", 1024)+"f", "")}, ErrLimit},
		"device":               {[]tar.Header{{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666}}, nil},
		"whiteout device":      {[]tar.Header{{Typeflag: tar.TypeChar, Name: "etc", Mode: 0o666}}, nil},
		"block device":         {[]tar.Header{{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8, Mode: 0o666}}, nil},
		"unknown type":         {[]tar.Header{{Typeflag: 'Z', Name: "z"}}, ErrUnsafe},
		"empty link":           {[]tar.Header{hdrLink("l", "")}, ErrUnsafe},
		"endless link":         {[]tar.Header{hdrLink("l", strings.Repeat("x", 5000))}, ErrUnsafe},
	}
	for hops := 2; hops <= 40; hops += 19 {
		var chain []tar.Header
		dir := "h"
		for range hops {
			chain = append(chain, hdrDir(dir, 0o755))
			dir += "/h"
		}
		at := "h"
		for range hops {
			at += "/up"
			chain = append(chain, hdrLink(at, ".."))
		}
		chain = append(chain, hdrFile(at+"/pwned", "x"))
		tests["chain of "+string(rune('0'+hops/10))+" ten hops"] = struct {
			headers []tar.Header
			err     error
		}{chain, nil}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, form := range []unpacker{{}, {plain: true}, {owners: Record}, {plain: true, owners: Record}} {
				p := newPrison(t)
				data := tarOf(t, test.headers...)
				_, err := apply(context.Background(), p.dir, bytes.NewReader(data), Limits{}, form)
				if test.err == nil && err != nil {
					t.Errorf("plain %v, owners %v: %v", form.plain, form.owners, err)
				}
				if test.err != nil && !errors.Is(err, test.err) && !(form.plain && strings.HasPrefix(name, "hard link whiteout")) {
					t.Errorf("plain %v, owners %v: error %v, want %v", form.plain, form.owners, err, test.err)
				}
				p.check(t)
				if !form.plain && err == nil {
					compareWithModel(t, p.dir, data, Limits{})
				}
			}
		})
	}
}

func compareWithModel(t testing.TB, dir string, data []byte, limits Limits) {
	t.Helper()
	want, err := modelApply(data, limits)
	if err != nil {
		t.Errorf("Apply took what the model refuses: %v", err)
		return
	}
	compareDisk(t, want, dir)
}

func compareDisk(t testing.TB, want *node, dir string) {
	t.Helper()
	var b strings.Builder
	want.render("", &b)
	if diff := cmp.Diff(b.String(), renderDisk(t, dir)); diff != "" {
		t.Errorf("tree differs from the model (-want +got):\n%s", diff)
	}
}

func TestApplyOverlayForm(t *testing.T) {
	tests := map[string]struct {
		headers []tar.Header
		want    []string
	}{
		"whiteout":              {[]tar.Header{hdrDir("d", 0o755), hdrFile("d/.wh.gone", "")}, []string{`"/d/gone" whiteout`}},
		"opaque":                {[]tar.Header{hdrDir("d/", 0o755), hdrFile("d/.wh..wh..opq", ""), hdrFile("d/f", "x")}, []string{`"/d" dir 755 opaque=true`, `"/d/f" 0 644 "x"`}},
		"whiteout then file":    {[]tar.Header{hdrFile(".wh.f", ""), hdrFile("f", "x")}, []string{`"/f" 0 644 "x"`}},
		"file then whiteout":    {[]tar.Header{hdrFile("f", "x"), hdrFile(".wh.f", "")}, []string{`"/f" 0 644 "x"`}},
		"whiteout then dir":     {[]tar.Header{hdrFile(".wh.d", ""), hdrDir("d", 0o711)}, []string{`"/d" dir 711 opaque=true`}},
		"whiteout then implied": {[]tar.Header{hdrFile(".wh.d", ""), hdrFile("d/f", "x")}, []string{`"/d" dir 755 opaque=true`}},
		"dir then whiteout":     {[]tar.Header{hdrDir("d", 0o711), hdrFile(".wh.d", "")}, []string{`"/d" dir 711 opaque=true`}},
		"file then dir":         {[]tar.Header{hdrFile("d", "x"), hdrDir("d", 0o711)}, []string{`"/d" dir 711 opaque=true`}},
		"aufs bookkeeping":      {[]tar.Header{hdrDir("d", 0o755), hdrFile(".wh..wh.plnk", "")}, []string{`"/d" dir 755 opaque=false`}},
		"set-id bits":           {[]tar.Header{{Typeflag: tar.TypeReg, Name: "su", Mode: 0o6755}, hdrDir("t", 0o3777)}, []string{`"/su" 0 755 ""`, `"/t" dir 1777 opaque=false`}},
		"hard link":             {[]tar.Header{hdrFile("a", "x"), hdrHard("b", "./a"), hdrHard("c", "/b")}, []string{`"/c" 0 644 "x" is "/a"`}},
		"unreadable":            {[]tar.Header{hdrDir("d", 0), {Typeflag: tar.TypeReg, Name: "d/f", Mode: 0, Gname: "x"}}, []string{`"/d" dir 0 opaque=false`, `"/d/f" 0 0 "x"`}},
		"later dir entry":       {[]tar.Header{hdrFile("d/f", "x"), hdrDir("d", 0o500)}, []string{`"/d" dir 500 opaque=false`}},
		"root":                  {[]tar.Header{hdrDir("./", 0o711)}, []string{`"" dir 711 opaque=false`}},
		"absolute link":         {[]tar.Header{hdrDir("run", 0o755), hdrLink("var/run", "/run"), hdrFile("var/run/f", "x")}, []string{`"/run/f" 0 644 "x"`}},
		"names":                 {[]tar.Header{hdrFile("\xff\xfe", "1"), hdrFile("a\nb", "2"), hdrFile(strings.Repeat("n", 255), "3"), hdrFile(" -x:\\*", "4")}, []string{`"/\xff\xfe" 0 644 "1"`, `"/a\nb" 0 644 "2"`}},
		"user xattr":            {[]tar.Header{{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}}}, []string{`"/x" 0 644 "" "user.k"="v"`}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			data := tarOf(t, test.headers...)
			if err := Apply(context.Background(), dir, bytes.NewReader(data), Limits{}); err != nil {
				t.Fatal(err)
			}
			got := renderDisk(t, dir)
			for _, line := range test.want {
				if !strings.Contains(got, line+"\n") {
					t.Errorf("no line %s in\n%s", line, got)
				}
			}
			compareWithModel(t, dir, data, Limits{})
		})
	}
}

func TestApplyXattrs(t *testing.T) {
	dir := scratch(t)
	h := tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.user.kept":              "v\x01\xff",
		"SCHILY.xattr.user.overlay.opaque":    "y",
		"SCHILY.xattr.user.overlay.redirect":  "/etc",
		"SCHILY.xattr.security.capability":    "\x01",
		"SCHILY.xattr.trusted.overlay.opaque": "y",
	}}
	if err := Apply(context.Background(), dir, bytes.NewReader(tarOf(t, h)), Limits{}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1024)
	n, err := unix.Listxattr(filepath.Join(dir, "d"), buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Trim(string(buf[:n]), "\x00"); got != "user.kept" {
		t.Errorf("xattrs %q, want user.kept only", got)
	}
}

func TestApplyTimes(t *testing.T) {
	dir := scratch(t)
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	d, f, l := hdrDir("d", 0o755), hdrFile("d/f", "x"), hdrLink("d/l", "f")
	d.ModTime, f.ModTime, l.ModTime = when, when, when
	if err := Apply(context.Background(), dir, bytes.NewReader(tarOf(t, d, f, l)), Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/f", "d/l"} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !fi.ModTime().Equal(when) {
			t.Errorf("%s: mtime %v, %v", name, fi.ModTime(), err)
		}
	}
}

func TestApplyLimits(t *testing.T) {
	many := []tar.Header{hdrFile("a", ""), hdrFile("b", ""), hdrFile("c", "")}
	big := []tar.Header{hdrFile("a", strings.Repeat("x", 600)), hdrFile("b", strings.Repeat("x", 600))}
	tests := map[string]struct {
		data   []byte
		limits Limits
	}{
		"entries":         {tarOf(t, many...), Limits{Entries: 2}},
		"bytes":           {tarOf(t, big...), Limits{Bytes: 1000}},
		"path":            {tarOf(t, hdrFile("aa/bb/cc", "")), Limits{Path: 7}},
		"depth":           {tarOf(t, hdrFile("a/b/c", "")), Limits{Depth: 2}},
		"trailing":        {append(tarOf(t, many...), make([]byte, 5000)...), Limits{Bytes: 4000}},
		"whiteout's body": {tarOf(t, hdrFile(".wh.x", strings.Repeat("x", 600))), Limits{Bytes: 500}},
		"sparse bomb":     {sparseBomb(t), Limits{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := Apply(context.Background(), scratch(t), bytes.NewReader(test.data), test.limits)
			if !errors.Is(err, ErrLimit) {
				t.Errorf("error %v, want ErrLimit", err)
			}
		})
	}
}

// sparseBomb is a GNU sparse file of 8 EiB in a few hundred bytes.
func sparseBomb(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	// A PAX 0.1 sparse file: its map says one byte at the end of a huge hole.
	err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Size: 1, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"KILN.placeholder": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	data := b.Bytes()
	var records strings.Builder
	for _, kv := range [][2]string{
		{"GNU.sparse.size", "9223372036854775807"}, {"GNU.sparse.numblocks", "1"},
		{"GNU.sparse.map", "9223372036854775806,1"}, {"KILN.fill", ""},
	} {
		records.WriteString(paxRecord(kv[0], kv[1]))
	}
	old := bytes.Index(data, []byte("KILN.placeholder")) - len("134 ")
	size := bytes.IndexByte(data[old:], '\n') + 1
	replaced := strings.Replace(records.String(), paxRecord("KILN.fill", ""), "", 1)
	fill := size - len(replaced)
	for pad := 0; ; pad++ {
		if r := paxRecord("KILN.fill", strings.Repeat("x", pad)); len(r) == fill {
			replaced += r
			break
		} else if len(r) > fill {
			t.Fatalf("cannot fill %d bytes", fill)
		}
	}
	copy(data[old:], replaced)
	return data
}

func paxRecord(k, v string) string {
	for size := len(k) + len(v) + 3; ; size++ {
		s := " " + k + "=" + v + "\n"
		if n := len(itoa(size)) + len(s); n == size {
			return itoa(size) + s
		}
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

func TestApplyReadsToTheEnd(t *testing.T) {
	data := append(tarOf(t, hdrFile("a", "x")), bytes.Repeat([]byte{7}, 3000)...)
	r := bytes.NewReader(data)
	if err := Apply(context.Background(), scratch(t), r, Limits{}); err != nil {
		t.Fatal(err)
	}
	if r.Len() != 0 {
		t.Errorf("%d bytes left unread", r.Len())
	}
}

func TestApplyTruncated(t *testing.T) {
	data := tarOf(t, hdrFile("a", strings.Repeat("x", 700)), hdrFile("b", "y"))
	for _, n := range []int{1, 511, 600, 1000, 1600} {
		if err := Apply(context.Background(), scratch(t), bytes.NewReader(data[:n]), Limits{}); err == nil {
			t.Errorf("no error for %d of %d bytes", n, len(data))
		}
	}
	if err := Apply(context.Background(), scratch(t), bytes.NewReader(nil), Limits{}); err != nil {
		t.Errorf("empty layer: %v", err)
	}
}

func TestApplyCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := Apply(ctx, scratch(t), bytes.NewReader(tarOf(t, hdrFile("a", "x"))), Limits{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

// names are few, so that entries meet.
var drawName = rapid.Custom(func(t *rapid.T) string {
	parts := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "a", "b", ".wh.a", ".wh.b", ".wh..wh..opq", ".", "..", ""}), 1, 4).Draw(t, "parts")
	return strings.Join(parts, "/")
})

var drawHeader = rapid.Custom(func(t *rapid.T) tar.Header {
	h := tar.Header{
		Name:     drawName.Draw(t, "name"),
		Mode:     int64(rapid.SampledFrom([]int{0o755, 0o644, 0, 0o500, 0o4755, 0o1777}).Draw(t, "mode")),
		Typeflag: rapid.SampledFrom([]byte{tar.TypeReg, tar.TypeDir, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar}).Draw(t, "type"),
	}
	if h.Typeflag != tar.TypeDir {
		h.Name = strings.TrimRight(h.Name, "/")
	}
	switch h.Typeflag {
	case tar.TypeReg:
		h.Gname = rapid.SampledFrom([]string{"", "x", "yy"}).Draw(t, "body")
	case tar.TypeSymlink:
		h.Linkname = rapid.SampledFrom([]string{"a", "b", "/a", "../b", "..", ".", "/", "../../outside", "a/b", "/proc/self/root"}).Draw(t, "link")
	case tar.TypeLink:
		h.Linkname = drawName.Draw(t, "target")
	}
	return h
})

// TestApplyEqualsModel: in every form, over nothing and over what a first layer
// left.
func TestApplyEqualsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		first := rapid.SliceOfN(drawHeader, 1, 12).Draw(rt, "first")
		second := rapid.SliceOfN(drawHeader, 0, 8).Draw(rt, "second")
		checkApply(t, tarOf(t, first...), tarOf(t, second...))
		if t.Failed() {
			rt.FailNow()
		}
	})
}

// checkApply unpacks first, and in the plain forms second over it, and compares
// with the model, in result and refusal.
func checkApply(t testing.TB, first, second []byte) {
	t.Helper()
	for name, form := range forms() {
		p := newPrison(t)
		layers := [][]byte{first}
		if form.plain {
			layers = append(layers, second)
		}
		tree := emptyTree()
		for _, data := range layers {
			if tree = checkForm(t, name, p.dir, tree, data, form); tree == nil {
				break
			}
			// The root stays open to who unpacks to it.
			tree.mode = 0o755
			if err := os.Chmod(p.dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		p.check(t)
		if err := Remove(filepath.Dir(p.dir)); err != nil {
			t.Error(err)
		}
	}
}

// checkForm unpacks one layer over tree, which is at dir. It returns what there
// is afterwards, nil if the layer was refused.
func checkForm(t testing.TB, name, dir string, tree *node, data []byte, form unpacker) *node {
	t.Helper()
	limits := Limits{Entries: 500, Bytes: 1 << 20}
	_, err := apply(context.Background(), dir, bytes.NewReader(data), limits, form)
	want, merr := modelOver(tree, data, limits, form)
	switch {
	case err == nil && merr == nil:
		compareDisk(t, want, dir)
		if t.Failed() {
			t.Log(name)
		}
		return want
	case err == nil:
		t.Errorf("%s took what the model refuses: %v", name, merr)
	case merr == nil && !ofThisHost(err):
		t.Errorf("%s refused what the model takes: %v", name, err)
	}
	return nil
}

// ofThisHost tells a refusal that the model knows nothing of: a limit of memory,
// xattrs that the file system has no room or no permission for, and, for who is
// not root, what an older layer lets nobody see.
func ofThisHost(err error) bool {
	return errors.Is(err, ErrLimit) || strings.Contains(err.Error(), "set xattr") || strings.Contains(err.Error(), "set file capabilities") ||
		errors.Is(err, unix.EACCES) && os.Geteuid() != 0
}

// TestApplyPlainEqualsOverlay: unpacking a second layer in place shows the
// same tree as stacking its overlay form on the first.
func TestApplyPlainEqualsOverlay(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		lower := tarOf(t, rapid.SliceOfN(drawHeader, 0, 8).Draw(rt, "lower")...)
		upper := tarOf(t, rapid.SliceOfN(drawPlainHeader, 0, 8).Draw(rt, "upper")...)
		top := scratch(t)
		mkdirs(t, top, "l", "u", "merged")
		defer func() { _ = Remove(top) }()
		l, u := filepath.Join(top, "l"), filepath.Join(top, "u")
		if Apply(ctx, l, bytes.NewReader(lower), Limits{}) != nil || Apply(ctx, u, bytes.NewReader(upper), Limits{}) != nil {
			return
		}
		want := filepath.Join(top, "merged")
		if err := Copy(ctx, want, Stack{Upper: u, Lowers: []string{l}}); err != nil {
			rt.Fatal(err)
		}
		flat := filepath.Join(top, "flat")
		if err := Copy(ctx, flat, Stack{Upper: l}); err != nil {
			rt.Fatal(err)
		}
		if err := ApplyPlain(ctx, flat, bytes.NewReader(upper), Limits{}); err != nil {
			return // a path of the layer leads through the lower one differently
		}
		if diff := cmp.Diff(withoutRoot(renderDisk(t, want)), withoutRoot(renderDisk(t, flat))); diff != "" {
			rt.Fatalf("stacked (-), in place (+):\n%s", diff)
		}
	})
}

// withoutRoot drops the root's line: an overlay's root is the upper one's.
func withoutRoot(s string) string {
	_, rest, _ := strings.Cut(s, "\n")
	return rest
}

// drawPlainHeader draws honest entries: every directory by name and no links
// on the way, since those mean another thing once there is a lower layer.
var drawPlainHeader = rapid.Custom(func(t *rapid.T) tar.Header {
	name := rapid.SampledFrom([]string{"a", "b", "c", ".wh.a", ".wh.b", ".wh.c"}).Draw(t, "name")
	if rapid.Bool().Draw(t, "file") {
		return hdrFile(name, "new")
	}
	return hdrDir(name, 0o750)
})

// FuzzApply: whatever the bytes are, every form makes of them what the model
// makes, and nothing outside changes.
func FuzzApply(f *testing.F) {
	empty := tarOf(f)
	for _, a := range layertest.Archives() {
		if data := a.Tar("/outside"); len(data) < 1<<15 && !a.Deep {
			f.Add(data, empty)
			f.Add(tarOf(f, hdrDir("outside", 0o755), hdrFile("outside/canary", "x"), hdrDir("d", 0), hdrLink("l", "d"), hdrFile("a", "x"), hdrHard("b", "a")), data)
		}
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first)+len(second) > 1<<16 {
			return
		}
		checkApply(t, first, second)
	})
}

// FuzzApplyEntries is FuzzApply for archives that are well-formed: each byte
// chooses a part of an entry, so that entries meet.
func FuzzApplyEntries(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		f.Add(randomBytes(r, 100), randomBytes(r, 60))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		checkApply(t, tarOf(t, chosen(first)...), tarOf(t, chosen(second)...))
	})
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// chosen makes entries of bytes.
func chosen(choices []byte) (list []tar.Header) {
	next := func(n int) int {
		if len(choices) == 0 {
			return 0
		}
		c := int(choices[0])
		choices = choices[1:]
		return c % n
	}
	// What is refused ends an archive, so most names are harmless.
	name := func() string {
		var path []string
		for range 1 + next(3) {
			path = append(path, []string{"a", "b", "c", "d"}[next(4)])
		}
		switch c := next(60); {
		case c < 10:
			path[len(path)-1] = []string{".wh.a", ".wh.b", ".wh.c", ".wh..wh..opq"}[c%4]
		case c == 10:
			path[0] = []string{"..", ".", "", ".wh.a"}[next(4)]
		}
		return strings.Join(path, "/")
	}
	for len(choices) > 0 && len(list) < 24 {
		h := tar.Header{
			Typeflag: []byte{tar.TypeReg, tar.TypeDir, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar}[next(7)],
			Name:     name(), Mode: []int64{0o755, 0o644, 0, 0o500, 0o6755, 0o1777, 0o311}[next(7)],
			Uid: []int{0, 0, 1000, 1 << 31, 1<<32 - 2}[next(5)], Gid: []int{0, 0, 7}[next(3)],
		}
		if h.Typeflag != tar.TypeDir {
			h.Name = strings.TrimRight(h.Name, "/")
		}
		switch h.Typeflag {
		case tar.TypeReg:
			h.Gname = []string{"", "x", "yy"}[next(3)]
			fallthrough
		case tar.TypeDir:
			if next(4) == 1 {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user." + []string{"a", "b", "overlay.opaque", "kiln.owner"}[next(4)]: "y"}
			}
		case tar.TypeSymlink:
			h.Linkname = []string{"a", "b", "/a", "../b", "..", ".", "/", "../../outside", "a/b", "c/../d", "/proc/self/root"}[next(11)]
		case tar.TypeLink:
			h.Linkname = name()
		case tar.TypeChar:
			h.Devmajor, h.Devminor = 1, int64(next(9))
		}
		list = append(list, h)
	}
	return list
}
