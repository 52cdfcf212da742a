package debian

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"
)

// elfWith is a minimal shared object: a dynamic section with these entries, an
// interpreter if wanted, and size bytes in all.
func elfWith(t *testing.T, interp string, needed []string, runpath string, size int) string {
	t.Helper()
	strtab := []byte{0}
	str := func(s string) uint64 {
		at := len(strtab)
		strtab = append(append(strtab, s...), 0)
		return uint64(at)
	}
	var dyn []elf.Dyn64
	for _, n := range needed {
		dyn = append(dyn, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: str(n)})
	}
	if runpath != "" {
		dyn = append(dyn, elf.Dyn64{Tag: int64(elf.DT_RUNPATH), Val: str(runpath)})
	}
	dyn = append(dyn, elf.Dyn64{})
	const headers = 64 + 56
	dynOff, strOff := uint64(headers), uint64(headers+16*len(dyn))
	interpOff := strOff + uint64(len(strtab))
	shOff := interpOff + uint64(len(interp)) + 1
	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Shoff: shOff,
		Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64, Shnum: 3, Shstrndx: 2}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	prog := elf.Prog64{Type: uint32(elf.PT_NULL), Off: interpOff, Filesz: uint64(len(interp) + 1)}
	if interp != "" {
		prog.Type = uint32(elf.PT_INTERP)
	}
	sections := []elf.Section64{{},
		{Type: uint32(elf.SHT_DYNAMIC), Off: dynOff, Size: uint64(16 * len(dyn)), Link: 2, Entsize: 16},
		{Type: uint32(elf.SHT_STRTAB), Off: strOff, Size: uint64(len(strtab))}}
	var b bytes.Buffer
	for _, part := range []any{h, prog, dyn, strtab, append([]byte(interp), 0), sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	if size > b.Len() {
		b.Write(make([]byte, size-b.Len()))
	}
	return b.String()
}

func TestMissingLibraries(t *testing.T) {
	const ld = "/lib64/ld-linux-x86-64.so.2"
	for _, c := range []struct {
		name  string
		libs  []string // files that are there
		prog  string
		at    string
		allow []string
		err   string
	}{
		{"all there", []string{"lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/liba.so.1"}, elfWith(t, ld, []string{"liba.so.1"}, "", 0), "usr/bin/p", nil, ""},
		{"no library", []string{"lib64/ld-linux-x86-64.so.2"}, elfWith(t, ld, []string{"liba.so.1"}, "", 0), "usr/bin/p", nil, "/usr/bin/p needs liba.so.1 (package prog)"},
		{"no interpreter", nil, elfWith(t, ld, nil, "", 0), "usr/bin/p", nil, "needs the interpreter " + ld},
		{"allowed", nil, elfWith(t, ld, []string{"liba.so.1"}, "", 0), "usr/bin/p", []string{"liba.so.1", "ld-linux-x86-64.so.2"}, ""},
		{"run path", []string{"usr/lib/p/liba.so.1"}, elfWith(t, "", []string{"liba.so.1"}, "$ORIGIN/../lib/p", 0), "usr/bin/p", nil, ""},
		{"absolute run path", []string{"opt/p/liba.so.1"}, elfWith(t, "", []string{"liba.so.1"}, "/opt/p:/opt/q", 0), "usr/bin/p", nil, ""},
		{"private to the package, for a program", []string{"usr/lib/q/liba.so.1", "lib64/ld-linux-x86-64.so.2"}, elfWith(t, ld, []string{"liba.so.1"}, "", 0), "usr/bin/p", nil, "liba.so.1"},
		{"another machine's", nil, strings.Replace(elfWith(t, ld, []string{"liba.so.1"}, "", 0), "\x3e\x00\x01", "\x03\x00\x01", 1), "usr/share/p/testdata", nil, ""},
		{"another system's", nil, strings.Replace(elfWith(t, ld, []string{"liba.so.1"}, "", 0), "\x02\x01\x01\x00", "\x02\x01\x01\x09", 1), "usr/share/p/testdata", nil, ""},
		{"private to the package, for a library", []string{"usr/lib/q/liba.so.1"}, elfWith(t, "", []string{"liba.so.1"}, "", 0), "usr/lib/q/libb.so.1", nil, ""},
		{"large", nil, elfWith(t, "", []string{"liba.so.1"}, "", elfInMemory+1), "usr/bin/p", nil, "/usr/bin/p needs liba.so.1"},
		{"no ELF after all", nil, elf.ELFMAG + strings.Repeat("x", 200), "usr/bin/p", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArchive(t)
			d := simple("prog", "1", "", c.libs...)
			d.text(c.at, 0o755, c.prog)
			d.ext = ".zst"
			a.add("bookworm", d)
			a.publish()
			l := &layers{}
			_, err := a.client().Build(context.Background(), Recipe{Request: request("prog"), AllowMissing: c.allow}, l.put)
			if c.err == "" && err != nil {
				t.Error(err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			if len(l.tars) == 1 {
				if _, body := l.entries(t, 0); body[c.at] != c.prog {
					t.Errorf("the file itself changed: %d bytes for %d", len(body[c.at]), len(c.prog))
				}
			}
		})
	}
}
