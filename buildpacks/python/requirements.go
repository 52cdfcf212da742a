package python

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// RequirementsVariable names the requirements files, separated by spaces.
const RequirementsVariable = "BP_PIP_REQUIREMENT"

// RequirementsFiles are the files that pip-install installs from, relative to
// the app.
func RequirementsFiles(c *kit.Context) []string {
	if files := strings.Fields(c.Getenv(RequirementsVariable)); len(files) > 0 {
		return files
	}
	return []string{"requirements.txt"}
}

// Requirements is what requirements files say, with those that they include.
type Requirements struct {
	// Files are all files that were read, relative to the app where they are in
	// it, in the order of reading.
	Files []string
	// Names are the distributions that are asked for, normalised ("flask"), with
	// the extras they are asked for with ("fastapi" -> "standard").
	Names map[string][]string
	// Local are paths of files and directories that are installed from.
	Local []string
	// Variables are the names of ${VARIABLES} in the files.
	Variables []string
}

// Has reports whether one of the distributions is asked for.
func (r Requirements) Has(names ...string) bool {
	for _, n := range names {
		if _, ok := r.Names[Normalize(n)]; ok {
			return true
		}
	}
	return false
}

// HasExtra reports whether a distribution is asked for with an extra.
func (r Requirements) HasExtra(name, extra string) bool {
	for _, e := range r.Names[Normalize(name)] {
		if e == extra {
			return true
		}
	}
	return false
}

var separators = regexp.MustCompile(`[-_.]+`)

// Normalize is the one spelling of a distribution's name (PEP 503).
func Normalize(name string) string {
	return strings.ToLower(separators.ReplaceAllString(strings.TrimSpace(name), "-"))
}

// maxRequirements bounds a requirements file in bytes: the largest lock files
// in the field have some hundred kilobytes.
const maxRequirements = 16 << 20

// ReadRequirements reads requirements files and those they include with -r and
// -c. A file that an included path does not lead to is an error, as for pip;
// an included address is left to pip.
func ReadRequirements(app string, files []string) (Requirements, error) {
	r := reader{app: app, seen: map[string]bool{}, vars: map[string]bool{}}
	r.Names = map[string][]string{}
	for _, f := range files {
		path := f
		if !filepath.IsAbs(path) {
			path = filepath.Join(app, f)
		}
		if err := r.read(path, false); err != nil {
			return Requirements{}, err
		}
	}
	return r.Requirements, nil
}

type reader struct {
	Requirements
	app  string
	seen map[string]bool
	vars map[string]bool
}

func (r *reader) relative(path string) string {
	if rel, err := filepath.Rel(r.app, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

func (r *reader) read(path string, constraints bool) error {
	if r.seen[path] {
		return nil
	}
	r.seen[path] = true
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read requirements: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxRequirements {
		return fmt.Errorf("read requirements: %s is not a regular file of at most %d bytes", path, maxRequirements)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read requirements: %w", err)
	}
	r.Files = append(r.Files, r.relative(path))
	for _, l := range logicalLines(string(text)) {
		for _, m := range variable.FindAllStringSubmatch(l, -1) {
			if !r.vars[m[1]] {
				r.vars[m[1]] = true
				r.Variables = append(r.Variables, m[1])
			}
		}
		if err := r.line(filepath.Dir(path), l, constraints); err != nil {
			return fmt.Errorf("%s: %w", r.relative(path), err)
		}
	}
	return nil
}

var (
	variable    = regexp.MustCompile(`\$\{([A-Z0-9_]+)\}`)
	include     = regexp.MustCompile(`^(-r|--requirement|-c|--constraint)(?:\s*=?\s*)(.+)$`)
	editable    = regexp.MustCompile(`^(?:-e|--editable)(?:\s*=?\s*)(.+)$`)
	links       = regexp.MustCompile(`^(?:-f|--find-links)(?:\s*=?\s*)(.+)$`)
	requirement = regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[([^\]]*)\])?\s*(@\s*(.*)|[<>=!~;(].*)?$`)
	scheme      = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)
	archive     = regexp.MustCompile(`\.(whl|zip|tar\.gz|tar\.bz2|tgz)$`)
	egg         = regexp.MustCompile(`[#&]egg=([A-Za-z0-9._-]+)`)
)

func (r *reader) line(dir, l string, constraints bool) error {
	if m := include.FindStringSubmatch(l); m != nil {
		target := unquote(m[2])
		if scheme.MatchString(target) && !strings.HasPrefix(target, "file:") {
			return nil
		}
		return r.read(r.path(dir, target), constraints || m[1] == "-c" || m[1] == "--constraint")
	}
	if m := links.FindStringSubmatch(l); m != nil {
		r.local(dir, unquote(m[1]))
		return nil
	}
	if m := editable.FindStringSubmatch(l); m != nil {
		r.named(m[1])
		r.local(r.app, unquote(m[1]))
		return nil
	}
	if strings.HasPrefix(l, "-") {
		return nil
	}
	// Options of one requirement follow it.
	if i := strings.Index(l, " --"); i >= 0 {
		l = strings.TrimSpace(l[:i])
	}
	m := requirement.FindStringSubmatch(l)
	switch {
	case m == nil || m[3] == "" && archive.MatchString(l):
		r.named(l)
		r.local(r.app, l)
	case !constraints:
		name := Normalize(m[1])
		extras := r.Names[name]
		for _, e := range strings.Split(m[2], ",") {
			if e = strings.TrimSpace(e); e != "" {
				extras = append(extras, e)
			}
		}
		r.Names[name] = extras
		if m[4] != "" {
			r.local(r.app, strings.TrimSpace(strings.SplitN(m[4], ";", 2)[0]))
		}
	}
	return nil
}

// named notes the name that an address gives with #egg=.
func (r *reader) named(address string) {
	if m := egg.FindStringSubmatch(address); m != nil {
		if _, ok := r.Names[Normalize(m[1])]; !ok {
			r.Names[Normalize(m[1])] = nil
		}
	}
}

// local notes what is installed from a path: its contents count.
func (r *reader) local(dir, target string) {
	if strings.HasPrefix(target, "file:") || !scheme.MatchString(target) {
		target, _, _ = strings.Cut(target, "#")
		target, _, _ = strings.Cut(target, "[")
		r.Local = append(r.Local, r.relative(r.path(dir, target)))
	}
}

func (r *reader) path(dir, target string) string {
	target = strings.TrimPrefix(target, "file:")
	if strings.HasPrefix(target, "//") {
		target = "/" + strings.TrimLeft(target, "/")
	}
	if filepath.IsAbs(target) {
		return filepath.Clean(target)
	}
	return filepath.Join(dir, target)
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// logicalLines joins continued lines and drops comments and blank lines, as
// pip does.
func logicalLines(text string) []string {
	text = strings.TrimPrefix(text, "\ufeff")
	var lines []string
	joined := ""
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\r\n")
		if body, more := strings.CutSuffix(l, `\`); more && !strings.HasPrefix(strings.TrimSpace(l), "#") {
			joined += body
			continue
		}
		lines = appendLine(lines, joined+l)
		joined = ""
	}
	return appendLine(lines, joined)
}

var comment = regexp.MustCompile(`(^|\s+)#.*$`)

func appendLine(lines []string, l string) []string {
	if l = strings.TrimSpace(comment.ReplaceAllString(l, "")); l != "" {
		return append(lines, l)
	}
	return lines
}
