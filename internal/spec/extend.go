package spec

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// ExtendConfig is extend-config.toml, an output of bin/generate: build arguments
// for the Dockerfiles beside it.
type ExtendConfig struct {
	Build ExtendArgs
	Run   ExtendArgs
}

// ExtendArgs are the build arguments for one Dockerfile.
type ExtendArgs struct {
	Args []ExtendArg
}

// ExtendArg is one build argument.
type ExtendArg struct {
	Name, Value string
}

// Map is the arguments by name; of two with one name, the later counts.
func (a ExtendArgs) Map() map[string]string {
	m := map[string]string{}
	for _, arg := range a.Args {
		m[arg.Name] = arg.Value
	}
	return m
}

// rawExtend is an ExtendConfig that tells an empty value from none.
type rawExtend struct {
	Build rawExtendArgs `toml:"build"`
	Run   rawExtendArgs `toml:"run"`
}

type rawExtendArgs struct {
	Args []struct {
		Name  *string `toml:"name"`
		Value *string `toml:"value"`
	} `toml:"args"`
}

// ReadExtendConfig reads extend-config.toml. Every argument must have a name
// and a value. Keys that mean nothing there, most often a slip of the pen, are
// ignored; unused is a sentence for each, up to a number that people read.
func ReadExtendConfig(b []byte, name string) (c ExtendConfig, unused []string, err error) {
	var raw rawExtend
	d, err := decode(b, name, &raw)
	if err != nil {
		return ExtendConfig{}, nil, err
	}
	if c.Build.Args, err = d.extendArgs(raw.Build, "build"); err != nil {
		return ExtendConfig{}, nil, err
	}
	if c.Run.Args, err = d.extendArgs(raw.Run, "run"); err != nil {
		return ExtendConfig{}, nil, err
	}
	return c, d.unusedIn(raw), nil
}

// maxUnused bounds how many unused keys are told: each costs a look at the
// whole document.
const maxUnused = 10

func (d document) unusedIn(raw any) (list []string) {
	var tree map[string]any
	if err := toml.Unmarshal(d.bytes, &tree); err != nil {
		return nil
	}
	all := strangers(reflect.TypeOf(raw), tree, nil)
	for _, path := range all[:min(len(all), maxUnused)] {
		list = append(list, d.fault("is not used", path...).Error())
	}
	return list
}

func (d document) extendArgs(raw rawExtendArgs, kind string) (args []ExtendArg, err error) {
	for i, arg := range raw.Args {
		switch {
		case arg.Name == nil:
			return nil, d.fault("must be set", kind, "args", i, "name")
		case arg.Value == nil:
			return nil, d.fault("must be set", kind, "args", i, "value")
		}
		err := first(
			d.faultErr(validateArgName(*arg.Name), kind, "args", i, "name"),
			d.faultErr(validateArgValue(*arg.Value), kind, "args", i, "value"))
		if err != nil {
			return nil, err
		}
		args = append(args, ExtendArg{Name: *arg.Name, Value: *arg.Value})
	}
	return args, nil
}

// givenArgs are the build arguments that the lifecycle gives every Dockerfile
// of an extension.
var givenArgs = []string{"base_image", "build_id", "user_id", "group_id"}

func validateArgName(name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "= \t\r\n\x00"):
		return fmt.Errorf("%q is no name of a build argument", name)
	case slices.Contains(givenArgs, name):
		return fmt.Errorf("%q cannot be set here: the lifecycle gives it a value", name)
	}
	return nil
}

func validateArgValue(value string) error {
	if strings.ContainsRune(value, 0) {
		return errors.New("cannot have a NUL character")
	}
	return nil
}
