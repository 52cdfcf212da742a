package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The run images in the registry: kiln's own, and one with a layer more.
const (
	runImage   = "base/run:1"
	nextImage  = "base/run:2"
	benchImage = "bench/app"
)

// registryRows are kiln's builds to a registry on loopback.
func (b *bench) registryRows(s size) []measured {
	cold := map[string]time.Duration{"M": 800 * time.Millisecond, "L": 3500 * time.Millisecond}
	return []measured{
		{s.name + ": cold to a registry, gzip", func(ctx context.Context) (row, error) {
			r, err := b.coldRegistry(ctx, s, pipeGzip)
			r.limit = cold[s.name]
			return r, err
		}},
		{s.name + ": cold to a registry, zstd", func(ctx context.Context) (row, error) {
			if ok, err := b.has(ctx, "--compression", "build"); !ok {
				return row{}, errors.Join(err, missing("not there yet: kiln build --compression"))
			}
			r, err := b.coldRegistry(ctx, s, pipeZstd, "--compression", "zstd")
			if s.name != "S" {
				r.limit, r.want = r.beside.times(1.2)
			}
			return r, err
		}},
		{s.name + ": nothing changed, to a registry", func(ctx context.Context) (row, error) {
			p, err := b.published(ctx)
			if err != nil {
				return row{}, err
			}
			return b.unchanged(ctx, s, p)
		}},
	}
}

// coldRegistry is what the exporter takes for a layer that nobody knows: image
// to the registry, cache to the store.
func (b *bench) coldRegistry(ctx context.Context, s size, script string, args ...string) (row, error) {
	f, err := b.fixture(ctx, s)
	if err != nil {
		return row{}, err
	}
	p, err := b.published(ctx)
	if err != nil {
		return row{}, err
	}
	r := row{note: "kiln's exporter"}
	if r.beside, err = b.pipe(ctx, f, script); err != nil {
		return r, err
	}
	r.took, err = b.measure(func(int) (sample, error) {
		if err := f.renew(); err != nil {
			return sample{}, err
		}
		got, err := b.build(ctx, f, p, append(args, "--clear-cache")...)
		return got.phase("exporter"), err
	})
	return r, err
}

// published is the registry as a place of builds. The base's layers are in it
// before the first of them.
func (b *bench) published(ctx context.Context) (place, error) {
	err := b.startRegistry(ctx)
	return place{registry: b.registry, args: []string{"--publish"}}, err
}

// startRegistry starts Debian's docker-registry, once, and puts run images in it.
func (b *bench) startRegistry(ctx context.Context) error {
	if b.registry != "" {
		return nil
	}
	if err := b.bases(ctx); err != nil {
		return err
	}
	addr, err := b.serveRegistry(ctx)
	if err != nil {
		return err
	}
	b.registry = addr
	if err := b.skopeo(ctx, "--dest-compress-level=1", "--dest-tls-verify=false", "oci:"+b.store+":kiln/run:bookworm", "docker://"+addr+"/"+runImage); err != nil {
		return err
	}
	return b.patchRunImage(ctx)
}

func (b *bench) skopeo(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "skopeo", append([]string{"copy", "--quiet"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("skopeo: %w\n%s", err, out)
	}
	return nil
}

func (b *bench) serveRegistry(ctx context.Context) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr, dir := l.Addr().String(), filepath.Join(b.dir, "registry")
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %q}\n", dir, addr)
	if err := write(dir, "config.yml", config); err != nil {
		return "", err
	}
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	cmd.Env = []string{"HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return "", err
	}
	b.stop = append(b.stop, func() {
		_ = cmd.Process.Kill() // it may be gone
		_ = cmd.Wait()
	})
	return addr, await(ctx, "http://"+addr+"/v2/")
}

func await(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		resp, err := http.Get(url)
		if err == nil {
			return resp.Body.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (b *bench) ref(repo string) (name.Reference, error) {
	return name.ParseReference(b.registry + "/" + repo)
}

// patchRunImage makes the second run image: the first with a layer above it.
func (b *bench) patchRunImage(ctx context.Context) error {
	from, err := b.ref(runImage)
	if err != nil {
		return err
	}
	to, err := b.ref(nextImage)
	if err != nil {
		return err
	}
	run, err := remote.Image(from, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	img, err := mutate.Append(run, mutate.Addendum{Layer: patchLayer(), History: v1.History{CreatedBy: "patch"}})
	if err != nil {
		return err
	}
	return remote.Write(to, img, remote.WithContext(ctx))
}

// patchLayer is an empty tar.
func patchLayer() v1.Layer { return static.NewLayer(make([]byte, 1024), types.OCIUncompressedLayer) }

// copyImage gives an image of the registry more repositories.
func (b *bench) copyImage(ctx context.Context, from string, to ...string) error {
	ref, err := b.ref(from)
	if err != nil {
		return err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	for _, repo := range to {
		ref, err := b.ref(repo)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// userID is whom the phases that run in place become: the one who runs bench, or
// an ordinary user for root.
func userID() int {
	if uid := os.Getuid(); uid != 0 {
		return uid
	}
	return 1000
}
