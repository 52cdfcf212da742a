package dockerfile

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// File is a parsed Dockerfile: data that Build carries out, as often as one
// likes.
type File struct {
	// Name stands for the file in errors.
	Name   string
	Stages []Stage
	// Warnings are sentences, each with the file's name and line.
	Warnings []string

	globals []Instruction // the ARGs before the first FROM
	escape  rune
}

// Stage is a FROM and what follows it.
type Stage struct {
	Name         string // in lower case; "" where it has none
	From         string // an image or an earlier stage, as written
	Platform     string // of --platform, as written
	Line         int
	Instructions []Instruction
}

// Instruction is one instruction of a stage.
type Instruction struct {
	Line int // counts from 1
	node *parser.Node
}

// Command is the instruction as buildkit understands it: a value of its own at
// each call, for to expand its variables changes it.
func (i Instruction) Command() (instructions.Command, error) {
	return instructions.ParseCommand(i.node)
}

// Text is the instruction as written, its lines joined.
func (i Instruction) Text() string { return strings.TrimSpace(i.node.Original) }

// Parse reads a Dockerfile. An error names the file and the line. The syntax
// directive is of no account: the language is the one of docker/dockerfile:1
// as far as Build knows it. The check directive says which warnings there are,
// and whether they are errors.
func Parse(b []byte, name string) (File, error) {
	c := checker{name: name}
	if len(b) > MaxSize {
		return File{}, fmt.Errorf("%s: more than %d bytes", name, MaxSize)
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return File{}, c.fault(1+bytes.Count(b[:i], []byte("\n")), "a NUL byte: it is no text")
	}
	parsed, err := parser.Parse(bytes.NewReader(b))
	if err != nil {
		return File{}, c.syntax(err)
	}
	f := File{Name: name, escape: parsed.EscapeToken}
	config, err := c.checks(b)
	if err != nil {
		return File{}, err
	}
	config.Warn = func(_, _, _, text string, location []parser.Range) {
		f.Warnings = append(f.Warnings, fmt.Sprintf("%s:%d: %s", name, lineOf(location), text))
	}
	warn := linter.New(config)
	for _, w := range parsed.Warnings {
		f.Warnings = append(f.Warnings, fmt.Sprintf("%s:%d: %s", name, w.Location.Start.Line, w.Short))
	}
	for _, node := range parsed.AST.Children {
		if err := f.add(node, warn); err != nil {
			return File{}, c.syntax(parser.WithLocation(err, node.Location()))
		}
	}
	if len(f.Stages) == 0 {
		return File{}, fmt.Errorf("%s: no FROM instruction", name)
	}
	if warn.Error() != nil {
		return File{}, fmt.Errorf("%s (# check=error=true makes it an error)", strings.Join(f.Warnings, "; "))
	}
	return f, nil
}

// checks is what the check directive says.
func (c *checker) checks(b []byte) (*linter.Config, error) {
	value, _, location, _ := parser.ParseDirective("check", b)
	config, err := linter.ParseLintOptions(value)
	if err != nil {
		return nil, c.fault(lineOf(location), "# check=%s: %v", value, err)
	}
	return config, nil
}

// add takes in one instruction.
func (f *File) add(node *parser.Node, warn *linter.Linter) error {
	parsed, err := instructions.ParseInstructionWithLinter(node, warn)
	if err != nil {
		return err
	}
	in := Instruction{Line: node.StartLine, node: node}
	switch c := parsed.(type) {
	case *instructions.Stage:
		f.Stages = append(f.Stages, Stage{Name: c.Name, From: c.BaseName, Platform: c.Platform, Line: node.StartLine})
	case *instructions.ArgCommand:
		if len(f.Stages) == 0 {
			f.globals = append(f.globals, in)
			return nil
		}
		f.last().Instructions = append(f.last().Instructions, in)
	default:
		if len(f.Stages) == 0 {
			return fmt.Errorf("%s before FROM: only ARG may be there", strings.ToUpper(node.Value))
		}
		f.last().Instructions = append(f.last().Instructions, in)
	}
	return nil
}

func (f *File) last() *Stage { return &f.Stages[len(f.Stages)-1] }

// stage finds a stage by name among the first n.
func (f *File) stage(name string, n int) (int, bool) {
	for i := n - 1; i >= 0; i-- {
		if f.Stages[i].Name != "" && strings.EqualFold(f.Stages[i].Name, name) {
			return i, true
		}
	}
	return 0, false
}

// at names a line of the file in an error.
func (f *File) at(line int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s:%d: %w", f.Name, line, err)
}
