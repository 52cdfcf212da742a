package phase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

func (w *world) detect(o spec.Order) (spec.Group, spec.Plan, error) {
	w.t.Helper()
	return Detect(context.Background(), sandbox.InPlace{}, w.dirs, w.set, o, w)
}

const (
	pass = "exit 0"
	fail = "echo not for me; exit 100"
	bad  = "echo out of order >&2; exit 7"
)

func TestDetectGroups(t *testing.T) {
	tests := []struct {
		name   string
		covers []int
		groups []string
		want   string // members of the chosen group
		code   int
		tried  []string
	}{
		{"one passes", []int{32}, []string{"p1@1"}, "p1@1", 0, []string{"p1@1:pass"}},
		{"first passing group is chosen", []int{33}, []string{"p1@1 f@1", "p1@1 p2@1", "p2@1"}, "p1@1 p2@1", 0,
			[]string{"p1@1:pass f@1:fail", "p1@1:pass p2@1:pass"}},
		{"optional that fails is left out", []int{32, 41}, []string{"p1@1 f@1? p2@1"}, "p1@1 p2@1", 0, []string{"p1@1:pass f@1:fail p2@1:pass"}},
		{"optional that errors is left out", []int{37}, []string{"p1@1 e@1?"}, "p1@1", 0, []string{"p1@1:pass e@1:error"}},
		{"only optional members that fail", []int{34}, []string{"f@1? f2@1?"}, "", spec.ExitDetectFail, []string{"f@1:fail f2@1:fail"}},
		{"no group passes", []int{36}, []string{"f@1", "p1@1 f2@1"}, "", spec.ExitDetectFail, []string{"f@1:fail", "p1@1:pass f2@1:fail"}},
		{"no group passes and one errors", []int{32, 36}, []string{"e@1", "f@1"}, "", spec.ExitDetectError, []string{"e@1:error", "f@1:fail"}},
		{"an error does not stop a later group", []int{33}, []string{"e@1", "p1@1"}, "p1@1", 0, []string{"e@1:error", "p1@1:pass"}},
		{"same ID twice runs once", []int{40}, []string{"p1@1 p1@2 p2@1"}, "p1@1 p2@1", 0, []string{"p1@1:pass p2@1:pass"}},
		{"empty order", []int{36}, nil, "", spec.ExitDetectFail, nil},
		{"nested order", []int{38}, []string{"p1@1 nest@1 p2@1"}, "p1@1 a@1 b@1 p2@1", 0, []string{"p1@1:pass a@1:pass b@1:pass p2@1:pass"}},
		{"product of nested orders", []int{38, 49}, []string{"left@1 right@1 f@1"}, "", spec.ExitDetectFail, []string{
			"a@1:pass c@1:pass f@1:fail", "a@1:pass d@1:pass f@1:fail", "b@1:pass c@1:pass f@1:fail", "b@1:pass d@1:pass f@1:fail"}},
		{"nested twice", []int{38}, []string{"deep@1 f@1"}, "", spec.ExitDetectFail, []string{
			"a@1:pass f@1:fail", "b@1:pass f@1:fail", "p2@1:pass f@1:fail"}},
		{"optional composite: its groups, then without it", []int{39}, []string{"left@1? f@1"}, "", spec.ExitDetectFail, []string{
			"a@1:pass f@1:fail", "b@1:pass f@1:fail", "f@1:fail"}},
		{"optional composite is left out", []int{39}, []string{"failing@1? p1@1"}, "p1@1", 0, []string{"f@1:fail p1@1:pass", "p1@1:pass"}},
		{"ID in a composite and beside it", []int{40}, []string{"a@1 left@1 p1@1"}, "a@1 p1@1", 0, []string{"a@1:pass p1@1:pass"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conform.Covers(t, tt.covers...)
			w := newWorld(t)
			for _, name := range []string{"p1@1", "p1@2", "p2@1", "a@1", "b@1", "c@1", "d@1"} {
				w.add(pack{name: name, detect: pass})
			}
			w.add(pack{name: "f@1", detect: fail})
			w.add(pack{name: "f2@1", detect: fail})
			w.add(pack{name: "e@1", detect: bad})
			w.composite("nest@1", "a@1 b@1", "c@1 d@1")
			w.composite("left@1", "a@1", "b@1")
			w.composite("right@1", "c@1", "d@1")
			w.composite("deep@1", "left@1", "p2@1")
			w.composite("failing@1", "f@1")

			g, _, err := w.detect(order(tt.groups...))
			if code := spec.ExitCode(err, -1); code != tt.code {
				t.Fatalf("exit code %d (%v), want %d", code, err, tt.code)
			}
			if got := names(g.Group); got != tt.want {
				t.Errorf("group %q, want %q", got, tt.want)
			}
			requireStrings(t, "tried", w.tried(), tt.tried...)
			for name, n := range w.runs() {
				if n != 1 {
					t.Errorf("%s ran %d times", name, n)
				}
			}
		})
	}
}

