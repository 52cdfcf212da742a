package platform

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
)

// wantBadInput says that err is the caller's to mend, names what was given and
// has a hint.
func wantBadInput(t *testing.T, err error, operand string) {
	t.Helper()
	if err == nil {
		t.Errorf("%q: no error", operand)
		return
	}
	if code := spec.ExitCode(err, 1); code != spec.ExitInvalidArgs {
		t.Errorf("%q: exit code %d, want %d", operand, code, spec.ExitInvalidArgs)
	}
	if !strings.Contains(err.Error(), operand) {
		t.Errorf("%q: the error does not name it: %v", operand, err)
	}
	if spec.HintOf(err) == "" {
		t.Errorf("%q: no hint: %v", operand, err)
	}
}

func TestParseVolume(t *testing.T) {
	good := map[string]Volume{
		"/a:/b":                     {"/a", "/b", true},
		"/a:/b:ro":                  {"/a", "/b", true},
		"/a:/b:rw":                  {"/a", "/b", false},
		"/a:/b/../c/":               {"/a", "/c", true},
		"/a:/platform/bindings/pki": {"/a", "/platform/bindings/pki", true},
		"/a:/workspace/data":        {"/a", "/workspace/data", true},
		"/a:/layers2":               {"/a", "/layers2", true},
		"/with space:/b":            {"/with space", "/b", true},
	}
	for s, want := range good {
		got, err := ParseVolume(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", s, diff)
		}
	}
	for _, s := range []string{
		"", "/a", "/a:", ":/b", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:", "/a:/b:ro:rw",
		"/a:/", "/a://", "/a:/layers", "/a:/layers/x", "/a:/cnb", "/a:/cnb/buildpacks/x", "/a:/workspace", "/a:/workspace/", "/a:/proc/x", "/a:/dev",
		"/a:/sys", "/a:/platform", "/a:/platform/env", "/a:/platform/env/X", "/a:/x/../layers", "/a://cnb/lifecycle", "/a:/./dev/null",
	} {
		_, err := ParseVolume(s)
		wantBadInput(t, err, s)
	}
}

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "/a:/b/../layers", "::", "/:/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVolume(s)
		if err != nil {
			return
		}
		if !path.IsAbs(v.Source) || path.Clean(v.Target) != v.Target || ownedByBuild(v.Target) {
			t.Errorf("%q is %+v", s, v)
		}
		// What it says prints back to the same volume.
		option := map[bool]string{true: "ro", false: "rw"}[v.ReadOnly]
		if again, err := ParseVolume(v.Source + ":" + v.Target + ":" + option); err != nil || again != v {
			t.Errorf("%q is %+v, which reads back as %+v (%v)", s, v, again, err)
		}
	})
}

func TestParseDestination(t *testing.T) {
	for s, want := range map[string]Destination{
		"oci:out":                   {ToLayout, "out"},
		"oci:./a:b":                 {ToLayout, "./a:b"},
		"oci-archive:/tmp/x.tar":    {ToOCIArchive, "/tmp/x.tar"},
		"docker-archive:with space": {ToDockerArchive, "with space"},
	} {
		if got, err := ParseDestination(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "oci", "oci:", "store:x", "registry:x", "store", "OCI:x", "out.tar", ":x", "docker:x"} {
		_, err := ParseDestination(s)
		wantBadInput(t, err, s)
	}
}

func FuzzParseDestination(f *testing.F) {
	f.Add("oci:x")
	f.Add("docker-archive::")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDestination(s)
		if err == nil && (d.Path == "" || string(d.Kind)+":"+d.Path != s || d.Kind == ToStore || d.Kind == ToRegistry) {
			t.Errorf("%q is %+v", s, d)
		}
	})
}

func TestParsePort(t *testing.T) {
	for s, want := range map[string]Port{
		"5000":              {"127.0.0.1", 5000, 5000},
		"8080:5000":         {"127.0.0.1", 8080, 5000},
		"0.0.0.0:8080:5000": {"0.0.0.0", 8080, 5000},
		"localhost:1:65535": {"localhost", 1, 65535},
		"[::1]:8080:5000":   {"::1", 8080, 5000},
	} {
		if got, err := ParsePort(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", ":", "x", "0", "65536", "-1", "80:", ":80", "80:x", "1:2:3:4", "::1:80:80", "8080:5000/tcp", "+80", "080x", "host:", "[::1:80:80", "[]:80:80"} {
		_, err := ParsePort(s)
		wantBadInput(t, err, s)
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "1:2", "a:1:2", "[::1]:1:2", "[:1:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePort(s)
		if err == nil && (p.Host == "" || p.Published < 1 || p.Published > 65535 || p.Target < 1 || p.Target > 65535) {
			t.Errorf("%q is %+v", s, p)
		}
	})
}

func TestParseImageName(t *testing.T) {
	for s, want := range map[string]ImageName{
		"hello":                       {"hello:latest", "index.docker.io/library/hello:latest", "index.docker.io"},
		"hello:1.2":                   {"hello:1.2", "index.docker.io/library/hello:1.2", "index.docker.io"},
		"me/hello":                    {"me/hello:latest", "index.docker.io/me/hello:latest", "index.docker.io"},
		"docker.io/library/hello":     {"hello:latest", "index.docker.io/library/hello:latest", "index.docker.io"},
		"localhost:5000/me/hello:1":   {"localhost:5000/me/hello:1", "localhost:5000/me/hello:1", "localhost:5000"},
		"127.0.0.1:5000/hello":        {"127.0.0.1:5000/hello:latest", "127.0.0.1:5000/hello:latest", "127.0.0.1:5000"},
		"registry.example/a/b/c:v1.0": {"registry.example/a/b/c:v1.0", "registry.example/a/b/c:v1.0", "registry.example"},
	} {
		got, err := ParseImageName(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", s, diff)
		}
	}
	for s, hint := range map[string]string{
		"Hello":       `did you mean "hello"`,
		"hello world": "a name looks like",
		"":            "a name looks like",
		"hello:":      "a name looks like",
		"hello@sha256:" + strings.Repeat("a", 64): "digest is only known",
		"hello:" + strings.Repeat("x", 129):       "a name looks like",
		"../hello":                                "a name looks like",
		"./hello":                                 "a name looks like",
		"-hello":                                  "a name looks like",
	} {
		_, err := ParseImageName(s)
		wantBadInput(t, err, s)
		if got := spec.HintOf(err); !strings.Contains(got, hint) {
			t.Errorf("%s: the hint is %q, want %q in it", s, got, hint)
		}
	}
}

func FuzzParseImageName(f *testing.F) {
	for _, s := range []string{"hello", "a.b/c", "localhost/x:1", "index.docker.io/x", "docker.io/a.b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseImageName(s)
		if err != nil {
			return
		}
		// Both forms mean the same image again.
		for _, form := range []string{n.Short, n.Full} {
			if again, err := ParseImageName(form); err != nil || again != n {
				t.Errorf("%q is %+v, but its form %q is %+v (%v)", s, n, form, again, err)
			}
		}
	})
}

func TestBadInputKeepsItsCause(t *testing.T) {
	cause := errors.New("cause")
	if !errors.Is(badInput(cause, "hint"), cause) {
		t.Error("the cause is lost")
	}
}
