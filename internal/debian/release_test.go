package debian

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/kilnbuild/kiln/internal/spec"
)

const inRelease = "debian/dists/bookworm/InRelease"

// resolveX resolves the one package x.
func (a *archive) resolveX(change ...func(*Options)) (Lock, error) {
	a.t.Helper()
	return a.client(change...).Resolve(context.Background(), request("x"))
}

func archiveOfX(t *testing.T) *archive {
	a := newArchive(t)
	a.add("bookworm", simple("x", "1", "", "usr/x"))
	a.publish()
	return a
}

// TestTamperedInRelease flips single bits all over the file: the signed text,
// the signature, the armour. None may pass with another meaning.
func TestTamperedInRelease(t *testing.T) {
	a := archiveOfX(t)
	keys, err := readKeyring([]string{a.keyring})
	if err != nil {
		t.Fatal(err)
	}
	now := testDate.Add(time.Hour)
	good := a.files[inRelease]
	want, err := openInRelease(good, keys, now)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 7)
		text, err := openInRelease(bad, keys, now)
		if err != nil {
			refused++
			continue
		}
		// White space at the end of lines and armour headers are not signed.
		if !bytes.Equal(bytes.TrimRight(text, "\r\n\t "), bytes.TrimRight(want, "\r\n\t ")) {
			t.Fatalf("byte %d (%q for %q): passed with another text", i, bad[i], good[i])
		}
	}
	if refused < len(good)*9/10 {
		t.Errorf("only %d of %d flips were refused", refused, len(good))
	}
	i := bytes.Index(good, []byte("Codename"))
	a.files[inRelease] = append(bytes.Clone(good[:i]), append([]byte("X"), good[i+1:]...)...)
	if _, err := a.resolveX(); err == nil || !strings.Contains(err.Error(), "signature") {
		t.Errorf("got %v, want a bad signature", err)
	}
}

func TestInReleaseRefused(t *testing.T) {
	other, err := openpgp.NewEntity("somebody", "", "else@example.org", keyConfig())
	if err != nil {
		t.Fatal(err)
	}
	hour := func(n int) func(*Options) {
		return func(o *Options) { o.Now = func() time.Time { return testDate.Add(time.Duration(n) * time.Hour) } }
	}
	for _, c := range []struct {
		name   string
		change func(*archive)
		opts   func(*Options)
		err    string
	}{
		{"text before", func(a *archive) { a.files[inRelease] = append([]byte("Suite: x\n"), a.files[inRelease]...) }, nil, "does not begin with"},
		{"text after", func(a *archive) { a.files[inRelease] = append(a.files[inRelease], "Suite: x\n"...) }, nil, "after the signature"},
		{"two messages", func(a *archive) { a.files[inRelease] = bytes.Repeat(a.files[inRelease], 2) }, nil, "after the signature"},
		{"not signed", func(a *archive) { a.files[inRelease] = []byte(a.release("bookworm", "")) }, nil, "does not begin with"},
		{"cut off", func(a *archive) { a.files[inRelease] = a.files[inRelease][:200] }, nil, "not a well-formed"},
		{"other key", func(a *archive) { a.key = other; a.publish() }, nil, "signature"},
		{"no list", func(a *archive) { a.files[inRelease] = a.sign(a.release("bookworm", "")) }, nil, "SHA256"},
		{"other suite", func(a *archive) {
			a.files[inRelease] = a.sign(a.release("trixie", " "+strings.Repeat("0", 64)+" 1 x\n"))
		}, nil, `codename "trixie"`},
		{"from the future", func(a *archive) { a.date = testDate.Add(5 * time.Hour); a.publish() }, nil, "in the future"},
		{"signed in the future", func(*archive) {}, hour(-2), "signature"},
		{"expired", func(a *archive) { a.extra = "Valid-Until: Fri, 01 May 2026 12:30:00 UTC\n"; a.publish() }, nil, "expired at 2026-05-01T12:30:00Z"},
		{"date of another zone", func(a *archive) { a.extra = "Valid-Until: Fri, 01 May 2026 12:30:00 +0500\n"; a.publish() }, nil, "Valid-Until"},
		{"none", func(a *archive) { delete(a.files, inRelease) }, nil, "404"},
		{"no security", func(a *archive) { delete(a.files, "debian-security/dists/bookworm-security/InRelease") }, nil, "bookworm-security"},
		{"too long", func(a *archive) { a.files[inRelease] = bytes.Repeat([]byte("x"), maxInRelease+1) }, nil, "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := archiveOfX(t)
			c.change(a)
			opts := []func(*Options){}
			if c.opts != nil {
				opts = append(opts, c.opts)
			}
			_, err := a.resolveX(opts...)
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Fatalf("got %v, want %q", err, c.err)
			}
			if !strings.Contains(err.Error(), "bookworm") {
				t.Errorf("%q does not name the suite", err)
			}
		})
	}
}

func TestExpiredCanBeAllowed(t *testing.T) {
	a := archiveOfX(t)
	a.extra = "Valid-Until: Fri, 01 May 2026 12:30:00 UTC\n"
	a.publish()
	_, err := a.resolveX()
	if !strings.Contains(spec.HintOf(err), "--allow-expired") {
		t.Errorf("hint is %q", spec.HintOf(err))
	}
	if _, err := a.resolveX(func(o *Options) { o.AllowExpired = true }); err != nil {
		t.Error(err)
	}
}

