package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/kilnbuild/kiln/internal/spec"
)

// environment merges the variables of files and those given one by one, which
// win; of a name that is given twice the last counts. A NAME without a value is
// taken from kiln's own environment, and is left out when it is not there.
func (k *kiln) environment(given, files []string) (map[string]string, error) {
	env := map[string]string{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, spec.Exit(exitInvalid, spec.WithHint(fmt.Errorf("--env-file: %w", err), "name a file with one NAME=VALUE a line"))
		}
		number := 0
		for line := range strings.Lines(string(content)) {
			number++
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if err := k.setVariable(env, line); err != nil {
				return nil, fmt.Errorf("--env-file %s:%d: %w", file, number, err)
			}
		}
	}
	for _, kv := range given {
		if err := k.setVariable(env, kv); err != nil {
			return nil, fmt.Errorf("--env: %w", err)
		}
	}
	return env, nil
}

func (k *kiln) setVariable(env map[string]string, kv string) error {
	name, value, given := strings.Cut(kv, "=")
	if name == "" || strings.ContainsAny(kv, "\x00") {
		return spec.Exit(exitInvalid, spec.WithHint(fmt.Errorf("%q is not a variable", kv), "write it as NAME=VALUE"))
	}
	if !given {
		if value, given = k.lookup(name); !given {
			return nil
		}
	}
	env[name] = value
	return nil
}

// parseAll parses every value of a flag that may be repeated.
func parseAll[T any](values []string, parse func(string) (T, error)) ([]T, error) {
	var all []T
	for _, s := range values {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}
