package dockerfile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

const head = "ARG base_image\nFROM ${base_image}\n"

func TestCheck(t *testing.T) {
	conform.Covers(t, 68, 69)
	long := strings.Repeat("x", maxWord+1)
	for _, tt := range []struct {
		name, body string
		kind       Kind
		args       map[string]string
		want       Checked
		err        string
	}{
		{name: "build", body: head + "RUN true\n", kind: Build, want: Checked{Extends: true}},
		{name: "build, nothing to do", body: head, kind: Build},
		{name: "build, another spelling", body: "# comment\n\narg base_image=x\nfrom $base_image as me\nrun true", kind: Build, want: Checked{Extends: true}},
		{name: "build, another escape", body: "# escape=`\n" + head + "RUN a `\n b", kind: Build, want: Checked{Extends: true}},
		{name: "build, the syntax directive is of no account", body: "# syntax=example.com/frontend\n" + head, kind: Build},
		{name: "build, heredoc", body: head + "RUN <<E\nFROM scratch\nE\n", kind: Build, want: Checked{Extends: true}},
		{name: "build without ARG", body: "FROM ${base_image}\n", kind: Build, err: "D: must begin with ARG base_image"},
		{name: "build, another ARG", body: "ARG other\n" + head, kind: Build, err: "D:1: ARG other: only ARG base_image may be before FROM"},
		{name: "build, one more ARG", body: "ARG base_image\nARG other\nFROM ${base_image}\n", kind: Build, err: "D:2: ARG other: only ARG base_image may be before FROM"},
		{name: "build, two in one ARG", body: "ARG base_image other\nFROM ${base_image}\n", kind: Build, err: "D:1: ARG base_image other: only"},
		{name: "build, another image", body: "ARG base_image\nFROM debian\n", kind: Build, err: "D:2: FROM debian: must be FROM ${base_image}"},
		{name: "build, another image by way of ARG", body: "ARG base_image\nFROM ${base_image:+debian}\n", kind: Build, err: "must be FROM ${base_image}"},
		{name: "build, two stages", body: head + "FROM debian\n", kind: Build, err: "D:3: a second FROM instruction"},
		{name: "build, two stages of the same", body: head + "FROM ${base_image}\n", kind: Build, err: "D:3: a second FROM instruction"},
		{name: "build, no stage", body: "ARG base_image\n", kind: Build, err: "D: no FROM instruction"},

		{name: "run", body: head + "RUN true\n", kind: Run, want: Checked{Extends: true}},
		{name: "run, nothing to do", body: head, kind: Run},
		{name: "run without ARG", body: "FROM ${base_image}\nRUN true\n", kind: Run, want: Checked{Extends: true}},
		{name: "run, switch", body: "FROM example.com/run:1\n", kind: Run, want: Checked{From: "example.com/run:1"}},
		{name: "run, switch and extend", body: "FROM debian\nUSER 1\n", kind: Run, want: Checked{From: "debian", Extends: true}},
		{name: "run, switch in spite of ARG", body: "ARG base_image\nFROM debian\n", kind: Run, want: Checked{From: "debian"}},
		{name: "run, switch by an ARG's default", body: "ARG v=12\nARG image=debian:$v\nFROM ${image}\n", kind: Run, want: Checked{From: "debian:12"}},
		{name: "run, switch by a build argument", body: "ARG v=12\nFROM debian:${v}\n", kind: Run, args: map[string]string{"v": "13"}, want: Checked{From: "debian:13"}},
		{name: "run, a build argument that nobody declared", body: "FROM debian:${v}\n", kind: Run, args: map[string]string{"v": "13"}, err: "D:1: FROM debian:${v}: v has no value"},
		{name: "run, base_image is not the extension's to say", body: head, kind: Run, args: map[string]string{"base_image": "debian"}},
		{name: "run, no value", body: "ARG v\nFROM debian:$v\n", kind: Run, err: "D:2: FROM debian:$v: v has no value"},
		{name: "run, base image and more", body: "ARG base_image\nFROM ${base_image}-slim\n", kind: Run, err: "${base_image} must stand alone"},
		{name: "run, scratch", body: "FROM scratch\n", kind: Run, err: "D:1: FROM scratch: an app needs an image to run on"},
		{name: "run, no reference", body: "FROM https://x/y\n", kind: Run, err: "D:1: FROM https://x/y: not the reference of an image"},
		{name: "run, a layout is no reference", body: "FROM oci:/etc\n", kind: Run, err: "not the reference of an image"},
		{name: "run, two stages", body: "FROM a\nRUN true\nFROM b\n", kind: Run, err: "D:3: a second FROM instruction: only one is allowed"},
		{name: "run, no stage", body: "# nothing\n", kind: Run, err: "D:1: file with no instructions"},
		{name: "run, empty", body: "", kind: Run, err: "D: file with no instructions"},
		{name: "run, only ARG", body: "ARG x\n", kind: Run, err: "D: no FROM instruction"},
		{name: "run, RUN comes first", body: "RUN true\nFROM a\n", kind: Run, err: "D:1: no build stage in current context"},
		{name: "run, another platform", body: "FROM --platform=linux/s390x a\n", kind: Run, want: Checked{From: "a", Warnings: []string{"D:1: FROM --platform is ignored"}}},

		{name: "unknown instruction", body: head + "RUN a &&\nb\n", kind: Build, err: "D:4: unknown instruction: b"},
		{name: "bad flag", body: head + "\nCOPY --what a b\n", kind: Build, err: "D:4: unknown flag: --what"},
		{name: "binary", body: "FROM a\n\x7fELF\x00\n", kind: Run, err: "D:2: a NUL byte"},
		{name: "huge", body: strings.Repeat("\n", MaxSize+1), kind: Run, err: "D: more than"},
		{name: "long image", body: "FROM " + long, kind: Run, err: "D:1: FROM: more than"},
		{name: "long default", body: "ARG a=" + long + "\nFROM a", kind: Run, err: "D:1: ARG a: more than"},
		{name: "long by growing", body: "ARG a=xxxxxxxxxxxxxxxx\nARG b=$a$a$a$a$a$a$a$a\nARG c=$b$b$b$b$b$b$b$b\nARG d=$c$c$c$c$c$c$c$c\nFROM d", kind: Run, err: "D:4: ARG d: more than"},
		{name: "discouraged", body: head + "EXPOSE 80\n\nVOLUME /v\ncmd x\nONBUILD RUN x\nENTRYPOINT x\nHEALTHCHECK NONE\nSTOPSIGNAL 9\nMAINTAINER me\n", kind: Run,
			want: Checked{Extends: true, Warnings: []string{
				"D:3: an extension should not use EXPOSE", "D:5: an extension should not use VOLUME", "D:6: an extension should not use CMD",
				"D:7: an extension should not use ONBUILD", "D:8: an extension should not use ENTRYPOINT", "D:9: an extension should not use HEALTHCHECK",
				"D:10: an extension should not use STOPSIGNAL", "D:11: an extension should not use MAINTAINER"}}},
		{name: "recommended", body: head + "ADD a b\nARG a\nCOPY a b\nENV a=b\nLABEL a=b\nRUN a\nSHELL [\"a\"]\nUSER 1\nWORKDIR /\n", kind: Build, want: Checked{Extends: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Check([]byte(tt.body), "D", tt.kind, tt.args)
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) && !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckHints(t *testing.T) {
	_, err := Check([]byte(head+"RUN a &&\napt b\n"), "D", Build, nil)
	if hint := spec.HintOf(err); !strings.Contains(hint, "a line that goes on needs a backslash") {
		t.Errorf("hint %q", hint)
	}
}

func TestCheckWarnsWithinBounds(t *testing.T) {
	got, err := Check([]byte(head+strings.Repeat("EXPOSE 1\n", 10_000)), "D", Build, nil)
	if err != nil || len(got.Warnings) != maxWarnings+1 || got.Warnings[maxWarnings] != "D: ... and more instructions that an extension should not use" {
		t.Errorf("%d warnings, error %v", len(got.Warnings), err)
	}
}

var place = regexp.MustCompile(`^D:(\d+): `)

// Whatever a file says: no panic, errors that name the file, warnings that name
// a line of it; and what may extend the build image may extend the run image.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{head, head + "RUN true\nEXPOSE 1\n", "FROM a\n", "ARG v=1\nFROM a:${v:-2}\n", "# escape=`\nFROM a`\n b",
		"FROM a\nRUN <<E\nE\n", "FROM --platform=x a AS b\nCOPY --from=b --chown=1 x y\n", "FROM a\nONBUILD ONBUILD RUN x", "ARG a=${a%x}${a/y/z}\nFROM ${a}",
		"FROM a\nRUN --mount=type=cache,target=/x true\nHEALTHCHECK --interval=1s CMD x\n", "\xef\xbb\xbfFROM a", "FROM a\r\nUSER 1\r\n"} {
		f.Add([]byte(seed), "12")
	}
	f.Fuzz(func(t *testing.T, body []byte, value string) {
		args := map[string]string{"v": value}
		run, err := Check(body, "D", Run, args)
		if err != nil && !strings.HasPrefix(err.Error(), "D:") {
			t.Errorf("error %q does not name the file", err)
		}
		if err != nil && strings.Contains(err.Error(), standIn) {
			t.Errorf("error %q", err)
		}
		lines := strings.Count(string(body), "\n") + 1
		for _, w := range run.Warnings {
			m := place.FindStringSubmatch(w)
			if m == nil && strings.HasPrefix(w, "D: ... and more") {
				continue
			}
			if n, err := strconv.Atoi(fmt.Sprint(append(m, "", "")[1])); err != nil || n < 1 || n > lines {
				t.Errorf("warning %q of a file with %d lines", w, lines)
			}
		}
		build, buildErr := Check(body, "D", Build, args)
		if buildErr != nil {
			return
		}
		if err != nil || build.From != "" || !cmp.Equal(build, run) {
			t.Errorf("for the build image %+v, for the run image %+v, %v", build, run, err)
		}
		if !strings.Contains(strings.ToUpper(string(body)), "FROM") {
			t.Error("no FROM")
		}
	})
}
