package dockerfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/test/filetree"
)

func stackOf(t testing.TB, files map[string]string) layer.Stack {
	return layer.Stack{Lowers: []string{filetree.New(t, files)}}
}

func TestFindUser(t *testing.T) {
	root := stackOf(t, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n" +
			"cnb:x:1000:1001::/home/cnb:/bin/sh\n" +
			"short:x:5\n" +
			"1234:x:77:78::/home/digits:/bin/sh\n" +
			"broken:x:abc:1::/home/b:\n" +
			"nogroup:x:9:x::/home/n:\n" +
			"huge:x:4294967296:1::/h:\n" +
			"nohome:x:12:13:::\n" +
			"last:x:88:89::/home/last:/bin/sh",
		"etc/group": "root:x:0:\nstaff:x:50:cnb\nshort:x\nbad:x:-1:\n",
	})
	for s, want := range map[string]User{
		"":           {UID: 0, GID: 0, Home: "/root"},
		"root":       {UID: 0, GID: 0, Home: "/root"},
		"cnb":        {UID: 1000, GID: 1001, Groups: []int{50}, Home: "/home/cnb"},
		"1000":       {UID: 1000, GID: 1001, Groups: []int{50}, Home: "/home/cnb"},
		"1000:1000":  {UID: 1000, GID: 1000, Home: "/home/cnb"},
		"cnb:staff":  {UID: 1000, GID: 50, Home: "/home/cnb"},
		"cnb:7":      {UID: 1000, GID: 7, Home: "/home/cnb"},
		"4242":       {UID: 4242, GID: 0, Home: "/"},
		"4242:staff": {UID: 4242, GID: 50, Home: "/"},
		"last":       {UID: 88, GID: 89, Home: "/home/last"},
		"nohome":     {UID: 12, GID: 13, Home: "/"},
		":staff":     {UID: 0, GID: 50, Home: "/root"},
		"2147483647": {UID: 2147483647, GID: 0, Home: "/"},
	} {
		got, err := FindUser(root, s)
		if err != nil || !cmp.Equal(got, want, cmpopts.EquateEmpty()) {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"nobody", "short", "broken", "nogroup", "huge", "cnb:nobody", "cnb:", "cnb:bad", "cnb:short", "-1", "2147483648", "root\n", "cnb:staff:x"} {
		if got, err := FindUser(root, s); err == nil {
			t.Errorf("%q: no error but %+v", s, got)
		}
	}
}

// What an image has for accounts files is hostile until shown otherwise.
func TestFindUserInHostileImages(t *testing.T) {
	host := filetree.New(t, map[string]string{"passwd": "evil:x:0:0::/:\n"})
	linked := t.TempDir()
	if err := os.MkdirAll(filepath.Join(linked, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(host, "passwd"), filepath.Join(linked, "etc", "passwd")); err != nil {
		t.Fatal(err)
	}
	etcLinked := t.TempDir()
	if err := os.Symlink(host, filepath.Join(etcLinked, "etc")); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{
		"passwd is a link to the host":      linked,
		"etc is a link to the host":         etcLinked,
		"passwd is larger than any is":      filetree.New(t, map[string]string{"etc/passwd": strings.Repeat("x", accountsLimit) + "\nevil:x:0:0::/:\n"}),
		"passwd is a directory":             filetree.New(t, map[string]string{"etc/passwd/x": ""}),
		"passwd has no line ends, and NULs": filetree.New(t, map[string]string{"etc/passwd": "\x00\x00evil:x"}),
		"there is nothing":                  t.TempDir(),
	} {
		if got, err := FindUser(layer.Stack{Lowers: []string{dir}}, "evil"); err == nil {
			t.Errorf("%s: evil is %+v", name, got)
		}
	}
	if got, err := FindUser(layer.Stack{Lowers: []string{t.TempDir()}}, "1000:1000"); err != nil || !cmp.Equal(got, User{UID: 1000, GID: 1000, Home: "/"}) {
		t.Errorf("ids need no accounts: %+v, %v", got, err)
	}
}

func FuzzFindUser(f *testing.F) {
	f.Add("cnb:x:1000:1000::/home/cnb:/bin/sh\n", "g:x:5:\n", "cnb:g")
	f.Add("::::::", ":::", ":")
	f.Fuzz(func(t *testing.T, passwd, group, s string) {
		u, err := FindUser(stackOf(t, map[string]string{"etc/passwd": passwd, "etc/group": group}), s)
		if err == nil && (u.UID < 0 || u.GID < 0 || u.Home == "") {
			t.Errorf("%q in %q, %q is %+v", s, passwd, group, u)
		}
	})
}