func TestDetectGroupCarriesWhatGroupTOMLHas(t *testing.T) {
	conform.Covers(t, 41)
	w := newWorld(t)
	w.add(pack{name: "acme/p@1.2.3", api: "0.11"})
	g, _, err := w.detect(order("acme/p@1.2.3?"))
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Group{Group: []spec.GroupElement{{ID: "acme/p", Version: "1.2.3", API: "0.11", Homepage: "https://example.com/acme/p"}}}
	if diff := cmp.Diff(want, g); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDetectPlan(t *testing.T) {
	conform.Covers(t, 42)
	w := newWorld(t)
	w.add(pack{name: "a@1", detect: `cat > $CNB_BUILD_PLAN_PATH <<E
[[provides]]
name = "jre"
[[or]]
[[or.provides]]
name = "python"
E`})
	w.add(pack{name: "b@1", detect: `cat > $2 <<E
[[requires]]
name = "python"
[requires.metadata]
version = "3.11"
E`})
	_, plan, err := w.detect(order("a@1 b@1"))
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Plan{Entries: []spec.PlanEntry{{
		Providers: []spec.PlanProvider{{ID: "a", Version: "1"}},
		Requires:  []spec.Require{{Name: "python", Metadata: map[string]any{"version": "3.11"}}},
	}}}
	if diff := cmp.Diff(want, plan); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDetectExplainsDisagreement(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", detect: `printf '[[requires]]\nname = "jre"\n' > $CNB_BUILD_PLAN_PATH`})
	w.add(pack{name: "b@1", detect: `printf '[[provides]]\nname = "node"\n' > $CNB_BUILD_PLAN_PATH`})
	_, _, err := w.detect(order("a@1 b@1?"))
	if code := spec.ExitCode(err, -1); code != spec.ExitDetectFail {
		t.Fatalf("exit code %d (%v)", code, err)
	}
	want := event.GroupTried{
		Group: []event.MemberResult{
			{Buildpack: "a@1", Result: "pass"},
			{Buildpack: "b@1", Optional: true, Result: "skipped", Reason: "b@1 provides node, which no buildpack of the group requires"},
		},
		Plan:     "a@1 requires jre, which no buildpack of the group provides",
		Problems: []event.PlanProblem{{Buildpack: "a@1", Name: "jre"}},
	}
	var got event.GroupTried
	for _, e := range w.list {
		if g, ok := e.(event.GroupTried); ok {
			got = g
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDetectExplainsWhenTheWholeGroupIsDropped(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", detect: `printf '[[requires]]\nname = "jre"\n' > $CNB_BUILD_PLAN_PATH`})
	if _, _, err := w.detect(order("a@1?")); spec.ExitCode(err, -1) != spec.ExitDetectFail {
		t.Fatal(err)
	}
	var groups []event.GroupTried
	for _, e := range w.list {
		if g, ok := e.(event.GroupTried); ok {
			groups = append(groups, g)
		}
	}
	want := "group 1 (a@1):\n  plan: a@1 requires jre, which no buildpack of the group provides\n  to make it pass: add a buildpack that provides jre before a@1"
	if got := event.Explain(groups); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDetectReasonsAreTheBuildpacksOwnWords(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "says@1", detect: `echo looking; echo; printf '\033[31mno requirements.txt\033[0m in .\n' >&2; exit 100`})
	w.add(pack{name: "mute@1", detect: `exit 100`})
	w.add(pack{name: "err@1", detect: bad})
	w.add(pack{name: "plan@1", detect: `echo '[[' > $CNB_BUILD_PLAN_PATH`})
	w.add(pack{name: "kill@1", detect: `kill -9 $$`})
	if _, _, err := w.detect(order("says@1 mute@1 err@1 plan@1 kill@1")); spec.ExitCode(err, -1) != spec.ExitDetectError {
		t.Fatal(err)
	}
	reasons := map[string]string{}
	for _, e := range w.list {
		if g, ok := e.(event.GroupTried); ok {
			for _, m := range g.Group {
				reasons[m.Buildpack] = m.Result + ": " + m.Reason
			}
		}
	}
	for name, want := range map[string]string{
		"says@1": "fail: looking; no requirements.txt in .",
		"mute@1": "fail: it gave no reason (bin/detect exited with 100 and printed nothing)",
		"err@1":  "error: bin/detect exited with 7: out of order",
		"plan@1": "error: build plan of plan@1:1:",
		"kill@1": "error: ",
	} {
		if !strings.HasPrefix(reasons[name], want) {
			t.Errorf("%s: %q, want %q", name, reasons[name], want)
		}
	}
	if r := reasons["kill@1"]; !strings.Contains(r, "kill") {
		t.Errorf("kill@1: %q does not name the signal", r)
	}
}

func TestDetectOutputIsShownOnFailureOrDebugOnly(t *testing.T) {
	conform.Covers(t, 63)
	w := newWorld(t)
	w.add(pack{name: "quiet@1", detect: "echo chatter"})
	w.add(pack{name: "no@1", detect: fail})
	w.add(pack{name: "err@1", detect: bad})
	if _, _, err := w.detect(order("quiet@1 no@1? err@1?")); err != nil {
		t.Fatal(err)
	}
	if got := w.output("quiet@1") + w.output("no@1"); got != "" {
		t.Errorf("output %q although a group passed", got)
	}
	if got := w.output("err@1"); got != "out of order\n" {
		t.Errorf("output of the one that failed in an unexpected way: %q", got)
	}
	if got := w.messages(event.Debug); !strings.Contains(got, "quiet@1: chatter") || !strings.Contains(got, "no@1: not for me") {
		t.Errorf("debug messages %q", got)
	}

	w.list = nil
	if _, _, err := w.detect(order("quiet@1 no@1")); err == nil {
		t.Fatal("passed")
	}
	if got := w.output("quiet@1"); got != "chatter\n" {
		t.Errorf("output %q when no group passed", got)
	}
	if got := w.output("no@1"); got != "not for me\n" {
		t.Errorf("output %q when no group passed", got)
	}
}

func TestDetectCycle(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "p@1"})
	w.composite("a@1", "p@1 b@1")
	w.composite("b@1", "c@1")
	w.composite("c@1", "p@1", "b@1")
	_, _, err := w.detect(order("p@1", "a@1"))
	if err == nil || !strings.Contains(err.Error(), "b@1 -> c@1 -> b@1") {
		t.Errorf("error %v does not print the cycle", err)
	}
	if code := spec.ExitCode(err, -1); code != spec.ExitDetect {
		t.Errorf("exit code %d, want %d", code, spec.ExitDetect)
	}
	if len(w.runs()) != 0 {
		t.Error("a buildpack ran although the order is broken")
	}
}

func TestDetectSameCompositeTwiceIsNoCycle(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "p@1"})
	w.composite("leaf@1", "p@1")
	w.composite("a@1", "leaf@1")
	w.composite("b@1", "leaf@1 a@1")
	g, _, err := w.detect(order("b@1 a@1"))
	if err != nil || names(g.Group) != "p@1" {
		t.Errorf("group %q, error %v", names(g.Group), err)
	}
}

