package lifecycle

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/spec"
)

// These say that only the help text or the version was asked for.
var (
	errHelp    = flag.ErrHelp
	errVersion = errors.New("the version was asked for")
)

// parse reads the inputs of a phase: a flag goes before its variable, which
// goes before the default. api has been checked. What the version of the
// Platform API does not have yet, or no more, is an unknown flag, and its
// variable is not looked at.
func parse(phase, api string, args, environ []string) (inputs, error) {
	in := inputs{phase: phase, api: api, uid: -1, gid: -1}
	set := flag.NewFlagSet(phase, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	given := map[string]bool{}
	for _, r := range table {
		if r.Flag == "" || !r.in(phase, api) {
			continue
		}
		assign := func(s string) error {
			if list, ok := r.to(&in).(*[]string); ok && !given[r.Flag] {
				*list = nil
			}
			given[r.Flag] = true
			return assignTo(r.to(&in), s)
		}
		if _, ok := r.to(&in).(*bool); ok {
			set.BoolFunc(r.Flag[1:], r.Help, assign)
		} else {
			set.Func(r.Flag[1:], r.Help, assign)
		}
	}
	version := set.Bool("version", false, "")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return in, errHelp
		}
		return in, spec.Exit(spec.ExitUsage, spec.WithHint(err, "%s -help lists what there is for platform API %s", phase, api))
	}
	if *version {
		return in, errVersion
	}
	in.args = set.Args()
	if err := in.fromEnvironment(environ, given); err != nil {
		return in, err
	}
	return in, in.finish()
}

// fromEnvironment fills in what no flag has set.
func (in *inputs) fromEnvironment(environ []string, given map[string]bool) error {
	vars := map[string]string{}
	for _, nv := range environ {
		name, value, _ := strings.Cut(nv, "=")
		vars[name] = value
	}
	for _, r := range table {
		if !r.in(in.phase, in.api) || r.Flag != "" && given[r.Flag] {
			continue
		}
		value, isDefault := vars[r.Env], false
		if r.Env == "" || value == "" {
			value, isDefault = r.Default, true
		}
		if value == "" {
			continue
		}
		err := in.fromVariable(r, value)
		if err != nil && !isDefault {
			return spec.Exit(spec.ExitInvalidArgs, fmt.Errorf("%s=%q: %w", r.Env, value, err))
		}
	}
	return nil
}

func (in *inputs) fromVariable(r Row, value string) error {
	switch to := r.to(in).(type) {
	case *[]string:
		for item := range strings.SplitSeq(value, ",") {
			if item = strings.TrimSpace(item); item != "" {
				*to = append(*to, item)
			}
		}
		return nil
	case *bool:
		*to, _ = strconv.ParseBool(value) // what cannot be read is false, as platforms are used to
		return nil
	default:
		return assignTo(to, value)
	}
}

// assignTo sets a value from its text; lists grow.
func assignTo(to any, s string) (err error) {
	switch to := to.(type) {
	case *path:
		*to = path(s)
	case *string:
		*to = s
	case *[]string:
		*to = append(*to, s)
	case *bool:
		*to, err = strconv.ParseBool(s)
	case *int:
		if *to, err = strconv.Atoi(s); err == nil && *to < 0 {
			err = errors.New("must not be negative")
		}
	case *time.Duration:
		*to, err = time.ParseDuration(s)
	}
	if e, ok := errors.AsType[*strconv.NumError](err); ok {
		return e.Err
	}
	return err
}

// finish resolves <layers>, makes paths absolute and checks values.
func (in *inputs) finish() error {
	for _, r := range table {
		p, ok := r.to(in).(*path)
		if !ok || *p == "" || !r.in(in.phase, in.api) {
			continue
		}
		if rest, below := strings.CutPrefix(string(*p), "<layers>"); below {
			*p = in.layers + path(rest)
		}
		abs, err := filepath.Abs(string(*p))
		if err != nil {
			return err
		}
		*p = path(abs)
	}
	switch in.logLevel {
	case "debug", "info", "warn", "error":
	default:
		return invalid("log level %q: must be debug, info, warn or error", in.logLevel)
	}
	if in.logFormat != "text" && in.logFormat != "json" {
		return invalid("log format %q: must be text or json", in.logFormat)
	}
	if in.execEnv != "" {
		if err := spec.ValidateExecEnv(in.execEnv); err != nil {
			return spec.Exit(spec.ExitInvalidArgs, err)
		}
	}
	return in.checkArgs()
}

// checkArgs checks the number of images, and what cannot go together.
func (in *inputs) checkArgs() error {
	switch in.phase {
	case analyzer, creator:
		if len(in.args) != 1 {
			return invalid("%s takes one image, not %d: %q", in.phase, len(in.args), in.args)
		}
	case exporter, rebaser:
		if len(in.args) == 0 {
			return invalid("%s takes at least one image", in.phase)
		}
	default:
		if len(in.args) > 0 {
			return invalid("%s takes no arguments: %q", in.phase, in.args)
		}
	}
	if in.layout && in.layoutDir == "" {
		return invalid("-layout needs -layout-dir")
	}
	if in.layout && in.daemon {
		return invalid("-layout and -daemon cannot go together")
	}
	if in.phase == extender && in.kind != "" && in.kind != "build" && in.kind != "run" {
		return invalid("-kind %q: must be build or run", in.kind)
	}
	if in.runImage != "" && in.deprecatedImage != "" {
		return invalid("-image is the old name of -run-image: give only one")
	}
	return nil
}

func invalid(format string, args ...any) error {
	return spec.Exit(spec.ExitInvalidArgs, fmt.Errorf(format, args...))
}

// usage is the help text of a phase under a version of the Platform API.
func usage(phase, api string) string {
	var b strings.Builder
	operands := ""
	switch phase {
	case analyzer, creator:
		operands = " <image>"
	case exporter, rebaser:
		operands = " <image> [<image>...]"
	}
	fmt.Fprintf(&b, "usage: %s [flags]%s\n\nflags and variables of platform API %s; a flag goes before its variable:\n", phase, operands, api)
	for _, r := range table {
		if r.in(phase, api) {
			fmt.Fprintf(&b, "  %-20s %-26s %s", r.Flag, r.Env, r.Help)
			if r.Default != "" {
				fmt.Fprintf(&b, " (%s)", r.Default)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
