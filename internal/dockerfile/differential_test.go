package dockerfile

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kilnbuild/kiln/test/filetree"
)

// differential are Dockerfiles of which buildah and kiln make the same: the
// files at the end, and the config. Where both know better than docker, or
// buildah does, they are not here.
var differential = map[string]order{
	"environment and arguments": {dockerfile: "ARG tag=base\nFROM base\nARG tag\nENV A=1 B='two words' C=\"$A-x\"\nENV A=2 D=$A\nENV E old form\nARG given=default\nARG other=${given}s\nLABEL given=$given other=$other tag=$tag empty=\nENV F=${A:-unset} G=${none:-unset} H=${A:+set} I=\\$A\n",
		args: map[string]string{"given": "mine"}},
	"commands":                               {dockerfile: "FROM base\nCMD [\"a\", \"b c\"]\nENTRYPOINT [\"/e\"]\nEXPOSE 80 81/udp\nSTOPSIGNAL SIGUSR1\nHEALTHCHECK --interval=5s --timeout=3s --retries=2 CMD [\"true\"]\nUSER node:extra\nWORKDIR /srv\nLABEL a=b \"c d\"=e"},
	"an entrypoint after the base's command": {dockerfile: "FROM base\nENTRYPOINT echo $A\n"},
	"shell forms":                            {dockerfile: "FROM base\nSHELL [\"/bin/busybox\", \"sh\", \"-ec\"]\nONBUILD RUN echo later\nMAINTAINER me"},
	"copies": {dockerfile: "FROM base\nWORKDIR /w\nCOPY a.txt .\nCOPY a.txt b.txt sub/\nCOPY a.txt renamed\nCOPY dir /d1\nCOPY dir/ /d2/\nCOPY dir/*.md di?/x* /globbed/\nCOPY --chmod=600 a.txt /secret\nCOPY dir /srv/d/\nCOPY [\"with space\", \"/with space/\"]\n",
		context: map[string]string{"a.txt": "A", "b.txt": "B", "dir/x": "X", "dir/y.md": "Y", "dir/deep/z": "Z", "dir/link": "-> x", "dir/gone": "-> ../nowhere", "with space": "S"}},
	"ignored files": {dockerfile: "FROM base\nCOPY . /all/\nCOPY src /src\n",
		context: map[string]string{".dockerignore": "# comment\n*.log\n**/*.tmp\n!keep.log\nsecret\nsrc/gen*\n.dockerignore\n", "a.log": "", "keep.log": "K", "x.tmp": "", "src/y.tmp": "", "src/main": "M", "src/generated/f": "", "secret/f": "", "other/a.log": "L"}},
	"archives": {dockerfile: "FROM base\nADD plain.tar /u/\nADD packed.tar.gz /v\nADD notes.txt /x\nCOPY plain.tar /z/\n",
		context: map[string]string{"plain.tar": rootArchive, "packed.tar.gz": gzipped(rootArchive), "notes.txt": "notes"}},
	"stages": {dockerfile: "FROM base AS one\nCOPY a.txt /one/a\nENV ONE=1\nFROM one AS two\nCOPY b.txt /two/b\nCMD [\"two\"]\nFROM base\nCOPY --from=one /one/a /from-one\nCOPY --from=two /two /two\nCOPY --from=1 /one/ /all/\n",
		context: map[string]string{"a.txt": "A", "b.txt": "B"}},
	"a directory as the working directory of stages": {dockerfile: "FROM base AS one\nWORKDIR /x/y\nWORKDIR z\nCOPY a.txt .\nFROM one\nCOPY a.txt ./again/\nWORKDIR /",
		context: map[string]string{"a.txt": "A"}},
	"escape directive": {dockerfile: "# escape=`\nFROM base\nLABEL a=b `\n  c=d\n"},
	"owners": {dockerfile: "FROM base\nCOPY --chown=node dir /by-name\nCOPY --chown=node:extra a.txt /by-both\nCOPY --chown=7:8 dir /numbers/\nADD --chown=33 a.txt /one\n",
		context: map[string]string{"a.txt": "A", "dir/x": "X", "dir/sub/y": "Y"}},
	"programs": {dockerfile: "FROM base\nARG who=me\nENV GREETING=hello\nRUN echo $GREETING $who > /said; chmod 640 /said\nRUN [\"/bin/busybox\", \"mkdir\", \"-p\", \"/made/by/exec\"]\nWORKDIR /made\nRUN echo here > here && ln -s here link && ln here hard\n" +
		"RUN rm /srv/data && rm -r /srv/d && mv /etc/group /etc/group2\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nRUN echo \"$0\" > /shell\nRUN cd / \\\n  # a comment\n  && echo joined > /joined\n"},
	"programs of users": {dockerfile: "FROM base\nRUN mkdir /mine && chown node:extra /mine && chmod 2775 /mine\nUSER node\nRUN echo x > /home/node/f; echo y > /mine/g; busybox id -u > /tmp/id; echo $HOME >> /tmp/id\nUSER root\nRUN chmod 4755 /mine/g && chown 5:6 /mine/g\n"},
}

