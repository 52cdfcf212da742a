package debian

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// elfIndex is what the image's ELF files need of each other.
type elfIndex struct {
	files []elfFile
}

// elfFile is one program or library.
type elfFile struct {
	path    string
	machine elf.Machine
	interp  string
	needed  []string
	runpath []string
}

// elfInMemory is the largest ELF file, in bytes, that is held in memory while it
// is written to its layer; larger ones go through a temporary file.
const elfInMemory = 16 << 20

// elfProbe passes a file's bytes on and keeps a copy if it is an ELF file: its
// dynamic section cannot be read from a stream.
type elfProbe struct {
	r    io.Reader
	size int64
	n    int64
	head [4]byte
	elf  bool
	mem  []byte
	file *os.File
}

// Read implements io.Reader.
func (p *elfProbe) Read(b []byte) (int, error) {
	if p.n == 0 && len(b) >= len(p.head) && p.size > 64 {
		n, err := io.ReadFull(p.r, b[:len(p.head)])
		if err != nil {
			return n, err
		}
		copy(p.head[:], b)
		p.elf = string(p.head[:]) == elf.ELFMAG
		return n, p.keep(b[:n])
	}
	n, err := p.r.Read(b)
	if kerr := p.keep(b[:n]); kerr != nil {
		return n, kerr
	}
	return n, err
}

func (p *elfProbe) keep(b []byte) error {
	p.n += int64(len(b))
	if !p.elf {
		return nil
	}
	if p.size <= elfInMemory {
		if p.mem == nil {
			p.mem = make([]byte, 0, p.size)
		}
		p.mem = append(p.mem, b...)
		return nil
	}
	if p.file == nil {
		f, err := os.CreateTemp("", "kiln-elf-*")
		if err != nil {
			return err
		}
		p.file = f
		if err := os.Remove(f.Name()); err != nil { // nothing stays, whatever happens
			return err
		}
	}
	_, err := p.file.Write(b)
	return err
}

func (p *elfProbe) close() {
	if p.file != nil {
		_ = p.file.Close() // already unlinked, read or not
	}
}

// add reads the probe's copy. A file that only looks like ELF is no error.
func (x *elfIndex) add(name string, p *elfProbe) error {
	if !p.elf {
		return nil
	}
	var r io.ReaderAt = bytes.NewReader(p.mem)
	if p.file != nil {
		r = p.file
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return nil
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil
	}
	if f.OSABI != elf.ELFOSABI_NONE && f.OSABI != elf.ELFOSABI_LINUX {
		return nil // another system's: packages have them as test data
	}
	e := elfFile{path: name, machine: f.Machine}
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP && prog.Filesz < 4096 {
			b := make([]byte, prog.Filesz)
			if _, err := prog.ReadAt(b, 0); err == nil {
				e.interp = strings.TrimRight(string(b), "\x00")
			}
		}
	}
	if e.needed, err = f.ImportedLibraries(); err != nil {
		return nil
	}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := f.DynString(tag)
		if err != nil {
			return nil
		}
		for _, p := range paths {
			e.runpath = append(e.runpath, strings.Split(p, ":")...)
		}
	}
	if len(e.needed) > 0 || e.interp != "" {
		x.files = append(x.files, e)
	}
	return nil
}

// machines are the architectures by Debian's name: the machine in ELF files and
// the directory of their libraries.
var machines = map[string]struct {
	elf     elf.Machine
	triplet string
}{
	"amd64": {elf.EM_X86_64, "x86_64-linux-gnu"}, "arm64": {elf.EM_AARCH64, "aarch64-linux-gnu"},
	"i386": {elf.EM_386, "i386-linux-gnu"}, "armhf": {elf.EM_ARM, "arm-linux-gnueabihf"},
	"ppc64el": {elf.EM_PPC64, "powerpc64le-linux-gnu"}, "s390x": {elf.EM_S390, "s390x-linux-gnu"},
	"riscv64": {elf.EM_RISCV, "riscv64-linux-gnu"},
}

// check reports every interpreter and needed library that the image lacks,
// except those that are allowed to be missing. Files for another architecture
// than the image's cannot run in it and are left alone.
func (x *elfIndex) check(t *tree, arch string, allowed []string) error {
	machine, known := machines[arch]
	private := t.privateLibraries()
	var missing []error
	for _, f := range x.files {
		if known && f.machine != machine.elf {
			continue
		}
		if f.interp != "" && !isFile(t.lookup(f.interp)) && !slices.Contains(allowed, path.Base(f.interp)) {
			missing = append(missing, fmt.Errorf("/%s needs the interpreter %s", f.path, f.interp))
		}
		owner := t.nodes[f.path].owner
		for _, lib := range f.needed {
			// A library's private needs are met by the program that loads it: with its
			// own run path, or because it has loaded them before.
			own := f.interp == "" && private[owner+"/"+lib]
			if !own && !slices.Contains(allowed, lib) && !f.finds(t, machine.triplet, lib) {
				missing = append(missing, fmt.Errorf("/%s needs %s (package %s)", f.path, lib, owner))
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return hint(fmt.Errorf("shared libraries are missing in the image:\n%w", errors.Join(missing...)),
		"add the packages that have them, or allow them to be missing")
}

// privateLibraries is the set of "package/file name" of all shared libraries.
func (t *tree) privateLibraries() map[string]bool {
	out := map[string]bool{}
	for p, n := range t.nodes {
		if base := path.Base(p); strings.Contains(base, ".so") {
			out[n.owner+"/"+base] = true
		}
	}
	return out
}

// finds says whether the library is where the linker would look: the run path,
// then, as images have no cache of ldconfig's, the directories it knows.
func (f elfFile) finds(t *tree, triplet, lib string) bool {
	if strings.Contains(lib, "/") {
		return isFile(t.lookup(lib))
	}
	var dirs []string
	for _, d := range f.runpath {
		origin := "/" + path.Dir(f.path)
		d = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(d)
		if path.IsAbs(d) {
			dirs = append(dirs, path.Clean(d))
		}
	}
	for _, d := range append(dirs, "usr/lib/"+triplet, "usr/lib", "usr/lib64") {
		if isFile(t.lookup(path.Join(d, lib))) {
			return true
		}
	}
	return false
}

func isFile(n *inode) bool { return n != nil && n.kind == tar.TypeReg }
