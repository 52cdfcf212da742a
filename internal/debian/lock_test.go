package debian

import (
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
