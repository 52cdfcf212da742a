// Package layertest has archives that try what no honest one does, and a canary
// that tells whether any of it worked: for the tests of everything that reads
// archives of somebody else's.
package layertest

import (
	"fmt"
	"strings"
	"testing"
)

// Want is what layer.Apply makes of an archive. Others may refuse more, or take
// less of it; none may do anything outside of its directory.
type Want string

// The ways out.
const (
	Unsafe    Want = "unsafe"    // refused with layer.ErrUnsafe
	Limit     Want = "limit"     // refused with layer.ErrLimit
	Broken    Want = "broken"    // refused with another error: it is no tar, or names what is not there
	Refused   Want = "refused"   // refused, for what depends on who unpacks it
	Contained Want = "contained" // taken, and all that it did is in the directory
	Skipped   Want = "skipped"   // taken, and what it tries is left out
)

// Archive is one archive of the table.
type Archive struct {
	Name string
	// Why is the published fault that it stands for, or what it tries.
	Why  string
	Want Want
	// Plain is what layer.ApplyPlain makes of it, where that is another thing:
	// there whiteouts are no files.
	Plain Want
	// Owned is what layer.ApplyOwned makes of it, where that is another thing.
	Owned Want
	// Deep is an archive of thousands of directories, which take their time.
	Deep bool

	make func(out string) []byte
}

// Tar is the archive's bytes. It aims at the directory outside, which is absolute.
func (a Archive) Tar(outside string) []byte { return a.make(outside) }

// Entries is Tar without the blocks of zeros at its end, to put before other
// entries. It is false for an archive that has no such end.
func (a Archive) Entries(outside string) ([]byte, bool) {
	b := a.make(outside)
	const end = 2 * block
	if len(b) < end || len(b)%block != 0 || strings.Trim(string(b[len(b)-end:]), "\x00") != "" {
		return nil, false
	}
	return b[:len(b)-end], true
}

// Of is what is wanted of one of the forms of Apply.
func (a Archive) Of(plain, owned bool) Want {
	switch {
	case plain && a.Plain != "":
		return a.Plain
	case owned && a.Owned != "":
		return a.Owned
	}
	return a.Want
}

// Each runs f for every archive of the table, each with a canary of its own.
func Each(t *testing.T, f func(t *testing.T, a Archive, c *Canary)) {
	table := Archives()
	if len(table) < 150 {
		t.Fatalf("the table has %d archives, fewer than promised", len(table))
	}
	for _, a := range table {
		t.Run(a.Name, func(t *testing.T) {
			c := NewCanary(t)
			f(t, a, c)
			c.Check(t)
		})
	}
}

// entry is one entry of an archive, honest or not.
type entry struct {
	kind       byte
	name, link string
	body       string
	size       string // in the header, where it is not that of body
	mode       string
	uid, gid   string
	mtime      string
	major      string
	minor      string
	magic      string
	sum        string // the checksum, where it is wrong
	pax        []string
	sparse     []int64 // of GNU's old format: offset, length, ..., and the whole size last
}

func file(name, body string) entry    { return entry{kind: '0', name: name, body: body} }
func dir(name string) entry           { return entry{kind: '5', name: name, mode: "755"} }
func symlink(name, to string) entry   { return entry{kind: '2', name: name, link: to, mode: "777"} }
func hardlink(name, to string) entry  { return entry{kind: '1', name: name, link: to} }
func fifo(name string) entry          { return entry{kind: '6', name: name} }
func of(kind byte, name string) entry { return entry{kind: kind, name: name, link: "a"} }

func device(kind byte, name, major, minor string) entry {
	return entry{kind: kind, name: name, major: major, minor: minor, mode: "666"}
}

func (e entry) withMode(octal string) entry { e.mode = octal; return e }
func (e entry) withSize(octal string) entry { e.size = octal; return e }

func (e entry) withOwner(uid, gid string) entry {
	e.uid, e.gid = uid, gid
	return e
}

