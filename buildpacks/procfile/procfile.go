// Package procfile is the buildpack kiln/procfile. It takes the processes of
// the app from, in this order, a service binding of the type Procfile, the file
// Procfile, or BP_PROCFILE_DEFAULT_PROCESS (the command of the process web).
//
// A command that needs no shell is run without one, so it works in images that
// have none; a command with variables, pipes and the like is given to sh -c.
// BP_DIRECT_PROCESS=true never uses a shell.
package procfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// New is the buildpack.
func New() kit.Buildpack { return kit.Buildpack{Detect: detect, Build: build} }

// process is one line of a Procfile.
type process struct{ name, command string }

func detect(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
	list, _, err := find(&d.Context)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, kit.Fail("no Procfile with a process in it in the app directory (BP_PROCFILE_DEFAULT_PROCESS would do too)")
	}
	return kit.Plans(kit.Plan{Provides: []string{"procfile"}, Requires: []kit.Require{{Name: "procfile", Launch: true}}}), nil
}

func build(_ context.Context, b *kit.Build) error {
	list, source, err := find(&b.Context)
	if err != nil {
		return err
	}
	direct, err := b.Bool("BP_DIRECT_PROCESS")
	if err != nil {
		return err
	}
	def := defaultOf(list)
	b.Log.Info("Adding processes from %s", source)
	for _, p := range list {
		command, err := commandOf(p.command, direct)
		if err != nil {
			return fmt.Errorf("%s: process %s: %w", source, p.name, err)
		}
		b.Log.Detail("%s: %s", p.name, p.command)
		b.AddProcess(kit.Process{Type: p.name, Command: command, Default: p.name == def})
	}
	return nil
}

// defaultOf is web, else worker, else the only one there is.
func defaultOf(list []process) string {
	have := map[string]bool{}
	for _, p := range list {
		have[p.name] = true
	}
	switch {
	case have["web"]:
		return "web"
	case have["worker"]:
		return "worker"
	case len(list) == 1:
		return list[0].name
	}
	return ""
}

func find(c *kit.Context) (list []process, source string, err error) {
	bindings, err := c.Bindings("Procfile")
	if err != nil {
		return nil, "", err
	}
	for _, b := range bindings {
		if path, ok := b.Secrets["Procfile"]; ok {
			source = fmt.Sprintf("the service binding %s", b.Name)
			list, err = read(path, source)
			return list, source, err
		}
	}
	path := filepath.Join(c.AppDir, "Procfile")
	if _, err := os.Stat(path); err == nil {
		list, err = read(path, "Procfile")
		return list, "Procfile", err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("read Procfile: %w", err)
	}
	if command := strings.TrimSpace(c.Getenv("BP_PROCFILE_DEFAULT_PROCESS")); command != "" {
		return []process{{"web", command}}, "BP_PROCFILE_DEFAULT_PROCESS", nil
	}
	return nil, "", nil
}

var line = regexp.MustCompile(`^([A-Za-z0-9_-]+):\s*(.+)$`)

// maxProcfile bounds a Procfile, in bytes.
const maxProcfile = 1 << 20

func read(path, source string) ([]process, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxProcfile {
		return nil, fmt.Errorf("read %s: not a regular file of at most %d bytes", source, maxProcfile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	return parse(string(text), source)
}

// parse reads a Procfile. Blank lines and comments are skipped; a line that is
// neither and no process is an error, as is a name that comes twice.
func parse(text, source string) ([]process, error) {
	var list []process
	seen := map[string]bool{}
	n := 0
	for l := range strings.Lines(text) {
		n++
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil {
			return nil, fmt.Errorf("%s, line %d: %q is not of the form <type>: <command>", source, n, l)
		}
		if seen[m[1]] {
			return nil, fmt.Errorf("%s, line %d: the process %s is there twice", source, n, m[1])
		}
		seen[m[1]] = true
		list = append(list, process{m[1], m[2]})
	}
	return list, nil
}

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// commandOf is the argument list of a command line.
func commandOf(text string, direct bool) ([]string, error) {
	words, plain, err := split(text)
	if err != nil && !direct {
		return []string{"sh", "-c", text}, nil
	}
	if err != nil {
		return nil, err
	}
	if direct || plain && !assignment.MatchString(text) {
		return words, nil
	}
	return []string{"sh", "-c", text}, nil
}

// split takes a command line apart as a shell would, with quotes and
// backslashes. plain is false when the line has anything else that means
// something to a shell.
func split(text string) (words []string, plain bool, err error) {
	var word strings.Builder
	plain = true
	open := false // a word has begun, if only by quotes
	var quote rune
	escaped := false
	for _, r := range text {
		switch {
		case escaped:
			// Within double quotes a backslash is special before few characters only.
			if quote == '"' && !strings.ContainsRune("\"\\$`", r) {
				word.WriteRune('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, open = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			plain = plain && (quote == '\'' || !strings.ContainsRune("$`", r))
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t':
			if open {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
		default:
			plain = plain && !strings.ContainsRune("$`|&;<>()*?[]{}~#!\n", r)
			word.WriteRune(r)
			open = true
		}
	}
	if quote != 0 || escaped {
		return nil, false, fmt.Errorf("a quote is not closed in %q", text)
	}
	if open {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, false, fmt.Errorf("no command in %q", text)
	}
	return words, plain, nil
}