// leftByBuildah are the mount points that it leaves in an image.
var leftByBuildah = []string{"dev", "proc", "sys", "run", "etc/hostname", "etc/hosts", "etc/resolv.conf"}

// needsRoot are those that buildah cannot build without sub-ids.
var needsRoot = []string{"owners", "programs", "programs of users"}

// rootArchive has no owners but root.
var rootArchive = tarOf(
	tar.Header{Typeflag: tar.TypeDir, Name: "in/", Mode: 0o700},
	tar.Header{Typeflag: tar.TypeReg, Name: "in/file", Mode: 0o755, Size: 4},
	tar.Header{Typeflag: tar.TypeSymlink, Name: "in/link", Linkname: "file", Mode: 0o777},
	tar.Header{Typeflag: tar.TypeLink, Name: "in/hard", Linkname: "in/file", Mode: 0o755},
)

// TestDifferential builds the same by buildah and by kiln.
func TestDifferential(t *testing.T) {
	base := baseImage(t, v1.Config{Env: []string{"PATH=/bin", "A=a"}, Cmd: []string{"base"}, Labels: map[string]string{"of": "base"}})
	dir, err := os.MkdirTemp("/tmp", "kb-") // buildah takes no runroot of more than 50 characters
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("chmod", "-R", "u+rwX", dir).Run()
		os.RemoveAll(dir)
	})
	path, err := layout.Write(filepath.Join(dir, "base"), empty.Index)
	if err == nil {
		err = path.AppendImage(base, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "base"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	m := overlayMachine(t, rootTiers()[0])
	for name, o := range differential {
		if os.Geteuid() != 0 && slices.Contains(needsRoot, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			o.base = base
			var h heard
			ours, err := buildWith(t, m, o, &h)
			if err != nil {
				t.Fatalf("%v\n%s", err, h.String())
			}
			theirs := buildah(t, dir, o)
			if diff := cmp.Diff(finally(t, theirs, leftByBuildah...), finally(t, ours)); diff != "" {
				t.Errorf("files: buildah's (-), ours (+):\n%s", diff)
			}
			if diff := cmp.Diff(configured(t, theirs), configured(t, ours), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("config: buildah's (-), ours (+):\n%s", diff)
			}
		})
	}
}

// buildah builds with a storage in dir, as root in a user namespace where this
// user is not root.
func buildah(t *testing.T, dir string, o order) v1.Image {
	t.Helper()
	files := filetree.New(t, o.context)
	file := filepath.Join(t.TempDir(), "Dockerfile")
	text := strings.ReplaceAll(o.dockerfile, "FROM base", "FROM oci:"+dir+"/base:base")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image.tar")
	global := []string{"buildah", "--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}
	env := []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + dir}
	if os.Geteuid() != 0 {
		global = append([]string{"unshare", "--user", "--map-root-user", "--mount"}, append(global, "--storage-opt", "vfs.ignore_chown_errors=true")...)
		env = append(env, "_CONTAINERS_USERNS_CONFIGURED=1", fmt.Sprintf("_CONTAINERS_ROOTLESS_UID=%d", os.Geteuid()))
	}
	build := append(slices.Clone(global), "bud", "--isolation", "chroot", "--layers=false", "--format", "docker", "--tag", "out", "--file", file)
	for name, value := range o.args {
		build = append(build, "--build-arg", name+"="+value)
	}
	for _, argv := range [][]string{append(build, files), append(slices.Clone(global), "push", "--quiet", "out", "docker-archive:"+out)} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		var said bytes.Buffer
		cmd.Env, cmd.Stdout, cmd.Stderr = env, &said, &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("buildah: %v\n%s", err, said.String())
		}
	}
	img, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// finally are the files that an image has at the end, whoever's they are where
// owners could not be kept.
func finally(t *testing.T, img v1.Image, but ...string) []string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	files := flatten(t, layers, 0)
	for _, name := range append(but, "", ".") {
		delete(files, name)
	}
	links := map[string]node{}
	for name, n := range files {
		if n.PAXRecords = nil; os.Geteuid() != 0 {
			n.Uid, n.Gid = 0, 0
		}
		if n.Typeflag == tar.TypeLink { // which of its names is the first one is nobody's promise
			first := files[strings.Trim(n.Linkname, "/")]
			n.Typeflag, n.body, n.Mode, n.Uid, n.Gid = tar.TypeReg, first.body, first.Mode, first.Uid, first.Gid
		}
		if n.Mode &= 0o7777; n.Typeflag == tar.TypeSymlink {
			n.Mode = 0o777
		}
		links[name] = n
	}
	return listing(links)
}

// configured is what a config says of programs.
func configured(t *testing.T, img v1.Image) v1.Config {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := cf.DeepCopy().Config
	delete(c.Labels, "io.buildah.version")
	return v1.Config{
		Env: c.Env, Cmd: c.Cmd, Entrypoint: c.Entrypoint, User: c.User, WorkingDir: strings.TrimSuffix(c.WorkingDir, "/"), Labels: c.Labels, ExposedPorts: c.ExposedPorts,
		Volumes: c.Volumes, StopSignal: c.StopSignal, Shell: c.Shell, OnBuild: c.OnBuild, Healthcheck: c.Healthcheck,
	}
}
