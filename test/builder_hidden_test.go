package test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// probeExtension is an image extension that has the probe look at everything
// while it generates, and while its Dockerfiles are carried out.
func probeExtension() []layer.File {
	const generate = `#!/bin/sh
set -e
out="$CNB_OUTPUT_DIR"
mkdir "$out/context"
for as in generate extend-build extend-run; do cp /cnb/buildpacks/test_probe/1.0.0/bin/detect "$out/context/$as"; done
cp secrets "$out/context/"
for kind in build run; do cat > "$out/$kind.Dockerfile" <<END
ARG base_image
FROM \${base_image}
USER root
COPY . /probe/
RUN cd /probe && ./extend-$kind
USER 1000:1000
END
done
"$out/context/generate"
`
	files := packed("/cnb/extensions/test_probe", "1.0.0", map[string]string{
		"extension.toml": "api = \"0.12\"\n[extension]\nid = \"test/probe\"\nversion = \"1.0.0\"\n", "bin/generate": generate,
	})
	const order = "[[order]]\n[[order.group]]\nid = \"test/probe\"\nversion = \"1.0.0\"\n[[order-extensions]]\n[[order-extensions.group]]\nid = \"test/probe\"\nversion = \"1.0.0\"\n"
	return append(files, layer.File{Path: "/cnb/order.toml", Mode: 0o644, Body: []byte(order)})
}

// credentialsOfKiln: whatever a user keeps, and wherever, no step of kiln build
// sees it, and nothing that kiln leaves or says has it.
func credentialsOfKiln(t *testing.T, w *world, locked, builder string) {
	conform.Covers(t, 207)
	dir := t.TempDir()
	filetree.Write(t, dir+"/source", 0o644, probedApp())
	filetree.Write(t, dir+"/tmp", 0o644, nil)
	env := append(bystanders(t, dir), "TMPDIR="+dir+"/tmp")
	build := func(t *testing.T, how []string, args ...string) ran {
		t.Helper()
		args = append([]string{"build", "--path", dir + "/source", "--builder", w.addr + "/" + builder, "--publish", "--verbose"}, args...)
		return runKiln(t.Context(), t, dir+"/store", append(env, how...), args...)
	}
	sayNothing := func(t *testing.T, said string) {
		t.Helper()
		for i, s := range secrets() {
			if bytes.Contains([]byte(said), s) {
				t.Errorf("secret %d was said:\n%s", i, said)
			}
		}
	}
	ways := waysToLogIn(t, locked, dir)
	for i, name := range []string{"variable and file", "helper", "auth.json and DOCKER_AUTH_CONFIG"} {
		t.Run(name, func(t *testing.T) {
			repo := fmt.Sprintf("secret/kiln-%d", i)
			saved := fmt.Sprintf("%s/saved-%d.tar", dir, i)
			r := build(t, ways[name], locked+"/"+repo, "--output", "docker-archive:"+saved).ok(t)
			foundNothing(t, r.String(), "generate")
			if i == 0 { // later their results are known
				foundNothing(t, r.String(), "extend-build", "extend-run")
			}
			w.clean(t, repo, r.String(), saved)
		})
	}
	t.Run("what is refused", func(t *testing.T) {
		wrong := []string{"CNB_REGISTRY_AUTH={\"" + locked + "\":\"Basic " + base64.StdEncoding.EncodeToString([]byte("wrong:"+canaryPassword)) + "\"}"}
		for _, more := range [][]string{nil, {"--json"}} {
			r := build(t, wrong, append(more, locked+"/secret/refused")...)
			if r.code != 5 {
				t.Errorf("exit code %d, want 5\n%s", r.code, r)
			}
			sayNothing(t, r.String())
		}
		for _, broken := range []string{"Basic " + canaryPassword, canaryPassword, "{" + canaryPassword} {
			r := build(t, []string{"CNB_REGISTRY_AUTH={\"" + locked + "\":\"" + broken + "\"}"}, locked+"/secret/refused")
			if r.code == 0 {
				t.Errorf("%s was taken", r)
			}
			sayNothing(t, r.String())
		}
	})
	t.Run("events", func(t *testing.T) {
		r := build(t, ways["helper"], "--json", locked+"/secret/kiln-0").ok(t)
		sayNothing(t, r.String())
		if err := event.Decode(strings.NewReader(r.stdout), event.Func(func(event.Event) {})); err != nil {
			t.Error(err)
		}
	})
	// A proxy's password is for whoever is to get through it: buildpacks see it.
	// It must be in nothing else.
	t.Run("proxy", func(t *testing.T) {
		proxy := "http://" + canaryUser + ":" + canaryPassword + "@127.0.0.1:9"
		r := build(t, append(ways["helper"], "http_proxy="+proxy, "HTTPS_PROXY="+proxy), locked+"/secret/proxy").ok(t)
		has(t, r.String(), "FOUND secret 0 in own environment")
		w.clean(t, "secret/proxy", r.String(), dir+"/source")
	})
	t.Run("crash", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "kiln"), "build", "--path", dir+"/source", "--builder", w.addr+"/"+builder, "--publish", locked+"/secret/crash")
		cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "KILN_STORE=" + dir + "/store", "HOME=" + t.TempDir(), "GOTRACEBACK=system"}, env, ways["helper"])
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for line := ""; !strings.Contains(line, "Detect"); { // the registry has been asked
			if line, err = lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
			t.Fatal(err)
		}
		said, _ := io.ReadAll(lines) // to wherever it came
		if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), "goroutine ") {
			t.Errorf("it did not crash: %v\n%s", err, stderr.String())
		}
		sayNothing(t, string(said)+stderr.String())
		// What it had mounted is left, and gone when the store is used again.
		gc := exec.CommandContext(t.Context(), filepath.Join(bin, "kiln"), "store", "gc")
		gc.Env = []string{"PATH=" + os.Getenv("PATH"), "KILN_STORE=" + dir + "/store", "HOME=" + t.TempDir()}
		if out, err := gc.CombinedOutput(); err != nil {
			t.Fatalf("store gc: %v\n%s", err, out)
		}
	})
	w.clean(t, "secret/kiln-0", "", dir+"/store", dir+"/tmp")
}