func TestDetectUnsupportedAPI(t *testing.T) {
	conform.Covers(t, 2)
	w := newWorld(t)
	w.add(pack{name: "p@1"})
	w.add(pack{name: "future@1", api: "7.0"})
	_, _, err := w.detect(order("p@1", "future@1"))
	if code := spec.ExitCode(err, -1); code != spec.ExitBuildpackAPI {
		t.Errorf("exit code %d (%v), want %d", code, err, spec.ExitBuildpackAPI)
	}
	if err == nil || !strings.Contains(err.Error(), "future@1") {
		t.Errorf("error %v does not name the buildpack", err)
	}
	if len(w.runs()) != 0 {
		t.Error("a buildpack ran before the order was checked")
	}
	for id, api := range map[string]string{"good": "0.12", "ext": "0.13"} {
		w.write(filepath.Join(w.dirs.Extensions, id, "1/extension.toml"), fmt.Sprintf("api = %q\n[extension]\nid = %q\nversion = \"1\"\n", api, id), 0o666)
	}
	o := order("p@1")
	o.OrderExtensions = []spec.OrderGroup{group("good@1"), group("ext@1")}
	if _, _, err := w.detect(o); spec.ExitCode(err, -1) != spec.ExitBuildpackAPI || !strings.Contains(err.Error(), "ext@1") {
		t.Errorf("an extension: %v", err)
	}
	if len(w.runs()) != 0 {
		t.Error("a buildpack ran before the extensions were checked")
	}
}

