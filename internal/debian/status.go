package debian

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// record writes what scanners read of one package, var/lib/dpkg/status.d, and
// keeps its paragraph for var/lib/dpkg/status. kept are the member paths that
// are in the image: checksums of others would be reported as damage.
func (b *builder) record(l *layerWriter, s *stream, kept map[string]bool) error {
	text := withStatus(s.control.fields)
	b.status = append(b.status, text)
	dir := "var/lib/dpkg/status.d/"
	if err := l.file(dir+s.Name, 0o644, []byte(text)); err != nil {
		return err
	}
	var sums bytes.Buffer
	for line := range strings.Lines(string(s.control.md5sums)) {
		if _, name, ok := strings.Cut(strings.TrimRight(line, "\n"), "  "); ok && kept[name] {
			sums.WriteString(line)
		}
	}
	return l.file(dir+s.Name+".md5sums", 0o644, sums.Bytes())
}

// withStatus puts dpkg's word for "unpacked and configured" into a control
// paragraph, after the package's name as dpkg does.
func withStatus(fields paragraph) string {
	var b strings.Builder
	for rest := []byte(fields); len(rest) > 0; {
		var field []byte
		field, rest = cutField(rest)
		b.Write(bytes.TrimRight(field, "\n"))
		b.WriteByte('\n')
		if len(field) > 8 && strings.EqualFold(string(field[:8]), "package:") {
			b.WriteString("Status: install ok installed\n")
		}
	}
	return b.String()
}

// database writes dpkg's own list of all packages.
func (b *builder) database(l *layerWriter) error {
	slices.Sort(b.status)
	return l.file("var/lib/dpkg/status", 0o644, []byte(strings.Join(b.status, "\n")))
}

// needsScript matches commands of maintainer scripts whose work we do not do and
// that a package may not run without.
var needsScript = regexp.MustCompile(`(?m)^[^#\n]*\b(adduser|useradd|addgroup|groupadd|systemd-sysusers|glib-compile-schemas|fc-cache|` +
	`update-mime-database|gdk-pixbuf-query-loaders|gtk-update-icon-cache|dkms|ucf|setcap|update-rc\.d|mktexlsr)\b`)

// unemulated lists the scripts of a package that do more than we know to do for
// them: "package script: command".
func unemulated(pkg string, scripts map[string]string) []string {
	var out []string
	for _, name := range []string{"preinst", "postinst"} {
		seen := map[string]bool{}
		for _, m := range needsScript.FindAllStringSubmatch(scripts[name], -1) {
			if !seen[m[1]] {
				seen[m[1]] = true
				out = append(out, pkg+" "+name+": "+m[1])
			}
		}
	}
	return out
}
