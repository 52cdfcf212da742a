package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// maxValue bounds what a word may grow to when its variables are expanded, in
// bytes. The kernel takes no longer argument or variable; and a few lines that
// each double a variable make more bytes than there are.
const maxValue = 128 << 10

// scope is what variables mean at one place of a Dockerfile: the image's
// environment, then the build arguments declared so far.
type scope struct {
	env  []string // NAME=value
	args []argument
}

// argument is a declared build argument. Without a value it is declared only.
type argument struct {
	name  string
	value *string
}

// Get implements shell.EnvGetter.
func (s scope) Get(name string) (string, bool) {
	if v, ok := lookup(s.env, name); ok {
		return v, true
	}
	for _, a := range slices.Backward(s.args) {
		if a.name == name && a.value != nil {
			return *a.value, true
		}
	}
	return "", false
}

// Keys implements shell.EnvGetter.
func (s scope) Keys() []string {
	var names []string
	for _, kv := range s.env {
		name, _, _ := strings.Cut(kv, "=")
		names = append(names, name)
	}
	for _, a := range s.args {
		if a.value != nil {
			names = append(names, a.name)
		}
	}
	return names
}

func lookup(env []string, name string) (string, bool) {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// setenv gives a variable a value: in its place, or at the end.
func setenv(env []string, name, value string) []string {
	for i, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); k == name {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}

// expander expands the variables of words.
func (f *File) expander(env shell.EnvGetter) func(string) (string, error) {
	return expandWith(shell.NewLex(f.escape), env)
}

func expandWith(lex *shell.Lex, env shell.EnvGetter) func(string) (string, error) {
	return func(word string) (string, error) {
		if len(word) > maxValue {
			return "", fmt.Errorf("a word of more than %d bytes", maxValue)
		}
		value, _, err := lex.ProcessWord(word, env)
		if err == nil && len(value) > maxValue {
			err = fmt.Errorf("variables grow to more than %d bytes", maxValue)
		}
		return value, err
	}
}

// expand expands the variables of a command, where it has any.
func (f *File) expand(c instructions.Command, s scope) error {
	if x, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := x.Expand(f.expander(s)); err != nil {
			return err
		}
	}
	if x, ok := c.(instructions.SupportsSingleWordExpansionRaw); ok {
		raw := shell.NewLex('\\') // in a heredoc, as in a shell
		raw.SkipProcessQuotes = true
		return x.ExpandRaw(expandWith(raw, s))
	}
	return nil
}

// platformArgs are the arguments that say what is built for and where.
func platformArgs(os, arch, variant, stage string) variables {
	platform := os + "/" + arch
	if variant != "" {
		platform += "/" + variant
	}
	v := variables{"TARGETSTAGE": stage}
	for _, side := range []string{"BUILD", "TARGET"} {
		v[side+"PLATFORM"], v[side+"OS"], v[side+"ARCH"], v[side+"VARIANT"] = platform, os, arch, variant
		v[side+"OSVERSION"] = ""
	}
	return v
}

// globalArgs evaluates the arguments before the first FROM. Platform arguments
// can be given as build arguments too.
func (f *File) globalArgs(given map[string]string, platform variables) (variables, error) {
	v := maps.Clone(platform)
	for name := range platform {
		if value, ok := given[name]; ok {
			v[name] = value
		}
	}
	for _, in := range f.globals {
		c, err := in.Command()
		if err != nil {
			return nil, f.at(in.Line, err)
		}
		for _, a := range c.(*instructions.ArgCommand).Args {
			value, ok, err := argValue(a, given, f.expander(v))
			if err != nil {
				return nil, f.at(in.Line, fmt.Errorf("ARG %s: %w", a.Key, err))
			}
			if ok {
				v[a.Key] = value
			}
		}
	}
	return v, nil
}

// argValue is what was given for an argument, else its default.
func argValue(a instructions.KeyValuePairOptional, given map[string]string, expand func(string) (string, error)) (value string, ok bool, err error) {
	if v, ok := given[a.Key]; ok {
		if len(v) > maxValue {
			return "", false, errors.New("its value is too long")
		}
		return v, true, nil
	}
	if a.Value == nil {
		return "", false, nil
	}
	value, err = expand(*a.Value)
	return value, err == nil, err
}

// declare evaluates an ARG of a stage: what was given goes before the default,
// and that before what the name means before the first FROM.
func (f *File) declare(c *instructions.ArgCommand, s scope, given map[string]string, global variables) ([]argument, error) {
	for _, a := range c.Args {
		key, err := f.expander(s)(a.Key)
		if err != nil {
			return nil, err
		}
		a.Key = key
		value, ok, err := argValue(a, given, f.expander(s))
		if err != nil {
			return nil, fmt.Errorf("ARG %s: %w", a.Key, err)
		}
		if !ok {
			value, ok = global[a.Key]
		}
		arg := argument{name: a.Key}
		if ok {
			arg.value = &value
		}
		s.args = append(s.args, arg)
	}
	return s.args, nil
}

// proxyNames are the arguments that RUN has without a declaration. They are of
// this host: no history and no cache key tells them.
var proxyNames = []string{
	"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy",
	"NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy",
}