func TestDetectMissingBuildpack(t *testing.T) {
	w := newWorld(t)
	_, _, err := w.detect(order("acme/gone@1"))
	if code := spec.ExitCode(err, -1); code != spec.ExitDetect || !strings.Contains(err.Error(), "acme/gone@1") {
		t.Errorf("exit code %d, error %v", code, err)
	}
	if hint := spec.HintOf(err); !strings.Contains(hint, "acme_gone/1/buildpack.toml") {
		t.Errorf("hint %q does not name the file", hint)
	}
}

func TestDetectMissingExecutable(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1"})
	if err := os.Remove(filepath.Join(w.dirs.Buildpacks, "a/1/bin/detect")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.detect(order("a@1")); spec.ExitCode(err, -1) != spec.ExitDetectError {
		t.Errorf("error %v", err)
	}
}

func TestDetectRunsAGroupInParallel(t *testing.T) {
	w := newWorld(t)
	// Each waits until it sees the other: one after the other would never end.
	meet := func(me, other string) string {
		return "touch ../" + me + "\ni=0\nwhile [ ! -e ../" + other + " ]; do i=$((i+1)); [ $i -lt 500 ] || exit 9; sleep 0.01; done"
	}
	w.add(pack{name: "a@1", detect: meet("a", "b")})
	w.add(pack{name: "b@1", detect: meet("b", "a")})
	if _, _, err := w.detect(order("a@1 b@1")); err != nil {
		t.Error(err)
	}
}

func TestDetectHostilePlans(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("[[provides]]\nname = \"x\"\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"fifo":      `rm $CNB_BUILD_PLAN_PATH; mkfifo $CNB_BUILD_PLAN_PATH`,
		"symlink":   `ln -sf ` + secret + ` $CNB_BUILD_PLAN_PATH`,
		"device":    `ln -sf /dev/zero $CNB_BUILD_PLAN_PATH`,
		"directory": `rm $CNB_BUILD_PLAN_PATH; mkdir $CNB_BUILD_PLAN_PATH`,
		"huge":      `truncate -s 1T $CNB_BUILD_PLAN_PATH`,
		"version":   `printf '[[requires]]\nname = "a"\nversion = "1"\n' > $CNB_BUILD_PLAN_PATH`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add(pack{name: "a@1", detect: script})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, _, err := Detect(ctx, sandbox.InPlace{}, w.dirs, w.set, order("a@1"), w)
			if code := spec.ExitCode(err, -1); code != spec.ExitDetectError {
				t.Errorf("exit code %d (%v), want %d", code, err, spec.ExitDetectError)
			}
		})
	}
	t.Run("removed is empty", func(t *testing.T) {
		w := newWorld(t)
		w.add(pack{name: "a@1", detect: `rm $CNB_BUILD_PLAN_PATH`})
		if _, _, err := w.detect(order("a@1")); err != nil {
			t.Error(err)
		}
	})
	t.Run("endless output is bounded", func(t *testing.T) {
		w := newWorld(t)
		w.add(pack{name: "a@1", detect: `head -c 3000000 /dev/zero | tr '\0' x; echo; echo the end; exit 100`})
		if _, _, err := w.detect(order("a@1")); spec.ExitCode(err, -1) != spec.ExitDetectFail {
			t.Error(err)
		}
		if got := w.output("a@1"); got != "the end\n" {
			t.Errorf("%d bytes of output", len(got))
		}
	})
}

func TestDetectEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", detect: "touch ../started; sleep 60"})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(w.dirs.App, "../started")); err == nil {
				cancel()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	start := time.Now()
	_, _, err := Detect(ctx, sandbox.InPlace{}, w.dirs, w.set, order("a@1"), w)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v does not say canceled", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestDetectExtensions(t *testing.T) {
	w := newWorld(t)
	ext := func(name, detect string) {
		dir := filepath.Join(w.dirs.Extensions, name, "1")
		w.write(filepath.Join(dir, "extension.toml"), "api = \"0.12\"\n[extension]\nid = \""+name+"\"\nversion = \"1\"\n", 0o666)
		if detect != "" {
			w.write(filepath.Join(dir, "bin/detect"), shebang+detect, 0o777)
		}
	}
	ext("curl", `printf '[[provides]]\nname = "curl"\n' > $CNB_BUILD_PLAN_PATH; env > $CNB_EXTENSION_DIR/env`)
	ext("static", "")
	w.write(filepath.Join(w.dirs.Extensions, "static/1/detect/plan.toml"), "[[provides]]\nname = \"wget\"\n", 0o666)
	ext("unused", `printf '[[provides]]\nname = "unused"\n' > $CNB_BUILD_PLAN_PATH`)
	ext("greedy", `printf '[[requires]]\nname = "curl"\n' > $CNB_BUILD_PLAN_PATH`)
	w.add(pack{name: "p@1", detect: `printf '[[requires]]\nname = "curl"\n[[requires]]\nname = "wget"\n' > $CNB_BUILD_PLAN_PATH`})
	o := order("p@1")
	o.OrderExtensions = []spec.OrderGroup{group("curl@1 static@1 unused@1 greedy@1")}

	g, plan, err := w.detect(o)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(g.Group) + " | " + names(g.GroupExtensions); got != "p@1 | curl@1 static@1" {
		t.Errorf("group %q", got)
	}
	if p := plan.Entries[0].Providers[0]; p != (spec.PlanProvider{ID: "curl", Version: "1", Extension: true}) {
		t.Errorf("provider %+v", p)
	}
	env := w.read(filepath.Join(w.dirs.Extensions, "curl/1/env"))
	if strings.Contains(env, "CNB_BUILDPACK_DIR") || !strings.Contains(env, "CNB_EXTENSION_DIR=") {
		t.Errorf("environment of an extension:\n%s", env)
	}
	requireStrings(t, "tried", w.tried(), "curl@1:pass static@1:pass unused@1:skipped greedy@1:error p@1:pass")

	t.Run("only extensions pass", func(t *testing.T) {
		w.add(pack{name: "f@1", detect: fail})
		o := order("f@1?")
		o.OrderExtensions = []spec.OrderGroup{group("static@1")}
		if _, _, err := w.detect(o); spec.ExitCode(err, -1) != spec.ExitDetectFail {
			t.Errorf("error %v", err)
		}
	})
	t.Run("extensions below 0.10 do not exist", func(t *testing.T) {
		w.set.PlatformAPI = "0.9"
		if _, _, err := w.detect(o); spec.ExitCode(err, -1) != spec.ExitDetectFail {
			t.Errorf("error %v: the plan cannot be met without them", err)
		}
	})
}

func TestDetectPipeForDescriptor(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dirs.Buildpacks, "a/1")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "buildpack.toml"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.detect(order("a@1")); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Errorf("error %v", err)
	}
}

func TestDetectTooManyGroups(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "f@1", detect: fail})
	many := strings.Repeat("f@1\n", 20)
	var all []string
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		w.composite(id+"@1", strings.Split(strings.TrimSpace(many), "\n")...)
		all = append(all, id+"@1")
	}
	w.list = nil
	_, _, err := Detect(context.Background(), sandbox.InPlace{}, w.dirs, w.set, order(strings.Join(all, " ")), event.Discard)
	if code := spec.ExitCode(err, -1); code != spec.ExitDetect || !strings.Contains(err.Error(), "groups") {
		t.Errorf("exit code %d, error %v", code, err)
	}
}

