package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer/layertest"
)

// images opens an archive in both forms, and reads all of what it says it has.
func images(t *testing.T, file string) map[string]error {
	t.Helper()
	errs := map[string]error{}
	for kind, s := range map[string]image.Source{"OCI": OCIArchive{file}, "docker": DockerArchive{file}} {
		img, err := s.Image(t.Context(), "")
		if err == nil {
			err = image.Validate(t.Context(), img, nil)
		}
		errs[kind] = err
	}
	return errs
}

// TestHostileArchives: no archive of the table is an image, alone or before one,
// where it does not change what the image is; and reading it touches nothing.
func TestHostileArchives(t *testing.T) {
	c := layertest.NewCanary(t)
	img := imagetest.Random(t, 2)
	file := filepath.Join(c.Cell, "image.tar")
	honest := map[string][]byte{}
	for kind, p := range map[string]Place{"OCI": OCIArchive{file}, "docker": DockerArchive{file}} {
		if err := p.Write(t.Context(), "app:1", img); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		honest[kind] = b
	}
	for _, a := range layertest.Archives() {
		if err := os.WriteFile(file, a.Tar(c.Outside), 0o600); err != nil {
			t.Fatal(err)
		}
		for kind, err := range images(t, file) {
			if err == nil {
				t.Errorf("%s is an %s archive", a.Name, kind)
			}
		}
		head, ok := a.Entries(c.Outside)
		if !ok {
			continue
		}
		for kind, b := range honest {
			if err := os.WriteFile(file, append(bytes.Clone(head), b...), 0o600); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			err := images(t, file)[kind] // it need not fail, if the image is whole
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("%s before an %s archive: it takes %s", a.Name, kind, took)
			}
			if a.Name == "sparse file with a hole" && (err == nil || !strings.Contains(err.Error(), "sparse")) {
				t.Errorf("%s before an %s archive: %v", a.Name, kind, err)
			}
		}
	}
	c.Check(t)
}

// TestDockerArchiveLeadsNowhere: what manifest.json and links in the archive name
// is looked for in the archive and nowhere else.
func TestDockerArchiveLeadsNowhere(t *testing.T) {
	c := layertest.NewCanary(t)
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + imagetest.Sum([]byte(c.Secret+" canary")).String() + `"]}}`)
	long := strings.Repeat("../", 40)
	type entry struct {
		hdr  tar.Header
		body string
	}
	link := func(to string) entry {
		return entry{hdr: tar.Header{Typeflag: tar.TypeSymlink, Name: "layer.tar", Linkname: to}}
	}
	for name, tc := range map[string]struct {
		layer, config string
		more          []entry
		want          string // in the error
	}{
		"a layer outside":                       {layer: c.Outside + "/canary"},
		"a layer above":                         {layer: long + c.Outside + "/canary"},
		"a layer behind a link":                 {layer: "layer.tar", more: []entry{link(c.Outside + "/canary")}},
		"a layer behind many":                   {layer: "layer.tar", more: []entry{link(long + c.Outside + "/canary")}},
		"a link to itself":                      {layer: "layer.tar", more: []entry{link("layer.tar")}},
		"a hard link outside":                   {layer: "layer.tar", more: []entry{{hdr: tar.Header{Typeflag: tar.TypeLink, Name: "layer.tar", Linkname: c.Outside + "/canary"}}}},
		"a config outside":                      {layer: "layer.tar", config: c.Outside + "/canary"},
		"a layer that is a pipe":                {layer: "layer.tar", more: []entry{{hdr: tar.Header{Typeflag: tar.TypeFifo, Name: "layer.tar"}}}},
		"a layer that is a device":              {layer: "layer.tar", more: []entry{{hdr: tar.Header{Typeflag: tar.TypeChar, Name: "layer.tar", Devmajor: 1, Devminor: 5}}}},
		"a name of a megabyte":                  {layer: "layer.tar", more: []entry{{hdr: tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 1<<19)}}}, want: "a name of more than"},
		"a layer that is the archive's own end": {layer: "layer.tar", more: []entry{{hdr: tar.Header{Typeflag: tar.TypeReg, Name: "layer.tar"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.config == "" {
				tc.config = "config.json"
			}
			manifest, err := json.Marshal([]map[string]any{{"Config": tc.config, "RepoTags": []string{"app:1"}, "Layers": []string{tc.layer}}})
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range append(tc.more, entry{hdr: tar.Header{Name: "config.json"}, body: string(config)}, entry{hdr: tar.Header{Name: "manifest.json"}, body: string(manifest)}) {
				e.hdr.Size, e.hdr.Mode = int64(len(e.body)), 0o644
				if err := w.WriteHeader(&e.hdr); err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(w, e.body)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "image.tar")
			if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := images(t, file)["docker"]; err == nil || strings.Contains(err.Error(), c.Secret) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("it is an image: %v", err)
			}
		})
	}
	c.Check(t)
}
