package dockerfile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"
)

// config is what instructions change of an image besides its files. Its
// methods are pure: they touch no file and depend on nothing else.
type config struct {
	v1.Config
	author string
	cmdSet bool // CMD stood in this stage: then ENTRYPOINT leaves it
}

// newConfig begins as the config of the image below. PATH is always set, as
// docker has it, so that an instruction can add to it.
func newConfig(c *v1.ConfigFile) config {
	config := config{Config: *c.Config.DeepCopy(), author: c.Author}
	if _, ok := lookup(config.Env, "PATH"); !ok {
		config.Env = append(config.Env, "PATH="+defaultPath)
	}
	return config
}

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// clone shares nothing with c.
func (c config) clone() config {
	c.Config = *c.Config.DeepCopy()
	return c
}

// apply carries out an instruction that is about the config alone, its
// variables expanded, and returns what history says of it. ok is false for
// other instructions.
func (c *config) apply(command instructions.Command) (createdBy string, ok bool, err error) {
	switch in := command.(type) {
	case *instructions.EnvCommand:
		createdBy, err = c.setEnv(in.Env)
	case *instructions.LabelCommand:
		createdBy = c.label(in.Labels)
	case *instructions.MaintainerCommand:
		c.author = in.Maintainer
		createdBy = "MAINTAINER " + in.Maintainer
	case *instructions.CmdCommand:
		c.Cmd, c.cmdSet = c.inShell(in.ShellDependantCmdLine), true
		createdBy = fmt.Sprintf("CMD %q", c.Cmd)
	case *instructions.EntrypointCommand:
		if c.Entrypoint = c.inShell(in.ShellDependantCmdLine); !c.cmdSet {
			c.Cmd = nil
		}
		createdBy = fmt.Sprintf("ENTRYPOINT %q", c.Entrypoint)
	case *instructions.ExposeCommand:
		createdBy, err = c.expose(in.Ports)
	case *instructions.UserCommand:
		c.User = in.User
		createdBy = "USER " + in.User
	case *instructions.VolumeCommand:
		createdBy = c.volumes(in.Volumes)
	case *instructions.StopSignalCommand:
		c.StopSignal = in.Signal
		createdBy, err = "STOPSIGNAL "+in.Signal, checkSignal(in.Signal)
	case *instructions.ShellCommand:
		c.Shell = slices.Clone(in.Shell)
		createdBy = fmt.Sprintf("SHELL %v", in.Shell)
	case *instructions.HealthCheckCommand:
		createdBy = c.healthcheck(in)
	case *instructions.OnbuildCommand:
		c.OnBuild = append(c.OnBuild, in.Expression)
		createdBy = "ONBUILD " + in.Expression
	default:
		return "", false, nil
	}
	return createdBy, true, err
}

func (c *config) setEnv(pairs instructions.KeyValuePairs) (string, error) {
	createdBy := "ENV"
	env := slices.Clone(c.Env)
	for _, kv := range pairs {
		if kv.Key == "" || strings.ContainsAny(kv.Key, "=\x00") {
			return "", fmt.Errorf("%q cannot be the name of a variable", kv.Key)
		}
		env = setenv(env, kv.Key, kv.Value)
		createdBy += " " + kv.String()
	}
	c.Env = env
	return createdBy, nil
}

func (c *config) label(pairs instructions.KeyValuePairs) string {
	createdBy := "LABEL"
	labels := maps.Clone(c.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, kv := range pairs {
		labels[kv.Key] = kv.Value
		createdBy += " " + kv.String()
	}
	c.Labels = labels
	return createdBy
}

// shell is what commands in shell form are given to.
func (c *config) shell() []string {
	if len(c.Shell) > 0 {
		return slices.Clone(c.Shell)
	}
	return []string{"/bin/sh", "-c"}
}

// inShell is a command line as it is started.
func (c *config) inShell(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return slices.Clone(line.CmdLine)
	}
	return append(c.shell(), strings.Join(line.CmdLine, " "))
}

func (c *config) volumes(list []string) string {
	volumes := maps.Clone(c.Volumes)
	if volumes == nil {
		volumes = map[string]struct{}{}
	}
	for _, v := range list {
		volumes[v] = struct{}{}
	}
	c.Volumes = volumes
	return fmt.Sprintf("VOLUME %v", list)
}

func (c *config) healthcheck(in *instructions.HealthCheckCommand) string {
	h := in.Health
	c.Healthcheck = &v1.HealthConfig{
		Test: slices.Clone(h.Test), Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries,
	}
	return fmt.Sprintf("HEALTHCHECK %+v", *h)
}

func (c *config) expose(ports []string) (string, error) {
	exposed := maps.Clone(c.ExposedPorts)
	if exposed == nil {
		exposed = map[string]struct{}{}
	}
	var said []string
	for _, p := range ports {
		list, err := parsePorts(p)
		if err != nil {
			return "", fmt.Errorf("port %q: %w", p, err)
		}
		for _, port := range list {
			exposed[port] = struct{}{}
		}
		said = append(said, list...)
	}
	c.ExposedPorts = exposed
	return fmt.Sprintf("EXPOSE %v", said), nil
}

// parsePorts reads PORT[-PORT][/PROTOCOL]. What docker allows before it, an
// address and a port of the host, has no meaning in an image.
func parsePorts(s string) ([]string, error) {
	s = s[strings.LastIndexByte(s, ':')+1:]
	ports, protocol, _ := strings.Cut(s, "/")
	switch protocol = strings.ToLower(protocol); protocol {
	case "":
		protocol = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("protocol %q: must be tcp, udp or sctp", protocol)
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("must be a number up to 65535, or two with a - between")
	}
	to, err := strconv.ParseUint(last, 10, 16)
	if err != nil || to < from {
		return nil, fmt.Errorf("must be a number up to 65535, or two with a - between")
	}
	var list []string
	for n := from; n <= to; n++ {
		list = append(list, strconv.FormatUint(n, 10)+"/"+protocol)
	}
	return list, nil
}

// checkSignal knows numbers, names with or without SIG, and the real-time
// signals by their distance.
func checkSignal(s string) error {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if unix.SignalNum(name) != 0 {
		return nil
	}
	for _, end := range []string{"SIGRTMIN", "SIGRTMAX"} {
		if rest, ok := strings.CutPrefix(name, end); ok {
			if n, err := strconv.Atoi(rest); rest == "" || err == nil && n > -31 && n < 31 {
				return nil
			}
		}
	}
	return fmt.Errorf("%q is no signal", s)
}

// workdir makes p the working directory, below the one before where p is
// relative.
func (c *config) workdir(p string) string {
	if p == "" {
		p = "."
	}
	if !path.IsAbs(p) {
		p = path.Join("/", c.WorkingDir, p)
	}
	c.WorkingDir = path.Clean(p)
	return c.WorkingDir
}

// inWorkdir is a path of an instruction as an absolute one. A slash at the end,
// which says that a directory is meant, stays.
func (c *config) inWorkdir(p string) string {
	dir := strings.HasSuffix(p, "/") || p == "" || p == "." || strings.HasSuffix(p, "/.")
	if !path.IsAbs(p) {
		p = path.Join("/", c.WorkingDir, p)
	}
	if p = path.Clean(p); dir && p != "/" {
		p += "/"
	}
	return p
}
