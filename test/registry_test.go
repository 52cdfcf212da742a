package test

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/test/filetree"
)

// TestRegistry builds with a builder from a registry, into a registry and
// everywhere else.
func TestRegistry(t *testing.T) {
	s := newSite(t)
	t.Run("same image everywhere", func(t *testing.T) { sameEverywhere(t, s) })
	t.Run("pulled once, pushed once", func(t *testing.T) { pulledOncePushedOnce(t, s) })
	t.Run("plain HTTP", func(t *testing.T) { plainHTTP(t, s) })
	t.Run("names of inputs", func(t *testing.T) { namesOfInputs(t, s) })
	t.Run("rebase", func(t *testing.T) { rebases(t, s) })
	t.Run("daemon", func(t *testing.T) { daemons(t, s) })
	t.Run("faults", func(t *testing.T) { faults(t, s) })
}

// build are the arguments of a build at the site.
func (s site) build(image, source string, more ...string) []string {
	return append([]string{"build", image, "--path", source, "--builder", s.addr + "/" + siteBuilder, "--buildpack", s.pack, "--quiet"}, more...)
}

// sameEverywhere: the image ID is equal on every destination, built twice, by
// two users with stores of their own, from two directories.
func sameEverywhere(t *testing.T, s site) {
	ids := map[string]string{}
	first, dir := s.store, t.TempDir()
	ids["store"] = runKiln(t.Context(), t, first, nil, s.build("everywhere", s.source)...).ok(t).id()
	ids["store, again"] = runKiln(t.Context(), t, first, nil, s.build("everywhere", s.source)...).ok(t).id()
	ids["store, from nothing"] = runKiln(t.Context(), t, first, nil, s.build("everywhere", s.source, "--clear-cache")...).ok(t).id()
	elsewhere := filepath.Join(dir, "another", "place")
	if out, err := exec.Command("sh", "-c", `mkdir -p "$2" && cp -r "$1"/. "$2" && chmod 700 "$2" && chmod 600 "$2/app.txt"; chmod 644 "$2/app.txt"; touch -d 2001-01-01 "$2/app.txt"`, "sh", s.source, elsewhere).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ids["another directory, other name"] = runKiln(t.Context(), t, first, nil, s.build("elsewhere", elsewhere)...).ok(t).id()

	second := t.TempDir()
	outputs := []string{"oci:" + dir + "/layout", "oci-archive:" + dir + "/oci.tar", "docker-archive:" + dir + "/docker.tar"}
	args := s.build(s.addr+"/me/everywhere", elsewhere, "--publish")
	for _, o := range outputs {
		args = append(args, "--output", o)
	}
	ids["another store, everything at once"] = runKiln(t.Context(), t, second, nil, args...).ok(t).id()
	ids["registry"] = s.id(t, "me/everywhere")
	for _, o := range append(outputs, "oci:"+first+":everywhere:latest") {
		skopeo(t, "copy", "-q", o, "dir:"+dir+"/copy")
		ids[o] = configDigest(skopeo(t, "inspect", "--config", "--raw", o))
	}
	// The builder as a layout: its run image keeps its name.
	skopeo(t, "copy", "-q", "--src-tls-verify=false", "docker://"+s.addr+"/"+siteBuilder, "oci:"+dir+"/builder")
	ids["builder in a layout"] = runKiln(t.Context(), t, second, nil, "build", "layout", "--path", s.source, "--builder", "oci:"+dir+"/builder", "--buildpack", s.pack, "--quiet").ok(t).id()
	ids["run image by name"] = runKiln(t.Context(), t, second, nil, s.build("run-image", s.source, "--run-image", s.addr+"/"+siteRun)...).ok(t).id()
	if os.Getuid() == 0 {
		ids["another user"] = asAnotherUser(t, s)
	}
	for how, id := range ids {
		if id == "" || id != ids["store"] {
			t.Errorf("%s: the image ID is %q, in the store it was %q", how, id, ids["store"])
		}
	}
}

