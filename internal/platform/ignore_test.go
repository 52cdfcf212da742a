package platform

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		patterns string
		path     string
		want     bool
	}{
		{"*.log", "a.log", true},
		{"*.log", "d/a.log", true},
		{"/a.log", "d/a.log", false},
		{"d/", "d/x/y", true},
		{"d/*.txt", "d/x/y.txt", false},
		{"**/y.txt", "d/x/y.txt", true},
		{"d/**", "d/x", true},
		{"*\n!keep", "keep", false},
		{"*\n!keep", "drop", true},
		{"dir\n!dir/keep", "dir/keep", true},
		{`\#x`, "#x", true},
		{"# x", "# x", false},
		{"[a-c]x", "bx", true},
		{"[!a-c]x", "bx", false},
		{"[/[a-f]", "a", true},
		{"[/x]y", "d/xy", false},
		{"a b ", "a b", true},
		{"\xff*", "\xffz", true},
	} {
		if got := parsePatterns(strings.Split(c.patterns, "\n")).match(c.path, false); got != c.want {
			t.Errorf("%q on %q: got %v", c.patterns, c.path, got)
		}
	}
}

// TestPatternsLikeGit asks git itself. The tree is fixed and the patterns are
// drawn from the pieces in which implementations differ.
func TestPatternsLikeGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("git is missing: apt-get install git")
	}
	dir := t.TempDir()
	files := []string{"a", "b.txt", "foo/bar", "foo/b.txt", "foo/baz/a", "x/foo/bar", "x/y/z/b.txt", "doc/a.md", "doc/n/b.md", "[x]", "A", "9"}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	git("init", "-q")
	pieces := []string{"*", "**", "/", "foo", "bar", "a", "b.txt", "?", "[a-f]", "[!a]", "[", "doc", "!", "*.txt", "foo/bar", "foo/", "/a", "x", "y", "**/bar", "x/**", "[[:digit:]]", "\\[x\\]", "baz/"}
	// gitignore(5) gives "**" no meaning but as a whole segment, and git itself
	// answers differently for "a**/b" with and without a literal beginning.
	loose := regexp.MustCompile(`[^/]\*\*|\*\*[^/]`)
	exclude := filepath.Join(dir, ".git", "info", "exclude")
	rapid.Check(t, func(rt *rapid.T) {
		var lines []string
		for range rapid.IntRange(1, 4).Draw(rt, "lines") {
			line := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 1, 3).Draw(rt, "line"), "")
			if loose.MatchString(line) {
				continue
			}
			lines = append(lines, line)
		}
		if err := os.WriteFile(exclude, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			rt.Fatal(err)
		}
		kept := map[string]bool{}
		for f := range strings.SplitSeq(git("ls-files", "-z", "--others", "--exclude-standard"), "\x00") {
			kept[f] = true
		}
		ps := parsePatterns(lines)
		for _, f := range files {
			if got, want := ps.match(f, false), !kept[f]; got != want {
				rt.Fatalf("patterns %q on %q: we say %v, git says %v", lines, f, got, want)
			}
		}
	})
}
