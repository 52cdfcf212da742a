package phase

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/image"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/spec"
)

// image puts the layers on the run image and writes config and labels
// (requirements 5.4, 5.5). It completes md.
func (a *assembler) image(md *spec.LifecycleMetadata, additions []image.Addition) (v1.Image, error) {
	base, err := a.Run.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("run image: %w", err)
	}
	if err := a.describeBase(md, base); err != nil {
		return nil, err
	}
	labels, err := a.labels(md)
	if err != nil {
		return nil, err
	}
	entrypoint, err := a.entrypoint()
	if err != nil {
		return nil, err
	}
	extended, err := a.extendedConfig()
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: a.created()}
	return image.Append(a.Run, additions, func(c *v1.ConfigFile) {
		if extended != nil {
			extended.RootFS, extended.History = c.RootFS, c.History
			*c = *extended
		}
		c.Created = created
		c.History = history(c.History, created, spec.Has(a.PlatformAPI, spec.PlatformHistory))
		c.Config.WorkingDir = a.App.Path
		c.Config.Entrypoint = entrypoint
		c.Config.Cmd = nil
		c.Config.Env = a.env(c.Config.Env)
		if c.Config.Labels == nil {
			c.Config.Labels = map[string]string{}
		}
		for key, value := range labels {
			c.Config.Labels[key] = value
		}
	})
}

// describeBase says in the label what the image stands on, for a later rebase.
func (a *assembler) describeBase(md *spec.LifecycleMetadata, base *v1.ConfigFile) error {
	if len(base.RootFS.DiffIDs) == 0 {
		return errors.New("the run image has no layers")
	}
	run := a.Analyzed.RunImage
	name := run.Image
	if name == "" {
		name = run.Reference
	}
	entry := runImageEntry(a.RunTOML, name, len(a.Group.GroupExtensions) > 0)
	md.RunImage = spec.RunImageForRebase{
		TopLayer:  base.RootFS.DiffIDs[len(base.RootFS.DiffIDs)-1].String(),
		Reference: run.Reference,
	}
	if spec.Has(a.PlatformAPI, spec.PlatformTargets) {
		md.RunImage.Image, md.RunImage.Mirrors = entry.Image, entry.Mirrors
	}
	md.Stack = &spec.StackForRebase{RunImage: entry}
	if spec.Has(a.PlatformAPI, spec.PlatformExecEnv) {
		md.ExecEnv = execEnvOf(a.ExecEnv)
	}
	return nil
}

// labels are those of the lifecycle, then those that buildpacks ask for, which
// win.
func (a *assembler) labels(md *spec.LifecycleMetadata) (map[string]string, error) {
	lifecycle, err := spec.EncodeLabel(md)
	if err != nil {
		return nil, err
	}
	build, err := spec.EncodeBuildLabel(spec.BuildLabel{
		Processes: a.procs, Buildpacks: a.Built.Buildpacks, Extensions: a.Built.Extensions,
		Launcher: a.LauncherInfo, DefaultProcessType: a.Built.DefaultProcessType,
	}, a.PlatformAPI)
	if err != nil {
		return nil, err
	}
	project, err := spec.EncodeLabel(a.Project)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{
		spec.LifecycleMetadataLabel: lifecycle,
		spec.BuildMetadataLabel:     build,
		spec.ProjectMetadataLabel:   project,
	}
	if spec.Has(a.PlatformAPI, spec.PlatformExecEnv) {
		labels[spec.ExecEnvLabel] = execEnvOf(a.ExecEnv)
	}
	for _, l := range a.Built.Labels {
		labels[l.Key] = l.Value
	}
	return labels, nil
}

// entrypoint is the process that starts when nobody names one.
func (a *assembler) entrypoint() ([]string, error) {
	want := a.ProcessType
	if want == "" {
		want = a.Built.DefaultProcessType
	}
	if want == "" {
		return []string{launcherPath}, nil
	}
	var types []string
	for _, p := range a.procs {
		if p.Type == want {
			return []string{processDir + "/" + want}, nil
		}
		types = append(types, p.Type)
	}
	if len(types) == 0 {
		return nil, fmt.Errorf("default process type %q: no buildpack contributed a process", want)
	}
	return nil, spec.WithHint(fmt.Errorf("default process type %q is not one of this image's", want), "choose one of: %s", strings.Join(types, ", "))
}

// env is the run image's environment with what the launcher needs.
func (a *assembler) env(base []string) []string {
	env := slices.Clone(base)
	set := func(name, value string) {
		for i, kv := range env {
			if strings.HasPrefix(kv, name+"=") {
				env[i] = name + "=" + value
				return
			}
		}
		env = append(env, name+"="+value)
	}
	search := processDir + ":" + lifecycleDir
	for _, kv := range base {
		if old, ok := strings.CutPrefix(kv, "PATH="); ok && old != "" {
			search += ":" + old
			break
		}
	}
	set("PATH", search)
	set("CNB_LAYERS_DIR", a.Layers.Path)
	set("CNB_APP_DIR", a.App.Path)
	set("CNB_PLATFORM_API", a.PlatformAPI)
	set("CNB_DEPRECATION_MODE", "quiet")
	return env
}

// created is when the image says that it was made: the same for the same input.
func (a *assembler) created() time.Time {
	if a.SourceDateEpoch == "" || !spec.Has(a.PlatformAPI, spec.PlatformSourceDateEpoch) {
		return layer.ModTime
	}
	seconds, err := strconv.ParseInt(a.SourceDateEpoch, 10, 64)
	t := time.Unix(seconds, 0).UTC()
	if err != nil || t.Year() < 0 || t.Year() > 9999 {
		warn(a.sink, "SOURCE_DATE_EPOCH=%q is not a number of seconds since 1970; it is ignored", a.SourceDateEpoch)
		return layer.ModTime
	}
	return t
}

// history has one entry for each layer, all of them created at one time. Below
// Platform API 0.12 they say nothing else.
func history(entries []v1.History, created v1.Time, keep bool) []v1.History {
	var list []v1.History
	for _, h := range entries {
		if h.EmptyLayer {
			continue
		}
		if !keep {
			h = v1.History{}
		}
		h.Created = created
		list = append(list, h)
	}
	return list
}
