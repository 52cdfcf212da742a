package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kilnbuild/kiln/internal/daemon/daemontest"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/spec"
)

func TestContract(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		d := open(t, Options{Host: host})
		imagetest.Place{Target: d, Source: d, Rewrites: true}.Test(t)
	})
}

// TestUnchangedLayersStay: layers that the daemon has are not sent again,
// whoever it has them from, and the image is the same.
func TestUnchangedLayersStay(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		tp := daemontest.NewTap(t, host)
		const large = 5 << 20
		base := imagetest.With(t, imagetest.Random(t, 1), imagetest.Layer(t, imagetest.Tar(t, large)))
		top, err := base.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		label := `{"runImage":{"topLayer":"` + top.RootFS.DiffIDs[1].String() + `"}}`
		app := func(word string) v1.Image {
			img, err := image.Append(imagetest.Extended(t, base), nil, func(c *v1.ConfigFile) {
				c.Config.Labels = map[string]string{lifecycleLabel: label, "word": word}
			})
			if err != nil {
				t.Fatal(err)
			}
			return img
		}
		first := open(t, Options{Host: tp.Host})
		if err := first.Write(t.Context(), "stay/app", app("first")); err != nil {
			t.Fatal(err)
		}
		if n := len(tp.Reset()); n < large {
			t.Fatalf("only %d bytes were sent", n)
		}
		for name, write := range map[string]func(d *Daemon) error{
			"same name":   func(d *Daemon) error { return d.Write(t.Context(), "stay/app", app("second")) },
			"other name":  func(d *Daemon) error { return d.Write(t.Context(), "stay/other", app("third")) },
			"known image": func(d *Daemon) error { return d.Write(t.Context(), "stay/known", app("first")) },
			"opened base": func(d *Daemon) error {
				opened, err := Described{d}.Image(t.Context(), "stay/app")
				if err != nil {
					return err
				}
				return d.Write(t.Context(), "stay/onto", imagetest.Extended(t, opened))
			},
		} {
			d := open(t, Options{Host: tp.Host})
			if err := write(d); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if n := len(tp.Reset()); n > 64<<10 {
				t.Errorf("%s: %d bytes were sent", name, n)
			}
		}
		// On another base, a layer is another one to Docker, and the same to podman.
		d := open(t, Options{Host: tp.Host})
		top2, err := Described{d}.Image(t.Context(), "stay/app")
		if err != nil {
			t.Fatal(err)
		}
		layers, err := top2.Layers()
		if err != nil {
			t.Fatal(err)
		}
		tp.Reset()
		if err := d.Write(t.Context(), "stay/moved", imagetest.With(t, imagetest.Random(t, 1), layers[1])); err != nil {
			t.Fatal(err)
		}
		if s := tp.Reset(); (len(s) < 64<<10) != (d.libpod != "") {
			t.Errorf("onto another base: %d bytes were sent", len(s))
		}
		got, err := open(t, Options{Host: host}).Image(t.Context(), "stay/other")
		if err != nil {
			t.Fatal(err)
		}
		if imagetest.ID(t, got) != imagetest.ID(t, app("third")) {
			t.Error("another image came out")
		}
		if err := image.Validate(t.Context(), got, nil); err != nil {
			t.Error(err)
		}
	})
}

// foreign is an image as others make them: its config is not one that kiln can
// encode, and has everything that a daemon may not tell.
func foreign(t *testing.T) v1.Image {
	t.Helper()
	img := imagetest.Random(t, 2)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	at := v1.Time{Time: time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)}
	cf.Created, cf.Author = at, "somebody"
	cf.History = []v1.History{
		{Created: at, CreatedBy: "/bin/sh -c #(nop) ADD file", Author: "us"},
		{Created: at, CreatedBy: "ENV A=b", EmptyLayer: true, Comment: "buildkit"},
		{Created: at, CreatedBy: "RUN it"},
	}
	cf.Config.Env, cf.Config.User, cf.Config.WorkingDir = []string{"PATH=/bin", "A=b"}, "1000:1000", "/work"
	cf.Config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second}
	cf.Config.ExposedPorts, cf.Config.Volumes = map[string]struct{}{"80/tcp": {}}, map[string]struct{}{"/data": {}}
	cf.Config.StopSignal, cf.Config.Cmd = "SIGINT", []string{"serve"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", " "); err != nil {
		t.Fatal(err)
	}
	return &rawImage{img, indented.Bytes()}
}

