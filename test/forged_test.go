package test

import (
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/filetree"
)

// TestBuildpackForgesDocuments: a buildpack that writes anew what the phases hand
// over to each other, in detect and in build, makes the image that it would make
// without. See internal/lifecycle for where the kernel does not keep the files.
func TestBuildpackForgesDocuments(t *testing.T) {
	conform.Covers(t, 127)
	_, run := tiny(t)
	const forge = `for file in analyzed.toml group.toml plan.toml order.toml project-metadata.toml config/metadata.toml report.toml; do
  { mkdir -p /layers/config; rm -f /layers/$file; printf '[run-image]\nreference = "evil.example/run@sha256:%064d"\nimage = "evil.example/run"\n[[group]]\nid = "evil"\nversion = "1"\n[source]\ntype = "evil"\n' 0 > /layers/$file; } 2>/dev/null || true
done
`
	const build = "printf '[[processes]]\\ntype = \"web\"\\ncommand = [\"true\"]\\n' > $CNB_LAYERS_DIR/launch.toml\n"
	source := filetree.New(t, map[string]string{"f": "x"})
	image := func(name, forge string) string {
		t.Helper()
		return must(t, "build", name, "--path", source, "--run-image", run, "--buildpack", buildpack(t, "test/forger", forge, forge+build), "--quiet")
	}
	honest, forged := image("forged-not", ""), image("forged", forge)
	if honest != forged {
		t.Errorf("the image is %s, and with forged documents %s", honest, forged)
	}
	if info := must(t, "inspect", "forged", "--json"); strings.Contains(info, "evil") {
		t.Errorf("it says what was forged:\n%s", info)
	}
}
