package test

import (
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fuzzed is the fuzzer of each file that decodes TOML or JSON: whatever such a
// document is, somebody else may have written it.
var fuzzed = map[string]string{
	"internal/archive/docker.go":        "FuzzSources",
	"internal/archive/layout.go":        "FuzzLayoutDir",
	"internal/archive/names.go":         "FuzzLayoutDir",
	"internal/daemon/conn.go":           "FuzzInspect FuzzAnswers",
	"internal/daemon/write.go":          "FuzzAnswers",
	"internal/dockerfile/cache.go":      "FuzzEntry",
	"internal/dockerfile/inside.go":     "FuzzReport",
	"internal/dockerfile/run.go":        "FuzzReport", // what the same program says
	"internal/event/json.go":            "FuzzDecode",
	"internal/image/rebase.go":          "FuzzRebase",
	"internal/image/rebasehistory.go":   "FuzzRebase",
	"internal/phase/rebase.go":          "internal/spec FuzzObject",
	"internal/phase/extend.go":          "internal/dockerfile FuzzReport", // likewise
	"internal/phase/rebasesafe.go":      "FuzzMixins",
	"internal/platform/builder.go":      "FuzzBuilderLabels",
	"internal/platform/extra.go":        "FuzzPackageLabels",
	"internal/platform/rebaseplan.go":   "FuzzLabelChanges",
	"internal/registry/auth.go":         "FuzzKeychain",
	"internal/registry/keep.go":         "FuzzForeignDocuments",
	"internal/registry/pull.go":         "FuzzForeignDocuments",
	"internal/spec/decode.go":           "FuzzRead",
	"internal/spec/decision.go":         "FuzzDecision",
	"internal/spec/extend.go":           "FuzzRead",
	"internal/spec/labeljson.go":        "FuzzLabels",
	"internal/spec/object.go":           "FuzzObject",
	"internal/spec/process.go":          "FuzzRead",
	"internal/spec/project.go":          "FuzzRead",
	"internal/store/cache.go":           "FuzzRecords",
	"internal/store/gc.go":              "FuzzRecords",
	"internal/store/layer.go":           "FuzzRecords",
	"internal/store/record.go":          "FuzzRecords",
	"internal/debian/lock.go":           "FuzzReadLock",
	"internal/platform/sbomdownload.go": "internal/spec FuzzObject",
}

// TestForeignDocumentsAreFuzzed finds what is decoded, by name, and the fuzzers.
func TestForeignDocumentsAreFuzzed(t *testing.T) {
	decoders := map[string][]string{"json": {"Unmarshal", "NewDecoder"}, "toml": {"Unmarshal", "NewDecoder"}, "spec": {"Decode", "ParseObject"}}
	found := map[string]bool{}
	parsed(t, []string{"internal", "cmd", "buildpacks"}, func(file string, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
				if pkg, ok := sel.X.(*ast.Ident); ok && slices.Contains(decoders[pkg.Name], sel.Sel.Name) {
					found[strings.TrimPrefix(file, "../")] = true
				}
			}
			return true
		})
	})
	name := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)
	for _, file := range slices.Sorted(maps.Keys(found)) {
		if strings.Contains(file, "/testdata/") || strings.HasSuffix(filepath.Dir(file), "test") {
			continue // helpers of tests
		}
		dir, words := filepath.Dir(file), strings.Fields(fuzzed[file])
		if len(words) == 0 {
			t.Errorf("%s decodes a document, and no fuzzer is named here that says what becomes of any", file)
			continue
		}
		if !strings.HasPrefix(words[0], "Fuzz") {
			dir, words = words[0], words[1:]
		}
		tests, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, test := range tests {
			b, err := os.ReadFile(test)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range name.FindAllStringSubmatch(string(b), -1) {
				have = append(have, m[1])
			}
		}
		for _, want := range words {
			if !slices.Contains(have, want) {
				t.Errorf("%s: there is no %s in %s, which has %v", file, want, dir, have)
			}
		}
	}
	if len(found) < 20 {
		t.Errorf("found only %d files that decode documents", len(found))
	}
	for file := range fuzzed {
		if !found[file] {
			t.Errorf("%s decodes nothing any more", file)
		}
	}
}
