package platform

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/test/filetree"
)

func stackOf(t *testing.T, files map[string]string) layer.Stack {
	return layer.Stack{Lowers: []string{filetree.New(t, files)}}
}

func TestCommandLine(t *testing.T) {
	app := v1.Config{Entrypoint: []string{"/cnb/process/web"}, Cmd: []string{}}
	bare := v1.Config{Entrypoint: []string{"/cnb/lifecycle/launcher"}}
	plain := v1.Config{Entrypoint: []string{"/bin/app", "--serve"}, Cmd: []string{"default"}}
	shell := v1.Config{Cmd: []string{"/bin/sh"}}
	for _, x := range []struct {
		name   string
		req    RunRequest
		config v1.Config
		want   []string
	}{
		{"the default process", RunRequest{}, app, []string{"/cnb/process/web"}},
		{"with arguments", RunRequest{Args: []string{"a", "--b"}}, app, []string{"/cnb/process/web", "a", "--b"}},
		{"another process", RunRequest{Entrypoint: "worker"}, app, []string{"/cnb/process/worker"}},
		{"another process with arguments", RunRequest{Entrypoint: "worker", Args: []string{"x"}}, app, []string{"/cnb/process/worker", "x"}},
		{"a program", RunRequest{Entrypoint: "/bin/ls", Args: []string{"/"}}, app, []string{"/bin/ls", "/"}},
		{"a command goes through the launcher", RunRequest{Command: []string{"env", "-0"}}, app, []string{"/cnb/lifecycle/launcher", "--", "env", "-0"}},
		{"also where no process is the default", RunRequest{Command: []string{"env"}}, bare, []string{"/cnb/lifecycle/launcher", "--", "env"}},
		{"an image without lifecycle has its command", RunRequest{}, plain, []string{"/bin/app", "--serve", "default"}},
		{"which arguments replace", RunRequest{Args: []string{"x"}}, plain, []string{"/bin/app", "--serve", "x"}},
		{"and runs a command as it is", RunRequest{Command: []string{"/bin/ls"}}, plain, []string{"/bin/ls"}},
		{"a CMD alone", RunRequest{}, shell, []string{"/bin/sh"}},
		{"a command where there is only a CMD", RunRequest{Command: []string{"ls"}}, shell, []string{"ls"}},
		{"nothing at all", RunRequest{}, v1.Config{}, nil},
	} {
		got := commandLine(x.req, x.config)
		if diff := cmp.Diff(x.want, got); diff != "" && len(x.want)+len(got) > 0 {
			t.Errorf("%s: %s", x.name, diff)
		}
	}
	// The config of an image is shared: an answer must not grow into it.
	entry := append(make([]string, 0, 8), "/bin/app")
	commandLine(RunRequest{Args: []string{"secret"}}, v1.Config{Entrypoint: entry})
	if spare := entry[:2]; spare[1] != "" {
		t.Errorf("the image's config was written to: %q", spare)
	}
}

func TestRunEnv(t *testing.T) {
	config := v1.Config{Env: []string{"PATH=/bin", "A=image", "A=image again", "EMPTY=", "EQ=a=b", "PORT=1"}}
	const home = "/home/cnb"
	want := []string{"A=user", "EMPTY=", "EQ=a=b", "HOME=/home/cnb", "HOSTNAME=kiln", "NEW=", "PATH=/bin", "PORT=5000"}
	got := runEnv(RunRequest{Env: map[string]string{"A": "user", "NEW": ""}, Ports: []Port{{Published: 8080, Target: 5000}, {Published: 1, Target: 2}}}, config, home)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = runEnv(RunRequest{Env: map[string]string{"PORT": "9", "HOME": "/x"}, Ports: []Port{{Published: 8080, Target: 5000}}}, v1.Config{Env: []string{"HOME=/image"}}, home)
	if diff := cmp.Diff([]string{"HOME=/x", "HOSTNAME=kiln", "PORT=9"}, got); diff != "" {
		t.Errorf("what the user gives comes last: %s", diff)
	}
}

func TestHasProcess(t *testing.T) {
	root := stackOf(t, map[string]string{"cnb/process/web": "", "cnb/process/worker": ""})
	for _, ok := range []string{"", "web", "worker", "/bin/anything"} {
		if err := hasProcess(root, ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	err := hasProcess(root, "wen")
	wantBadInput(t, err, "wen")
	for _, bad := range []string{"../../etc/passwd", "web/x"} {
		if err := hasProcess(root, bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
