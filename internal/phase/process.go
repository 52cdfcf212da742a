package phase

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/buildpack"
	"github.com/kilnbuild/kiln/internal/spec"
)

// processes merges the processes of buildpacks in the order of the build: a
// later definition of a type replaces the earlier one as a whole, the last
// default wins, and who redefines the default type without calling it the
// default takes the default away (Buildpack API, "launch.toml").
type processes struct {
	byType map[string]spec.Process
	def    string
}

// add takes in the processes of one buildpack and returns what people should
// be warned of.
func (p *processes) add(bp buildpack.Buildpack, list []spec.Process) (warnings []string) {
	if p.byType == nil {
		p.byType = map[string]spec.Process{}
	}
	for _, process := range list {
		switch {
		case process.Default:
			p.def = process.Type
		case process.Type == p.def:
			p.def = ""
			warnings = append(warnings, fmt.Sprintf("%s redefines the default process type %q without making it the default: the image has no default process now", bp, process.Type))
		}
		process.Default = false
		process.BuildpackID = bp.Info().ID
		p.byType[process.Type] = process
	}
	return warnings
}

// merged is the processes in order of type, and the default type.
func (p *processes) merged() (list []spec.Process, def string) {
	for _, process := range p.byType {
		list = append(list, process)
	}
	slices.SortFunc(list, func(a, b spec.Process) int { return strings.Compare(a.Type, b.Type) })
	return list, p.def
}
