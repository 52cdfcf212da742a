package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kilnbuild/kiln/internal/spec"
)

// keychain looks for credentials in CNB_REGISTRY_AUTH, then where docker and
// podman keep theirs, credential helpers included. What has none is anonymous.
type keychain struct {
	given map[string]authn.AuthConfig // by registry host as name.Registry spells it

	mu   sync.Mutex
	kept map[string]found // by repository or host; nil until keep
}

// found is what looking for credentials came to.
type found struct {
	auth authn.Authenticator
	err  error
}

// newKeychain reads the value of CNB_REGISTRY_AUTH. Its errors never show it.
func newKeychain(registryAuth string) (*keychain, error) {
	k := &keychain{given: map[string]authn.AuthConfig{}}
	if strings.TrimSpace(registryAuth) == "" {
		return k, nil
	}
	var headers map[string]string
	if err := json.Unmarshal([]byte(registryAuth), &headers); err != nil {
		return k, spec.WithHint(errors.New("read CNB_REGISTRY_AUTH: not a JSON object of strings"),
			`it should be like {"registry.example.com": "Basic <base64 of user:password>"}`)
	}
	for host, header := range headers {
		cfg, err := parseHeader(header)
		if err != nil {
			return k, fmt.Errorf("read CNB_REGISTRY_AUTH: entry for %q: %w", host, err)
		}
		k.given[canonicalHost(host)] = cfg
	}
	return k, nil
}

// parseHeader takes the value of an Authorization header apart.
func parseHeader(header string) (authn.AuthConfig, error) {
	scheme, value, _ := strings.Cut(strings.TrimSpace(header), " ")
	value = strings.TrimSpace(value)
	if value == "" {
		return authn.AuthConfig{}, errors.New("want a scheme and a value, such as \"Basic x\"")
	}
	switch strings.ToLower(scheme) {
	case "basic":
		// Decoded by authn, which accepts both kinds of padding.
		b, err := json.Marshal(map[string]string{"auth": value})
		if err != nil {
			return authn.AuthConfig{}, err
		}
		var cfg authn.AuthConfig
		if err := json.Unmarshal(b, &cfg); err != nil {
			return authn.AuthConfig{}, errors.New("what follows Basic is not base64 of user:password")
		}
		return cfg, nil
	case "bearer":
		return authn.AuthConfig{RegistryToken: value}, nil
	case "x-identity":
		return authn.AuthConfig{IdentityToken: value}, nil
	}
	return authn.AuthConfig{}, errors.New("the scheme is not one of Basic, Bearer, X-Identity")
}

// canonicalHost takes the spellings that docker uses for a registry: a host,
// a URL, and three names for Docker Hub.
func canonicalHost(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s, _, _ = strings.Cut(s, "/")
	if slices.Contains([]string{"docker.io", "registry-1.docker.io"}, s) {
		return name.DefaultRegistry
	}
	return s
}

// Resolve implements authn.Keychain.
func (k *keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), target)
}

// ResolveContext implements authn.ContextKeychain.
func (k *keychain) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	if cfg, ok := k.given[canonicalHost(target.RegistryStr())]; ok {
		return authn.FromConfig(cfg), nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept == nil {
		return authn.Resolve(ctx, authn.DefaultKeychain, target)
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if f, ok := k.kept[key]; ok {
			return f.auth, f.err
		}
	}
	return authn.Anonymous, nil
}

// keep looks for the credentials of targets, and from now on nowhere else.
func (k *keychain) keep(ctx context.Context, targets []authn.Resource) {
	kept := map[string]found{}
	for _, t := range targets {
		auth, err := authn.Resolve(ctx, authn.DefaultKeychain, t)
		kept[t.String()] = found{auth, err}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = kept
}
