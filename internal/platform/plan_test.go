package platform

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/internal/lifecycle"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/test/conform"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The plan is data that a Pod or another host could carry out: a change of it
// is a change of the seam.
func TestPlanGolden(t *testing.T) {
	conform.Covers(t, 206)
	own := Builder{Name: builtinBuilder, RunImage: builtinRunImage, UID: 1000, GID: 1000}
	foreign := Builder{Name: "builders.example/all:1", RunImage: "builders.example/run:1", RunImages: []string{"builders.example/run:1", "more.example/run:2"}, UID: 1001, GID: 1002}
	extensible := foreign
	extensible.Extensions = true
	requests := []struct {
		name    string
		builder Builder
		req     Request
	}{
		{"to the store", own, Request{Image: "hello", Path: "src"}},
		{"everything", foreign, Request{
			Image: "registry.example:5000/me/hello", Tags: []string{"other.example/hello:1"}, Path: "src",
			RunImage: "bases.example/run@sha256:" + strings.Repeat("a", 64), Env: map[string]string{"SECRET": "only in files"},
			DefaultProcess: "worker", Volumes: []Volume{{Source: "/srv/x", Target: "/volumes/x"}, {Source: "/srv/b", Target: "/platform/bindings/b", ReadOnly: true}},
			Network: sandbox.NoNetwork, ClearCache: true, Outputs: []Destination{{Kind: ToRegistry}, {Kind: ToLayout, Path: "out"}},
			SourceDateEpoch: "1700000000", LogLevel: "debug", NoSystem: true,
		}},
		{"to an archive, on a run image that is a file", foreign, Request{
			Image: "hello", Path: "src", RunImage: "oci-archive:run.tar", Outputs: []Destination{{Kind: ToDockerArchive, Path: "x.tar"}},
		}},
		{"with a plan that is given", own, Request{Image: "hello", Path: "src", Plan: "plan.json"}},
		{"with a builder whose extensions may choose a run image", extensible, Request{Image: "hello", Path: "src"}},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	for _, r := range requests {
		if err := enc.Encode(map[string]any{"request": r.name, "steps": Plan(r.req, r.builder)}); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(b.String(), "SECRET") || strings.Contains(b.String(), "/srv/") {
		t.Error("the plan has the user's environment or directories of the host")
	}
	const golden = "testdata/plan.golden"
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatalf("%v: go test ./internal/platform -update makes it", err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("the plan has changed; if that is meant, run go test ./internal/platform -update\n%s", diff)
	}
}

var (
	drawName = rapid.SampledFrom([]string{"hello", "me/hello:1", "localhost:5000/hello", "reg.example/a/b:v2"})
	drawDest = rapid.Custom(func(t *rapid.T) Destination {
		kind := rapid.SampledFrom([]DestinationKind{ToStore, ToRegistry, ToLayout, ToOCIArchive, ToDockerArchive}).Draw(t, "kind")
		return Destination{Kind: kind, Path: "out"}
	})
	drawVolume = rapid.Custom(func(t *rapid.T) Volume {
		return Volume{Source: "/host", Target: rapid.SampledFrom([]string{"/v", "/w", "/platform/bindings/x"}).Draw(t, "target"), ReadOnly: rapid.Bool().Draw(t, "ro")}
	})
	drawRequest = rapid.Custom(func(t *rapid.T) Request {
		return Request{
			Image: drawName.Draw(t, "image"), Tags: rapid.SliceOfN(drawName, 0, 3).Draw(t, "tags"), Path: "src",
			RunImage:       rapid.SampledFrom([]string{"", "run:1", "reg.example/run", "oci:dir"}).Draw(t, "run"),
			Env:            rapid.MapOfN(rapid.StringMatching(`[A-Z]{1,4}`), rapid.String(), 0, 3).Draw(t, "env"),
			DefaultProcess: rapid.SampledFrom([]string{"", "web"}).Draw(t, "process"),
			Volumes:        rapid.SliceOfN(drawVolume, 0, 3).Draw(t, "volumes"), Network: rapid.SampledFrom([]string{"", "host", "none"}).Draw(t, "network"),
			ClearCache: rapid.Bool().Draw(t, "clear"), Outputs: rapid.SliceOfN(drawDest, 0, 3).Draw(t, "outputs"),
			SourceDateEpoch: rapid.SampledFrom([]string{"", "1"}).Draw(t, "epoch"),
			ExecEnv:         rapid.SampledFrom([]string{"", "test"}).Draw(t, "exec-env"),
		}
	})
	drawBuilder = rapid.Custom(func(t *rapid.T) Builder {
		return Builder{Name: "b", RunImage: rapid.SampledFrom([]string{builtinRunImage, "reg.example/run:1"}).Draw(t, "run"), UID: rapid.IntRange(1, 70000).Draw(t, "uid"), GID: 1000, Extensions: rapid.Bool().Draw(t, "extensions")}
	})
)

// The rule of the house: a phase runs foreign code or holds credentials, never
// both. And the plan is a function: what it is given stays as it was.
func TestPlanProperties(t *testing.T) {
	conform.Covers(t, 207)
	rapid.Check(t, func(t *rapid.T) {
		req, b := drawRequest.Draw(t, "request"), drawBuilder.Draw(t, "builder")
		before, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		steps := Plan(req, b)
		for _, s := range steps {
			if s.Foreign && len(s.Registries) > 0 {
				t.Errorf("%s runs foreign code and may log in to %v", s.Phase, s.Registries)
			}
			if !s.Foreign && s.Network != "" {
				t.Errorf("%s is carried out here and has network %q", s.Phase, s.Network)
			}
			if s.Foreign != slices.Contains([]string{"detector", "builder", "extender"}, s.Phase) {
				t.Errorf("%s: foreign is %v", s.Phase, s.Foreign)
			}
			if s.Phase == "creator" || slices.ContainsFunc(s.Env, func(kv string) bool { return s.Foreign && strings.HasPrefix(kv, "CNB_REGISTRY_AUTH=") }) {
				t.Errorf("%s with %q: foreign code would be in reach of credentials", s.Phase, s.Env)
			}
			if env := "CNB_EXEC_ENV=" + req.ExecEnv; slices.Contains(s.Env, env) != (req.ExecEnv != "") {
				t.Errorf("%s with %q, the execution environment is %q", s.Phase, s.Env, req.ExecEnv)
			}
			if !slices.Contains(lifecycle.Phases, s.Phase) {
				t.Errorf("%s is no phase of the lifecycle", s.Phase)
			}
			for _, m := range s.Mounts {
				if !path.IsAbs(m) || path.Clean(m) != m {
					t.Errorf("%s mounts %q", s.Phase, m)
				}
			}
			if n := len(s.Mounts); len(slices.Compact(slices.Sorted(slices.Values(s.Mounts)))) != n {
				t.Errorf("%s mounts something twice: %v", s.Phase, s.Mounts)
			}
		}
		// A caller that changes one answer changes no other.
		again := Plan(req, b)
		steps[1].Args[0], steps[1].Mounts[0], steps[0].Env[0] = "x", "x", "x"
		if diff := cmp.Diff(Plan(req, b), again); diff != "" {
			t.Errorf("the same request gives other steps: %s", diff)
		}
		if after, err := json.Marshal(req); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the plan changed its request: %s is now %s", before, after)
		}
	})
}

// What is carried out is what the plan says: no step sees a place of the build
// that it does not name.
func TestStepsSeeWhatTheyName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req, builder := drawRequest.Draw(t, "request"), drawBuilder.Draw(t, "builder")
		b := &build{facts: []sandbox.Mount{{Target: "/etc/resolv.conf", Source: "/x", ReadOnly: true}}}
		b.setPlaces("/scratch/platform", req.Volumes)
		for _, s := range Plan(req, builder) {
			if s.Foreign {
				mounts, err := b.mounts(s)
				if err != nil {
					t.Fatal(err)
				}
				var targets []string
				for _, m := range mounts {
					targets = append(targets, m.Target)
				}
				if diff := cmp.Diff(append([]string{"/etc/resolv.conf"}, s.Mounts...), targets); diff != "" {
					t.Errorf("%s: %s", s.Phase, diff)
				}
				continue
			}
			for place := range b.dirs(s) {
				if place != dirSystem && !slices.Contains(s.Mounts, place) {
					t.Errorf("%s is shown %s and does not name it", s.Phase, place)
				}
			}
		}
		if _, err := b.mounts(Step{Phase: "detector", Mounts: []string{"/home"}}); err == nil {
			t.Error("a step that names a place which is not of the build is carried out")
		}
	})
}
