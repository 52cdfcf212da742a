package main

import (
	"context"
	"path/filepath"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/daemon"
)

// daemon connects to the daemon of --docker-host, once.
func (k *kiln) daemon(host string) func(context.Context) (*daemon.Daemon, error) {
	var mu sync.Mutex
	var open *daemon.Daemon
	return func(ctx context.Context) (*daemon.Daemon, error) {
		mu.Lock()
		defer mu.Unlock()
		if open != nil {
			return open, nil
		}
		o := daemon.Options{
			Host: k.dockerHost(host, hostSockets),
			Unpack: func(ctx context.Context, file string) (v1.Image, error) {
				return archive.DockerArchive{Path: file}.Image(ctx, "")
			},
		}
		if dir, _ := k.lookup("DOCKER_CERT_PATH"); dir != "" {
			verify, _ := k.lookup("DOCKER_TLS_VERIFY")
			var err error
			if o.TLS, err = daemon.ClientTLS(dir, verify != ""); err != nil {
				return nil, err
			}
		}
		d, err := daemon.Open(ctx, o)
		open = d
		return d, err
	}
}

// hostSockets are where daemons of the whole host listen.
var hostSockets = []string{"/var/run/docker.sock", "/run/podman/podman.sock"}

// dockerHost is the address of the daemon: what was typed, else DOCKER_HOST, else
// the first socket that this user may use: Docker's before podman's, the host's
// before the user's own. inherit, as in pack, is as if nothing was typed.
func (k *kiln) dockerHost(typed string, sockets []string) string {
	if typed != "" && typed != "inherit" {
		return typed
	}
	if host, _ := k.lookup("DOCKER_HOST"); host != "" {
		return host
	}
	if dir, _ := k.lookup("XDG_RUNTIME_DIR"); dir != "" {
		sockets = append(slices.Clip(sockets), filepath.Join(dir, "docker.sock"), filepath.Join(dir, "podman", "podman.sock"))
	}
	for _, s := range sockets {
		if unix.Access(s, unix.W_OK) == nil {
			return "unix://" + s
		}
	}
	return daemon.DefaultHost
}
