package spec

import "fmt"

// ReadBuildpack reads buildpack.toml. The buildpack must have a valid id, a
// version and an api; the entries of an order need id and version.
func ReadBuildpack(b []byte, name string) (Buildpack, error) {
	return readBuildpack(b, name, "buildpack")
}

// ReadExtension reads extension.toml. An extension has no order.
func ReadExtension(b []byte, name string) (Buildpack, error) {
	return readBuildpack(b, name, "extension")
}

func readBuildpack(b []byte, name, table string) (Buildpack, error) {
	type rawInfo struct {
		BuildpackInfo
		ExecEnv any `toml:"exec-env"`
	}
	var raw struct {
		Buildpack
		BuildpackTable rawInfo     `toml:"buildpack"`
		ExtensionTable rawInfo     `toml:"extension"`
		Targets        []rawTarget `toml:"targets"`
	}
	d, err := decode(b, name, &raw)
	if err != nil {
		return Buildpack{}, err
	}
	bp := raw.Buildpack
	bp.Buildpack, bp.Extension, bp.Targets = raw.BuildpackTable.BuildpackInfo, raw.ExtensionTable.BuildpackInfo, nil
	for _, t := range raw.Targets {
		bp.Targets = append(bp.Targets, t.target())
	}
	info, execEnv := &bp.Buildpack, raw.BuildpackTable.ExecEnv
	if table == "extension" {
		info, execEnv = &bp.Extension, raw.ExtensionTable.ExecEnv
	}
	if info.ExecEnv, err = d.execEnv(execEnv, table, "exec-env"); err != nil {
		return Buildpack{}, err
	}
	if bp.API == "" {
		return Buildpack{}, d.fault("must be set to the version of the Buildpack API", "api")
	}
	if table == "extension" && len(bp.Order) > 0 {
		return Buildpack{}, d.fault("an extension cannot have an order", "order")
	}
	err = first(
		d.faultErr(ValidateID(info.ID), table, "id"),
		d.faultErr(ValidatePathVersion(info.Version), table, "version"),
		d.groups(bp.Order, "order"))
	if err != nil {
		return Buildpack{}, err
	}
	return bp, nil
}

// execEnv reads both spellings of a buildpack's exec-env: a list of strings,
// and the specification's list of tables with a name.
func (d document) execEnv(v any, path ...any) ([]string, error) {
	list, ok := v.([]any)
	if v != nil && !ok {
		return nil, d.fault("must be a list, not "+kindOf(v), path...)
	}
	var names []string
	for i, element := range list {
		if table, ok := element.(map[string]any); ok {
			element = table["name"]
		}
		s, ok := element.(string)
		if !ok {
			return nil, d.fault("must be the name of an execution environment", append(path[:len(path):len(path)], i)...)
		}
		names = append(names, s)
	}
	return names, nil
}

// String is id@version, the way that people and events name a member of a group.
func (m GroupElement) String() string { return fmt.Sprintf("%s@%s", m.ID, m.Version) }
