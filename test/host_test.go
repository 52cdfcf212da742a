package test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/test/filetree"
)

// TestNoUserNamespaces runs where the kernel gives none: it says so, and the
// exact fix; doctor says the same.
func TestNoUserNamespaces(t *testing.T) {
	source := filetree.New(t, map[string]string{"f": "x"})
	bp := buildpack(t, "test/nothing", "", "")
	must(t, "build", "spaceless", "--path", source, "--buildpack", bp, "--quiet")
	for _, args := range [][]string{{"build", "spaceless", "--path", source, "--buildpack", bp}, {"doctor"}, {"run", "spaceless", "--", "true"}} {
		cmd := kilnCommand(t.Context(), t, args...)
		script := `echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"`
		cmd.Args = append([]string{"unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", cmd.Path}, args...)
		path, err := exec.LookPath("unshare")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path = path
		r := refuses(t, cmd, 6, "user namespaces are limited to 0")
		if !r.hint("sysctl -w user.max_user_namespaces=") {
			t.Errorf("the fix is not there:\n%s", r.err)
		}
	}
	nothingLeft(t, source)
	// In a namespace that has nothing but one id, as of a container without
	// privileges, all is as usual.
	cmd := kilnCommand(t.Context(), t)
	cmd.Args = []string{"unshare", "--user", "--map-root-user", cmd.Path, "build", "spaceless", "--path", source, "--buildpack", bp, "--quiet"}
	if cmd.Path, _ = exec.LookPath("unshare"); cmd.Path == "" {
		t.Fatal("unshare is missing: apt-get install util-linux")
	}
	if r := end(t, cmd); r.code != 0 {
		t.Errorf("in a namespace of one id: exit %d\n%s", r.code, r.err)
	}
	must(t, "rm", "spaceless")
}

// TestTiers builds the same image in every tier, and refuses a pinned one that
// is not to be had.
func TestTiers(t *testing.T) {
	builder, run := tiny(t)
	bp := buildpack(t, "test/layer", "", `mkdir -p "$CNB_LAYERS_DIR/l/d"; cp f "$CNB_LAYERS_DIR/l/d/"; ln -sf d/f "$CNB_LAYERS_DIR/l/s"; rm f; mkdir g
printf '[types]\nlaunch=true\ncache=true\n' > "$CNB_LAYERS_DIR/l.toml"`)
	source := filetree.New(t, map[string]string{"f": "x", "h/i": "y"})
	ids := map[string]bool{}
	for _, tier := range []string{"1", "2", "3"} {
		name := "tier-" + tier
		args := []string{"build", name, "--path", source, "--buildpack", bp, "--isolation", tier, "--builder", builder, "--run-image", run}
		for _, more := range []string{"--clear-cache", "--verbose"} { // once anew, once with what is kept
			out := must(t, append(args, more)...)
			if !strings.Contains(out, "sandbox tier "+tier) {
				t.Errorf("tier %s is not printed:\n%s", tier, out)
			}
			_, id, _ := strings.Cut(out, "image   ")
			ids[strings.Fields(id)[0]] = true
		}
		if got := must(t, "run", "--isolation", tier, name, "--", "sh", "-c", "cat /layers/test_layer/l/s; ls"); got != "x" && got != "xg\nh" {
			t.Errorf("tier %s: in the image: %q", tier, got)
		}
		must(t, "rm", name)
	}
	if len(ids) != 1 {
		t.Errorf("the tiers make different images: %v", ids)
	}
	subids, err := os.ReadFile("/etc/subuid")
	if err == nil && len(bytes.TrimSpace(subids)) > 0 {
		t.Log("somebody here has sub-ids: tier 1s may be there for us, too")
	}
	r := end(t, kilnCommand(t.Context(), t, "build", "tier-1s", "--path", source, "--buildpack", bp, "--isolation", "1s", "--builder", builder, "--run-image", run))
	switch {
	case r.code == 0 && strings.Contains(r.out, "sandbox tier 1s"):
	case r.code == 6 && (r.hint("usermod --add-subuids") || r.hint("apt-get install uidmap")):
	default:
		t.Errorf("tier 1s: exit %d\n%s%s", r.code, r.out, r.err)
	}
}

// TestOverlayRoot builds where the store lies on an overlay, as in a container.
func TestOverlayRoot(t *testing.T) {
	builder, run := tiny(t)
	bp := buildpack(t, "test/nothing", "", "")
	source := filetree.New(t, map[string]string{"f": "x"})
	want := must(t, "build", "contained", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run, "--quiet")
	must(t, "rm", "contained")
	r := inNamespace(t, `
disk=$1; shift
mount -t tmpfs disk "$disk"
mkdir "$disk/lower" "$disk/upper" "$disk/work" "$disk/root"
mount -t overlay -o userxattr,lowerdir="$disk/lower",upperdir="$disk/upper",workdir="$disk/work" overlay "$disk/root"
mkdir -m 700 "$disk/root/store" "$disk/root/tmp"
export KILN_STORE="$disk/root/store" TMPDIR="$disk/root/tmp"
"$@"
"$@" --quiet
kiln doctor
kiln store check
kiln run contained -- cat /workspace/f
ls "$disk/root/store/tmp"
`, t.TempDir(), "kiln", "build", "contained", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run)
	if r.code != 0 || !strings.Contains(r.out, want) {
		t.Fatalf("exit %d, want image %s\n%s%s", r.code, want, r.out, r.err)
	}
	if strings.Contains(r.out, "sandbox tier 2") && (!strings.Contains(r.out, "overlay is refused") || !strings.Contains(r.out, "\n  fix: ")) {
		t.Errorf("it does not say why the tier is 2, or what would help:\n%s%s", r.out, r.err)
	}
	if !strings.Contains(r.out, "sandbox tier ") || !strings.HasSuffix(r.out, " trees\nx") {
		t.Errorf("%s%s", r.out, r.err)
	}
}

