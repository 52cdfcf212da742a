package debian

import (
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/kilnbuild/kiln/internal/spec"
)

// lockVersion is the format of lock files this program writes and reads.
const lockVersion = 1

// Lock is a resolved set of packages: all that is needed to fetch the same
// .debs again. Packages stand in the order they are unpacked in.
type Lock struct {
	Version  int             `toml:"version"`
	Suite    string          `toml:"suite"`
	Arch     string          `toml:"arch"`
	Exclude  []string        `toml:"exclude,omitempty"`
	Groups   []LockedGroup   `toml:"group"`
	Releases []LockedRelease `toml:"release"`
	Packages []LockedPackage `toml:"package"`
}

// LockedGroup is what was asked for in one layer.
type LockedGroup struct {
	Name string   `toml:"name"`
	Want []string `toml:"want"`
}

// LockedRelease is a Release file that was read for the lock.
type LockedRelease struct {
	Suite string    `toml:"suite"`
	Date  time.Time `toml:"date"`
}

// LockedPackage is one .deb.
type LockedPackage struct {
	Name    string `toml:"name"`
	Version string `toml:"version"`
	Arch    string `toml:"arch"`
	Group   string `toml:"group"`
	// Suite is the release that it comes from, Path its place below that
	// archive's address ("pool/main/...").
	Suite  string `toml:"suite"`
	Path   string `toml:"path"`
	Size   int64  `toml:"size"`
	SHA256 string `toml:"sha256"`
}

// Date is the newest of the releases' dates.
func (l Lock) Date() time.Time {
	var t time.Time
	for _, r := range l.Releases {
		if r.Date.After(t) {
			t = r.Date
		}
	}
	return t.UTC()
}

// Size is the sum of the .debs' sizes in bytes.
func (l Lock) Size() int64 {
	var n int64
	for _, p := range l.Packages {
		n += p.Size
	}
	return n
}

// MarshalText is the lock file: TOML, the same bytes for the same lock.
func (l Lock) MarshalText() ([]byte, error) {
	type plain Lock
	b, err := toml.Marshal(plain(l))
	if err != nil {
		return nil, fmt.Errorf("encode package lock: %w", err)
	}
	return b, nil
}

// ReadLock decodes a lock file. name is what errors call it.
func ReadLock(b []byte, name string) (Lock, error) {
	type plain Lock
	var p plain
	if err := spec.Decode(b, name, &p); err != nil {
		return Lock{}, fmt.Errorf("read package lock: %w", err)
	}
	l := Lock(p)
	if err := l.check(); err != nil {
		return Lock{}, fmt.Errorf("read package lock %s: %w", name, err)
	}
	return l, nil
}

// check refuses a lock that could make us fetch or name something strange.
func (l Lock) check() error {
	if l.Version != lockVersion {
		return fmt.Errorf("format version %d, this program knows %d", l.Version, lockVersion)
	}
	if !plainName(l.Suite) || !plainName(l.Arch) {
		return fmt.Errorf("suite %q, arch %q: not plain names", l.Suite, l.Arch)
	}
	groups := map[string]bool{}
	for _, g := range l.Groups {
		if groups[g.Name] || g.Name == "" {
			return fmt.Errorf("group %q: empty or repeated name", g.Name)
		}
		groups[g.Name] = true
	}
	seen := map[string]bool{}
	for _, p := range l.Packages {
		if err := p.check(l.Arch); err != nil {
			return fmt.Errorf("package %q: %w", p.Name, err)
		}
		if seen[p.Name] {
			return fmt.Errorf("package %q: listed twice", p.Name)
		}
		if !groups[p.Group] {
			return fmt.Errorf("package %q: unknown group %q", p.Name, p.Group)
		}
		seen[p.Name] = true
	}
	return nil
}

func (p LockedPackage) check(arch string) error {
	switch sum, err := hex.DecodeString(p.SHA256); {
	case !plainName(p.Name):
		return fmt.Errorf("not a package name")
	case !plainName(p.Suite):
		return fmt.Errorf("suite %q: not a plain name", p.Suite)
	case p.Arch != arch && p.Arch != "all":
		return fmt.Errorf("architecture %q in a lock for %s", p.Arch, arch)
	case err != nil || len(sum) != 32 || strings.ToLower(p.SHA256) != p.SHA256:
		return fmt.Errorf("sha256 %q: not 64 lower case hex digits", p.SHA256)
	case p.Size <= 0 || p.Size > maxDeb:
		return fmt.Errorf("size %d: not between 1 and %d", p.Size, int64(maxDeb))
	case !cleanRelative(p.Path):
		return fmt.Errorf("path %q: not a clean relative path", p.Path)
	}
	return nil
}

// plainName is true for what can be a package, suite or architecture name.
func plainName(s string) bool {
	if s == "" || s[0] == '.' || s[0] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+-._", r))
	}) < 0
}

// cleanRelative is true for a path that stays below where it is joined to.
func cleanRelative(p string) bool {
	return p != "" && p == path.Clean(p) && p[0] != '/' && p != "." && p != ".." && !strings.HasPrefix(p, "../") &&
		!strings.ContainsAny(p, "?#%\\\n\x00")
}

// madeFor says whether l is a lock of the request, and if not, what differs.
func (l Lock) madeFor(r Request) error {
	if l.Suite != r.Suite || l.Arch != r.Arch {
		return fmt.Errorf("package lock is for %s/%s, not %s/%s", l.Suite, l.Arch, r.Suite, r.Arch)
	}
	same := slices.EqualFunc(l.Groups, r.Groups, func(a LockedGroup, b Group) bool {
		return a.Name == b.Name && slices.Equal(a.Want, b.Packages)
	})
	if !same || !slices.Equal(l.Exclude, r.Exclude) {
		return fmt.Errorf("package lock was made for other packages or excludes than the recipe's: make it anew")
	}
	return nil
}
