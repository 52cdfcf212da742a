package platform

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/debian"
	"github.com/kilnbuild/kiln/internal/sandbox"
)

// HostFacts is what of this host the build steps may see, so that a package
// manager works in the sandbox as it does outside: name resolution, proxies,
// the CA bundle with the private ones in it, the Debian mirror. All of it is
// mounted or passed for the step only; none of it is in a layer.
type HostFacts struct {
	// ResolvConf, Hosts and CABundle are files of the host; a missing one is
	// left out.
	ResolvConf, Hosts, CABundle string
	// Proxy holds the proxy variables, both spellings.
	Proxy map[string]string
}

// proxyNames are the variables that the lifecycle lets through to buildpacks.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}

// FactsOf gathers the facts of this host from its environment.
func FactsOf(environ []string) HostFacts {
	f := HostFacts{ResolvConf: "/etc/resolv.conf", Hosts: "/etc/hosts", Proxy: map[string]string{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if slices.Contains(proxyNames, k) && v != "" {
			f.Proxy[k] = v
		}
		if k == "SSL_CERT_FILE" && isFile(v) {
			f.CABundle = v
		}
	}
	for _, bundle := range caBundles {
		if f.CABundle == "" && isFile(bundle) {
			f.CABundle = bundle
		}
	}
	return f
}

// caBundles are the places where distributions keep their trusted roots.
var caBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS
	"/etc/ssl/cert.pem",
}

// caInside is where the bundle is mounted: what Debian-like images read.
const caInside = "/etc/ssl/certs/ca-certificates.crt"

// caVariables make programs with a trust store of their own use the bundle.
var caVariables = []string{"SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"}

// mounts lays copies of the facts out in dir and returns how a step sees them.
func (f HostFacts) mounts(dir string, sources []debian.Source) ([]sandbox.Mount, error) {
	l := laidOut{dir: dir}
	l.network(f)
	l.copy("ca-certificates.crt", f.CABundle, caInside)
	l.file("kiln.sources", aptSourcesInside, aptSources(sources, ""))
	l.file("apt.conf", aptConfInside, aptProxies(sources))
	return l.mounts, l.err
}

// laidOut are files of the host as steps see them. They are copies, so that a
// link in the host's /etc leads nowhere inside.
type laidOut struct {
	dir    string
	mounts []sandbox.Mount
	err    error
}

// file lays out a file, unless it is empty.
func (l *laidOut) file(name, target, content string) {
	if l.err != nil || content == "" {
		return
	}
	if l.err = os.MkdirAll(l.dir, 0o755); l.err != nil {
		return
	}
	file := filepath.Join(l.dir, name)
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		l.err = fmt.Errorf("lay out %s for the build: %w", target, err)
	}
	l.mounts = append(l.mounts, sandbox.Mount{Source: file, Target: target, ReadOnly: true})
}

// copy lays out a file of the host, if it is there.
func (l *laidOut) copy(name, from, target string) bool {
	content, err := os.ReadFile(from)
	if err == nil {
		l.file(name, target, string(content))
	}
	return err == nil
}

func (l *laidOut) network(f HostFacts) {
	l.copy("resolv.conf", f.ResolvConf, "/etc/resolv.conf")
	l.copy("hosts", f.Hosts, "/etc/hosts")
}

// Where apt finds what kiln tells it.
const (
	aptSourcesInside = "/etc/apt/sources.list.d/kiln.sources"
	aptConfInside    = "/etc/apt/apt.conf.d/99kiln"
)

// codename is what may be put into apt's configuration: an image says it of
// itself.
var codename = regexp.MustCompile(`^[a-z]{1,32}$`)

// sourcesOf are the sources of one release of Debian where the given ones are
// those of this host: an archive holds all releases. There are none of a release
// without a name.
func sourcesOf(sources []debian.Source, release string) (list []debian.Source) {
	if !codename.MatchString(release) {
		return nil
	}
	for _, s := range sources {
		_, pocket, part := strings.Cut(s.Suite, "-")
		if s.Suite = release; part {
			s.Suite += "-" + pocket
		}
		if !slices.ContainsFunc(list, func(o debian.Source) bool { return o.URI == s.URI && o.Suite == s.Suite }) {
			list = append(list, s)
		}
	}
	return list
}

// aptSources writes sources in apt's deb822 form; without a keyring, apt has to
// have been told of one.
func aptSources(sources []debian.Source, keyring string) string {
	var b strings.Builder
	for _, s := range sources {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\n", s.URI, s.Suite, strings.Join(s.Components, " "))
		if keyring != "" {
			fmt.Fprintf(&b, "Signed-By: %s\n", keyring)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// aptProxies is the part of apt's configuration that names proxies.
func aptProxies(sources []debian.Source) string {
	conf := map[string]string{}
	for _, s := range sources {
		if scheme, _, ok := strings.Cut(s.URI, "://"); ok && s.Proxy != "" {
			conf[scheme] = s.Proxy
		}
	}
	var b strings.Builder
	for _, scheme := range slices.Sorted(maps.Keys(conf)) {
		fmt.Fprintf(&b, "Acquire::%s::Proxy %q;\n", scheme, conf[scheme])
	}
	return b.String()
}

// userEnv is what buildpacks see as user env beyond what the user gave.
func (f HostFacts) userEnv() map[string]string {
	env := map[string]string{}
	if f.CABundle != "" {
		for _, name := range caVariables {
			env[name] = caInside
		}
	}
	return env
}

func (f HostFacts) proxyEnv() []string {
	var env []string
	for _, name := range proxyNames {
		if v := f.Proxy[name]; v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}