func TestWithSystem(t *testing.T) {
	conform.Covers(t, 58, 59)
	w := newWorld(t)
	var sys spec.System
	sys.System.Pre.Buildpacks = group("pre@1 a@9").Group
	sys.System.Post.Buildpacks = group("post@1?").Group
	o := order("a@1 b@1", "b@1 post@7")
	var got []string
	for _, g := range WithSystem("0.15", o, sys).Order {
		got = append(got, names(g.Group))
	}
	requireStrings(t, "order", got, "pre@1 a@1 b@1 post@1", "pre@1 a@9 b@1 post@7")
	if diff := cmp.Diff(o, WithSystem("0.14", o, sys)); diff != "" {
		t.Errorf("0.14 knows no system buildpacks:\n%s", diff)
	}

	// Required by default, optional where it says so.
	w.add(pack{name: "a@1"})
	w.add(pack{name: "a@9"})
	w.add(pack{name: "b@1"})
	w.add(pack{name: "pre@1"})
	w.add(pack{name: "post@1", detect: fail})
	g, _, err := w.detect(WithSystem("0.15", order("a@1 b@1"), sys))
	if err != nil || names(g.Group) != "pre@1 a@1 b@1" {
		t.Errorf("group %q, error %v", names(g.Group), err)
	}
	sys.System.Post.Buildpacks[0].Optional = false
	if _, _, err := w.detect(WithSystem("0.15", order("a@1 b@1"), sys)); spec.ExitCode(err, -1) != spec.ExitDetectFail {
		t.Errorf("a required system buildpack failed, and the error is %v", err)
	}
}

// System buildpacks are members like others: in groups of optional buildpacks
// they may be the ones that pass, environments leave them out, a nested order
// that has one too gets it once, and extensions come before all.
func TestSystemBuildpacksAreOrdinaryMembers(t *testing.T) {
	conform.Covers(t, 58)
	for _, tt := range []struct {
		name, pre, post, order, want string
		execEnv                      []string // of the first pre
		tried                        []string
	}{
		{"a group whose own members all decline", "sys@1", "", "f@1?", "sys@1", nil, []string{"sys@1:pass f@1:fail"}},
		{"in a nested order, too", "sys@1", "", "nest@1", "sys@1 a@1", nil, []string{"sys@1:pass a@1:pass"}},
		{"another version in a nested order", "", "sys@1", "nest@1", "sys@2 a@1", nil, []string{"sys@2:pass a@1:pass"}},
		{"before and after", "sys@1", "sys@2 b@1", "a@1", "sys@1 a@1 b@1", nil, []string{"sys@1:pass a@1:pass b@1:pass"}},
		{"a composite", "comp@1", "", "b@1", "a@1 b@1", nil, []string{"a@1:pass b@1:pass"}},
		{"not for this environment", "sys@1", "b@1", "a@1", "a@1 b@1", []string{"test"}, []string{"a@1:pass b@1:pass"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			for _, name := range []string{"sys@1", "sys@2", "a@1", "b@1"} {
				w.add(pack{name: name})
			}
			w.add(pack{name: "f@1", detect: fail})
			w.composite("nest@1", "sys@2 a@1")
			w.composite("comp@1", "a@1")
			var sys spec.System
			sys.System.Pre.Buildpacks, sys.System.Post.Buildpacks = group(tt.pre).Group, group(tt.post).Group
			if tt.execEnv != nil {
				sys.System.Pre.Buildpacks[0].ExecEnv = tt.execEnv
			}
			g, _, err := w.detect(WithSystem("0.15", order(tt.order), sys))
			if err != nil || names(g.Group) != tt.want {
				t.Errorf("group %q, error %v, want %q", names(g.Group), err, tt.want)
			}
			requireStrings(t, "tried", w.tried(), tt.tried...)
		})
	}
}

