// Package cacertificates is the buildpack kiln/ca-certificates. It makes trusted
// what comes as service bindings of the type ca-certificates: at launch by a
// program that collects them at every start, at build by a bundle for the
// buildpacks after it.
//
//	BP_EMBED_CERTS                   put the certificates of the build into the app image too
//	BP_RUNTIME_CERT_BINDING_DISABLED leave the program out of the app image
package cacertificates

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/buildpacks/kit"
)

// Names of what is provided.
const (
	certificates = "ca-certificates"
	runtime      = "ca-certificates-helper"
)

// New is the buildpack; helper gives the program that is left in the app image.
func New(helper func() ([]byte, error)) kit.Buildpack {
	return kit.Buildpack{Detect: detect, Build: func(ctx context.Context, b *kit.Build) error { return build(b, helper) }}
}

func detect(_ context.Context, d *kit.Detection) ([]kit.Plan, error) {
	bindings, err := d.Bindings(certificates)
	if err != nil {
		return nil, err
	}
	disabled, err := d.Bool("BP_RUNTIME_CERT_BINDING_DISABLED")
	if err != nil {
		return nil, err
	}
	var p kit.Plan
	if len(bindings) > 0 {
		var paths []any
		for _, b := range bindings {
			for _, name := range b.SecretNames() {
				paths = append(paths, b.Secrets[name])
			}
		}
		p.Provides = append(p.Provides, certificates)
		p.Requires = append(p.Requires, kit.Require{Name: certificates, Build: true, Metadata: map[string]any{"paths": paths}})
	}
	if !disabled {
		p.Provides = append(p.Provides, runtime)
		p.Requires = append(p.Requires, kit.Require{Name: runtime, Launch: true})
	}
	if len(p.Provides) == 0 {
		return nil, kit.Fail("no service binding of the type ca-certificates, and BP_RUNTIME_CERT_BINDING_DISABLED is set")
	}
	return kit.Plans(p), nil
}

func build(b *kit.Build, helper func() ([]byte, error)) error {
	if w := b.Wanted(certificates); len(w.Entries) > 0 {
		var paths []string
		for _, e := range w.Entries {
			list, _ := e.Metadata["paths"].([]any)
			for _, p := range list {
				if s, ok := p.(string); ok {
					paths = append(paths, s)
				}
			}
		}
		if err := buildBundle(b, paths); err != nil {
			return err
		}
	}
	if len(b.Wanted(runtime).Entries) == 0 {
		return nil
	}
	program, err := helper()
	if err != nil {
		return err
	}
	layer, err := b.Layer("helper")
	if err != nil {
		return err
	}
	layer.Launch = true
	if layer.Reuse(b.Key(fmt.Sprintf("%x", sha256.Sum256(program)))) {
		b.Log.Info("Reusing the program that adds CA certificates at launch")
		return nil
	}
	b.Log.Info("Adding a program that adds CA certificates from service bindings at launch")
	if err := layer.Reset(); err != nil {
		return err
	}
	return layer.ExecD("ca-certificates", bytes.NewReader(program))
}

// system is where the build image has its bundle.
const system = "/etc/ssl/certs/ca-certificates.crt"

// buildBundle makes the layer with the system's certificates and those of paths.
func buildBundle(b *kit.Build, paths []string) error {
	embed, err := b.Bool("BP_EMBED_CERTS")
	if err != nil {
		return err
	}
	base := b.Getenv("SSL_CERT_FILE")
	if base == "" {
		base = system
	}
	bundle, err := os.ReadFile(base)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the CA certificates of the build image: %w", err)
	}
	if len(bundle) > 0 && bundle[len(bundle)-1] != '\n' {
		bundle = append(bundle, '\n')
	}
	n := 0
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read a service binding: %w", err)
		}
		before := n
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" {
				bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
				n++
			}
		}
		if n == before {
			return fmt.Errorf("service binding %s holds no PEM certificate", path)
		}
	}
	layer, err := b.Layer("ca-certificates")
	if err != nil {
		return err
	}
	layer.Build, layer.Cache, layer.Launch = true, true, embed
	if layer.Reuse(b.Key(fmt.Sprintf("%x", sha256.Sum256(bundle)), embed)) {
		b.Log.Info("Reusing %d CA certificates from service bindings", n)
		return nil
	}
	b.Log.Info("Adding %d CA certificates from service bindings", n)
	if err := layer.Reset(); err != nil {
		return err
	}
	path := filepath.Join(layer.Path, "ca-certificates.crt")
	layer.Env.Override("SSL_CERT_FILE", path)
	return os.WriteFile(path, bundle, 0o644)
}
