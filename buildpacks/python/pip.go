package python

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// systemBundle is where the sandbox shows the host's CA certificates, those of
// a proxy that inspects TLS among them.
const systemBundle = "/etc/ssl/certs/ca-certificates.crt"

// PipEnv is the environment for running pip, as changes to set: certificates of
// the system instead of those in pip, and nothing that asks or chats.
func PipEnv(b *kit.Build, set map[string]string) map[string]string {
	def := map[string]string{
		"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off",
		"PIP_ROOT_USER_ACTION": "ignore",
		// Debug information would carry the random directory of the build.
		"CFLAGS": "-g0", "CXXFLAGS": "-g0",
	}
	bundle := b.Getenv("SSL_CERT_FILE")
	if bundle == "" {
		bundle = systemBundle
	}
	if info, err := os.Stat(bundle); err == nil && info.Size() > 0 {
		for _, name := range []string{"PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"} {
			def[name] = bundle
		}
	}
	all := map[string]string{}
	for k, v := range def {
		if have, ok := b.Lookup(k); ok {
			v = have
		}
		all[k] = v
	}
	for k, v := range set {
		all[k] = v
	}
	return all
}

// Tail hands on what is written and remembers the end of it.
type Tail struct {
	To   io.Writer
	last []byte
}

// maxTail is how much of a program's output may be needed to explain its
// failure, in bytes.
const maxTail = 64 << 10

// Write implements io.Writer.
func (t *Tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if len(t.last) > 2*maxTail {
		t.last = append([]byte(nil), t.last[len(t.last)-maxTail:]...)
	}
	return t.To.Write(p)
}

// String is what is remembered.
func (t *Tail) String() string { return string(t.last) }

// complaints are what pip says when it fails, in the order in which they say
// most, with the sentence for the user. $1 is the first group.
var complaints = []struct {
	pattern        *regexp.Regexp
	sentence, hint string
}{
	{
		regexp.MustCompile(`(?i)CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError`),
		"the package index shows a TLS certificate that is not trusted here",
		"behind a proxy that inspects TLS, its CA certificate must be in the host's CA bundle, or come as a service binding of the type ca-certificates",
	},
	{
		regexp.MustCompile(`(?i)Temporary failure in name resolution|Name or service not known|nodename nor servname|No address associated`),
		"the package index cannot be reached: its name does not resolve",
		"check the network, HTTPS_PROXY, and that the build has a network (--network host)",
	},
	{
		regexp.MustCompile(`(?i)Network is unreachable|No route to host|Connection refused|ConnectTimeoutError|Cannot connect to proxy|Failed to establish a new connection|Read timed out|ReadTimeoutError`),
		"the package index cannot be reached",
		"check the network, HTTPS_PROXY, and that the build has a network (--network host)",
	},
	{
		regexp.MustCompile(`(?i)No space left on device`),
		"no space is left on the disk", "",
	},
	{
		regexp.MustCompile(`(?i)HTTP error (40[13]) while getting|(40[13]) Client Error`),
		"the package index refuses access (HTTP $1)",
		"give the credentials with the index address in PIP_INDEX_URL or PIP_EXTRA_INDEX_URL",
	},
	{
		regexp.MustCompile(`Could not find a version that satisfies the requirement (.+?) \(from versions: none\)`),
		"the requirement $1 does not exist: the package index has no such package",
		"check the spelling in the requirements file, or name its index with PIP_EXTRA_INDEX_URL",
	},
	{
		regexp.MustCompile(`Could not find a version that satisfies the requirement (.+?) \(from versions: (?:.*?, )?([^,)]+)\)`),
		"the requirement $1 has no version that fits: the newest that would do here is $2",
		"the version may not exist, or may need another Python",
	},
	{
		regexp.MustCompile(`No matching distribution found for (.+)`),
		"the requirement $1 does not exist on the package index, or not for this Python", "",
	},
	{
		regexp.MustCompile(`(?i)ResolutionImpossible|Cannot install (.+?) because these package versions have conflicting dependencies`),
		"the requirements contradict each other", "see above which of them do",
	},
	{
		regexp.MustCompile(`Invalid requirement: (.+)`),
		"the requirements file has a line that is no requirement: $1", "",
	},
	{
		regexp.MustCompile(`THESE PACKAGES DO NOT MATCH THE HASHES`),
		"a package is not what its hash in the requirements file says", "",
	},
	{
		regexp.MustCompile(`(?:Failed building wheel for|Could not build wheels for|legacy-install-failure|Failed to build) ?([A-Za-z0-9._-]*)`),
		"the requirement $1 has no wheel for this Python and could not be built from its source",
		"see its error above; it may need a library or a compiler that the build image lacks, or another version that has a wheel",
	},
	{
		regexp.MustCompile(`(?:Could not open requirements file|No such file or directory): '?([^'\n]+)'?`),
		"the file $1 is not there", "",
	},
}

// Explain makes one clear sentence of what pip said. err is the failure of the
// process, which stays wrapped.
func Explain(said string, err error) error {
	for _, c := range complaints {
		m := c.pattern.FindStringSubmatchIndex(said)
		if m == nil {
			continue
		}
		sentence := string(c.pattern.ExpandString(nil, c.sentence, said, m))
		out := fmt.Errorf("%s: %w", strings.Join(strings.Fields(sentence), " "), err)
		if c.hint != "" {
			out = kit.Hint(out, "%s", c.hint)
		}
		return out
	}
	return err
}
