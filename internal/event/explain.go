package event

import (
	"fmt"
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