// rawImage has another config of the same meaning.
type rawImage struct {
	v1.Image
	config []byte
}

func (r *rawImage) RawConfigFile() ([]byte, error) { return r.config, nil }

// TestDescribed: what the daemon tells is enough to build on an image whose
// config's bytes nobody knows, and nothing is transferred for it.
func TestDescribed(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		tp := daemontest.NewTap(t, host)
		want := foreign(t)
		if err := open(t, Options{Host: host}).Write(t.Context(), "described/run:1", want); err != nil {
			t.Fatal(err)
		}
		d := open(t, Options{Host: tp.Host})
		img, err := Described{d}.Image(t.Context(), "described/run:1")
		if err != nil {
			t.Fatal(err)
		}
		if id := hashOf(want.(*rawImage).config); imagetest.ID(t, img) != id.String() {
			t.Errorf("ID %s, want %s", imagetest.ID(t, img), id)
		}
		got, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		wantConfig, err := want.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		wantConfig = wantConfig.DeepCopy()
		if d.libpod == "" {
			for i := range wantConfig.History {
				h := &wantConfig.History[i]
				h.Created, h.Author = v1.Time{Time: h.Created.Truncate(time.Second)}, ""
			}
		}
		if diff := cmp.Diff(wantConfig, got); diff != "" {
			t.Error(diff)
		}
		derived := imagetest.Extended(t, img)
		if pinned, err := (Described{d}).Pin("described/run:1", img); err != nil || pinned != imagetest.ID(t, img) {
			t.Errorf("pinned as %s, %v", pinned, err)
		}
		if err := (Described{d}).Write(t.Context(), "described/app", derived); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(tp.Reset(), "/get ") {
			t.Error("the image was transferred")
		}
		// Its layers and its config's bytes are there for who reads them.
		for _, img := range []v1.Image{img, opened(t, d, "described/run:1")} {
			raw, err := img.RawConfigFile()
			if err != nil || !bytes.Equal(raw, want.(*rawImage).config) {
				t.Errorf("config %s, %v", raw, err)
			}
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			rc, err := layers[1].Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			diffID, _, err := v1.SHA256(rc)
			if err != nil || diffID != wantConfig.RootFS.DiffIDs[1] {
				t.Errorf("layer %s, want %s, %v", diffID, wantConfig.RootFS.DiffIDs[1], err)
			}
		}
		if err := image.Validate(t.Context(), opened(t, d, "described/run:1"), nil); err != nil {
			t.Error(err)
		}
	})
}

