package event

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// PlanProblem is one reason why the members of a group that passed detection
// could not agree on a build plan: a require that nobody before it provides,
// or a provide that nobody after it requires.
type PlanProblem struct {
	Buildpack string `json:"buildpack"` // id@version: whose require or provide
	Name      string `json:"name"`      // of the dependency
	// Unused says that it is a provide, otherwise it is a require.
	Unused bool `json:"unused,omitempty"`
	// Misplaced are members that have the other half, but on the wrong side.
	Misplaced []string `json:"misplaced,omitempty"`
}

// String is the problem as a sentence.
func (p PlanProblem) String() string {
	wrong := strings.Join(p.Misplaced, ", ")
	switch {
	case p.Unused && wrong != "":
		return fmt.Sprintf("%s provides %s, which only %s requires, and that comes before it", p.Buildpack, p.Name, wrong)
	case p.Unused:
		return fmt.Sprintf("%s provides %s, which no buildpack of the group requires", p.Buildpack, p.Name)
	case wrong != "":
		return fmt.Sprintf("%s requires %s, which only %s provides, and that comes after it", p.Buildpack, p.Name, wrong)
	}
	return fmt.Sprintf("%s requires %s, which no buildpack of the group provides", p.Buildpack, p.Name)
}

// Explain says why no group of a detection passed: for each group what stood
// in its way, in the buildpacks' own words, and what would make it pass. The
// group that came nearest is first: the one with the fewest members and plan
// problems in the way; of equals, the one where most members wanted to take
// part. It returns "" if a group passed or none with members was tried. The
// text is safe for a terminal and has no end of line.
func Explain(groups []GroupTried) string {
	misses := nearest(groups)
	var b strings.Builder
	for i, m := range misses {
		if i == maxMisses {
			fmt.Fprintf(&b, "... and %d more, which were further from passing\n", len(misses)-i)
			break
		}
		m.write(&b, i == 0 && len(misses) > 1)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// nearest are the groups of a detection that no group passed, each reason once,
// the one that came nearest first.
func nearest(groups []GroupTried) []miss {
	var misses []miss
	for i, g := range groups {
		if g.Passed {
			return nil
		}
		if len(g.Group) > 0 { // an order of optional composites ends with nobody
			misses = append(misses, newMiss(i, g))
		}
	}
	misses = distinct(misses)
	slices.SortStableFunc(misses, miss.compare)
	return misses
}

// Miss is a group that did not pass, and what would make it.
type Miss struct {
	Group    int           `json:"group"`    // its number in the order of trying, from 1
	Blockers []string      `json:"blockers"` // id@version: who had to pass and did not
	Problems []PlanProblem `json:"problems,omitempty"`
	// Names are the files and variables that the blockers spoke of.
	Names  []string `json:"names,omitempty"`
	Remedy string   `json:"remedy"`
}

// Misses are the groups that Explain tells of, in its order.
func Misses(groups []GroupTried) []Miss {
	var list []Miss
	for _, m := range nearest(groups) {
		if len(list) == maxMisses {
			break
		}
		blockers := []string{}
		for _, r := range m.blockers {
			blockers = append(blockers, r.Buildpack)
		}
		list = append(list, Miss{Group: m.number, Blockers: blockers, Problems: m.Problems, Names: m.names(), Remedy: m.remedy()})
	}
	return list
}

// names are the files and variables that those in the way spoke of.
func (m miss) names() []string {
	var all []string
	for _, r := range m.blockers {
		for _, n := range namesIn(r.Reason) {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	return all
}

// maxNames bounds what is taken from one reason: who lists more lists no remedy.
const maxNames = 10

// nameInText is how files (requirements.txt, *.csproj, Procfile, .tool-versions)
// and variables of the environment (BP_NODE_VERSION) look in a sentence. An
// extension has a letter, which tells it from a version.
var nameInText = regexp.MustCompile(`(?:^|[\s"'` + "`" + `(\[,:=/])` +
	`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[A-Z][a-z]+file|[\w*.-]*[\w*-]\.[A-Za-z][A-Za-z0-9]{0,9}|\.[a-z][\w.-]*\w)` + `(?:$|[\s"'` + "`" + `)\],:;=!?]|\.(?:\s|$))`)

// namesIn are the files and variables that a text speaks of.
func namesIn(text string) []string {
	var names []string
	for len(names) < maxNames {
		at := nameInText.FindStringSubmatchIndex(text)
		if at == nil {
			break
		}
		if name := text[at[2]:at[3]]; !abbreviation(name) {
			names = append(names, name)
		}
		text = text[at[3]:]
	}
	return names
}

// abbreviation tells e.g, i.e and versions like 20.x from files.
func abbreviation(name string) bool {
	base := strings.TrimSuffix(name, path.Ext(name))
	return len(name) <= 3 && !strings.HasPrefix(name, "*") || base != "" && strings.Trim(base, "0123456789.") == ""
}

// maxMisses bounds how many groups are explained: who does not find the answer
// in the ten nearest does not read on. An order can stand for thousands.
const maxMisses = 10

// miss is a group that did not pass.
type miss struct {
	GroupTried
	number   int            // of the group in the order of trying, from 1
	blockers []MemberResult // who had to pass and did not
	passed   int
}

func newMiss(i int, g GroupTried) miss {
	m := miss{GroupTried: g, number: i + 1}
	for _, r := range g.Group {
		switch {
		case r.Result == "pass":
			m.passed++
		case !r.Optional && r.Result != "skipped":
			m.blockers = append(m.blockers, r)
		}
	}
	if m.passed == 0 && len(m.blockers) == 0 && m.Plan == "" {
		// Nobody had to pass, but somebody should have: all of them are in the way.
		m.blockers = g.Group
	}
	return m
}

// compare puts the nearer miss first; of equals, the one tried first stays first.
func (m miss) compare(o miss) int {
	return cmp.Or(
		cmp.Compare(len(m.blockers)+len(m.Problems), len(o.blockers)+len(o.Problems)),
		cmp.Compare(o.passed, m.passed),
		cmp.Compare(len(m.blockers), len(o.blockers)),
	)
}

// distinct leaves out groups that failed for exactly the reasons of an earlier
// one: nested orders try the same failing member in many combinations.
func distinct(misses []miss) []miss {
	seen := map[string]bool{}
	return slices.DeleteFunc(misses, func(m miss) bool {
		var key strings.Builder
		for _, r := range m.blockers {
			fmt.Fprintf(&key, "%q %q %q\n", r.Buildpack, r.Result, r.Reason)
		}
		if m.Plan != "" || len(m.blockers) == 0 {
			fmt.Fprintf(&key, "plan %q %q", m.Plan, m.members())
		}
		known := seen[key.String()]
		seen[key.String()] = true
		return known
	})
}

func (m miss) members() string {
	var names []string
	for _, r := range m.Group {
		names = append(names, r.Buildpack)
	}
	return strings.Join(names, ", ")
}

func (m miss) write(b *strings.Builder, nearest bool) {
	fmt.Fprintf(b, "group %d (%s)", m.number, Clean(m.members()))
	if nearest {
		b.WriteString(" came nearest")
	}
	b.WriteString(":\n")
	for _, r := range m.blockers {
		fmt.Fprintf(b, "  %s %s: %s\n", Clean(r.Buildpack), verb(r.Result), reason(r.Reason))
	}
	for _, p := range m.Problems {
		fmt.Fprintf(b, "  plan: %s\n", Clean(p.String()))
	}
	if len(m.Problems) == 0 && m.Plan != "" {
		fmt.Fprintf(b, "  plan: %s\n", Clean(m.Plan))
	}
	// An optional member whose plan did not work out may be what a required
	// one is missing.
	for _, r := range m.Group {
		told := slices.ContainsFunc(m.Problems, func(p PlanProblem) bool { return p.String() == r.Reason })
		if m.Plan != "" && !told && r.Optional && (r.Result == "error" || r.Result == "skipped") {
			fmt.Fprintf(b, "  %s (optional) was left out: %s\n", Clean(r.Buildpack), reason(r.Reason))
		}
	}
	fmt.Fprintf(b, "  to make it pass: %s\n", Clean(m.remedy()))
}

func verb(result string) string {
	switch result {
	case "error":
		return "failed in an unexpected way"
	case "skipped":
		return "was skipped"
	}
	return "declined"
}

func reason(s string) string {
	if s = strings.TrimSpace(Clean(s)); s == "" {
		return "it gave no reason"
	}
	return s
}

// remedy is what somebody who wants this group could do.
func (m miss) remedy() string {
	var todo []string
	join := " and "
	if len(m.blockers) == len(m.Group) && allOptional(m.blockers) {
		join = " or "
	}
	ask := func(result, format, one, many string) {
		var names []string
		for _, r := range m.blockers {
			if r.Result == result {
				names = append(names, r.Buildpack)
			}
		}
		if len(names) > 1 && join == " and " {
			one = many
		}
		if len(names) > 0 {
			todo = append(todo, fmt.Sprintf(format, strings.Join(names, join), one))
		}
	}
	ask("fail", "give the app what %s %s for", "looks", "look")
	if names := m.names(); len(names) > 0 && len(todo) > 0 {
		todo[0] += ": " + strings.Join(names, ", ")
	}
	ask("error", "mend what %s %s into", "ran", "ran")
	ask("skipped", "build where %s %s part", "takes", "take")
	for _, p := range m.Problems {
		todo = append(todo, p.remedy())
	}
	if len(todo) == 0 {
		return "choose other buildpacks with --buildpack"
	}
	return strings.Join(todo, "; ")
}

func allOptional(list []MemberResult) bool {
	return !slices.ContainsFunc(list, func(r MemberResult) bool { return !r.Optional })
}

// remedy is what would solve the problem.
func (p PlanProblem) remedy() string {
	wrong := strings.Join(p.Misplaced, ", ")
	switch {
	case p.Unused && wrong != "":
		return fmt.Sprintf("put %s before %s", p.Buildpack, wrong)
	case p.Unused:
		return fmt.Sprintf("add a buildpack that requires %s after %s, or leave %s out", p.Name, p.Buildpack, p.Buildpack)
	case wrong != "":
		return fmt.Sprintf("put %s before %s", wrong, p.Buildpack)
	}
	return fmt.Sprintf("add a buildpack that provides %s before %s", p.Name, p.Buildpack)
}
