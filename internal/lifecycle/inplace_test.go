package lifecycle

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/test/conform"
)

func TestWhatIsKeptFromForeignCode(t *testing.T) {
	usual := func() inputs {
		return inputs{app: "/workspace", layers: "/layers", platform: "/platform", buildpacks: "/cnb/buildpacks", cacheDir: "/cache"}
	}
	for _, c := range []struct {
		name    string
		change  func(*inputs)
		environ []string
		want    string // read-only; then the entries that are fixed
	}{
		{"as in most builders", func(*inputs) {}, []string{"HOME=/home/cnb"}, "/cnb /platform /cnb/buildpacks /cache; /layers"},
		{"a home that is kept would be none", func(*inputs) {}, []string{"HOME=/cnb"}, "/platform /cnb/buildpacks /cache; /layers"},
		{"temporary files", func(*inputs) {}, []string{"TMPDIR=/cache/tmp"}, "/cnb /platform /cnb/buildpacks; /layers"},
		{"the app", func(in *inputs) { in.app = "/platform/app" }, nil, "/cnb /cnb/buildpacks /cache; /layers"},
		{"the app among the layers", func(in *inputs) { in.app = "/layers" }, nil, "/cnb /platform /cnb/buildpacks /cache; "},
		{"the layers", func(in *inputs) { in.layers = "/cnb/layers" }, nil, "/platform /cnb/buildpacks /cache; /cnb/layers"},
		{"all in one", func(in *inputs) { in.platform = "/" }, nil, "/cnb /cnb/buildpacks /cache; /layers"},
	} {
		in := usual()
		c.change(&in)
		p := inPlace(in, c.environ)
		if got := strings.Join(p.ReadOnly, " ") + "; " + strings.Join(p.FixedEntries, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestWhatIsHiddenFromForeignCode: where credentials are that this process would look for.
func TestWhatIsHiddenFromForeignCode(t *testing.T) {
	conform.Covers(t, 207)
	environ := []string{"HOME=/home/cnb", "DOCKER_CONFIG=/creds", "REGISTRY_AUTH_FILE=/auth", "DOCKER_CERT_PATH=/certs", "XDG_RUNTIME_DIR=/run/user/1000"}
	want := []string{"/creds/config.json", "/home/cnb/.docker/config.json", "/auth", "/run/user/1000/containers/auth.json", "/home/cnb/.config/containers/auth.json", "/certs"}
	if got := inPlace(inputs{}, environ).Hidden; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestProtectionIsSaid: what protects from buildpacks here, and what does not, is in the debug log.
func TestProtectionIsSaid(t *testing.T) {
	line := protection(sandbox.Report{Detail: "tier 4: in place", Findings: []sandbox.Finding{{Cause: "no this"}, {Cause: "no that"}}})
	if line != "tier 4: in place; no this; no that" {
		t.Error(line)
	}
}

// TestRunnerIsInPlace: a host that names no runner has one, which says what it is.
func TestRunnerIsInPlace(t *testing.T) {
	w := newWorld(t)
	w.host.Runner = nil
	w.write("workspace/go", "")
	code := w.run(detector, "-log-level", "debug")
	said, want := w.stdout.String()+w.stderr.String(), "tier 4: in place, with "
	if os.Geteuid() == 0 {
		want = "refusing to run buildpacks as root"
	}
	if !strings.Contains(said, want) || (code == 0) != (os.Geteuid() != 0) {
		t.Errorf("exit %d, want %q in\n%s", code, want, said)
	}
}
