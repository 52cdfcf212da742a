package dockerfile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/internal/event"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// runKey is all that the result of a RUN depends on, besides the files.
type runKey struct {
	Run, Env  []string
	User, Dir string
	NoNetwork bool
	Script    string
	Mounts    []string
}

// run carries out a RUN.
func (s *stage) run(ctx context.Context, c *instructions.RunCommand, text string) error {
	if instructions.GetSecurity(c) != instructions.SecuritySandbox {
		return errors.New("--security: a step gets no more rights here")
	}
	if len(instructions.GetDevices(c)) > 0 {
		return errors.New("--device: a step gets no devices here")
	}
	args, script, err := s.runArgs(c)
	if err != nil {
		return err
	}
	p := Process{Args: args, Dir: cmp.Or(s.config.WorkingDir, "/"), NoNetwork: instructions.GetNetwork(c) == instructions.NetworkNone}
	key := runKey{Run: args, User: s.config.User, Dir: p.Dir, NoNetwork: p.NoNetwork}
	key.Env = s.runEnv()
	if script != nil {
		key.Script = string(script)
		p.Mounts = append(p.Mounts, Mount{Target: args[0], Files: file(script, 0o755, layer.Owner{}), ReadOnly: true})
	}
	secretEnv := []string{}
	for _, m := range instructions.GetMounts(c) {
		mount, env, said, err := s.runMount(ctx, m)
		if err != nil {
			return fmt.Errorf("--mount=type=%s: %w", m.Type, err)
		}
		key.Mounts = append(key.Mounts, said)
		secretEnv = append(secretEnv, env...)
		if mount != nil {
			p.Mounts = append(p.Mounts, *mount)
		}
	}
	p.Env = slices.Concat(key.Env, s.proxies(), secretEnv)
	return s.change(ctx, text, "RUN "+strings.Join(args, " "), key, func(ctx context.Context, r Root) error {
		return s.start(ctx, r, p)
	})
}

// heredocDir is where a heredoc that is a script is while it runs.
const heredocDir = "/run/heredoc"

// runArgs is the command line of a RUN, and the script that it is if it has
// its own interpreter.
func (s *stage) runArgs(c *instructions.RunCommand) (args []string, script []byte, err error) {
	line := c.CmdLine
	if len(line) == 0 {
		return nil, nil, errors.New("no command")
	}
	if len(c.Files) > 0 {
		if doc := parser.MustParseHeredoc(line[0]); doc != nil {
			data := c.Files[0].Data
			if c.Files[0].Chomp {
				data = parser.ChompHeredocContent(data)
			}
			if strings.HasPrefix(data, "#!") {
				return []string{path.Join(heredocDir, path.Base(c.Files[0].Name))}, []byte(data), nil
			}
			line = []string{data}
		} else {
			line = []string{withHeredocs(line[0], c.Files)}
		}
	}
	if c.PrependShell {
		return append(s.config.shell(), strings.Join(line, " ")), nil, nil
	}
	return slices.Clone(line), nil, nil
}

// withHeredocs puts heredocs back behind their line: the shell knows them.
func withHeredocs(line string, docs []instructions.ShellInlineFile) string {
	var b strings.Builder
	b.WriteString(line)
	for _, doc := range docs {
		b.WriteString("\n" + doc.Data + doc.Name)
	}
	return b.String()
}

// runEnv is the environment of programs, but for what is of this host or of
// the user that they run as.
func (s *stage) runEnv() []string {
	env := slices.Clone(s.config.Env)
	for _, a := range s.args {
		if _, set := lookup(s.config.Env, a.name); !set && a.value != nil {
			env = setenv(env, a.name, *a.value)
		}
	}
	return env
}

// proxies are the build arguments that need no declaration.
func (s *stage) proxies() []string {
	var env []string
	for _, name := range proxyNames {
		if value, ok := s.o.Args[name]; ok {
			if _, set := s.scope().Get(name); !set {
				env = append(env, name+"="+value)
			}
		}
	}
	return env
}

// start runs a program as the user of the image.
func (s *stage) start(ctx context.Context, r Root, p Process) error {
	var answer bytes.Buffer
	if err := r.Inside(ctx, Op{Look: &Look{User: s.config.User}}, nil, &answer); err != nil {
		return err
	}
	var found Found
	if err := json.Unmarshal(answer.Bytes(), &found); err != nil {
		return err
	}
	p.User, p.System = found.User, found.System
	if _, set := lookup(p.Env, "HOME"); !set {
		p.Env = append(p.Env, "HOME="+found.User.Home)
	}
	stdout, stderr := event.NewLines(s.o.Events, s.o.Who, false), event.NewLines(s.o.Events, s.o.Who, true)
	p.Stdout, p.Stderr = stdout, stderr
	defer stdout.Flush()
	defer stderr.Flush()
	return r.Run(ctx, p)
}

