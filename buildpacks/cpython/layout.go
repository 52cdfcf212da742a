package cpython

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/internal/debian"
)

// triplets are Debian's names of library directories.
func triplet(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64-linux-gnu"
	case "arm64":
		return "aarch64-linux-gnu"
	default:
		return arch + "-linux-gnu"
	}
}

// layout says where the files of the packages go: a prefix with bin, include,
// lib and the wheels of pip, setuptools and wheel in share. Shared libraries
// stand in lib itself, where the lifecycle's LD_LIBRARY_PATH leads. All else is
// left out, but for the copyright files.
func layout(minor, triplet string) debian.Rewrite {
	stdlib := "usr/lib/python" + minor
	return func(p string) string {
		switch {
		case p == "usr/bin/python"+minor:
			return "bin/python" + minor
		case leftOut(p, stdlib):
			return ""
		case below(p, stdlib), below(p, "usr/include"), below(p, "usr/share/python-wheels"):
			return strings.TrimPrefix(p, "usr/")
		case below(p, "usr/lib/"+triplet) && isLibrary(p):
			return "lib/" + strings.TrimPrefix(p, "usr/lib/"+triplet+"/")
		case below(p, "usr/share/doc") && path.Base(p) == "copyright":
			return strings.TrimPrefix(p, "usr/")
		}
		return ""
	}
}

// isLibrary is true for shared libraries as programs load them: libz.so.1,
// libdb-5.3.so, but not the libpython3.11.so that only linkers read.
func isLibrary(p string) bool {
	name := path.Base(p)
	return strings.Contains(name, ".so") && !strings.HasPrefix(name, "libpython")
}

// leftOut are files of the standard library that make no sense outside of
// Debian's own Python (its site customisation, the mark that forbids pip), or
// are for embedding CPython into C programs: 25 MB of static libraries.
func leftOut(p, stdlib string) bool {
	if !below(p, stdlib) {
		return false
	}
	rel := strings.TrimPrefix(p, stdlib+"/")
	if rel == "sitecustomize.py" || rel == "EXTERNALLY-MANAGED" || strings.HasPrefix(rel, "lib-dynload/nis.") ||
		strings.Contains(rel, "__pycache__") || strings.HasPrefix(rel, "lib2to3/tests/") {
		return true
	}
	return strings.HasPrefix(rel, "config-") && path.Base(rel) != "Makefile"
}

func below(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// buildVariable are those variables of the build of CPython that tell tools
// (ensurepip, setuptools) where files are.
var buildVariable = regexp.MustCompile(`(?m)^( *'(?:WHEEL_PKG_DIR|INCLUDEPY|CONFINCLUDEPY|INCLUDEDIR|CONFINCLUDEDIR)': ')/usr(/?[^']*')`)

// relocate makes a prefix of what was unpacked: the links of bin, and the paths
// that are written down in the library.
func relocate(dir, minor string) error {
	if err := link(dir, minor); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "lib", "python"+minor, "_sysconfigdata__*.py"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		// A directory name may hold what means something to Python or to regexp.
		if strings.ContainsAny(dir, "'\\\n") {
			return fmt.Errorf("relocate CPython: the layer's path %q has a quote, a backslash or a line end", dir)
		}
		text = buildVariable.ReplaceAll(text, []byte("${1}"+strings.ReplaceAll(dir, "$", "$$")+"${2}"))
		if !bytes.Contains(text, []byte("'WHEEL_PKG_DIR': '"+dir)) {
			return fmt.Errorf("relocate CPython: no WHEEL_PKG_DIR in %s", file)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return fmt.Errorf("relocate CPython: no _sysconfigdata in %s", dir)
	}
	return nil
}
