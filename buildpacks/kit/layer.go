package kit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/encode"
	"github.com/kilnbuild/kiln/internal/spec"
)

// keyName is where a layer's metadata holds the Key it was made for.
const keyName = "kit-key"

// Layer is a directory of files together with who may use it. Its files,
// environment and bill of materials are written (again) after Reset; after a
// successful Reuse they are left as they are.
type Layer struct {
	Name string
	// Path is the layer's directory. It exists after Reset, and after Reuse
	// unless the layer is only for launch.
	Path string
	// Launch puts the layer into the app image, Build shows it to later
	// buildpacks, Cache keeps its contents for the next build. They must be set
	// anew in each build, and before Reuse.
	Launch, Build, Cache bool
	// Metadata is remembered beside the layer; on Reuse it is what the last
	// build left there.
	Metadata map[string]any
	// Env is for build and launch, BuildEnv and LaunchEnv for one of them.
	Env, BuildEnv, LaunchEnv Environment
	// BOM says what the layer is made of, if it is not nil.
	BOM *BOM

	dir       string
	restored  map[string]any
	key       string
	reused    bool
	processes map[string]*Environment
}

// Layer is the layer of this name, as the last build left it. Its directory
// may not exist yet; call Reuse, and Reset if that fails.
func (b *Build) Layer(name string) (*Layer, error) {
	if err := spec.ValidateLayerName(name); err != nil {
		return nil, err
	}
	for _, l := range b.layers {
		if l.Name == name {
			return l, nil
		}
	}
	l := &Layer{Name: name, Path: filepath.Join(b.LayersDir, name), dir: b.LayersDir, Metadata: map[string]any{}}
	path := l.file("toml")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what the last build left of layer %s: %w", name, err)
	}
	if err == nil {
		doc, err := spec.ReadLayerTOML(text, path)
		if err != nil {
			return nil, err
		}
		l.restored = doc.Metadata
	}
	b.layers = append(b.layers, l)
	return l, nil
}

// Restored is the value that the last build left in the layer's metadata
// under name, "" if there is none or it is no string.
func (l *Layer) Restored(name string) string {
	s, _ := l.restored[name].(string)
	return s
}

// Reuse reports whether the layer was made for key by the last build and is
// good for the types that it has now; if so, it stays as it is. Otherwise
// key is remembered for the layer that is to be made. See Build.Key.
func (l *Layer) Reuse(key string) bool {
	l.key = key
	if key == "" || l.Restored(keyName) != key {
		return false
	}
	// Only a layer that nobody needs during this build may be without contents:
	// the exporter then takes it from the previous image.
	if _, err := os.Lstat(l.Path); err != nil && (l.Build || l.Cache || !l.Launch) {
		return false
	}
	l.reused = true
	l.Metadata = maps.Clone(l.restored)
	return true
}

// Reset empties the layer.
func (l *Layer) Reset() error {
	l.reused = false
	l.Metadata = map[string]any{}
	if err := RemoveAll(l.Path); err != nil {
		return err
	}
	for _, format := range formats {
		if err := os.Remove(l.file(format.extension)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.MkdirAll(l.Path, 0o755)
}

// ProcessEnv is the environment of one process type (env.launch/<type>).
func (l *Layer) ProcessEnv(processType string) *Environment {
	if l.processes == nil {
		l.processes = map[string]*Environment{}
	}
	if l.processes[processType] == nil {
		l.processes[processType] = &Environment{}
	}
	return l.processes[processType]
}

// ExecD copies a program into the layer that the launcher runs at every start
// and that may set variables (Buildpack API, exec.d). Programs run in the order
// of their names.
func (l *Layer) ExecD(name string, program io.Reader) error {
	dir := filepath.Join(l.Path, "exec.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, program)
	return errors.Join(err, f.Chmod(0o755), f.Close())
}

func (l *Layer) file(extension string) string {
	return filepath.Join(l.dir, l.Name+"."+extension)
}

// write leaves <layer>.toml and, unless the layer is reused, what belongs to
// its contents.
func (l *Layer) write() error {
	if !l.reused {
		if err := l.writeContents(); err != nil {
			return err
		}
		if l.key != "" {
			l.Metadata[keyName] = l.key
		}
	}
	text, err := encode.TOML(spec.LayerTOML{
		Types:    spec.LayerTypes{Launch: l.Launch, Build: l.Build, Cache: l.Cache},
		Metadata: l.Metadata,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(l.file("toml"), text, 0o644)
}

func (l *Layer) writeContents() error {
	for dir, env := range map[string]*Environment{"env": &l.Env, "env.build": &l.BuildEnv, "env.launch": &l.LaunchEnv} {
		if err := env.write(filepath.Join(l.Path, dir)); err != nil {
			return err
		}
	}
	for name, env := range l.processes {
		if err := env.write(filepath.Join(l.Path, "env.launch", name)); err != nil {
			return err
		}
	}
	if l.BOM != nil {
		return l.BOM.write(l.dir, l.Name)
	}
	return nil
}

// RemoveAll removes a tree, also where directories in it are read-only.
func RemoveAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walk := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			if err := os.Chmod(p, 0o700); err != nil {
				return err
			}
			if err != nil {
				return filepath.SkipDir
			}
		}
		return nil
	})
	return errors.Join(walk, os.RemoveAll(path))
}
