package spec

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Project is a project descriptor, project.toml, of any schema version
// (Project Descriptor 0.1 and 0.2, and exec-env of the drafted 0.3).
type Project struct {
	SchemaVersion    string // "0.1" where the file names none
	ID, Name         string
	Version          string
	Authors          []string
	DocumentationURL string
	SourceURL        string
	Licenses         []License
	Metadata         map[string]any

	Builder string
	// Include and Exclude are gitignore patterns; at most one is not empty.
	Include, Exclude []string
	// Group replaces the builder's order if it is not empty; Pre and Post are
	// put at the start and end of every group.
	Group, Pre, Post []ProjectBuildpack
	Env              []ProjectEnv
	// Warnings are about what the file has and kiln does not use.
	Warnings []string
}

// ProjectBuildpack is one buildpack that a project wants: by ID, by URI or as
// an inline script.
type ProjectBuildpack struct {
	ID      string         `toml:"id"`
	Version string         `toml:"version"`
	URI     string         `toml:"uri"`
	Script  *ProjectScript `toml:"script"`
	ExecEnv []string       `toml:"exec-env"`
}

// ProjectScript is a buildpack written in place.
type ProjectScript struct {
	API    string `toml:"api"`
	Inline string `toml:"inline"`
	Shell  string `toml:"shell"` // /bin/sh unless set
}

// ProjectEnv is one build-time variable of a project.
type ProjectEnv struct {
	Name    string   `toml:"name"`
	Value   string   `toml:"value"`
	ExecEnv []string `toml:"exec-env"`
}

// rawProjectInfo is what [project] (0.1) and [_] (0.2) share.
type rawProjectInfo struct {
	ID               string         `toml:"id"`
	Name             string         `toml:"name"`
	Version          string         `toml:"version"`
	Authors          []string       `toml:"authors"`
	DocumentationURL string         `toml:"documentation-url"`
	SourceURL        string         `toml:"source-url"`
	Licenses         []License      `toml:"licenses"`
	SchemaVersion    string         `toml:"schema-version"`
	Metadata         map[string]any `toml:"metadata"`
}

type rawProject1 struct {
	Project rawProjectInfo `toml:"project"`
	Build   struct {
		Include    []string           `toml:"include"`
		Exclude    []string           `toml:"exclude"`
		Buildpacks []ProjectBuildpack `toml:"buildpacks"`
		Env        []ProjectEnv       `toml:"env"`
		Builder    string             `toml:"builder"`
	} `toml:"build"`
	Metadata map[string]any `toml:"metadata"`
}

type rawGroup struct {
	Group []ProjectBuildpack `toml:"group"`
}

type rawProject2 struct {
	Info rawProjectInfo `toml:"_"`
	IO   struct {
		Buildpacks struct {
			rawGroup
			Builder string   `toml:"builder"`
			Include []string `toml:"include"`
			Exclude []string `toml:"exclude"`
			Pre     rawGroup `toml:"pre"`
			Post    rawGroup `toml:"post"`
			Build   struct {
				Env []ProjectEnv `toml:"env"`
			} `toml:"build"`
			// Env is a spelling that was common before 0.2 was final.
			Env struct {
				Build []ProjectEnv `toml:"build"`
			} `toml:"env"`
		} `toml:"buildpacks"`
	} `toml:"io"`
}

// ReadProject reads project.toml. A file without schema-version is read as
// 0.1; one with a version that kiln does not know is an error.
func ReadProject(b []byte, name string) (Project, error) {
	var head struct {
		Info struct {
			SchemaVersion string `toml:"schema-version"`
		} `toml:"_"`
	}
	d, err := decode(b, name, &head)
	if err != nil {
		return Project{}, err
	}
	switch head.Info.SchemaVersion {
	case "", "0.1":
		return d.project1(head.Info.SchemaVersion == "")
	case "0.2", "0.3":
		return d.project2()
	}
	return Project{}, d.fault(fmt.Sprintf("%q is not known; kiln reads 0.1, 0.2 and 0.3", head.Info.SchemaVersion), "_", "schema-version")
}

func (i rawProjectInfo) project() Project {
	return Project{
		SchemaVersion: i.SchemaVersion, ID: i.ID, Name: i.Name, Version: i.Version, Authors: i.Authors,
		DocumentationURL: i.DocumentationURL, SourceURL: i.SourceURL, Licenses: i.Licenses, Metadata: i.Metadata,
	}
}

