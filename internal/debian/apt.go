package debian

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Source is one suite of one archive.
type Source struct {
	// URI is the archive's address without a slash at the end,
	// "http://host/debian": http, https or file.
	URI        string
	Suite      string // "bookworm", "bookworm-security"
	Components []string
	// Proxy is apt's proxy for this address: a URL, "DIRECT", or "" for what
	// the environment says.
	Proxy string
}

// maxAptFile bounds one file of apt's configuration, in bytes.
const maxAptFile = 1 << 20

// Sources reads apt's configuration below root ("/" for this machine's): one-line
// *.list files, deb822 *.sources files, mirror+file lists, and the proxies of
// apt.conf. It returns the entries for Debian's own binary packages in apt's
// order and leaves out all others: third parties (which name no Debian suite,
// have no component main, or are signed by somebody else's key), source
// packages, disabled entries, and addresses other than http, https and file.
// Having none is an error with a hint.
func Sources(root string) ([]Source, error) {
	files := []string{"etc/apt/sources.list"}
	for _, pattern := range []string{"*.list", "*.sources"} {
		found, err := filepath.Glob(filepath.Join(root, "etc/apt/sources.list.d", pattern))
		if err != nil {
			return nil, fmt.Errorf("list apt sources below %s: %w", root, err)
		}
		for _, f := range found {
			files = append(files, "etc/apt/sources.list.d/"+filepath.Base(f))
		}
	}
	slices.Sort(files[1:])
	var sources []Source
	for _, f := range files {
		b, err := readAptFile(filepath.Join(root, f))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries, err := parseSources(f, b)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			sources = append(sources, e.sources(root)...)
		}
	}
	if len(sources) == 0 {
		return nil, hint(fmt.Errorf("apt configuration below %s: no entry for a Debian archive", root),
			"name a mirror: --mirror http://HOST/debian")
	}
	proxies, err := readProxies(root)
	if err != nil {
		return nil, err
	}
	for i := range sources {
		sources[i].Proxy = proxies.forURI(sources[i].URI)
	}
	return sources, nil
}

// ForMirror is the sources of a suite on one mirror: the suite itself at uri, and
// its security suite at the conventional address beside it, uri + "-security".
func ForMirror(uri, suite string) []Source {
	uri = strings.TrimRight(uri, "/")
	return []Source{
		{URI: uri, Suite: suite, Components: []string{"main"}},
		{URI: uri + "-security", Suite: suite + "-security", Components: []string{"main"}},
	}
}

// HostSuite is the codename in root's /etc/os-release: bookworm. It fails when
// the system is not Debian.
func HostSuite(root string) (string, error) {
	b, err := readAptFile(filepath.Join(root, "etc/os-release"))
	if err != nil {
		return "", err
	}
	osr := parseOSRelease(b)
	if osr["ID"] != "debian" || osr["VERSION_CODENAME"] == "" {
		return "", fmt.Errorf("%s/etc/os-release: ID=%q VERSION_CODENAME=%q is no Debian release",
			strings.TrimRight(root, "/"), osr["ID"], osr["VERSION_CODENAME"])
	}
	return osr["VERSION_CODENAME"], nil
}

// HostArch is Debian's name of the architecture that this program runs on.
func HostArch() string {
	switch runtime.GOARCH {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	}
	return runtime.GOARCH // amd64, arm64, riscv64, s390x
}

// parseOSRelease reads NAME=value lines, quoted as a shell would.
func parseOSRelease(b []byte) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			m[k] = strings.Trim(v, `"'`)
		}
	}
	return m
}

func readAptFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxAptFile {
		return nil, fmt.Errorf("read %s: not a regular file of at most %d bytes", name, maxAptFile)
	}
	return os.ReadFile(name)
}

// aptEntry is one entry of a sources file as written there.
type aptEntry struct {
	uris, suites, components []string
	signedBy                 string
}

// sources turns the entry into Debian's sources, or none.
func (e aptEntry) sources(root string) []Source {
	if !slices.Contains(e.components, "main") || foreignKey(e.signedBy) {
		return nil
	}
	var out []Source
	for _, u := range e.uris {
		for _, uri := range expandURI(root, u) {
			for _, s := range e.suites {
				if debianSuite(s) {
					out = append(out, Source{URI: uri, Suite: s, Components: []string{"main"}})
				}
			}
		}
	}
	return out
}

// foreignKey is true when an entry says that its key is not Debian's. A mirror
// inside a company may keep Debian's keys in a file of any name, so only a name
// without "debian" counts as foreign; the signature is checked anyway.
func foreignKey(signedBy string) bool {
	return signedBy != "" && !strings.Contains(strings.ToLower(signedBy), "debian")
}

// Releases are the codenames that Debian has given to what is to be had.
var Releases = []string{"bullseye", "bookworm", "trixie", "forky", "duke", "sid"}

// debianSuites are the names that an entry for Debian itself can carry, before
// -updates, -security and so on.
var debianSuites = slices.Concat(Releases, []string{"oldoldstable", "oldstable", "stable", "testing", "unstable"})

