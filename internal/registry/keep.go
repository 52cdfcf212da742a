package registry

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sys/unix"
)

// maxConfigFile bounds docker's and podman's configuration, in bytes.
const maxConfigFile = 4 << 20

// Keep takes along what this process may not be able to read later, when it is
// another user: it looks up the credentials for the repositories of refs, and
// those that the files of configs (docker's config.json, podman's auth.json)
// have in them, and reads certificates. From then on nothing is looked up any
// more and no credential helper is started. What fails is an error where it is
// used.
func (r *Registry) Keep(ctx context.Context, refs, configs []string) {
	var targets []authn.Resource
	add := func(t authn.Resource) {
		if !slices.ContainsFunc(targets, func(has authn.Resource) bool { return has.String() == t.String() }) {
			targets = append(targets, t)
		}
	}
	for _, ref := range refs {
		parsed, err := r.parse(ref)
		if err != nil {
			continue
		}
		repo := parsed.Context()
		add(repo)
		// A certificate that cannot be read is told when it is needed.
		_, _ = r.connections(repo.RegistryStr(), isInsecure(r.insecure, ref, repo) || r.listed(repo.RegistryStr()))
	}
	for _, host := range named(configs) {
		if repo, err := name.NewRepository(host); err == nil && repo.RegistryStr()+"/"+repo.RepositoryStr() == host {
			add(repo) // credentials can be for one repository
		} else if reg, err := name.NewRegistry(canonicalHost(host)); err == nil {
			add(reg)
		}
	}
	r.keychain.keep(ctx, targets)
	_, _ = x509.SystemCertPool() // the standard library reads it once
}

// named are the registries that have their credentials in one of the files.
// Those that a helper has are asked for by name only: asking takes a process.
func named(configs []string) []string {
	var hosts []string
	for _, file := range configs {
		var doc struct {
			Auths       map[string]json.RawMessage `json:"auths"`
			CredHelpers map[string]string          `json:"credHelpers"`
			CredsStore  string                     `json:"credsStore"`
		}
		if b, err := readConfig(file); err != nil || json.Unmarshal(b, &doc) != nil || doc.CredsStore != "" {
			continue
		}
		for host := range doc.Auths {
			if doc.CredHelpers[host] == "" {
				hosts = append(hosts, host)
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func readConfig(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxConfigFile))
}
