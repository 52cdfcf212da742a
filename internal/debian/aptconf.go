package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// proxies are apt.conf's Acquire::<scheme>::Proxy[::<host>] settings, by lower
// case name.
type proxies map[string]string

// readProxies reads apt.conf.d/* and apt.conf below root. A later setting wins.
func readProxies(root string) (proxies, error) {
	files, err := filepath.Glob(filepath.Join(root, "etc/apt/apt.conf.d/*"))
	if err != nil {
		return nil, fmt.Errorf("list apt.conf.d below %s: %w", root, err)
	}
	slices.Sort(files)
	files = append(files, filepath.Join(root, "etc/apt/apt.conf"))
	p := proxies{}
	for _, f := range files {
		if ext := filepath.Ext(f); ext != "" && ext != ".conf" {
			continue // as apt does: backups and the like
		}
		b, err := readAptFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parseAptConf(string(b), func(name, value string) {
			if name = strings.ToLower(name); strings.HasPrefix(name, "acquire::") && strings.Contains(name, "::proxy") {
				p[name] = value
			}
		})
	}
	return p, nil
}

// forURI is the proxy that apt would use: the host's, else the scheme's; https
// falls back to http's, as in apt.
func (p proxies) forURI(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	schemes := []string{u.Scheme}
	if u.Scheme == "https" {
		schemes = append(schemes, "http")
	}
	for _, s := range schemes {
		for _, name := range []string{"acquire::" + s + "::proxy::" + strings.ToLower(u.Hostname()), "acquire::" + s + "::proxy"} {
			if v := p[name]; v != "" {
				return v
			}
		}
	}
	return ""
}

// parseAptConf calls set for each name and value of a configuration file:
// nested braces and a::b::c names, both with quoted or bare values. It is
// lenient: what it does not understand it skips, since apt has read the file
// before us.
func parseAptConf(text string, set func(name, value string)) {
	var scope, words []string
	path := func(name string) string { return strings.Join(append(slices.Clone(scope), name), "::") }
	for _, tok := range aptConfTokens(text) {
		switch tok {
		case "{":
			name := ""
			if len(words) > 0 {
				name = words[0]
			}
			scope, words = append(scope, name), nil
		case "}":
			if len(scope) > 0 {
				scope = scope[:len(scope)-1]
			}
			words = nil
		case ";":
			if len(words) > 1 {
				set(path(words[0]), words[1])
			}
			words = nil
		default:
			words = append(words, strings.Trim(tok, `"`))
		}
	}
}

// aptConfTokens splits into braces, semicolons, quoted strings (quotes kept) and
// words, without comments.
func aptConfTokens(s string) []string {
	var toks []string
	for s != "" {
		switch c := s[0]; {
		case strings.HasPrefix(s, "//") || c == '#':
			_, s, _ = strings.Cut(s, "\n")
		case strings.HasPrefix(s, "/*"):
			_, s, _ = strings.Cut(s, "*/")
		case c == '{' || c == '}' || c == ';':
			toks, s = append(toks, s[:1]), s[1:]
		case c == '"':
			body, rest, _ := strings.Cut(s[1:], `"`)
			toks, s = append(toks, `"`+body+`"`), rest
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			s = s[1:]
		default:
			i := strings.IndexAny(s, " \t\r\n{};\"")
			if i < 0 {
				i = len(s)
			}
			toks, s = append(toks, s[:i]), s[i:]
		}
	}
	return toks
}
