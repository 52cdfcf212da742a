package kit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/spec"
)

// Build is what Build knows, and where it leaves what it made.
type Build struct {
	Context
	// LayersDir is this buildpack's directory of layers.
	LayersDir string
	// Entries is the buildpack plan: what is required of this buildpack.
	Entries []Entry
	// Store is remembered until the next build of this app (store.toml).
	Store map[string]any

	layers    []*Layer
	launch    launchTOML
	unmet     []spec.Provide
	launchBOM *BOM
	buildBOM  *BOM
}

// Process is a way to start the app image. Command[0] is the executable, the
// rest of Command is always passed; Args are defaults that the user's own
// arguments replace. No shell is involved.
type Process struct {
	Type       string   `toml:"type"`
	Command    []string `toml:"command"`
	Args       []string `toml:"args,omitempty"`
	Default    bool     `toml:"default,omitempty"`
	WorkingDir string   `toml:"working-dir,omitempty"`
	ExecEnv    []string `toml:"exec-env,omitempty"`
}

// launchTOML is launch.toml as it is written since Buildpack API 0.9: without
// the key direct.
type launchTOML struct {
	Labels    []spec.Label `toml:"labels,omitempty"`
	Processes []Process    `toml:"processes,omitempty"`
	Slices    []spec.Slice `toml:"slices,omitempty"`
}

// AddProcess adds a process; the same type again replaces the one before. A
// default takes the place of an earlier default.
func (b *Build) AddProcess(p Process) {
	b.launch.Processes = slices.DeleteFunc(b.launch.Processes, func(q Process) bool { return q.Type == p.Type })
	if p.Default {
		for i := range b.launch.Processes {
			b.launch.Processes[i].Default = false
		}
	}
	b.launch.Processes = append(b.launch.Processes, p)
}

// AddLabel puts a label on the app image; the same key again replaces it.
func (b *Build) AddLabel(key, value string) {
	b.launch.Labels = slices.DeleteFunc(b.launch.Labels, func(l spec.Label) bool { return l.Key == key })
	b.launch.Labels = append(b.launch.Labels, spec.Label{Key: key, Value: value})
}

// AddSlice puts the app's files that match the globs (relative to the app
// directory) into a layer of their own.
func (b *Build) AddSlice(globs ...string) {
	b.launch.Slices = append(b.launch.Slices, spec.Slice{Paths: globs})
}

// Unmet leaves the entries called name to a later buildpack that provides it.
func (b *Build) Unmet(name string) { b.unmet = append(b.unmet, spec.Provide{Name: name}) }

// LaunchBOM and BuildBOM describe what is in the app image, or was used to
// build it, without being in a layer of this buildpack.
func (b *Build) LaunchBOM(bom BOM) { b.launchBOM = &bom }

// BuildBOM is the twin of LaunchBOM for the build image.
func (b *Build) BuildBOM(bom BOM) { b.buildBOM = &bom }

// Key is a digest over the parts, this buildpack's ID and version, and the
// target, so that a layer of another version of the buildpack is never taken
// for one of this version. Parts are anything that encoding/json can write.
func (b *Build) Key(parts ...any) string {
	text, err := json.Marshal([]any{b.ID, b.Version, b.Target, parts})
	if err != nil {
		// Not writable as JSON: no key is equal to this one.
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func runBuild(ctx context.Context, bp Buildpack, c Context) error {
	if bp.Build == nil {
		return errors.New("this buildpack has no Build")
	}
	b, err := readBuild(c)
	if err != nil {
		return err
	}
	if err := bp.Build(ctx, b); err != nil {
		return err
	}
	return b.write()
}

func readBuild(c Context) (*Build, error) {
	b := &Build{Context: c, LayersDir: c.env["CNB_LAYERS_DIR"]}
	plan := c.env["CNB_BP_PLAN_PATH"]
	if b.LayersDir == "" || plan == "" {
		return nil, errors.New("CNB_LAYERS_DIR or CNB_BP_PLAN_PATH is not set: this program is run by a lifecycle (Buildpack API 0.8 or later)")
	}
	var err error
	if b.Entries, err = readEntries(plan); err != nil {
		return nil, err
	}
	path := filepath.Join(b.LayersDir, "store.toml")
	switch text, err := os.ReadFile(path); {
	case errors.Is(err, os.ErrNotExist):
		b.Store = map[string]any{}
	case err != nil:
		return nil, fmt.Errorf("read what the last build stored: %w", err)
	default:
		store, err := spec.ReadStoreTOML(text, path)
		if err != nil {
			return nil, err
		}
		b.Store = maps.Clone(store.Metadata)
		if b.Store == nil {
			b.Store = map[string]any{}
		}
	}
	return b, nil
}

// write leaves everything where the lifecycle looks for it.
func (b *Build) write() error {
	for _, l := range b.layers {
		if err := l.write(); err != nil {
			return fmt.Errorf("layer %s: %w", l.Name, err)
		}
	}
	if err := b.writeDoc("launch.toml", b.launch, len(b.launch.Labels)+len(b.launch.Processes)+len(b.launch.Slices) > 0); err != nil {
		return err
	}
	if err := b.writeDoc("build.toml", spec.BuildTOML{Unmet: b.unmet}, len(b.unmet) > 0); err != nil {
		return err
	}
	if err := b.writeDoc("store.toml", spec.StoreTOML{Metadata: b.Store}, len(b.Store) > 0); err != nil {
		return err
	}
	for name, bom := range map[string]*BOM{"launch": b.launchBOM, "build": b.buildBOM} {
		if bom == nil {
			continue
		}
		if err := bom.write(b.LayersDir, name); err != nil {
			return err
		}
	}
	return nil
}

// writeDoc writes a document, or removes an old one that has become empty.
func (b *Build) writeDoc(name string, v any, filled bool) error {
	path := filepath.Join(b.LayersDir, name)
	if !filled {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := encode.TOML(v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(path, text, 0o644)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
