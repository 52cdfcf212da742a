package debian

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInstalled(t *testing.T) {
	const status = `Package: libc6
Status: install ok installed
Architecture: amd64
Description: a
 long text
 Version: of nothing
Version: 2.36-9

Package: held
Status: hold ok installed
Version: 1

Package: gone
Status: deinstall ok config-files
Version: 3


package: distroless
VERSION: 2:1.0~rc1
`
	got, err := Installed(strings.NewReader(status))
	if err != nil {
		t.Fatal(err)
	}
	want := []InstalledPackage{{"libc6", "2.36-9", "amd64"}, {"held", "1", ""}, {"distroless", "2:1.0~rc1", ""}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	for _, bad := range []string{"no colon", " continuation", "Package: " + strings.Repeat("x", maxStatusParagraph)} {
		if got, err := Installed(strings.NewReader(bad)); err == nil {
			t.Errorf("%.20q: %v", bad, got)
		}
	}
}

func FuzzInstalled(f *testing.F) {
	f.Add("Package: a\nVersion: 1\n\n")
	f.Add("Package: a\nStatus: x y installed\n z\n")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := Installed(strings.NewReader(s))
		if err != nil {
			return
		}
		// What is found prints back to the same list.
		var b strings.Builder
		for _, p := range list {
			b.WriteString("Package: " + p.Name + "\n")
			for name, value := range map[string]string{"Version": p.Version, "Architecture": p.Architecture} {
				if strings.ContainsAny(value, "\n") {
					return
				}
				b.WriteString(name + ": " + value + "\n")
			}
			b.WriteString("\n")
			if p.Name == "" || strings.Contains(p.Name, "\n") {
				return
			}
		}
		again, err := Installed(strings.NewReader(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(list, again); d != "" {
			t.Fatalf("(-first +again)\n%s", d)
		}
	})
}