// TestReplay: an archive older than the lock is refused, the same is not.
func TestReplay(t *testing.T) {
	a := archiveOfX(t)
	lock, err := a.resolveX()
	if err != nil {
		t.Fatal(err)
	}
	if !lock.Date().Equal(testDate) {
		t.Errorf("lock's date is %s", lock.Date())
	}
	req := request("x")
	req.Previous = &lock
	if _, err := a.client().Resolve(context.Background(), req); err != nil {
		t.Errorf("same date: %v", err)
	}
	a.date = testDate.Add(-time.Minute)
	a.publish()
	if _, err := a.client().Resolve(context.Background(), req); err == nil || !strings.Contains(err.Error(), "older than") {
		t.Errorf("older archive: %v", err)
	}
}

func TestPackagesAreVerified(t *testing.T) {
	const plain = "debian/dists/bookworm/main/binary-amd64/Packages.xz"
	a := archiveOfX(t)
	byHash := "debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/" + hex256(a.files[plain])
	good := a.files[plain]
	for name, bad := range map[string][]byte{
		"flipped": append(append(bytes.Clone(good[:40]), good[40]^1), good[41:]...),
		"cut off": good[:len(good)-9],
		"longer":  append(bytes.Clone(good), 0),
		"another": pack(t, ".xz", []byte("Package: x\nVersion: 9\nArchitecture: amd64\nFilename: pool/x.deb\nSize: 1\nSHA256: 0\n")),
	} {
		a.files[byHash] = bad
		if _, err := a.resolveX(); err == nil || !strings.Contains(err.Error(), "by-hash") {
			t.Errorf("%s: got %v, want an error with the address", name, err)
		}
	}
	delete(a.files, byHash) // mirrors may not have it
	if _, err := a.resolveX(); err != nil {
		t.Errorf("without by-hash: %v", err)
	}
	a.files[plain] = append(bytes.Clone(good), 0)
	if _, err := a.resolveX(); err == nil {
		t.Error("the plain name is verified too")
	}
}

// TestSwappedDeb: a package in another's place, and one that rotted, are refused
// and never reach the blobs.
func TestSwappedDeb(t *testing.T) {
	a := newArchive(t)
	a.add("bookworm", simple("x", "1", "", "usr/x"))
	a.add("bookworm", simple("y", "1", "", "usr/y"))
	a.publish()
	const x, y = "debian/pool/main/x_1.deb", "debian/pool/main/y_1.deb"
	good := a.files[x]
	flipped := bytes.Clone(good)
	flipped[len(flipped)-20] ^= 1
	for name, bad := range map[string][]byte{"swapped": a.files[y], "flipped": flipped, "cut off": good[:100], "longer": append(bytes.Clone(good), 'x')} {
		a.files[x] = bad
		dir := t.TempDir()
		_, err := a.client(func(o *Options) { o.Blobs = DirBlobs(dir) }).Build(context.Background(), Recipe{Request: request("x")}, (&layers{}).put)
		if err == nil || !strings.Contains(err.Error(), "package x 1") {
			t.Errorf("%s: got %v, want an error naming the package", name, err)
		}
		if kept, err := os.ReadDir(dir); err != nil || len(kept) != 0 {
			t.Errorf("%s: kept %v, %v", name, kept, err)
		}
	}
}

// TestSeparateListOfArchitectureAll: archives may list them apart.
func TestSeparateListOfArchitectureAll(t *testing.T) {
	a := newArchive(t)
	all := simple("x", "1", "")
	all.control = strings.Replace(all.control, "amd64", "all", 1)
	a.add("bookworm", all)
	list := []byte(strings.Join(a.packages["bookworm"], "\n"))
	a.packages["bookworm"] = nil
	a.publish()
	empty := pack(t, ".gz", nil)
	text := a.release("bookworm", " "+hex256(empty)+" "+itoa(len(empty))+" main/binary-amd64/Packages.gz\n "+hex256(list)+" "+itoa(len(list))+" main/binary-all/Packages\n")
	a.files[inRelease] = a.sign(strings.Replace(text, "No-Support-for-Architecture-all: Packages\n", "", 1))
	a.files["debian/dists/bookworm/main/binary-amd64/Packages.gz"] = empty
	a.files["debian/dists/bookworm/main/binary-all/Packages"] = list
	if _, err := a.resolveX(); err != nil {
		t.Error(err)
	}
}

func TestBuiltInKeys(t *testing.T) {
	keys, err := readKeyring(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 6 {
		t.Errorf("%d keys, want archive, security and stable of bookworm and trixie", len(keys))
	}
	for _, k := range keys {
		if k.PrivateKey != nil {
			t.Error("a private key")
		}
	}
	// The built-in keys do not trust the test's archive, and say what to do.
	a := archiveOfX(t)
	_, err = a.resolveX(func(o *Options) { o.Keyrings = nil })
	if err == nil || !strings.Contains(spec.HintOf(err), "--keyring") {
		t.Errorf("got %v, hint %q", err, spec.HintOf(err))
	}
}

func TestPasswordsStayOutOfErrors(t *testing.T) {
	a := archiveOfX(t)
	a.handler = func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "no", http.StatusForbidden)
		return true
	}
	_, err := a.resolveX(func(o *Options) {
		o.Sources = ForMirror(strings.Replace(a.url, "http://", "http://me:secret@", 1)+"/debian", "bookworm")
	})
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "403") {
		t.Errorf("got %v", err)
	}
}
