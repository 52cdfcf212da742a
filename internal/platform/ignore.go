package platform

import "strings"

// patterns is an ordered list of gitignore patterns, as project.toml's include
// and exclude hold them. The last pattern that matches decides; a pattern that
// begins with "!" takes a match back.
type patterns []pattern

type pattern struct {
	segments []string
	negate   bool
	dirOnly  bool
}

// parsePatterns reads gitignore lines: blank ones and those that begin with
// "#" say nothing.
func parsePatterns(lines []string) patterns {
	var ps patterns
	for _, line := range lines {
		line = strings.TrimSuffix(line, "\r")
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = trimTrailingSpaces(line)
		p := pattern{}
		if strings.HasPrefix(line, "!") {
			p.negate, line = true, line[1:]
		}
		if strings.HasSuffix(line, "/") {
			p.dirOnly, line = true, strings.TrimSuffix(line, "/")
		}
		if line == "" {
			continue
		}
		anchored := strings.Contains(line, "/")
		line = strings.TrimPrefix(line, "/")
		p.segments = segments(line)
		if !anchored {
			p.segments = append([]string{"**"}, p.segments...)
		}
		ps = append(ps, p)
	}
	return ps
}

// segments splits a pattern at its slashes. One in a class is a character of
// it, which no name has.
func segments(line string) []string {
	var list []string
	from := 0
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '[':
			if _, rest, valid := matchClass(line[i+1:], 0); valid {
				i = len(line) - len(rest) - 1
			}
		case '/':
			list = append(list, line[from:i])
			from = i + 1
		}
	}
	return append(list, line[from:])
}

// trimTrailingSpaces drops unescaped spaces at the end of a line, as git does.
func trimTrailingSpaces(s string) string {
	for strings.HasSuffix(s, " ") && !strings.HasSuffix(s, `\ `) {
		s = s[:len(s)-1]
	}
	return s
}

// match says whether the patterns select rel, a slash-separated path below the
// app. A file below a selected directory is selected with it: git cannot take
// back a file whose directory is out.
func (ps patterns) match(rel string, isDir bool) bool {
	parts := strings.Split(rel, "/")
	for i := range parts {
		last := i == len(parts)-1
		if ps.own(parts[:i+1], isDir || !last) {
			return true
		}
	}
	return false
}

// own says whether the patterns select exactly this path.
func (ps patterns) own(parts []string, isDir bool) bool {
	for i := len(ps) - 1; i >= 0; i-- {
		p := ps[i]
		if p.dirOnly && !isDir {
			continue
		}
		if matchSegments(p.segments, parts) {
			return !p.negate
		}
	}
	return false
}

// matchSegments matches whole paths; "**" stands for any number of segments,
// but for at least one at the end ("a/**" is what is in a, not a).
func matchSegments(pat, parts []string) bool {
	for len(pat) > 0 {
		if len(pat[0]) > 1 && strings.Trim(pat[0], "*") == "" {
			if len(pat) == 1 {
				return len(parts) > 0
			}
			for i := 0; i <= len(parts); i++ {
				if matchSegments(pat[1:], parts[i:]) {
					return true
				}
			}
			return false
		}
		if len(parts) == 0 || !matchGlob(pat[0], parts[0]) {
			return false
		}
		pat, parts = pat[1:], parts[1:]
	}
	return len(parts) == 0
}

// matchGlob matches one segment, byte by byte: names need not be UTF-8.
func matchGlob(pat, s string) bool {
	for len(pat) > 0 {
		switch pat[0] {
		case '*':
			pat = strings.TrimLeft(pat, "*")
			for i := 0; i <= len(s); i++ {
				if matchGlob(pat, s[i:]) {
					return true
				}
			}
			return false
		case '?':
			if s == "" {
				return false
			}
			pat, s = pat[1:], s[1:]
		case '[':
			if s == "" {
				return false
			}
			ok, rest, valid := matchClass(pat[1:], s[0])
			if !valid || !ok {
				return false
			}
			pat, s = rest, s[1:]
		case '\\':
			if len(pat) == 1 {
				return false
			}
			pat = pat[1:]
			fallthrough
		default:
			if s == "" || s[0] != pat[0] {
				return false
			}
			pat, s = pat[1:], s[1:]
		}
	}
	return s == ""
}

// matchClass matches c against the class whose "[" was read; rest follows its
// "]". An unclosed class matches nothing.
func matchClass(pat string, c byte) (ok bool, rest string, valid bool) {
	negate := false
	if pat != "" && (pat[0] == '!' || pat[0] == '^') {
		negate, pat = true, pat[1:]
	}
	for first := true; ; first = false {
		if pat == "" {
			return false, "", false
		}
		if pat[0] == ']' && !first {
			return ok != negate, pat[1:], true
		}
		if strings.HasPrefix(pat, "[:") {
			if end := strings.Index(pat, ":]"); end > 0 {
				ok = ok || posixClass(pat[2:end], c)
				pat = pat[end+2:]
				continue
			}
		}
		lo, rest, good := classByte(pat)
		if !good {
			return false, "", false
		}
		hi := lo
		if len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			if hi, rest, good = classByte(rest[1:]); !good {
				return false, "", false
			}
		}
		ok = ok || lo <= c && c <= hi
		pat = rest
	}
}

func classByte(pat string) (byte, string, bool) {
	if pat[0] == '\\' {
		pat = pat[1:]
	}
	if pat == "" {
		return 0, "", false
	}
	return pat[0], pat[1:], true
}

func posixClass(name string, c byte) bool {
	lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
	switch name {
	case "alpha":
		return lower || upper
	case "digit":
		return digit
	case "alnum":
		return lower || upper || digit
	case "lower":
		return lower
	case "upper":
		return upper
	case "space":
		return c == ' ' || c >= '\t' && c <= '\r'
	case "blank":
		return c == ' ' || c == '\t'
	case "punct":
		return c > ' ' && c < 0x7f && !lower && !upper && !digit
	case "xdigit":
		return digit || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
	}
	return false
}
