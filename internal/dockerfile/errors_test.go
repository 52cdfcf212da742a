package dockerfile

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/sandbox"
)

// TestErrors: each says the file, the line and what is wrong.
func TestErrors(t *testing.T) {
	m := overlayMachine(t, sandbox.Tier1F)
	files := map[string]string{"f": "F", "d/x": "X", "e/d/x": "", ".dockerignore": "hidden\n", "hidden": "", "loop": "-> loop", "out": "-> ../../../../etc/passwd", "sub/.wh.x": ""}
	for name, x := range map[string]struct{ dockerfile, err string }{
		"unknown instruction":        {"FROM base\nFOO x", "Dockerfile:2: unknown instruction: FOO"},
		"no FROM":                    {"ARG x", "Dockerfile: no FROM instruction"},
		"instruction before FROM":    {"RUN x\nFROM base", "Dockerfile:1: RUN before FROM"},
		"empty":                      {"", "Dockerfile: file with no instructions"},
		"NUL":                        {"FROM base\n\nRUN a\x00", "Dockerfile:3: a NUL byte"},
		"unterminated heredoc":       {"FROM base\nRUN <<E\nx", "Dockerfile:2: unterminated heredoc"},
		"image that nobody opened":   {"FROM other2", "Dockerfile:1: FROM other2: image other2: image not found"},
		"blank image":                {"ARG x\nFROM $x", "Dockerfile:2: FROM $x: no image is named"},
		"missing source":             {"FROM base\nCOPY f nothing /x/", "Dockerfile:2: COPY f nothing /x/: source nothing: not found"},
		"ignored source":             {"FROM base\nCOPY hidden /x", "source hidden: not found (.dockerignore excludes it)"},
		"source out of the context":  {"FROM base\nCOPY ../f2 /x", "source ../f2: not found"},
		"link out of the context":    {"FROM base\nCOPY out /x", "source out: not found"},
		"link in a circle":           {"FROM base\nCOPY loop /x", "source loop: resolve loop: too many levels of symbolic links"},
		"name that layers lack":      {"FROM base\nCOPY sub /x", "sub/.wh.x: in an image layer a name that starts with .wh. means"},
		"several sources to a file":  {"FROM base\nCOPY f d /x", "with more than one source the destination /x must be a directory and end in a slash"},
		"file over a directory":      {"FROM base\nCOPY d /srv/link2/\nRUN mkdir -p /y/x\nCOPY d /y", "/y/x: a file cannot take the place of a directory"},
		"directory over a file":      {"FROM base\nRUN mkdir /y && echo > /y/d\nCOPY e /y", "/y/d: a directory cannot take the place of a file"},
		"destination below a file":   {"FROM base\nCOPY f /etc/passwd/", "/etc/passwd: is there and is no directory"},
		"unknown user":               {"FROM base\nCOPY --chown=nobody f /x", `user "nobody" is not in its /etc/passwd`},
		"unknown group":              {"FROM base\nCOPY --chown=node:nobody f /x", `group "nobody" is not in its /etc/group`},
		"bad mode":                   {"FROM base\nCOPY --chmod=99 f /x", "--chmod=99: must be octal, or like u=rwX,go=rX"},
		"mode too large":             {"FROM base\nCOPY --chmod=17777 f /x", "--chmod=17777: must be at most 7777"},
		"COPY of a URL":              {"FROM base\nCOPY http://x/y /x", "http://x/y: COPY takes no URL, ADD does"},
		"git by ssh":                 {"FROM base\nADD git@example.com:a/b /x", "git@example.com:a/b: Git by ssh is not supported"},
		"git by an ssh URL":          {"FROM base\nADD ssh://git@example.com/a.git /x", "Git by ssh is not supported"},
		"git with an option as ref":  {"FROM base\nADD https://example.com/b.git#--upload-pack=x /x", "can be no name of a branch, tag or commit"},
		"git with a query":           {"FROM base\nADD https://example.com/b.git?ref=x /x", "a query is not supported for Git"},
		"COPY of git":                {"FROM base\nCOPY https://example.com/b.git /x", "COPY takes no URL, ADD does"},
		"checksum of a file":         {"FROM base\nADD --checksum=sha256:0 f /x", "--checksum is for one source, which must be a URL"},
		"unknown stage":              {"FROM base\nCOPY --from=none f /x", "no earlier stage and no image none: image not found"},
		"own stage":                  {"FROM base AS me\nCOPY --from=me f /x", "no earlier stage and no image me: image not found"},
		"ssh":                        {"FROM base\nRUN --mount=type=ssh,target=/s x", "--mount=type=ssh: is not supported"},
		"insecure":                   {"FROM base\nRUN --security=insecure x", "--security: a step gets no more rights here"},
		"secret that is required":    {"FROM base\nRUN --mount=type=secret,id=s,required x", "--mount=type=secret: the secret s is required, and was not given"},
		"mount on /":                 {"FROM base\nRUN --mount=type=tmpfs,target=/ x", "a target is needed, and not /"},
		"mount source":               {"FROM base\nRUN --mount=type=bind,source=no,target=/x x", "--mount=type=bind: source no: not found"},
		"bad signal":                 {"FROM base\nSTOPSIGNAL SIGFOO", `Dockerfile:2: STOPSIGNAL SIGFOO: "SIGFOO" is no signal`},
		"bad port":                   {"FROM base\nEXPOSE 80/http", `port "80/http": protocol "http"`},
		"port too large":             {"FROM base\nEXPOSE 65536", `port "65536": must be a number up to 65535`},
		"bad variable":               {"FROM base\nENV =x", "Dockerfile:2: "},
		"bad substitution":           {"FROM base\nENV a=${b", "Dockerfile:2: ENV a=${b: "},
		"a variable that must be":    {"FROM base\nLABEL a=${b:?missing}", "missing"},
		"variables that grow":        {"FROM base\nENV a=aaaaaaaaaaaaaaaa" + strings.Repeat("\nENV a=$a$a$a$a$a$a$a$a", 30), "variables grow to more than 131072 bytes"},
		"command that fails":         {"FROM base\nRUN exit 7", "Dockerfile:2: RUN exit 7: exit status 7"},
		"command that is not there":  {`FROM base` + "\n" + `RUN ["/none"]`, `Dockerfile:2: RUN ["/none"]: run /none:`},
		"user that is not there":     {"FROM base\nUSER nobody\nRUN true", `user "nobody" is not in its /etc/passwd`},
		"ONBUILD that is broken":     {"FROM onbuild\nRUN true", "ONBUILD of onbuild"},
		"WORKDIR on a file":          {"FROM base\nWORKDIR /etc/passwd", "/etc/passwd: is there and is no directory"},
		"URL that cannot be reached": {"FROM base\nADD http://127.0.0.1:1/x /x", "http://127.0.0.1:1/x: "},
		"volume without a path":      {"FROM base\nVOLUME [\"\"]", `Dockerfile:2: VOLUME specified can not be an empty string`},
		"a secret of no name":        {"FROM base\nRUN --mount=type=secret true", "invalid secret mount. one of source, target required"},
		"another platform":           {"FROM --platform=linux/s390x base", "Dockerfile:1: FROM base: --platform=linux/s390x: this is built for and on linux/amd64"},
		"another system":             {"ARG os=windows\nFROM --platform=$os base", "--platform=windows: this is built for"},
		"a check that is none":       {"# check=skip\nFROM base", `Dockerfile:1: # check=skip: invalid check option "skip"`},
		"a check that fails":         {"# check=error=true\nFROM base as x\nMAINTAINER me", "Dockerfile:2: 'as' and 'FROM' keywords' casing do not match; Dockerfile:3: Maintainer"},
		"a tmpfs that is full":       {"FROM base\nRUN --mount=type=tmpfs,target=/t,size=64k busybox dd if=/dev/zero of=/t/f bs=1k count=128", "exit status 1"},
		"heredoc without shell":      {"FROM base\nRUN [\"a\"] <<E\nE", "Dockerfile:2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := order{dockerfile: x.dockerfile, base: baseImage(t, v1.Config{}), context: files,
				images: map[string]v1.Image{"onbuild": imageOf(t, v1.Config{OnBuild: []string{"FOO"}})}}
			_, err := buildWith(t, m, o, &heard{})
			if err == nil || !strings.Contains(err.Error(), x.err) {
				t.Errorf("got %v, want %s", err, x.err)
			}
		})
	}
}