// asAnotherUser builds as uid 1000, with a store and copies of its own.
func asAnotherUser(t *testing.T, s site) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln-other-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(filepath.Join(dir, "store")) })
	script := `set -e; cd "$1"; cp "$2" kiln; cp -r "$3" source; cp -r "$4" pack; chmod -R go+rX .; chown -R 1000:1000 .`
	if out, err := exec.Command("sh", "-c", script, "sh", dir, filepath.Join(bin, "kiln"), s.source, s.pack).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--inh-caps=-all", dir+"/kiln",
		"build", "everywhere", "--path", dir+"/source", "--builder", s.addr+"/"+siteBuilder, "--buildpack", dir+"/pack", "--quiet")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "KILN_STORE=" + dir + "/store"}
	return runCommand(t, cmd).ok(t).id()
}

// pulledOncePushedOnce: what was pulled stays in the store, and what is in the
// registry is not sent again.
func pulledOncePushedOnce(t *testing.T, s site) {
	store, p := t.TempDir(), s.proxy(t)
	const builder = "base/behind:1"
	s.putBuilder(t, builder, p.addr) // everything by way of the proxy
	args := []string{"build", p.addr + "/me/once", "--path", s.source, "--builder", p.addr + "/" + builder, "--buildpack", s.pack, "--quiet",
		"--publish", "--tag", p.addr + "/me/once:v1", "--tag", p.addr + "/me/twice:v1"}
	first := runKiln(t.Context(), t, store, nil, args...).ok(t)
	sent := p.take()
	if !slices.ContainsFunc(sent, uploads) {
		t.Fatalf("the first publish sent nothing: %v", sent)
	}
	for _, repo := range []string{"me/once:latest", "me/once:v1", "me/twice:v1"} {
		if id := s.id(t, repo); id != first.id() {
			t.Errorf("%s has the ID %s, want %s", repo, id, first.id())
		}
	}
	images := runKiln(t.Context(), t, store, nil, "images", "--all").ok(t)
	for _, want := range []string{p.addr + "/" + builder, p.addr + "/" + siteRun} {
		if !strings.Contains(images.stdout, want) {
			t.Errorf("%s is not kept in the store:\n%s", want, images.stdout)
		}
	}
	second := runKiln(t.Context(), t, store, nil, args...).ok(t)
	if first.id() != second.id() {
		t.Errorf("the second publish made %s, the first %s", second.id(), first.id())
	}
	layers := s.layers(t, "me/once")
	for _, r := range p.take() {
		if uploads(r) {
			t.Errorf("the second publish sent something: %s", r)
		}
		if strings.Contains(r, "/base/") {
			t.Errorf("the second build asked for a base image that it has: %s", r)
		}
		if slices.ContainsFunc(layers, func(l string) bool { return strings.HasPrefix(r, "GET ") && strings.HasSuffix(r, l) }) {
			t.Errorf("the second build read a layer back: %s", r)
		}
	}
}

// uploads tells requests that send something. POST alone only asks whether it
// could be sent.
func uploads(request string) bool {
	return strings.HasPrefix(request, "PUT ") || strings.HasPrefix(request, "PATCH ")
}

