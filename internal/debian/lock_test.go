package debian

import (
	"bytes"
	"strings"
	"testing"
)

const goodLock = `version = 1
suite = 'bookworm'
arch = 'amd64'

[[group]]
name = 'all'
want = ['x']

[[release]]
suite = 'bookworm'
date = 2026-05-01T12:00:00Z

[[package]]
name = 'x'
version = '1'
arch = 'amd64'
group = 'all'
suite = 'bookworm'
path = 'pool/main/x_1.deb'
size = 10
sha256 = 'abababababababababababababababababababababababababababababababab'
`

func TestReadLock(t *testing.T) {
	l, err := ReadLock([]byte(goodLock), "good.lock")
	if err != nil {
		t.Fatal(err)
	}
	again, err := l.MarshalText()
	if err != nil || string(again) != goodLock {
		t.Errorf("printed as\n%s\n%v", again, err)
	}
	for old, bad := range map[string]string{
		"version = 1":               "version = 2",
		"suite = 'bookworm'\narch":  "suite = '../x'\narch",
		"path = 'pool/main/x_1.deb": "path = '../../x_1.deb",
		"path = 'pool":              "path = '/pool",
		"pool/main/x_1.deb":         "pool/x?y=1",
		"size = 10":                 "size = 0",
		"'abab":                     "'ABab",
		"sha256 = 'ab":              "sha256 = '",
		"arch = 'amd64'\ngroup":     "arch = 'i386'\ngroup",
		"group = 'all'":             "group = 'other'",
		"name = 'x'":                "name = '-x'",
		"want = ":                   "wants = ",
	} {
		text := strings.Replace(goodLock, old, bad, 1)
		if text == goodLock {
			t.Fatalf("%q is not in the lock", old)
		}
		if _, err := ReadLock([]byte(text), "bad.lock"); err == nil || !strings.Contains(err.Error(), "bad.lock") {
			t.Errorf("%s: got %v, want an error naming the file", bad, err)
		}
	}
	twice := goodLock + goodLock[strings.Index(goodLock, "[[package]]"):]
	if _, err := ReadLock([]byte(twice), "bad.lock"); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a package twice: %v", err)
	}
}

// What is wrong with the TOML is told with its place and key.
func TestLockFaults(t *testing.T) {
	for text, want := range map[string]string{
		"version = 1\nsuite = 3\n":      "bad.lock:2:1: suite: must be a string",
		"version = 1\n[[package]\n":     "bad.lock:2:",
		"version = 1\nsuites = \"x\"\n": "bad.lock:2:1: suites: is no key of this document",
		"[[package]]\nsha = \"x\"\n":    "bad.lock:2:1: package.sha: is no key of this document",
		"version = 1\nversion = 2\n":    "bad.lock:2:",
	} {
		_, err := ReadLock([]byte(text), "bad.lock")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// FuzzReadLock: an error that names the file, or a lock that is written and read
// the same and that names nothing strange.
func FuzzReadLock(f *testing.F) {
	f.Add([]byte(goodLock))
	f.Add([]byte("version = 1\n[[package]]\nsize = 1e3\n"))
	f.Add([]byte("version = 1\nversion = 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ReadLock(text, "some.lock")
		if err != nil {
			if !strings.Contains(err.Error(), "some.lock") {
				t.Errorf("%v names no file", err)
			}
			return
		}
		for _, p := range l.Packages {
			if strings.Contains(p.Path, "..") && !cleanRelative(p.Path) || p.Size <= 0 {
				t.Errorf("package %+v", p)
			}
		}
		b, err := l.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ReadLock(b, "again.lock")
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if b2, err := again.MarshalText(); err != nil || !bytes.Equal(b, b2) {
			t.Errorf("%s\nbecomes\n%s (%v)", b, b2, err)
		}
	})
}
