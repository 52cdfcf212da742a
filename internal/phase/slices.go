package phase

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/spec"
)

// appPath is one file or directory of the app.
type appPath struct {
	rel   string
	taken bool
}

// sliceApp divides the app: the paths of each slice, then the rest, with the
// app directory itself. A slice sees only what those before it left; a
// directory that it names comes with all in it (Buildpack API, "launch.toml").
func sliceApp(ctx context.Context, app Tree, list []spec.Slice) ([][]string, error) {
	all, err := walkApp(ctx, app, ".", nil)
	if err != nil {
		return nil, err
	}
	var divided [][]string
	for i, s := range list {
		var paths []string
		for _, pattern := range s.Paths {
			clean, err := slicePattern(app, pattern)
			if err != nil {
				return nil, fmt.Errorf("slice %d: %w", i+1, err)
			}
			if paths, err = takeMatches(all, clean, paths); err != nil {
				return nil, fmt.Errorf("slice %d: pattern %q: %w", i+1, pattern, err)
			}
		}
		divided = append(divided, paths)
	}
	rest := []string{"."}
	for _, p := range all {
		if !p.taken {
			rest = append(rest, p.rel)
		}
	}
	return append(divided, rest), nil
}

// walkApp lists all paths of the app, a directory before what is in it.
func walkApp(ctx context.Context, app Tree, dir string, all []appPath) ([]appPath, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := app.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		rel := path.Join(dir, e.Name())
		all = append(all, appPath{rel: rel})
		if e.IsDir() {
			if all, err = walkApp(ctx, app, rel, all); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// slicePattern makes a pattern relative to the app directory, and refuses one
// that leads out of it.
func slicePattern(app Tree, pattern string) (string, error) {
	clean := path.Clean(pattern)
	if path.IsAbs(clean) {
		rel, ok := strings.CutPrefix(clean, strings.TrimSuffix(app.Path, "/")+"/")
		if clean == app.Path {
			rel, ok = ".", true
		}
		if !ok {
			return "", fmt.Errorf("pattern %q is outside of the app directory %s", pattern, app.Path)
		}
		clean = rel
	}
	if pattern == "" || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("pattern %q is outside of the app directory %s", pattern, app.Path)
	}
	return clean, nil
}

// takeMatches appends what matches, with all below it, and marks it as taken.
func takeMatches(all []appPath, pattern string, paths []string) ([]string, error) {
	if _, err := filepath.Match(pattern, ""); err != nil {
		return nil, err
	}
	below := "" // what is below this directory is taken with it
	for i := range all {
		p := &all[i]
		inside := below != "" && strings.HasPrefix(p.rel, below)
		if !inside {
			match, err := filepath.Match(pattern, p.rel)
			if err != nil {
				return nil, err
			}
			if !match && pattern != "." {
				continue
			}
			below = p.rel + "/"
		}
		if !p.taken {
			p.taken = true
			paths = append(paths, p.rel)
		}
	}
	return paths, nil
}
