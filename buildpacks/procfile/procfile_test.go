package procfile

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	got, err := parse("# comment\nweb: gunicorn app:app\r\n\nmy-job_2:   python  x.py  ", "Procfile")
	want := []process{{"web", "gunicorn app:app"}, {"my-job_2", "python  x.py"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for text, says := range map[string]string{
		"web gunicorn":        "line 1",
		"a: b\n\nc d: e":      "line 3",
		"web: a\nweb: b":      "twice",
		"web:":                "line 1",
		"sp ace: x":           "line 1",
		"wörker: x":           "line 1",
		"web: a\n\tjunk here": "line 2",
	} {
		if _, err := parse(text, "Procfile"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", text, err, says)
		}
	}
}

func TestDefault(t *testing.T) {
	for names, want := range map[string]string{"web worker": "web", "a worker": "worker", "only": "only", "a b": "", "": ""} {
		var list []process
		for _, n := range strings.Fields(names) {
			list = append(list, process{n, "x"})
		}
		if got := defaultOf(list); got != want {
			t.Errorf("default of %q is %q, want %q", names, got, want)
		}
	}
}

func TestCommandOf(t *testing.T) {
	sh := func(s string) []string { return []string{"sh", "-c", s} }
	for text, want := range map[string][]string{
		`gunicorn app:app`:             {"gunicorn", "app:app"},
		`gunicorn "app:make(1)" -b :1`: {"gunicorn", "app:make(1)", "-b", ":1"},
		`echo 'a $b' ''`:               {"echo", "a $b", ""},
		`echo a\ b "c\"d\e"`:           {"echo", "a b", `c"d\e`},
		`gunicorn -b :$PORT app`:       sh(`gunicorn -b :$PORT app`),
		`a "$B"`:                       sh(`a "$B"`),
		`a && b`:                       sh(`a && b`),
		`a | b`:                        sh(`a | b`),
		`FOO=1 a`:                      sh(`FOO=1 a`),
		`a *.py`:                       sh(`a *.py`),
		`a "open`:                      sh(`a "open`),
	} {
		got, err := commandOf(text, false)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", text, err, d)
		}
	}
	if got, err := commandOf("a $B | c", true); err != nil || !slices.Equal(got, []string{"a", "$B", "|", "c"}) {
		t.Errorf("direct: %q, %v", got, err)
	}
	if _, err := commandOf(`a "open`, true); err == nil {
		t.Error("direct: an open quote is accepted")
	}
}

// TestPlainIsWhatAShellDoes: a line that is run without a shell has the very
// arguments that a shell would give it.
func TestPlainIsWhatAShellDoes(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal("the test needs a shell, sh, on PATH")
	}
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{
			"a", "b", " ", "\t", `'`, `"`, `\`, "$", "=", "-", ":", "%", "^", "@", "+", ",", ".", "/", "1", "A=",
		}), 1, 12).Draw(t, "pieces"), "")
		words, plain, err := split(text)
		if err != nil || !plain || assignment.MatchString(text) {
			return
		}
		out, err := exec.Command(sh, "-c", "printf '%s\\0' "+text).Output()
		if err != nil {
			t.Fatalf("sh does not take %q: %v", text, err)
		}
		want := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		if !slices.Equal(words, want) {
			t.Errorf("%q: %q, a shell has %q", text, words, want)
		}
	})
}

// A Procfile that is no file ends the build, and is not waited for.
func TestProcfilesThatAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, device, long := filepath.Join(dir, "pipe"), filepath.Join(dir, "device"), filepath.Join(dir, "long")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink("/dev/zero", device), os.WriteFile(long, make([]byte, maxProcfile+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, device, long, dir} {
		if _, err := read(path, "Procfile"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("web: a b\n#x\nc: 'd")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parse(text, "Procfile")
		if err != nil {
			return
		}
		for _, p := range list {
			if c, err := commandOf(p.command, false); err != nil || len(c) == 0 {
				t.Errorf("%q gives no command: %v", p.command, err)
			}
		}
	})
}
