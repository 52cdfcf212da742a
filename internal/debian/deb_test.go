package debian

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// readDeb opens a .deb and reads its data archive to the end.
func readDeb(b []byte) (*deb, []string, error) {
	d, err := openDeb(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return nil, nil, err
	}
	data, err := d.data()
	if err != nil {
		return d, nil, err
	}
	defer data.Close()
	var names []string
	tr := tar.NewReader(data)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, data)
			return d, names, err
		}
		if err != nil {
			return d, names, err
		}
		names = append(names, h.Name)
		if sparse(h) {
			return d, names, errors.New("sparse")
		}
		if _, err := io.Copy(io.Discard, tr); err != nil {
			return d, names, err
		}
	}
}

func TestOpenDeb(t *testing.T) {
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		s := simple("x", "1", "Replaces: y (<< 3), z\n", "usr/x", "usr/odd")
		s.scripts = map[string]string{"postinst": "#!/bin/sh\nexit 0\n"}
		s.ext = ext
		d, names, err := readDeb(s.build(t))
		if err != nil {
			t.Fatalf("%q: %v", ext, err)
		}
		if strings.Join(names, " ") != "./usr/x ./usr/odd" || d.control.fields.get("package") != "x" || len(d.control.replaces) != 2 ||
			d.control.scripts["postinst"] == "" || !strings.Contains(string(d.control.md5sums), "usr/odd") {
			t.Errorf("%q: read %v, %+v", ext, names, d.control)
		}
		if ext == ".xz" && d.window != 64<<10 {
			t.Errorf("window is %d, the packer's was 64 KiB", d.window)
		}
	}
}

func TestOpenDebErrors(t *testing.T) {
	good := simple("x", "1", "", "usr/x")
	control := func(text string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "control", Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	version := member{"debian-binary", []byte("2.0\n")}
	fine := member{"control.tar", control("Package: x\n")}
	// An .xz header that asks for 4 GiB (dictionary property 40).
	greedy := append([]byte{0xfd, '7', 'z', 'X', 'Z', 0, 0, 4, 0, 0, 0, 0, 2, 0, 0x21, 1, 40}, make([]byte, 64)...)
	for name, c := range map[string]struct {
		b   []byte
		err string
	}{
		"empty":              {nil, "not a .deb"},
		"something else":     {[]byte("PK\x03\x04 something else"), "not a .deb"},
		"cut off":            {good.build(t)[:100], ""},
		"no data":            {ar(version, fine), "ends before data.tar"},
		"wrong order":        {ar(version, member{"data.tar", nil}, fine), "where control.tar must stand"},
		"version 3":          {ar(member{"debian-binary", []byte("3.0\n")}, fine), "not debian-binary 2.x"},
		"no package name":    {ar(version, member{"control.tar", control("Version: 1\n")}), "no package name"},
		"unknown packer":     {ar(version, fine, member{"data.tar.lz9", nil}), "unknown compression"},
		"not packed at all":  {ar(version, fine, member{"data.tar.gz", []byte("plain text")}), "data.tar.gz"},
		"too much memory":    {ar(version, fine, member{"data.tar.xz", greedy}), "bytes of memory"},
		"negative size":      {bytes.Replace(good.build(t), []byte("4         `"), []byte("-4        `"), 1), "member size"},
		"malformed Replaces": {ar(version, member{"control.tar", control("Package: x\nReplaces: a b\n")}), "Replaces"},
	} {
		if _, _, err := readDeb(c.b); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %v, want %q", name, err, c.err)
		}
	}
	if _, _, err := readDeb(ar(version, member{"_ours", []byte("skipped")}, fine, member{"data.tar", control("x")}, member{"_more", nil})); err != nil {
		t.Errorf("members that begin with _: %v", err)
	}
}

// FuzzDeb: no bytes make the reader panic, hang or take memory without bound,
// and every name it lets through stays below the root.
func FuzzDeb(f *testing.F) {
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		s := simple("x", "1", "Replaces: y\n", "usr/x", "usr/share/doc/x/copyright")
		s.link(tar.TypeSymlink, "lib/y", "../z")
		s.ext = ext
		f.Add(s.build(f))
	}
	f.Add(ar(member{"debian-binary", []byte("2.0\n")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, names, err := readDeb(b)
		if err != nil {
			return
		}
		for _, n := range names {
			p, err := memberPath(n)
			if err == nil && p != "." && !cleanRelative(strings.Map(tame, p)) {
				t.Errorf("%q let through as %q", n, p)
			}
		}
	})
}

// tame hides what cleanRelative refuses in the pool's paths but files may have.
func tame(r rune) rune {
	if strings.ContainsRune("?#%\\\n", r) {
		return 'x'
	}
	return r
}

// FuzzParagraphs: the reader of indexes and control files keeps whole fields.
func FuzzParagraphs(f *testing.F) {
	f.Add([]byte("Package: x\nDepends: a,\n b\n\n# comment\nPackage: y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps := newParagraphs(bufio.NewReaderSize(bytes.NewReader(b), 16), 1<<16)
		for range len(b) + 2 {
			p, err := ps.next()
			if err != nil || p == nil {
				return
			}
			for rest := []byte(p); len(rest) > 0; {
				var field []byte
				if field, rest = cutField(rest); !bytes.ContainsRune(field, ':') {
					t.Fatalf("field %q has no name", field)
				}
			}
		}
		t.Fatal("more paragraphs than bytes")
	})
}

// FuzzInRelease: nothing that is not signed by the key is ever opened.
func FuzzInRelease(f *testing.F) {
	key, err := testKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSuite: x\n-----BEGIN PGP SIGNATURE-----\n\niQ==\n=aaaa\n-----END PGP SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if text, err := openInRelease(b, openpgp.EntityList{key}, testDate); err == nil {
			t.Errorf("opened %q", text)
		}
	})
}