// plainHTTP is for loopback, and for registries that were named as insecure.
// 0.0.0.0 is a way to this machine that is not a loopback address.
func plainHTTP(t *testing.T, s site) {
	p := s.proxy(t)
	host, store := "0.0.0.0:"+p.port, s.store
	runKiln(t.Context(), t, store, nil, s.build("plain", s.source)...).ok(t)
	p.take()
	args := s.build(host+"/me/plain", s.source, "--publish")
	got := runKiln(t.Context(), t, store, []string{"DOCKER_CONFIG=" + canary(t, host)}, args...)
	if got.code != 8 || !strings.Contains(got.stderr, host) || !strings.Contains(got.stderr, "--insecure-registry "+host) {
		t.Errorf("exit code %d, want 8 and a hint at --insecure-registry\n%s", got.code, got)
	}
	if seen := p.take(); len(seen) > 0 {
		t.Errorf("requests over plain HTTP: %v", seen)
	}
	runKiln(t.Context(), t, store, nil, append(args, "--insecure-registry", host)...).ok(t)
	if s.digest(t, "me/plain") == "" {
		t.Error("nothing was published")
	}
	// Inputs alike: a builder, and its run image.
	from := []string{"build", "plain", "--path", s.source, "--builder", host + "/" + siteBuilder, "--run-image", host + "/" + siteRun, "--buildpack", s.pack}
	if got := runKiln(t.Context(), t, store, nil, from...); got.code != 8 || !strings.Contains(got.stderr, host+"/"+siteBuilder) {
		t.Errorf("exit code %d, want 8\n%s", got.code, got)
	}
	runKiln(t.Context(), t, store, nil, append(from, "--insecure-registry", host)...).ok(t)
}

// namesOfInputs: no build overwrites what it is made from, and all names of one
// publish are of one registry.
func namesOfInputs(t *testing.T, s site) {
	builder := s.digest(t, siteBuilder)
	run := s.digest(t, siteRun)
	for _, tc := range []struct {
		what string
		args []string
		want string
	}{
		{"builder", s.build(s.addr+"/"+siteBuilder, s.source, "--publish"), "the name of the builder"},
		{"run image", s.build(s.addr+"/"+siteRun, s.source, "--publish"), "the name of the run image"},
		{"named run image", s.build(s.addr+"/other/run", s.source, "--run-image", s.addr+"/other/run:latest"), "the name of the run image"},
		{"tag", s.build(s.addr+"/me/x", s.source, "--publish", "--tag", s.addr+"/"+siteRun), "the name of the run image"},
		{"two registries", s.build(s.addr+"/me/x", s.source, "--publish", "--tag", "127.0.0.1:1/me/x"), "127.0.0.1:1/me/x is not in the registry of"},
	} {
		got := runKiln(t.Context(), t, s.store, nil, tc.args...)
		if got.code != 3 || !strings.Contains(got.stderr, tc.want) {
			t.Errorf("%s: exit code %d, want 3 and %q\n%s", tc.what, got.code, tc.want, got)
		}
	}
	// Files and folders alike.
	layout := t.TempDir() + "/layout"
	skopeo(t, "copy", "-q", "--src-tls-verify=false", "docker://"+s.addr+"/"+siteBuilder, "oci:"+layout)
	got := runKiln(t.Context(), t, s.store, nil, "build", "x", "--path", s.source, "--buildpack", s.pack, "--builder", "oci:"+layout, "--output", "oci:"+layout+"/.")
	if got.code != 3 || !strings.Contains(got.stderr, "where the builder is") {
		t.Errorf("exit code %d, want 3\n%s", got.code, got)
	}
	// The store takes names of any registry.
	runKiln(t.Context(), t, s.store, nil, s.build("names", s.source, "--tag", "registry.example/team/names:1")...).ok(t)
	if s.digest(t, siteBuilder) != builder || s.digest(t, siteRun) != run || s.digest(t, "me/x") != "" {
		t.Error("something was written")
	}
}

