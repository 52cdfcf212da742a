package test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/archive"
	"github.com/kilnbuild/kiln/internal/image"
	storepkg "github.com/kilnbuild/kiln/internal/store"
	"github.com/kilnbuild/kiln/test/filetree"
)

// result is what a kiln that ended leaves for its caller to see.
type result struct {
	out, err string
	code     int
}

// hint says whether the error came with a fix that has the words.
func (r result) hint(words string) bool {
	for line := range strings.Lines(r.err) {
		if hint, ok := strings.CutPrefix(line, "hint: "); ok && strings.Contains(hint, words) {
			return true
		}
	}
	return false
}

// kiln runs the real binary to its end, with the shared store.
func kiln(t testing.TB, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return end(t, kilnCommand(ctx, t, args...))
}

// end runs a command to its end.
func end(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{out: stdout.String(), err: stderr.String()}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return r
}

// must runs kiln, which must succeed, and returns what it printed.
func must(t testing.TB, args ...string) string {
	t.Helper()
	r := kiln(t, args...)
	if r.code != 0 {
		t.Fatalf("kiln %q: exit %d\n%s%s", args, r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// refuses runs kiln, which must refuse with the code, the words and a hint.
func refuses(t *testing.T, cmd *exec.Cmd, code int, words ...string) result {
	t.Helper()
	r := end(t, cmd)
	if r.code != code {
		t.Errorf("%q: exit %d, want %d\n%s%s", cmd.Args, r.code, code, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			t.Errorf("%q: the error does not say %q:\n%s", cmd.Args, w, r.err)
		}
	}
	if !r.hint("") {
		t.Errorf("%q: no hint:\n%s", cmd.Args, r.err)
	}
	return r
}

// tiny writes an OCI layout with a builder made of kiln's small run image, and
// that image: for tests that need a store of their own, which is filled from it
// in a moment.
func tiny(t *testing.T) (builder, run string) {
	t.Helper()
	must(t, "build", "warm-up-tiny", "--path", filetree.New(t, map[string]string{"f": "x"}), "--buildpack", buildpack(t, "test/nothing", "", ""), "--quiet")
	st, err := storepkg.Open(t.Context(), sharedStore(t))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	img, err := st.Image(t.Context(), "kiln/run:bookworm")
	if err != nil {
		t.Fatal(err)
	}
	b, err := image.Append(img, nil, func(cf *v1.ConfigFile) {
		cf.Config.Env = append(cf.Config.Env, "CNB_USER_ID=1000", "CNB_GROUP_ID=1000")
	})
	if err != nil {
		t.Fatal(err)
	}
	layout := archive.Layout{Dir: filepath.Join(t.TempDir(), "tiny")}
	for name, img := range map[string]v1.Image{"builder": b, "run": img} {
		if err := layout.Write(t.Context(), name, img); err != nil {
			t.Fatal(err)
		}
	}
	return "oci:" + layout.Dir + ":builder", "oci:" + layout.Dir + ":run"
}

// withStore is kiln with a store of the test's own.
func withStore(ctx context.Context, t testing.TB, dir string, args ...string) *exec.Cmd {
	cmd := kilnCommand(ctx, t, args...)
	cmd.Env = append(cmd.Env, "KILN_STORE="+dir)
	return cmd
}
