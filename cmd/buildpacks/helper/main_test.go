package main

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

func from(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

func TestPort(t *testing.T) {
	for name, tt := range map[string]struct{ env, want map[string]string }{
		"none": {map[string]string{}, map[string]string{}},
		"port": {map[string]string{"PORT": "81"}, map[string]string{"FLASK_RUN_PORT": "81", "UVICORN_PORT": "81"}},
		"set":  {map[string]string{"PORT": "81", "FLASK_RUN_PORT": "82"}, map[string]string{"UVICORN_PORT": "81"}},
	} {
		vars, _, err := run("port", from(tt.env))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, v := range vars {
			got[v.name] = v.value
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, _, err := run("other", from(nil)); err == nil {
		t.Error("any name will do")
	}
}

func put(t *testing.T, path string, body []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o644); err != nil {
		t.Fatal(err)
	}
}

func certificate(body string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(body)})
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	root := filepath.Join(dir, "bindings")
	one, two, three := certificate("one"), certificate("two"), certificate("three")
	put(t, filepath.Join(root, "corp", "type"), []byte("CA-Certificates\n"))
	put(t, filepath.Join(root, "corp", "b.pem"), append([]byte("text before\n"), two...))
	put(t, filepath.Join(root, "corp", "a.pem"), one)
	put(t, filepath.Join(root, "other", "type"), []byte("postgresql"))
	put(t, filepath.Join(root, "other", "password"), []byte("x"))
	system := filepath.Join(dir, "system.pem")
	put(t, system, bytes.TrimSpace(three))

	vars, note, err := run("ca-certificates", from(map[string]string{
		"SERVICE_BINDING_ROOT": root, "SSL_CERT_FILE": system, "CURL_CA_BUNDLE": "mine",
	}))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range vars {
		got[v.name] = v.value
	}
	path := got["SSL_CERT_FILE"]
	if got["REQUESTS_CA_BUNDLE"] != path || got["NODE_EXTRA_CA_CERTS"] != path || got["CURL_CA_BUNDLE"] != "" || !strings.Contains(note, "2 CA certificates") {
		t.Errorf("%v, %q", got, note)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := string(three) + string(one) + string(two); string(text) != want {
		t.Errorf("the bundle is\n%s\nwant\n%s", text, want)
	}

	put(t, filepath.Join(root, "corp", "c.pem"), []byte("no certificate"))
	if _, _, err := run("ca-certificates", from(map[string]string{"SERVICE_BINDING_ROOT": root})); err == nil || !strings.Contains(err.Error(), "c.pem") {
		t.Errorf("a secret that is no certificate: %v", err)
	}
	for _, env := range []map[string]string{{}, {"SERVICE_BINDING_ROOT": filepath.Join(dir, "none")}} {
		if vars, note, err := run("ca-certificates", from(env)); len(vars) > 0 || note != "" || err != nil {
			t.Errorf("without bindings: %v %q %v", vars, note, err)
		}
	}
}

// FuzzQuote: what is written is TOML that reads back as it was.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a b", `"\`, "\x00\t\n\x7f", "ä€"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if s != strings.ToValidUTF8(s, "") {
			return // TOML is UTF-8
		}
		var got map[string]string
		if err := toml.Unmarshal([]byte(document([]variable{{"A", s}})), &got); err != nil || got["A"] != s {
			t.Errorf("%q is read as %q, %v", s, got["A"], err)
		}
	})
}
