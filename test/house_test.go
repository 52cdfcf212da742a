// Package test holds the tests of the whole: the walls of the house, and the
// real binary driven as a user would.
package test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/kilnbuild/kiln/"

// rank is the floor of every room (docs/design.md). An import points to a
// strictly lower floor, so no two rooms can grow into each other.
var rank = map[string]int{
	"cmd/kiln": 7, "cmd/lifecycle": 7, "cmd/launcher": 7, "cmd/buildpacks": 7, "cmd/dist": 7,
	"buildpacks":        6,
	"internal/platform": 5, "internal/lifecycle": 4, "internal/phase": 3,
	"internal/store": 2, "internal/registry": 2, "internal/archive": 2, "internal/daemon": 2, "internal/dockerfile": 2, "internal/explore": 2, "internal/debian": 2, "internal/cache": 2,
	"internal/image": 1, "internal/launch": 1, "internal/buildpack": 1,
	"internal/spec": 0, "internal/encode": 0, "internal/env": 0, "internal/layer": 0, "internal/sandbox": 0, "internal/event": 0, "internal/flock": 0,
}

// room finds the room that a package belongs to, and its floor.
func room(pkg string) (string, int, bool) {
	rel := strings.TrimPrefix(pkg, module)
	for r := rel; r != "." && r != "/"; r = filepath.Dir(r) {
		if n, ok := rank[r]; ok {
			return r, n, true
		}
	}
	return rel, 0, false
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 15 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, module+"test") {
			continue
		}
		from, high, ok := room(p.ImportPath)
		if !ok {
			t.Errorf("%s is in no room of the house: give it a rank here and a line in docs/design.md", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module) {
				continue
			}
			to, low, ok := room(imp)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which is in no room", p.ImportPath, imp)
			case from == to:
			case from == "buildpacks" && to == "buildpacks":
			case low >= high:
				t.Errorf("%s (rank %d) imports %s (rank %d): imports point down", from, high, to, low)
			}
		}
	}
}

// TestLauncherIsSmall holds the launcher's imports down: scanners read it in
// every app image, and it is in the way of every start.
func TestLauncherIsSmall(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./cmd/launcher")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if dep == "net" || strings.HasPrefix(dep, "net/") || strings.Contains(dep, "go-containerregistry") || strings.Contains(dep, "cobra") || strings.Contains(dep, "BurntSushi") {
			t.Errorf("cmd/launcher depends on %s", dep)
		}
	}
}

// parsed walks the Go files of a room, tests left out.
func parsed(t *testing.T, rooms []string, visit func(file string, f *ast.File)) {
	t.Helper()
	n := 0
	for _, r := range rooms {
		err := filepath.WalkDir(filepath.Join("..", r), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			n++
			visit(path, f)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 {
		t.Fatalf("no Go file in %v", rooms)
	}
}

// TestForeignCodeOrCredentials is rule 3: a phase function takes a
// sandbox.Runner (or a dockerfile.Machine, which is one) or an
// image.Source/Target, never both.
func TestForeignCodeOrCredentials(t *testing.T) {
	runners, images := 0, 0
	parsed(t, []string{"internal/phase", "internal/buildpack"}, func(file string, f *ast.File) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			runner, img := false, false
			ast.Inspect(fn.Type, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				pkg, _ := sel.X.(*ast.Ident)
				if pkg == nil {
					return true
				}
				runner = runner || pkg.Name == "sandbox" && sel.Sel.Name == "Runner" || pkg.Name == "dockerfile" && sel.Sel.Name == "Machine"
				img = img || pkg.Name == "image" && (sel.Sel.Name == "Source" || sel.Sel.Name == "Target")
				return true
			})
			if runner {
				runners++
			}
			if img {
				images++
			}
			if runner && img {
				t.Errorf("%s: %s takes a sandbox.Runner and an image.Source or Target: it would run foreign code with credentials in reach", file, fn.Name.Name)
			}
		}
		for _, d := range f.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			ast.Inspect(gen, func(n ast.Node) bool {
				st, ok := n.(*ast.StructType)
				if !ok {
					return true
				}
				for _, field := range st.Fields.List {
					if sel, ok := field.Type.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Runner" || sel.Sel.Name == "Machine") {
						t.Errorf("%s: a struct hides a Runner; pass it as a parameter so that signatures tell", file)
					}
				}
				return true
			})
		}
	})
	if runners < 2 || images < 2 {
		t.Fatalf("found %d functions with a Runner and %d with an image place: the test looks in the wrong rooms", runners, images)
	}
}

