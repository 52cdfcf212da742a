// Package dockerfile reads Dockerfiles and carries them out: by buildkit's parser,
// on a Machine, with a layer for each instruction that changes files and a Cache
// of them. It also holds those that image extensions write to their rules.
package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/kilnbuild/kiln/internal/spec"
)

// Kind is which image a Dockerfile of an extension extends.
type Kind string

// The kinds, as the extender's -kind spells them.
const (
	Build Kind = "build"
	Run   Kind = "run"
)

// BaseImage is the build argument that names the image to extend.
const BaseImage = "base_image"

// Checked is what a Dockerfile that keeps the rules asks for.
type Checked struct {
	// From is the image that it puts in the place of the run image; "" where it
	// stands on ${base_image}.
	From string
	// Extends tells whether there are instructions after FROM.
	Extends bool
	// Warnings are sentences, each with the file's name and line.
	Warnings []string
}

// MaxSize bounds a Dockerfile, in bytes: those in use have some KB.
const MaxSize = 1 << 20

// maxWord bounds what stands after FROM and what an ARG before it says, in
// bytes: a reference has at most some hundred.
const maxWord = 4096

// Check holds a Dockerfile of an image extension to the rules (Image Extension
// Interface, "Dockerfile Requirements"): one stage; for the build image exactly
// ARG base_image before FROM ${base_image}; for the run image any image, which
// then takes the run image's place. Instructions that extensions should not use
// are only warned of. args are the build arguments that extend-config.toml
// gives; name stands for the file in errors and warnings.
func Check(b []byte, name string, kind Kind, args map[string]string) (Checked, error) {
	c := checker{name: name, args: args}
	if len(b) > MaxSize {
		return Checked{}, fmt.Errorf("%s: more than %d bytes", name, MaxSize)
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return Checked{}, c.fault(1+bytes.Count(b[:i], []byte("\n")), "a NUL byte: it is no text")
	}
	stage, err := c.parse(b)
	if err != nil {
		return Checked{}, err
	}
	if kind == Build {
		if err := c.onlyBaseImage(); err != nil {
			return Checked{}, err
		}
	}
	from, err := c.from(stage)
	if err != nil {
		return Checked{}, err
	}
	if kind == Build && from != "" {
		return Checked{}, c.fault(lineOf(stage.Location), "FROM %s: must be FROM ${%s}", from, BaseImage)
	}
	return Checked{From: from, Extends: len(stage.Commands) > 0, Warnings: c.warnings(stage)}, nil
}

type checker struct {
	name    string
	args    map[string]string
	escape  rune
	globals []instructions.ArgCommand // before FROM
}

// parse reads the file and finds its one stage.
func (c *checker) parse(b []byte) (instructions.Stage, error) {
	file, err := parser.Parse(bytes.NewReader(b))
	if err != nil {
		return instructions.Stage{}, c.syntax(err)
	}
	c.escape = file.EscapeToken
	stages, globals, err := instructions.Parse(file.AST, nil)
	switch {
	case err != nil:
		return instructions.Stage{}, c.syntax(err)
	case len(stages) == 0:
		return instructions.Stage{}, fmt.Errorf("%s: no FROM instruction", c.name)
	case len(stages) > 1:
		return instructions.Stage{}, c.fault(lineOf(stages[1].Location), "a second FROM instruction: only one is allowed")
	}
	c.globals = globals
	return stages[0], nil
}

// onlyBaseImage makes sure that nothing but ARG base_image is before FROM.
func (c *checker) onlyBaseImage() error {
	if len(c.globals) == 0 {
		return fmt.Errorf("%s: must begin with ARG %s", c.name, BaseImage)
	}
	for i, global := range c.globals {
		if i > 0 || len(global.Args) != 1 || global.Args[0].Key != BaseImage {
			return c.fault(lineOf(global.Location()), "%s: only ARG %s may be before FROM", global.String(), BaseImage)
		}
	}
	return nil
}

// standIn is what base_image expands to here. No file has it: a NUL byte is
// refused.
const standIn = "\x00"

