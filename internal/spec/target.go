package spec

// Matches reports whether a buildpack that supports t can build for base. An
// empty field on either side matches anything; if t names distributions, base
// must be one of them, and a base of unknown distribution is not (Buildpack
// API, "Targets").
func (t Target) Matches(base Target) bool {
	if !same(t.OS, base.OS) || !same(t.Arch, base.Arch) || !same(t.Variant, base.Variant) {
		return false
	}
	distros := t.Distros
	if t.Distro != nil {
		distros = append([]Distro{*t.Distro}, distros...)
	}
	if len(distros) == 0 {
		return true
	}
	if base.Distro == nil || base.Distro.Name == "" {
		return false
	}
	for _, d := range distros {
		if same(d.Name, base.Distro.Name) && same(d.Version, base.Distro.Version) {
			return true
		}
	}
	return false
}

func same(a, b string) bool { return a == "" || b == "" || a == b }

// AnyTarget reports whether one of the targets matches base.
func AnyTarget(targets []Target, base Target) bool {
	for _, t := range targets {
		if t.Matches(base) {
			return true
		}
	}
	return false
}

// bionic is the only stack that ever had a meaning as a target.
const bionic = "io.buildpacks.stacks.bionic"

// EffectiveTargets are the targets that the buildpack or extension supports.
// One that lists none supports what its deprecated stacks stand for, or else
// the operating systems it has executables for: linux says that bin/build (of
// an extension: bin/detect or bin/generate) exists, windows the same with
// .bat or .exe. Of a buildpack from before targets, bionic among other stacks
// stands for nothing: the others have no meaning that is known, and it is for
// them too.
func (b Buildpack) EffectiveTargets(linux, windows bool) []Target {
	targets := b.Targets
	for _, stack := range b.Stacks {
		if len(b.Targets) > 0 {
			break
		}
		switch {
		case stack.ID == "*":
			targets = append(targets, Target{})
		case stack.ID == bionic && (Has(b.API, BuildpackTargets) || len(b.Stacks) == 1):
			targets = append(targets, BionicTarget())
		}
	}
	if len(targets) > 0 {
		return targets
	}
	if linux {
		targets = append(targets, Target{OS: "linux"})
	}
	if windows {
		targets = append(targets, Target{OS: "windows"})
	}
	return targets
}

// BionicTarget is what the stack label io.buildpacks.stacks.bionic implies for
// a base image or buildpack without target data.
func BionicTarget() Target {
	return Target{OS: "linux", Arch: "amd64", Distros: []Distro{{Name: "ubuntu", Version: "18.04"}}}
}
