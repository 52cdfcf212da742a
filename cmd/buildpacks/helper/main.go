// Command helper is what the shipped buildpacks leave in app images as exec.d:
// the launcher runs it at every start, with file descriptor 3 open for
// variables to set (Buildpack API, "exec.d"). Its name says what it does:
//
//	ca-certificates  makes the app trust the CA certificates of service bindings
//	port             hands PORT on to servers that have a variable of their own
//
// It is small, and imports little, because every app image carries it.
package main

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/kilnbuild/kiln/buildpacks/kit/binding"
)

func main() {
	name := filepath.Base(os.Args[0])
	vars, note, err := run(name, os.LookupEnv)
	if note != "" {
		os.Stderr.WriteString(note + "\n")
	}
	if err == nil {
		_, err = os.NewFile(3, "exec.d output").WriteString(document(vars))
	}
	if err != nil {
		os.Stderr.WriteString(name + ": " + err.Error() + "\n")
		os.Exit(1)
	}
}

// variable is one that is to be set.
type variable struct{ name, value string }

func run(name string, lookup func(string) (string, bool)) (vars []variable, note string, err error) {
	switch name {
	case "ca-certificates":
		return certificates(lookup)
	case "port":
		return port(lookup), "", nil
	default:
		return nil, "", errors.New("unknown name: it is ca-certificates or port")
	}
}

// port gives PORT to the variables that servers read. What is set already stays.
func port(lookup func(string) (string, bool)) (vars []variable) {
	value, _ := lookup("PORT")
	if value == "" {
		return nil
	}
	for _, name := range []string{"FLASK_RUN_PORT", "UVICORN_PORT"} {
		if have, _ := lookup(name); have == "" {
			vars = append(vars, variable{name, value})
		}
	}
	return vars
}

// bundles is where systems keep their CA certificates.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// certificates writes a bundle of the system's certificates and those of the
// bindings, and points at it. Without bindings it does nothing.
func certificates(lookup func(string) (string, bool)) (vars []variable, note string, err error) {
	root, _ := lookup("SERVICE_BINDING_ROOT")
	bindings, err := binding.Read(root, "ca-certificates")
	if err != nil {
		return nil, "", err
	}
	more, n, err := read(bindings)
	if err != nil || n == 0 {
		return nil, "", err
	}
	base := bundles
	if own, _ := lookup("SSL_CERT_FILE"); own != "" {
		base = []string{own}
	}
	text, err := first(base)
	if err != nil {
		return nil, "", err
	}
	dir, err := os.MkdirTemp("", "ca-certificates-")
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "ca-certificates.crt")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, slices.Concat(text, more), 0o644)); err != nil {
		return nil, "", err
	}
	vars = append(vars, variable{"SSL_CERT_FILE", path})
	// These are of programs that do not look at SSL_CERT_FILE.
	for _, name := range []string{"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} {
		if have, _ := lookup(name); have == "" {
			vars = append(vars, variable{name, path})
		}
	}
	return vars, "Added " + strconv.Itoa(n) + " CA certificates from service bindings", nil
}

// read collects the certificates of the bindings, re-encoded.
func read(bindings []binding.Binding) (text []byte, n int, err error) {
	for _, b := range bindings {
		for _, secret := range b.SecretNames() {
			rest, err := os.ReadFile(b.Secrets[secret])
			if err != nil {
				return nil, 0, err
			}
			before := n
			for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
				if block.Type == "CERTIFICATE" {
					text = append(text, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
					n++
				}
			}
			if n == before {
				return nil, 0, errors.New(b.Secrets[secret] + ": holds no PEM certificate")
			}
		}
	}
	return text, n, nil
}

// first reads the first of the files that is there, with a line end. None is
// nothing.
func first(files []string) ([]byte, error) {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return append(text, '\n'), nil
	}
	return nil, nil
}

// document writes the variables as TOML.
func document(vars []variable) string {
	s := ""
	for _, v := range vars {
		s += v.name + " = " + quote(v.value) + "\n"
	}
	return s
}

// quote is s as a TOML basic string.
func quote(s string) string {
	const hex = "0123456789abcdef"
	out := []byte{'"'}
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < 0x20 || c == 0x7f:
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			out = append(out, c)
		}
	}
	return string(append(out, '"'))
}