func debianSuite(s string) bool {
	name, pocket, _ := strings.Cut(s, "-")
	return slices.Contains(debianSuites, name) &&
		slices.Contains([]string{"", "updates", "security", "proposed", "backports"}, pocket)
}

// expandURI turns an apt address into the archive addresses we can read: itself,
// those in a mirror+file list (Debian's cloud images use one), or none.
func expandURI(root, raw string) []string {
	if list, ok := strings.CutPrefix(raw, "mirror+file:"); ok {
		b, err := readAptFile(filepath.Join(root, filepath.Clean("/"+list)))
		if err != nil {
			return nil
		}
		var out []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 0 && !strings.HasPrefix(f[0], "#") && !strings.HasPrefix(f[0], "mirror") {
				out = append(out, expandURI(root, f[0])...)
			}
		}
		return out
	}
	u, err := url.Parse(raw)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) {
		return nil
	}
	return []string{strings.TrimRight(raw, "/")}
}

func parseSources(name string, b []byte) ([]aptEntry, error) {
	if strings.HasSuffix(name, ".sources") {
		return parseDeb822Sources(name, b)
	}
	var entries []aptEntry
	for i, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		e, ok, err := parseOneLine(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
		if ok {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// parseOneLine reads "deb [ option=value ... ] uri suite component ...".
func parseOneLine(line string) (aptEntry, bool, error) {
	var e aptEntry
	f := strings.Fields(line)
	if len(f) == 0 || f[0] != "deb" {
		return e, false, nil
	}
	rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "deb"))
	if strings.HasPrefix(rest, "[") {
		options, after, ok := strings.Cut(rest[1:], "]")
		if !ok {
			return e, false, errors.New("options without a closing ]")
		}
		for _, o := range strings.Fields(options) {
			if v, ok := strings.CutPrefix(o, "signed-by="); ok {
				e.signedBy = v
			}
		}
		rest = after
	}
	f = strings.Fields(rest)
	if len(f) < 2 {
		return e, false, errors.New("an address and a suite must follow deb")
	}
	e.uris, e.suites, e.components = f[:1], f[1:2], f[2:]
	return e, true, nil
}

// parseDeb822Sources reads paragraphs of Types, URIs, Suites, Components.
func parseDeb822Sources(name string, b []byte) ([]aptEntry, error) {
	var entries []aptEntry
	r := newParagraphs(bufio.NewReader(bytes.NewReader(b)), maxAptFile)
	for {
		p, err := r.next()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if p == nil {
			return entries, nil
		}
		if !slices.Contains(strings.Fields(p.get("Types")), "deb") || isNo(p.get("Enabled")) {
			continue
		}
		entries = append(entries, aptEntry{
			uris:       strings.Fields(p.get("URIs")),
			suites:     strings.Fields(p.get("Suites")),
			components: strings.Fields(p.get("Components")),
			signedBy:   cmp.Or(embeddedKey(p.get("Signed-By")), p.get("Signed-By")),
		})
	}
}

// embeddedKey stands for a key that is written into the entry itself. Whose it
// is cannot be seen from its name, so it gets the benefit of the doubt.
func embeddedKey(signedBy string) string {
	if strings.Contains(signedBy, "BEGIN PGP") {
		return "debian"
	}
	return ""
}

func isNo(s string) bool {
	return slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.ToLower(s))
}

// pockets returns, for a suite and what is configured, where the suite itself,
// its updates and its security fixes can be had: for each, addresses in order
// of preference. Addresses configured for another suite are used too, since
// one archive holds all suites.
func pockets(sources []Source, suite string) ([]pocket, error) {
	security := suite + "-security"
	out := []pocket{{suite: suite}, {suite: suite + "-updates"}, {suite: security}}
	add := func(p *pocket, s Source) {
		same := func(o Source) bool { return o.URI == s.URI }
		if !slices.ContainsFunc(p.from, same) {
			p.from = append(p.from, Source{URI: s.URI, Suite: p.suite, Components: s.Components, Proxy: s.Proxy})
		}
	}
	isSecurity := func(s Source) bool { return strings.HasSuffix(s.Suite, "-security") }
	for _, s := range sources { // exact matches come first
		for i := range out {
			if s.Suite == out[i].suite {
				add(&out[i], s)
			}
		}
	}
	for _, s := range sources {
		if isSecurity(s) {
			add(&out[2], s)
		} else {
			add(&out[0], s)
		}
	}
	for _, s := range out[0].from {
		add(&out[1], s)
	}
	if len(out[2].from) == 0 {
		for _, s := range out[0].from {
			s.URI += "-security"
			add(&out[2], s)
		}
	}
	if len(out[0].from) == 0 {
		return nil, hint(fmt.Errorf("suite %s: no archive address configured but for security", suite),
			"name a mirror: --mirror http://HOST/debian")
	}
	return out, nil
}

// pocket is a suite and the archives that may have it, best first.
type pocket struct {
	suite string
	from  []Source
}
