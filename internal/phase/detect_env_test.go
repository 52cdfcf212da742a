package phase

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

func TestDetectEnvironment(t *testing.T) {
	conform.Covers(t, 50, 51, 56, 112, 113, 124)
	const dump = `env | grep -v '^_=\|^PWD=\|^OLDPWD=\|^SHLVL=' | sort > $CNB_BUILDPACK_DIR/env; pwd > $CNB_BUILDPACK_DIR/pwd; echo "$0 $1 $2" > $CNB_BUILDPACK_DIR/args`
	w := newWorld(t)
	w.set.ExecEnv = "test"
	w.set.Target.Variant = "v3"
	w.write(filepath.Join(w.dirs.Platform, "env/USERS"), "x\n", 0o666)
	w.write(filepath.Join(w.dirs.Platform, "env/PATH"), "/user", 0o666)
	w.write(filepath.Join(w.dirs.BuildConfig, "env/OPERATORS"), "y", 0o666)
	w.write(filepath.Join(w.dirs.BuildConfig, "env/USERS"), "default only", 0o666)
	w.write(filepath.Join(w.dirs.Platform, "env/ITS"), "user", 0o666)
	w.write(filepath.Join(w.dirs.BuildConfig, "env/ITS.append"), ", then operator", 0o666)
	w.add(pack{name: "new@1", detect: dump})
	w.add(pack{name: "clear@1", info: "clear-env = true", detect: dump})
	w.add(pack{name: "old@1", api: "0.9", detect: dump})
	if _, _, err := w.detect(order("new@1 clear@1 old@1")); err != nil {
		t.Fatal(err)
	}
	dir := func(id string) string { return filepath.Join(w.dirs.Buildpacks, id, "1") }
	target := "CNB_TARGET_ARCH=amd64\nCNB_TARGET_ARCH_VARIANT=v3\nCNB_TARGET_DISTRO_NAME=debian\nCNB_TARGET_DISTRO_VERSION=12\nCNB_TARGET_OS=linux\n"
	for id, want := range map[string]string{
		"new": "CNB_BUILDPACK_DIR=" + dir("new") + "\nCNB_BUILD_PLAN_PATH=PLAN\nCNB_EXEC_ENV=test\nCNB_PLATFORM_DIR=" + w.dirs.Platform + "\n" + target +
			"HOME=/home/cnb\nITS=user, then operator\nOPERATORS=y\nPATH=/user:/usr/bin:/bin\nUSERS=x\n\n",
		"clear": "CNB_BUILDPACK_DIR=" + dir("clear") + "\nCNB_BUILD_PLAN_PATH=PLAN\nCNB_EXEC_ENV=test\nCNB_PLATFORM_DIR=" + w.dirs.Platform + "\n" + target +
			"HOME=/home/cnb\nITS=, then operator\nOPERATORS=y\nPATH=/usr/bin:/bin\nUSERS=default only\n",
		"old": "CNB_BUILDPACK_DIR=" + dir("old") + "\nCNB_BUILD_PLAN_PATH=PLAN\nCNB_PLATFORM_DIR=" + w.dirs.Platform +
			"\nHOME=/home/cnb\nITS=user, then operator\nOPERATORS=y\nPATH=/user:/usr/bin:/bin\nUSERS=x\n\n",
	} {
		var args [3]string
		copy(args[:], strings.Fields(w.read(filepath.Join(dir(id), "args"))))
		if args[0] != filepath.Join(dir(id), "bin/detect") || args[1] != w.dirs.Platform {
			t.Errorf("%s: arguments %q", id, args)
		}
		got := strings.ReplaceAll(w.read(filepath.Join(dir(id), "env")), args[2], "PLAN")
		if diff := cmp.Diff(sortedLines(want), sortedLines(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
		if got := strings.TrimSpace(w.read(filepath.Join(dir(id), "pwd"))); got != w.dirs.App {
			t.Errorf("%s: working directory %s, want %s", id, got, w.dirs.App)
		}
	}
}

func TestDetectUnknownTargetIsNotSet(t *testing.T) {
	conform.Covers(t, 51)
	w := newWorld(t)
	w.set.Target = spec.Target{OS: "linux", Arch: "amd64"}
	w.add(pack{name: "a@1", detect: `env | grep ^CNB_TARGET_ | sort > $CNB_BUILDPACK_DIR/env`})
	if _, _, err := w.detect(order("a@1")); err != nil {
		t.Fatal(err)
	}
	if got := w.read(filepath.Join(w.dirs.Buildpacks, "a/1/env")); got != "CNB_TARGET_ARCH=amd64\nCNB_TARGET_OS=linux\n" {
		t.Errorf("got %q", got)
	}
}

func TestDetectTargets(t *testing.T) {
	conform.Covers(t, 53, 54)
	other := "[[targets]]\nos = \"linux\"\narch = \"riscv64\"\n"
	tests := []struct {
		name, order, want string
		platform          string
		code              int
	}{
		{"required mismatch is an error", "other@1 p@1", "", "0.15", spec.ExitDetectError},
		{"optional mismatch is asked all the same", "other@1? p@1", "other@1 p@1", "0.15", 0},
		{"a group without it can pass", "other@1", "", "0.15", spec.ExitDetectError},
		{"before targets nobody looks", "other@1 p@1", "other@1 p@1", "0.11", 0},
		{"no targets but bin/build is any linux", "p@1", "p@1", "0.15", 0},
		{"a distribution that matches", "deb@1", "deb@1", "0.15", 0},
		{"a distribution that does not", "ubu@1", "", "0.15", spec.ExitDetectError},
		{"stack *", "star@1", "star@1", "0.15", 0},
		{"stack * beside bionic", "more@1", "more@1", "0.15", 0},
		{"stack bionic", "bionic@1", "", "0.15", spec.ExitDetectError},
		{"an old buildpack without targets", "old@1", "old@1", "0.15", 0},
		{"an old buildpack for bionic alone", "oldbionic@1", "", "0.15", spec.ExitDetectError},
		{"the variant", "v3@1", "v3@1", "0.15", 0},
		{"the variant as the reference spells it", "av3@1", "av3@1", "0.15", 0},
		{"another variant", "v2@1", "", "0.15", spec.ExitDetectError},
		{"another variant as the reference spells it", "av2@1", "", "0.15", spec.ExitDetectError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.set.PlatformAPI = tt.platform
			w.set.Target.Variant = "v3"
			w.add(pack{name: "p@1"})
			w.add(pack{name: "other@1", more: other})
			for _, variant := range []string{"v2", "v3"} {
				w.add(pack{name: variant + "@1", more: "[[targets]]\nos = \"linux\"\nvariant = \"" + variant + "\"\n"})
				w.add(pack{name: "a" + variant + "@1", more: "[[targets]]\nos = \"linux\"\narch-variant = \"" + variant + "\"\n"})
			}
			w.add(pack{name: "oldbionic@1", api: "0.9", more: "[[stacks]]\nid = \"io.buildpacks.stacks.bionic\"\n"})
			w.add(pack{name: "old@1", api: "0.9", more: "[[stacks]]\nid = \"some.stack\"\n"})
			w.add(pack{name: "deb@1", more: "[[targets]]\nos = \"linux\"\n[[targets.distros]]\nname = \"debian\"\nversion = \"12\"\n"})
			w.add(pack{name: "ubu@1", more: "[[targets]]\nos = \"linux\"\n[[targets.distros]]\nname = \"ubuntu\"\nversion = \"22.04\"\n"})
			w.add(pack{name: "star@1", more: "[[stacks]]\nid = \"*\"\n"})
			w.add(pack{name: "more@1", more: "[[stacks]]\nid = \"io.buildpacks.stacks.bionic\"\n[[stacks]]\nid = \"*\"\n"})
			w.add(pack{name: "bionic@1", more: "[[stacks]]\nid = \"io.buildpacks.stacks.bionic\"\n"})
			g, _, err := w.detect(order(tt.order))
			if code := spec.ExitCode(err, -1); code != tt.code {
				t.Fatalf("exit code %d (%v), want %d", code, err, tt.code)
			}
			if got := names(g.Group); got != tt.want {
				t.Errorf("group %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDetectExecEnv(t *testing.T) {
	conform.Covers(t, 60, 61, 62)
	tests := []struct {
		name, order, env, platform, want string
		code                             int
	}{
		{"not for this environment is skipped", "test@1 p@1", "production", "0.15", "p@1", 0},
		{"default is production", "test@1 prod@1 p@1", "", "0.15", "prod@1 p@1", 0},
		{"for this environment", "test@1 prod@1 p@1", "test", "0.15", "test@1 p@1", 0},
		{"the other spelling", "tables@1 p@1", "test", "0.15", "tables@1 p@1", 0},
		{"the other spelling, not for it", "tables@1 p@1", "production", "0.15", "p@1", 0},
		{"* means all", "star@1", "staging", "0.15", "star@1", 0},
		{"all skipped", "test@1", "production", "0.15", "", spec.ExitDetectFail},
		{"old platforms know no environments", "test@1 p@1", "production", "0.14", "test@1 p@1", 0},
		{"old buildpacks know no environments", "old@1 p@1", "production", "0.15", "old@1 p@1", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.set.ExecEnv, w.set.PlatformAPI = tt.env, tt.platform
			w.add(pack{name: "p@1"})
			w.add(pack{name: "test@1", info: `exec-env = ["test"]`})
			w.add(pack{name: "prod@1", info: `exec-env = ["production"]`})
			w.add(pack{name: "old@1", api: "0.11", info: `exec-env = ["test"]`})
			w.add(pack{name: "star@1", info: `exec-env = ["*"]`})
			w.add(pack{name: "tables@1", more: "[[buildpack.exec-env]]\nname = \"test\"\n"})
			g, _, err := w.detect(order(tt.order))
			if code := spec.ExitCode(err, -1); code != tt.code {
				t.Fatalf("exit code %d (%v), want %d", code, err, tt.code)
			}
			if got := names(g.Group); got != tt.want {
				t.Errorf("group %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDetectExecEnvOfOrderEntry(t *testing.T) {
	w := newWorld(t)
	w.add(pack{name: "a@1"})
	w.add(pack{name: "b@1"})
	o := order("a@1 b@1")
	o.Order[0].Group[0].ExecEnv = []string{"test"}
	g, _, err := w.detect(o)
	if err != nil || names(g.Group) != "b@1" {
		t.Errorf("group %q, error %v, want b@1 alone", names(g.Group), err)
	}
}

func TestDetectAllSkippedGoesOnToNextGroup(t *testing.T) {
	conform.Covers(t, 61)
	w := newWorld(t)
	w.add(pack{name: "a@1", info: `exec-env = ["test"]`})
	w.add(pack{name: "b@1"})
	g, _, err := w.detect(order("a@1", "b@1"))
	if err != nil || names(g.Group) != "b@1" {
		t.Errorf("group %q, error %v", names(g.Group), err)
	}
	requireStrings(t, "tried", w.tried(), "a@1:skipped", "b@1:pass")
	if n := w.runs()["a@1"]; n != 0 {
		t.Errorf("the skipped buildpack ran %d times", n)
	}
}

func sortedLines(s string) []string {
	var list []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			list = append(list, line)
		}
	}
	return list
}
