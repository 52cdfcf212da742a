package debian

import (
	"bufio"
	"bytes"
	"embed"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxInRelease bounds an InRelease file in bytes; Debian's largest has 200 kB.
const maxInRelease = 8 << 20

// futureRelease is how far a Release's Date may lie ahead of our clock.
const futureRelease = time.Hour

// archiveKeys are the public keys of the Debian archive (bookworm, trixie), from
// the package debian-archive-keyring.
//
//go:embed keys/*.gpg
var archiveKeys embed.FS

// readKeyring reads the key files, or the built-in keys when there are none.
func readKeyring(files []string) (openpgp.EntityList, error) {
	read, names := os.ReadFile, files
	if len(files) == 0 {
		read = archiveKeys.ReadFile
		entries, err := archiveKeys.ReadDir("keys")
		if err != nil {
			return nil, fmt.Errorf("list built-in archive keys: %w", err)
		}
		for _, e := range entries {
			names = append(names, path.Join("keys", e.Name()))
		}
	}
	var all openpgp.EntityList
	for _, name := range names {
		b, err := read(name)
		if err != nil {
			return nil, fmt.Errorf("read keyring: %w", err)
		}
		var keys openpgp.EntityList
		if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
			keys, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
		} else {
			keys, err = openpgp.ReadKeyRing(bytes.NewReader(b))
		}
		if err != nil {
			return nil, fmt.Errorf("read keyring %s: %w", name, err)
		}
		all = append(all, keys...)
	}
	return all, nil
}

// release is what we use of a Release file.
type release struct {
	suite, codename string
	date            time.Time
	validUntil      time.Time // zero when it has none
	byHash          bool
	// separateAll is true when packages of architecture all have an index of
	// their own.
	separateAll bool
	files       map[string]fileSum
}

// fileSum is one line of the SHA256 list.
type fileSum struct {
	sha256 string
	size   int64
}

// openInRelease verifies a clear-signed Release file and returns the signed text.
// The file must be one signed message and nothing else: text around it would
// look signed to people and is not. One good signature by a key of the ring is
// enough; those of keys that are not in it are ignored.
func openInRelease(b []byte, keys openpgp.EntityList, now time.Time) ([]byte, error) {
	if !bytes.HasPrefix(b, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, errors.New("does not begin with a signed message")
	}
	block, rest := clearsign.Decode(b)
	if block == nil {
		return nil, errors.New("is not a well-formed signed message")
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("has something after the signature")
	}
	config := &packet.Config{Time: func() time.Time { return now }}
	_, err := openpgp.CheckDetachedSignature(keys, bytes.NewReader(block.Bytes), block.ArmoredSignature.Body, config)
	if err != nil {
		return nil, hint(fmt.Errorf("signature: %w", err),
			"an archive that is not Debian's own needs --keyring FILE with its public key")
	}
	return block.Plaintext, nil
}

var releaseFields = []string{"Suite", "Codename", "Date", "Valid-Until", "Acquire-By-Hash", "Architectures",
	"No-Support-for-Architecture-all", "SHA256"}

// parseRelease reads the text of a Release file.
func parseRelease(text []byte) (release, error) {
	var rel release
	r := newParagraphs(bufio.NewReader(bytes.NewReader(text)), maxInRelease)
	r.keep = func(name []byte) bool { return slices.Contains(releaseFields, string(name)) }
	p, err := r.next()
	if err != nil {
		return rel, err
	}
	rel.suite, rel.codename = p.get("Suite"), p.get("Codename")
	rel.byHash = p.get("Acquire-By-Hash") == "yes"
	rel.separateAll = slices.Contains(strings.Fields(p.get("Architectures")), "all") &&
		!slices.Contains(strings.Fields(p.get("No-Support-for-Architecture-all")), "Packages")
	if rel.date, err = parseDate(p.get("Date")); err != nil {
		return rel, fmt.Errorf("field Date: %w", err)
	}
	if s := p.get("Valid-Until"); s != "" {
		if rel.validUntil, err = parseDate(s); err != nil {
			return rel, fmt.Errorf("field Valid-Until: %w", err)
		}
	}
	rel.files, err = parseSums(p.get("SHA256"))
	return rel, err
}

// parseDate reads the RFC 2822 date of Release files, always UTC.
func parseDate(s string) (time.Time, error) {
	for _, layout := range []string{"Mon, 2 Jan 2006 15:04:05 MST", time.RFC1123Z} {
		if t, err := time.Parse(layout, s); err == nil {
			if name, off := t.Zone(); off != 0 || (name != "UTC" && name != "GMT" && name != "") {
				return t, fmt.Errorf("%q is not in UTC", s)
			}
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a date", s)
}

// parseSums reads the lines "sha256 size name".
func parseSums(s string) (map[string]fileSum, error) {
	files := map[string]fileSum{}
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 || len(f[0]) != 64 {
			return nil, fmt.Errorf("field SHA256: line %.80q is not \"sha256 size name\"", line)
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("field SHA256: size %q of %s", f[1], f[2])
		}
		files[f[2]] = fileSum{sha256: strings.ToLower(f[0]), size: size}
	}
	if len(files) == 0 {
		return nil, errors.New("has no SHA256 list")
	}
	return files, nil
}

// check holds a release against what was asked for, the clock, and the date seen
// last time (zero for never).
func (rel release) check(suite string, now, last time.Time, allowExpired bool) error {
	if rel.suite != suite && rel.codename != suite {
		return fmt.Errorf("is for suite %q, codename %q", rel.suite, rel.codename)
	}
	if rel.date.After(now.Add(futureRelease)) {
		return fmt.Errorf("is dated %s, which is in the future: is this machine's clock right?", rel.date.Format(time.RFC3339))
	}
	if !allowExpired && !rel.validUntil.IsZero() && now.After(rel.validUntil) {
		return hint(fmt.Errorf("expired at %s: the mirror no longer follows the archive", rel.validUntil.Format(time.RFC3339)),
			"use another mirror, or --allow-expired")
	}
	if rel.date.Before(last) {
		return fmt.Errorf("is dated %s, older than the %s of the package lock: somebody shows us an old archive",
			rel.date.Format(time.RFC3339), last.Format(time.RFC3339))
	}
	return nil
}
