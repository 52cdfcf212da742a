package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// size is one of the trees that a dependency layer is made of.
type size struct {
	name  string
	files int
	bytes int
}

var sizes = []size{{"S", 100, 10e6}, {"M", 20_000, 200e6}, {"L", 100_000, 1e9}}

func (s size) large() bool { return s.bytes >= 1e9 }

// fixture is the tree of a size, an app, and a buildpack that copies the one into
// a launch and cache layer of the other and reuses it as long as its key is the same.
type fixture struct {
	size
	dir   string
	tree  string
	app   string
	pack  string
	key   int
	line  int
	pipes map[string]spread
}

// fixture makes the one of a size, once.
func (b *bench) fixture(ctx context.Context, s size) (*fixture, error) {
	if f := b.fixtures[s.name]; f != nil {
		return f, nil
	}
	dir := filepath.Join(b.dir, s.name)
	f := &fixture{size: s, dir: dir, tree: filepath.Join(dir, "tree"), app: filepath.Join(dir, "app"), pack: filepath.Join(dir, "pack"), pipes: map[string]spread{}}
	f.key = int(time.Now().UnixNano()) // no store that stays has seen it
	b.fixtures[s.name] = f
	return f, errors.Join(makeTree(f.tree, s.files, s.bytes), writeBuildpack(f.pack, "/volumes/tree"), f.renew(), f.edit(), b.bases(ctx))
}

// renew makes the layer a new one: a file of the tree and the key change, so
// that the buildpack copies it again, and no place knows it.
func (f *fixture) renew() error {
	f.key++
	return errors.Join(write(f.app, "key", fmt.Sprintln(f.key)), write(f.tree, "changed", fmt.Sprintln(f.key)))
}

// edit changes one line of the app.
func (f *fixture) edit() error {
	f.line++
	return write(f.app, "app.py", fmt.Sprintf("print('hello')\n# change %d\n", f.line))
}

func writeBuildpack(dir, tree string) error {
	return errors.Join(
		write(dir, "buildpack.toml", "api = \"0.10\"\n[buildpack]\nid = \"bench/copy\"\nversion = \"1.0.0\"\n"),
		write(dir, "bin/detect", "#!/bin/sh\n"),
		write(dir, "bin/build", `#!/bin/bash
set -e
layer=$CNB_LAYERS_DIR/deps
key=$(cat key)
if [ -d "$layer" ] && grep -q "key = \"$key\"" "$layer.toml"; then echo reuse; else
rm -rf "$layer"; mkdir -p "$layer"; cp -a `+tree+`/. "$layer/"; fi
printf '[types]\nlaunch = true\ncache = true\n[metadata]\nkey = "%s"\n' "$key" > "$layer.toml"
printf '[[processes]]\ntype = "web"\ncommand = ["true"]\ndefault = true\n' > "$CNB_LAYERS_DIR/launch.toml"
`))
}

// The pipes, over a tree $1.
const (
	pipeHash = "tar cf - -C \"$1\" . | openssl dgst -sha256"
	pipeGzip = "tar cf - -C \"$1\" . | gzip -1 | openssl dgst -sha256"
	pipeZstd = "tar cf - -C \"$1\" . | zstd -q -3 -T2 | cat"
)

// pipe measures one over the tree of a size, once for all rows.
func (b *bench) pipe(ctx context.Context, f *fixture, script string) (pipe, error) {
	p := pipe{command: strings.ReplaceAll(script, " -C \"$1\" .", " d")}
	if s, ok := f.pipes[script]; ok {
		p.took = s
		return p, nil
	}
	var err error
	p.took, err = b.measure(func(int) (sample, error) { return b.shell(ctx, script, f.tree) })
	f.pipes[script] = p.took
	return p, err
}

func (b *bench) shell(ctx context.Context, script string, args ...string) (sample, error) {
	r, _, err := b.meter(ctx, command{argv: append([]string{"bash", "-o", "pipefail", "-c", script, "bash"}, args...)})
	return sample{took: r.Took, peak: r.Peak}, err
}

// makeTree writes files of text-like content, the same every time.
func makeTree(dir string, files, size int) error {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 4000)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", random.Uint32()>>(random.IntN(20)))
	}
	each := size / files
	var text bytes.Buffer
	for i := range files {
		path := filepath.Join(dir, fmt.Sprintf("d%03d/s%02d", i/200, i/20%10))
		if i%20 == 0 {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		}
		text.Reset()
		for want := each/2 + random.IntN(each); text.Len() < want; {
			text.WriteString(words[random.IntN(len(words))])
		}
		if err := os.WriteFile(filepath.Join(path, fmt.Sprintf("f%05d.txt", i)), text.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func write(dir, name, content string) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o755)
}

// discard moves directories out of the way. They are removed at the end: ext4
// takes care not to reuse an inode for minutes after it was deleted, so that who
// makes many files after many were removed pays ten times and more for each.
func (b *bench) discard(dirs ...string) error {
	if err := os.MkdirAll(filepath.Join(b.dir, "trash"), 0o755); err != nil {
		return err
	}
	for _, dir := range dirs {
		b.discarded++
		err := os.Rename(dir, filepath.Join(b.dir, "trash", fmt.Sprint(b.discarded)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
