package buildpacks_test

import (
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/buildpacks"
	"github.com/kilnbuild/kiln/buildpacks/kit"
	"github.com/kilnbuild/kiln/internal/spec"
)

func TestOrderNamesWhatIsShipped(t *testing.T) {
	all, err := buildpacks.All()
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, s := range all {
		versions[s.Buildpack.Buildpack.ID] = s.Buildpack.Buildpack.Version
	}
	order, err := buildpacks.Order()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, g := range order.Order {
		for _, m := range g.Group {
			used[m.ID] = true
			if versions[m.ID] != m.Version {
				t.Errorf("the order names %s, shipped is version %q", m, versions[m.ID])
			}
		}
	}
	if len(order.Order) != 2 || len(used) != 6 || len(all) != 6 {
		t.Errorf("%d groups, %d buildpacks in them, %d shipped: want 2, 6, 6", len(order.Order), len(used), len(all))
	}
}

func TestDescriptions(t *testing.T) {
	all, err := buildpacks.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		info := s.Buildpack.Buildpack
		if err := spec.SupportedBuildpack(s.API); err != nil {
			t.Errorf("%s: %v", info.ID, err)
		}
		for _, arch := range []string{"amd64", "arm64"} {
			if !spec.AnyTarget(s.Targets, spec.Target{OS: "linux", Arch: arch, Distro: &spec.Distro{Name: "debian", Version: "12"}}) {
				t.Errorf("%s does not support linux/%s", info.ID, arch)
			}
		}
		if len(info.SBOMFormats) > 0 && !slices.Equal(info.SBOMFormats, kit.SBOMFormats()) {
			t.Errorf("%s declares %v, kit writes %v", info.ID, info.SBOMFormats, kit.SBOMFormats())
		}
	}
}

func TestFiles(t *testing.T) {
	files, err := buildpacks.Files("/cnb/kiln/buildpacks")
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{}
	for _, f := range files {
		links[f.Path] = f.Link
	}
	if len(files) != 18 || links["kiln_pip-install/0.1.0/bin/detect"] != "/cnb/kiln/buildpacks" {
		t.Errorf("%d files: %v", len(files), links)
	}
	if link, ok := links["kiln_cpython/0.1.0/buildpack.toml"]; !ok || link != "" {
		t.Error("kiln/cpython has no buildpack.toml")
	}
}
