package registry

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnbuild/kiln/internal/image"
)

// What was kept is used when there is nothing left to look it up in, and
// nothing else is looked up.
func TestKeep(t *testing.T) {
	host, other, helped, unknown := memory(t, guarded), memory(t, guarded), memory(t, guarded), memory(t, guarded)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.json")
	asked := filepath.Join(dir, "asked")
	write := func(path, body string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(body), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(config, fmt.Sprintf(`{"auths":{%q:{"auth":%q},"http://%s/v1/":{"auth":%q},"%s/only/this":{"auth":%q}},"credHelpers":{%q:"kilntest",%q:"kilntest"}}`,
		host, basic(), other, basic(), unknown, basic(), helped, "unasked.example"), 0o600)
	write(filepath.Join(dir, "docker-credential-kilntest"), "#!/bin/sh\ncat >> "+asked+"\necho '{\"Username\":\"me\",\"Secret\":\""+secret+"\"}'\n", 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_CONFIG", dir)
	r, _ := newRegistry(t, Options{})
	r.Keep(t.Context(), []string{host + "/app", helped + "/app:1", "IN VALID", ""}, []string{config, filepath.Join(dir, "missing"), asked})
	if err := errors.Join(os.Remove(config), os.Remove(filepath.Join(dir, "docker-credential-kilntest"))); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{host + "/app:1", host + "/another/app", other + "/app", helped + "/app:2", unknown + "/only/this"} {
		if err := r.CheckWrite(t.Context(), ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if err := r.CheckWrite(t.Context(), unknown+"/not/this"); !errors.Is(err, image.ErrUnauthorized) {
		t.Errorf("credentials of one repository for another: %v", err)
	}
	if b, err := os.ReadFile(asked); err != nil || string(b) != helped {
		t.Errorf("the helper was asked for %q %v", b, err)
	}
	// Credentials that come later are not looked at.
	write(config, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, unknown, basic()), 0o600)
	if err := r.CheckWrite(t.Context(), unknown+"/not/this"); !errors.Is(err, image.ErrUnauthorized) {
		t.Errorf("looked up after Keep: %v", err)
	}
}

// A helper that fails is an error for its registry, when that is used.
func TestKeepFailure(t *testing.T) {
	host, good := memory(t, guarded), memory(t, nil)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(fmt.Sprintf(`{"credHelpers":{%q:"nowhere-to-be-found"}}`, host)), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	r, _ := newRegistry(t, Options{})
	r.Keep(t.Context(), []string{host + "/app", good + "/app"}, nil)
	if err := r.CheckWrite(t.Context(), good+"/app"); err != nil {
		t.Error(err)
	}
	if err := r.CheckWrite(t.Context(), host+"/app"); err == nil || !strings.Contains(err.Error(), "nowhere-to-be-found") {
		t.Errorf("%v", err)
	}
}

// Certificates are kept, too.
func TestKeepCertificates(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	memory(t, func(h http.Handler) http.Handler {
		srv.Config.Handler = h
		return h
	})
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := errors.Join(os.Mkdir(filepath.Join(dir, host), 0o755), os.WriteFile(filepath.Join(dir, host, "ca.crt"), ca, 0o644)); err != nil {
		t.Fatal(err)
	}
	for keep, want := range map[bool]bool{true: true, false: false} {
		r, _ := newRegistry(t, Options{})
		r.certDirs = []string{dir}
		if keep {
			r.Keep(t.Context(), []string{host + "/app"}, nil)
		}
		gone := dir + "-gone"
		if err := os.Rename(dir, gone); err != nil {
			t.Fatal(err)
		}
		if err := r.CheckWrite(t.Context(), host+"/app"); (err == nil) != want {
			t.Errorf("kept %t: %v", keep, err)
		}
		if err := os.Rename(gone, dir); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzForeignDocuments: whatever stands in a docker config names registries or
// none, and whatever a registry answers has a media type or none.
func FuzzForeignDocuments(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"x"},"r.example/only/this":{}},"credHelpers":{"h":"x"}}`), "application/json; charset=utf-8")
	f.Add([]byte(`{"auths":null,"credsStore":"x"}`), "")
	f.Add([]byte(`{"schemaVersion":1}`), "text/plain")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), "application/octet-stream")
	f.Add([]byte(`{"mediaType":["x"]}`), "a/b; c")
	file := filepath.Join(f.TempDir(), "config.json")
	f.Fuzz(func(t *testing.T, b []byte, header string) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, host := range named([]string{file, file}) {
			if !strings.Contains(string(b), "auths") {
				t.Errorf("%q is named in %q", host, b)
			}
		}
		if mt := mediaTypeOf(header, b); mt == "" && json.Valid(b) && strings.HasPrefix(strings.TrimSpace(string(b)), "{") && !strings.Contains(strings.ToLower(string(b)), "a") {
			t.Errorf("%q with header %q has no media type", b, header)
		}
	})
}

// A configuration that is a pipe is waited for by nobody, and one without end is
// not read to it.
func TestConfigsThatAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, device := filepath.Join(dir, "pipe"), filepath.Join(dir, "device")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink("/dev/zero", device)); err != nil {
		t.Fatal(err)
	}
	if hosts := named([]string{pipe, device, dir, filepath.Join(dir, "none")}); len(hosts) > 0 {
		t.Errorf("named are %q", hosts)
	}
}
