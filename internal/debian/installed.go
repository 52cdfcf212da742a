package debian

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// InstalledPackage is a package that a root file system says it has.
type InstalledPackage struct {
	Name, Version, Architecture string
}

// maxStatusParagraph bounds one package's paragraph, in bytes. The longest of
// Debian's have some ten thousand, for their conffiles.
const maxStatusParagraph = 1 << 20

// Installed reads a list of packages as dpkg keeps it in var/lib/dpkg/status, or
// a part of one as distroless images have in status.d. Packages that are known
// but not installed are left out. A paragraph may do without a Status.
func Installed(r io.Reader) ([]InstalledPackage, error) {
	list := newParagraphs(bufio.NewReaderSize(r, 64<<10), maxStatusParagraph)
	list.keep = func(name []byte) bool {
		switch strings.ToLower(string(name)) {
		case "package", "status", "version", "architecture":
			return true
		}
		return false
	}
	var found []InstalledPackage
	for {
		p, err := list.next()
		if err != nil {
			return nil, fmt.Errorf("list of packages: %w", err)
		}
		if p == nil {
			return found, nil
		}
		// "want eflag status": hold ok installed is as installed as install ok installed.
		if status := strings.Fields(p.get("Status")); len(status) > 0 && status[len(status)-1] != "installed" {
			continue
		}
		if name := p.get("Package"); name != "" {
			found = append(found, InstalledPackage{Name: name, Version: p.get("Version"), Architecture: p.get("Architecture")})
		}
	}
}
