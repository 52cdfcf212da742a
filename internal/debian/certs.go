package debian

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/pem"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// caBundle is the file that OpenSSL, Go, curl and Python look for.
const caBundle = "etc/ssl/certs/ca-certificates.crt"

// isCertificate is true for the certificates of the package ca-certificates.
func isCertificate(name string) bool {
	return strings.HasPrefix(name, "usr/share/ca-certificates/") && strings.HasSuffix(name, ".crt")
}

// certificates are the captured certificate files, by path.
func (b *builder) certificates() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(b.captured)) {
		if isCertificate(name) {
			names = append(names, name)
		}
	}
	return names
}

// bundle does what update-ca-certificates does: all certificates in one file,
// and the places where OpenSSL looks by itself pointing there.
func (b *builder) bundle(l *layerWriter) error {
	names := b.certificates()
	if len(names) == b.certs {
		return nil
	}
	b.certs = len(names)
	var pems bytes.Buffer
	for _, name := range names {
		pems.Write(bytes.TrimRight(b.captured[name], "\n"))
		pems.WriteByte('\n')
	}
	if err := l.file(caBundle, 0o644, pems.Bytes()); err != nil {
		return err
	}
	if err := l.symlink("usr/lib/ssl/cert.pem", "/"+caBundle); err != nil {
		return err
	}
	if err := l.symlink("usr/lib/ssl/certs", "/etc/ssl/certs"); err != nil {
		return err
	}
	return l.symlink("etc/ssl/cert.pem", "/"+caBundle)
}

// trustStore writes the certificates in Java's own form where a Java is.
func (b *builder) trustStore(l *layerWriter) error {
	java := slices.ContainsFunc(b.result.Lock.Packages, func(p LockedPackage) bool {
		return p.Name == "ca-certificates-java" || strings.HasPrefix(p.Name, "openjdk-")
	})
	if !java || b.certs == 0 {
		return nil
	}
	var entries []jksEntry
	for _, name := range b.certificates() {
		if block, _ := pem.Decode(b.captured[name]); block != nil && block.Type == "CERTIFICATE" {
			alias := "debian:" + strings.ToLower(path.Base(name))
			entries = append(entries, jksEntry{alias: strings.TrimSuffix(alias, ".crt") + ".pem", der: block.Bytes})
		}
	}
	return l.file("etc/ssl/certs/java/cacerts", 0o644, jks(entries, b.tree.newest))
}

type jksEntry struct {
	alias string
	der   []byte
}

// jks is a Java key store, format 2, of trusted certificates. Its checksum is
// keyed with the password that every Java expects there, "changeit".
func jks(entries []jksEntry, date time.Time) []byte {
	var b []byte
	utf := func(s string) {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	b = binary.BigEndian.AppendUint32(b, 0xfeedfeed)
	b = binary.BigEndian.AppendUint32(b, 2)
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = binary.BigEndian.AppendUint32(b, 2) // a trusted certificate
		utf(strings.Map(asciiOnly, e.alias))
		b = binary.BigEndian.AppendUint64(b, uint64(date.UnixMilli()))
		utf("X.509")
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.der)))
		b = append(b, e.der...)
	}
	sum := sha1.New()
	for _, u := range utf16.Encode([]rune("changeit")) {
		sum.Write(binary.BigEndian.AppendUint16(nil, u))
	}
	sum.Write([]byte("Mighty Aphrodite"))
	sum.Write(b)
	return sum.Sum(b)
}

// asciiOnly keeps an alias inside what Java's modified UTF-8 shares with ASCII.
func asciiOnly(r rune) rune {
	if r < 0x20 || r > 0x7e {
		return '?'
	}
	return r
}
