package test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/test/conform"
)

// credentials: a buildpack that looks everywhere for the credentials of the
// registry finds none, and afterwards they are in nothing that a build leaves.
func credentials(t *testing.T, w *world) {
	locked, app := w.locked(t), probedApp()
	probe := w.probeBuilder(t, worldBuilder)
	auth := []string{"--env", `CNB_REGISTRY_AUTH={"` + locked + `":"` + basicAuth() + `"}`}

	t.Run("five phases", func(t *testing.T) {
		conform.Covers(t, 8)
		p := w.place(t, probe, "secret/five", app)
		p.image, p.secrets = locked+"/secret/five", auth
		phases := fivePhases(p)
		for i := range phases {
			phases[i] = slices.Insert(phases[i], 1, "-log-level", "debug")
		}
		said := w.phases(t, p, nil, phases)
		foundNothing(t, said)
		w.clean(t, "secret/five", said, p.dir)
	})
	t.Run("creator", func(t *testing.T) {
		p := w.place(t, probe, "secret/creator", app)
		p.image, p.secrets = locked+"/secret/creator", auth
		said := w.phases(t, p, nil, [][]string{{"creator", "-log-level", "debug", "-cache-dir", "/cache", p.image}})
		foundNothing(t, said)
		w.clean(t, "secret/creator", said, p.dir)
	})
	// What the build user may read, a buildpack may not, if it is credentials and
	// Landlock can hide them: where nobody may make files beside.
	t.Run("creator with a readable file", func(t *testing.T) {
		p := w.place(t, probe, "secret/file", app)
		p.image, p.secrets = locked+"/secret/file", []string{"--volume", dockerConfig(t, locked) + ":/creds:ro", "--env", "DOCKER_CONFIG=/creds"}
		said := w.phases(t, p, nil, [][]string{{"creator", "-log-level", "debug", p.image}})
		foundNothing(t, said)
		w.clean(t, "secret/file", said, p.dir)
	})
	// Where it cannot, that is said; and the probe finds what can be found.
	t.Run("creator with a file in a place of everybody's", func(t *testing.T) {
		p := w.place(t, probe, "secret/open", app)
		p.image, p.secrets = locked+"/secret/open", []string{"--volume", dockerConfig(t, locked) + ":/tmp/creds:ro", "--env", "DOCKER_CONFIG=/tmp/creds"}
		said := w.phases(t, p, nil, [][]string{{"creator", "-log-level", "debug", p.image}})
		has(t, said, "these can be read: /tmp/creds/config.json")
		for line := range strings.Lines(said) {
			if strings.Contains(line, "FOUND") && !strings.HasSuffix(strings.TrimSpace(line), "in /tmp/creds/config.json") {
				t.Errorf("the probe says %s", line)
			}
		}
		for _, phase := range strings.SplitAfter(said, "detect looked at")[:2] {
			has(t, phase, "in /tmp/creds/config.json")
		}
		w.clean(t, "secret/open", "", p.dir)
	})
	if os.Getuid() == 0 {
		// That is why creator may start as root: then the file need not be readable.
		t.Run("creator with a file of root's", func(t *testing.T) {
			conform.Covers(t, 10)
			p := w.place(t, probe, "secret/root", app)
			p.image, p.secrets = locked+"/secret/root", append(asRoot(), "--volume", canary(t, locked)+":/creds:ro", "--env", "DOCKER_CONFIG=/creds")
			said := w.phases(t, p, nil, [][]string{{"creator", "-uid", "1000", "-gid", "1000", "-log-level", "debug", p.image}})
			foundNothing(t, said)
			w.clean(t, "secret/root", said, p.dir)
		})
	}
	t.Run("kiln build", func(t *testing.T) {
		credentialsOfKiln(t, w, locked, w.probeBuilder(t, smallBuilder, probeExtension()...))
	})
}

// secrets are the canary in every form that it may be found in.
func secrets() [][]byte {
	list := [][]byte{[]byte(canaryPassword), []byte(hex.EncodeToString([]byte(canaryPassword)))}
	// Base64 in the middle of something depends on what stands before.
	for _, before := range []string{canaryUser + ":", "", "x", "xx"} {
		encoded := base64.StdEncoding.EncodeToString([]byte(before + canaryPassword))
		list = append(list, []byte(encoded[len(before)*8/6+2:len(encoded)-4]))
	}
	return list
}

// probedApp tells the probe what to look for.
func probedApp() map[string]string {
	var lines strings.Builder
	for _, s := range secrets() {
		s = slices.Clone(s)
		slices.Reverse(s)
		fmt.Fprintln(&lines, hex.EncodeToString(s))
	}
	return map[string]string{"secrets": lines.String()}
}

// probeBuilder is a builder with the probe as its only buildpack; more has its order,
// if it is another one.
func (w *world) probeBuilder(t *testing.T, base string, more ...layer.File) (repo string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	files := packed("/cnb/buildpacks/test_probe", "1.0.0", map[string]string{
		"buildpack.toml": "api = \"0.12\"\n[buildpack]\nid = \"test/probe\"\nversion = \"1.0.0\"\n", "bin/detect": string(body), "bin/build": string(body),
	})
	if len(more) == 0 {
		more = []layer.File{{Path: "/cnb/order.toml", Mode: 0o644, Body: []byte("[[order]]\n[[order.group]]\nid = \"test/probe\"\nversion = \"1.0.0\"\n")}}
	}
	files = append(files, more...)
	repo = strings.TrimSuffix(base, ":1") + "-probe:1"
	w.push(t, repo, w.with(t, base, files...))
	return repo
}

// foundNothing: the probe was there, in detect, in build and wherever else, and
// found nothing.
func foundNothing(t *testing.T, said string, more ...string) {
	t.Helper()
	for _, step := range append(more, "detect", "build") {
		has(t, said, step+" looked at")
	}
	hasNot(t, said, "FOUND")
}

// clean: no secret is in the image, in what was said, or below the folders.
func (w *world) clean(t *testing.T, repo, said string, dirs ...string) {
	t.Helper()
	look := func(where string, b []byte) {
		for i, s := range secrets() {
			if bytes.Contains(b, s) {
				t.Errorf("secret %d is in %s", i, where)
			}
		}
	}
	look("what was said", []byte(said))
	img := w.pull(t, repo)
	for where, raw := range map[string]func() ([]byte, error){"the manifest": img.RawManifest, "the config": img.RawConfigFile} {
		b, err := raw()
		if err != nil {
			t.Fatal(err)
		}
		look(where, b)
	}
	for i, l := range layersOf(t, img)[runLayers(t, img):] {
		look(fmt.Sprintf("layer %d", i), uncompressed(t, l))
	}
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			files++
			look(path, b)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files == 0 {
		t.Errorf("there is nothing in %q", dirs)
	}
}
