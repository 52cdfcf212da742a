package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/layer/layertest"
)

// tarWith is a tar of these entries, in order: a name that ends in a slash is a
// directory, one with -> in it a link.
func tarWith(t testing.TB, entries ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		hdr := &tar.Header{Name: e[0], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e[1]))}
		if strings.HasSuffix(e[0], "/") {
			hdr = &tar.Header{Name: e[0], Mode: 0o755, Typeflag: tar.TypeDir}
		}
		if from, to, ok := strings.Cut(e[0], " -> "); ok {
			hdr = &tar.Header{Name: from, Linkname: to, Typeflag: tar.TypeSymlink}
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if hdr.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Packages are those that the layers, lying on each other, have.
func TestPackagesOfLayers(t *testing.T) {
	type layer = [][2]string
	status := [2]string{"var/lib/dpkg/status", dpkg("a", "1") + dpkg("b", "1")}
	for name, tc := range map[string]struct {
		layers []layer
		want   map[string]string
	}{
		"one":            {[]layer{{status}}, map[string]string{"a": "1", "b": "1"}},
		"absolute names": {[]layer{{{"/var/lib/dpkg/", ""}, {"/./var/lib/dpkg/status", dpkg("a", "1")}}}, map[string]string{"a": "1"}},
		"upper wins":     {[]layer{{status}, {{"var/lib/dpkg/status", dpkg("a", "2")}}}, map[string]string{"a": "2"}},
		"nothing above":  {[]layer{{status}, {{"etc/x", "y"}}}, map[string]string{"a": "1", "b": "1"}},
		"distroless":     {[]layer{{{"var/lib/dpkg/status.d/a", dpkg("a", "1")}, {"var/lib/dpkg/status.d/a.md5sums", "0  x"}}, {{"var/lib/dpkg/status.d/b", "Package: b\nVersion: 3\n"}}}, map[string]string{"a": "1", "b": "3"}},
		"both":           {[]layer{{status, {"var/lib/dpkg/status.d/c", dpkg("c", "1")}}}, map[string]string{"a": "1", "b": "1", "c": "1"}},
		"file deleted":   {[]layer{{{"var/lib/dpkg/status.d/a", dpkg("a", "1")}, {"var/lib/dpkg/status.d/b", dpkg("b", "1")}}, {{"var/lib/dpkg/status.d/.wh.a", ""}}}, map[string]string{"b": "1"}},
		"list deleted":   {[]layer{{status, {"var/lib/dpkg/status.d/c", dpkg("c", "1")}}, {{"var/lib/dpkg/.wh.status", ""}}}, map[string]string{"c": "1"}},
		"dir deleted":    {[]layer{{status, {"var/lib/dpkg/status.d/c", dpkg("c", "1")}}, {{"var/lib/dpkg/.wh.status.d", ""}}}, map[string]string{"a": "1", "b": "1"}},
		"dpkg deleted":   {[]layer{{status}, {{"var/lib/.wh.dpkg", ""}, {"var/lib/dpkg/status.d/n", dpkg("n", "1")}}}, map[string]string{"n": "1"}},
		"opaque":         {[]layer{{status}, {{"var/lib/dpkg/status", dpkg("z", "1")}, {"var/lib/dpkg/.wh..wh..opq", ""}}}, map[string]string{"z": "1"}},
		"root opaque":    {[]layer{{status}, {{".wh..wh..opq", ""}, {"var/lib/dpkg/status", dpkg("z", "1")}}}, map[string]string{"z": "1"}},
		"other deleted":  {[]layer{{status}, {{"var/lib/.wh.dpk", ""}, {"var/.wh.l", ""}, {"var/lib/dpkg/.wh.statu", ""}}}, map[string]string{"a": "1", "b": "1"}},
		"two machines": {[]layer{{{"var/lib/dpkg/status", dpkg("a", "1") + "Package: a\nArchitecture: i386\nVersion: 2\n"}}},
			map[string]string{"a:amd64": "1", "a:i386": "2"}},
		"link":      {[]layer{{status}, {{"var/lib/dpkg/status -> /etc/passwd", ""}}}, map[string]string{"a": "1", "b": "1"}},
		"elsewhere": {[]layer{{status}, {{"x/../var/lib/dpkg/status.d/../../../../etc/status", dpkg("z", "1")}}}, map[string]string{"a": "1", "b": "1"}},
		"none":      {[]layer{{{"etc/x", ""}}}, map[string]string{}},
	} {
		var all LayerPackages
		for _, l := range tc.layers {
			found, err := ReadLayer(t.Context(), bytes.NewReader(tarWith(t, l...)))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			all.Cover(found)
		}
		if d := cmp.Diff(tc.want, all.Versions()); d != "" {
			t.Errorf("%s (-want +got)\n%s", name, d)
		}
	}
}

// The tar is read to its end, and a bad one is an error.
func TestReadLayerIsBounded(t *testing.T) {
	good := tarWith(t, [2]string{"var/lib/dpkg/status", dpkg("a", "1")})
	for name, body := range map[string][]byte{
		"cut":     good[:540],
		"no list": tarWith(t, [2]string{"var/lib/dpkg/status", "not a list"}),
		"no tar":  bytes.Repeat([]byte("x"), 2000),
	} {
		if _, err := ReadLayer(t.Context(), bytes.NewReader(body)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	tail := errors.New("read to the end")
	if _, err := ReadLayer(t.Context(), io.MultiReader(bytes.NewReader(good), failing{tail})); !errors.Is(err, tail) {
		t.Errorf("what is below cannot check the bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadLayer(ctx, bytes.NewReader(good)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var many [][2]string
	for i := range maxLayerLists + 1 {
		many = append(many, [2]string{fmt.Sprintf("var/lib/dpkg/status.d/%d", i), ""})
	}
	if _, err := ReadLayer(t.Context(), bytes.NewReader(tarWith(t, many...))); err == nil || !strings.Contains(err.Error(), "50000 lists") {
		t.Error(err)
	}
	// The size that a header claims counts, before a byte is kept.
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "var/lib/dpkg/status", Size: maxLayerStatus + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLayer(t.Context(), &b); err == nil || !strings.Contains(err.Error(), "more than 67108864 bytes") {
		t.Error(err)
	}
}

// TestHostileLayers: whatever a layer is, reading it ends, and only what is
// called a list of packages is one.
func TestHostileLayers(t *testing.T) {
	for _, a := range layertest.Archives() { // nothing is written, so none has a canary of its own
		if l, err := ReadLayer(t.Context(), bytes.NewReader(a.Tar("/outside"))); err == nil && len(l.Versions()) > 0 {
			t.Errorf("%s has packages: %v", a.Name, l.Versions())
		}
	}
}

// TestBombs: reading what has no end ends.
func TestBombs(t *testing.T) {
	layertest.Defuse(t, func(t *testing.T, b layertest.Bomb) {
		if _, err := readLayer(t.Context(), b.Open(), layer.Limits{Entries: 1000, Bytes: 16 << 20}); !errors.Is(err, layer.ErrLimit) {
			t.Errorf("error %v, want ErrLimit", err)
		}
	})
}

// dpkg is a line of dpkg's list.
func dpkg(name, version string) string {
	return fmt.Sprintf("Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\n\n", name, version)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Whatever a layer holds, reading it ends, in packages or in an error.
func FuzzReadLayer(f *testing.F) {
	f.Add(tarWith(f, [2]string{"var/lib/dpkg/status", dpkg("a", "1")}, [2]string{"var/lib/.wh.dpkg", ""}))
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := ReadLayer(t.Context(), bytes.NewReader(b))
		if err != nil {
			return
		}
		var all LayerPackages
		all.Cover(files)
		before := maps.Clone(all.Versions())
		all.Cover(LayerPackages{})
		if d := cmp.Diff(before, all.Versions()); d != "" {
			t.Fatalf("an empty layer changed something\n%s", d)
		}
	})
}
