package lifecycle

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/spec"
)

const manualHead = "# The lifecycle's commands\n\n<!-- Made by go test ./internal/lifecycle -update from the table that is also the parser. -->\n\n" +
	"kiln's lifecycle is one static binary that answers to the names of the specification's commands; it stands at\n" +
	"`/cnb/lifecycle` in every build that kiln runs, over whatever lifecycle the builder brought. This is every input\n" +
	"of every command. A flag beats its variable, which beats the default.\n\n"

const manualTail = `
## Caches

` + "`-cache-dir`" + ` and ` + "`-cache-image`" + ` keep a build's cached layers in the form that lifecycles share, so a cache that another
lifecycle wrote is used, and the other way round. Both given, the image is used.

- A directory holds ` + "`committed/`" + `, with the metadata and one uncompressed tar for each layer. It is locked by
  ` + "`kiln.lock`" + ` beside it, for which a second builder waits, saying for whom; it is on the disk before it takes the old
  one's place. A directory that cannot be written to is restored from.
- An image is in a registry, also with ` + "`-daemon`" + ` and ` + "`-layout`" + `: one layer for each cached layer, and the metadata in its label
  ` + "`io.buildpacks.lifecycle.cache.metadata`" + `. What has not changed is not sent again. A registry has no lock: of two builders
  the last one's cache stands. Before Platform API 0.13 the image that was there before is deleted.

Every layer is hashed while it is read. One that is not what it should be is not restored, and a warning says which; the
build makes it anew. No failure of a cache fails an export.

## Where images are

Images are in registries, unless one of these says otherwise. The cache image always is in one, and so are images that
are to be extended.

- ` + "`-layout`" + `: every reference has an OCI layout of its own, at ` + "`<layout-dir>/<registry>/<repository>/<tag>`" + ` or
  ` + "`.../<algorithm>/<digest>`" + `; ` + "`ubuntu`" + ` is at ` + "`index.docker.io/library/ubuntu/latest`" + `. Run image and previous image may be sparse:
  a manifest and a config whose layers are elsewhere. What they lack, the app image's layout lacks. Run images in layouts
  are not extended. No registry is asked.
- ` + "`-daemon`" + `: images are in the Docker or podman daemon at ` + "`DOCKER_HOST`" + `, and references are image IDs. A daemon gets only layers that it
  does not have, and is asked for an image's bytes only where a layer has to be read. ` + "`-launch-cache`" + ` is a directory, in the form
  of ` + "`-cache-dir`" + `, with the app image's layers: then it is not. An app image must not have a run image's name.
  Credentials are never sent to a daemon. The socket may be root's: it is opened first.

## Image extensions

The detector lets the extensions that take part generate their Dockerfiles below ` + "`<generated>`" + `, checks these, and says in
analyzed.toml which run image they chose and which image is to be extended. Before Platform API 0.13 this is experimental
(` + "`CNB_EXPERIMENTAL_MODE`" + `). The restorer finds out the chosen image's digest and target, and saves manifest and config of what
is to be extended in ` + "`/kaniko/cache/base/<digest>`" + `: the image of ` + "`-build-image`" + `, and the run image. The exporter takes an
extended run image from the one directory in ` + "`<extended>/run`" + `: its config, and its layers above the run image's, written
anew with normal times. The creator extends nothing: it fails where an extension takes part.

## In other builders

` + "`make lifecycle-dist`" + ` packs ` + "`out/lifecycle-<version>+linux.x86-64.tgz`" + ` and ` + "`+linux.arm64.tgz`" + `, the same bytes each time: lifecycle.toml,
one static binary with a link for each command, the launcher, and the SBOMs of both. Name it in a builder.toml:

    [lifecycle]
    uri = "out/lifecycle-<version>+linux.x86-64.tgz"

## Users and credentials

detector and builder run foreign code and refuse to be root. analyzer, restorer, exporter, creator and rebaser can be
started as root: they look up credentials, give the build user the directories that it may not write to, and become it
(` + "`-uid`, `-gid`" + `; without these they exit with 3, but for the rebaser, which stays root). Started as that user they need it to be able to write to the directories
and, with ` + "`-daemon`" + `, to the socket.

Credentials come from ` + "`CNB_REGISTRY_AUTH`" + `, else from docker's ` + "`config.json`" + ` or podman's ` + "`auth.json`" + ` and the credential helpers that
they name, else access is anonymous. There is no keychain for Amazon's and Azure's registries built in: install
` + "`docker-credential-ecr-login` or `docker-credential-acr-env`" + ` beside the lifecycle and name it in ` + "`config.json`" + ` (` + "`credHelpers`" + `), or
give a token in ` + "`CNB_REGISTRY_AUTH`" + `; ` + "`CNB_REGISTRY_AUTH_KEYCHAIN_SKIP_AMAZON` and `_AZURE`" + ` have no effect.

A process that holds credentials cannot be traced or read by others of its user, hands no file on, and gives buildpacks
an environment of the specification's making. What started it is not in its hand: where the kernel has no Landlock, a shell
with ` + "`CNB_REGISTRY_AUTH`" + ` in its environment that waits for the creator, as the same user, shows it to buildpacks. Let it
` + "`exec`" + ` the creator, or use the five phases.

A file with credentials that the build user may read is a buildpack's to read, where both are in one container. Landlock hides
those that a lifecycle looks for: docker's ` + "`config.json`" + `, podman's ` + "`auth.json`, `DOCKER_CERT_PATH`" + `. It cannot where that user may make
files in their directory or in one above it, such as a home of its own; ` + "`-log-level debug`" + ` says so. Mount them where the user may
not, or start the creator as root and let nobody else read them.

What phases hand over to each other is in files that may be the build user's, and so any buildpack's. The creator, like
` + "`kiln build`" + `, goes by what it wrote and read itself, whatever becomes of the files: run image, group, plan, metadata of the
project. Phases that are processes of their own have nothing but the files: there Landlock keeps them, in the containers
of the detector and the builder. Without it a platform that does not trust its buildpacks mounts analyzed.toml and group.toml
read-only for the builder.
`

// docs/lifecycle.md is the table of inputs, for people.
func TestDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString(manualHead)
	fmt.Fprintf(&b, "Platform APIs: %s. Buildpack APIs: %s.\n\n", strings.Join(spec.PlatformAPIs, ", "), strings.Join(spec.BuildpackAPIs, ", "))
	b.WriteString(markdown())
	b.WriteString(manualTail)
	const file = "../../docs/lifecycle.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: go test ./internal/lifecycle -update makes it", err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s is stale; if the change is meant, run go test ./internal/lifecycle -update\n%s", file, diff)
	}
}

// markdown is the table as users read it in the documentation.
func markdown() string {
	var b strings.Builder
	b.WriteString("| flag | variable | default | phases | platform API | meaning |\n|---|---|---|---|---|---|\n")
	for _, r := range table {
		versions := "all"
		switch {
		case r.Since != "" && r.Until != "":
			versions = r.Since + " to before " + r.Until
		case r.Since != "":
			versions = "since " + r.Since
		case r.Until != "":
			versions = "before " + r.Until
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", code(r.Flag), code(r.Env), code(r.Default), strings.Join(r.Phases, " "), versions, r.Help)
	}
	return b.String()
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
