package debian

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// The tests' archive lives at this moment.
var testDate = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// archive is a signed Debian archive over HTTP, made for one test.
type archive struct {
	t       *testing.T
	key     *openpgp.Entity
	keyring string
	url     string

	mu       sync.Mutex
	files    map[string][]byte
	asked    map[string]int
	handler  func(w http.ResponseWriter, r *http.Request) bool // may answer first
	packages map[string][]string                               // paragraphs by suite
	date     time.Time
	extra    string // more Release fields
}

var testKey = sync.OnceValues(func() (*openpgp.Entity, error) {
	return openpgp.NewEntity("archive", "test", "archive@example.org", keyConfig())
})

func keyConfig() *packet.Config {
	return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return testDate.AddDate(-1, 0, 0) }}
}

// newArchive serves bookworm, its updates and security, all empty at first.
func newArchive(t *testing.T) *archive {
	t.Helper()
	key, err := testKey()
	if err != nil {
		t.Fatal(err)
	}
	var pub bytes.Buffer
	if err := key.Serialize(&pub); err != nil {
		t.Fatal(err)
	}
	a := &archive{t: t, key: key, keyring: filepath.Join(t.TempDir(), "test.gpg"), date: testDate,
		files: map[string][]byte{}, asked: map[string]int{}, packages: map[string][]string{}}
	if err := os.WriteFile(a.keyring, pub.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

// ServeHTTP implements http.Handler.
func (a *archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	body, ok := a.files[r.URL.Path[1:]]
	a.asked[r.URL.Path[1:]]++
	handler := a.handler
	a.mu.Unlock()
	switch {
	case handler != nil && handler(w, r):
	case !ok:
		http.NotFound(w, r)
	default:
		_, _ = w.Write(body)
	}
}

// client trusts the archive's key and its clock.
func (a *archive) client(change ...func(*Options)) *Client {
	a.t.Helper()
	o := Options{Sources: ForMirror(a.url+"/debian", "bookworm"), Keyrings: []string{a.keyring},
		Now: func() time.Time { return testDate.Add(time.Hour) }}
	for _, f := range change {
		f(&o)
	}
	c, err := NewClient(o)
	if err != nil {
		a.t.Fatal(err)
	}
	c.pause = time.Millisecond
	a.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			a.t.Error(err)
		}
	})
	return c
}

// root is the archive's directory of a suite's archive.
func (a *archive) root(suite string) string {
	if strings.HasSuffix(suite, "-security") {
		return "debian-security"
	}
	return "debian"
}

// add puts a package into the pool and the index of a suite.
func (a *archive) add(suite string, d testDeb) {
	a.t.Helper()
	body := d.build(a.t)
	sum := sha256.Sum256(body)
	p := fmt.Sprintf("pool/main/%s_%s.deb", d.name(), strings.ReplaceAll(d.version(), ":", "%3a"))
	p = strings.ReplaceAll(p, "%3a", ".")
	a.files[a.root(suite)+"/"+p] = body
	a.packages[suite] = append(a.packages[suite], fmt.Sprintf("%s\nDescription: long text\n that is not kept\nFilename: %s\nSize: %d\nSHA256: %s\n",
		strings.TrimRight(d.control, "\n"), p, len(body), hex.EncodeToString(sum[:])))
}

// publish writes the indexes and signs.
func (a *archive) publish() {
	a.t.Helper()
	for _, suite := range []string{"bookworm", "bookworm-updates", "bookworm-security"} {
		packages := pack(a.t, ".xz", []byte(strings.Join(a.packages[suite], "\n")))
		sum := hex256(packages)
		dir := a.root(suite) + "/dists/" + suite + "/"
		a.files[dir+"main/binary-amd64/Packages.xz"] = packages
		a.files[dir+"main/binary-amd64/by-hash/SHA256/"+sum] = packages
		a.files[dir+"InRelease"] = a.sign(a.release(suite, fmt.Sprintf(" %s %d main/binary-amd64/Packages.xz\n", sum, len(packages))))
	}
}

func (a *archive) release(suite, sums string) string {
	return fmt.Sprintf("Origin: Test\nSuite: old%s\nCodename: %s\nDate: %s\n%sAcquire-By-Hash: yes\nArchitectures: all amd64\n"+
		"No-Support-for-Architecture-all: Packages\nComponents: main\nMD5Sum:\n 0 0 nothing\nSHA256:\n%s",
		suite, suite, a.date.Format("Mon, 02 Jan 2006 15:04:05 MST"), a.extra, sums)
}

