package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite docs and golden files")

// golden compares text with a file, which -update writes.
func golden(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: go test ./cmd/kiln -update makes it", err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s is stale; if the change is meant, run go test ./cmd/kiln -update\n%s", file, diff)
	}
}

// docs/cli.md is what the program says of itself.
func TestDocs(t *testing.T) {
	golden(t, "../../docs/cli.md", manual((&kiln{}).command()))
}

// What a reader of the manual would trip over is a defect of the command.
func TestCommandsExplainThemselves(t *testing.T) {
	leaves := 0
	eachCommand((&kiln{}).command(), func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: the short text %q should be there, without a full stop", c.CommandPath(), c.Short)
		}
		if leaf(c) {
			leaves++
		}
		if leaf(c) && strings.Contains(c.Use, " ") && c.Example == "" {
			t.Errorf("%s takes arguments and has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.LocalFlags().FlagUsages()) {
			// The flag library's word for a value that the text does not name.
			if strings.Contains(line, " stringArray ") || strings.Contains(line, " string ") {
				t.Errorf("%s: a flag's value has no name: %s", c.CommandPath(), line)
			}
			if strings.HasSuffix(strings.TrimSpace(line), ".") {
				t.Errorf("%s: a flag's text ends with a full stop: %s", c.CommandPath(), line)
			}
		}
	})
	if leaves < 10 {
		t.Errorf("the walk found only %d commands", leaves)
	}
}

// leaf says whether c does something itself.
func leaf(c *cobra.Command) bool { return c.HasParent() && c.Runnable() && !c.HasSubCommands() }

// manual is all commands and exit codes in Markdown.
func manual(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# kiln's commands\n\n<!-- Made by go test ./cmd/kiln -update from the program itself. -->\n\n")
	fmt.Fprintf(&b, "%s.\n\n", root.Short)
	var leaves []*cobra.Command
	eachCommand(root, func(c *cobra.Command) {
		if leaf(c) {
			leaves = append(leaves, c)
		}
	})
	for _, c := range leaves {
		fmt.Fprintf(&b, "- [`%s`](#%s): %s\n", c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
	}
	fmt.Fprintf(&b, "\nEvery command takes these too:\n\n```\n%s  -h, --help              say what the command does\n```\n", root.PersistentFlags().FlagUsages())
	for _, c := range leaves {
		writeCommand(&b, c)
	}
	b.WriteString("\n## Exit codes\n\n| code | meaning |\n|---:|---|\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "| %d | %s |\n", e.code, e.what)
	}
	b.WriteString("\n`kiln run` exits with the code of the command that it ran, and with 128 plus the signal's number when a\nsignal ended it.\n")
	b.WriteString(manualTail)
	return b.String()
}

func writeCommand(b *strings.Builder, c *cobra.Command) {
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(b, "\n## %s\n\n    %s\n\n%s\n", c.CommandPath(), c.UseLine(), long)
	if c.Example != "" {
		b.WriteString("\n```\n")
		for line := range strings.Lines(c.Example) {
			b.WriteString(strings.TrimPrefix(line, "  "))
		}
		b.WriteString("\n```\n")
	}
	if flags := c.LocalFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(b, "\n```\n%s```\n", flags)
	}
}

const manualTail = `
## JSON

` + "`--json` of `kiln build` and `kiln base create`" + ` prints events, one a line, errors too: [events](events.md). ` + "`--json`" + ` of
other commands prints one document. Errors and their hints are always on standard error, for people.

## Shell completion

    source <(kiln completion bash)

also for zsh, fish and powershell; ` + "`kiln completion bash --help`" + ` says how to keep it. It completes commands, flags,
values of flags, and the names of the images in the store.
`