var version = regexp.MustCompile(`^"v?0\.\d{1,2}"$`)

// TestNoVersionChecksOutsideSpec is half of rule 1: code asks
// spec.Has(api, feature) and compares no version itself.
func TestNoVersionChecksOutsideSpec(t *testing.T) {
	rooms := []string{"internal/phase", "internal/buildpack", "internal/launch", "internal/lifecycle", "internal/platform", "internal/env", "cmd"}
	parsed(t, rooms, func(file string, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			bin, ok := n.(*ast.BinaryExpr)
			if !ok {
				return true
			}
			for _, side := range []ast.Expr{bin.X, bin.Y} {
				if lit, ok := side.(*ast.BasicLit); ok && lit.Kind == token.STRING && version.MatchString(lit.Value) {
					t.Errorf("%s compares with %s: ask spec.Has", file, lit.Value)
				}
			}
			return true
		})
	})
}

// TestOnlyTheEdgeReadsTheEnvironment is the other half of rule 1: flags and
// environment are read at the edge, and handed down as values.
func TestOnlyTheEdgeReadsTheEnvironment(t *testing.T) {
	rooms := []string{"internal/phase", "internal/buildpack", "internal/platform", "internal/store", "internal/registry",
		"internal/archive", "internal/daemon", "internal/image", "internal/layer", "internal/spec", "internal/event"}
	parsed(t, rooms, func(file string, f *ast.File) {
		if strings.HasSuffix(f.Name.Name, "test") {
			return // what tests are helped by
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "os" {
				switch sel.Sel.Name {
				case "Getenv", "LookupEnv", "Environ", "Exit":
					t.Errorf("%s uses os.%s: read it at the edge and pass the value", file, sel.Sel.Name)
				}
			}
			return true
		})
	})
}

// TestPlanIsPure is rule 2: the plan is computed, not carried out.
func TestPlanIsPure(t *testing.T) {
	found := false
	parsed(t, []string{"internal/platform"}, func(file string, f *ast.File) {
		if filepath.Base(file) != "plan.go" {
			return
		}
		found = true
		for _, imp := range f.Imports {
			switch strings.Trim(imp.Path.Value, `"`) {
			case "os", "os/exec", "net", "net/http", "syscall", "io", "time", "context", module + "internal/store", module + "internal/registry", module + "internal/sandbox":
				t.Errorf("%s imports %s: the plan is data", file, imp.Path.Value)
			}
		}
	})
	if !found {
		t.Fatal("internal/platform/plan.go is gone")
	}
}

// TestOnlyOneReaderOfLayers: what anybody may have written is read by layer.Reader,
// which has bounds. The others read what is signed or our own, or seek in a file.
func TestOnlyOneReaderOfLayers(t *testing.T) {
	others := map[string]string{
		"internal/layer/reader.go":     "it is the one",
		"internal/archive/tarfile.go":  "it seeks in a file, of which it reads names",
		"internal/debian/build.go":     "packages, which are signed, by way of a bounded reader",
		"internal/debian/deb.go":       "as above",
		"internal/debian/prefix.go":    "as above",
		"internal/dockerfile/put.go":   "what writeSources has written",
		"internal/dockerfile/mount.go": "as above",
	}
	found := map[string]bool{}
	parsed(t, []string{"internal", "cmd", "buildpacks"}, func(file string, f *ast.File) {
		if strings.HasSuffix(f.Name.Name, "test") {
			return // what tests are helped by
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "NewReader" {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "tar" {
				found[file] = true
			}
			return true
		})
	})
	for file := range found {
		if others[strings.TrimPrefix(file, "../")] == "" {
			t.Errorf("%s has a tar.Reader: read layers of others with layer.NewReader", file)
		}
	}
	if len(found) != len(others) {
		t.Errorf("readers are in %v, want them in %v", found, others)
	}
}