// runMount is what a --mount shows, the variables that it sets, and what a layer
// that was made with it is remembered by. A secret is not part of that.
func (s *stage) runMount(ctx context.Context, m *instructions.Mount) (mount *Mount, env []string, key string, err error) {
	target := m.Target
	if target != "" && !path.IsAbs(target) {
		target = path.Join("/", s.config.WorkingDir, target)
	}
	if m.Type != instructions.MountTypeSecret && path.Clean(target) == "/" || target == "" && m.Type != instructions.MountTypeSecret {
		return nil, nil, "", errors.New("a target is needed, and not /")
	}
	key = fmt.Sprintf("%s %q ro=%v", m.Type, target, m.ReadOnly)
	switch m.Type {
	case instructions.MountTypeTmpfs:
		return &Mount{Target: target, Tmpfs: true, Size: m.SizeLimit}, nil, key, nil
	case instructions.MountTypeSecret:
		return s.secretMount(m, target)
	case instructions.MountTypeCache:
		return s.cacheMount(ctx, m, target, key)
	case instructions.MountTypeBind:
		files, digest, err := s.mounted(ctx, m)
		return &Mount{Target: target, Files: files, ReadOnly: m.ReadOnly}, nil, key + " " + digest, err
	}
	return nil, nil, "", spec.WithHint(errors.New("is not supported: no agent's keys are to be had in a build"), "give a key of its own with --mount=type=secret")
}

// mounted is a copy of what a mount names: a file or directory of the context,
// of an image or of an earlier stage.
func (s *stage) mounted(ctx context.Context, m *instructions.Mount) (files func(context.Context, io.Writer) error, digest string, err error) {
	from, err := s.origin(ctx, m.From)
	if err != nil {
		return nil, "", err
	}
	source := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(cmp.Or(m.Source, "/"))
	p, err := from.part(ctx, Sources{Paths: []string{source}})
	if err != nil {
		return nil, "", err
	}
	return shown(p.write), p.digest, nil
}

func (s *stage) cacheMount(ctx context.Context, m *instructions.Mount, target, key string) (*Mount, []string, string, error) {
	mount := &Mount{Target: target, Cache: cmp.Or(m.CacheID, path.Clean(target)), Sharing: string(m.CacheSharing), ReadOnly: m.ReadOnly}
	key += " " + mount.Cache
	if m.From != "" {
		files, digest, err := s.mounted(ctx, m)
		mount.Files = files
		return mount, nil, key + " " + digest, err
	}
	mode, owner := fileOf(m, 0o755)
	mount.Files = emptyDirectory(mode, owner)
	return mount, nil, key, nil
}

// fileOf is the mode and the owner that a mount asks for.
func fileOf(m *instructions.Mount, mode int64) (int64, layer.Owner) {
	var owner layer.Owner
	if m.Mode != nil {
		mode = int64(*m.Mode) & 0o7777
	}
	if m.UID != nil {
		owner.UID = int(*m.UID)
	}
	if m.GID != nil {
		owner.GID = int(*m.GID)
	}
	return mode, owner
}

// secretMount shows a secret as a file, a variable, or both. One that nobody
// gave is left out, unless it is required.
func (s *stage) secretMount(m *instructions.Mount, target string) (*Mount, []string, string, error) {
	id := cmp.Or(m.Source, m.CacheID, path.Base(target))
	if target == "" && m.Env == nil {
		target = "/run/secrets/" + path.Base(id)
	}
	name := ""
	if m.Env != nil {
		name = cmp.Or(*m.Env, id)
	}
	key := fmt.Sprintf("secret %q target=%q env=%q", id, target, name)
	secret, ok := s.o.Secrets[id]
	if !ok && m.Required {
		return nil, nil, "", spec.WithHint(fmt.Errorf("the secret %s is required, and was not given", id), "give it, or leave required out of the mount")
	}
	if !ok {
		return nil, nil, key, nil
	}
	var env []string
	if name != "" {
		env = []string{name + "=" + string(secret)}
	}
	if target == "" {
		return nil, env, key, nil
	}
	mode, owner := fileOf(m, 0o400)
	return &Mount{Target: target, Files: file(secret, mode, owner), ReadOnly: true}, env, key, nil
}