// TestExitStatus: who asks hears how the program ended.
func TestExitStatus(t *testing.T) {
	for machine, build := range builders(t) {
		var h heard
		_, err := build(t, order{dockerfile: "FROM base\nRUN echo said; echo wrong >&2; exit 7", base: baseImage(t, v1.Config{})}, &h)
		var exit *sandbox.ExitError
		if !errors.As(err, &exit) || !strings.Contains(err.Error(), "Dockerfile:2: RUN echo said; echo wrong >&2; exit 7: exit status 7") {
			t.Errorf("%s: %v", machine, err)
		}
		if said := h.String(); !strings.Contains(said, "said\n") || !strings.Contains(said, "wrong\n") {
			t.Errorf("%s: heard %q", machine, said)
		}
	}
}

// TestInPlaceRefuses what there is no second root for.
func TestInPlaceRefuses(t *testing.T) {
	m := overlayMachine(t, rootTiers()[0])
	base := baseImage(t, v1.Config{})
	for dockerfile, want := range map[string]string{
		"FROM base AS a\nRUN echo > /a\nFROM base\nCOPY --from=a /etc /b": "in place only the container's own image can be built on",
		"FROM scratch\nCOPY f /":                                             "in place only the container's own image can be built on",
		"FROM base\nRUN --network=none true":                                 "--network=none: in place there is no network but the container's",
		"FROM base\nRUN --mount=type=bind,target=/srv/d true":                "in place /srv/d, which is of the image, cannot be covered",
		"FROM base\nRUN false\n":                                             "exit status 1",
		"FROM base\nRUN --mount=type=secret,id=s,target=/srv/data cat /none": "exit status 1",
	} {
		_, err := buildInPlace(t, m, order{dockerfile: dockerfile, base: base, context: map[string]string{"f": ""}, secrets: map[string][]byte{"s": nil}}, &heard{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", dockerfile, err, want)
		}
	}
}

// TestInPlaceCache: a directory of the image that cannot be covered is used as
// it is, and nothing that was put there stays.
func TestInPlaceCache(t *testing.T) {
	m := overlayMachine(t, rootTiers()[0])
	base := baseImage(t, v1.Config{})
	img, err := buildInPlace(t, m, order{base: base, dockerfile: "FROM base\nRUN --mount=type=cache,target=/srv/d --mount=type=tmpfs,target=/etc cat /srv/d/x > /srv/d/new; mkdir -p /etc/a/b; echo > /etc/a/b/c\n" +
		"RUN ls /srv/d /etc > /got"}, &heard{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "files", listing(flatten(t, added(t, img, base), 0)), []string{"got 0 0644 0:0 /etc:\ngroup\npasswd\n\n/srv/d:\nx\n"})
}

// TestFromScratch builds on nothing, and triggers of the image below.
func TestFromScratch(t *testing.T) {
	m := overlayMachine(t, sandbox.Tier1F)
	o := order{context: map[string]string{"f": "F"}, dockerfile: "FROM scratch\nCOPY --chown=1:2 f /dir/\nLABEL a=b\nONBUILD ENV X=$Y\nONBUILD COPY f /triggered\nONBUILD RUN [\"/none\"]"}
	img, err := buildWith(t, m, o, &heard{})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	want(t, "files", listing(flatten(t, layers, 0)), []string{"dir/ 5 0755 1:2", "dir/f 0 0644 1:2 F"})
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want(t, "platform", cf.OS+"/"+cf.Architecture, "linux/amd64")
	want(t, "working directory", cf.Config.WorkingDir, "/")
	want(t, "environment", cf.Config.Env, []string{"PATH=" + defaultPath})
	want(t, "triggers", cf.Config.OnBuild, []string{"ENV X=$Y", "COPY f /triggered", `RUN ["/none"]`})

	o = order{base: img, context: map[string]string{"f": "child's"}, dockerfile: "FROM base\nENV after=1"}
	_, err = buildWith(t, m, o, &heard{})
	if err == nil || !strings.Contains(err.Error(), `Dockerfile:1: ONBUILD RUN ["/none"]: run /none`) {
		t.Errorf("a trigger that fails: %v", err)
	}
	cf.Config.OnBuild = cf.Config.OnBuild[:2]
	o.base = imageOf(t, cf.Config, layers...)
	child, err := buildWith(t, m, o, &heard{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "files of the child", listing(flatten(t, added(t, child, img), 0)), []string{"triggered 0 0644 0:0 child's"})
	if cf, err = child.ConfigFile(); err != nil {
		t.Fatal(err)
	}
	want(t, "env of the child", cf.Config.Env, []string{"PATH=" + defaultPath, "X=", "after=1"})
	want(t, "triggers of the child", len(cf.Config.OnBuild), 0)
}

// TestAddURL fetches over the network of the machine.
func TestAddURL(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.URL.Path == "/gone/x" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte(archive))
	}))
	defer server.Close()
	sum := sha256Hex(archive)
	base := baseImage(t, v1.Config{})
	w, report, scratch := worker(t, sandbox.Tier1F)
	m, err := NewOverlay(w, report, OverlayOptions{Scratch: scratch, Executable: inside})
	if err != nil {
		t.Fatal(err)
	}
	for dockerfile, files := range map[string][]string{
		"ADD URL/f.tar?query /x/":                                 {"x/ 5 0755 0:0", "x/f.tar 0 0600 0:0 2560 bytes"},
		"ADD --chmod=644 URL/f.tar /y":                            {"y 0 0644 0:0 2560 bytes"},
		"ADD --unpack=true --checksum=sha256:" + sum + " URL/f /": {"in/ 5 0700 1:2", "in/file 0 4755 3:4 body"},
		"ADD URL /z/": {"z/ 5 0755 0:0", "z/__unnamed__ 0 0600 0:0 2560 bytes"},
	} {
		img, err := buildWith(t, m, order{base: base, dockerfile: "FROM base\n" + strings.ReplaceAll(dockerfile, "URL", server.URL)}, &heard{})
		if err != nil {
			t.Errorf("%s: %v", dockerfile, err)
			continue
		}
		want(t, dockerfile, listing(flatten(t, added(t, img, base), 0)), files)
	}
	for dockerfile, want := range map[string]string{
		"ADD --checksum=sha256:" + strings.Repeat("0", 64) + " URL/f /x": "has the checksum sha256:" + sum,
		"ADD --checksum=md5:0 URL/f /x":                                  "must be sha256: and 64 hexadecimal digits",
		"ADD URL/gone/x /x":                                              "the server says 404 Not Found",
	} {
		_, err := buildWith(t, m, order{base: base, dockerfile: "FROM base\n" + strings.ReplaceAll(dockerfile, "URL", server.URL)}, &heard{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", dockerfile, err, want)
		}
	}
	// What is known by its checksum is not fetched again.
	cache := openCache(t, t.TempDir())
	o := order{base: base, cache: cache, dockerfile: "FROM base\nADD --checksum=sha256:" + sum + " " + server.URL + "/f /x"}
	for range 2 {
		asked = 0
		if _, err := buildWith(t, m, o, &heard{}); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 0 {
		t.Errorf("asked the server %d times for what is cached", asked)
	}
}
