package python

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/filetree"
)

func TestReadRequirements(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  Requirements
	}{
		"names": {
			map[string]string{"requirements.txt": "\ufeffFlask==2.0.2  # web\r\n\n# comment\nzope.interface>=5\nA_b[x, y]~=1 ; python_version < '4'\nfastapi [standard]\n--index-url https://example.com/simple\npkg==1 \\\n  --hash=sha256:00\n"},
			Requirements{Files: []string{"requirements.txt"}, Names: map[string][]string{
				"flask": nil, "zope-interface": nil, "a-b": {"x", "y"}, "fastapi": {"standard"}, "pkg": nil,
			}},
		},
		"includes": {
			map[string]string{
				"requirements.txt": "-r sub/more.txt\n--constraint=limits.txt\n-r https://example.com/x.txt\n-rrequirements.txt\n",
				"sub/more.txt":     "gunicorn\n-r \"../third.txt\"", "third.txt": "uvicorn", "limits.txt": "left-out==1",
			},
			Requirements{Files: []string{"requirements.txt", "sub/more.txt", "third.txt", "limits.txt"},
				Names: map[string][]string{"gunicorn": nil, "uvicorn": nil}},
		},
		"local": {
			map[string]string{"requirements.txt": "-e .\n./lib\nwheels/x-1.0-py3-none-any.whl\nname @ file:///abs/dir\ngit+https://example.com/r.git@main#egg=My_Pkg\n-f links\nother @ https://example.com/o.whl\n"},
			Requirements{Files: []string{"requirements.txt"}, Names: map[string][]string{"name": nil, "my-pkg": nil, "other": nil},
				Local: []string{".", "lib", "wheels/x-1.0-py3-none-any.whl", "/abs/dir", "links"}},
		},
		"variables": {
			map[string]string{"requirements.txt": "--index-url https://${USER_1}:${TOKEN}@example.com/${TOKEN}\n"},
			Requirements{Files: []string{"requirements.txt"}, Names: map[string][]string{}, Variables: []string{"USER_1", "TOKEN"}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ReadRequirements(filetree.New(t, tt.files), []string{"requirements.txt"})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestReadRequirementsErrors(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"missing":  {},
		"included": {"requirements.txt": "-r none.txt\n"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadRequirements(filetree.New(t, files), []string{"requirements.txt"})
			if !errors.Is(err, os.ErrNotExist) || name == "included" && !strings.Contains(err.Error(), "none.txt") {
				t.Errorf("got %v", err)
			}
		})
	}
	dir := filetree.New(t, nil)
	if err := os.Mkdir(filepath.Join(dir, "requirements.txt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRequirements(dir, []string{"requirements.txt"}); err == nil {
		t.Error("a directory is read as a requirements file")
	}
}

func TestHas(t *testing.T) {
	r := Requirements{Names: map[string][]string{"fast-api": {"standard"}}}
	if !r.Has("x", "Fast_API") || r.Has("x") || !r.HasExtra("fast.api", "standard") || r.HasExtra("fast-api", "all") {
		t.Error("names are not compared as PEP 503 says")
	}
}

// FuzzReadRequirements: whatever a file holds, reading ends, and what is local
// and in the app never leads out of it unless the file says an absolute path or "..".
func FuzzReadRequirements(f *testing.F) {
	for _, seed := range []string{"flask", "-r x", "-e .[dev]", "a @ file:b", "\\\n", "-c\trequirements.txt", "${A}", "x[", "--requirement=", "./#egg=y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "requirements.txt"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := ReadRequirements(dir, []string{"requirements.txt"})
		if err != nil {
			return
		}
		if len(r.Files) == 0 || r.Files[0] != "requirements.txt" {
			t.Errorf("files %q", r.Files)
		}
		for n := range r.Names {
			if n != Normalize(n) || n == "" {
				t.Errorf("name %q is not normalised", n)
			}
		}
		for _, l := range r.Local {
			if !filepath.IsLocal(l) && !filepath.IsAbs(l) {
				t.Errorf("local path %q is neither in the app nor absolute", l)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	failed := errors.New("exit status 1")
	tests := map[string]struct{ said, want, hint string }{
		"no such package": {
			"ERROR: Could not find a version that satisfies the requirement nosuch-pkg==1 (from versions: none)\nERROR: No matching distribution found for nosuch-pkg==1\n",
			"the requirement nosuch-pkg==1 does not exist: the package index has no such package", "spelling",
		},
		"no such version": {
			"ERROR: Could not find a version that satisfies the requirement Flask==99 (from versions: 0.1, 2.0.2, 3.1.0)\n",
			"the requirement Flask==99 has no version that fits: the newest that would do here is 3.1.0", "",
		},
		"one version": {
			"Could not find a version that satisfies the requirement a==2 (from versions: 1.0)", "the newest that would do here is 1.0", "",
		},
		"no network, then no package": {
			"WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError('<...>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/flask/\n" +
				"ERROR: Could not find a version that satisfies the requirement flask (from versions: none)",
			"the package index cannot be reached: its name does not resolve", "--network host",
		},
		"refused": {"[Errno 111] Connection refused", "the package index cannot be reached", "HTTPS_PROXY"},
		"tls":     {"SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate", "not trusted", "CA"},
		"auth":    {"ERROR: HTTP error 401 while getting https://x", "refuses access (HTTP 401)", "PIP_INDEX_URL"},
		"build":   {"error: command 'gcc' failed\nERROR: Could not build wheels for psycopg2, which is required", "the requirement psycopg2 has no wheel", "compiler"},
		"conflict": {
			"ERROR: Cannot install a and b because these package versions have conflicting dependencies.\nERROR: ResolutionImpossible", "contradict", "",
		},
		"syntax":  {"ERROR: Invalid requirement: 'flask=1'", "'flask=1'", ""},
		"disk":    {"OSError: [Errno 28] No space left on device", "no space", ""},
		"unknown": {"something else", "exit status 1", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := Explain(tt.said, failed)
			if !errors.Is(err, failed) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if hint := spec.HintOf(err); !strings.Contains(hint, tt.hint) {
				t.Errorf("hint %q, want %s", hint, tt.hint)
			}
		})
	}
}

func TestDistributions(t *testing.T) {
	dir := filetree.New(t, map[string]string{
		"lib/Flask-2.dist-info/METADATA": "Metadata-Version: 2.1\nName: Flask\nVersion: 2.0.2\nLicense: BSD-3-Clause\n\nName: not-this\n",
		"lib/a_b-1.dist-info/METADATA":   "Name: a_b\nVersion: 1\nLicense-Expression: MIT OR Apache-2.0\nLicense: UNKNOWN\n",
		"lib/c-1.dist-info/METADATA":     "Name: c\nVersion: 1\nLicense: BSD License\n",
		"lib/d.dist-info/RECORD":         "",
	})
	got, err := Distributions(dir, filepath.Join(dir, "lib"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, p := range got {
		lines = append(lines, strings.Join([]string{p.PURL(), p.License, p.LicenseText, p.Location}, "|"))
	}
	want := []string{
		"pkg:pypi/flask@2.0.2|BSD-3-Clause||lib/Flask-2.dist-info/METADATA",
		"pkg:pypi/a-b@1|MIT OR Apache-2.0||lib/a_b-1.dist-info/METADATA",
		"pkg:pypi/c@1||BSD License|lib/c-1.dist-info/METADATA",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
}
