package kit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/package-url/packageurl-go"
)

// BOM is a software bill of materials: the packages that something is made of.
// It is written in three formats (CycloneDX, SPDX and Syft JSON), the same
// bytes for the same packages: no time, no random number.
type BOM struct {
	// Subject is what the packages are in, for people: "CPython 3.11.2".
	Subject  string
	Packages []Package
}

// Package is one package of a BOM.
type Package struct {
	// Type is the package URL's type: "deb", "pypi", "generic".
	Type string
	// Namespace is the package URL's: "debian" for Debian's packages.
	Namespace string
	// Name is the package's. For the type "golang" it is the whole module path.
	Name    string
	Version string
	// Qualifiers of the package URL, such as arch and distro.
	Qualifiers map[string]string
	// License is an SPDX expression; LicenseText any other words for it.
	License, LicenseText string
	// SHA256 is that of the file the package came as, lower case hex.
	SHA256 string
	// Location is a file of the layer that shows the package is there, relative
	// to the layer.
	Location string
}

// PURL is the package URL.
func (p Package) PURL() string {
	var q packageurl.Qualifiers
	for _, k := range sortedKeys(p.Qualifiers) {
		q = append(q, packageurl.Qualifier{Key: k, Value: p.Qualifiers[k]})
	}
	namespace, name := p.Namespace, p.Name
	if p.Type == "golang" && namespace == "" {
		namespace, name = path.Split(p.Name)
	}
	return packageurl.NewPackageURL(p.Type, strings.Trim(namespace, "/"), name, p.Version, q, "").ToString()
}

// id tells packages of one BOM apart, the same in every run.
func (p Package) id() string {
	sum := sha256.Sum256([]byte(p.PURL() + "\x00" + p.Location))
	return hex.EncodeToString(sum[:8])
}

func (p Package) licenseWords() string { return cmp.Or(p.License, p.LicenseText) }

// sorted is the packages in order, each once.
func (b BOM) sorted() []Package {
	all := slices.Clone(b.Packages)
	slices.SortFunc(all, func(x, y Package) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Version, y.Version), cmp.Compare(x.id(), y.id()))
	})
	return slices.CompactFunc(all, func(x, y Package) bool { return x.id() == y.id() })
}

// digest stands for the contents of the BOM where a format wants a unique name.
func (b BOM) digest() string {
	h := sha256.New()
	fmt.Fprintln(h, b.Subject)
	for _, p := range b.sorted() {
		fmt.Fprintln(h, p.id(), p.licenseWords(), p.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Files are the BOM in each format, by file name extension: "sbom.cdx.json" and
// so on.
func (b BOM) Files() (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, f := range formats {
		text, err := f.encode(b)
		if err != nil {
			return nil, err
		}
		if !bytes.HasSuffix(text, []byte("\n")) {
			text = append(text, '\n')
		}
		files[f.extension] = text
	}
	return files, nil
}

// formats of a bill of materials: file name extension and encoder.
var formats = []struct {
	extension string
	encode    func(BOM) ([]byte, error)
}{
	{"sbom.cdx.json", BOM.CycloneDX},
	{"sbom.spdx.json", BOM.SPDX},
	{"sbom.syft.json", BOM.Syft},
}

// SBOMFormats are the media types that a buildpack.toml declares as
// sbom-formats when its buildpack writes a BOM.
func SBOMFormats() []string {
	return []string{"application/vnd.cyclonedx+json", "application/spdx+json", "application/vnd.syft+json"}
}

func (b BOM) write(dir, name string) error {
	files, err := b.Files()
	if err != nil {
		return fmt.Errorf("bill of materials %s: %w", name, err)
	}
	for _, extension := range sortedKeys(files) {
		if err := os.WriteFile(filepath.Join(dir, name+"."+extension), files[extension], 0o644); err != nil {
			return err
		}
	}
	return nil
}
