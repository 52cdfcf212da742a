package dockerfile

import (
	"context"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/sandbox"
)

// gitRepository makes a repository of two commits and serves it: by git's own
// server at /smart, as plain files at /dumb, and never at /stuck.
func gitRepository(t *testing.T) (server *httptest.Server, first, second string) {
	t.Helper()
	root := t.TempDir()
	work := filepath.Join(root, "r.git")
	call := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = work
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	write := func(name, body string, mode os.FileMode) {
		file := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("f", "one", 0o644)
	call("init", "-q", "-b", "main")
	call("add", ".")
	call("commit", "-q", "-m", "1")
	first = call("rev-parse", "HEAD")
	call("tag", "-a", "-m", "x", "v1")
	write("f", "two", 0o600)
	write("d/run", "#!", 0o700)
	if err := os.Symlink("/etc", filepath.Join(work, "out")); err != nil {
		t.Fatal(err)
	}
	call("add", ".")
	call("commit", "-q", "-m", "2")
	second = call("rev-parse", "HEAD")
	call("checkout", "-q", "-b", "modules")
	call("update-index", "--add", "--cacheinfo", "160000,"+first+",sub")
	call("commit", "-q", "-m", "3")
	call("checkout", "-q", "main")
	call("update-server-info")
	mux := http.NewServeMux()
	mux.Handle("/smart/", http.StripPrefix("/smart", &cgi.Handler{
		Path: filepath.Join(call("--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root},
	}))
	mux.Handle("/dumb/r.git/", http.StripPrefix("/dumb/r.git/", http.FileServer(http.Dir(filepath.Join(work, ".git")))))
	mux.HandleFunc("/stuck/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	server = httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Setenv("NO_PROXY", "127.0.0.1")
	t.Setenv("no_proxy", "127.0.0.1")
	return server, first, second
}

// TestAddGit: refs, directories and .git of a repository, from servers that can
// give one commit and from those that cannot.
func TestAddGit(t *testing.T) {
	server, first, second := gitRepository(t)
	// A user's settings and credentials are not for a build.
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("GIT_DIR", "/nonexistent")
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, base := overlayMachine(t, sandbox.Tier1F), baseImage(t, v1.Config{})
	build := func(line string) ([]string, error) {
		img, err := buildWith(t, m, order{base: base, dockerfile: "FROM base\nADD " + line}, &heard{})
		if err != nil {
			return nil, err
		}
		return listing(flatten(t, added(t, img, base), 0)), nil
	}
	one := []string{"x/ 5 0755 0:0", "x/f 0 0644 0:0 one"}
	two := []string{"x/ 5 0755 0:0", "x/d/ 5 0755 0:0", "x/d/run 0 0755 0:0 #!", "x/f 0 0644 0:0 two", "x/out 2 0777 0:0 -> /etc"}
	var kept []string
	for _, kind := range []string{"smart", "dumb"} {
		url := server.URL + "/" + kind + "/r.git"
		for line, files := range map[string][]string{
			url + " /x":               two,
			url + "#v1 /x":            one,
			url + "#" + first + " /x": one,
			url + "#main:d /x/":       {"x/ 5 0755 0:0", "x/run 0 0755 0:0 #!"},
			"--exclude=d " + url + "#refs/heads/main: /x":   slices.Delete(slices.Clone(two), 1, 3),
			"--checksum=" + second[:8] + " " + url + " /x":  two,
			"--checksum=" + first + " " + url + "#v1 /x":    one,
			"--checksum=" + second + " " + url + "#main /x": two,
		} {
			got, err := build(line)
			if err != nil {
				t.Errorf("ADD %s: %v", line, err)
				continue
			}
			want(t, line, got, files)
		}
		for line, msg := range map[string]string{
			url + "#none /x": "has no branch or tag none",
			url + "#ain /x":  "has no branch or tag ain",
			url + "#" + strings.Repeat("1", 40) + " /x": strings.Repeat("1", 40),
			url + "#main:out /x":                        "directory out",
			url + "#main:f /x":                          "directory f: not a directory",
			url + "#main:.git /x":                       "directory .git: not a directory",
			url + "#main:../.. /x/":                     "",
			url + "#modules /x":                         "sub is a submodule",
			"--checksum=" + first + " " + url + " /x":   "is commit " + second + ", not --checksum=" + first,
			server.URL + "/gone.git /x":                 "/gone.git: git: exit status 128",
		} {
			if _, err := build(line); (msg == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), msg) {
				t.Errorf("ADD %s: %v, want %q", line, err, msg)
			}
		}
		got, err := build("--keep-git-dir=true " + url + " /x")
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range got {
			if strings.HasPrefix(line, "x/.git/config ") || strings.Contains(line, "remote \"origin\"") {
				got[i] = "config" // names the server
			}
		}
		if kept == nil {
			kept = got
		}
		want(t, "the same .git of the same commit", got, kept)
		if !slices.Contains(got, "x/.git/HEAD 0 0644 0:0 "+second+"\n") {
			t.Errorf("no .git in %q", got)
		}
	}
}

// TestAddGitEnds: what is known by its commit is not fetched again, and a fetch
// that is broken off leaves nothing.
func TestAddGitEnds(t *testing.T) {
	server, first, _ := gitRepository(t)
	m, base := overlayMachine(t, sandbox.Tier1F), baseImage(t, v1.Config{})
	cache := openCache(t, t.TempDir())
	o := order{base: base, cache: cache, dockerfile: "FROM base\nADD " + server.URL + "/smart/r.git#" + first + " /x"}
	if _, err := buildWith(t, m, o, &heard{}); err != nil {
		t.Fatal(err)
	}
	options := order{base: base}.options(t, &heard{})
	ctx, cancel := context.WithCancel(t.Context())
	f, err := Parse([]byte("FROM base\nADD "+server.URL+"/stuck/r.git#"+first+" /x"), "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := f.Build(ctx, m, options)
		result <- err
	}()
	for left, _ := os.ReadDir(options.Scratch); len(left) == 0; left, _ = os.ReadDir(options.Scratch) {
		select {
		case err := <-result:
			t.Fatalf("ended by itself: %v", err)
		default:
		}
	}
	cancel()
	if err := <-result; err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := os.ReadDir(options.Scratch); len(left) != 0 {
		t.Errorf("left in scratch: %v", left)
	}
	server.Close()
	if _, err := buildWith(t, m, o, &heard{}); err != nil {
		t.Errorf("a commit that is cached was asked for again: %v", err)
	}
	m.Network = sandbox.NoNetwork
	if _, err := buildWith(t, m, order{base: base, dockerfile: o.dockerfile}, &heard{}); err == nil || !strings.Contains(err.Error(), "there is no network") {
		t.Errorf("without a network: %v", err)
	}
}