// A require with a version of its own is from before Buildpack API 0.3.
func TestDetectRefusesVersionOfRequire(t *testing.T) {
	conform.Covers(t, 57)
	for _, plan := range []string{`[[requires]]\nname = "x"\nversion = "1"\n`, `[[or]]\n[[or.requires]]\nname = "x"\nversion = "1"\n`} {
		w := newWorld(t)
		w.add(pack{name: "a@1", detect: `printf '[[provides]]\nname = "x"\n' > $CNB_BUILD_PLAN_PATH; printf '` + plan + `' >> $CNB_BUILD_PLAN_PATH`})
		_, _, err := w.detect(order("a@1"))
		if code := spec.ExitCode(err, -1); code != spec.ExitDetectError {
			t.Errorf("exit code %d (%v)", code, err)
		}
		if tried := w.list[len(w.list)-1].(event.GroupTried); !strings.Contains(tried.Group[0].Reason, "version: is not allowed here") {
			t.Errorf("reason %q", tried.Group[0].Reason)
		}
	}
}

func TestTargetOf(t *testing.T) {
	conform.Covers(t, 52)
	release := []byte("PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n")
	known := spec.Target{OS: "linux", Arch: "arm64", Distro: &spec.Distro{Name: "ubuntu", Version: "22.04"}}
	unknown := spec.Target{OS: "linux", Arch: "arm64"}
	debian := spec.Target{OS: "linux", Arch: "arm64", Distro: &spec.Distro{Name: "debian", Version: "12"}}
	for _, tt := range []struct {
		name     string
		analyzed spec.Analyzed
		release  []byte
		want     spec.Target
	}{
		{"known", spec.Analyzed{RunImage: &spec.RunImage{Target: &known}}, release, known},
		{"filled", spec.Analyzed{RunImage: &spec.RunImage{Target: &unknown}}, release, debian},
		{"nowhere", spec.Analyzed{RunImage: &spec.RunImage{Target: &unknown}}, nil, unknown},
		{"no run image", spec.Analyzed{}, nil, spec.Target{}},
	} {
		if diff := cmp.Diff(tt.want, TargetOf(tt.analyzed, tt.release)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if unknown.Distro != nil {
		t.Error("the analyzed target was changed")
	}
}

// What each buildpack said is told once, and of a group that passes who meets
// what, and by which alternative.
func TestDetectTellsAll(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1", detect: "printf '[[provides]]\\nname = \"x\"\\n[[or]]\\n[[or.provides]]\\nname = \"y\"\\n' > $CNB_BUILD_PLAN_PATH\nprintf 'a\\033[31mb\\n'"})
	w.add(pack{name: "b@1", detect: "printf '[[requires]]\\nname = \"y\"\\n[requires.metadata]\\nn = 1\\n' > $CNB_BUILD_PLAN_PATH"})
	w.add(pack{name: "no@1", detect: "echo 'no go.mod'; exit 100"})
	if _, _, err := w.detect(order("a@1 no@1", "a@1 b@1")); err != nil {
		t.Fatal(err)
	}
	said := map[string]event.Detected{}
	var last event.GroupTried
	for _, e := range w.list {
		switch e := e.(type) {
		case event.Detected:
			if _, again := said[e.Buildpack]; again {
				t.Errorf("%s is told twice", e.Buildpack)
			}
			said[e.Buildpack] = e
		case event.GroupTried:
			last = e
		}
	}
	wantSaid := map[string]event.Detected{
		"a@1":  {Buildpack: "a@1", Output: "ab\n", Alternatives: []event.Alternative{{Provides: []string{"x"}}, {Provides: []string{"y"}}}},
		"b@1":  {Buildpack: "b@1", Alternatives: []event.Alternative{{Requires: []string{"y"}}}},
		"no@1": {Buildpack: "no@1", ExitCode: 100, Output: "no go.mod\n"},
	}
	if diff := cmp.Diff(wantSaid, said); diff != "" {
		t.Error(diff)
	}
	want := event.GroupTried{
		Passed:  true,
		Group:   []event.MemberResult{{Buildpack: "a@1", Result: "pass", Alternative: 2}, {Buildpack: "b@1", Result: "pass"}},
		Entries: []event.PlanEntry{{Name: "y", Providers: []string{"a@1"}, Requires: []event.Requirement{{By: "b@1", Metadata: map[string]any{"n": int64(1)}}}}},
	}
	if diff := cmp.Diff(want, last); diff != "" {
		t.Error(diff)
	}
}
