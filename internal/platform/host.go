package platform

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
// Copies, so that a link in the host's /etc leads nowhere inside.
func (f HostFacts) mounts(dir string, sources []debian.Source) ([]sandbox.Mount, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var mounts []sandbox.Mount
	add := func(name, target string, content []byte) error {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return fmt.Errorf("lay out %s for the build: %w", target, err)
		}
		mounts = append(mounts, sandbox.Mount{Source: file, Target: target, ReadOnly: true})
		return nil
	}
	for _, x := range []struct{ from, name, target string }{
		{f.ResolvConf, "resolv.conf", "/etc/resolv.conf"},
		{f.Hosts, "hosts", "/etc/hosts"},
		{f.CABundle, "ca-certificates.crt", caInside},
	} {
		if x.from == "" {
			continue
		}
		content, err := os.ReadFile(x.from)
		if err != nil {
			continue
		}
		if err := add(x.name, x.target, content); err != nil {
			return nil, err
		}
	}
	if len(sources) > 0 {
		if err := add("kiln.sources", "/etc/apt/sources.list.d/kiln.sources", aptSources(sources)); err != nil {
			return nil, err
		}
		if conf := aptProxies(sources); conf != "" {
			if err := add("apt.conf", "/etc/apt/apt.conf.d/99kiln", []byte(conf)); err != nil {
				return nil, err
			}
		}
	}
	return mounts, nil
}

// aptSources writes sources in apt's deb822 form.
func aptSources(sources []debian.Source) []byte {
	var b strings.Builder
	for _, s := range sources {
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\n\n", s.URI, s.Suite, strings.Join(s.Components, " "))
	}
	return []byte(b.String())
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
