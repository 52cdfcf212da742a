package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/platform"
)

// planOptions are the flags of kiln plan as they were typed.
type planOptions struct {
	appOptions
	json, verbose, noColor bool
}

func (k *kiln) planCommand() *cobra.Command {
	var o planOptions
	c := &cobra.Command{
		Use:   "plan [PATH]",
		Short: "Say what a build would do, and why, without building",
		Long: `Say what a build would do, and why, without building.

Only detection runs, as kiln build runs it with the same flags: every group of
buildpacks that was tried, what each buildpack said, who provides and requires
what, which alternative won, and what would be built. When no group fits, the
one that came nearest is first, and what would make it fit; the exit code is
that of kiln build. Nothing changes: there is no image and no cache, and the
store only gets the builder and run image if it does not have them.

--json prints one document (docs/plan.md). kiln build --plan FILE builds with
the group and entries in it, as they are or edited, and detects nothing.`,
		Example: `  kiln plan
  kiln plan ./src --env BP_CPYTHON_VERSION=3.11
  kiln plan ./src --builder registry.example.com/team/builder --verbose
  kiln plan ./src --json > plan.json && kiln build my-app --path ./src --plan plan.json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && c.Flags().Changed("path") {
				return errors.New("PATH and --path are the same: give one of them")
			}
			return cobra.MaximumNArgs(1)(c, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(c *cobra.Command, args []string) error {
			req, err := o.request(k, o.verbose)
			if err != nil {
				return err
			}
			if len(args) > 0 {
				req.Path = args[0]
			}
			return k.plan(c, req, o)
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show all that the buildpacks said")
	c.Flags().BoolVar(&o.noColor, "no-color", false, "no colours, also on a terminal")
	return c
}

// plan keeps stdout for the plan: what else there is to say goes to stderr.
func (k *kiln) plan(c *cobra.Command, req platform.Request, o planOptions) error {
	style := k.style(k.stderr, event.Style{})
	style.Color = style.Color && !o.noColor
	p, err := k.platform(c.Context(), c, quietly(beside(event.NewText(k.stderr, style))))
	if err != nil {
		return err
	}
	d, err := p.Detect(c.Context(), req)
	if len(d.Groups) > 0 {
		if o.json {
			err = errors.Join(err, k.printJSON(d))
		} else {
			k.printf("%s", planText(d, o.verbose))
		}
	}
	return errors.Join(err, p.Store.Close())
}

// beside lets through what is not the detection itself.
func beside(sink event.Sink) event.Sink {
	return event.Func(func(e event.Event) {
		switch e.(type) {
		case event.PhaseStarted, event.GroupTried, event.Output:
		default:
			sink.Emit(e)
		}
	})
}

// planText is a detection for people.
func planText(d platform.Detection, verbose bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "builder    %s\nrun image  %s\n", event.Clean(d.Builder), event.Clean(d.RunImage))
	if !d.Passed {
		fmt.Fprintf(&b, "\nNo group of buildpacks fits the app.\n%s\n", event.Explain(d.Groups))
	}
	b.WriteString("\nGroups tried\n")
	said := map[string]event.Detected{}
	for _, s := range d.Buildpacks {
		said[memberKey(s.Extension, s.Buildpack)] = s
	}
	writeTree(&b, "", groupNodes(d.Groups, said, verbose))
	if d.Passed {
		b.WriteString("\nBuild plan\n")
		writeTree(&b, "", entryNodes(d.Entries))
		b.WriteString("\nThe build\n")
		writeTree(&b, "", stepNodes(d))
	}
	return b.String()
}

func memberKey(extension bool, name string) string {
	if extension {
		return "extension " + name
	}
	return name
}

// maxGroupsShown bounds the text: an order can stand for thousands of groups.
// JSON has them all.
const maxGroupsShown = 20

// groupNodes are the groups; of many, the first ones and the last.
func groupNodes(groups []event.GroupTried, said map[string]event.Detected, verbose bool) []node {
	var nodes []node
	told := map[string]bool{}
	for i, g := range groups {
		if len(groups) > maxGroupsShown && !verbose && i >= maxGroupsShown-1 && i < len(groups)-1 {
			if i == maxGroupsShown-1 {
				nodes = append(nodes, node{text: fmt.Sprintf("... %d more that failed: --verbose shows them", len(groups)-maxGroupsShown)})
			}
			continue
		}
		n := node{text: fmt.Sprintf("group %d failed", i+1)}
		if g.Passed {
			n.text = fmt.Sprintf("group %d passed", i+1)
		}
		for _, m := range g.Group {
			key := memberKey(m.Extension, m.Buildpack)
			n.below = append(n.below, memberNode(m, said[key], g.Passed || !told[key], verbose))
			told[key] = true
		}
		if g.Plan != "" {
			n.below = append(n.below, node{text: "plan: " + g.Plan})
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// memberNode is a member of a group. What its bin/detect said is told the first
// time, and in the group that passed.
func memberNode(m event.MemberResult, d event.Detected, first, verbose bool) node {
	n := node{text: memberKey(m.Extension, m.Buildpack)}
	if m.Optional {
		n.text += " (optional)"
	}
	n.text += " " + verdict(m, d)
	if m.Reason != "" {
		n.text += ": " + m.Reason
	}
	if !first {
		return n
	}
	for i, a := range d.Alternatives {
		text := alternative(a)
		if text == "" {
			continue
		}
		if len(d.Alternatives) > 1 {
			text = fmt.Sprintf("%d. %s", i+1, text)
		}
		if m.Alternative == i+1 {
			text += " (taken)"
		}
		n.below = append(n.below, node{text: text})
	}
	if verbose {
		for line := range strings.Lines(d.Output) {
			n.below = append(n.below, node{text: "said: " + strings.TrimRight(line, "\r\n")})
		}
	}
	return n
}

// verdict is a member's result in words, with the exit code of its bin/detect
// where it ran to an end.
func verdict(m event.MemberResult, d event.Detected) string {
	words := map[string]string{"pass": "takes part", "fail": "declined", "error": "failed in an unexpected way", "skipped": "was left out"}
	text := words[m.Result]
	if d.Buildpack != "" && d.ExitCode > 0 {
		text += fmt.Sprintf(" (exit code %d)", d.ExitCode)
	}
	return text
}

func alternative(a event.Alternative) string {
	var parts []string
	if len(a.Provides) > 0 {
		parts = append(parts, "provides "+strings.Join(a.Provides, ", "))
	}
	if len(a.Requires) > 0 {
		parts = append(parts, "requires "+strings.Join(a.Requires, ", "))
	}
	return strings.Join(parts, "; ")
}

func entryNodes(entries []event.PlanEntry) []node {
	if len(entries) == 0 {
		return []node{{text: "nobody needs anything of another"}}
	}
	var nodes []node
	for _, e := range entries {
		var by []string
		for _, r := range e.Requires {
			if !slices.Contains(by, r.By) {
				by = append(by, r.By)
			}
		}
		nodes = append(nodes, node{text: fmt.Sprintf("%s: %s provides it for %s", e.Name, strings.Join(e.Providers, ", "), strings.Join(by, ", "))})
	}
	return nodes
}

// stepNodes are what a build would do from here.
func stepNodes(d platform.Detection) []node {
	var nodes []node
	extensions := func(what string) node {
		n := node{text: what}
		for _, e := range d.GroupExtensions {
			n.below = append(n.below, node{text: e.String()})
		}
		return n
	}
	if d.ExtendBuild {
		nodes = append(nodes, extensions("extend the build image"))
	}
	run := node{text: "run the buildpacks"}
	for _, e := range d.Group {
		run.below = append(run.below, node{text: e.String()})
	}
	nodes = append(nodes, run)
	if d.ExtendRun {
		nodes = append(nodes, extensions("extend the run image"))
	}
	return append(nodes, node{text: "put the app on " + d.RunImage})
}

// node is a line of a tree, with what is below it.
type node struct {
	text  string
	below []node
}

func writeTree(b *strings.Builder, indent string, nodes []node) {
	for i, n := range nodes {
		branch, below := "|- ", "|  "
		if i == len(nodes)-1 {
			branch, below = "'- ", "   "
		}
		fmt.Fprintf(b, "%s%s%s\n", indent, branch, event.Clean(n.text))
		writeTree(b, indent+below, n.below)
	}
}
