package platform

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/reference"
)

// tree lists what is below dir, links with where they lead.
func listing(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if !d.Type().IsRegular() {
			rel += " " + d.Type().String()
		}
		list = append(list, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// From every place the same files; of an image in a registry one layer is read.
func TestDownloadSBOM(t *testing.T) {
	f := newFleet(t)
	host, seen := f.registry()
	app := reference.App{Run: runOf(t, "1"), Image: "run", Reference: "r"}.Make(t)
	f.push(host+"/app", app)
	f.ok(f.Store.Write(t.Context(), "app", app))
	dir := t.TempDir()
	f.ok(archive.Layout{Dir: filepath.Join(dir, "layout")}.Write(t.Context(), "x", app))
	f.ok(archive.DockerArchive{Path: filepath.Join(dir, "docker.tar")}.Write(t.Context(), "x", app))
	want := []string{"layers/sbom/launch/acme_a/dep/sbom.cdx.json", "layers/sbom/launch/sbom.legacy.json"}
	for _, tc := range []struct {
		ref    string
		remote bool
	}{{"app", false}, {host + "/app", false}, {host + "/app", true}, {"oci:" + dir + "/layout", false}, {"docker-archive:" + dir + "/docker.tar", false}} {
		seen.clear()
		to := filepath.Join(t.TempDir(), "new", "dir")
		files, err := f.DownloadSBOM(t.Context(), tc.ref, tc.remote, nil, to)
		f.ok(err)
		if d := cmp.Diff(want, files); d != "" {
			t.Errorf("%s (-want +got)\n%s", tc.ref, d)
		}
		if d := cmp.Diff(want, listing(t, to)); d != "" {
			t.Errorf("%s: in the directory (-want +got)\n%s", tc.ref, d)
		}
		body, err := os.ReadFile(filepath.Join(to, want[0]))
		if err != nil || !strings.Contains(string(body), "CycloneDX") {
			t.Errorf("%s %v", body, err)
		}
		if n := seen.take("GET /v2/app/blobs/"); strings.HasPrefix(tc.ref, host) && n != 2 {
			t.Errorf("%d blobs were read, want config and one layer", n)
		}
	}
	// --remote does not look into the store.
	f.ok(f.Store.Write(t.Context(), host+"/only-here", app))
	if _, err := f.DownloadSBOM(t.Context(), host+"/only-here", true, nil, dir); !errors.Is(err, image.ErrNotFound) {
		t.Error(err)
	}
	if _, err := f.DownloadSBOM(t.Context(), host+"/nowhere", false, nil, dir); !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), "neither in the store") {
		t.Error(err)
	}
	if _, err := f.DownloadSBOM(t.Context(), "oci:"+dir+"/layout", true, nil, dir); spec.ExitCode(err, 0) != spec.ExitInvalidArgs {
		t.Error(err)
	}
}

func TestDownloadSBOMRefuses(t *testing.T) {
	f := newFleet(t)
	plain := runOf(t, "1")
	with := func(change func(string) string, config func(*v1.ConfigFile)) v1.Image {
		return reference.App{Run: plain, Image: "run", Reference: "r", Label: change, Config: config}.Make(t)
	}
	sbom := func(value string) func(string) string {
		return func(s string) string {
			before, rest, _ := strings.Cut(s, `"sbom":{"sha":"`)
			_, rest, _ = strings.Cut(rest, `"}`)
			return before + `"sbom":` + value + rest
		}
	}
	for name, tc := range map[string]struct {
		img  v1.Image
		want string
	}{
		"no label":      {plain, "no label io.buildpacks.lifecycle.metadata"},
		"no JSON":       {with(func(string) string { return "{" }, nil), "unexpected EOF"},
		"no SBOM":       {with(sbom("null"), nil), "no SBOM layer"},
		"odd SBOM":      {with(sbom("7"), nil), "sbom: "},
		"no digest":     {with(sbom(`{"sha":"x"}`), nil), "label io.buildpacks.lifecycle.metadata: "},
		"other layer":   {with(sbom(`{"sha":"sha256:`+strings.Repeat("0", 64)+`"}`), nil), "lacks the SBOM layer"},
		"layers moved":  {with(nil, func(c *v1.ConfigFile) { c.Config.Env = append(c.Config.Env, "CNB_LAYERS_DIR=/elsewhere") }), "no file in /elsewhere/sbom"},
		"layers of app": {with(func(s string) string { return strings.ReplaceAll(s, `"sbom":`, `"x":`) }, nil), "no SBOM layer"},
	} {
		f.ok(f.Store.Write(t.Context(), "app", tc.img))
		dir := t.TempDir()
		_, err := f.DownloadSBOM(t.Context(), "app", false, nil, dir)
		if err == nil || !strings.Contains(err.Error(), tc.want) || spec.ExitCode(err, 0) != spec.ExitInvalidArgs || spec.HintOf(err) == "" {
			t.Errorf("%s: error %v (exit code %d, hint %q), want %q", name, err, spec.ExitCode(err, 0), spec.HintOf(err), tc.want)
		}
		if left := listing(t, dir); left != nil {
			t.Errorf("%s: left behind: %q", name, left)
		}
	}
}

// What is in the way in dir is replaced, not followed.
func TestWriteSBOMsFollowsNoLink(t *testing.T) {
	top := t.TempDir()
	outside, dir := filepath.Join(top, "outside"), filepath.Join(top, "dir")
	body := sbomTar(t)
	for _, d := range []string{outside, dir + "/layers/sbom/launch"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(outside+"/secret", []byte("s"), 0o600), os.Symlink(outside+"/secret", dir+"/layers/sbom/launch/good.json")); err != nil {
		t.Fatal(err)
	}
	files, err := writeSBOMs(t.Context(), dir, bytes.NewReader(body), "/layers/sbom")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"layers/sbom/launch/good.json"}
	if !slices.Equal(files, want) || !slices.Equal(listing(t, dir), want) {
		t.Errorf("%q, and in the directory %q", files, listing(t, dir))
	}
	if err := errors.Join(os.RemoveAll(dir+"/layers"), os.Symlink(outside, dir+"/layers")); err != nil {
		t.Fatal(err)
	}
	if _, err := writeSBOMs(t.Context(), dir, bytes.NewReader(body), "/layers/sbom"); err == nil {
		t.Error("a link out of the directory was followed")
	}
	if b, err := os.ReadFile(outside + "/secret"); err != nil || string(b) != "s" || len(listing(t, outside)) != 1 {
		t.Errorf("outside: %q %q %v", listing(t, outside), b, err)
	}
}

func sbomTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "/layers/sbom/launch/good.json", Typeflag: tar.TypeReg, Mode: 0o644}), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A layer that turns out damaged leaves nothing.
func TestWriteSBOMsAllOrNothing(t *testing.T) {
	damaged := errors.New("damaged")
	body := sbomTar(t)
	for name, r := range map[string]io.Reader{
		"at the end": io.MultiReader(bytes.NewReader(body), failing{damaged}),
		"cut":        io.MultiReader(bytes.NewReader(body[:500]), failing{damaged}),
	} {
		dir := t.TempDir()
		if _, err := writeSBOMs(t.Context(), dir, r, "/layers/sbom"); !errors.Is(err, damaged) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v %v", name, left, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := writeSBOMs(t.Context(), file, bytes.NewReader(body), "/layers/sbom"); spec.ExitCode(err, 0) != spec.ExitInvalidArgs || spec.HintOf(err) == "" {
		t.Errorf("into a file: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