// waysToLogIn are the variables by which kiln finds the credentials of a host.
func waysToLogIn(t *testing.T, host, dir string) map[string][]string {
	t.Helper()
	file := canary(t, host)
	config, err := os.ReadFile(file + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	filetree.Write(t, dir+"/helper", 0o755, map[string]string{
		"config.json":              fmt.Sprintf(`{"credHelpers":{%q:"canary"}}`, host),
		"docker-credential-canary": "#!/bin/sh\ncat > /dev/null\nprintf '{\"Username\":\"" + canaryUser + "\",\"Secret\":\"" + canaryPassword + "\"}'\n",
	})
	return map[string][]string{
		"variable and file":                {`CNB_REGISTRY_AUTH={"` + host + `":"` + basicAuth() + `"}`, "DOCKER_CONFIG=" + file},
		"helper":                           {"DOCKER_CONFIG=" + dir + "/helper", "PATH=" + dir + "/helper:" + os.Getenv("PATH")},
		"auth.json and DOCKER_AUTH_CONFIG": {"DOCKER_AUTH_CONFIG=" + string(config), "REGISTRY_AUTH_FILE=" + file + "/config.json"},
	}
}

// bystanders are secrets that are none of kiln's business: variables, files of
// the user's home, certificates of a daemon, agents on sockets.
func bystanders(t *testing.T, dir string) (env []string) {
	t.Helper()
	filetree.Write(t, dir+"/home", 0o600, map[string]string{
		".netrc": "machine x login y password " + canaryPassword, ".aws/credentials": canaryPassword, ".ssh/id_rsa": canaryPassword, ".config/gh/hosts.yml": canaryPassword,
	})
	filetree.Write(t, dir+"/certs", 0o644, map[string]string{"ca.pem": canaryPassword, "cert.pem": canaryPassword, "key.pem": canaryPassword})
	abstract := fmt.Sprintf("@kiln-agent-%d", os.Getpid())
	for _, address := range []string{dir + "/agent", abstract} {
		talkative(t, address)
	}
	for _, name := range []string{"GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "NPM_TOKEN", "ANYTHING"} {
		env = append(env, name+"="+canaryPassword)
	}
	return append(env, "HOME="+dir+"/home", "SSH_AUTH_SOCK="+dir+"/agent", "DBUS_SESSION_BUS_ADDRESS=unix:abstract="+abstract[1:], "DOCKER_CERT_PATH="+dir+"/certs")
}

// talkative is a socket that tells its secret to everybody who comes.
func talkative(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.Write([]byte(canaryPassword)) // to whoever still listens
				conn.Close()
			}
		}
	}()
	conn, err := net.DialTimeout("unix", address, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != canaryPassword {
		t.Fatalf("the socket says %q, %v", b, err)
	}
}
