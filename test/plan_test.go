package test

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/test/filetree"
)

// TestPlanLeavesTheStore: planning changes nothing in the store, whether a group
// passes or none does.
func TestPlanLeavesTheStore(t *testing.T) {
	builder, run := tiny(t)
	dir := filepath.Join(t.TempDir(), "store")
	app := filetree.New(t, map[string]string{"f": "x"})
	plan := func(bp string, code int) {
		t.Helper()
		r := end(t, withStore(t.Context(), t, dir, "plan", app, "--builder", builder, "--run-image", run, "--buildpack", bp))
		if r.code != code || !strings.HasPrefix(r.out, "builder    "+builder+"\nrun image  "+run+"\n") {
			t.Fatalf("exit %d, want %d\n%s%s", r.code, code, r.out, r.err)
		}
	}
	passes, fails := buildpack(t, "test/passes", "", ""), buildpack(t, "test/fails", "exit 100", "")
	plan(passes, 0)
	before := listing(t, dir)
	plan(passes, 0)
	plan(fails, 20)
	if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
		t.Error(diff)
	}
	if r := end(t, withStore(t.Context(), t, dir, "images", "--quiet")); r.code != 0 || r.out != "" {
		t.Errorf("there are images:\n%s%s", r.out, r.err)
	}
	for _, f := range before {
		if strings.Contains(f, "/caches/") {
			t.Errorf("there is a cache: %s", f)
		}
	}
}

// listing is every file of a store, with its size and the time of its change.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			list = append(list, fmt.Sprintf("%s %d %s", strings.TrimPrefix(path, dir), fi.Size(), fi.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}
