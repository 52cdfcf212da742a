package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/spec"
)

// arches are the names that lifecycle archives have for machines.
var arches = map[elf.Machine]string{elf.EM_X86_64: "x86-64", elf.EM_AARCH64: "arm64"}

// entry is a file of the archive, or a link if it has a target.
type entry struct {
	name, link string
	mode       int64
	body       []byte
}

// writeArchive packs the lifecycle as builders are made with it (requirements
// 6.5): lifecycle.toml, and the binaries with their SBOMs in lifecycle/.
func writeArchive(dir, out, version string) error {
	entries, arch, err := contents(dir, version)
	if err != nil {
		return err
	}
	packed, err := pack(entries)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	file := filepath.Join(out, fmt.Sprintf("lifecycle-%s+linux.%s.tgz", version, arch))
	if err := os.WriteFile(file, packed, 0o644); err != nil {
		return err
	}
	fmt.Println(file)
	return nil
}

func contents(dir, version string) (entries []entry, arch string, err error) {
	toml, err := encode.TOML(spec.OwnLifecycle())
	if err == nil {
		_, err = spec.ReadLifecycle(toml, "lifecycle.toml")
	}
	if err != nil {
		return nil, "", err
	}
	entries = []entry{{name: "lifecycle.toml", mode: 0o644, body: toml}, {name: "lifecycle/", mode: 0o755}}
	for _, name := range programs {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, "", err
		}
		is, err := machine(body)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
		}
		if arch != "" && arch != is {
			return nil, "", fmt.Errorf("%s is for %s, the other program for %s", filepath.Join(dir, name), is, arch)
		}
		arch = is
		entries = append(entries, entry{name: "lifecycle/" + name, mode: 0o755, body: body})
	}
	for _, name := range lifecycle.Phases {
		entries = append(entries, entry{name: "lifecycle/" + name, mode: 0o777, link: "lifecycle"})
	}
	files, err := sboms(dir, version)
	if err != nil {
		return nil, "", err
	}
	for name, text := range files {
		entries = append(entries, entry{name: "lifecycle/" + name, mode: 0o644, body: text})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, arch, nil
}

// machine is what a program is for. It must need nothing of the image that it
// is put into.
func machine(program []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return "", err
	}
	defer f.Close()
	arch, ok := arches[f.Machine]
	if !ok {
		return "", fmt.Errorf("archives for %s have no name", f.Machine)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC }) {
		return "", errors.New("it is not a static program")
	}
	return arch, nil
}

// pack makes the archive. Nothing in it says when, where or by whom.
func pack(entries []entry) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	z.ModTime = time.Unix(0, 0) // which gzip has for "not known"
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body)), ModTime: layer.ModTime, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		switch {
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.Copy(w, bytes.NewReader(e.body)); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
