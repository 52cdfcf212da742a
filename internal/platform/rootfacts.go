package platform

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/dockerfile"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// rootFacts is what programs see of this host that change an image as root.
// They may replace any file of it, so nothing is mounted over one that they
// could want to replace.
type rootFacts struct {
	all []sandbox.Mount
	apt []sandbox.Mount // where there is apt
	// sources is where packages of a release of Debian come from, for images that
	// kiln made and others that do not say so themselves.
	sources map[string][]sandbox.Mount
	env     []string
}

// caForRoot is where they find the CA bundle: the image's own is theirs.
const caForRoot = "/run/kiln/ca-certificates.crt"

// debianKeyring is what apt's packages come with. It is named, because no
// maintainer script has told apt of it in an image that kiln made.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// rootFacts lays out the facts for them.
func (b *build) rootFacts() (f rootFacts, err error) {
	sources, err := debianSources(b.req.Mirror, builtinSuite)
	if err != nil && b.req.Mirror != "" {
		return f, err
	}
	dir := filepath.Join(b.scratch, "host-root")
	all, apt := laidOut{dir: dir}, laidOut{dir: dir}
	all.network(b.Host)
	conf := aptProxies(sources)
	if all.copy("ca-certificates.crt", b.Host.CABundle, caForRoot) {
		conf += fmt.Sprintf("Acquire::https::CaInfo %q;\n", caForRoot)
		for _, name := range caVariables {
			f.env = append(f.env, name+"="+caForRoot)
		}
	}
	apt.file("apt.conf", aptConfInside, conf)
	f.sources = map[string][]sandbox.Mount{}
	for _, release := range debian.Releases {
		list := laidOut{dir: dir}
		list.file(release+".sources", aptSourcesInside, aptSources(sourcesOf(sources, release), debianKeyring))
		f.sources[release], all.err = list.mounts, cmp.Or(all.err, list.err)
	}
	f.all, f.apt = all.mounts, apt.mounts
	if err := cmp.Or(all.err, apt.err); err != nil {
		return f, err
	}
	return f, nil
}

// mounts are the facts for programs in such a system.
func (f rootFacts) mounts(s dockerfile.System) []sandbox.Mount {
	mounts := slices.Clone(f.all)
	if s.Apt {
		mounts = append(mounts, f.apt...)
	}
	if s.Apt && !s.AptSources && s.Distro == "debian" {
		mounts = append(mounts, f.sources[s.Codename]...)
	}
	return mounts
}