func (a *archive) sign(text string) []byte {
	a.t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, a.key.PrivateKey, &packet.Config{Time: func() time.Time { return testDate }})
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		a.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		a.t.Fatal(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func hex256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// pack compresses as the extension says.
func pack(t testing.TB, ext string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ext {
	case ".xz":
		w, err = xz.WriterConfig{DictCap: 64 << 10}.NewWriter(&out)
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	case "":
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testDeb describes a .deb.
type testDeb struct {
	control string
	files   []tar.Header
	bodies  map[string]string
	scripts map[string]string
	ext     string // of both archives
}

// simple is a package of one version with some text files.
func simple(name, version, fields string, files ...string) testDeb {
	d := testDeb{control: fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\n%s", name, version, fields), bodies: map[string]string{}, ext: ".xz"}
	for _, f := range files {
		d.text(f, 0o644, f+" of "+name+"\n")
	}
	return d
}

func (d *testDeb) text(name string, mode int64, body string) {
	d.files = append(d.files, tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: mode, Size: int64(len(body)), ModTime: testDate.AddDate(0, 0, -1)})
	if d.bodies == nil {
		d.bodies = map[string]string{}
	}
	d.bodies["./"+name] = body
}

func (d *testDeb) link(kind byte, name, target string) {
	d.files = append(d.files, tar.Header{Typeflag: kind, Name: "./" + name, Linkname: target, Mode: 0o777, ModTime: testDate.AddDate(0, 0, -1)})
}

func (d *testDeb) dir(name string, mode int64) {
	d.files = append(d.files, tar.Header{Typeflag: tar.TypeDir, Name: "./" + name + "/", Mode: mode, ModTime: testDate.AddDate(0, 0, -1)})
}

func (d testDeb) name() string    { return paragraph(d.control).get("Package") }
func (d testDeb) version() string { return paragraph(d.control).get("Version") }

func (d testDeb) build(t testing.TB) []byte {
	t.Helper()
	var control, data bytes.Buffer
	cw, dw := tar.NewWriter(&control), tar.NewWriter(&data)
	sums := ""
	for i := range d.files {
		h := d.files[i]
		if err := dw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(dw, d.bodies[h.Name]); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			sums += "0123456789abcdef0123456789abcdef  " + h.Name[2:] + "\n"
		}
	}
	parts := map[string]string{"./control": strings.TrimRight(d.control, "\n") + "\n", "./md5sums": sums}
	for name, text := range d.scripts {
		parts["./"+name] = text
	}
	for _, name := range []string{"./postinst", "./md5sums", "./control"} {
		if err := cw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(parts[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(cw, parts[name]); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range []*tar.Writer{cw, dw} {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return ar(
		member{"debian-binary", []byte("2.0\n")},
		member{"control.tar" + d.ext, pack(t, d.ext, control.Bytes())},
		member{"data.tar" + d.ext, pack(t, d.ext, data.Bytes())})
}

type member struct {
	name string
	body []byte
}

func ar(members ...member) []byte {
	b := []byte("!<arch>\n")
	for _, m := range members {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", m.name, 0, 0, 0, 0o100644, len(m.body))
		b = append(b, m.body...)
		if len(m.body)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

// request asks for packages in one group.
func request(packages ...string) Request {
	return Request{Suite: "bookworm", Arch: "amd64", Groups: []Group{{Name: "all", Packages: packages}}}
}

// layers collects what Build puts.
type layers struct {
	names []string
	tars  [][]byte
}

func (l *layers) put(name string, write func(io.Writer) error) error {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	l.names, l.tars = append(l.names, name), append(l.tars, b.Bytes())
	return nil
}

// entries reads a layer: headers and bodies by name.
func (l *layers) entries(t testing.TB, i int) (map[string]*tar.Header, map[string]string) {
	t.Helper()
	headers, bodies := map[string]*tar.Header{}, map[string]string{}
	tr := tar.NewReader(bytes.NewReader(l.tars[i]))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return headers, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		if headers[h.Name] != nil {
			t.Errorf("layer %d has %s twice", i, h.Name)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name], bodies[h.Name] = h, string(b)
	}
}

// build builds one group of packages with the default user.
func (a *archive) build(packages ...string) (*layers, Result, error) {
	a.t.Helper()
	l := &layers{}
	res, err := a.client().Build(context.Background(), Recipe{Request: request(packages...), User: CNB}, l.put)
	return l, res, err
}