// TestSameImageWhoeverAsks builds in new stores under the settings that differ
// from one login to the next.
func TestSameImageWhoeverAsks(t *testing.T) {
	builder, run := tiny(t)
	bp := buildpack(t, "test/layer", "", `umask; cd "$CNB_LAYERS_DIR"; mkdir -p l/d env; echo x > l/d/f; date -d @0 > l/date; ls /nowhere 2> l/error || true
printf '[types]\nlaunch=true\ncache=true\n' > l.toml; cd -; mkdir new; echo y > new/f`)
	source := filetree.New(t, map[string]string{"f": "x", "sub/dir/g": "y"})
	ids := map[string][]string{}
	for _, how := range []string{"umask 022", "umask 077; export TZ=Asia/Tokyo LANG=de_DE.UTF-8 LC_ALL=C", "umask 000; export TZ=No/Where LANG=bogus LC_ALL=bogus; unset HOME"} {
		dir := t.TempDir()
		cmd := withStore(t.Context(), t, filepath.Join(dir, "store"), "build", "asked", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run, "--quiet")
		cmd.Args = append([]string{"sh", "-c", how + `; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		r := end(t, cmd)
		if r.code != 0 {
			t.Errorf("%s: exit %d\n%s", how, r.code, r.err)
		}
		ids[r.out] = append(ids[r.out], how)
		removeAll(filepath.Join(dir, "store"))
	}
	if len(ids) != 1 {
		t.Errorf("images differ: %v", ids)
	}
}

// TestHostStaysOutOfImages gives build steps this host's proxies and private
// CA, and looks for them in every byte that is kept.
func TestHostStaysOutOfImages(t *testing.T) {
	builder, run := tiny(t)
	const secret, ca = "canary-proxy-4711", "canary-bundle-4712"
	dir := t.TempDir()
	bundle := filepath.Join(dir, "bundle.pem")
	if err := os.WriteFile(bundle, []byte("# "+ca+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bp := buildpack(t, "test/layer", "", `
for v in "$HTTP_PROXY" "$https_proxy"; do [ "$v" = http://user:`+secret+`@127.0.0.1:9 ]; done
[ "$NO_PROXY" = .internal ]
for f in /etc/ssl/certs/ca-certificates.crt "$SSL_CERT_FILE" "$PIP_CERT" "$NODE_EXTRA_CA_CERTS"; do read -r line < "$f"; [ "$line" = "# `+ca+`" ]; done
test -s /etc/resolv.conf
mkdir -p "$CNB_LAYERS_DIR/l" "$CNB_LAYERS_DIR/c"; echo x > "$CNB_LAYERS_DIR/l/f"; echo y > "$CNB_LAYERS_DIR/c/f"; echo z > new
printf '[types]\nlaunch=true\nbuild=true\ncache=true\n' > "$CNB_LAYERS_DIR/l.toml"; printf '[types]\ncache=true\nbuild=true\n' > "$CNB_LAYERS_DIR/c.toml"
printf '[[processes]]\ntype="web"\ncommand=["cat", "new"]\n' > "$CNB_LAYERS_DIR/launch.toml"
echo all is here`)
	source := filetree.New(t, map[string]string{"f": "x"})
	mine := filepath.Join(dir, "store")
	t.Cleanup(func() { removeAll(filepath.Join(mine, "x")) })
	env := []string{"SSL_CERT_FILE=" + bundle, "NO_PROXY=.internal"}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		env = append(env, name+"=http://user:"+secret+"@127.0.0.1:9")
	}
	for range 2 { // the second time with the cache
		cmd := withStore(context.Background(), t, mine, "build", "leaky", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run)
		cmd.Env = append(cmd.Env, env...)
		if r := end(t, cmd); r.code != 0 || !strings.Contains(r.out, "all is here") {
			t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
		}
	}
	cmd := withStore(t.Context(), t, mine, "build", "leaky", "--path", source, "--buildpack", bp, "--builder", builder, "--run-image", run, "--output", "docker-archive:"+filepath.Join(mine, "image.tar"))
	cmd.Env = append(cmd.Env, env...)
	if r := end(t, cmd); r.code != 0 {
		t.Fatalf("exit %d\n%s%s", r.code, r.out, r.err)
	}
	files := 0
	err := filepath.WalkDir(mine, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, canary := range []string{secret, ca, "127.0.0.1:9", bundle} {
			if bytes.Contains(b, []byte(canary)) {
				t.Errorf("%s has %s", path, canary)
			}
		}
		return nil
	})
	if err != nil || files < 20 {
		t.Errorf("looked at %d files: %v", files, err)
	}
	// What was mounted over leaves no empty file in the image either.
	if r := end(t, withStore(t.Context(), t, mine, "run", "--network", "none", "leaky", "--", "sh", "-c", "cat /workspace/new")); r.out != "z\n" {
		t.Errorf("%s%s", r.out, r.err)
	}
}
