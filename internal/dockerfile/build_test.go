package dockerfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/test/conform"
)

// TestInstructions holds each instruction to what docker makes of it, on every
// machine, and all machines to the same bytes.
func TestInstructions(t *testing.T) {
	all := builders(t)
	for name, x := range instructionCases {
		t.Run(name, func(t *testing.T) {
			conform.Covers(t, x.covers...)
			t.Parallel()
			base := baseImage(t, v1.Config{Env: []string{"PATH=/bin", "A=a"}, WorkingDir: "/srv", Cmd: []string{"base"}})
			x.order.base = base
			x.order.images = map[string]v1.Image{"other": imageOf(t, v1.Config{}, layerOf(t, "file 644 5:5 other"))}
			digests := map[string]string{}
			for machine, build := range all {
				if machine == "in place" && (x.notInPlace || x.users && os.Geteuid() != 0) {
					continue
				}
				var h heard
				img, err := build(t, x.order, &h)
				if err != nil {
					t.Fatalf("%s: %v\n%s", machine, err, h.String())
				}
				if diff := cmp.Diff(x.files, listing(flatten(t, append([]v1.Layer{nil}, added(t, img, base)...), 1))); diff != "" {
					t.Errorf("%s: files: want (-), got (+):\n%s", machine, diff)
				}
				if x.history != nil {
					if diff := cmp.Diff(x.history, created(t, img)); diff != "" {
						t.Errorf("%s: history: want (-), got (+):\n%s", machine, diff)
					}
				}
				if x.check != nil {
					cf, err := img.ConfigFile()
					if err != nil {
						t.Fatal(err)
					}
					x.check(t, cf)
				}
				digest, err := img.Digest()
				if err != nil {
					t.Fatal(err)
				}
				digests[machine] = digest.String()
			}
			for machine, digest := range digests {
				if digest != digests["1f"] {
					t.Errorf("%s makes %s, 1f %s", machine, digest, digests["1f"])
				}
			}
		})
	}
}

type instructionCase struct {
	covers []int // requirements
	order
	files      []string // of the new layers
	history    []string
	check      func(t *testing.T, cf *v1.ConfigFile)
	notInPlace bool
	users      bool // programs run as other users: the container of the tests needs ids for them
}

// noFiles is what instructions leave that change no file.
var noFiles []string

