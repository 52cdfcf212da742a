package python

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// Distributions lists what is installed in a site-packages directory, from its
// *.dist-info/METADATA, for the layer's bill of materials. layer is the
// directory that locations are relative to.
func Distributions(layer, site string) ([]kit.Package, error) {
	files, err := filepath.Glob(filepath.Join(site, "*.dist-info", "METADATA"))
	if err != nil {
		return nil, err
	}
	var all []kit.Package
	for _, file := range files {
		p, err := readMetadata(file)
		if err != nil {
			return nil, err
		}
		if p.Location, err = filepath.Rel(layer, file); err != nil {
			return nil, err
		}
		if p.Name != "" {
			all = append(all, p)
		}
	}
	return all, nil
}

// expression is what of free text may pass as a licence identifier: those that
// Python packages use most, in the spelling of SPDX.
var expression = regexp.MustCompile(`^(MIT|Apache-2\.0|BSD-[23]-Clause|ISC|MPL-2\.0|PSF-2\.0|Unlicense|0BSD|Zlib|(L?GPL-[23]\.[01]|AGPL-3\.0)-(only|or-later))$`)

// readMetadata reads the head of a METADATA file, which is like a mail's.
func readMetadata(file string) (kit.Package, error) {
	f, err := os.Open(file)
	if err != nil {
		return kit.Package{}, err
	}
	defer f.Close()
	p := kit.Package{Type: "pypi"}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && lines.Text() != "" {
		key, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(key) {
		case "name":
			p.Name = Normalize(value)
		case "version":
			p.Version = value
		case "license-expression":
			p.License = value
		case "license":
			// A whole licence text may stand here; its first line says which.
			if expression.MatchString(value) {
				p.License = value
			} else if value != "UNKNOWN" && len(value) < 200 {
				p.LicenseText = value
			}
		}
	}
	return p, lines.Err()
}