func (d document) project1(assumed bool) (Project, error) {
	var raw rawProject1
	if _, err := decode(d.bytes, d.name, &raw); err != nil {
		return Project{}, err
	}
	p := raw.Project.project()
	p.SchemaVersion, p.Metadata = "0.1", raw.Metadata
	p.Builder, p.Include, p.Exclude = raw.Build.Builder, raw.Build.Include, raw.Build.Exclude
	p.Group, p.Env = raw.Build.Buildpacks, raw.Build.Env
	p.Warnings = d.unknown(rawProject1{})
	if assumed {
		p.Warnings = append([]string{d.name + ": no schema-version under [_]; read as version 0.1"}, p.Warnings...)
	}
	return p, first(
		d.licenses(p.Licenses, "project", "licenses"),
		d.patterns(p, "build", "exclude"),
		d.projectGroup(p.Group, "build", "buildpacks"),
		d.projectEnv(p.Env, "build", "env"))
}

func (d document) project2() (Project, error) {
	var raw rawProject2
	if _, err := decode(d.bytes, d.name, &raw); err != nil {
		return Project{}, err
	}
	p, build := raw.Info.project(), raw.IO.Buildpacks
	p.Builder, p.Include, p.Exclude = build.Builder, build.Include, build.Exclude
	p.Group, p.Pre, p.Post = build.Group, build.Pre.Group, build.Post.Group
	p.Env = append(build.Build.Env, build.Env.Build...)
	p.Warnings = d.unknown(rawProject2{})
	at := []any{"io", "buildpacks"}
	return p, first(
		d.licenses(p.Licenses, "_", "licenses"),
		d.patterns(p, "io", "buildpacks", "exclude"),
		d.projectGroup(p.Group, append(at, "group")...),
		d.projectGroup(p.Pre, "io", "buildpacks", "pre", "group"),
		d.projectGroup(p.Post, "io", "buildpacks", "post", "group"),
		d.projectEnv(build.Build.Env, "io", "buildpacks", "build", "env"),
		d.projectEnv(build.Env.Build, "io", "buildpacks", "env", "build"))
}

func (d document) patterns(p Project, path ...any) error {
	if len(p.Include) > 0 && len(p.Exclude) > 0 {
		return d.fault("cannot be used together with include", path...)
	}
	return nil
}

func (d document) licenses(licenses []License, path ...any) error {
	for i, l := range licenses {
		if l.Type == "" && l.URI == "" {
			return d.fault("must have a type or a uri", append(path, i)...)
		}
	}
	return nil
}

func (d document) projectEnv(env []ProjectEnv, path ...any) error {
	for i, e := range env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00/") {
			return d.fault(fmt.Sprintf("%q cannot be the name of a variable", e.Name), append(path, i, "name")...)
		}
	}
	return nil
}

func (d document) projectGroup(group []ProjectBuildpack, path ...any) error {
	path = path[:len(path):len(path)]
	for i, b := range group {
		at := append(path, i)
		at = at[:len(at):len(at)]
		switch {
		case b.ID == "" && b.URI == "" && b.Script == nil:
			return d.fault("must have an id, a uri or a script", at...)
		case b.Version != "" && b.URI != "":
			return d.fault("cannot be used together with uri", append(at, "version")...)
		case b.Version != "" && b.Script != nil:
			return d.fault("cannot be used together with script", append(at, "version")...)
		case b.URI != "" && b.Script != nil:
			return d.fault("cannot be used together with script", append(at, "uri")...)
		case b.Script != nil && b.Script.API == "":
			return d.fault("must be set to the version of the Buildpack API", append(at, "script", "api")...)
		case b.Script != nil && b.Script.Inline == "":
			return d.fault("must be set", append(at, "script", "inline")...)
		}
		if b.ID != "" {
			if err := d.faultErr(ValidateID(b.ID), append(at, "id")...); err != nil {
				return err
			}
		}
	}
	return nil
}

// unknown warns of keys that stand in tables of ours and mean nothing there,
// most often a slip of the pen. Top-level tables and those in [io] that are not
// ours belong to others.
func (d document) unknown(raw any) []string {
	var tree map[string]any
	if err := toml.Unmarshal(d.bytes, &tree); err != nil {
		return nil
	}
	var warnings []string
	for _, path := range strangers(reflect.TypeOf(raw), tree, nil) {
		if len(path) == 1 || len(path) == 2 && path[0] == "io" {
			continue
		}
		warnings = append(warnings, d.fault("is not used", path...).Error())
	}
	return warnings
}

// strangers lists the keys of a table, at any depth, that t has no field for.
func strangers(t reflect.Type, v any, path []any) (all [][]any) {
	path = path[:len(path):len(path)]
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case []any:
		for i, element := range v {
			if t.Kind() == reflect.Slice {
				all = append(all, strangers(t.Elem(), element, append(path, i))...)
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return nil
		}
		known := map[string]reflect.Type{}
		for _, f := range fields(t, map[string]bool{}) {
			known[f.key] = f.t
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if field, ok := known[key]; ok {
				all = append(all, strangers(field, v[key], append(path, key))...)
			} else {
				all = append(all, append(path, key))
			}
		}
	}
	return all
}