// faults: what a registry can do to a build. Each has its exit code, names the
// reference, hints at what to do, moves no tag and prints no credential.
func faults(t *testing.T, s site) {
	store := s.store
	// Not t.Parallel, which goes by the number of cores: most of this is waiting.
	var all sync.WaitGroup
	defer all.Wait()
	start := func(name string, f func(*testing.T)) { all.Go(func() { t.Run(name, f) }) }
	before := runKiln(t.Context(), t, store, nil, s.build(s.addr+"/me/before", s.source, "--publish")...).ok(t).id()
	source := filetree.New(t, map[string]string{"app.txt": "another app\n"})
	const always = -1
	denied := []string{"Www-Authenticate", `Basic realm="test"`}
	for _, tc := range []struct {
		name  string
		rules []*rule
		code  int
		text  string
		hint  string
		// early: known before any buildpack ran.
		early bool
	}{
		{"401", []*rule{{"", "", always, answers(401, denied...)}}, 5, "401", "log in", true},
		{"403 on reading", []*rule{{"HEAD", "/manifests/", always, answers(403)}}, 5, "403", "docker login", true},
		{"403 on writing", []*rule{{"POST", "/uploads/", always, answers(403)}}, 5, "403", "may not write", true},
		{"404 on writing", []*rule{{"POST", "/uploads/", always, answers(404)}}, 4, "404", "to be made", true},
		{"429 for an hour", []*rule{{"", "/v2/me/", always, answers(429, "Retry-After", "3600")}}, 8, "429", "wait", true},
		{"429 for a second", []*rule{{"HEAD", "/blobs/", 1, answers(429, "Retry-After", "1")}}, 0, "", "", false},
		{"500 on reading", []*rule{{"HEAD", "/manifests/", always, answers(500)}}, 8, "500", "try again later", true},
		{"503 on a blob", []*rule{{"PUT", "/uploads/", always, answers(503)}}, 8, "503", "try again later", false},
		{"503 on a manifest", []*rule{{"PUT", "/manifests/", always, answers(503)}}, 8, "503", "try again later", false},
		{"503 on the tag", []*rule{{"PUT", "/manifests/latest", always, answers(503)}}, 8, "503", "try again later", false},
		{"403 on the manifest", []*rule{{"PUT", "/manifests/", always, answers(403)}}, 5, "403", "may not write", false},
		{"passing reset", []*rule{{"PUT", "/uploads/", 2, resets}}, 0, "", "", false},
		{"reset", []*rule{{"PUT", "/uploads/", always, resets}}, 8, "connection", "", false},
		{"reset at once", []*rule{{"", "", always, resets}}, 8, "connection", "", true},
		{"corrupt previous image", []*rule{{"GET", "/manifests/latest", 2, spoils}}, 0, "", "", false},
		{"corrupt on reading back", []*rule{{"GET", "/manifests/sha256", always, spoils}}, 62, "digest", "try again", false},
	} {
		start(tc.name, func(t *testing.T) {
			repo := "me/" + strings.ReplaceAll(tc.name, " ", "-")
			s.copy(t, "me/before", repo)
			p := s.proxy(t, tc.rules...)
			ref := p.addr + "/" + repo
			got := runKiln(t.Context(), t, store, []string{"DOCKER_CONFIG=" + canary(t, p.addr)},
				"build", ref, "--path", source, "--builder", s.addr+"/"+siteBuilder, "--buildpack", s.pack, "--publish", "--verbose")
			checkFault(t, got, tc.code, ref, tc.text, tc.hint)
			if began := strings.Contains(got.stdout, "\nDetect"); began == tc.early {
				t.Errorf("detection began: %t\n%s", began, got)
			}
			after := s.id(t, repo)
			if moved := after != before; moved != (tc.code == 0) {
				t.Errorf("the tag moved: %t", moved)
			}
			if n := len(p.take()); n == 0 {
				t.Error("the registry was never asked")
			}
		})
	}
	for _, tc := range []struct {
		name  string
		rules []*rule
		code  int
		text  string
		hint  string
	}{
		{"401", []*rule{{"", "", always, answers(401, denied...)}}, 5, "401", "log in"},
		{"403", []*rule{{"GET", "/manifests/", always, answers(403)}}, 5, "403", "docker login"},
		{"404", []*rule{{"GET", "/manifests/", always, answers(404)}}, 4, "neither in the store nor in its registry", "kiln images"},
		{"429", []*rule{{"GET", "/manifests/", always, answers(429, "Retry-After", "3600")}}, 8, "429", "wait"},
		{"503", []*rule{{"GET", "/blobs/", always, answers(503)}}, 8, "503", "try again later"},
		{"flipped layer", []*rule{{"GET", "/blobs/", always, spoils}}, 1, "digest", "try again"},
	} {
		start("builder "+tc.name, func(t *testing.T) {
			p := s.proxy(t, tc.rules...)
			ref, fresh := p.addr+"/"+siteBuilder, t.TempDir()
			got := runKiln(t.Context(), t, fresh, []string{"DOCKER_CONFIG=" + canary(t, p.addr)}, "build", "x", "--path", source, "--builder", ref, "--buildpack", s.pack, "--verbose")
			checkFault(t, got, tc.code, ref, tc.text, tc.hint)
			if images := runKiln(t.Context(), t, fresh, nil, "images", "--all", "--quiet").ok(t); images.stdout != "" {
				t.Errorf("something got a name:\n%s", images)
			}
		})
	}
	start("one of several outputs", func(t *testing.T) {
		p := s.proxy(t, &rule{"PUT", "/manifests/", always, answers(403)})
		ref, file := p.addr+"/me/several", filepath.Join(t.TempDir(), "image.tar")
		got := runKiln(t.Context(), t, store, nil, s.build(ref, s.source, "--publish", "--output", "oci-archive:"+file)...)
		checkFault(t, got, 5, ref, "to the registry: ", "may not write")
		if !strings.Contains(got.stderr, "; it was written to oci-archive:"+file) {
			t.Errorf("the error does not say what was written:\n%s", got.stderr)
		}
		if id := configDigest(skopeo(t, "inspect", "--config", "--raw", "oci-archive:"+file)); id != before {
			t.Errorf("the archive has %s, want %s", id, before)
		}
		if s.digest(t, "me/several") != "" {
			t.Error("something was tagged")
		}
	})
	start("closed port", func(t *testing.T) {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		ref := "127.0.0.1:" + port + "/me/closed"
		got := runKiln(t.Context(), t, store, []string{"DOCKER_CONFIG=" + canary(t, "127.0.0.1:"+port)}, s.build(ref, s.source, "--publish")...)
		checkFault(t, got, 8, ref, "connection refused", "nothing listens there")
	})
	start("no such host", func(t *testing.T) {
		ref := "registry.invalid/me/app"
		got := runKiln(t.Context(), t, store, []string{"DOCKER_CONFIG=" + canary(t, "registry.invalid")}, s.build(ref, s.source, "--publish")...)
		checkFault(t, got, 8, ref, "registry.invalid", "check")
	})
}

