package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// rawProcess is a Process as different versions of the APIs write it: command
// is a string or a list, direct may have to be absent.
type rawProcess struct {
	Type             string   `toml:"type"`
	Command          any      `toml:"command"`
	Args             []string `toml:"args"`
	Direct           *bool    `toml:"direct"`
	Default          bool     `toml:"default,omitempty"`
	BuildpackID      string   `toml:"buildpack-id,omitempty"`
	WorkingDirectory string   `toml:"working-dir,omitempty"`
	ExecEnv          []string `toml:"exec-env,omitempty"`
}

func (r rawProcess) process(command []string, direct bool) Process {
	return Process{
		Type: r.Type, Command: command, Args: r.Args, Direct: direct, Default: r.Default,
		WorkingDirectory: r.WorkingDirectory, BuildpackID: r.BuildpackID, ExecEnv: r.ExecEnv,
	}
}

// ReadLaunchTOML reads the launch.toml of a buildpack of version api of the
// Buildpack API. Since 0.9 command is a list and there is no key direct;
// before, command is a string and direct says whether to do without a shell.
// At most one process may be the default, and types must differ.
func ReadLaunchTOML(b []byte, name, api string) (LaunchTOML, error) {
	var raw struct {
		Labels    []Label      `toml:"labels"`
		Processes []rawProcess `toml:"processes"`
		Slices    []Slice      `toml:"slices"`
	}
	d, err := decode(b, name, &raw)
	if err != nil {
		return LaunchTOML{}, err
	}
	t := LaunchTOML{Labels: raw.Labels, Slices: raw.Slices}
	for i, l := range raw.Labels {
		if l.Key == "" {
			return LaunchTOML{}, d.fault("must not be empty", "labels", i, "key")
		}
	}
	seen, defaults := map[string]bool{}, 0
	for i, r := range raw.Processes {
		p, err := d.launchProcess(r, api, i)
		if err != nil {
			return LaunchTOML{}, err
		}
		if seen[p.Type] {
			return LaunchTOML{}, d.fault(fmt.Sprintf("%q is already the type of another process", p.Type), "processes", i, "type")
		}
		if seen[p.Type] = true; p.Default {
			defaults++
		}
		if defaults > 1 {
			return LaunchTOML{}, d.fault("only one process can be the default", "processes", i, "default")
		}
		t.Processes = append(t.Processes, p)
	}
	return t, nil
}

func (d document) launchProcess(r rawProcess, api string, i int) (Process, error) {
	if err := d.faultErr(ValidateProcessType(r.Type), "processes", i, "type"); err != nil {
		return Process{}, err
	}
	command, list, err := d.command(r.Command, "processes", i, "command")
	if err != nil {
		return Process{}, err
	}
	if !Has(api, BuildpackWorkingDir) {
		r.WorkingDirectory = "" // was not there yet
	}
	if !Has(api, BuildpackCommandList) {
		if list {
			return Process{}, d.fault("must be a string: lists came with Buildpack API 0.9, and this is "+api, "processes", i, "command")
		}
		return r.process(command, r.Direct != nil && *r.Direct), nil
	}
	if !list {
		return Process{}, d.fault("must be a list of strings since Buildpack API 0.9", "processes", i, "command")
	}
	if r.Direct != nil {
		return Process{}, d.fault("is not allowed since Buildpack API 0.9: every process is direct", "processes", i, "direct")
	}
	return r.process(command, true), nil
}

// command reads a command in either form. It must have an executable.
func (d document) command(v any, path ...any) (command []string, list bool, err error) {
	path = path[:len(path):len(path)]
	switch v := v.(type) {
	case nil:
	case string:
		command = []string{v}
	case []any:
		list = true
		for i, element := range v {
			s, ok := element.(string)
			if !ok {
				return nil, true, d.fault("must be a string, not "+kindOf(element), append(path, i)...)
			}
			command = append(command, s)
		}
	default:
		return nil, false, d.fault("must be a list of strings, not "+kindOf(v), path...)
	}
	if len(command) == 0 || command[0] == "" {
		return nil, list, d.fault("must name an executable", path...)
	}
	return command, list, nil
}

// ReadBuildMetadata reads <layers>/config/metadata.toml of any version of the
// Platform API: command may be a string (before 0.10) or a list.
func ReadBuildMetadata(b []byte, name string) (BuildMetadata, error) {
	var raw struct {
		BuildMetadata
		Processes []rawProcess `toml:"processes"`
	}
	d, err := decode(b, name, &raw)
	if err != nil {
		return BuildMetadata{}, err
	}
	m := raw.BuildMetadata
	m.Processes = nil
	for i, r := range raw.Processes {
		command, _, err := d.command(r.Command, "processes", i, "command")
		if err != nil {
			return BuildMetadata{}, err
		}
		m.Processes = append(m.Processes, r.process(command, r.Direct != nil && *r.Direct))
	}
	return m, nil
}

// TOML is metadata.toml as it is written for a version of the Platform API.
// Before 0.10 a command is a string, and what follows the executable moves to
// the front of args.
func (m BuildMetadata) TOML(platformAPI string) any {
	if Has(platformAPI, PlatformCommandList) {
		return m
	}
	old := struct {
		DefaultProcessType string         `toml:"buildpack-default-process-type,omitempty"`
		Buildpacks         []GroupElement `toml:"buildpacks,omitempty"`
		Extensions         []GroupElement `toml:"extensions,omitempty"`
		Processes          []rawProcess   `toml:"processes,omitempty"`
		Slices             []Slice        `toml:"slices,omitempty"`
		Labels             []Label        `toml:"labels,omitempty"`
	}{m.DefaultProcessType, m.Buildpacks, m.Extensions, nil, m.Slices, m.Labels}
	for _, p := range m.Processes {
		p = p.shifted()
		old.Processes = append(old.Processes, rawProcess{
			Type: p.Type, Command: p.Command[0], Args: p.Args, Direct: &p.Direct,
			WorkingDirectory: p.WorkingDirectory, BuildpackID: p.BuildpackID,
		})
	}
	return old
}

// shifted is the process with a command of one element, the rest of it in front
// of args, of which there is always a list.
func (p Process) shifted() Process {
	if len(p.Command) == 0 {
		p.Command = []string{""}
	}
	p.Args = append(append([]string{}, p.Command[1:]...), p.Args...)
	p.Command = p.Command[:1:1]
	return p
}

// ReadExecD reads what an exec.d program wrote to file descriptor 3: variables
// and their values, strings at the top level and nothing else.
func ReadExecD(b []byte, name string) (map[string]string, error) {
	var tree map[string]any
	if msg := tooMuch(b); msg != "" {
		return nil, &DocumentError{File: name, Msg: msg}
	}
	b = unmarked(b)
	d := document{name: name, bytes: b}
	if err := toml.Unmarshal(b, &tree); err != nil {
		return nil, d.syntax(err)
	}
	vars := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		value, ok := tree[key].(string)
		switch {
		case !ok:
			return nil, d.fault("must be a string, not "+kindOf(tree[key]), key)
		case key == "" || strings.ContainsAny(key, "=\x00"):
			return nil, d.fault("cannot be the name of a variable", key)
		case strings.Contains(value, "\x00"):
			return nil, d.fault("contains a NUL byte, which no variable can", key)
		}
		vars[key] = value
	}
	return vars, nil
}