var instructionCases = map[string]instructionCase{
	"RUN in shell form": {
		order:   order{dockerfile: "FROM base\nRUN echo hello > /made && busybox chmod 640 /made"},
		files:   []string{"made 0 0640 0:0 hello\n"},
		history: []string{"RUN /bin/sh -c echo hello > /made && busybox chmod 640 /made"},
	},
	"RUN in exec form, in the working directory": {
		order:   order{dockerfile: `FROM base` + "\n" + `RUN ["busybox", "touch", "a b"]`},
		files:   []string{"srv/ 5 0755 0:0", "srv/a b 0 0644 0:0 "},
		history: []string{"RUN busybox touch a b"},
	},
	"RUN removes, replaces and moves": {
		order: order{dockerfile: "FROM base\nRUN rm /srv/data; rm -r /srv/d; echo new > /srv/d; rm /srv/link; mkdir /srv/link; mv /etc/group /etc/group2"},
		files: []string{"etc/ 5 0755 0:0", "etc/.wh.group 0 0000 0:0 ", "etc/group2 0 0644 0:0 root:x:0:\nnode:x:1001:\nextra:x:50:node\n",
			"srv/ 5 0755 0:0", "srv/.wh.data 0 0000 0:0 ", "srv/d 0 0644 0:0 new\n", "srv/link/ 5 0755 0:0"},
	},
	"RUN changes owners, modes and links": {
		order: order{dockerfile: "FROM base\nRUN cd /srv; chown 5:6 d; chown 7 d/x; chmod 4755 d/x; echo y > d/y; ln d/y hard; ln -s d soft; mkfifo /fifo"},
		files: []string{"fifo 6 0644 0:0", "srv/ 5 0755 0:0", "srv/d/ 5 0755 5:6", "srv/d/x 0 4755 7:0 x", "srv/d/y 0 0644 0:0 y\n", "srv/hard 1 0644 0:0 = srv/d/y", "srv/soft 2 0777 0:0 -> d"},
	},
	"RUN that changes nothing makes no layer": {
		order:   order{dockerfile: "FROM base\nRUN cat /srv/data; echo x > /tmp/x; rm /tmp/x"},
		files:   noFiles,
		history: []string{"- RUN /bin/sh -c cat /srv/data; echo x > /tmp/x; rm /tmp/x"},
	},
	"what is no part of any image is in no layer": {
		covers: []int{95},
		order: order{dockerfile: "FROM base\nRUN mkdir -p /skipped /tmp/skipped/deep; echo > /skipped/x; echo > /tmp/skipped/deep/x; echo > /tmp/skipped/y; mkdir /etc/deep\nCOPY f /skipped/\nCOPY f /tmp/skipped/deep",
			context: map[string]string{"f": ""}},
		files: []string{"etc/ 5 0755 0:0", "etc/deep/ 5 0755 0:0", "tmp/ 5 1777 0:0", "tmp/skipped/ 5 0755 0:0", "tmp/skipped/y 0 0644 0:0 \n"},
	},
	"RUN has the image's environment, the arguments and nothing else": {
		users: true,
		order: order{dockerfile: "FROM base\nARG B=b\nARG C\nARG A=no\nENV D=d-$B\nUSER node\nRUN env | busybox grep -v -e HOSTNAME -e PWD -e SHLVL | busybox sort > /tmp/env; pwd >> /tmp/env",
			args: map[string]string{"http_proxy": "http://p", "X": "x"}},
		files: []string{"tmp/ 5 1777 0:0", "tmp/env 0 0644 1000:1001 A=a\nB=b\nD=d-b\nHOME=/home/node\nHTTP_PROXY=http://host.example\nPATH=/bin\nhttp_proxy=http://p\n/srv\n"},
		history: []string{"- ARG B=b", "- ARG C", "- ARG A=no", "- ENV D=d-b", "- USER node",
			"RUN /bin/sh -c env | busybox grep -v -e HOSTNAME -e PWD -e SHLVL | busybox sort > /tmp/env; pwd >> /tmp/env"},
	},
	"RUN with heredocs": {
		order: order{dockerfile: "FROM base\nRUN <<E\necho one > /a\necho $A >> /a\nE\nRUN <<E\n#!/bin/busybox cat\ntext\nE\nRUN cat > /b <<X && cat > /c <<-'Y'\n$A\nX\n\t$A\nY\n"},
		files: []string{"a 0 0644 0:0 one\na\n", "b 0 0644 0:0 a\n", "c 0 0644 0:0 $A\n"},
	},
	"RUN --mount leaves nothing": {
		order: order{dockerfile: "FROM base\n" +
			"RUN --mount=type=tmpfs,target=/t/t --mount=type=secret,id=s --mount=type=secret,id=s,target=/etc/secret,mode=0444 --mount=type=secret,id=s,env=S --mount=type=secret,id=none " +
			"--mount=type=bind,target=/ctx/deep --mount=type=bind,source=sub/f,target=/one " +
			"cat /run/secrets/s /etc/secret /ctx/deep/sub/f /one > /got; echo $S >> /got; ls /t/t >> /got; busybox touch /t/t/lost; busybox stat -c '%a %u' /run/secrets/s >> /got; ls /run/secrets >> /got\n" +
			"RUN ls /run /t /ctx /one /etc/secret > /after 2>&1 || true",
			context: map[string]string{"sub/f": "file\n", ".dockerignore": "ignored", "ignored": "x"}, secrets: map[string][]byte{"s": []byte("hush\n")}},
		files: []string{"after 0 0644 0:0 ls: /run: No such file or directory\nls: /t: No such file or directory\nls: /ctx: No such file or directory\nls: /one: No such file or directory\nls: /etc/secret: No such file or directory\n",
			"got 0 0644 0:0 hush\nhush\nfile\nfile\nhush\n400 0\ns\n"},
	},
	"RUN --mount=type=cache stays": {
		order: order{dockerfile: "FROM base\nRUN --mount=type=cache,target=/var/cache/x echo 1 > /var/cache/x/f\n" +
			"RUN --mount=type=cache,id=/var/cache/x,target=/c cat /c/f > /got\nRUN --mount=type=cache,target=/new,mode=0750,uid=1000,gid=1001 busybox stat -L -c %a /new >> /got"},
		files: []string{"got 0 0644 0:0 1\n750\n"},
	},
	"RUN --mount=type=bind,rw is written in vain": {
		order: order{dockerfile: "FROM base\nRUN --mount=type=bind,target=/c,rw echo changed > /c/f && cat /c/f > /got\nRUN --mount=type=bind,target=/c cat /c/f >> /got; echo x > /c/f || echo refused >> /got",
			context: map[string]string{"f": "F\n"}},
		files:      []string{"got 0 0644 0:0 changed\nF\nrefused\n"},
		notInPlace: true, // what is read-only there is a copy
	},
	"RUN --network=none": {
		order:      order{dockerfile: "FROM base\nRUN --network=none ls /sys/class/net > /dev/null 2>&1; cat /proc/net/dev | busybox wc -l > /n"},
		files:      []string{"n 0 0644 0:0 3\n"},
		notInPlace: true,
	},
	"USER and groups": {
		users: true,
		order: order{dockerfile: "FROM base\nUSER node\nRUN echo x > /tmp/made; echo y > /home/node/made\nUSER 0\nRUN echo z > /home/node/root"},
		files: []string{"home/ 5 0755 0:0", "home/node/ 5 0750 1000:1001", "home/node/made 0 0644 1000:1001 y\n", "home/node/root 0 0644 0:0 z\n", "tmp/ 5 1777 0:0", "tmp/made 0 0644 1000:1001 x\n"},
		check: func(t *testing.T, cf *v1.ConfigFile) { want(t, "User", cf.Config.User, "0") },
	},
	"WORKDIR": {
		users: true,
		order: order{dockerfile: "FROM base\nWORKDIR /a/b\nWORKDIR c\nUSER node\nWORKDIR /home/node/own\nWORKDIR /srv/link\nRUN pwd -P > /tmp/pwd\nWORKDIR /"},
		files: []string{"a/ 5 0755 0:0", "a/b/ 5 0755 0:0", "a/b/c/ 5 0755 0:0", "home/ 5 0755 0:0", "home/node/ 5 0750 1000:1001", "home/node/own/ 5 0755 1000:1001",
			"tmp/ 5 1777 0:0", "tmp/pwd 0 0644 1000:1001 /etc\n"},
		history: []string{"WORKDIR /a/b", "WORKDIR /a/b/c", "- USER node", "WORKDIR /home/node/own", "- WORKDIR /srv/link", "RUN /bin/sh -c pwd -P > /tmp/pwd", "- WORKDIR /"},
		check:   func(t *testing.T, cf *v1.ConfigFile) { want(t, "WorkingDir", cf.Config.WorkingDir, "/") },
	},
	"COPY a file": {
		order:   order{dockerfile: "FROM base\nCOPY f /x\nCOPY f g\nCOPY f /srv/d\nCOPY f /new/dir/\nCOPY f /new2/name", context: map[string]string{"f": "F"}},
		files:   []string{"new/ 5 0755 0:0", "new/dir/ 5 0755 0:0", "new/dir/f 0 0644 0:0 F", "new2/ 5 0755 0:0", "new2/name 0 0644 0:0 F", "srv/ 5 0755 0:0", "srv/d/ 5 0755 0:0", "srv/d/f 0 0644 0:0 F", "srv/g 0 0644 0:0 F", "x 0 0644 0:0 F"},
		history: []string{"COPY f /x", "COPY f g", "COPY f /srv/d", "COPY f /new/dir/", "COPY f /new2/name"},
	},
	"COPY a directory copies what is in it": {
		order: order{dockerfile: "FROM base\nCOPY d /srv\nCOPY d/ /new\nCOPY . /all/",
			context: map[string]string{"d/x": "X", "d/sub/y": "Y", "d/l": "-> x", "d/empty/": "", ".dockerignore": "d/sub\n.dockerignore\n"}},
		files: []string{"all/ 5 0755 0:0", "all/d/ 5 0755 0:0", "all/d/empty/ 5 0755 0:0", "all/d/l 2 0777 0:0 -> x", "all/d/x 0 0644 0:0 X",
			"new/ 5 0755 0:0", "new/empty/ 5 0755 0:0", "new/l 2 0777 0:0 -> x", "new/x 0 0644 0:0 X",
			"srv/ 5 0755 0:0", "srv/empty/ 5 0755 0:0", "srv/l 2 0777 0:0 -> x", "srv/x 0 0644 0:0 X"},
	},
	".dockerignore with exceptions": {
		order: order{dockerfile: "FROM base\nCOPY . /all/\nCOPY vendor /v/\nRUN --mount=type=bind,target=/c cd /c; busybox find . -type f | busybox sort > /seen",
			context: map[string]string{".dockerignore": "# comment\n\n**/*.log\n!keep.log\n/vendor\n!vendor/ours\nvendor/ours/no?\nsub/**/deep\n Dockerfile* \n.dockerignore\n",
				"a.log": "", "keep.log": "K", "x/keep.log": "", "x/b.log": "", "x/c": "C", "vendor/theirs/f": "", "vendor/ours/f": "O", "vendor/ours/not": "", "sub/1/2/deep/f": "", "sub/deep": "", "sub/s": "S", "Dockerfile.dev": ""}},
		files: []string{"all/ 5 0755 0:0", "all/keep.log 0 0644 0:0 K", "all/sub/ 5 0755 0:0", "all/sub/1/ 5 0755 0:0", "all/sub/1/2/ 5 0755 0:0", "all/sub/s 0 0644 0:0 S",
			"all/vendor/ 5 0755 0:0", "all/vendor/ours/ 5 0755 0:0", "all/vendor/ours/f 0 0644 0:0 O", "all/x/ 5 0755 0:0", "all/x/c 0 0644 0:0 C",
			"seen 0 0644 0:0 ./keep.log\n./sub/s\n./vendor/ours/f\n./x/c\n", "v/ 5 0755 0:0", "v/ours/ 5 0755 0:0", "v/ours/f 0 0644 0:0 O"},
	},
	"COPY with wildcards, exclusions and several sources": {
		order: order{dockerfile: "FROM base\nCOPY *.go nothing* d?/[ab] /out/\nCOPY --exclude=*.md --exclude=deep . /rest/\nCOPY nothing* /none\nCOPY a[*]b /star/",
			context: map[string]string{"a.go": "1", "b.go": "2", "c.md": "3", "d1/a": "4", "d1/c": "5", "d2/b": "6", "deep/x/y": "7", "a*b": "8", "axb": "9"}},
		files: []string{"out/ 5 0755 0:0", "out/a 0 0644 0:0 4", "out/a.go 0 0644 0:0 1", "out/b 0 0644 0:0 6", "out/b.go 0 0644 0:0 2",
			"rest/ 5 0755 0:0", "rest/a*b 0 0644 0:0 8", "rest/a.go 0 0644 0:0 1", "rest/axb 0 0644 0:0 9", "rest/b.go 0 0644 0:0 2", "rest/d1/ 5 0755 0:0", "rest/d1/a 0 0644 0:0 4", "rest/d1/c 0 0644 0:0 5", "rest/d2/ 5 0755 0:0", "rest/d2/b 0 0644 0:0 6",
			"star/ 5 0755 0:0", "star/a*b 0 0644 0:0 8"},
		history: []string{"COPY *.go nothing* d?/[ab] /out/", "COPY . /rest/", "- COPY nothing* /none", "COPY a[*]b /star/"},
	},
	"COPY --parents": {
		order: order{dockerfile: "FROM base\nCOPY --parents a/b/c.txt a/d /p/\nCOPY --parents a/./b/c.txt /q/\nCOPY --parents **/*.md /r/",
			context: map[string]string{"a/b/c.txt": "C", "a/b/no": "N", "a/d/e": "E", "x/y/z.md": "Z"}},
		files: []string{"p/ 5 0755 0:0", "p/a/ 5 0755 0:0", "p/a/b/ 5 0755 0:0", "p/a/b/c.txt 0 0644 0:0 C", "p/a/d/ 5 0755 0:0", "p/a/d/e 0 0644 0:0 E",
			"q/ 5 0755 0:0", "q/b/ 5 0755 0:0", "q/b/c.txt 0 0644 0:0 C", "r/ 5 0755 0:0", "r/x/ 5 0755 0:0", "r/x/y/ 5 0755 0:0", "r/x/y/z.md 0 0644 0:0 Z"},
	},
	"COPY --chown and --chmod": {
		order: order{dockerfile: "FROM base\nCOPY --chown=node --chmod=600 f /a/f\nCOPY --chown=node:extra d /b\nCOPY --chown=7 f /c\nCOPY --chown=8:9 --chmod=u=rwX,go=rX d /d\nCOPY --chmod=4755 f /e",
			context: map[string]string{"f": "F", "d/x": "X", "d/sub/": ""}},
		files: []string{"a/ 5 0600 1000:1001", "a/f 0 0600 1000:1001 F", "b/ 5 0755 1000:50", "b/sub/ 5 0755 1000:50", "b/x 0 0644 1000:50 X", "c 0 0644 7:7 F",
			"d/ 5 0755 8:9", "d/sub/ 5 0755 8:9", "d/x 0 0644 8:9 X", "e 0 4755 0:0 F"},
		history: []string{"COPY --chown=node --chmod=600 f /a/f", "COPY --chown=node:extra d /b", "COPY --chown=7 f /c", "COPY --chown=8:9 --chmod=u=rwX,go=rX d /d", "COPY --chmod=4755 f /e"},
	},
	"COPY resolves links": {
		order: order{dockerfile: "FROM base\nCOPY lf /x\nCOPY ld /y/\nCOPY f /srv/link/from\nRUN ln -s /etc/there /srv/dangling\nCOPY f /srv/dangling\nCOPY --link f /z",
			context: map[string]string{"f": "F", "d/g": "G", "lf": "-> f", "ld": "-> ../../d"}},
		files: []string{"etc/ 5 0755 0:0", "etc/from 0 0644 0:0 F", "etc/there 0 0644 0:0 F", "srv/ 5 0755 0:0", "srv/dangling 2 0777 0:0 -> /etc/there", "x 0 0644 0:0 F", "y/ 5 0755 0:0", "y/g 0 0644 0:0 G", "z 0 0644 0:0 F"},
	},
	"COPY a heredoc": {
		order: order{dockerfile: "FROM base\nCOPY <<one <<\"two\" /h/\n$A ${B:-none}\none\n$A\ntwo\nCOPY --chmod=755 <<E /run.sh\n#!/bin/sh\nE"},
		files: []string{"h/ 5 0755 0:0", "h/one 0 0644 0:0 a none\n", "h/two 0 0644 0:0 $A\n", "run.sh 0 0755 0:0 #!/bin/sh\n"},
	},
	"COPY over what is there": {
		order: order{dockerfile: "FROM base\nCOPY d /srv\n", context: map[string]string{"d/data": "new", "d/link": "file now", "d/d/y": "Y"}},
		files: []string{"srv/ 5 0755 0:0", "srv/d/ 5 0755 0:0", "srv/d/y 0 0644 0:0 Y", "srv/data 0 0644 0:0 new", "srv/link 0 0644 0:0 file now"},
	},
	"COPY --from": {
		order: order{dockerfile: "FROM base AS First\nRUN echo 1 > /one; chown 3:4 /one; ln /one /srv/two\nFROM base\nCOPY --from=first /one /srv/two /c/\nCOPY --from=0 /srv /d\nCOPY --from=other --chown=9:9 file /e\n" +
			"RUN --mount=type=bind,from=first,source=/one,target=/m cat /m > /f"},
		files:      []string{"c/ 5 0755 0:0", "c/one 0 0644 3:4 1\n", "c/two 1 0644 3:4 = c/one", "d/ 5 0755 0:0", "d/d/ 5 0755 0:0", "d/d/x 0 0644 0:0 x", "d/data 0 0600 33:34 data", "d/link 2 0777 0:0 -> /etc", "d/two 0 0644 3:4 1\n", "e 0 0644 9:9 other", "f 0 0644 0:0 1\n"},
		history:    []string{"COPY --from=first /one /srv/two /c/", "COPY --from=0 /srv /d", "COPY --from=other --chown=9:9 file /e", "RUN /bin/sh -c cat /m > /f"},
		notInPlace: true,
	},
	"stages on stages": {
		order:   order{dockerfile: "ARG name=base\nFROM $name AS a\nARG inherited=i\nENV E=e\nRUN echo a > /a\nCMD x\nFROM unused AS never\nRUN false\nFROM a AS b\nARG name\nENTRYPOINT [\"/b\"]\nRUN echo $inherited $name $E > /b\nFROM b"},
		files:   []string{"a 0 0644 0:0 a\n", "b 0 0644 0:0 i base e\n"},
		history: []string{"- ARG inherited=i", "- ENV E=e", "RUN /bin/sh -c echo a > /a", `- CMD ["/bin/sh" "-c" "x"]`, "- ARG name", `- ENTRYPOINT ["/b"]`, "RUN /bin/sh -c echo $inherited $name $E > /b"},
		check:   func(t *testing.T, cf *v1.ConfigFile) { want(t, "Cmd", len(cf.Config.Cmd), 0) },
	},
	"a target stage": {
		order: order{dockerfile: "FROM base AS a\nRUN echo a > /a\nFROM base\nRUN false", target: "a"},
		files: []string{"a 0 0644 0:0 a\n"},
	},
	"ADD unpacks local archives": {
		order: order{dockerfile: "FROM base\nADD plain.tar packed.tar.gz /u/\nADD --chown=5:6 plain.tar /v\nADD --unpack=false plain.tar /w/\nADD notes.txt /x\nADD plain.tar /srv/link/y\nCOPY plain.tar /z",
			context: map[string]string{"plain.tar": archive, "packed.tar.gz": gzipped(archive), "notes.txt": "notes"}},
		files: []string{"etc/ 5 0755 0:0", "etc/y/ 5 0755 0:0", "etc/y/in/ 5 0700 1:2", "etc/y/in/file 0 4755 3:4 body",
			"u/ 5 0755 0:0", "u/in/ 5 0700 1:2", "u/in/file 0 4755 3:4 body", "v/ 5 0755 5:6", "v/in/ 5 0700 5:6", "v/in/file 0 4755 5:6 body",
			"w/ 5 0755 0:0", "w/plain.tar 0 0644 0:0 2560 bytes", "x 0 0644 0:0 notes", "z 0 0644 0:0 2560 bytes"},
	},
	"config": {
		order: order{dockerfile: "FROM base\nENV A=b C='d e' F=$A\nENV G h i\nLABEL a=b \"c d\"=\"$C\"\nEXPOSE 80 81/udp 90-91 $P\nARG P=\"70 71/tcp\"\nEXPOSE $P\nVOLUME [\"/v\", \"/w x\"]\n" +
			"STOPSIGNAL SIGUSR1\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nCMD echo hi\nENTRYPOINT [\"/e\", \"x\"]\nHEALTHCHECK --interval=5s --retries=2 CMD true\nMAINTAINER me\nONBUILD RUN echo later\nUSER node:extra"},
		files: noFiles,
		history: []string{"- ENV A=b C=d e F=a", "- ENV G=h i", "- LABEL a=b c d=d e", "- EXPOSE [80/tcp 81/udp 90/tcp 91/tcp]", `- ARG P="70 71/tcp"`, "- EXPOSE [70/tcp 71/tcp]", "- VOLUME [/v /w x]", "- STOPSIGNAL SIGUSR1",
			"- SHELL [/bin/busybox sh -c]", `- CMD ["/bin/busybox" "sh" "-c" "echo hi"]`, `- ENTRYPOINT ["/e" "x"]`, "- HEALTHCHECK {Test:[CMD-SHELL true] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:2}",
			"- MAINTAINER me", "- ONBUILD RUN echo later", "- USER node:extra"},
		check: func(t *testing.T, cf *v1.ConfigFile) {
			c := cf.Config
			want(t, "Env", c.Env, []string{"PATH=/bin", "A=b", "C=d e", "F=a", "G=h i"})
			want(t, "Labels", c.Labels, map[string]string{"a": "b", "c d": "d e"})
			want(t, "ExposedPorts", len(c.ExposedPorts), 6)
			want(t, "Volumes", c.Volumes, map[string]struct{}{"/v": {}, "/w x": {}})
			want(t, "StopSignal", c.StopSignal, "SIGUSR1")
			want(t, "Shell", c.Shell, []string{"/bin/busybox", "sh", "-c"})
			want(t, "Cmd", c.Cmd, []string{"/bin/busybox", "sh", "-c", "echo hi"})
			want(t, "Entrypoint", c.Entrypoint, []string{"/e", "x"})
			want(t, "Healthcheck", *c.Healthcheck, v1.HealthConfig{Test: []string{"CMD-SHELL", "true"}, Interval: 5e9, Retries: 2})
			want(t, "Author", cf.Author, "me")
			want(t, "OnBuild", c.OnBuild, []string{"RUN echo later"})
			want(t, "User", c.User, "node:extra")
			want(t, "WorkingDir", c.WorkingDir, "/srv")
		},
	},
	"escape directive, comments and continued lines": {
		order: order{dockerfile: "# escape=`\n# comment\nFROM base\nRUN echo a `\n  # comment\n  b > /x"},
		files: []string{"x 0 0644 0:0 a b\n"},
	},
	"arguments": {
		order: order{dockerfile: "ARG G=g\nARG H=h\nFROM base\nARG G\nARG H=${G}2\nARG TARGETARCH\nARG TARGETPLATFORM\nARG given=no\nARG chain=$given-$H\nRUN echo $G $H $TARGETARCH $TARGETPLATFORM $given $chain ${chain:+set} > /x\n" +
			"COPY $given /${H}", args: map[string]string{"given": "yes"}, context: map[string]string{"yes": "Y"}},
		files:   []string{"g2 0 0644 0:0 Y", "x 0 0644 0:0 g g2 amd64 linux/amd64 yes yes-g2 set\n"},
		history: []string{"- ARG G", "- ARG H=${G}2", "- ARG TARGETARCH", "- ARG TARGETPLATFORM", "- ARG given=no", "- ARG chain=$given-$H", "RUN /bin/sh -c echo $G $H $TARGETARCH $TARGETPLATFORM $given $chain ${chain:+set} > /x", "COPY yes /g2"},
	},
}

func want[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: want (-), got (+):\n%s", what, diff)
	}
}

// archive is a tar of a directory and a file that are not root's.
var archive = tarOf(
	tar.Header{Typeflag: tar.TypeDir, Name: "in/", Mode: 0o700, Uid: 1, Gid: 2},
	tar.Header{Typeflag: tar.TypeReg, Name: "in/file", Mode: 0o4755, Uid: 3, Gid: 4, Size: 4},
)

func tarOf(headers ...tar.Header) string {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		if err := tw.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := tw.Write([]byte("body")[:h.Size]); err != nil {
			panic(err)
		}
	}
	if err := tw.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func gzipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(s)); err != nil {
		panic(err)
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return b.String()
}