// with adds PAX records: key, value, key, value.
func (e entry) with(records ...string) entry {
	e.pax = append(e.pax, records...)
	return e
}

// withXattr adds an xattr as star and GNU tar write it.
func (e entry) withXattr(name, value string) entry { return e.with("SCHILY.xattr."+name, value) }

// block is the unit of a tar, in bytes.
const block = 512

const (
	ustar = "ustar\x0000"
	gnu   = "ustar  \x00"
)

// tarOf makes an archive of entries. In names and links $OUT is the canary's
// directory, $UP a path up to the root and down to it.
func tarOf(entries ...entry) func(string) []byte { return raw(true, entries...) }

// raw is tarOf, with the end or without.
func raw(end bool, entries ...entry) func(string) []byte {
	return func(out string) []byte {
		aim := strings.NewReplacer("$OUT", out, "$UP", strings.Repeat("../", 40)+strings.TrimPrefix(out, "/"))
		var b []byte
		for _, e := range entries {
			e.name, e.link = aim.Replace(e.name), aim.Replace(e.link)
			e.pax = append([]string(nil), e.pax...)
			for i := range e.pax {
				e.pax[i] = aim.Replace(e.pax[i])
			}
			b = append(b, e.bytes()...)
		}
		if end {
			b = append(b, make([]byte, 2*block)...)
		}
		return b
	}
}

func (e entry) bytes() []byte {
	var before []byte
	if len(e.name) > 100 {
		e.pax, e.name = append([]string{"path", e.name}, e.pax...), e.name[:100]
	}
	if len(e.link) > 100 {
		e.pax, e.link = append([]string{"linkpath", e.link}, e.pax...), e.link[:100]
	}
	if len(e.pax) > 0 {
		var records strings.Builder
		for i := 0; i+1 < len(e.pax); i += 2 {
			records.WriteString(paxRecord(e.pax[i], e.pax[i+1]))
		}
		before = entry{kind: 'x', name: "PaxHeaders/x", body: records.String()}.bytes()
	}
	size := e.size
	if size == "" {
		size = fmt.Sprintf("%011o", len(e.body))
	}
	h := make([]byte, block)
	put := func(at, width int, s, otherwise string) {
		if s == "" {
			s = otherwise
		}
		copy(h[at:at+width], s)
	}
	put(0, 100, e.name, "")
	put(100, 8, e.mode, "644")
	put(108, 8, e.uid, "0")
	put(116, 8, e.gid, "0")
	put(124, 12, size, "")
	put(136, 12, e.mtime, "0")
	h[156] = e.kind
	put(157, 100, e.link, "")
	put(257, 8, e.magic, ustar)
	put(329, 8, e.major, "0")
	put(337, 8, e.minor, "0")
	if len(e.sparse) > 0 {
		for i, n := range e.sparse[:len(e.sparse)-1] {
			copy(h[386+12*i:], base256(n))
		}
		copy(h[483:], base256(e.sparse[len(e.sparse)-1]))
	}
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	put(148, 8, e.sum, fmt.Sprintf("%06o\x00 ", sum))
	b := append(before, h...)
	b = append(b, e.body...)
	return append(b, make([]byte, -len(b)&(block-1))...)
}

// base256 is a number of 12 bytes in GNU's binary form.
func base256(n int64) string {
	b := [12]byte{0: 0x80}
	if n < 0 {
		b = [12]byte{0xff, 0xff, 0xff, 0xff}
	}
	for i := range 8 {
		b[11-i] = byte(n >> (8 * i))
	}
	return string(b[:])
}

// base256of8 is the same for fields of 8 bytes.
func base256of8(n int64) string { return base256(n)[:1] + base256(n)[5:] }

func paxRecord(key, value string) string {
	for size := len(key) + len(value) + 3; ; size++ {
		if s := fmt.Sprintf("%d %s=%s\n", size, key, value); len(s) == size {
			return s
		}
	}
}
