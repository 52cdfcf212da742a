package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/spec"
	"github.com/kilnbuild/kiln/test/conform"
)

// The lifecycle as builders are made with it: the same bytes again, everything
// in it that a builder needs, and it runs from there.
func TestLifecycleDist(t *testing.T) {
	conform.Covers(t, 15, 200)
	version := strings.TrimSpace(read(t, "../VERSION"))
	names := []string{"lifecycle-" + version + "+linux.x86-64.tgz", "lifecycle-" + version + "+linux.arm64.tgz"}
	first, second := t.TempDir(), t.TempDir()
	for _, out := range []string{first, second} {
		if text, err := exec.Command("make", "-s", "-C", "..", "lifecycle-dist", "OUT="+out).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	machines := map[string]elf.Machine{names[0]: elf.EM_X86_64, names[1]: elf.EM_AARCH64}
	for _, name := range names {
		if read(t, filepath.Join(first, name)) != read(t, filepath.Join(second, name)) {
			t.Errorf("%s is not the same again", name)
		}
		t.Run(name, func(t *testing.T) { inspectDist(t, filepath.Join(first, name), version, machines[name]) })
	}
	runDist(t, filepath.Join(first, names[slices.Index([]string{"amd64", "arm64"}, runtime.GOARCH)]), version)
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// inspectDist looks at every entry of the archive.
func inspectDist(t *testing.T, file, version string, machine elf.Machine) {
	z, err := gzip.NewReader(strings.NewReader(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	if !z.ModTime.IsZero() || z.Name != "" {
		t.Errorf("the archive says when it was made: %s %s", z.ModTime, z.Name)
	}
	bodies, links, order := map[string][]byte{}, map[string]string{}, []string{}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || h.ModTime.UTC().Format("2006-01-02T15:04:05") != "1980-01-01T00:00:01" {
			t.Errorf("%+v", h)
		}
		order = append(order, h.Name)
		if bodies[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			links[h.Name] = h.Linkname
		}
	}
	if !slices.IsSorted(order) {
		t.Errorf("not sorted: %q", order)
	}
	for _, phase := range []string{"analyzer", "builder", "creator", "detector", "exporter", "extender", "rebaser", "restorer"} {
		if links["lifecycle/"+phase] != "lifecycle" {
			t.Errorf("%s is %q", phase, links["lifecycle/"+phase])
		}
	}
	for _, program := range []string{"launcher", "lifecycle"} {
		static(t, bodies["lifecycle/"+program], machine)
		for _, format := range []string{"cdx", "spdx", "syft"} {
			sbom := bodies["lifecycle/"+program+".sbom."+format+".json"]
			if !json.Valid(sbom) || !bytes.Contains(sbom, []byte("pkg:golang/github.com/pelletier/go-toml/v2@v2.")) || !bytes.Contains(sbom, []byte("pkg:golang/stdlib@")) || !bytes.Contains(sbom, []byte(version)) {
				t.Errorf("the %s SBOM of the %s: %s", format, program, sbom)
			}
			if bytes.Contains(sbom, []byte("serialNumber")) || bytes.Contains(sbom, []byte("timestamp")) {
				t.Errorf("the %s SBOM of the %s is another each time", format, program)
			}
		}
	}
	l, err := spec.ReadLifecycle(bodies["lifecycle.toml"], "lifecycle.toml")
	if err != nil {
		t.Fatal(err)
	}
	if api, ok := spec.HighestCommon(l.APIs.Platform.Supported, []string{"0.3", "0.12", "0.15", "0.99"}); !ok || api != "0.15" || l.Lifecycle.Version != version || l.API.Platform != "0.7" || len(l.Lifecycle.SBOMFormats) != 3 {
		t.Errorf("%s: %+v", api, l)
	}
}

// static fails for a program that needs anything of the image that it is in.
func static(t *testing.T, program []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine != machine {
		t.Errorf("it is for %s", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a %s", p.Type)
		}
	}
}

// runDist unpacks the archive with another tar and runs every command.
func runDist(t *testing.T, file, version string) {
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "--no-same-owner", "-xzf", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, phase := range []string{"analyzer", "builder", "creator", "detector", "exporter", "extender", "rebaser", "restorer", "lifecycle"} {
		if out, err := exec.Command(filepath.Join(dir, "lifecycle", phase), "-version").CombinedOutput(); err != nil || string(out) != version+"\n" {
			t.Errorf("%s -version: %v %s", phase, err, out)
		}
	}
	launcher := exec.Command(filepath.Join(dir, "lifecycle", "launcher"))
	if out, _ := launcher.CombinedOutput(); launcher.ProcessState.ExitCode() != spec.ExitPlatformAPI {
		t.Errorf("the launcher, without anything: %s", out)
	}
}

// The launcher is in every image: small, and with as little in it as can be for
// a scanner to find something in.
func TestLauncherBinary(t *testing.T) {
	file := filepath.Join(bin, "..", "cmd", "kiln", "payload", "launcher")
	body := []byte(read(t, file))
	const most = 3 << 20 // bytes
	if len(body) >= most {
		t.Errorf("the launcher has %d bytes, and may have %d", len(body), most)
	}
	static(t, body, map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH])
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range info.Deps {
		if dep.Path != "github.com/pelletier/go-toml/v2" {
			t.Errorf("the launcher has %s in it", dep.Path)
		}
	}
}
