package phase

import (
	"archive/tar"
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// instruction is the layer of one instruction of a Dockerfile, made at a time.
func instruction(t testing.TB, at time.Time, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, hdr := range headers {
		hdr.ModTime, hdr.AccessTime, hdr.ChangeTime, hdr.Format = at, at, at, tar.FormatPAX
		body := hdr.Linkname
		if hdr.Typeflag == tar.TypeReg {
			hdr.Size, hdr.Linkname = int64(len(body)), ""
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if hdr.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// curl is what an extension that installs curl leaves.
func curl(t testing.TB, at time.Time) []byte {
	return instruction(t, at, tar.Header{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/curl", Mode: 0o755, Linkname: "curl", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		tar.Header{Typeflag: tar.TypeLink, Name: "usr/bin/curl2", Linkname: "usr/bin/curl"},
		tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.gone"}, tar.Header{Typeflag: tar.TypeReg, Name: "var/x", Uid: 33, Gid: 33, Mode: 0o640})
}

// extendedRun is the run image as extensions leave it: a layer for each
// instruction, gzipped, and another config.
func extendedRun(t *testing.T, run v1.Image, layers ...[]byte) v1.Image {
	t.Helper()
	var adds []image.Addition
	for _, body := range layers {
		adds = append(adds, image.Addition{Layer: imagetest.Gzip(t, body), History: v1.History{CreatedBy: CreatedByExtension("RUN apt-get install curl ", "acme/curl")}})
	}
	img, err := image.Append(run, adds, func(c *v1.ConfigFile) {
		c.Config.Env = append(c.Config.Env, "CURL_HOME=/etc")
		c.Config.User = "33:33"
		c.Config.Labels["extended"] = "yes"
		c.Config.Labels[spec.RebasableLabel] = "false"
		c.History = append(c.History, v1.History{CreatedBy: "ENV CURL_HOME", EmptyLayer: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// withoutBase hides the layers of the base: a sparse image has none of them.
type withoutBase struct {
	v1.Image
	base int
}

func (s withoutBase) Layers() ([]v1.Layer, error) {
	layers, err := s.Image.Layers()
	for i := range s.base {
		layers[i] = unreadableLayer{layers[i]}
	}
	return layers, err
}

type unreadableLayer struct{ v1.Layer }

func (unreadableLayer) Uncompressed() (io.ReadCloser, error) { return nil, io.ErrUnexpectedEOF }
func (unreadableLayer) Compressed() (io.ReadCloser, error)   { return nil, io.ErrUnexpectedEOF }

func TestAssembleOnExtendedRunImage(t *testing.T) {
	conform.Covers(t, 128, 149, 160)
	x := newSite(t)
	x.group.GroupExtensions = []spec.GroupElement{{ID: "acme/curl", Version: "1"}}
	x.file("layers", "acme_a/dep.toml", types("launch"))
	x.file("layers", "acme_a/dep/f", "x")
	plain := x.assemble()
	on := func(day int) func(*Input) {
		at := time.Date(2026, 1, day, 1, 2, 3, 4567, time.UTC)
		second := instruction(t, at, tar.Header{Typeflag: tar.TypeReg, Name: "second", Linkname: "2"})
		return func(in *Input) { in.Extended = withoutBase{extendedRun(t, x.run, curl(t, at), second), 2} }
	}
	out := x.assemble(on(1))
	if again := x.assemble(on(2)); imagetest.ID(t, again.Image) != imagetest.ID(t, out.Image) {
		t.Error("the day on which an extension ran is in the image")
	}

	got, want := config(t, out.Image), config(t, plain.Image)
	diffIDs := got.RootFS.DiffIDs
	if !slices.Equal(diffIDs[:2], want.RootFS.DiffIDs[:2]) || !slices.Equal(diffIDs[4:], want.RootFS.DiffIDs[2:]) {
		t.Errorf("layers\n%v, those of the plain image\n%v", diffIDs, want.RootFS.DiffIDs)
	}
	var history []string
	for _, h := range got.History {
		history = append(history, h.CreatedBy)
		if !h.Created.Time.Equal(layer.ModTime) {
			t.Errorf("%s: created %v", h.CreatedBy, h.Created)
		}
	}
	wantHistory := []string{"base", "more base", "Layer: 'RUN apt-get install curl', Created by extension: acme/curl", "Layer: 'RUN apt-get install curl', Created by extension: acme/curl",
		"Layer: 'dep', Created by buildpack: acme/a@1.0.0", "Application Layer", "Buildpacks Application Launcher", "Buildpacks Launcher Config", "Buildpacks Process Types"}
	if diff := cmp.Diff(wantHistory, history); diff != "" {
		t.Errorf("history: %s", diff)
	}

	layers, err := out.Image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"5 usr/bin/ 755 0:0", "0 usr/bin/curl 755 0:0", "1 usr/bin/curl2->usr/bin/curl 0 0:0", "0 etc/.wh.gone 0 0:0", "0 var/x 640 33:33"}, tarNames(t, layers[2])); diff != "" {
		t.Errorf("layer of the extension: %s", diff)
	}
	c := got.Config
	if c.User != "33:33" || c.Labels["extended"] != "yes" || c.Labels[spec.RebasableLabel] != "false" || !slices.Contains(c.Env, "CURL_HOME=/etc") ||
		!slices.Contains(c.Env, "CNB_APP_DIR=/workspace") || c.WorkingDir != "/workspace" || !slices.Equal(c.Entrypoint, []string{"/cnb/process/web"}) {
		t.Errorf("config %+v", c)
	}
	md, err := spec.DecodeLifecycleMetadata(c.Labels[spec.LifecycleMetadataLabel])
	if err != nil {
		t.Fatal(err)
	}
	if want := config(t, x.run).RootFS.DiffIDs[1].String(); md.RunImage.TopLayer != want {
		t.Errorf("top layer %s, want that of the run image, %s", md.RunImage.TopLayer, want)
	}
	if base := config(t, x.run); base.Config.User != "1000:1000" || base.Config.Labels["extended"] != "" {
		t.Error("the run image itself was changed")
	}

	// A second build takes the layers from where they are.
	x.export(on(1))
	x.fresh()
	x.restore()
	x.file("layers", "acme_a/dep.toml", types("launch"))
	x.file("layers", "acme_a/dep/f", "x")
	x.events = events{}
	if again := x.assemble(on(3)); imagetest.ID(t, again.Image) != imagetest.ID(t, out.Image) {
		t.Error("the second build differs")
	}
	for _, name := range []string{"image extension 1", "image extension 2"} {
		if action := x.layerEvents()[name].Action; action != "reused" {
			t.Errorf("%s is %q", name, action)
		}
	}
}

// An extension that only changes the config adds no layer.
func TestAssembleOnExtendedConfig(t *testing.T) {
	x := newSite(t)
	plain := config(t, x.assemble().Image)
	out := config(t, x.assemble(func(in *Input) { in.Extended = extendedRun(t, x.run) }).Image)
	if !slices.Equal(plain.RootFS.DiffIDs, out.RootFS.DiffIDs) || out.Config.User != "33:33" {
		t.Errorf("%+v", out)
	}
}

func TestAssembleRefusesStrangeExtensions(t *testing.T) {
	x := newSite(t)
	other := imagetest.Random(t, 3)
	few := imagetest.Random(t, 1)
	arm, err := image.Append(x.run, nil, func(c *v1.ConfigFile) { c.Architecture = "arm64" })
	if err != nil {
		t.Fatal(err)
	}
	body := curl(t, time.Unix(0, 0))
	for name, tt := range map[string]struct {
		extended v1.Image
		want     string
	}{
		"of another image": {other, "extends another image"},
		"too few layers":   {few, "extends another image"},
		"another machine":  {arm, "it is for linux/arm64, the run image for linux/amd64"},
		"a layer is gone":  {imagetest.With(t, x.run, unreadableLayer{imagetest.Layer(t, body)}), "unexpected EOF"},
		"a layer lies":     {imagetest.With(t, x.run, imagetest.Broken{Tar: body, Extra: []byte("more")}), "damaged"},
		"no tar":           {imagetest.With(t, x.run, imagetest.Layer(t, []byte(strings.Repeat("x", 2048)))), "read layer"},
		"config is broken": {unreadable{x.run}, "unexpected EOF"},
	} {
		in := x.input()
		in.Extended = tt.extended
		_, err := Assemble(t.Context(), x.store, in, &x.events)
		if spec.ExitCode(err, 0) != spec.ExitExport || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// An image that says nothing of how it was made is extended all the same.
func TestAssembleOnExtendedImageWithoutHistory(t *testing.T) {
	x := newSite(t)
	extended := extendedRun(t, x.run, curl(t, time.Unix(0, 0)))
	silent := config(t, extended)
	silent.History = nil
	out := x.assemble(func(in *Input) { in.Extended = reconfigured{extended, silent} })
	if h := config(t, out.Image).History; len(h) != 7 || h[2].CreatedBy != "" || h[3].CreatedBy != "Application Layer" {
		t.Errorf("%+v", h)
	}
}

type reconfigured struct {
	v1.Image
	config *v1.ConfigFile
}

func (r reconfigured) ConfigFile() (*v1.ConfigFile, error) { return r.config, nil }

// Whatever extensions add, a rebase puts another run image below it and keeps
// it, and a rebase back undoes that.
func TestRebaseKeepsExtensions(t *testing.T) {
	x := newSite(t)
	newer, err := image.Append(x.run, []image.Addition{{Layer: imagetest.Layer(t, curl(t, time.Unix(1, 0))), History: v1.History{CreatedBy: "newer"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(r *rapid.T) {
		var layers [][]byte
		for i := range rapid.IntRange(0, 4).Draw(r, "layers") {
			layers = append(layers, instruction(t, time.Unix(int64(i), 0), tar.Header{Typeflag: tar.TypeReg, Name: "f", Linkname: rapid.String().Draw(r, "content")}))
		}
		extended := extendedRun(t, x.run, layers...)
		in := x.input()
		in.Extended = extended
		out, err := Assemble(t.Context(), x.store, in, &x.events)
		if err != nil {
			r.Fatal(err)
		}
		rebased, err := Rebase(out.Image, NewBase{Image: newer, Name: runName, Reference: "registry.example.com/base/run@sha256:" + strings.Repeat("1", 64)}, true, &x.events)
		if err != nil {
			r.Fatal(err)
		}
		before, after := config(t, out.Image).RootFS.DiffIDs, config(t, rebased).RootFS.DiffIDs
		if !slices.Equal(after[:3], config(t, newer).RootFS.DiffIDs) || !slices.Equal(after[3:], before[2:]) {
			r.Fatalf("rebased to\n%v\nfrom\n%v", after, before)
		}
		md, err := spec.DecodeLifecycleMetadata(config(t, out.Image).Config.Labels[spec.LifecycleMetadataLabel])
		if err != nil {
			r.Fatal(err)
		}
		back, err := Rebase(rebased, NewBase{Image: x.run, Name: runName, Reference: md.RunImage.Reference}, true, &x.events)
		if err != nil {
			r.Fatal(err)
		}
		if !slices.Equal(config(t, back).RootFS.DiffIDs, before) {
			r.Fatal("there and back is not the same")
		}
	})
}