func opened(t *testing.T, d *Daemon, ref string) v1.Image {
	t.Helper()
	img, err := d.Image(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestEqualInAll: an app image is the same, whichever daemon it is made in.
func TestEqualInAll(t *testing.T) {
	base := imagetest.Random(t, 2)
	ids := map[string]string{}
	for _, one := range daemontest.All(t) {
		d := open(t, Options{Host: one.Host})
		if err := d.Write(t.Context(), "equal/run", base); err != nil {
			t.Fatal(err)
		}
		run, err := Described{d}.Image(t.Context(), "equal/run")
		if err != nil {
			t.Fatal(err)
		}
		ids[imagetest.ID(t, imagetest.Extended(t, run))] = one.Kind
	}
	if len(ids) != 1 || ids[imagetest.ID(t, imagetest.Extended(t, base))] == "" {
		t.Errorf("images %v, want %s", ids, imagetest.ID(t, imagetest.Extended(t, base)))
	}
}

func TestNames(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		d := open(t, Options{Host: host})
		img := imagetest.Random(t, 1)
		if err := d.Write(t.Context(), "docker.io/library/names:v1", img); err != nil {
			t.Fatal(err)
		}
		id := imagetest.ID(t, img)
		for _, ref := range []string{"names:v1", "index.docker.io/library/names:v1", "library/names:v1", id, id[len("sha256:"):], id[7:20]} {
			if got := imagetest.ID(t, opened(t, d, ref)); got != id {
				t.Errorf("%s is %s, want %s", ref, got, id)
			}
		}
		for _, ref := range []string{"names:v2", "names", "other.example.com/names:v1", "names@" + id, "sha256:" + strings.Repeat("0", 64)} {
			if _, err := d.Image(t.Context(), ref); !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), ref) {
				t.Errorf("%s: %v", ref, err)
			}
		}
		for _, ref := range []string{"", "NAMES", "../names", "a/../b", "names:v1?x=y", "names/json", "/names"} {
			if img, err := d.Image(t.Context(), ref); err == nil {
				t.Errorf("%q is %v", ref, imagetest.ID(t, img))
			}
		}
		for _, ref := range []string{"", id, "names@" + id, "a/../b"} {
			if err := d.Write(t.Context(), ref, img); err == nil {
				t.Errorf("it was written as %q", ref)
			}
		}
	})
}

// TestCancelledHalfway: what is broken off is no image.
func TestCancelledHalfway(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		d := open(t, Options{Host: host})
		ctx, cancel := context.WithCancelCause(t.Context())
		stopped := errors.New("stopped")
		slow := imagetest.Broken{Tar: imagetest.Tar(t, 1<<20), After: 1 << 19, Fail: errors.New("not reached")}
		img := imagetest.With(t, imagetest.Random(t, 1), cancelling{slow, func() { cancel(stopped) }})
		if err := d.Write(ctx, "halfway", img); !errors.Is(err, stopped) {
			t.Errorf("got %v", err)
		}
		if _, err := d.Image(t.Context(), "halfway"); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("after it: %v", err)
		}
	})
}

// TestOneConnection: whoever drops privileges goes on with the connection that
// he has, whatever becomes of the requests on it.
func TestOneConnection(t *testing.T) {
	daemontest.Each(t, func(t *testing.T, host string) {
		tp := daemontest.NewTap(t, host)
		d := open(t, Options{Host: tp.Host, OneConnection: true})
		base := imagetest.Random(t, 2)
		for _, img := range []v1.Image{base, imagetest.Extended(t, base)} {
			if err := d.Write(t.Context(), "one/app", img); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.Image(t.Context(), "one/none"); !errors.Is(err, image.ErrNotFound) {
			t.Error(err)
		}
		// A layer of the daemon's own, which has to be brought to be sent.
		img := opened(t, d, "one/app")
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Write(t.Context(), "one/moved", imagetest.With(t, empty.Image, layers[2], layers[0])); err != nil {
			t.Fatal(err)
		}
		if err := image.Validate(t.Context(), opened(t, d, "one/moved"), nil); err != nil {
			t.Error(err)
		}
		if tp.Conns() != 1 {
			t.Errorf("%d connections", tp.Conns())
		}
		if headers := strings.ToLower(tp.Reset()); strings.Contains(headers, "auth") {
			t.Error("credentials are sent to the daemon")
		}
	})
}

func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"unix://" + filepath.Join(dir, "none"), "unix://" + file, "tcp://127.0.0.1:1"} {
		_, err := Open(t.Context(), Options{Host: host})
		if !errors.Is(err, image.ErrUnavailable) || !strings.Contains(err.Error(), host) || !strings.Contains(spec.HintOf(err), "DOCKER_HOST") {
			t.Errorf("%s: %v (%s)", host, err, spec.HintOf(err))
		}
	}
	for _, host := range []string{"unix://", "/var/run/docker.sock", "ssh://user@host", "tcp://", "nonsense"} {
		_, err := Open(t.Context(), Options{Host: host})
		if err == nil || spec.ExitCode(err, 0) != spec.ExitInvalidArgs || spec.HintOf(err) == "" {
			t.Errorf("%s: %v", host, err)
		}
	}
}
