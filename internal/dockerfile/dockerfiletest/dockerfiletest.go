// Package dockerfiletest gives tests a machine that carries out Dockerfiles in a
// sandbox, and an image to build on.
package dockerfiletest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/image/imagetest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// inside is a static executable for roots.
var inside string

// Main is for TestMain: it makes what the tests need and runs them.
func Main(m interface{ Run() int }) int {
	sandbox.Init()
	dockerfile.Init()
	dir, err := os.MkdirTemp("", "kiln-dockerfiletest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	inside = filepath.Join(dir, "inside")
	build := exec.Command("go", "build", "-o", inside, "github.com/kilnbuild/kiln/internal/dockerfile/testdata/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build testdata/inside:", err)
		return 1
	}
	return m.Run()
}

// Machine is one that every user has, tier 1f, without a network.
func Machine(t testing.TB) *dockerfile.Overlay {
	t.Helper()
	dir := t.TempDir()
	scratch := filepath.Join(dir, "scratch")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		t.Fatal(err)
	}
	w, report, err := sandbox.Start(context.Background(), sandbox.Options{Tier: sandbox.Tier1F, Scratch: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.Remove(context.Background(), scratch), w.Close()); err != nil {
			t.Error(err)
		}
	})
	m, err := dockerfile.NewOverlay(w, report, dockerfile.OverlayOptions{Scratch: scratch, Executable: inside, Network: sandbox.NoNetwork})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Base is an image with busybox and the users root, node (1000:1001) and toor,
// who is root too.
func Base(t *testing.T, config v1.Config) v1.Image {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is missing: apt-get install busybox-static")
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range []struct{ name, body, link string }{
		{name: "bin/"}, {name: "etc/"}, {name: "tmp/"}, {name: "bin/busybox", body: string(program)}, {name: "bin/sh", link: "busybox"},
		{name: "etc/passwd", body: "root:x:0:0::/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n"},
		{name: "etc/group", body: "root:x:0:\nnode:x:1001:\n"},
	} {
		hdr := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o755, Size: int64(len(f.body)), Linkname: f.link, ModTime: layer.ModTime}
		if strings.HasSuffix(f.name, "/") {
			hdr.Typeflag = tar.TypeDir
		} else if f.link != "" {
			hdr.Typeflag = tar.TypeSymlink
		}
		if err := tw.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := image.Append(empty.Image, []image.Addition{{Layer: imagetest.Layer(t, b.Bytes())}}, func(cf *v1.ConfigFile) {
		cf.OS, cf.Architecture, cf.Config = "linux", runtime.GOARCH, config
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}