// from is the image that a stage stands on, "" for ${base_image}.
func (c *checker) from(stage instructions.Stage) (string, error) {
	line := lineOf(stage.Location)
	lex := shell.NewLex(c.escape)
	env := variables{BaseImage: standIn}
	for _, global := range c.globals {
		if err := c.define(lex, env, global); err != nil {
			return "", err
		}
	}
	if len(stage.BaseName) > maxWord {
		return "", c.fault(line, "FROM: more than %d bytes", maxWord)
	}
	word, err := lex.ProcessWordWithMatches(stage.BaseName, env)
	if err != nil {
		return "", c.fault(line, "FROM %s: %v", stage.BaseName, err)
	}
	switch {
	case word.Result == standIn:
		return "", nil
	case len(word.Result) > maxWord:
		return "", c.fault(line, "FROM: more than %d bytes", maxWord)
	case len(word.Unmatched) > 0:
		return "", c.fault(line, "FROM %s: %s has no value", stage.BaseName, strings.Join(slices.Sorted(maps.Keys(word.Unmatched)), ", "))
	case strings.Contains(word.Result, standIn):
		return "", c.fault(line, "FROM %s: ${%s} must stand alone", stage.BaseName, BaseImage)
	case word.Result == "scratch":
		return "", c.fault(line, "FROM scratch: an app needs an image to run on")
	}
	// The library takes "oci:/dir" for an image in the registry "oci:".
	if ref, err := name.ParseReference(word.Result); err != nil || strings.HasSuffix(ref.Context().RegistryStr(), ":") {
		return "", c.fault(line, "FROM %s: not the reference of an image", word.Result)
	}
	return word.Result, nil
}

// define gives the variables of an ARG before FROM their values: those that
// the build arguments say, else their defaults.
func (c *checker) define(lex *shell.Lex, env variables, global instructions.ArgCommand) error {
	for _, arg := range global.Args {
		given, ok := c.args[arg.Key]
		switch {
		case arg.Key == BaseImage:
		case ok:
			env[arg.Key] = given
		case arg.Value != nil:
			line := lineOf(global.Location())
			if len(*arg.Value) > maxWord {
				return c.fault(line, "ARG %s: more than %d bytes", arg.Key, maxWord)
			}
			value, _, err := lex.ProcessWord(*arg.Value, env)
			if err != nil {
				return c.fault(line, "ARG %s: %v", arg.Key, err)
			}
			env[arg.Key] = value
		}
		if len(env[arg.Key]) > maxWord {
			return c.fault(lineOf(global.Location()), "ARG %s: more than %d bytes", arg.Key, maxWord)
		}
	}
	return nil
}

// variables implements shell.EnvGetter.
type variables map[string]string

func (v variables) Get(name string) (string, bool) {
	value, ok := v[name]
	return value, ok
}

func (v variables) Keys() []string { return slices.Sorted(maps.Keys(v)) }

// recommended are the instructions that extensions should keep to.
var recommended = []string{"add", "arg", "copy", "env", "label", "run", "shell", "user", "workdir"}

// maxWarnings bounds how many are told: who has so many to mend starts anyway.
const maxWarnings = 20

func (c *checker) warnings(stage instructions.Stage) (list []string) {
	if stage.Platform != "" {
		list = append(list, fmt.Sprintf("%s:%d: FROM --platform is ignored", c.name, lineOf(stage.Location)))
	}
	for _, command := range stage.Commands {
		if instruction := command.Name(); !slices.Contains(recommended, strings.ToLower(instruction)) {
			if len(list) == maxWarnings {
				return append(list, c.name+": ... and more instructions that an extension should not use")
			}
			list = append(list, fmt.Sprintf("%s:%d: an extension should not use %s", c.name, lineOf(command.Location()), strings.ToUpper(instruction)))
		}
	}
	return list
}

// fault is an error at a line, which counts from 1; 0 is not known.
func (c *checker) fault(line int, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if line > 0 {
		return fmt.Errorf("%s:%d: %s", c.name, line, what)
	}
	return fmt.Errorf("%s: %s", c.name, what)
}

// syntax puts a parser's error into the form of fault.
func (c *checker) syntax(err error) error {
	line := 0
	if located, ok := errors.AsType[*parser.LocationError](err); ok && len(located.Locations) > 0 {
		line = lineOf(located.Locations[0])
	}
	text := strings.TrimPrefix(err.Error(), fmt.Sprintf("dockerfile parse error on line %d: ", line))
	wrapped := c.fault(line, "%s", text)
	if unknown, ok := errors.AsType[*instructions.UnknownInstructionError](err); ok {
		return spec.WithHint(wrapped, "%s is no instruction of a Dockerfile; a line that goes on needs a backslash at its end", unknown.Instruction)
	}
	return wrapped
}

func lineOf(location []parser.Range) int {
	if len(location) == 0 {
		return 0
	}
	return location[0].Start.Line
}
