package main

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/daemon"
)

// The daemon is the one that was typed, else DOCKER_HOST's, else one whose socket
// is there; pack's word inherit is DOCKER_HOST.
func TestDockerHost(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there := "unix://" + filepath.Join(dir, "docker.sock")
	for _, test := range []struct {
		typed string
		env   []string
		want  string
	}{
		{"tcp://there:1", []string{"DOCKER_HOST=unix:///env"}, "tcp://there:1"},
		{"", []string{"DOCKER_HOST=unix:///env", "XDG_RUNTIME_DIR=" + dir}, "unix:///env"},
		{"inherit", []string{"DOCKER_HOST=unix:///env"}, "unix:///env"},
		{"", []string{"XDG_RUNTIME_DIR=" + dir}, there},
		{"inherit", []string{"XDG_RUNTIME_DIR=" + dir, "DOCKER_HOST="}, there},
		{"", []string{"XDG_RUNTIME_DIR=" + t.TempDir()}, daemon.DefaultHost},
	} {
		if got := (&kiln{environ: test.env}).dockerHost(test.typed, []string{dir + "/none"}); got != test.want {
			t.Errorf("%q with %q: %s, want %s", test.typed, test.env, got, test.want)
		}
	}
	if got := (&kiln{environ: []string{"XDG_RUNTIME_DIR=" + dir}}).dockerHost("", []string{dir + "/docker.sock"}); got != there {
		t.Errorf("the host's: %s, want %s", got, there)
	}
}
