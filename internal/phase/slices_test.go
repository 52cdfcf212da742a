package phase

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
	"github.com/kilnbuild/kiln/test/reference"
)

// divided is what slices mean, path by path: each takes the paths that are still
// there of which one of its patterns matches the path or a directory above it.
// What nobody took is the rest, with the app directory.
func divided(all []string, list []spec.Slice) (parts [][]string) {
	taken := map[string]bool{}
	matches := func(pattern, rel string) bool {
		for at := rel; at != "."; at = path.Dir(at) {
			if ok, _ := filepath.Match(pattern, at); ok {
				return true
			}
		}
		return pattern == "."
	}
	for _, s := range list {
		var part []string
		for _, rel := range all {
			if !taken[rel] && slices.ContainsFunc(s.Paths, func(pattern string) bool {
				relative, err := filepath.Rel("/workspace", path.Join("/workspace", pattern))
				if path.IsAbs(pattern) {
					relative, err = filepath.Rel("/workspace", path.Clean(pattern))
				}
				return err == nil && matches(relative, rel)
			}) {
				part = append(part, rel)
			}
		}
		for _, rel := range part {
			taken[rel] = true
		}
		parts = append(parts, part)
	}
	rest := []string{"."}
	for _, rel := range all {
		if !taken[rel] {
			rest = append(rest, rel)
		}
	}
	return append(parts, rest)
}

func TestSlicesEqualModel(t *testing.T) {
	conform.Covers(t, 135, 136)
	dir := t.TempDir()
	var all []string
	for _, name := range []string{"a/", "a/b", "a/b-c", "a/d/", "a/d/e", "a-b", "a.b/", "a.b/c", "c/", "c/d/", "c/d/b", "c/d/b2", "z"} {
		if name[len(name)-1] == '/' {
			must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		} else {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		}
		all = append(all, path.Clean(name))
	}
	must(t, os.Symlink("a", filepath.Join(dir, "link")))
	all = append(all, "link")
	slices.Sort(all)
	app := Tree{Path: "/workspace", Stack: layer.Stack{Upper: dir}}
	rapid.Check(t, func(r *rapid.T) {
		pattern := rapid.OneOf(
			rapid.SampledFrom(append(slices.Clone(all), ".", "*", "a*", "*/*", "*/d", "?", "c/*/b", "[a-c]", "a/[!d]*", "none", "/workspace", "/workspace/a", "/workspace/*/d/", "./z", "a/../c", "a/./d", "link/*", "*b")),
			rapid.StringMatching(`[abcd*?]{1,2}(/[abcde*]{1,2}){0,2}`))
		var list []spec.Slice
		for _, paths := range rapid.SliceOfN(rapid.SliceOfN(pattern, 0, 3), 0, 4).Draw(r, "slices") {
			list = append(list, spec.Slice{Paths: paths})
		}
		got, err := sliceApp(t.Context(), app, list)
		if err != nil {
			r.Fatal(err)
		}
		want := divided(all, list)
		for i := range want {
			slices.Sort(got[i])
			slices.Sort(want[i])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.Fatalf("(-model +sliceApp):\n%s", diff)
		}
		var patterns [][]string
		for _, s := range list {
			if slices.ContainsFunc(s.Paths, path.IsAbs) {
				return // which the reference does not know
			}
			patterns = append(patterns, s.Paths)
		}
		theirs := reference.Slices(t, dir, patterns)
		for i := range theirs {
			slices.Sort(theirs[i])
		}
		if diff := cmp.Diff(theirs, got, cmpopts.EquateEmpty()); diff != "" {
			r.Fatalf("(-theirs +sliceApp):\n%s", diff)
		}
	})
}