func checkFault(t *testing.T, got ran, code int, ref, text, hint string) {
	t.Helper()
	if got.code != code {
		t.Errorf("exit code %d, want %d\n%s", got.code, code, got)
	}
	if code != 0 && (!strings.Contains(got.stderr, ref) || !strings.Contains(got.stderr, text)) {
		t.Errorf("the error does not say %q and %q:\n%s", ref, text, got.stderr)
	}
	if hint != "" && !strings.Contains(after(got.stderr, "hint: "), hint) {
		t.Errorf("the hint does not say %q:\n%s", hint, got.stderr)
	}
	for _, secret := range []string{canaryPassword, base64.StdEncoding.EncodeToString([]byte(canaryUser + ":" + canaryPassword))} {
		if strings.Contains(got.String(), secret) {
			t.Errorf("a credential was printed:\n%s", got)
		}
	}
}

func after(s, sep string) string {
	_, rest, _ := strings.Cut(s, sep)
	return rest
}

const (
	canaryUser     = "canary"
	canaryPassword = "tweet-tweet-" + "0451"
)

// canary is a docker configuration with credentials that nobody must see.
func canary(t *testing.T, host string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(canaryUser + ":" + canaryPassword))
	content := fmt.Sprintf(`{"auths":{%s:{"auth":%s}}}`, strconv.Quote(host), strconv.Quote(auth))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
